"""TRADES (Zhang et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from demilune.attacks import KLPGD, BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, kl
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import Batch, Examples, Method, hard


@final
@dataclass(frozen=True, slots=True)
class TRADES(Method):
    """min_θ mean [ CE(f(x), y) + β KL(p(x) ‖ p(x')) ], where x' maximises that KL.

    Source: released code; baselines.md 2. Gradients flow through both arguments of the KL. The image and its attack are
    run forward once each, separately (the released code runs the image twice; one batch of both would change batch
    norm's statistics).

    attack: the inner maximisation of the KL
    beta: weight β of the KL
    bn: batch norm during the attack: eval (the released code's), train_frozen or train
    """

    attack: KLPGD = KLPGD()
    beta: float = 6.0
    bn: BatchNormMode = "eval"

    def __post_init__(self) -> None:
        check_types(self)
        check_weight("beta", self.beta)

    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Return x'; labels are not looked at."""
        return hard(batch, self.attack.perturb(model, batch.x, batch.y, ball, rng))

    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return CE + β KL, [N]."""
        return regularised(model, made, self.beta)


def regularised(model: nn.Module, made: Examples, beta: float) -> Tensor:
    """Return CE(f(x), y) + β KL(p(x) ‖ p(x')), [N]; x' is not run forward where β is 0."""
    logits = model(made.batch.x)
    if beta == 0.0:
        return cross_entropy(logits, made.targets)
    return cross_entropy(logits, made.targets) + beta * kl(logits, model(made.points))


def check_weight(name: str, value: float) -> None:
    """Refuse a weight of a loss that is negative, no number or out of all measure."""
    if not 0.0 <= value <= 1e6:
        raise DemiluneError(f"{name} = {value:g}: the weight of a loss must be 0 or more, at most 1e6")
