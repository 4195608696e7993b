"""Points of the region that a path of attack spans.

``torch.lerp`` is used throughout because it is exact at weights 0 and 1 and for equal ends; ``x + s (x̄ - x)``
is not (a rounding in 0.2 % of pixels at s = 1). Convex combinations may leave [0,1] by one rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return start + w (end - start); ``weight`` broadcasts against the images."""
    return torch.lerp(start, end, weight.expand(torch.broadcast_shapes(weight.shape, start.shape, end.shape)))


def triangle(x: Tensor, first: Tensor, end: Tensor, position: Tensor, scale: Tensor) -> Tensor:
    """Return x̂ = x + s (x̄ - x) with x̄ = λ x_f + (1 - λ) x_e (RAT Eq. 5), not clamped.

    ``first`` x_f, ``end`` x_e and ``x`` are [N,C,H,W]; ``position`` λ and ``scale`` s are [M,N,1,1,1]; the
    result is [M,N,C,H,W]. s = 0 gives x, s = 1 a point of the segment from x_e to x_f, s > 1 goes beyond it.
    """
    return segment(x, segment(end, first, position), scale)
