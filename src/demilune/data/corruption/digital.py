"""The digital corruptions: contrast, elastic transform, pixelation, JPEG compression."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption.filters import Border, gathered, gaussian, levels, units, within

if TYPE_CHECKING:
    from PIL import Image


def contrast(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return c (x - mean) + mean, the mean per image and channel; nothing is drawn."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    x = units(images)
    # Pixel after pixel, as NumPy sums over the first dimensions: where the result is whole, the last bit decides.
    mean = (x.flatten(2).cumsum(2)[..., -1] / (x.shape[2] * x.shape[3]))[..., None, None]
    return levels((x - mean) * factor + mean)


def elastic(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images under a random affine map, see :func:`warped`, and then moved by a random smooth field.

    The three points of the map are shifted by U(-a, a); the field is U(-1, 1) smoothed by a Gaussian of σ, times α.
    The constants a, α and σ are in sides of the image. The first severity has no field.
    """
    affine, alpha, sigma = ((0.08, 0, 0), (0.07, 0.05, 0.2), (0.06, 0.08, 0.06), (0.05, 0.1, 0.04), (0.03, 0.1, 0.03))[
        severity - 1
    ]
    count, _, height, width = images.shape
    side = min(height, width)
    shift = rng.uniform("affine", (count, 3, 2), -side * affine, side * affine, torch.float64)
    x = warped(units(images).float(), shift.float())
    if alpha:
        draws = (rng.uniform(way, (count, height, width), -1.0, 1.0, torch.float64) for way in ("right", "down"))
        right, down = ((gaussian(draw, side * sigma, 3.0, "reflect") * (side * alpha)).float() for draw in draws)
        x = displaced(x, right, down)
    return levels(x)


def warped(x: Tensor, shift: Tensor) -> Tensor:
    """Return float32 [N,C,H,W] under the affine maps that shift three points by float32 [N,3,2], columns before rows.

    The points are m + (s, s), m + (s, -s) and m - (s, s), m the middle and s a third of the shorter side. Samples are
    linear between pixels, at places rounded to 1/32 pixel, and the edges are mirrors: OpenCV's ``getAffineTransform``
    and ``warpAffine`` (compared with version 4.10).
    """
    height, width = x.shape[-2:]
    third = min(height, width) // 3
    points = torch.tensor([width // 2, height // 2]) + third * torch.tensor([[1, 1], [1, -1], [-1, -1]])
    moved = (points + shift).double()[..., None, None]  # in float32 until here
    # The points are the corners of a right angle, and so the columns of the map are differences of their images.
    (a, c), (b, d) = (((moved[:, i] - moved[:, i + 1]) / (2 * third)).unbind(1) for i in (1, 0))
    e = moved[:, 0, 0] - (a * points[0, 0] + b * points[0, 1])
    f = moved[:, 0, 1] - (c * points[0, 0] + d * points[0, 1])
    scale = 1 / (a * d - b * c)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale  # from here on the way back: from a result to its source
    column, row = torch.arange(width)[None, None, :], torch.arange(height)[None, :, None]
    right = (_fixed(a * column) + _fixed(b * row - (a * e + b * f)) + 16) >> 5
    down = (_fixed(c * column) + _fixed(d * row - (c * e + d * f)) + 16) >> 5
    return _sampled(x, down >> 5, right >> 5, (down & 31).float() / 32, (right & 31).float() / 32, "mirror")


def displaced(x: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return float32 [N,C,H,W] sampled at places moved by float32 [N,H,W], linear between pixels.

    What is beyond the edges is the image reflected, as SciPy's ``map_coordinates`` has it.
    """
    height, width = x.shape[-2:]
    row, column = torch.arange(height)[:, None] + down.double(), torch.arange(width) + right.double()
    top, left = row.floor(), column.floor()
    return _sampled(x.double(), top.long(), left.long(), row - top, column - left, "reflect").float()


def _fixed(value: Tensor) -> Tensor:
    return (value * 1024).round().long()


def _sampled(x: Tensor, top: Tensor, left: Tensor, low: Tensor, right: Tensor, border: Border) -> Tensor:
    """Return [N,C,H,W] at places ``top`` + ``low`` and ``left`` + ``right``, a pixel and what is beyond it."""
    height, width = x.shape[-2:]
    out = torch.zeros_like(x)
    for row, tall in ((top, 1 - low), (top + 1, low)):
        for column, wide in ((left, 1 - right), (left + 1, right)):
            pixels = gathered(x, within(row, height, border), within(column, width, border))
            out += pixels * (tall * wide)[:, None]
    return out


def pixelate(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images shrunk to ⌊c · side⌋ pixels and enlarged again, both with Pillow's box filter; nothing is drawn."""
    from PIL.Image import Resampling

    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = images.shape[-2:]
    small = (int(width * share), int(height * share))
    return _each(images, lambda image: image.resize(small, Resampling.BOX).resize((width, height), Resampling.BOX))


def jpeg(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images after they were a JPEG file; nothing is drawn.

    Which levels come back is a matter of Pillow's JPEG library.
    """
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity - 1]

    def compressed(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, compressed)


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Return uint8 [N,C,H,W], C one or three, each image changed by Pillow."""
    from PIL import Image

    upright = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    for pixels in upright:
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        pixels[:] = np.asarray(change(image)).reshape(pixels.shape)
    return torch.from_numpy(upright).permute(0, 3, 1, 2)
