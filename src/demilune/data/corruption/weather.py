"""The weather: snow, fog, brightness; frost, which needs photographs, is in :mod:`demilune.data.corruption.frost`."""

from __future__ import annotations

import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption.filters import levels, streaked, units, zoomed


def grey(x: Tensor) -> Tensor:
    """Return the luma 0.299 R + 0.587 G + 0.114 B of [N,3,...], or the one channel of [N,1,...], as [N,1,...]."""
    if x.shape[1] == 1:
        return x
    red, green, blue = (x[:, channel : channel + 1] for channel in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def snow(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images whitened, under flakes and the same flakes turned by 180°.

    b x + (1 - b) max(x, 1.5 grey + ½) + flakes, where flakes are N(mean, σ²), enlarged, set to 0 below a threshold and
    moved along an angle U(-135°, -45°) as in motion blur.
    """
    mean, sigma, zoom, threshold, radius, streak, blend = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )[severity - 1]
    count, _, height, width = images.shape
    flakes = zoomed(mean + sigma * rng.normal("flakes", (count, 1, height, width), torch.float64), zoom)
    angle = rng.uniform("angle", (count,), -135.0, -45.0, torch.float64)
    fallen = units(streaked(levels(torch.where(flakes < threshold, 0.0, flakes)), radius, streak, angle))
    x = units(images).float()
    x = blend * x + (1 - blend) * torch.maximum(x, grey(x) * 1.5 + 0.5)
    return levels(x + fallen + fallen.rot90(2, (2, 3)))


def fog(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return (x + c · field) · m / (m + c), m the largest value of the image, the field from :func:`plasma`."""
    thickness, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    height, width = images.shape[-2:]
    side = 1 << (max(height, width) - 1).bit_length()
    x = units(images)
    largest = x.amax(dim=(1, 2, 3), keepdim=True)
    field = plasma(len(images), side, decay, rng)[:, None, :height, :width]
    return levels((x + thickness * field) * largest / (largest + thickness))


def plasma(count: int, side: int, decay: float, rng: Stream) -> Tensor:
    """Return random landscapes in [0,1], float64 [count,side,side], the side a power of 2.

    The diamond-square algorithm on a torus: halfway points become the mean of their four neighbours + U(-w², w²), first
    those of squares, then those of edges; w is 100 and divided by ``decay`` from one scale to the next.
    """
    field = torch.zeros(count, side, side, dtype=torch.float64)
    step, wibble = side, 100.0

    def wibbled(total: Tensor, purpose: str) -> Tensor:
        return total / 4 + wibble * rng.uniform(f"{purpose} {step}", total.shape, -wibble, wibble, torch.float64)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = wibbled(pairs + pairs.roll(-1, 2), "square")
        field[:, half::step, half::step] = centres
        across = (centres + centres.roll(1, 1)) + (corners + corners.roll(-1, 2))
        field[:, ::step, half::step] = wibbled(across, "across")
        along = (centres + centres.roll(1, 2)) + (corners + corners.roll(-1, 1))
        field[:, half::step, ::step] = wibbled(along, "along")
        step, wibble = half, wibble / decay
    field -= field.amin(dim=(1, 2), keepdim=True)
    return field / field.amax(dim=(1, 2), keepdim=True)


def brightness(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images whose value (V of HSV) is raised; grey images are raised as they are. Nothing is drawn."""
    by = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    x = units(images)
    if images.shape[1] == 1:
        return levels(x + by)
    hue, saturation, value = to_hsv(x)
    return levels(to_rgb(hue, saturation, (value + by).clamp(0, 1)))


def to_hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value in [0,1], each [N,H,W], of RGB [N,3,H,W], as scikit-image to the last bit."""
    red, green, blue = x.unbind(1)
    value = x.amax(dim=1)
    spread = value - x.amin(dim=1)
    flat = spread == 0
    by = torch.where(flat, 1.0, spread)
    sixths = torch.where(value == red, (green - blue) / by, torch.zeros_like(value))
    sixths = torch.where(value == green, 2 + (blue - red) / by, sixths)
    sixths = torch.where(value == blue, 4 + (red - green) / by, sixths)
    hue = torch.where(flat, 0.0, (sixths / 6).remainder(1.0))
    return hue, torch.where(flat, 0.0, spread / torch.where(value == 0, 1.0, value)), value


def to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB [N,3,H,W] of hue, saturation and value, each [N,H,W], as scikit-image to the last bit."""
    sextant = (hue * 6).floor()
    part = hue * 6 - sextant
    p, q, t = value * (1 - saturation), value * (1 - part * saturation), value * (1 - (1 - part) * saturation)
    sectors = ((value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q))
    index = sextant.long().remainder(6)[None]
    return torch.stack([torch.stack(channel).gather(0, index)[0] for channel in zip(*sectors, strict=True)], dim=1)
