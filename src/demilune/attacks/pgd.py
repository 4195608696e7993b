"""FGSM, PGD, CW_inf, and PGD aimed at one or at several wrong classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Iterate, IterativeAttack, Model, ascend, breach, check_steps, last, read
from demilune.core.geometry import Ball, per_image
from demilune.core.losses import cross_entropy, kl, margin, others, targeted_margin, widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class FGSM(IterativeAttack):
    """x' = clamp(x + ε sign ∇CE(f(x), y), 0, 1): one step of size ε, no random start (attacks.md 1).

    Source: Goodfellow et al. 2015; this form after the ADT evaluation code. l2: x + ε g/‖g‖₂.
    """

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x and x'."""
        return ascend(model, x, x, lambda logits: cross_entropy(logits, y), ball, ball.eps, 1)


@final
@dataclass(frozen=True, slots=True)
class PGD(IterativeAttack):
    """x'_0 = clamp(x + U(-ε, ε), 0, 1); K times x' ← Π(x' + α sign ∇CE(f(x'), y)).

    Source: Madry et al. 2018 (released code: the start is clamped to the box); attacks.md 2.

    steps: number of gradient steps, K
    step_size: step size α in pixel units of [0,1]
    step_ratio: step size as a ratio of ε; when given, α = step_ratio · ε and step_size is not used
    random_start: whether to begin at a random point of the ball rather than at the image
    noise: when above 0, the random start is x + noise · N(0, I) instead (MART)
    """

    steps: int = 10
    step_size: float = 2 / 255
    step_ratio: float | None = None
    random_start: bool = True
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size, self.step_ratio)
        if not 0.0 <= self.noise < 1.0:
            raise DemiluneError(f"noise = {self.noise:g}: it must be 0 or more and below 1")

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x'_0 … x'_K."""
        start = ball.sample(x, rng.sub("start")) if self.random_start else x
        if self.random_start and self.noise > 0.0:
            gaussian = rng.sub("start").normal("gaussian", x.shape, dtype=x.dtype)
            start = ball.project(x + self.noise * gaussian, x)
        size = _size(self.step_size, self.step_ratio, ball)
        return ascend(model, x, start, lambda logits: cross_entropy(logits, y), ball, size, self.steps)


@final
@dataclass(frozen=True, slots=True)
class CW(IterativeAttack):
    """PGD that ascends the margin loss -max(0, z_y - max_{i≠y} z_i + κ) (attacks.md 3).

    The "CW_inf" of the adversarial-training literature (released code of Madry and of AVM, κ = 50), not
    Carlini and Wagner's own l∞ attack.

    steps: number of gradient steps, K
    step_size: step size α in pixel units of [0,1]
    step_ratio: step size as a ratio of ε; when given, α = step_ratio · ε and step_size is not used
    kappa: confidence κ; at 50 the maximum is never active on ordinary logits
    masking: inf, the true class is masked by -∞ in the maximum; zero, by 0, as in RLFAT's released code, which takes
        max(0, max_{i≠y} z_i): a slip that weakens the attack where all wrong logits are below 0
    """

    steps: int = 10
    step_size: float = 2 / 255
    step_ratio: float | None = None
    kappa: float = 50.0
    masking: Literal["inf", "zero"] = field(default="inf", repr=False)  # the usual form keeps its name

    def __post_init__(self) -> None:
        check_types(self)
        check_steps(self.steps, self.step_size, self.step_ratio)

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x'_0 … x'_K."""

        def loss(logits: Tensor) -> Tensor:
            height = margin(logits, y)
            if self.masking == "zero":
                height = height + torch.relu(-others(widened(logits), y))
            return -torch.relu(self.kappa - height)

        start = ball.sample(x, rng.sub("start"))
        return ascend(model, x, start, loss, ball, _size(self.step_size, self.step_ratio, ball), self.steps)


