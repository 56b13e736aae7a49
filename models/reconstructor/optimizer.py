"""Muon on the hidden matrices, AdamW on everything else, as one optimiser that trainers and schedulers can hold."""

import torch

HIDDEN_LAYERS = (".h.", ".layers.")  # where the blocks live in GPT-2 and in the Llama family


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` (Jordan et al. 2024) and `torch.optim.AdamW` side by side.

    Muon takes the 2-D matrices inside the transformer blocks. Its updates are scaled to the RMS of AdamW's (Liu et al.
    2025, "Muon is scalable for LLM training"), which also makes the scale independent of whether a layer keeps
    its matrix transposed, as GPT-2's Conv1D does.
    """

    def __init__(self, model, muon_lr, adamw_lr, weight_decay):
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in trained if p.ndim == 2 and any(layer in n for layer in HIDDEN_LAYERS)]
        chosen = {id(p) for p in hidden}
        others = [p for _, p in trained if id(p) not in chosen]
        super().__init__([{"params": hidden, "lr": muon_lr}, {"params": others, "lr": adamw_lr}], {})
        self.parts = (
            torch.optim.Muon(hidden, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        assert closure is None
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none=True):
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self):
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict):
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
