"""An attack that searches on logits of another scale: large ones saturate the softmax, and hide its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from demilune.attacks.base import Attack, Model
from demilune.attacks.pgd import PGD
from demilune.core.geometry import Ball
from demilune.core.losses import widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class Rescaled(Attack):
    """The attack, searching on ``factor`` · z in place of the logits z (evaluation.md 6, G8).

    No verdict changes, as none depends on the scale; what the search finds may. A robust accuracy that depends on
    ``factor`` is too high: report the least. Cost: the attack's own.

    factor: what logits are multiplied by while searching
    attack: the attack that is run
    """

    factor: float = 10.0
    attack: Attack = PGD(steps=20, step_ratio=0.25)

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 < self.factor < float("inf"):
            raise DemiluneError(f"factor = {self.factor:g}: it must be a positive number")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return what the attack finds on the rescaled logits."""
        return self.attack.perturb(lambda images: self.factor * widened(model(images)), x, y, ball, rng)
