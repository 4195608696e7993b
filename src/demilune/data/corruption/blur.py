"""The four blurs: defocus, glass, motion, zoom."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption.filters import correlated, gathered, gaussian, levels, streaked, units, zoomed


def defocus(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images correlated with a disk, see :func:`disk`; nothing is drawn."""
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    return levels(correlated(units(images), disk(radius, alias)))


def disk(radius: float, alias: float) -> list[list[float]]:
    """Return the pixels within a radius of the centre, summing to 1, then smoothed by a 3 by 3 Gaussian of σ = alias.

    In float32, as OpenCV has it, with zeros around: its 17 by 17 pixels without those that stay empty.
    """
    reach = int(radius) + 1
    place = np.arange(-reach, reach + 1)
    kernel = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float32)
    kernel /= kernel.sum()
    side = np.exp(-1 / (2 * alias**2))
    outer, inner = (np.array([side, 1.0]) / (1 + 2 * side)).astype(np.float32)
    for _ in range(2):  # along the rows, then along the columns
        wide = np.pad(kernel, ((0, 0), (1, 1)))
        kernel = (inner * kernel + outer * (wide[:, :-2] + wide[:, 2:])).T
    smoothed: list[list[float]] = kernel.astype(np.float64).tolist()
    return smoothed


def glass(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images whose pixels each take over the one at their upper left, above, at their left or none, in a blur.

    The original means to exchange the two pixels, but NumPy's rows are views, and so only the first of them changes. It
    goes from the lower right to the upper left and its offsets are -1 or 0: no pixel is read after it was written, and
    all can be moved at once. The two topmost rows and leftmost columns stay.
    """
    sigma, times = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    count, _, height, width = images.shape
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    moves = (row > 1) & (column > 1)
    x = levels(gaussian(units(images), sigma, 4.0, "nearest"))
    for time in range(times):
        up, left = (rng.integers(f"{way} {time}", (count, height, width), 0, 2) * moves for way in ("up", "left"))
        x = gathered(x, row - up, column - left)
    return levels(gaussian(units(x), sigma, 4.0, "nearest"))


def motion(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images moved along an angle U(-45°, 45°), see :func:`~demilune.data.corruption.filters.streaked`."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    return streaked(images, radius, sigma, rng.uniform("angle", (len(images),), -45.0, 45.0, torch.float64))


def zoom(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return the mean of an image and its enlargements by 1.00, 1.01, …, in float32; nothing is drawn.

    The last factor is 1.06, 1.11, 1.15, 1.20 or 1.25: NumPy's ``arange`` includes the end that the original excludes in
    the first two cases, by a rounding error, which is taken over.
    """
    end = (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1]
    factors = np.arange(1, end, 0.01).tolist()
    x = units(images).float()
    total = torch.zeros_like(x)
    for factor in factors:
        total += zoomed(x, factor).float()
    return levels((x + total) / (len(factors) + 1))
