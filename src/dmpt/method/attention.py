"""Attention, by whichever way is fast on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v.

    Queries ``(..., N, d)``, keys and values ``(..., K, d)`` to ``(..., N, d)``. PyTorch's fused kernel saves time and
    memory, but its backward is some times slower on a CPU than two matrix products at our lengths (some 30 to 170
    tokens), whose scores are small. So there they train.
    """
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.device.type != "cpu" or not trains:
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    out: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return out
