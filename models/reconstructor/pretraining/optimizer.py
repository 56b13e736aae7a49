"""Muon on the hidden matrices, AdamW on everything else, as one optimiser that trainers and schedulers can hold."""

import torch

HIDDEN_LAYERS = (".h.", ".layers.")  # where the blocks live in GPT-2 and in the Llama family
# Quintic Newton-Schulz iteration, https://kellerjordan.github.io/posts/muon/
NS_COEFFICIENTS, NS_STEPS, NS_EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
MUON_MOMENTUM = 0.95
RMS_SCALE = 0.2  # the RMS of AdamW's updates, which Muon's are scaled to (Liu et al. 2025, "Muon is scalable for LLM training")


def orthogonalise(matrices):
    """The nearest semi-orthogonal matrices, roughly, to a stack (n, rows, columns): singular values come out in about [0.7, 1.2]."""
    x = matrices / matrices.flatten(1).norm(dim=1)[:, None, None].clamp(min=NS_EPS)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    a, b, c = NS_COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum and decoupled weight decay.

    As `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` (tested against it), with two differences: matrices of one shape
    are orthogonalised together, and in float32 instead of bfloat16, which most CPUs have no instructions for. On two
    such cores a step of the embedded base model takes a quarter of the time.
    """

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                updates = orthogonalise(torch.stack([self._momentum(p) for p in params]))
                scale = group["lr"] * RMS_SCALE * max(shape) ** 0.5
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)

    def _momentum(self, p):
        """The Nesterov momentum of the gradient of `p`, in float32."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p.grad, dtype=torch.float32)
        state["momentum"].lerp_(p.grad.float(), 1 - MUON_MOMENTUM)
        return p.grad.float().lerp(state["momentum"], MUON_MOMENTUM)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the 2-D matrices inside the transformer blocks and `torch.optim.AdamW` on the rest, side by side."""

    def __init__(self, model, muon_lr, adamw_lr, weight_decay):
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in trained if p.ndim == 2 and any(layer in n for layer in HIDDEN_LAYERS)]
        chosen = {id(p) for p in hidden}
        others = [p for _, p in trained if id(p) not in chosen]
        super().__init__([{"params": hidden, "lr": muon_lr}, {"params": others, "lr": adamw_lr}], {})
        self.parts = (
            Muon(hidden, muon_lr, weight_decay),
            torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
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
