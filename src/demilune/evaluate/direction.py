"""RAT's Fig. 2 on many images: loss and verdict on the way in a random direction of the region that an attack spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from demilune.attacks import Model, correct, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, others, widened
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.methods import RAT, Batch
from demilune.surveys import Direction

SCALES = tuple(k / 10 for k in range(21))
"""s = 0, 0.1, …, 2: the grid that RAT trains on (CIFAR)."""

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def direction(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    method: RAT = RAT(),
    scales: Sequence[float] = SCALES,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Direction:
    """Walk from every image that is right in one direction x̄ - x, and measure at each s (rat.md E8).

        x̂(s) = x + s (x̄ - x),   x̄ = λ x_f + (1 - λ) x_e,   λ ~ U(0,1), one per image, the same at every s

    ``method`` gives attack, region and clamping; its own scales and labels play no part. The network is in eval mode
    and float32, and nothing of it changes. Draws are addressed by image, so ``batch`` changes none. ``watch`` is told
    how many images are done, of how many.
    Raises DemiluneError where no image is right, or a loss is no number.
    """
    found = []
    with frozen(model, "eval"), seeded(rng.sub("direction"), split.ids.device):
        for rows in torch.arange(len(split)).split(batch):
            part = split.take(rows.to(split.ids.device))
            right = correct(model, layout(part.pixels(slice(None))), part.labels)
            found.append(walked(model, part.take(right), ball, rng, method, scales, layout))
            watch(int(rows[-1]) + 1, len(split))
    table = torch.cat(found, dim=1)
    if table.shape[1] == 0:
        raise DemiluneError(f"none of {len(split)} images is classified correctly: there is nothing to walk from")
    loss, right, mass, other = table.unbind(2)
    levels = torch.tensor(LEVELS, dtype=loss.dtype)
    return Direction(
        scales=tuple(scales),
        loss=tuple(loss.mean(dim=1).tolist()),
        spread=tuple(loss.std(dim=1, correction=min(1, loss.shape[1] - 1)).tolist()),
        levels=LEVELS,
        quantiles=tuple(map(tuple, torch.quantile(loss, levels, dim=1).T.tolist())),
        right=tuple(right.sum(dim=1).long().tolist()),
        mass=tuple(mass.mean(dim=1).tolist()),
        other=tuple(other.mean(dim=1).tolist()),
        n=loss.shape[1],
        images=len(split),
        method=repr(method),
        norm=ball.norm,
        eps=ball.eps,
    )


def walked(
    model: nn.Module,
    part: Split,
    ball: Ball,
    rng: Stream,
    method: RAT,
    scales: Sequence[float],
    layout: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return what :func:`measured` says of each image at each s, float64 [S,N,4] on the cpu."""
    if len(part) == 0:
        return torch.zeros(len(scales), 0, 4, dtype=torch.float64)
    x, y, draws = layout(part.pixels(slice(None))), part.labels, rng.images(part.ids)
    # The path alone is read, in which neither the number of classes nor the epoch plays a part.
    ends = method.ends(model, Batch(x, y, 0, part.ids, 0), ball, draws)
    position = draws.sub("direction").uniform("position", (len(x), 1), dtype=x.dtype).T
    found = []
    for scale in scales:
        points = method.points(x, ends.first, ends.end, position, torch.full_like(position, scale))
        found.append(measured(model, layout(points[0]), y))
    return torch.stack(found)


def measured(model: Model, points: Tensor, y: Tensor) -> Tensor:
    """Return cross-entropy, whether right, and the probabilities of y and of the likeliest other class, [N,4]."""
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        logits = widened(model(points))
    right = correct(lambda _: logits, points, y)  # the judge's rule on logits that are there already
    chances = logits.softmax(dim=1)
    mass = chances.gather(1, y[:, None]).squeeze(1)
    return torch.stack([cross_entropy(logits, y), right, mass, others(chances, y)], dim=1).double().cpu()


__all__ = ["LEVELS", "SCALES", "direction"]
