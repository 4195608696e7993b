"""The margin-decomposition attack, made for models whose two margin terms have gradients of unequal size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Iterate, Model, ascend, right
from demilune.attacks.pgd import wrong_classes
from demilune.core.geometry import Ball
from demilune.core.losses import others, widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class MarginDecomposition(Attack):
    """Ascends the margin's two terms one at a time, then together (linf; attacks.md 7).

    Two runs r = 0, 1 from random starts. Step 0 ascends z_y, away from the boundary; steps 1 … c - 1 ascend -z_y
    (r = 0) or max_{i≠y} z_i (r = 1); steps c … T - 1 ascend max_{i≠y} z_i - z_y. Where label smoothing leaves one
    term's gradient much the larger, it hides the other's. Step i has the size ε(1 + cos((i - 1)π/c)) for i ≤ c and
    ε(1 + cos((i - c - 1)π/(T - c))) after it. The first misclassified iterate is kept, and ends an image's search.
    Cost per image: at most 2 T gradients and 2 forward passes, for each target.

    Source: Ma et al. 2023 (MD, and MDMT over targets; released code, which divides both cosines by T - c: the same
    at c = T / 2). The released code begins at x + U(-ε, ε), here clamped to the box.

    steps: number of gradient steps of a run, T
    change: step at which the whole margin takes over, c
    targets: how many wrong classes t to aim at one after the other, z_t in place of max_{i≠y} z_i, the likeliest
        first and at most the number there are; 0 aims at none
    """

    steps: int = 50
    change: int = 25
    targets: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.steps < 3:
            raise DemiluneError(f"steps = {self.steps}: three stages need 3 or more")
        if not 2 <= self.change < self.steps:
            raise DemiluneError(f"change = {self.change}: it must be 2 or more and below steps = {self.steps}")
        if self.targets < 0:
            raise DemiluneError(f"targets = {self.targets}: it must be 0 or more")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return each image's first misclassified iterate, else the last iterate of the last run."""
        if ball.norm != "linf":
            raise DemiluneError(
                f"margin decomposition was given an {ball.norm} ball: only linf is possible, its step sizes are made "
                "for steps of sign; for l2 use pgd, cw or odi"
            )
        with torch.no_grad():
            wrong = wrong_classes(model(x), y)[:, : self.targets] if self.targets else y[:, None]
        found, rows = x, torch.arange(len(x), device=x.device)
        for number in range(wrong.shape[1]):
            for run in (0, 1):
                aim = wrong[rows, number] if self.targets else None
                draws = rng.take(rows).sub("target", number, "run", run)
                point, broken = self._search(model, x[rows], y[rows], aim, run, ball, draws)
                found = found.index_copy(0, rows, point)
                rows = rows[~broken]
                if len(rows) == 0:
                    return found
        return found

    def _search(
        self, model: Model, x: Tensor, y: Tensor, aim: Tensor | None, run: int, ball: Ball, rng: Stream
    ) -> tuple[Tensor, Tensor]:
        """Return one run's first misclassified iterate of each image, else its last, and which are broken, bool [N]."""
        point = ball.sample(x, rng.sub("start"))
        found, rows = point, torch.arange(len(x), device=x.device)
        for step in range(self.steps):
            loss = self._loss(step, run, y[rows], None if aim is None else aim[rows])
            here, after = ascend(model, x[rows], point, loss, ball, self._size(step, ball), 1)
            found = found.index_copy(0, rows, here.point)
            kept = ~confirmed(model, here, y[rows])
            rows, point = rows[kept], after.point[kept]
            if len(rows) == 0:
                break
        broken = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if len(rows):
            found = found.index_copy(0, rows, point)
            broken = broken.index_copy(0, rows, confirmed(model, Iterate(point, None), y[rows]))
        return found, broken

    def _loss(self, step: int, run: int, y: Tensor, aim: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return what a step ascends, logits [N,K] to [N]."""

        def loss(logits: Tensor) -> Tensor:
            logits = widened(logits)
            true = logits.gather(1, y[:, None]).squeeze(1)
            other = others(logits, y) if aim is None else logits.gather(1, aim[:, None]).squeeze(1)
            if step == 0:
                return true
            if step < self.change:
                return other if run else -true
            return other - true

        return loss

    def _size(self, step: int, ball: Ball) -> float:
        if step <= self.change:
            return ball.eps * (1 + math.cos((step - 1) / self.change * math.pi))
        return ball.eps * (1 + math.cos((step - self.change - 1) / (self.steps - self.change) * math.pi))


def confirmed(model: Model, iterate: Iterate, y: Tensor) -> Tensor:
    """Return which images are broken, bool [N]: a forward pass without gradient says so of those it is run on.

    The search's logits may be of low precision: they only say which images to run once more (without any, all).
    """
    point, logits = iterate
    broken = torch.ones(len(y), dtype=torch.bool, device=y.device) if logits is None else ~right(logits, y)
    rows = broken.nonzero().squeeze(1)
    if len(rows) == 0:
        return broken
    with torch.no_grad():
        return broken.index_copy(0, rows, ~right(model(point[rows]), y[rows]))
