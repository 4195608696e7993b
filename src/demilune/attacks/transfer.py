"""Adversarial images of other models, tried on this one: no query guides them, so no masked gradient stops them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Model, breach, frozen
from demilune.attacks.pgd import PGD
from demilune.core.geometry import Ball, per_image
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class Transfer(Attack):
    """Attacks each source model in turn, and keeps the image that the target is most wrong about (attacks.md 8).

    Sources are attacked with full knowledge, in eval mode and with their weights held still. An image that broke
    the target is not attacked again. Cost per image: the attack's passes on each source, one of the target for each.

    sources: models other than the one that is evaluated, of the same classes
    attack: the attack on each source
    """

    sources: tuple[Model, ...]
    attack: Attack = PGD(steps=20, step_ratio=0.25)

    def __post_init__(self) -> None:
        check_types(self)
        if not self.sources:
            raise DemiluneError("sources = (): a transfer attack needs one model or more to attack")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return the adversarial image of the source that moves the target's margin furthest."""
        best, value = x, torch.full((len(x),), float("-inf"), device=x.device)
        for number, source in enumerate(self.sources):
            rows = (value <= 0).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            there, draws = x[rows], rng.take(rows).sub("source", number)
            with frozen(source, "eval"):
                point = self.attack.perturb(source, there, y[rows], ball, draws)
            with torch.no_grad():
                height = breach(model(point), y[rows])
            better = height > value[rows]
            best = best.index_copy(0, rows, torch.where(per_image(better, there), point, best[rows]))
            value = value.index_copy(0, rows, torch.where(better, height, value[rows]))
        return best
