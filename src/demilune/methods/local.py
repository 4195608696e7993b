"""How LRAT shares the weight of a group between an image and its adversarial variants (reconstructed; lrat.md 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from demilune.attacks import BatchNormMode
from demilune.core.losses import margin, widened
from demilune.errors import DemiluneError, check_types
from demilune.methods.base import Examples
from demilune.methods.gairat import check_shift
from demilune.methods.trades import check_weight


@final
@dataclass(frozen=True, slots=True)
class Local:
    """How the weight of a group is shared between an image (w_0) and its adversarial variants (w_j).

        V_j = max_{k≠y} p~_jk - p~_jy,   w_j = g(V_j),   w_0 = max(C - Σ_j w_j, w_min);   all without gradient

    mass: C, the least weight of a group (the mass-floor reading)
    floor: w_min, the least weight of the image itself; above 0 the natural-floor reading
    vulnerability: V is the margin of probabilities, or of logits
    curve: g is tanh, (1 + tanh a)/2, or sigmoid, 1/(1 + e^-a), of a = shift + slope · V; step, 1 where V > 0; or one
    shift: what is added to the scaled vulnerability
    slope: what scales the vulnerability; 5 as in GAIRAT
    reduction: whether the weights of several variants count in sum, or their mean does
    measured: V from the train-mode logits of the loss (train, free), or from an extra eval-mode pass (eval), which
        alone makes a weight independent of the other images of the batch
    """

    mass: float = 1.0
    floor: float = 0.0
    vulnerability: Literal["probability", "logit"] = "probability"
    curve: Literal["tanh", "sigmoid", "step", "one"] = "tanh"
    shift: float = 0.0
    slope: float = 5.0
    reduction: Literal["sum", "mean"] = "sum"
    measured: Literal["train", "eval"] = "train"

    def __post_init__(self) -> None:
        check_types(self)
        check_weight("local.mass", self.mass)
        check_weight("local.floor", self.floor)
        check_weight("local.slope", self.slope)
        check_shift("local.shift", self.shift)

    def frailty(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return V [N] of variants from their logits [N,K]."""
        values = widened(logits.detach())
        return margin(values if self.vulnerability == "logit" else values.softmax(dim=1), y)

    def weights(self, frailty: Tensor) -> tuple[Tensor, Tensor]:
        """Return w_0 [N] and w [M,N] for V = ``frailty`` [M,N]."""
        rising = self.shift + self.slope * frailty
        if self.curve == "tanh":
            weight = torch.sigmoid(2.0 * rising)  # the same, without cancelling
        elif self.curve == "sigmoid":
            weight = torch.sigmoid(rising)
        else:
            weight = (frailty > 0).to(frailty.dtype) if self.curve == "step" else torch.ones_like(frailty)
        if self.reduction == "mean":
            weight = weight / len(weight)
        return (self.mass - weight.sum(dim=0)).clamp_min(self.floor), weight

    def skips(self) -> bool:
        """Say whether the image itself never counts, and need not be run forward."""
        return self.mass == 0.0 and self.floor == 0.0

    def measure(self, model: nn.Module, points: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return V of all variants, [M·N], for ``Examples.extra``, where it is not the loss's own logits that tell."""
        if self.measured == "train":
            return {}
        with torch.no_grad():
            return {"frailty": self.frailty(model(points), y.repeat(len(points) // len(y)))}

    def grouped(self, made: Examples, clean: Tensor | None, losses: Tensor, logits: Tensor) -> Tensor:
        """Return w_0 · clean + Σ_j w_j · losses_j, [N].

        ``clean`` [N], None where it is skipped; ``losses`` [M·N] and ``logits`` [M·N,K] of the variants.
        """
        y = made.batch.y
        frailty = made.extra.get("frailty")
        if frailty is None:
            frailty = self.frailty(logits, y.repeat(len(logits) // len(y)))
        natural, weight = self.weights(frailty.reshape(-1, len(y)))
        variants = (weight * losses.reshape(-1, len(y))).sum(dim=0)
        return variants if clean is None else natural * clean + variants


def check_measured(local: Local, bn: BatchNormMode) -> None:
    """Refuse to measure in a mode that the attack does not leave the network in."""
    if local.measured == "eval" and bn != "eval":
        raise DemiluneError(f"local.measured = eval with bn = {bn}: the attack's batch norm must be eval too")
