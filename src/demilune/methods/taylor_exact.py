"""Taylor-exact: the Taylor method (Jin et al., CVPR 2023, arXiv 2303.10653) read literally; an ablation of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.attacks import KLPGD, BatchNormMode
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy, kl, widened
from demilune.core.random import Stream
from demilune.core.weights import penultimate
from demilune.errors import check_types
from demilune.methods.base import WHOLE, Batch, Examples, Method, hard
from demilune.methods.trades import check_weight


@final
@dataclass(frozen=True, slots=True)
class TaylorExact(Method):
    """TRADES with penalties on the difference of the last layer's gradients themselves; an ablation of our own.

        G = ∇_W CE_mean(f(x), y) = (1/B) (p - e_y)ᵀ h,  G' the same at x'
        L = mean [ CE(f(x), y) + β KL(p ‖ p') ] + k1 ‖G - G'‖_F + k2 ‖G∘G - G'∘G'‖_1

    Reconstructed (taylor.md 4): the expansion of E_u ‖f_{w+u}(x) - f_{w+u}(x')‖ in the weights of the last layer, its
    second derivatives by squares of gradients, differentiated once; k1 and k2 are free, since at the released σ = 1e-4
    both terms vanish. Nobody's published numbers come from it.

    attack: the inner maximisation of the KL
    beta: weight β of the KL
    first: weight k1 of the difference of gradients
    second: weight k2 of the difference of their squares
    bn: batch norm during the attack: eval, train_frozen or train
    """

    attack: KLPGD = KLPGD()
    beta: float = 6.0
    first: float = 0.1
    second: float = 0.1
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("beta", "first", "second"):
            check_weight(name, getattr(self, name))

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Refuse parts: the gradients compared are the whole batch's."""
        return WHOLE if parts > 1 else None

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'; labels are not looked at."""
        return hard(batch, self.attack.perturb(model, batch.x, batch.y, ball, rng))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the loss, [N]: the penalties, which are the batch's, stand in every row."""
        with penultimate(model) as features:
            clean, attacked = model(made.batch.x), model(made.points)
        rows = cross_entropy(clean, made.targets) + self.beta * kl(clean, attacked)
        one, other = (slope(z, h, made.targets) for z, h in zip((clean, attacked), features, strict=True))
        apart: Tensor = torch.linalg.vector_norm(one - other)
        return rows + self.first * apart + self.second * (one.square() - other.square()).abs().sum()


def slope(logits: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Return G = (1/B) (p - e_y)ᵀ h, [C,D], with its graph."""
    with torch.autocast(logits.device.type, enabled=False):  # a product in bfloat16 would round differences away
        return (widened(logits).softmax(dim=1) - targets).T @ widened(features) / len(features)
