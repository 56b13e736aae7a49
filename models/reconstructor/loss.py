"""Cross entropy of a large-vocabulary output layer with few logits alive at a time: the head is most of a small model's cost."""

import torch

from data.artifacts import InputError

CHUNK = 256  # tokens whose logits are alive at one time: 256 x 50,257 x 4 bytes = 51 MB stay near the cache of a CPU
CHUNK_GPU = 2048  # 412 MB: there the traffic of the summed gradient (V, D) costs more than memory


class SummedNats(torch.autograd.Function):
    """sum_n -ln softmax(h_n W^T)[t_n], with the gradient made in the forward pass, chunk by chunk.

    As in Liger Kernel's fused linear cross entropy (Hsu et al. 2024): softmax minus one-hot overwrites the logits
    while they are in the cache, so that they are neither kept nor read again.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        training = any(ctx.needs_input_grad)
        grad_hidden, grad_weight = (torch.zeros_like(x) if training else None for x in (hidden, weight))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight, size = weight.to(compute), CHUNK if device == "cpu" else CHUNK_GPU
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            h, t = hidden[part].to(compute), targets[part, None]
            logits = h @ weight.T  # (n, V)
            logits = logits.float() if compute.itemsize < 4 else logits
            log_z = logits.logsumexp(1, keepdim=True)
            total += (log_z - logits.gather(1, t)).sum()
            if training:
                probability = logits.sub_(log_z).exp_()
                probability.scatter_add_(1, t, torch.full_like(t, -1, dtype=probability.dtype))
                probability = probability.to(compute)
                grad_hidden[part] = probability @ weight
                if compute == grad_weight.dtype:
                    grad_weight.addmm_(probability.T, h)
                else:
                    grad_weight += probability.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, scale):
        return *(gradient * scale for gradient in ctx.saved_tensors), None


def read_logits(logits, truth):
    """nats (M,) and top1 (M,) from logits (M, V), which are overwritten if they are float32."""
    logits = logits.float()
    best, top1 = logits.max(1, keepdim=True)
    true_logit = logits.gather(1, truth[:, None])
    log_z = logits.sub_(best).exp_().sum(1, keepdim=True).log()  # less `best`
    return (log_z + best - true_logit)[:, 0], top1[:, 0]


def check_finite(who, *values):
    """Raises InputError, which names `who` they are by, if one of the values in tensors is NaN or infinite."""
    if not all(torch.as_tensor(each).isfinite().all() for each in values):
        remedy = "get its files anew, or train it anew"
        raise InputError(f"{who}: expected finite numbers for every token, found NaN or infinity; {remedy}")


def summed_nats(hidden, weight, targets):
    """Summed cross entropy in nats of `targets` (N,) under logits `hidden` (N, D) @ `weight` (V, D)^T, as a scalar."""
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()  # so that `forward` makes no gradients
    return SummedNats.apply(hidden, weight, targets)
