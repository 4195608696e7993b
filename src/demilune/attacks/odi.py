"""PGD from starts that are diverse in the model's output, not only in the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from demilune.attacks.base import Attack, Iterate, IterativeAttack, Model, ascend, read
from demilune.core.geometry import Ball
from demilune.core.losses import margin, widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class ODIStart(IterativeAttack):
    """One run of ODI: steps of size ε that ascend w · z, then PGD on the margin max_{i≠y} z_i - z_y.

    w ~ U(-1, 1)^K is each image's own direction in the space of logits (Tashiro et al. 2020; attacks.md 6.8).

    odi_steps: number of steps of size ε along the random direction
    steps: number of gradient steps on the margin after them
    step_ratio: size of those as a ratio of ε
    """

    odi_steps: int = 2
    steps: int = 20
    step_ratio: float = 0.25

    def __post_init__(self) -> None:
        check_types(self)
        for name, number in (("odi_steps", self.odi_steps), ("steps", self.steps)):
            if number < 0:
                raise DemiluneError(f"{name} = {number}: it must be 0 or more")
        if not 0.0 < self.step_ratio < float("inf"):
            raise DemiluneError(f"step_ratio = {self.step_ratio:g}: it must be a positive number")

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield the random start, the iterates of both stages, and the last."""

        def along(logits: Tensor) -> Tensor:
            # Drawn where the number of classes is known; at one address, w is the same at every step.
            logits = widened(logits)
            w = rng.sub("direction").uniform("w", tuple(logits.shape), -1.0, 1.0, dtype=logits.dtype)
            return (w * logits).sum(dim=1)

        start = ball.sample(x, rng.sub("start"))
        *diverse, turned = ascend(model, x, start, along, ball, ball.eps, self.odi_steps)
        yield from diverse
        size = self.step_ratio * ball.eps
        yield from ascend(model, x, turned.point, lambda logits: margin(logits, y), ball, size, self.steps)


@final
@dataclass(frozen=True, slots=True)
class ODI(Attack):
    """Output-diversified initialisation: R runs, each on the images that no run before it broke (linf and l2).

    Source: Tashiro et al. 2020. Released code: 2 steps of size ε, then 20 of ε/4 on the margin, R = 20; 10 is this
    library's choice, half the cost. Cost per image: at most R (odi_steps + steps) gradients and 2 R forward passes.

    restarts: number of runs, R
    odi_steps: number of steps of size ε along the random direction
    steps: number of gradient steps on the margin after them
    step_ratio: size of those as a ratio of ε
    """

    restarts: int = 10
    odi_steps: int = 2
    steps: int = 20
    step_ratio: float = 0.25

    def __post_init__(self) -> None:
        check_types(self)
        if self.restarts < 1:
            raise DemiluneError(f"restarts = {self.restarts}: it must be 1 or more")
        ODIStart(self.odi_steps, self.steps, self.step_ratio)  # which refuses what means nothing

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return the iterate of largest margin."""
        run = ODIStart(self.odi_steps, self.steps, self.step_ratio)
        return read(run, model, x, y, ball, rng, self.restarts).best
