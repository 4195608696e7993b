"""MART (Wang et al., ICLR 2020), for comparison; recalled from the paper, not checked against released code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, kl, others, widened
from demilune.core.random import Stream
from demilune.errors import check_types
from demilune.methods.base import Batch, Examples, Method, hard
from demilune.methods.trades import check_weight

FLOOR = 1e-4
"""Keeps the logarithm finite where another class has all the mass."""


@final
@dataclass(frozen=True, slots=True)
class MART(Method):
    """min_θ mean [ -log p'_y - log(1 - max_{k≠y} p'_k) + λ KL(p ‖ p') (1 - p_y) ].

    p and p' are the predictions on the image and on its PGD point, which starts at x + 0.001 N(0, I). Reconstructed
    from memory of the paper (baselines.md, MART): verify before citing.

    attack: the inner maximisation of the cross-entropy
    beta: weight λ of the KL
    bn: batch norm during the attack: eval, train_frozen or train
    """

    attack: PGD = PGD(noise=0.001)
    beta: float = 5.0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_weight("beta", self.beta)

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'_K."""
        return hard(batch, self.attack.perturb(model, batch.x, batch.y, ball, rng))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the boosted cross-entropy and the weighted KL, [N]."""
        y = made.batch.y
        clean, attacked = model(made.batch.x), model(made.points)
        wrong = others(widened(attacked).softmax(dim=1), y)
        boosted = cross_entropy(attacked, made.targets) - torch.log(1.0 + FLOOR - wrong)
        unsure = 1.0 - torch.exp(-cross_entropy(clean, y))
        return boosted + self.beta * kl(clean, attacked) * unsure
