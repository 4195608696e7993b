"""GAIRAT: geometry-aware instance-reweighted adversarial training (Zhang et al., ICLR 2021); LRAT's IRAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods.base import Batch, Examples, Method, hard


@final
@dataclass(frozen=True, slots=True)
class GAIRAT(Method):
    """min_θ mean w_i CE(f(x'_i), y_i), with weights that fall with the steps an image withstands the attack.

        κ_i = #{t ∈ 0..K-1 : x'_t is classified correctly},   w_i ∝ (1 + tanh(Λ + 5 (1 - κ_i / ⌊K/2⌋))) / 2,  Σ w_i = n

    Source: released code; lrat.md 4.2. Global reweighting: an image's weight depends on its batch.

    attack: the inner maximisation
    shift: Λ; larger is closer to SAT
    begin: first epoch (from 0) with weights; SAT before. The released scripts begin at half the run or later
    bn: batch norm during the attack: eval (the released code's), train_frozen or train
    """

    attack: PGD = PGD()
    shift: float = -1.0
    begin: int = 0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        if self.attack.steps < 2:
            raise DemiluneError(
                f"attack.steps = {self.attack.steps}: GAIRAT counts steps withstood and needs 2 or more"
            )
        if self.begin < 0:
            raise DemiluneError(f"begin = {self.begin}: it must be an epoch, 0 or more")

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'_K, with the weights in ``extra``."""
        points, kept = batch.x, torch.zeros_like(batch.y)
        for iterate in self.attack.path(model, batch.x, batch.y, ball, rng):
            points = iterate.point
            if iterate.logits is not None:
                kept = kept + (iterate.logits.argmax(dim=1) == batch.y)
        weight = self.weights(kept, points.dtype) if batch.epoch >= self.begin else torch.ones_like(points[:, 0, 0, 0])
        return hard(batch, points, {"weight": weight})

    def weights(self, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """Return w [N] for κ = ``kept`` int64 [N]; their mean is 1."""
        geometry = 5.0 * (1.0 - kept.to(dtype) / (self.attack.steps // 2))
        weight = torch.sigmoid(2.0 * (self.shift + geometry))  # (1 + tanh a) / 2, without cancelling to 0
        return weight * (len(weight) / weight.sum())

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return w · CE, [N]."""
        return made.extra["weight"] * cross_entropy(model(made.points), made.targets)
