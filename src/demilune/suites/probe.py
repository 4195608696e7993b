"""What is asked of a network that no evaluation holds: RAT's region, margins under attacks, the loss at w + v."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from demilune.attacks import PGD, Model, check_allowed, correct, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, widened
from demilune.core.random import Stream
from demilune.core.weights import moved
from demilune.data import Split
from demilune.evaluate.assess import Stopped
from demilune.evaluate.counted import Counted
from demilune.evaluate.suite import Setting, suite
from demilune.methods import RAT, Batch
from demilune.moves import AWP

IMAGES: Mapping[str, int] = {"region": 1000, "margins": 200, "rise": 200}
"""How many test images a probe takes unless told otherwise."""

ATTACKS = ("pgd20", "cw20", "apgd_t", "square")
"""The attacks whose margins are set against each other (lrat.md 12)."""

GAMMAS = (0.0025, 0.005, 0.01, 0.02, 0.04)
"""Sizes γ of AWP's offset at which the loss is read (rwp.md 0)."""

LEVELS = (0.1, 0.5, 0.9)

BATCH = 100


def region(model: nn.Module, split: Split, ball: Ball, rng: Stream, method: RAT = RAT()) -> dict[str, Any]:
    """Return what RAT's region is like around test images (E-DIAG), as plain values.

    ``found``: how many images some iterate x'_1 … x'_K-1 fools; ``tau`` [K-1]: how many of these first at t = 1, 2, …;
    of those found, quantiles at ``levels`` of ``apart`` = ‖x_f − x_e‖/ε and of ``cosine`` between x_f − x and x_e − x.
    """
    tau, apart, cosine = list[Tensor](), list[Tensor](), list[Tensor]()
    for part in torch.arange(len(split), device=split.ids.device).split(BATCH):
        chosen = split.take(part)
        x, draws = chosen.pixels(slice(None)), rng.images(chosen.ids)
        with frozen(model, "eval"), seeded(rng.sub("region"), x.device):
            ends = method.ends(model, Batch(x, chosen.labels, 0, chosen.ids, 0), ball, draws)
        one, two = ((end - x).flatten(1)[ends.found] for end in (ends.first, ends.end))
        tau.append(ends.tau[ends.found])
        apart.append(ball.distance(ends.first, ends.end)[ends.found] / max(ball.eps, 1e-12))
        cosine.append(torch.cosine_similarity(one, two, dim=1))
    counts = torch.cat(tau).bincount(minlength=method.attack.steps)[1 : method.attack.steps]
    return {
        "images": len(split),
        "found": int(counts.sum()),
        "tau": counts.tolist(),
        "levels": list(LEVELS),
        "apart": _quantiles(torch.cat(apart)),
        "cosine": _quantiles(torch.cat(cosine)),
        "method": repr(method),
    }


