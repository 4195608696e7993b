"""The set of allowed perturbations: a norm, a radius, and the box [0,1] of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types

Norm = Literal["linf", "l2"]

LARGEST: Mapping[Norm, float] = MappingProxyType({"linf": 1.0, "l2": 32.0})
"""The largest radius; in linf it holds all of [0,1]."""


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [N] to [N,1,1,…] so that it broadcasts over images [N,…]."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


@final
@dataclass(frozen=True, slots=True)
class Ball:
    """All images within ``eps`` of an image, intersected with [0,1]; ``eps`` is in pixel units of [0,1].

    norm: linf (largest change of a pixel) or l2 (Euclidean length of the change of an image)
    eps: radius ε
    """

    norm: Norm = "linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise DemiluneError(f"unknown norm {self.norm!r}: possible are l2, linf")
        check_types(self)
        largest = LARGEST[self.norm]
        if not (math.isfinite(self.eps) and 0.0 <= self.eps <= largest):
            raise DemiluneError(
                f"eps = {self.eps:g} is no {self.norm} radius: it must be a number from 0 to {largest:g}, because "
                "pixels are scaled to [0,1] (8 grey levels are written 8/255)"
            )

    def times(self, factor: float) -> Ball:
        """Return the ball of ``factor`` times the radius, at most :data:`LARGEST`."""
        return Ball(self.norm, min(factor * self.eps, LARGEST[self.norm]))

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """Return the point moved into ball ∩ [0,1].

        linf: the nearest point, clamp(clamp(point, x - ε, x + ε), 0, 1). l2: radial, then clamped, which is
        feasible (clamping towards x in [0,1] only shortens) but not always the nearest point.
        """
        if self.norm == "linf":
            return torch.clamp(torch.maximum(torch.minimum(point, x + self.eps), x - self.eps), 0.0, 1.0)
        delta = point - x
        length = per_image(delta.flatten(1).norm(dim=1), x)
        # Points inside keep their own bits: multiplying by a factor of one would be exact, adding x back is not.
        pulled = x + delta * (self.eps / length.clamp_min(1e-12))
        return torch.where(length <= self.eps, point, pulled).clamp(0.0, 1.0)

    def sample(self, x: Tensor, rng: Stream) -> Tensor:
        """Draw a point of ball ∩ [0,1]: linf uniform; l2 a uniform direction and a uniform radius in [0, ε]."""
        if self.norm == "linf":
            noise = rng.uniform("ball", x.shape, -self.eps, self.eps, dtype=x.dtype)
            return torch.clamp(x + noise, 0.0, 1.0)
        direction = rng.normal("ball", x.shape, dtype=x.dtype)
        direction /= per_image(direction.flatten(1).norm(dim=1).clamp_min(1e-12), x)
        radius = rng.uniform("radius", (len(x), 1), 0.0, self.eps, dtype=x.dtype)
        return self.project(x + direction * per_image(radius.flatten(), x), x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of unit norm along which the loss rises fastest: sign(g), or g/‖g‖₂."""
        if self.norm == "linf":
            return gradient.sign()
        gradient = gradient.nan_to_num()  # as sign has it: nowhere to go where it is no number
        # Scaled first: the squares of a gradient of 1e-25 are all zero in float32.
        largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_image(largest, gradient)
        return scaled / per_image(scaled.flatten(1).norm(dim=1).clamp_min(1e-12), gradient)

    def distance(self, point: Tensor, x: Tensor) -> Tensor:
        """Return the distance of each image from its origin in the ball's norm, [N]."""
        delta = (point - x).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)
