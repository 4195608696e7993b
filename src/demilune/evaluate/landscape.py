"""The loss over a plane of two directions: of the weights (Li et al., NeurIPS 2018), or of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import PGD, Attack, Model, frozen, seeded
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.regions import segment
from demilune.core.weights import gaussian, movable, moved
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate.direction import measured
from demilune.surveys import Landscape, Space

SPAN = tuple(k / 10 for k in range(-10, 11))
"""-1, -0.9, …, 1."""

AHEAD = tuple(k / 8 for k in range(-8, 17))
"""-1, -0.875, …, 2: from behind the image to as far beyond the adversarial point as RAT trains."""


def weight_landscape(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    attack: Attack | None = PGD(),
    a: Sequence[float] = SPAN,
    b: Sequence[float] = SPAN,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Landscape:
    """Return the mean loss at w + a d + b e, for filter-normalised random directions d and e (rwp.md 15).

    Adversarial examples are made anew at every point of the plane, against the network as it stands there (AWP's
    protocol), from the same random starts everywhere; with ``attack`` None the images are clean. With ``b`` = (0,)
    it is AWP's curve. The network is in eval mode; its weights come back bit for bit, and its batch-norm statistics
    are those of w everywhere. ``watch`` is told how many images are done, over all points, of how many.
    Raises DemiluneError where nothing of the network can be moved, or a loss is no number.
    """
    weights = movable(model)
    if not weights:
        raise DemiluneError("the network has no weights of two dimensions or more: it has no landscape in them")
    first, second = (filter_normalised(weights, rng.sub("landscape", name)) for name in ("first", "second"))
    loss, right = _tables(a, b)
    total = len(split) * len(a) * len(b)
    with frozen(model, "eval"), seeded(rng.sub("landscape"), split.ids.device):
        for i, j in _places(a, b):
            begun = (i * len(b) + j) * len(split)
            with moved(model, {name: a[i] * first[name] + b[j] * second[name] for name in weights}):
                for rows in torch.arange(len(split)).split(batch):
                    part = split.take(rows.to(split.ids.device))
                    x, y = layout(part.pixels(slice(None))), part.labels
                    points = x if attack is None else attack(model, x, y, ball, rng.images(part.ids))
                    _add(loss, right, (i, j), model, points, y)
                    watch(begun + int(rows[-1]) + 1, total)
    axes = ("first random direction, filter norms", "second random direction, filter norms")
    return _landscape("weights", axes, a, b, loss, right, len(split), attack, _cosine(first, second), ball)


def input_landscape(
    model: nn.Module,
    split: Split,
    ball: Ball,
    rng: Stream,
    attack: Attack = PGD(),
    a: Sequence[float] = AHEAD,
    b: Sequence[float] = SPAN,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Landscape:
    """Return the mean loss at clamp(x + a (x' - x) + b r, 0, 1), with x' the attack's point and r random.

    r has length ε in the ball's norm: ε · (±1 for each number) for linf, ε g/‖g‖ with g ~ N(0, I) for l2. Such a
    direction is nearly, not exactly, orthogonal to x' - x; the landscape says how nearly. a = 1, b = 0 is x' to the
    bit. Every image has its own directions, and the loss is the mean over images. The network is in eval mode, and
    nothing of it changes. ``watch`` is told how many images are done, over all points, of how many.
    Raises DemiluneError where a loss is no number.
    """
    loss, right = _tables(a, b)
    cosine = torch.zeros((), dtype=torch.float64)
    points_in_all, done = len(a) * len(b), 0
    with frozen(model, "eval"), seeded(rng.sub("landscape"), split.ids.device):
        for rows in torch.arange(len(split)).split(batch):
            part = split.take(rows.to(split.ids.device))
            x, y, draws = layout(part.pixels(slice(None))), part.labels, rng.images(part.ids)
            end = attack(model, x, y, ball, draws)
            side = ball.eps * ball.steepest(draws.sub("landscape").normal("second", x.shape, dtype=x.dtype))
            between = F.cosine_similarity((end - x).flatten(1).double(), side.flatten(1).double(), dim=1)
            cosine += between.abs().sum().cpu()
            for i, j in _places(a, b):
                there = segment(x, end, torch.full((), a[i], dtype=x.dtype, device=x.device)) + b[j] * side
                _add(loss, right, (i, j), model, layout(there.clamp(0.0, 1.0)), y)
                done += len(rows)
                watch(done, points_in_all * len(split))
    axes = ("towards the adversarial point, which is 1", "random direction, in units of ε")
    return _landscape("input", axes, a, b, loss, right, len(split), attack, float(cosine) / len(split), ball)


def filter_normalised(weights: Mapping[str, Tensor], rng: Stream) -> dict[str, Tensor]:
    """Draw d ~ N(0, I) and give each filter the norm of the weights' own: d_f ← d_f ‖w_f‖/‖d_f‖ (Li et al. 2018).

    A filter is what gives one output: all of w[f] in a convolution or a linear layer. Other parameters stay.
    """
    drawn = gaussian(weights, 1.0, rng)
    return {name: drawn[name] * (_norms(w) / _norms(drawn[name])).to(w.dtype) for name, w in weights.items()}


def _norms(tensor: Tensor) -> Tensor:
    """Return the norm of each filter, float64 [F,1,…]."""
    dims = tuple(range(1, tensor.dim()))
    length: Tensor = torch.linalg.vector_norm(tensor.detach(), dim=dims, keepdim=True, dtype=torch.float64)
    return length


def _cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    def product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
        return sum(float((one[name] * other[name]).sum(dtype=torch.float64)) for name in one)

    lengths = product(first, first) * product(second, second)
    return abs(product(first, second)) / lengths**0.5 if lengths > 0.0 else 0.0


def _places(a: Sequence[float], b: Sequence[float]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(a)) for j in range(len(b))]


def _tables(a: Sequence[float], b: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return sums of losses and counts of right images, both 0, [A,B]."""
    shape = (len(a), len(b))
    return torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.int64)


def _add(loss: Tensor, right: Tensor, place: tuple[int, int], model: Model, points: Tensor, y: Tensor) -> None:
    found = measured(model, points, y)
    loss[place] += found[:, 0].sum()
    right[place] += found[:, 1].sum().long()


def _landscape(
    space: Space,
    axes: tuple[str, str],
    a: Sequence[float],
    b: Sequence[float],
    loss: Tensor,
    right: Tensor,
    n: int,
    attack: Attack | None,
    cosine: float,
    ball: Ball,
) -> Landscape:
    return Landscape(
        space=space,
        axes=axes,
        a=tuple(a),
        b=tuple(b),
        loss=tuple(map(tuple, (loss / n).tolist())),
        right=tuple(map(tuple, right.tolist())),
        n=n,
        examples="clean" if attack is None else repr(attack),
        cosine=cosine,
        norm=ball.norm,
        eps=ball.eps,
    )


__all__ = ["AHEAD", "SPAN", "filter_normalised", "input_landscape", "weight_landscape"]
