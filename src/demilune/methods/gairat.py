"""GAIRAT: geometry-aware instance-reweighted adversarial training (Zhang et al., ICLR 2021); LRAT's IRAT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import PGD, BatchNormMode, Iterate
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import WHOLE, Batch, Examples, Method, hard


@final
@dataclass(frozen=True, slots=True)
class GAIRAT(Method):
    """min_θ mean w_i CE(f(x'_i), y_i), with weights that fall with the steps an image withstands the attack.

        κ_i = #{t ∈ 0..K-1 : x'_t is classified correctly},   w_i ∝ (1 + tanh(Λ + 5 (1 - κ_i / ⌊K/2⌋))) / 2,  Σ w_i = n

    Source: released code; lrat.md 4.2. Global reweighting: an image's weight depends on its batch.

    attack: the inner maximisation
    shift: Λ; larger is closer to SAT
    share: share of the weighted loss, the rest being SAT's; 0.5 is the average of both (lrat.md 4.3)
    begin: first epoch (from 0) with weights; SAT before. The released scripts begin at 30 of 100 or 60 of 120
    bn: batch norm during the attack: eval (the released code's), train_frozen or train
    """

    attack: PGD = PGD()
    shift: float = -1.0
    share: float = 1.0
    begin: int = 0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_counted(self.attack)
        check_begin(self.begin)
        check_shift("shift", self.shift)
        if not 0.0 <= self.share <= 1.0:
            raise DemiluneError(f"share = {self.share:g}: the share of the weighted loss must be from 0 to 1")

    def starts(self) -> int:
        """Return the first epoch with weights."""
        return self.begin

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Refuse parts: weights sum to n over the whole batch."""
        return WHOLE if parts > 1 else None

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'_K, with the weights in ``extra``."""
        points, kept = withstood(self.attack.path(model, batch.x, batch.y, ball, rng), batch.y)
        if batch.epoch < self.begin:
            return hard(batch, points, {"weight": torch.ones_like(points[:, 0, 0, 0])})
        weight = balanced(kept, self.attack.steps, self.shift, points.dtype)
        return hard(batch, points, {"weight": self.share * weight + (1.0 - self.share)})

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return w · CE, [N]."""
        return made.extra["weight"] * cross_entropy(model(made.points), made.targets)


def withstood(path: Iterator[Iterate], y: Tensor) -> tuple[Tensor, Tensor]:
    """Walk a path and return x'_K and κ int64 [N], the number of x'_0 … x'_{K-1} that are classified correctly."""
    kept, points = torch.zeros_like(y), torch.empty(0)
    for iterate in path:
        points = iterate.point
        if iterate.logits is not None:
            kept = kept + (iterate.logits.argmax(dim=1) == y)
    return points, kept


def balanced(kept: Tensor, steps: int, shift: float, dtype: torch.dtype) -> Tensor:
    """Return w [N] for κ = ``kept`` int64 [N]; their mean is 1."""
    geometry = 5.0 * (1.0 - kept.to(dtype) / (steps // 2))
    height = F.logsigmoid(2.0 * (shift + geometry))  # of (1 + tanh a) / 2, which would underflow
    weight = torch.exp(height - height.max())
    return weight * (len(weight) / weight.sum())


def check_counted(attack: PGD) -> None:
    """Refuse an attack with too few steps to count."""
    if attack.steps < 2:
        raise DemiluneError(f"attack.steps = {attack.steps}: GAIRAT counts steps withstood and needs 2 or more")


def check_shift(name: str, shift: float) -> None:
    """Refuse a shift that is no number."""
    if not -1e3 <= shift <= 1e3:
        raise DemiluneError(f"{name} = {shift:g}: it must be a number from -1000 to 1000")


def check_begin(begin: int) -> None:
    """Refuse an epoch before the first."""
    if begin < 0:
        raise DemiluneError(f"begin = {begin}: it must be an epoch, 0 or more")
