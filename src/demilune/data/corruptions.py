"""The fifteen natural corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019), made anew and seeded.

The procedures and constants are those of the script that made the published files, ``make_cifar_c.py``, for images of
32 by 32 pixels; images of other sizes are possible, but nothing says that a severity means the same there. Brightness,
contrast, defocus and zoom blur and pixelation make the files of CIFAR-100-C anew to the last bit; JPEG compression
depends on the JPEG library, and does not with today's. The other nine are random, and the script had no seed: here they
are a pure function of the seed, the type, the severity and the image's id, and equal to the published ones in
distribution.

Images are made on the CPU, wherever they lie, so that every device sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption import blur, digital, noise, weather
from demilune.data.corruption.frost import REMEDY, Frost, find_frost
from demilune.errors import DemiluneError, unknown

TYPES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""All fifteen, in the order of the original, by the names of its files."""
PAPER = TYPES[3:]
"""The twelve whose mean the papers report: without the three noises."""
SEVERITIES = (1, 2, 3, 4, 5)

_MAKE: Mapping[str, Callable[[Tensor, int, Stream], Tensor]] = {
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg,
}
_BLOCK = 128
"""Images made at a time: they stay in the processor's cache."""

__all__ = ["PAPER", "SEVERITIES", "TYPES", "Frost", "available", "corrupt", "find_frost"]


def available(frost: Frost | None) -> tuple[str, ...]:
    """Return the types that can be made: without photographs, all but frost."""
    return tuple(name for name in TYPES if name in _MAKE or frost is not None)


def corrupt(images: Tensor, name: str, severity: int, rng: Stream, frost: Frost | None = None) -> Tensor:
    """Return images uint8 [N,C,H,W], C one or three, under a corruption of :data:`TYPES`, of severity 1 to 5.

    ``rng`` is the stream of the images' ids; draws come from ``rng.sub(name, severity)``. ``frost`` are the photographs
    that the type frost needs, see :func:`~demilune.data.corruption.frost.find_frost`. Raise :class:`DemiluneError`
    where there is no such type or severity, and where the photographs are missing.
    """
    if name not in TYPES:
        raise unknown("corruption", name, TYPES)
    if severity not in SEVERITIES:
        raise DemiluneError(f"{name}: severity = {severity} is not possible: it is from 1 to {SEVERITIES[-1]}")
    make = frost.over if name == "frost" and frost is not None else _MAKE.get(name)
    if make is None:
        raise DemiluneError(f"{name}: it is made with photographs, and there are none: {REMEDY}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {list(images.shape)} instead of uint8 [N, 1 or 3, H, W]")
    if rng.ids is None or len(rng.ids) != len(images):
        raise ValueError(f"{len(images)} images need the stream of their ids")
    here, made = images.cpu(), torch.empty(images.shape, dtype=torch.uint8)
    drawn = Stream(rng.key, rng.ids.cpu()).sub(name, severity)
    for rows in torch.arange(len(images)).split(_BLOCK):
        made[rows] = make(here[rows], severity, drawn.take(rows))
    return made.to(images.device)
