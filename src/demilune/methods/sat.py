"""SAT: standard adversarial training with PGD (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.core.targets import entropy, smooth
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import Batch, Examples, Method


@final
@dataclass(frozen=True, slots=True)
class SAT(Method):
    """min_θ mean CE(f(x'_K), y), where x'_K is the last PGD iterate.

    Source: Madry et al. 2018, released code; baselines.md 1. With ``mass`` < 1 it is the control E-LS of rat.md 9:
    the same points under a constant soft label.

    attack: the inner maximisation
    mass: mass of the true class in the label, 1 for the hard label
    bn: batch norm during the attack: eval, train_frozen or train (the released code's)
    """

    attack: PGD = PGD()
    mass: float = 1.0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_mass("mass", self.mass)

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'_K with its label."""
        points = self.attack.perturb(model, batch.x, batch.y, ball, rng)
        mass = torch.full((len(points),), self.mass, dtype=points.dtype, device=points.device)
        targets = smooth(batch.y, mass, batch.classes)
        return Examples(batch, points, targets, entropy(targets), {}, {})

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return CE(f(x'_K), y), [N]."""
        return cross_entropy(model(made.points), made.targets)


def check_mass(name: str, mass: float) -> None:
    """Refuse a label mass that is no probability."""
    if not 0.0 <= mass <= 1.0:
        raise DemiluneError(f"{name} = {mass:g}: the true class's share of a label must be a number from 0 to 1")