def margins(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    names: Sequence[str] = ATTACKS,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Return how attacks agree about who is vulnerable (lrat.md 12), as plain values; None where somebody stopped it.

        V_A(x) = max over the points x' that A looks at of  max_{k≠y} p_k(x') − p_y(x')            in [−1, 1]

    Of the ``right`` images of those looked at, in the order of their ids: ``margins`` [attacks][right], ``rank``
    [attacks][attacks], Spearman's correlation; ``standing`` of them survive every attack,
    and ``rank_standing`` is theirs alone: APGD-T and Square leave an image as soon as it is broken, so that their
    margins of broken images say little more than that.
    """
    entries = suite(names, Setting(0.25, ball.norm, _classes(model, split)))
    found: list[list[Tensor]] = [[] for _ in entries]

    def tick(forwards: int) -> None:
        if stop():
            raise Stopped

    try:
        with frozen(model, "eval"):
            for part in torch.arange(len(split), device=split.ids.device).split(BATCH):
                chosen = split.take(part)
                chosen = chosen.take(correct(model, chosen.pixels(slice(None)), chosen.labels).nonzero().flatten())
                if len(chosen) == 0:
                    continue
                x, draws = chosen.pixels(slice(None)), rng.images(chosen.ids)
                for rows, one in zip(found, entries, strict=True):
                    tick(0)
                    assert one.of is not None, f"{one.name} is an attack"
                    lowest = torch.full((len(x),), -1.0, device=x.device)
                    with seeded(draws.sub(one.name), x.device):
                        watched = Watched(Counted(model, tick), x, chosen.labels, lowest)
                        point = one.of(watched.logits, x, chosen.labels, ball, draws)
                        check_allowed(point, x, ball)
                        watched.logits(point)
                    rows.append(watched.highest)
    except Stopped:
        return None
    values = torch.stack([torch.cat(rows) if rows else torch.empty(0) for rows in found]).double().cpu()
    standing = (values <= 0).all(dim=0)
    return {
        "images": len(split),
        "right": values.shape[1],
        "attacks": [one.name for one in entries],
        "margins": [_short(line) for line in values],
        "rank": [_short(line) for line in spearman(values)],
        "standing": int(standing.sum()),
        "rank_standing": [_short(line) for line in spearman(values[:, standing])],
    }


@final
@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """A model that keeps the highest margin it gave for each of some images in ``highest`` [N], whoever asked.

    A point belongs to the image it lies nearest to, in the largest difference of a pixel: attacks run images that
    still stand, in any number and order.
    """

    model: Model
    x: Tensor
    y: Tensor
    highest: Tensor

    def logits(self, point: Tensor) -> Tensor:
        """Return logits, and keep their margins."""
        logits = self.model(point)
        with torch.no_grad():
            own = torch.cdist(point.detach().flatten(1), self.x.flatten(1), p=float("inf")).argmin(dim=1)
            p = logits.detach().float().softmax(dim=1)
            label = self.y[own].unsqueeze(1)
            wrong = p.scatter(1, label, -1.0).amax(dim=1)
            self.highest.scatter_reduce_(0, own, wrong - p.gather(1, label).squeeze(1), "amax")
        return logits


def rise(model: nn.Module, split: Split, ball: Ball, rng: Stream, gammas: Sequence[float] = GAMMAS) -> dict[str, Any]:
    """Return the adversarial loss at the weights and at w + v, v AWP's offset of each size γ, as plain values.

    ``loss``: mean cross-entropy of PGD-10's points, made at w, in nats; ``moved`` [γ]: of the same points at w + v,
    where v ascends that same mean. Batch norm uses its running statistics.
    """
    x, draws = split.pixels(slice(None)), rng.images(split.ids)
    with frozen(model, "eval"), seeded(rng.sub("rise"), x.device):
        points = PGD(10, step_ratio=0.25)(model, x, split.labels, ball, draws)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    training = model.training
    try:
        model.eval().requires_grad_(True)

        def climbed() -> Tensor:
            return cross_entropy(widened(model(points)), split.labels)

        def loss() -> float:
            with torch.no_grad():
                return float(climbed().mean())

        before, after = loss(), list[float]()
        for gamma in gammas:
            with moved(model, AWP(gamma).offset(model, climbed, rng).by):
                after.append(loss())
    finally:
        model.train(training)
        for name, weight in model.named_parameters():
            weight.requires_grad_(flags[name])
    return {"images": len(split), "gammas": list(gammas), "loss": _short([before])[0], "moved": _short(after)}


def spearman(values: Tensor) -> Tensor:
    """Return the rank correlations [A,A] of rows of values [A,N], ties at their mean rank; NaN where all are equal."""
    if values.shape[1] < 2:
        return torch.full((len(values), len(values)), float("nan"), dtype=torch.float64)
    below = (values.unsqueeze(2) > values.unsqueeze(1)).sum(dim=2)
    same = (values.unsqueeze(2) == values.unsqueeze(1)).sum(dim=2)
    ranks = below + (same - 1) / 2
    return torch.corrcoef(ranks.double())


def _classes(model: nn.Module, split: Split) -> int:
    with torch.no_grad():
        return int(model(split.pixels(slice(0, 1))).shape[1])


def _quantiles(values: Tensor) -> list[float | None]:
    if len(values) == 0:
        return [None] * len(LEVELS)
    return _short(values.double().quantile(torch.tensor(LEVELS, dtype=torch.float64, device=values.device)))


def _short(values: Any) -> list[float | None]:
    """Return values of five digits; None for what is no number."""
    found = [float(f"{float(value):.5g}") for value in values]
    return [value if value == value else None for value in found]


__all__ = ["ATTACKS", "GAMMAS", "IMAGES", "margins", "region", "rise", "spearman"]
