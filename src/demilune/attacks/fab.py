"""FAB: the closest adversarial point by steps onto linearised decision boundaries, targeted and untargeted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Model, Search, breach, quick, right, unsure
from demilune.attacks.judge import correct
from demilune.attacks.pgd import wrong_classes
from demilune.core.geometry import Ball, Norm, per_image
from demilune.core.losses import widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError


class Nearest(NamedTuple):
    """Per image the closest adversarial point found [N,…] and its distance [N]: the image and inf where none was."""

    point: Tensor
    distance: Tensor


@final
@dataclass(frozen=True, slots=True)
class FABT(Attack):
    """FAB aimed at each of the likeliest wrong classes in turn; a minimum-norm attack (attacks.md 6.2, 6.8).

    x_0 = x; K times δ₁, δ₂ = least moves of x_i and of x, inside [0,1], onto {v : d(x_i) + ∇d(x_i)·(v - x_i) = 0}
    with d = z_t - z_y, a = min(‖δ₁‖/(‖δ₁‖+‖δ₂‖), α), x_{i+1} = clamp((1-a)(x_i + η δ₁) + a(x + η δ₂), 0, 1); where
    that is misclassified it is kept if closer than all before, and x_{i+1} ← x + β (x_{i+1} - x).
    Source: Croce and Hein 2020 (2003.01690: FAB-T; 1907.02044: FAB) and their released code.

    targets: how many wrong classes, by falling logit of the clean image; at most the number there are
    steps: number of iterations for each, K
    restarts: runs for each target, R; all but the first begin at a random point within ε/2
    alpha_max: largest share of the step taken from the image itself, α
    eta: overshoot of the boundary, η
    beta: share of the distance kept after a success, β
    room: images in a pass up to which the targets of few images are run together, 0 for one after the other
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    room: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.targets < 1:
            raise DemiluneError(f"targets = {self.targets}: it must be 1 or more")
        _check(self.steps, self.restarts, self.alpha_max, self.eta, self.beta, self.room)

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return an adversarial point within ε where one was found, else the image; ends at the first it finds."""
        return _within(self._search(model, x, y, ball, rng, ball.eps), x, ball)

    def nearest(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Nearest:
        """Return the closest adversarial points at whatever distance; ε is the scale of random starts alone."""
        return self._search(model, x, y, ball, rng, 0.0)

    def _search(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream, enough: float) -> Nearest:
        walk = _Walk(self.steps, self.alpha_max, self.eta, self.beta)
        runs = [(target, restart) for target in range(self.targets) for restart in range(self.restarts)]
        return _best_of(walk, model, x, y, ball, rng, runs, enough, self.room)


@final
@dataclass(frozen=True, slots=True)
class FAB(Attack):
    """FAB towards whichever class's linearised boundary is closest at each step (attacks.md 6.2, 6.8).

    The iteration is FABT's with the class t that has the least |z_t - z_y| / ‖∇(z_t - z_y)‖_* at x_i, ‖·‖_* the dual
    norm: l1 for linf, l2 for l2. One step costs a gradient for every wrong class.
    Source: Croce and Hein 2020 (1907.02044) and their released code.

    steps: number of iterations, K
    restarts: runs, R; all but the first begin at a random point within ε/2
    alpha_max: largest share of the step taken from the image itself, α
    eta: overshoot of the boundary, η
    beta: share of the distance kept after a success, β
    room: images in a pass up to which the restarts of few images are run together, 0 for one after the other
    """

    steps: int = 100
    restarts: int = 5
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    room: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        _check(self.steps, self.restarts, self.alpha_max, self.eta, self.beta, self.room)

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return an adversarial point within ε where one was found, else the image; ends at the first it finds."""
        return _within(self._search(model, x, y, ball, rng, ball.eps), x, ball)

    def nearest(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Nearest:
        """Return the closest adversarial points at whatever distance; ε is the scale of random starts alone."""
        return self._search(model, x, y, ball, rng, 0.0)

    def _search(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream, enough: float) -> Nearest:
        walk = _Walk(self.steps, self.alpha_max, self.eta, self.beta)
        runs = [(None, restart) for restart in range(self.restarts)]
        return _best_of(walk, model, x, y, ball, rng, runs, enough, self.room)


@final
@dataclass(frozen=True, slots=True)
class _Walk:
    """The iteration that both attacks share."""

    steps: int
    alpha_max: float
    eta: float
    beta: float

    def closest(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        classes: Tensor,
        start: Tensor,
        images: Tensor,
        ball: Ball,
        enough: float,
    ) -> Nearest:
        """Run from ``start`` towards the nearest of ``classes`` int64 [N,M]; an image is done within ``enough``.

        ``images`` int64 [N] says whose run each row is: an image that is done is so in all its runs.
        """
        found, distance = x.clone(), torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        rows, point = torch.arange(len(x), device=x.device), start
        for _ in range(self.steps):
            point = self._step(model, x, y, classes, point, ball.norm)
            length = ball.distance(point, x)
            # The next gradient could share this forward only where the point is not adversarial and so stays where it
            # is, which few are: the step overshoots.
            wrong, sure = _looked(model, point, y, length < (distance[rows] if enough == 0 else enough + 1e-6))
            length = torch.where(sure, length, float("inf"))
            closer = length < distance[rows]
            found.index_copy_(0, rows, torch.where(per_image(closer, x), point, found[rows]))
            distance.index_copy_(0, rows, torch.where(closer, length, distance[rows]))
            point = torch.where(per_image(wrong, x), x + self.beta * (point - x), point)
            done = images[rows[distance[rows] <= enough]]
            left = (~torch.isin(images[rows], done)).nonzero().squeeze(1)
            if len(left) < len(rows):
                rows, x, y, classes, point = rows[left], x[left], y[left], classes[left], point[left]
                if len(rows) == 0:
                    break
        return Nearest(found, distance)

    def _step(self, model: Model, x: Tensor, y: Tensor, classes: Tensor, point: Tensor, norm: Norm) -> Tensor:
        """Return x_{i+1} before it is looked at."""
        gap, slope = _hyperplane(model, point, y, classes, norm)
        # The gap at x is taken from the difference of the points: of two long inner products it would be rounding.
        gaps = torch.cat((gap, gap + _total(slope * (x - point))))
        moves = project(torch.cat((point, x)), torch.cat((slope, slope)), gaps, norm)
        here, home = moves.chunk(2)
        length = (moves.abs().amax(dim=_axes(x)) if norm == "linf" else _total(moves.square()).sqrt()).clamp_min(1e-8)
        one, two = length.chunk(2)
        share = per_image((one / (one + two)).clamp_max(self.alpha_max), x)
        return ((1 - share) * (point + self.eta * here) + share * (x + self.eta * home)).clamp(0.0, 1.0)


def _looked(model: Model, point: Tensor, y: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the search goes on as if misclassified, bool [N], and where the judge says so.

    In float32 both are the judge's. In low precision the search's own word steers, and the judge is asked about the
    doubtful points that are ``wanted``, bool [N], alone.
    """
    if not isinstance(model, Search):
        wrong = ~correct(model, point, y)
        return wrong, wrong
    with torch.no_grad():
        logits = quick(model)(point)
    height, sure = breach(logits, y), torch.zeros_like(wanted)
    wrong = height > 0
    asked = (unsure(model, logits, height) & wanted).nonzero().squeeze(1)
    if len(asked):
        verdict = ~correct(model, point[asked], y[asked])
        wrong, sure = wrong.index_copy(0, asked, verdict), sure.index_copy(0, asked, verdict)
    return wrong, sure


def project(point: Tensor, slope: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the least δ with gap + slope·δ = 0 and point + δ in [0,1]; all the way in the box where none has.

    ``point`` and ``slope`` [N,…], ``gap`` [N]. Every coordinate moves in the direction that closes the gap, by
    min(λ v_j, room_j): v_j = 1 for linf, |slope_j| for l2, room_j the way to 0 or 1. What that closes,
    F(λ) = Σ_j |slope_j| min(λ v_j, room_j), is concave and piecewise linear, so Newton's method from λ = 0 rises to
    the solution without passing it and ends there, mostly after three or four passes over the coordinates. Unlike
    sorting rooms and adding them up, as the released code does, it needs no cumulative sums, which torch refuses on
    CUDA when asked to be deterministic. (The released code leaves l2 coordinates with |slope_j| < 1e-8 where they are.)
    """
    # Scaled first: the squares of a gradient of 1e-25 are all zero in float32.
    scale = slope.abs().amax(dim=_axes(slope)).clamp_min(torch.finfo(slope.dtype).tiny)
    scaled = slope / per_image(scale, slope)
    weight, target = scaled.abs(), gap.abs() / scale
    direction = torch.where(per_image(gap > 0, slope), -scaled, scaled).sign()
    room = torch.where(direction > 0, 1.0 - point, point)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    full, rate = weight * room, weight * speed
    reach = torch.zeros_like(target)
    while True:
        free = room > per_image(reach, room) * speed
        missing = target - _total(torch.where(free, 0.0, full))
        slowed = _total(torch.where(free, rate, 0.0)).clamp_min(1e-30)
        further = (missing / slowed).clamp_max(1e30)  # finite: infinity times a speed of zero is none
        if not bool((further > reach).any()):
            return direction * torch.minimum(per_image(reach, room) * speed, room)
        reach = torch.maximum(reach, further)


def _hyperplane(model: Model, point: Tensor, y: Tensor, classes: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return d = z_t - z_y [N] and ∇d [N,…] at each point, t the one of ``classes`` whose linear boundary is nearest.

    Gradients are taken one class at a time, with respect to the images alone.
    """
    count = classes.shape[1]
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        logits = widened(model(leaf))
        gaps = (logits.gather(1, classes) - logits.gather(1, y[:, None])).unbind(dim=1)
        slopes = (
            # A slope that is no finite number says nothing of where the boundary is.
            torch.autograd.grad(gap.sum(), leaf, retain_graph=t < count - 1)[0].nan_to_num(0.0, 0.0, 0.0)
            for t, gap in enumerate(gaps)
        )
        best, slope = gaps[0].detach().to(point.dtype), next(slopes)
        if count == 1:
            return best, slope
        nearest = _linear_distance(best, slope, norm)
        for gap, other in zip(gaps[1:], slopes, strict=True):
            height = gap.detach().to(point.dtype)
            distance = _linear_distance(height, other, norm)
            closer = distance < nearest
            best, nearest = torch.where(closer, height, best), torch.where(closer, distance, nearest)
            slope = torch.where(per_image(closer, slope), other, slope)
    return best, slope


def _linear_distance(gap: Tensor, slope: Tensor, norm: Norm) -> Tensor:
    """Return |d| / ‖∇d‖_*, [N]: how far the hyperplane is, were there no box."""
    dual = _total(slope.abs()) if norm == "linf" else _total(slope.square()).sqrt()
    return gap.abs() / (dual + 1e-12)


def _best_of(
    walk: _Walk,
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    rng: Stream,
    runs: Sequence[tuple[int | None, int]],
    enough: float,
    room: int,
) -> Nearest:
    """Run for each (target, restart), target None meaning all classes; an image is done within ``enough``.

    Several runs are walked together as long as that makes no more than ``room`` images: small batches are slow.
    """
    with torch.no_grad():
        logits = model(x)
    wrong = wrong_classes(logits, y)
    found, distance = x, torch.where(right(logits, y), float("inf"), 0.0).to(x.dtype)
    runs = [run for run in runs if (run[0] or 0) < wrong.shape[1]]
    while runs:
        rows = (distance > enough).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        together = runs[: max(1, room // len(rows))]
        runs = runs[len(together) :]
        there, draws, starts, classes = x[rows], rng.take(rows), list[Tensor](), list[Tensor]()
        for target, restart in together:
            here = draws.sub("target", "any" if target is None else target, restart)
            starts.append(there if restart == 0 else _start(there, ball, here))
            classes.append(wrong[rows] if target is None else wrong[rows, target, None])
        all_of = rows.repeat(len(together))
        walked = walk.closest(model, x[all_of], y[all_of], torch.cat(classes), torch.cat(starts), all_of, ball, enough)
        for point, length in zip(walked.point.split(len(rows)), walked.distance.split(len(rows)), strict=True):
            closer = length < distance[rows]
            found = found.index_copy(0, rows, torch.where(per_image(closer, there), point, found[rows]))
            distance = distance.index_copy(0, rows, torch.where(closer, length, distance[rows]))
    return Nearest(found, distance)


def _start(x: Tensor, ball: Ball, rng: Stream) -> Tensor:
    """Return x + (ε/2) t/‖t‖ in the box: t uniform (linf) or normal (l2), so that the start is ε/2 away."""
    if ball.norm == "linf":
        noise = rng.uniform("start", x.shape, -1.0, 1.0, dtype=x.dtype)
        noise = noise / per_image(noise.abs().amax(dim=_axes(x)), x)
    else:
        noise = ball.steepest(rng.normal("start", x.shape, dtype=x.dtype))
    return (x + 0.5 * ball.eps * noise).clamp(0.0, 1.0)


def _within(nearest: Nearest, x: Tensor, ball: Ball) -> Tensor:
    return torch.where(per_image(nearest.distance <= ball.eps, x), nearest.point, x)


def _axes(images: Tensor) -> list[int]:
    # Sums over axes, not over flattened images: flattening would copy images kept as NHWC.
    return list(range(1, images.dim()))


def _total(values: Tensor) -> Tensor:
    return values.sum(dim=_axes(values))


def _check(steps: int, restarts: int, alpha_max: float, eta: float, beta: float, room: int) -> None:
    """Refuse fields that mean nothing."""
    if room < 0:
        raise DemiluneError(f"room = {room}: it must be 0 or more")
    if steps < 0 or restarts < 1:
        raise DemiluneError(f"steps = {steps}, restarts = {restarts}: they must be 0 or more, and 1 or more")
    if not (0.0 <= alpha_max <= 1.0 and 0.0 < eta < float("inf") and 0.0 < beta <= 1.0):
        raise DemiluneError(
            f"alpha_max = {alpha_max:g}, eta = {eta:g}, beta = {beta:g}: alpha_max must be from 0 to 1, eta a positive "
            "number, and beta above 0 and at most 1"
        )
