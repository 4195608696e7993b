"""AWP: adversarial weight perturbation (Wu, Xia, Wang, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from demilune.core.random import Stream
from demilune.core.weights import untracked
from demilune.errors import check_types
from demilune.moves.base import NOTHING, Offset, WeightMove, check_move, climbable

TINY = 1e-20


@final
@dataclass(frozen=True, slots=True)
class AWP(WeightMove):
    """Perturb each tensor along its gradient, by γ times its norm.

        v_t = γ ‖w_t‖ g_t / ‖g_t‖  for every tensor t of P(w),  g = ∇_w of the mean training loss

    Source: released code (utils_awp.py of the training scripts, the one step they take); rwp.md 4. Batch norm uses
    the batch's statistics, and the running ones are left as found.

    gamma: size γ of the offset of each tensor, relative to the tensor's norm
    warmup: epochs trained without it
    """

    gamma: float = 0.01
    warmup: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_move(self.gamma, self.warmup)

    def starts(self) -> int:
        """Return the warm-up."""
        return self.warmup

    def offset(self, model: nn.Module, climbed: Callable[[], Tensor], rng: Stream) -> Offset:
        """Return one normalised step per tensor."""
        if self.gamma == 0.0:
            return NOTHING
        weights = climbable(model)
        with untracked(model), torch.enable_grad():
            gradients = torch.autograd.grad(climbed().mean(), list(weights.values()))
        pairs = zip(weights.items(), gradients, strict=True)
        return Offset({name: g * (self.gamma * norm(w) / (norm(g) + TINY)).to(g.dtype) for (name, w), g in pairs}, {})


def norm(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm, summed in float64: float32 is off by 2e-4 over millions of elements (rwp.md 9)."""
    length: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)
    return length
