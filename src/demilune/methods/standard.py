"""Standard training (ST): cross-entropy on the images as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from demilune.attacks import BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.methods.base import Batch, Examples, Method, hard


@final
@dataclass(frozen=True, slots=True)
class Standard(Method):
    """min_θ mean CE(f(x), y). Nothing is attacked; the ball is not used.

    bn: has no effect here
    """

    bn: BatchNormMode = "eval"

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return the images with their one-hot labels."""
        return hard(batch, batch.x)

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return CE(f(x), y), [N]."""
        return cross_entropy(model(made.points), made.targets)
