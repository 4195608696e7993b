"""What an attack is, and the one loop of ascent that every gradient attack shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from demilune.core.geometry import Ball, per_image
from demilune.core.losses import margin
from demilune.core.random import Stream
from demilune.core.weights import untracked
from demilune.errors import DemiluneError, unknown

Model = Callable[[Tensor], Tensor]
"""Anything from images [N,C,H,W] in [0,1] to logits [N,K]; normalisation belongs inside."""

BatchNormMode = Literal["eval", "train_frozen", "train"]

TINY = torch.finfo(torch.float32).tiny
"""By how much an image is broken whose label ties with the class that is called."""

SLACK = 2.0**-5
"""Share of the largest logit within which a margin of low precision leaves open whether an image is misclassified."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A model to search with in low precision: ``quick`` is that, ``exact`` is the plain model in float32.

    Called as a model it is quick where a gradient is taken and exact elsewhere, so that what an attack decides without
    a gradient it decides in float32. A query that only steers asks :func:`quick`; what it calls misclassified, or
    nearly, is put to ``exact`` (:func:`doubtful`).
    """

    exact: Model
    quick: Model

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits, quick or exact."""
        return self.quick(x) if torch.is_grad_enabled() else self.exact(x)


def quick(model: Model) -> Model:
    """Return the model in the precision of the search, whether or not a gradient is taken."""
    return model.quick if isinstance(model, Search) else model


def doubtful(model: Model, logits: Tensor, y: Tensor) -> Tensor:
    """Return which rows of the search's logits may be misclassified, bool [N]: :func:`breach` is above 0.

    Where ``model`` searches in low precision, also where the margin falls short of 0 by at most SLACK · max_k |z_k|.
    Else exactly where the judge calls them wrong.
    """
    return unsure(model, logits, breach(logits, y))


def unsure(model: Model, logits: Tensor, height: Tensor) -> Tensor:
    """Return the same where the margins, :func:`breach`, are known already."""
    if not isinstance(model, Search):
        return height > 0
    return ~(height < -SLACK * logits.detach().float().abs().amax(dim=1))


