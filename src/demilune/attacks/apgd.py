"""APGD: PGD with momentum that halves its own steps (Auto-PGD), on one loss or aimed at several wrong classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Model, doubtful
from demilune.attacks.judge import correct
from demilune.attacks.pgd import wrong_classes
from demilune.core.geometry import Ball, per_image
from demilune.core.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types

Loss = Callable[[Tensor, Tensor], Tensor]
"""What is ascended: logits [n,K] and the places int64 [n] that they have in the walk, to losses [n]."""

MOMENTUM = 0.75
"""Share of the new step in a move after the first; the rest repeats the last move."""


@final
@dataclass(frozen=True, slots=True)
class APGD(Attack):
    """Auto-PGD: x_0 on the sphere, then x_{i+1} = Π(x_i + a (Π(x_i + η s(g)) - x_i) + (1-a)(x_i - x_{i-1})).

    s(g) is the direction of steepest ascent, a = 1 at i = 0 and 0.75 after, and η begins at 2ε; at the checkpoints an
    image whose loss has risen in too few steps, or whose best has not moved, halves its η and goes back to its point
    of largest loss. An image leaves at its first misclassified iterate. Returns that iterate, or the image itself
    where there is none. Source: Croce & Hein 2020 and their released code; attacks.md 6.1.

    loss: what is ascended: ce (cross-entropy), dlr (difference of logits ratio) or margin (max_{i≠y} z_i - z_y)
    steps: number of gradient steps, N; the checkpoints follow from it
    restarts: number of runs, each from a start of its own; an image that is broken takes no further run
    rho: share ρ of the steps between two checkpoints in which the loss must rise for η to be kept
    room: images in a pass up to which the restarts of few images are run together, 0 for one after the other
    """

    loss: Literal["ce", "dlr", "margin"] = "ce"
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    room: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        _check(self.steps, self.restarts, self.rho, self.room)

    def instead(self, classes: int) -> str:
        """Return what is ascended in place of ``loss`` where that does not exist, or "" where it does."""
        return f"margin instead of DLR: {classes} classes" if self.loss == "dlr" and classes < 3 else ""

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return each image's first misclassified iterate, or the image itself."""

        def walk(runs: range, rows: Tensor) -> Iterator[Visit]:
            start = torch.cat([begin(x[rows], ball, rng.take(rows).sub("restart", run)) for run in runs])
            rows = rows.repeat(len(runs))

            def loss(logits: Tensor, places: Tensor) -> Tensor:
                label = y[rows[places]]
                if self.loss == "ce":
                    return cross_entropy(logits, label)
                ratio = self.loss == "dlr" and not self.instead(logits.shape[1])
                return dlr(logits, label) if ratio else margin(logits, label)

            return apgd_paths(model, x, y, rows, start, ball, loss, self.steps, self.rho)

        return hunt(x, self.restarts, walk, self.room)


@final
@dataclass(frozen=True, slots=True)
class TargetedAPGD(Attack):
    """APGD that ascends the targeted difference of logits ratio towards each of the likeliest wrong classes.

    The classes are ordered by the clean image's logits. An image broken by one target is not attacked again. Source:
    Croce & Hein 2020 and their released code (APGD-T); attacks.md 6.1.

    targets: how many wrong classes, at most the number there are
    steps: number of gradient steps for each, N; the checkpoints follow from it
    restarts: number of runs for each, from a start of its own
    rho: share ρ of the steps between two checkpoints in which the loss must rise for η to be kept
    room: images in a pass up to which the targets of few images are run together, 0 for one after the other
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    room: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_types(self)
        _check(self.steps, self.restarts, self.rho, self.room)
        if self.targets < 1:
            raise DemiluneError(f"targets = {self.targets}: it must be 1 or more")

    def instead(self, classes: int) -> str:
        """Return what is ascended in place of the targeted DLR where that does not exist, or "" where it does."""
        return f"margin instead of targeted DLR: {classes} classes" if classes < 4 else ""

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return each image's first misclassified iterate, or the image itself."""
        with torch.no_grad():
            wrong = wrong_classes(model(x), y)

        def walk(runs: range, rows: Tensor) -> Iterator[Visit]:
            named, draws = [divmod(run, self.restarts) for run in runs], rng.take(rows)
            start = torch.cat([begin(x[rows], ball, draws.sub("target", t, "restart", r)) for t, r in named])
            aim = torch.cat([wrong[rows, target] for target, _ in named])
            rows = rows.repeat(len(runs))

            def loss(logits: Tensor, places: Tensor) -> Tensor:
                ascended = targeted_margin if self.instead(logits.shape[1]) else targeted_dlr
                return ascended(logits, y[rows[places]], aim[places])

            return apgd_paths(model, x, y, rows, start, ball, loss, self.steps, self.rho)

        return hunt(x, min(self.targets, wrong.shape[1]) * self.restarts, walk, self.room)


