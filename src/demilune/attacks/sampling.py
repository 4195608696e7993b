"""Random points of the ball: what an attack that follows gradients must not be weaker than."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Model, breach
from demilune.core.geometry import Ball, per_image
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class Uniform(Attack):
    """S random points of ball ∩ [0,1], as ``Ball.sample`` draws them, and no gradient (evaluation.md 6, G4).

    Where it breaks images that PGD does not, PGD's gradients are masked (Athalye et al. 2018).
    Cost per image: S forward passes if none breaks it; one that is broken is left out of later passes.

    samples: number of points, S
    chunk: most images in one forward pass; it bounds memory and changes no result
    """

    samples: int = 1000
    chunk: int = 1024

    def __post_init__(self) -> None:
        check_types(self)
        for name, number in (("samples", self.samples), ("chunk", self.chunk)):
            if number < 1:
                raise DemiluneError(f"{name} = {number}: it must be 1 or more")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return each image's first misclassified point, else the one of largest margin."""
        best, value = x, torch.full((len(x),), float("-inf"), device=x.device)
        rows, done = torch.arange(len(x), device=x.device), 0
        while done < self.samples and len(rows):
            count = min(max(1, self.chunk // len(rows)), self.samples - done)  # the fewer images, the more of each
            there, draws = x[rows], rng.take(rows)
            points = torch.stack([ball.sample(there, draws.sub("sample", done + i)) for i in range(count)])
            with torch.no_grad():
                logits = torch.cat([model(part) for part in points.flatten(0, 1).split(self.chunk)])
            heights = breach(logits, y[rows].repeat(count)).reshape(count, -1)
            # The first point that breaks an image, not the best of those in this pass: batches would change that.
            broken = heights > 0
            pick = torch.where(broken.any(dim=0), broken.int().argmax(dim=0), heights.argmax(dim=0))
            column = torch.arange(len(rows), device=x.device)
            height, better = heights[pick, column], heights[pick, column] > value[rows]
            best = best.index_copy(0, rows, torch.where(per_image(better, there), points[pick, column], best[rows]))
            value = value.index_copy(0, rows, torch.where(better, height, value[rows]))
            rows, done = rows[height <= 0], done + count
        return best
