"""The attacks that the checks G1 to G11 need, how long they may take, and the same for any callable."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from demilune.attacks import Model, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError, unknown
from demilune.evaluate.assess import Examination, concluded
from demilune.evaluate.interview import interview, raised
from demilune.evaluate.subject import Subject
from demilune.evaluate.suite import Entry, Setting, suite
from demilune.evaluate.table import EOT, evaluate
from demilune.foreign import Still, cut_off
from demilune.options import levels

Budget = Literal["quick", "full"]

BUDGETS: Mapping[Budget, tuple[str, ...]] = MappingProxyType(
    {
        "quick": (
            "fgsm", "pgd10", "cw10", "multi9x30", "pgd50x5", "apgd", "md", "odi@n=100", "square@n=100", "uniform100",
            "unbounded@n=100", "pgd10@scale=0.1", "pgd10@scale=10", "pgd10@eps={half}", "pgd10@eps={more}",
            "pgd10@eps={double}",
        ),
        "full": (
            "fgsm", "pgd10", "cw10", "multi9x30", "pgd100x10", "pgd1000", "autoattack", "md", "md_t", "odi",
            "nattack@n=100", "uniform1000", "unbounded", "pgd10@scale=0.1", "pgd10@scale=10", "pgd10@scale=100",
            "budget_pgd10",
        ),
    }
)  # fmt: skip
"""What each budget runs; radii are half, one and a half, and two times ε."""

IMAGES: Mapping[Budget, int] = MappingProxyType({"quick": 200, "full": 1000})
"""How many test images each budget attacks, unless told otherwise."""

LINF_ONLY = ("nattack", "md", "md_t")


def attacks(budget: Budget, ball: Ball, transfer: bool = False, randomised: bool = False) -> tuple[str, ...]:
    """Return the names of the attacks for a ball; linf-only ones are left out for l2, see :func:`omitted`."""
    if ball.eps == 0:
        raise DemiluneError("eps = 0: a ball without radius holds nothing to examine; give one, as --ball.eps 8/255")
    told = {name: levels(ball.times(by).eps) for name, by in (("half", 0.5), ("more", 1.5), ("double", 2.0))}
    names = [name.format_map(told) for name in BUDGETS[budget]]
    if ball.norm != "linf":
        names = [name for name in names if name.split("@")[0] not in LINF_ONLY]
    if randomised:
        names = ["autoattack_rand" if name in ("autoattack", "apgd") else name for name in names]
    return (*dict.fromkeys(names), *(("transfer",) if transfer else ()))


def omitted(budget: Budget, ball: Ball) -> str:
    """Say which attacks of a budget there are not for a ball, or nothing."""
    lacking = [name.split("@")[0] for name in BUDGETS[budget] if name.split("@")[0] in LINF_ONLY]
    if ball.norm == "linf" or not lacking:
        return ""
    return f"not examined by {', '.join(lacking)}: linf only, and the ball is {ball.norm}"


class Estimate(NamedTuple):
    """Seconds that a suite takes at most, and passes per image (forward, and gradient)."""

    seconds: float
    forwards: int
    gradients: int


def estimate(subject: Subject, entries: Sequence[Entry], images: int) -> Estimate:
    """Return what the attacks cost at most: passes counted, their time measured on one batch of this very model.

    Most images fall early, and cost less.
    """
    split = subject.dataset.test
    x = subject.runtime.layout(split.pixels(slice(0, 64)).to(subject.device))
    search = subject.runtime.search(subject.model, subject.device)
    with frozen(subject.model, "eval"):
        forward, gradient = _time(subject.model, x, False), _time(search, x, True)
    passes = EOT if raised(subject.interviewed().asked, "randomised") else 1
    forwards = passes * sum(one.cost[0] * min(one.most or images, images) for one in entries)
    gradients = passes * sum(one.cost[1] * min(one.most or images, images) for one in entries)
    seconds = ((forwards - gradients) * forward + gradients * gradient) / len(x)
    return Estimate(max(0.0, seconds), forwards // max(1, images), gradients // max(1, images))


def _time(model: Model, x: Tensor, gradient: bool) -> float:
    """Return the seconds of the quicker of two passes over a batch."""
    taken = []
    for _ in range(2):
        leaf, begun = x.detach().requires_grad_(gradient), time.perf_counter()
        with torch.set_grad_enabled(gradient):
            logits = model(leaf)
            total = float(torch.autograd.grad(logits.sum(), leaf)[0].sum() if gradient else logits.sum())
        taken.append(time.perf_counter() - begun + 0.0 * total)
    return min(taken)


def examine(
    model: Model,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    names: tuple[str, ...] | Budget = "quick",
    batch: int = 250,
    seed: int = 0,
    sources: Mapping[str, Model] | None = None,
) -> Examination:
    """Examine any callable from images [N,C,H,W] in [0,1] to logits [N,K]: the doctor as one function.

    ``x`` uint8, or floating point in [0,1] that 8 bits hold; ``y`` int64 [N]; ``names`` attacks by name, or a budget.
    Raises DemiluneError for images, labels or logits that are none.
    """
    if y.dtype != torch.int64 or y.shape != x.shape[:1] or x.dim() != 4 or x.numel() == 0:
        raise DemiluneError(
            f"examine() was given images {list(x.shape)} and labels {y.dtype} {list(y.shape)}: "
            "[N,C,H,W] and int64 [N] were expected"
        )
    if batch < 1:
        raise DemiluneError(f"examine() was given batch = {batch}: it must be 1 or more")
    if isinstance(names, str) and names not in BUDGETS:
        raise unknown("budget", names, BUDGETS)
    split = Split(_bytes(x), y, torch.arange(len(y), device=x.device))
    module = model if isinstance(model, nn.Module) else Wrapped(model)
    first = split.pixels(slice(0, 2))
    with frozen(module, "eval"), seeded(Stream.of(seed, "examine"), x.device):
        classes = _classes(module, first, y)
        asked = interview(module, split.pixels(slice(0, 256)), y[:256], classes)
        if cut_off(module, first):
            module = Still(module).eval()
    for name, source in (sources or {}).items():
        with frozen(source, "eval"), seeded(Stream.of(seed, "examine"), x.device):
            told = _classes(source, first, y)
        if told != classes:
            raise DemiluneError(
                f"the source {name!r} tells {told} classes apart, and the model that is examined {classes}: nothing "
                "transfers from it"
            )
    random = raised(asked, "randomised")
    left = omitted(names, ball) if isinstance(names, str) else ""
    named = attacks(names, ball, bool(sources), random) if isinstance(names, str) else names
    entries = suite(named, Setting(0.25, ball.norm, classes, sources or {}, room=batch))
    rng, alone = Stream.of(seed, "evaluation", device=x.device), not raised(asked, "batch")
    found = evaluate(module, split, ball, entries, rng, batch=batch, alone=alone, randomised=random)
    return concluded(found, asked, left, ball.eps)


def _classes(model: Model, x: Tensor, y: Tensor) -> int:
    """Return how many classes a model tells apart; whatever it does wrong is for the interview to refuse."""
    try:
        with torch.no_grad():
            shape = tuple(model(x).shape)
    except Exception:  # a model may fail in any way
        shape = ()
    return shape[1] if len(shape) == 2 and shape[1] > 1 else max(2, int(y.max()) + 1)


def _bytes(x: Tensor) -> Tensor:
    """Return images as uint8; refuses what has more than 8 bits."""
    if x.dtype == torch.uint8:
        return x
    grey = (x * 255).round()
    whole = x.is_floating_point() and bool(((grey - x * 255).abs() < 1e-3).all())
    if not (whole and bool(((grey >= 0) & (grey <= 255)).all())):
        raise DemiluneError(
            "examine() takes 8-bit images: uint8, or uint8 / 255; other images have no grey levels to speak of"
        )
    return grey.to(torch.uint8)


@final
class Wrapped(nn.Module):
    """A callable as a module, so that it can be held still."""

    def __init__(self, call: Model) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        """Return the callable's logits."""
        return self.call(x)


__all__ = ["BUDGETS", "IMAGES", "Budget", "Examination", "Wrapped", "attacks", "estimate", "examine", "omitted"]
