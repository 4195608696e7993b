"""RAT's Fig. 1 of a real image: the plane it spans with its first and its last adversarial point (rat.md E8b)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from demilune.attacks import correct, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, widened
from demilune.core.random import Stream
from demilune.core.targets import distance_aware
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.methods import RAT, Batch

SIDE = 49
"""Points along each axis of the plane."""

SAMPLES = 60


def plane(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    method: RAT = RAT(),
    image: int | None = None,
    side: int = SIDE,
    batch: int = 500,
) -> dict[str, Any]:
    """Return class and loss over the plane of x, x_f and x_e, as plain values; see :func:`demilune.pages.plane`.

    ``image`` is the id of the image; without one the first is taken that is right, that an iterate before the last
    fools, and whose two adversarial points lie farthest apart among the first 200; of one that was named, x_f is x_e
    where no iterate before fools, and the second axis then any. The first axis runs from x to x_e,
    the second, at a right angle to it, towards x_f; both in units of ε√d (l2: ε), so that a corner of the ball is at 1.
    Points are clamped to [0,1] before they are judged, as RAT's are.
    Raises DemiluneError where no image will do, or none is called so.
    """
    chosen = split.take(torch.arange(min(len(split), 200), device=split.ids.device))
    if image is not None:
        place = (split.ids == image).nonzero().flatten()
        if len(place) == 0:
            near = split.ids[(split.ids - image).abs().argsort(stable=True)[:5]].sort().values.tolist()
            raise DemiluneError(f"{image} is no test image's id; the nearest are {', '.join(map(str, near))}")
        chosen = split.take(place)
    with frozen(model, "eval"), seeded(rng.sub("plane"), split.ids.device):
        x, draws = chosen.pixels(slice(None)), rng.images(chosen.ids)
        ends = method.ends(model, Batch(x, chosen.labels, 0, chosen.ids, 0), ball, draws)
        apart = (ends.first - ends.end).flatten(1).norm(dim=1)
        fit = ends.found & (apart > 0) & correct(model, x, chosen.labels)
        if image is None and not bool(fit.any()):
            raise DemiluneError(
                "no image spans a plane: none of those looked at is right and fooled before the attack's last step; "
                "name one with --image, or another network"
            )
        row = int(torch.where(fit, apart, torch.full_like(apart, -1.0)).argmax())
        start, first, end = (part[row].flatten() for part in (x, ends.first, ends.end))
        unit = ball.eps * (start.numel() ** 0.5 if ball.norm == "linf" else 1.0)
        one = _unit(end - start)
        rest = (first - start) - ((first - start) @ one) * one
        if float(rest.norm()) < 1e-6 * unit:  # both points on one ray: any direction will do
            rest = _unit(rng.sub("aside").normal("aside", start.shape)) * unit
            rest = rest - (rest @ one) * one
        two = _unit(rest)
        corners = {"x": start, "x_f": first, "x_e": end}
        at = {name: (float((p - start) @ one) / unit, float((p - start) @ two) / unit) for name, p in corners.items()}
        spread = max(abs(value) for pair in at.values() for value in pair)
        along = [(-0.5 + 3.0 * k / (side - 1)) * spread for k in range(side)]
        across = [(-1.25 + 2.5 * k / (side - 1)) * spread for k in range(side)]
        grid = torch.stack([start + unit * (a * one + b * two) for a in along for b in across])
        label = chosen.labels[row]
        judged = [_judged(model, part.reshape(-1, *x.shape[1:]), label) for part in grid.split(batch)]
        loss, taken = torch.cat([one_[0] for one_ in judged]), torch.cat([one_[1] for one_ in judged])
        position = rng.sub("plane").uniform("position", (SAMPLES, 1), dtype=x.dtype)
        scale = method.draw_scale(rng.sub("plane"), SAMPLES, x.dtype)[:, :1]
        here = slice(row, row + 1)
        points = (
            method.points(x[here], ends.first[here], ends.end[here], position, scale).flatten(0, 1).flatten(1) - start
        )
        mass = distance_aware(scale.flatten(), method.scale, method.mass_high, method.mass_low)
        named = torch.stack([part.reshape(x.shape[1:]) for part in corners.values()])
        seen = _judged(model, named, label)[1]
    return {
        "id": int(chosen.ids[row]),
        "label": int(label),
        "a": _short(along),
        "b": _short(across),
        "loss": [_short(line) for line in loss.reshape(side, side).tolist()],
        "classes": taken.reshape(side, side).tolist(),
        "points": {name: _short(pair) for name, pair in at.items()},
        "taken": dict(zip(corners, seen.tolist(), strict=True)),
        "tau": int(ends.tau[row]),
        "samples": [_short([float(p @ one) / unit, float(p @ two) / unit]) for p in points],
        "mass": _short(mass.tolist()),
        "method": repr(method),
        "norm": ball.norm,
        "eps": ball.eps,
    }


def _judged(model: nn.Module, points: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy against the label and the class taken for, float64 and int64 [N] on the cpu."""
    with torch.no_grad():
        logits = widened(model(points.clamp(0.0, 1.0)))
    return cross_entropy(logits, label.expand(len(points))).double().cpu(), logits.argmax(dim=1).cpu()


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm().clamp_min(1e-30)
    return vector / length


def _short(values: object) -> list[float]:
    return [float(f"{value:.4g}") for value in values]  # type: ignore[attr-defined]


__all__ = ["plane"]
