"""Soft labels [N,C] whose true class carries a given mass."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth(y: Tensor, mass: Tensor, classes: int) -> Tensor:
    """Return ŷ = β y + (1 - y)(1 - β)/(C - 1), [N,C], for one-hot y and β = ``mass`` [N] (RAT Eq. 7)."""
    rest = (1.0 - mass) / (classes - 1)
    return rest[:, None].repeat(1, classes).scatter_(1, y[:, None], mass[:, None])


def one_hot(y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the label with mass one on the true class, [N,C]."""
    return torch.zeros(len(y), classes, dtype=dtype, device=y.device).scatter_(1, y[:, None], 1.0)


def distance_aware(scale: Tensor, largest: float, high: float, low: float) -> Tensor:
    """Return β(s) = β_max - s (β_max - β_min)/S, the true-class mass at distance s (RAT Eq. 6, DLS)."""
    if largest <= 0:
        return torch.full_like(scale, high)
    return (high - scale * ((high - low) / largest)).clamp(min(high, low), max(high, low))  # a rounding may leave [0,1]


def entropy(target: Tensor) -> Tensor:
    """Return -Σ_c t_c log t_c in nats, [N]: the floor under the cross-entropy against this label."""
    terms: Tensor = torch.special.entr(target)
    return terms.sum(dim=1)
