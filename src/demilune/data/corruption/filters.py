"""What several corruptions need: the levels of an image as numbers and back, filters, zoom and motion blur.

Everything is a sum of elementwise products in a fixed order, never a matrix product or a convolution of torch:
truncation to whole levels turns the last bit of a sum into a whole level wherever an image is flat, and so the sums
are done in the order of the libraries that made the published files. The bits then depend on nothing around the image
either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Border = Literal["nearest", "reflect", "mirror"]
"""What lies beyond the edge, as SciPy names it: aaa|abc, cba|abc, dcb|abc."""


def units(images: Tensor) -> Tensor:
    """Return uint8 levels divided by 255, in float64."""
    return images.double() / 255


def levels(values: Tensor) -> Tensor:
    """Return values as levels, uint8: clipped to [0,1], times 255, cut off and not rounded, as the original does."""
    return (values.clamp(0, 1) * 255).to(torch.uint8)


def within(index: Tensor, size: int, border: Border) -> Tensor:
    """Return int64 places along a side of ``size`` pixels, those beyond its ends moved to where ``border`` says."""
    if border == "nearest":
        return index.clamp(0, size - 1)
    if border == "reflect":
        index = index.remainder(2 * size)
        return torch.minimum(index, 2 * size - 1 - index)
    period = max(2 * size - 2, 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def padded(x: Tensor, by: int, dim: int, border: Border) -> Tensor:
    """Return ``x`` with ``by`` more places at both ends of a dimension."""
    size = x.shape[dim]
    return x.index_select(dim, within(torch.arange(-by, size + by), size, border))


def gaussian(x: Tensor, sigma: float, truncate: float, border: Border) -> Tensor:
    """Return [...,H,W] in float64 smoothed by exp(-i² / 2σ²), |i| ≤ ⌊truncate · σ + ½⌋, along H, then along W.

    As SciPy's ``gaussian_filter`` to the last bit.
    """
    radius = int(truncate * sigma + 0.5)
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    for dim in (-2, -1):
        size, wide = x.shape[dim], padded(x, radius, dim, border)
        x = wide.narrow(dim, radius, size) * weights[radius]
        for i in range(radius):  # SciPy adds the outermost pair first
            x += (wide.narrow(dim, i, size) + wide.narrow(dim, 2 * radius - i, size)) * weights[i]
    return x


def correlated(x: Tensor, kernel: Sequence[Sequence[float]]) -> Tensor:
    """Return [...,H,W] correlated with a square kernel of odd side, mirrored at the edges."""
    side = len(kernel)
    wide = padded(padded(x, side // 2, -2, "mirror"), side // 2, -1, "mirror")
    out = torch.zeros_like(x)
    for top, row in enumerate(kernel):
        for left, weight in enumerate(row):
            out += wide[..., top : top + x.shape[-2], left : left + x.shape[-1]] * weight
    return out


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Return the centre of [...,H,W] enlarged by a factor ≥ 1 to [...,H,W], in float64.

    ⌈H / factor⌉ rows from the centre are stretched linearly to round(⌈H / factor⌉ · factor), first on first and last on
    last, of which the middle H are kept; columns alike. That is ``clipped_zoom`` of the original with SciPy's ``zoom``.
    """
    x = x.double()
    for dim in (-2, -1):
        size = x.shape[dim]
        kept = math.ceil(size / factor)
        made = round(kept * factor)
        place = torch.arange(size, dtype=torch.float64) + (made - size) // 2
        place *= (kept - 1) / max(made - 1, 1)
        low = place.floor().long().clamp(0, max(kept - 2, 0))
        weight = (place - low).reshape(-1, *[1] * (-1 - dim))
        low += (size - kept) // 2
        high = (low + 1).clamp(max=size - 1)
        x = x.index_select(dim, low) * (1 - weight) + x.index_select(dim, high) * weight
    return x


def gathered(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the pixels of [N,C,H,W] at int64 places [N,H',W'] of each image, [N,C,H',W']."""
    place = (row * x.shape[-1] + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, place).reshape(*x.shape[:2], *row.shape[1:])


def streaked(images: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Return uint8 [N,C,H,W] moved along a direction of each image, in float64 [N] degrees.

    The pixel at a place p becomes Σ_i w_i x(p + ⌈i (cos, sin) - ½⌉), columns before rows and the edge continued, with
    w_i ∝ exp(-i² / 2σ²), i = 0 … 2 · radius, one half of a bell; sums are rounded. That is ImageMagick's motion blur,
    written from its source (``MotionBlurImage``) and not compared with what it makes: rounding to 16 bits first, as it
    does, changes nothing.
    """
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    angle = torch.deg2rad(degrees)[:, None, None]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    x = images.double()
    out = torch.zeros_like(x)
    for i, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        down, right = ((i * part(angle) - 0.5).ceil().long() for part in (torch.sin, torch.cos))
        row, column = within(rows + down, height, "nearest"), within(columns + right, width, "nearest")
        out += gathered(x, *torch.broadcast_tensors(row, column)) * weight
    return (out + 0.5).clamp(0, 255).to(torch.uint8)