@final
@dataclass(frozen=True, slots=True)
class KLPGD(IterativeAttack):
    """x'_0 = x + σ N(0, I); K times x' ← Π(x' + α sign ∇KL(p(x) ‖ p(x'))): TRADES' attack (Zhang et al. 2019).

    Source: released code; baselines.md 2. Labels are not used. p(x) is computed once, which in eval mode is what
    computing it at every step gives. Without noise the gradient at x is zero, and nothing moves.

    steps: number of gradient steps, K
    step_size: step size α in pixel units of [0,1]
    step_ratio: step size as a ratio of ε; when given, α = step_ratio · ε and step_size is not used
    noise: standard deviation σ of the start
    """

    steps: int = 10
    step_size: float = 2 / 255
    step_ratio: float | None = None
    noise: float = 0.001

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size, self.step_ratio)
        if not 0.0 < self.noise < 1.0:
            raise DemiluneError(f"noise = {self.noise:g}: without it the gradient is zero; it must be between 0 and 1")

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x'_0 … x'_K; the start is projected only where no step follows, as in the released code."""
        with torch.no_grad():
            clean = model(x)
        start = x + self.noise * rng.sub("start").normal("gaussian", x.shape, dtype=x.dtype)
        start = start if self.steps else ball.project(start, x)
        size = _size(self.step_size, self.step_ratio, ball)
        return ascend(model, x, start, lambda logits: kl(clean, logits), ball, size, self.steps)


@final
@dataclass(frozen=True, slots=True)
class TargetedPGD(IterativeAttack):
    """PGD that ascends z_t - z_y towards one wrong class t (attacks.md 4).

    rank: which wrong class to aim at, in the order of the clean image's logits: 1 the likeliest wrong class,
        -1 the least likely; ranks beyond the last wrong class mean the last
    steps: number of gradient steps, K
    step_size: step size α in pixel units of [0,1]
    step_ratio: step size as a ratio of ε; when given, α = step_ratio · ε and step_size is not used
    """

    rank: int = 1
    steps: int = 30
    step_size: float = 2 / 255
    step_ratio: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size, self.step_ratio)
        if self.rank == 0:
            raise DemiluneError(
                "rank = 0: wrong classes are counted 1, 2, … from the likeliest, or -1, -2, … from the least"
            )

    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x'_0 … x'_K."""
        with torch.no_grad():
            wrong = wrong_classes(model(x), y)
        count = wrong.shape[1]
        column = max(self.rank, -count) if self.rank < 0 else min(self.rank, count) - 1
        return self.towards(model, x, y, wrong[:, column], ball, rng)

    def towards(self, model: Model, x: Tensor, y: Tensor, wrong: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield the path towards given classes ``wrong`` int64 [N]."""
        start = ball.sample(x, rng.sub("start"))
        size = _size(self.step_size, self.step_ratio, ball)
        return ascend(model, x, start, lambda logits: targeted_margin(logits, y, wrong), ball, size, self.steps)


@final
@dataclass(frozen=True, slots=True)
class MultiTargeted(Attack):
    """TargetedPGD at each of the likeliest wrong classes; an image is robust only if it survives all.

    A cheap stand-in for APGD-T, and the first attack to run on AVM and RAT, whose training only ever follows
    the untargeted cross-entropy direction (attacks.md 4). An image broken by one target is not attacked again.

    targets: how many wrong classes, at most the number there are
    steps: number of gradient steps for each
    step_size: step size α in pixel units of [0,1]
    step_ratio: step size as a ratio of ε; when given, α = step_ratio · ε and step_size is not used
    """

    targets: int = 9
    steps: int = 30
    step_size: float = 2 / 255
    step_ratio: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps, self.step_size, self.step_ratio)
        if self.targets < 1:
            raise DemiluneError(f"targets = {self.targets}: it must be 1 or more")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return each image's last iterate of largest margin over the targets."""
        with torch.no_grad():
            wrong = wrong_classes(model(x), y)
        best, value = x, torch.full((len(x),), float("-inf"), device=x.device)
        for number in range(min(self.targets, wrong.shape[1])):
            rows = (value <= 0).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            one = TargetedPGD(number + 1, self.steps, self.step_size, self.step_ratio)
            draws = rng.take(rows).sub("target", number)
            point = last(one.towards(model, x[rows], y[rows], wrong[rows, number], ball, draws))
            with torch.no_grad():
                height = breach(model(point), y[rows])
            better = height > value[rows]
            best = best.index_copy(0, rows, torch.where(per_image(better, point), point, best[rows]))
            value = value.index_copy(0, rows, torch.where(better, height, value[rows]))
        return best


@final
@dataclass(frozen=True, slots=True)
class BestOf(Attack):
    """The reading ``any`` of an iterative attack over R random restarts, as one attack (attacks.md 2).

    Returns each image's iterate of largest margin, x_1 … x_K of every run.

    attack: the attack that is run
    restarts: number of runs, R
    """

    attack: PGD = PGD(steps=50)
    restarts: int = 5

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise DemiluneError(f"restarts = {self.restarts}: it must be 1 or more")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return the iterate of largest margin."""
        return read(self.attack, model, x, y, ball, rng, self.restarts).best


def wrong_classes(logits: Tensor, y: Tensor) -> Tensor:
    """Return the classes other than y by falling logit, int64 [N,K-1]."""
    masked = logits.float().scatter(1, y[:, None], float("-inf"))
    return masked.argsort(dim=1, descending=True, stable=True)[:, :-1]


def _size(size: float, ratio: float | None, ball: Ball) -> float:
    return size if ratio is None else ratio * ball.eps