class Visit(NamedTuple):
    """One iterate of the images that still stand.

    ``rows`` int64 [n]: which of the batch; an image is there once for each run. ``point`` [n,…]: where they are.
    ``broken`` int64: which of the n are misclassified here, and leave in all their runs.
    """

    rows: Tensor
    point: Tensor
    broken: Tensor


def hunt(x: Tensor, runs: int, walk: Callable[[range, Tensor], Iterator[Visit]], room: int = 0) -> Tensor:
    """Return each image's first broken point over several runs, or the image itself.

    ``walk`` takes the numbers of some runs and the rows int64 of ``x`` that still stand; broken images take no further
    run. Several are walked together as long as that makes no more than ``room`` images: small batches are slow. An
    image broken by any of them leaves them all, so that only the point it is broken at may be another run's.
    """
    found, standing = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    run = 0
    while run < runs:
        rows = standing.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        together = range(run, min(runs, run + max(1, room // len(rows))))
        for visit in walk(together, rows):
            if len(visit.broken):
                left = visit.rows[visit.broken]
                found[left] = visit.point[visit.broken]
                standing[left] = False
        run = together.stop
    return found


def fallen(model: Model, point: Tensor, y: Tensor, logits: Tensor) -> Tensor:
    """Return which rows of ``point`` are misclassified, int64: where the search's logits may say so and the judge does.

    The search may be of low precision, so ties are suspects too, and a pass without gradient of the suspects alone
    decides. NaN is misclassified.
    """
    suspects = doubtful(model, logits, y).nonzero().squeeze(1)
    if len(suspects) == 0:
        return suspects
    return suspects[~correct(model, point[suspects], y[suspects])]


def apgd_path(
    model: Model, x: Tensor, y: Tensor, rows: Tensor, ball: Ball, rng: Stream, loss: Loss, steps: int, rho: float
) -> Iterator[Visit]:
    """Yield x_0 … x_N of one run on the images ``rows`` int64 of the batch ``x``, ``y``, as long as any stands.

    ``rng`` draws the starts of these rows.
    """
    return apgd_paths(model, x, y, rows, begin(x[rows], ball, rng), ball, loss, steps, rho)


def apgd_paths(
    model: Model, x: Tensor, y: Tensor, rows: Tensor, start: Tensor, ball: Ball, loss: Loss, steps: int, rho: float
) -> Iterator[Visit]:
    """Yield x_0 … x_N of the images ``rows`` int64 of the batch ``x``, ``y``, as long as any stands.

    ``start`` is their x_0; a row that is there several times is as many runs. One pass forward and back an iterate,
    for the images that stand.
    """
    windows = checkpoints(steps)
    state = _state(x[rows], y[rows], start, ball)
    for step in range(steps + 1):
        here = rows[state.places]
        logits, losses, gradient = _gradient(model, state.point, state.places, loss)
        broken = fallen(model, state.point, state.y, logits)
        yield Visit(here, state.point, broken)
        if len(broken):
            stands = (~torch.isin(here, here[broken])).nonzero().squeeze(1)
            state, losses, gradient = state.take(stands), losses[stands], gradient[stands]
        if step == steps or len(state.places) == 0:
            return
        state = state.seen(losses, gradient)
        if step > 0:  # the start's own loss is not counted: x_1's is compared with zero, as in the released code
            state = state._replace(rises=state.rises + (losses > state.loss), loss=losses)
        if step in windows:
            state = state.checked(windows[step], rho)
        state = state.moved(ball, 1.0 if step == 0 else MOMENTUM)


def checkpoints(steps: int) -> dict[int, int]:
    """Return after which steps η is looked at, each with the length of the window that ends there.

    Windows begin at 0.22 N steps and shrink by 0.03 N down to 0.06 N, each rounded down and at least 1.
    """
    window, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = dict[int, int](), window
    while at <= steps:
        found[at] = window
        window = max(window - shrink, least)
        at += window
    return found


class _State(NamedTuple):
    """What APGD knows of the n images that stand, one row each.

    Places in the walk, images, labels; the iterate, the one before it, the gradient at the iterate; the point of
    largest loss, its gradient, its loss, and what that was at the last checkpoint; the last loss, and how often it has
    risen since the checkpoint; whether η was halved there, and η.
    """

    places: Tensor
    x: Tensor
    y: Tensor
    point: Tensor
    before: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    settled: Tensor
    loss: Tensor
    rises: Tensor
    halved: Tensor
    size: Tensor

    def take(self, rows: Tensor) -> _State:
        """Return what is known of some of the images."""
        return _State(*(part[rows] for part in self))

    def seen(self, losses: Tensor, gradient: Tensor) -> _State:
        """Note the iterate's losses [n] and gradient [n,…]."""
        better = losses > self.best_loss
        here = per_image(better, self.x)
        return self._replace(
            gradient=gradient,
            best=torch.where(here, self.point, self.best),
            best_gradient=torch.where(here, gradient, self.best_gradient),
            best_loss=torch.where(better, losses, self.best_loss),
        )

    def checked(self, window: int, rho: float) -> _State:
        """Halve η and go back to the best point where the window's ``window`` steps were too long.

        Where there were at most ρ · window rises; or the best loss is what it was, though η was not halved last time.
        """
        halve = (self.rises <= rho * window) | (~self.halved & (self.best_loss <= self.settled))
        here = per_image(halve, self.x)
        # ``before`` stays, as in the released code: the next move's momentum is the best point minus where the
        # point given up came from.
        return self._replace(
            point=torch.where(here, self.best, self.point),
            gradient=torch.where(here, self.best_gradient, self.gradient),
            size=torch.where(halve, self.size / 2, self.size),
            settled=self.best_loss,
            rises=torch.zeros_like(self.rises),
            halved=halve,
        )

    def moved(self, ball: Ball, share: float) -> _State:
        """Move the iterate: ``share`` of a step along the gradient, the rest as the last move went."""
        step = per_image(self.size, self.x) * ball.steepest(self.gradient)
        ahead = ball.project(self.point + step, self.x)
        mixed = self.point + (ahead - self.point) * share + (self.point - self.before) * (1 - share)
        return self._replace(point=ball.project(mixed, self.x), before=self.point)


def begin(x: Tensor, ball: Ball, rng: Stream) -> Tensor:
    """Return x_0 = Π(x + ε t/‖t‖): t uniform in the cube (linf) or normal (l2)."""
    draws = rng.sub("start")
    if ball.norm == "linf":
        noise = draws.uniform("ball", x.shape, -1.0, 1.0, dtype=x.dtype)
    else:
        noise = draws.normal("ball", x.shape, dtype=x.dtype)
    length = ball.distance(noise, torch.zeros_like(noise)).clamp_min(1e-12)
    return ball.project(x + ball.eps * (noise / per_image(length, x)), x)


def _state(x: Tensor, y: Tensor, start: Tensor, ball: Ball) -> _State:
    """Return the state at x_0."""
    none, zero, places = torch.zeros_like(x), x.new_zeros(len(x)), torch.arange(len(x), device=x.device)
    low = torch.full_like(zero, float("-inf"))
    return _State(
        places=places,
        x=x,
        y=y,
        point=start,
        before=start,
        gradient=none,
        best=start,
        best_gradient=none,
        best_loss=low,
        settled=low,
        loss=zero,
        rises=torch.zeros_like(places),
        halved=torch.ones_like(places, dtype=torch.bool),  # so that the first checkpoint looks at the rises alone
        size=torch.full_like(zero, 2.0 * ball.eps),
    )


def _gradient(model: Model, point: Tensor, places: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [n,K], losses [n] and the gradient [n,…] of their sum with respect to the images."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        logits = model(leaf)
        losses = loss(logits, places)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    # A gradient that is NaN at a point whose verdict is "right" must not make an image of NaN.
    return logits.detach(), losses.detach(), gradient.nan_to_num()


def _check(steps: int, restarts: int, rho: float, room: int) -> None:
    if room < 0:
        raise DemiluneError(f"room = {room}: it must be 0 or more")
    if steps < 1:
        raise DemiluneError(f"steps = {steps}: it must be 1 or more")
    if restarts < 1:
        raise DemiluneError(f"restarts = {restarts}: it must be 1 or more")
    if not 0.0 <= rho <= 1.0:
        raise DemiluneError(f"rho = {rho:g}: it must be from 0 to 1")