class Attack(ABC):
    """A frozen value with one call, ``attack(model, x, y, ball, rng) -> x_adv``.

    Nothing else changes: inputs, weights, gradients, modes, batch-norm statistics and global generators stay
    as they were. ``x`` [N,…] in [0,1], ``y`` int64 [N]; the result has the shape of ``x`` and lies in the ball
    and in [0,1].
    """

    __slots__ = ()

    @final
    def __call__(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return adversarial images, after checking that the images given are images.

        Raises DemiluneError where pixels are not in [0,1], not finite or not floating point, or where the
        labels do not fit, or no gradient reaches the images that an attack follows it in.
        """
        check_images(x, y)
        if torch.is_inference_mode_enabled():
            raise DemiluneError("an attack needs gradients: call it outside torch.inference_mode (no_grad is fine)")
        with frozen(model, "keep"), seeded(rng, x.device):
            try:
                return self.perturb(model, x.detach(), y, ball, rng)
            except torch.OutOfMemoryError:
                raise
            except (IndexError, RuntimeError) as error:  # looked for only now: it would cost every call a pass
                if told := _amiss(model, x.detach()[:2], y, str(error)):
                    raise DemiluneError(told) from error
                raise

    @abstractmethod
    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return adversarial images without the checks: for training, whose images are known to be good."""


class Iterate(NamedTuple):
    """A point of an attack's path with the logits its gradient step computed anyway (None for the last)."""

    point: Tensor
    logits: Tensor | None


class IterativeAttack(Attack):
    """An attack that is its iterates; a plain call takes the last."""

    __slots__ = ()

    @abstractmethod
    def path(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Iterator[Iterate]:
        """Yield x_0 … x_K. The caller has frozen the model; no yielded tensor carries a graph."""

    @final
    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return x_K."""
        return last(self.path(model, x, y, ball, rng))


def last(path: Iterator[Iterate]) -> Tensor:
    """Walk a path and return its last point."""
    return deque(path, maxlen=1).pop().point


class Readings(NamedTuple):
    """What one run (and its restarts) of an iterative attack says; all [N,…] images.

    ``last``: x_K of the first run. ``any``: the iterate x_1 … x_K of the first run with the largest margin.
    ``best``: the same over all runs.
    """

    last: Tensor
    any: Tensor
    best: Tensor


def read(
    attack: IterativeAttack, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream, restarts: int = 1
) -> Readings:
    """Run an attack ``restarts`` times and keep each image's iterate of largest margin.

    The first run is the one that ``attack(model, x, y, ball, rng)`` makes. Later runs skip the images that are
    broken already, which cannot change the worst case (attacks.md 6.4) nor, as draws are addressed by image,
    any other image's draw.
    """
    last, found, value = _largest(attack, model, x, y, ball, rng)
    best = found
    for restart in range(1, restarts):
        rows = (value <= 0).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        there, again = x[rows], rng.take(rows).sub("restart", restart)
        _, point, height = _largest(attack, model, there, y[rows], ball, again)
        better = height > value[rows]
        best = best.index_copy(0, rows, torch.where(per_image(better, there), point, best[rows]))
        value = value.index_copy(0, rows, torch.where(better, height, value[rows]))
    return Readings(last, found, best)


def _largest(
    attack: IterativeAttack, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_K, the iterate x_1 … x_K of largest margin, and its margin [N] from a forward without gradient."""
    best, value = x, torch.full((len(x),), float("-inf"), device=x.device)
    point, logits = x, None
    for number, (point, logits) in enumerate(attack.path(model, x, y, ball, rng)):
        if number == 0 or logits is None:
            continue
        height = breach(logits, y)
        higher = height > value
        best = torch.where(per_image(higher, x), point, best)
        value = torch.where(higher, height, value)
    # The verdict on whether an image is broken is never taken from the search's own logits, which may be of
    # low precision: x_K and the best iterate so far are both run once more, without gradient.
    with torch.no_grad():
        end = breach(model(point), y)
        value = torch.where(value > float("-inf"), breach(model(best), y), value)
    higher = end > value
    return point, torch.where(per_image(higher, x), point, best), torch.where(higher, end, value)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Return which logits [N,K] say the label, bool [N]; logits that are no finite numbers never do."""
    return (logits.argmax(dim=1) == y) & logits.isfinite().all(dim=1)


def breach(logits: Tensor, y: Tensor) -> Tensor:
    """Return by how much each image is broken, float32 [N]: its margin, above 0 exactly where the judge calls it wrong.

    The judge decides a tie for the class that comes first. With rounded logits, an old way of masking, ties are common.
    Logits that are no finite numbers are wrong by +∞.
    """
    height, finite = margin(logits, y).float(), logits.isfinite().all(dim=1)
    by = torch.where(logits.argmax(dim=1) == y, height.clamp_max(0.0), height.clamp_min(TINY))
    return torch.where(finite, by, float("inf"))


def ascend(
    model: Model,
    x: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    ball: Ball,
    size: float,
    steps: int,
) -> Iterator[Iterate]:
    """Yield the iterates of x ← Π(x + α · steepest(∇ Σ_i loss_i)), from ``start``; α = ``size``.

    ``loss`` maps logits [N,K] to [N]. Gradients are summed, not averaged, so that they do not underflow in low
    precision, and are taken with respect to the images alone.
    """
    point = start.detach()
    for _ in range(steps):
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), leaf)
        yield Iterate(point, logits.detach())
        point = ball.project(point + size * ball.steepest(gradient), x)
    yield Iterate(point, None)


@contextmanager
def frozen(model: Model, bn: BatchNormMode | Literal["keep"]) -> Iterator[None]:
    """Hold a network still while it is attacked: no weight gradients, and batch norm as named.

    ``eval``: running statistics. ``train_frozen``: the batch's statistics, the running ones untouched.
    ``train``: the batch's statistics, which also move the running ones (only to reproduce released code).
    ``keep``: every module's mode as it stands, running statistics untouched. Every flag is restored on leaving.
    What is no module is left alone.
    """
    if bn not in ("eval", "train_frozen", "train", "keep"):
        raise unknown("batch-norm mode", str(bn), ("eval", "train_frozen", "train", "keep"))
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in weights:
            parameter.requires_grad_(False)
        if bn != "keep":
            model.train(bn != "eval")
        with untracked(model) if bn in ("train_frozen", "keep") else nullcontext():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in weights:
            parameter.requires_grad_(True)


@contextmanager
def seeded(rng: Stream, device: torch.device) -> Iterator[None]:
    """Give the model's own randomness (dropout) an address too, and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(rng.seed("model"))
        yield


def check_images(x: Tensor, y: Tensor) -> None:
    """Refuse what is not a batch of images in [0,1] with a label each."""
    if not x.is_floating_point() or x.dim() < 2 or len(x) == 0:
        raise DemiluneError(
            f"an attack was given {x.dtype} {list(x.shape)}: it needs floating-point images [N, …] in [0,1] "
            "(divide 8-bit pixels by 255)"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1] or bool((y < 0).any()):
        raise DemiluneError(
            f"an attack was given labels {y.dtype} {list(y.shape)} for {len(x)} images: "
            f"it needs one class index from 0 each, int64 [{len(x)}]"
        )
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise DemiluneError(
            f"an attack was given pixels from {low:g} to {high:g}: images must lie in [0,1] "
            "(normalisation belongs inside the model; NaN means a broken input)"
        )


def _amiss(model: Model, x: Tensor, y: Tensor, error: str) -> str:
    """Say why an attack on images like ``x`` failed: labels that are no classes, or a model without gradient."""
    try:
        with torch.no_grad():
            classes = model(x).shape[-1]
    except Exception:  # a model may fail in any way, and the first failure is the one to be told
        return ""
    if int(y.max()) >= classes:
        return (
            f"an attack was given the label {int(y.max())}, and the model tells {classes} classes apart: "
            f"labels are 0 to {classes - 1}"
        )
    if "does not require grad" in error or "not have been used in the graph" in error:
        return (
            "no gradient reaches the images from the model's answer (it detaches, rounds or computes outside torch): "
            "use an attack by queries alone (square, nattack), or demilune.examine, which tells what that hides"
        )
    return ""


def check_steps(steps: int, size: float, ratio: float | None) -> None:
    """Refuse a number of steps or a step size that means nothing."""
    if steps < 0:
        raise DemiluneError(f"steps = {steps}: it must be 0 or more")
    if not 0.0 < size < float("inf"):
        raise DemiluneError(f"step_size = {size:g}: it must be a positive number (2 grey levels are written 2/255)")
    if ratio is not None and not 0.0 < ratio < float("inf"):
        raise DemiluneError(f"step_ratio = {ratio:g}: it must be a positive number, or null to use step_size")
