"""RWP: robust weight perturbation under a loss stationary condition (Yu et al., IJCAI 2022, arXiv 2205.14826)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from demilune.core.notes import Note, mean
from demilune.core.random import Stream
from demilune.core.weights import moved, untracked
from demilune.errors import DemiluneError, check_types
from demilune.moves.awp import TINY, norm
from demilune.moves.base import NOTHING, Offset, WeightMove, check_move, climbable


@final
@dataclass(frozen=True, slots=True)
class RWP(WeightMove):
    """Perturb the weights on the examples alone whose loss still lies below c_min, asked again at every step.

        v_0 = 0, s_0 = 0;   for k = 1 … K2:   q_i = 1[low ≤ l_i(w + v_{k-1}) < c_min]
        s_k = s_{k-1} + ∇_w (1/B) Σ_i q_i l_i  at w + v_{k-1},   v_k = γ ‖w‖ s_k / ‖s_k‖

    Source: released code (utils_rwp.py; the paper's Algorithm 1 was not found), in the compact form of rwp.md 5.2. The
    condition reads the loss above the row's label entropy, which equals the released code's for one-hot labels. All K2
    steps are always taken: the released early break needs a synchronisation and changes nothing.

    Logged are ``selected``, the share of rows that the condition lets through at k = 1, and ``selected_last`` at K2.

    gamma: size γ of the offset relative to the norm of the weights
    steps: number of steps, K2
    c_min: loss from which on an example is left out; inf for none
    low: loss from which on an example counts; with c_min a range for the loss stationary condition
    norm: of all tensors together (global, the released code) or tensor by tensor (tensor, as AWP)
    warmup: epochs trained without it
    """

    gamma: float = 0.01
    steps: int = 10
    c_min: float = 1.7
    low: float = -math.inf
    norm: Literal["global", "tensor"] = "global"
    warmup: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_move(self.gamma, self.warmup)
        if self.steps < 1:
            raise DemiluneError(f"steps = {self.steps}: it must be 1 or more")
        if math.isnan(self.c_min) or math.isnan(self.low) or self.low >= self.c_min:
            raise DemiluneError(
                f"low = {self.low:g}, c_min = {self.c_min:g}: losses count from low to below c_min; low must be smaller"
            )

    def starts(self) -> int:
        """Return the warm-up."""
        return self.warmup

    def offset(self, model: nn.Module, climbed: Callable[[], Tensor], rng: Stream) -> Offset:
        """Return v_K2; no graph outlives its step."""
        if self.gamma == 0.0:
            return NOTHING
        weights = climbable(model)
        names, tensors = list(weights), list(weights.values())
        sizes = [norm(w) for w in tensors]
        total = [torch.zeros_like(w) for w in tensors]
        offset, notes = dict[str, Tensor](), dict[str, Note]()
        for number in range(self.steps):
            with moved(model, offset), untracked(model), torch.enable_grad():
                losses = climbed()
                values = losses.detach()
                chosen = (values >= self.low) & (values < self.c_min)
                if number in (0, self.steps - 1):  # what the condition lets through, first and last
                    notes["selected" if number == 0 else "selected_last"] = mean(chosen.to(values.dtype))
                gradients = torch.autograd.grad((losses * chosen).mean(), tensors)
            total = [s + g for s, g in zip(total, gradients, strict=True)]
            offset = dict(zip(names, self._scaled(sizes, total), strict=True))
        return Offset(offset, notes)

    def _scaled(self, sizes: list[Tensor], total: list[Tensor]) -> list[Tensor]:
        """Return s at the length of the move."""
        lengths = [norm(s) for s in total]
        if self.norm == "global":
            all_of = torch.stack(sizes).norm() / (torch.stack(lengths).norm() + TINY)
            ratios = [all_of] * len(total)
        else:
            ratios = [size / (length + TINY) for size, length in zip(sizes, lengths, strict=True)]
        return [s * (self.gamma * ratio).to(s.dtype) for s, ratio in zip(total, ratios, strict=True)]
