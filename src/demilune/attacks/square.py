"""Square: random search with square-shaped changes, which needs no gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import NamedTuple, final

import torch
from torch import Tensor

from demilune.attacks.base import TINY, Attack, Model, Search, breach, quick, unsure
from demilune.attacks.judge import correct
from demilune.core.geometry import Ball, per_image
from demilune.core.random import Stream
from demilune.errors import DemiluneError

Window = tuple[EllipsisType, slice, slice]

_WHOLE: Window = (..., slice(None), slice(None))

_LAST = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The last query (counted from 0) before the share of pixels is halved once more."""

_BLOCK = 500
"""How many queries are drawn at once: addressing a draw costs more than many of its numbers."""


class _Standing(NamedTuple):
    """The images still right: their rows in the batch, origins [n,C,H,W], labels, best points and margins [n]."""

    rows: Tensor
    x: Tensor
    y: Tensor
    point: Tensor
    value: Tensor


Proposal = tuple[Window, Callable[[_Standing], Tensor]]
"""Where the next query changes anything, and the points [n,C,H,W] it tries, from the images still right."""


@final
@dataclass(frozen=True, slots=True)
class Square(Attack):
    """Random search on the margin max_{i≠y} z_i - z_y, with changes in squares (attacks.md 6.3, 6.8).

    linf: x_0 = x ± ε in vertical stripes, one sign for an image, channel and column; a query adds ±2ε, one sign for a
    channel, in one s by s window and projects. l2: x_0 = x + ε of a grid of bumps, one sign for an image, channel and
    bump; a query moves the change's length of two windows into the first, in the shape of a bump plus what is there,
    and rescales the whole to ε. Both end clamped to [0,1]. A point is taken where the margin rises, and an image is
    done where the margin reaches 0. s = √(p_i H W), p_i = p halved after the queries 10, 50, 200, 500, 1000, 2000,
    4000, … (not rescaled to the number of queries, as in AutoAttack). Windows (and linf signs) are shared by all
    images. Runs without gradients. Source: Andriushchenko et al. 2020 and the released code of AutoAttack.

    queries: number of queries after the start's
    p: share of an image's pixels that a window first covers
    restarts: runs, each on the images that none before has broken
    """

    queries: int = 5000
    p: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.queries < 0 or self.restarts < 1:
            raise DemiluneError(
                f"queries = {self.queries}, restarts = {self.restarts}: they must be 0 or more, and 1 or more"
            )
        if not 0.0 < self.p <= 1.0:
            raise DemiluneError(f"p = {self.p:g}: a share of the pixels is above 0 and at most 1")

    def perturb(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Tensor:
        """Return the point of largest margin that was queried."""
        if x.dim() != 4:
            raise DemiluneError(f"Square was given images {list(x.shape)}: it needs [N,C,H,W], for windows in them")
        best, value = x, torch.full((len(x),), float("-inf"), device=x.device)
        with torch.no_grad():
            for restart in range(self.restarts):
                rows = (value <= 0).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                point, height = self._search(model, x[rows], y[rows], ball, rng.take(rows).sub("restart", restart))
                better = height > value[rows]
                best = best.index_copy(0, rows, torch.where(per_image(better, x), point, best[rows]))
                value = value.index_copy(0, rows, torch.where(better, height, value[rows]))
        return best

    def _search(self, model: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> tuple[Tensor, Tensor]:
        """Return the last point taken and its margin; an image is queried no more once it is broken."""
        start, proposals = (_stripes, _squares) if ball.norm == "linf" else (_bumps, _transfers)
        point = start(x, ball, rng.sub("start"))
        height, doubt = _asked(model, point, y)
        best, value = torch.empty_like(point), torch.empty_like(height)
        now = _Standing(torch.arange(len(x), device=x.device), x, y, point, height)
        now = _broken_out(now, _broken(model, now, doubt), best, value)
        for window, proposed in proposals(self.queries, self.p, x, ball, rng):
            if len(now.rows) == 0:
                break
            point = proposed(now)
            height, doubt = _asked(model, point, now.y)
            better = height > now.value
            now.point[window] = torch.where(per_image(better, point), point[window], now.point[window])
            now = now._replace(value=torch.where(better, height, now.value))
            now = _broken_out(now, _broken(model, now, better & doubt), best, value)
        best.index_copy_(0, now.rows, now.point)
        value.index_copy_(0, now.rows, now.value.clamp_max(0.0))
        return best, value


def _asked(model: Model, point: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's margin [n] as the search sees it, and where that may be a misclassified image, bool [n].

    The released code leaves an image at margin 0, a tie that the judge may decide for the label: no sound exit.
    """
    logits = quick(model)(point)
    height = breach(logits, y)
    return height, unsure(model, logits, height)


def _broken(model: Model, now: _Standing, doubt: Tensor) -> Tensor:
    """Return which of the images are broken, bool [n]; low precision is never believed, its doubts are looked into."""
    if isinstance(model, Search) and bool(doubt.any()):
        asked = doubt.nonzero().squeeze(1)
        return doubt.index_copy(0, asked, ~correct(model, now.point[asked], now.y[asked]))
    return doubt


def _broken_out(now: _Standing, broken: Tensor, best: Tensor, value: Tensor) -> _Standing:
    """Return the images still right; where that is not all, write the state down first."""
    left = (~broken).nonzero().squeeze(1)
    if len(left) == len(now.rows):
        return now
    best.index_copy_(0, now.rows, now.point)
    value.index_copy_(0, now.rows, torch.where(broken, now.value.clamp_min(TINY), now.value))
    return _Standing(*(field[left] for field in now))


# linf


def _stripes(x: Tensor, ball: Ball, rng: Stream) -> Tensor:
    n, channels, _, width = x.shape
    return (x + ball.eps * _signs(rng, "stripes", (n, channels, 1, width), x)).clamp(0.0, 1.0)


def _squares(queries: int, p: float, x: Tensor, ball: Ball, rng: Stream) -> Iterator[Proposal]:
    """Yield the queries of the linf attack: a window and a sign for each channel, shared by all images."""
    channels, height, width = x.shape[1:]
    for first, count, share in _blocks(queries, p):
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        shared = rng.images(None).sub("queries", first)
        shifts = 2.0 * ball.eps * _signs(shared, "signs", (count, channels, 1, 1), x)
        for window, shift in zip(_windows(shared, "window", count, side, x), shifts.unbind(), strict=True):
            yield window, partial(_repainted, ball=ball, window=window, shift=shift)


def _repainted(now: _Standing, ball: Ball, window: Window, shift: Tensor) -> Tensor:
    """Return the best points with one window shifted; outside it they are in the ball already."""
    point = now.point.clone()
    point[window] = ball.project(point[window] + shift, now.x[window])
    return point


# l2


def _bumps(x: Tensor, ball: Ball, rng: Stream) -> Tensor:
    """Return x + ε δ/‖δ‖₂ for a grid of bumps, five by five on images of 32 by 32."""
    n, channels, height, width = x.shape
    side = max(height // 5, 1)
    begin = max((height - 5 * side) // 2, 0)
    places = [
        (top, left) for top in range(begin, height - side + 1, side) for left in range(begin, width - side + 1, side)
    ]
    bump, delta = _bump(side, x), torch.zeros_like(x)
    turned = rng.images(None).integers("turned", (len(places),), 0, 2).tolist()
    signs = _signs(rng, "signs", (n, len(places), channels, 1, 1), x)
    for number, (top, left) in enumerate(places):
        delta[_window(top, left, side)] = signs[:, number] * (bump.T if turned[number] else bump)
    return _rescaled(x, delta, ball)


def _transfers(queries: int, p: float, x: Tensor, ball: Ball, rng: Stream) -> Iterator[Proposal]:
    """Yield the queries of the l2 attack: two windows and how the bump lies, shared; a sign per image and channel."""
    n, channels, height, width = x.shape
    for first, count, share in _blocks(queries, p):
        side = max(round(math.sqrt(share * height * width)), 3) | 1  # odd
        side = min(side, height, width)
        draws = rng.sub("queries", first)
        shared, upright = draws.images(None), _bump(side, x)
        bumps, signs = (upright, upright.T), _signs(draws, "signs", (n, count, channels, 1, 1), x)
        turned = shared.integers("turned", (count,), 0, 2).tolist()
        ones, twos = _windows(shared, "window", count, side, x), _windows(shared, "second", count, side, x)
        for number, (one, two) in enumerate(zip(ones, twos, strict=True)):
            bump, sign = bumps[turned[number]], signs[:, number]
            yield _WHOLE, partial(_transferred, ball=ball, one=one, two=two, bump=bump, signs=sign)


def _transferred(now: _Standing, ball: Ball, one: Window, two: Window, bump: Tensor, signs: Tensor) -> Tensor:
    """Return points whose change in the window ``two`` is gone, and in ``one`` is old and new shape with its length.

    The length of a channel of the new window is √(max(ε² - ‖δ‖², 0)/C + what both windows held²).
    """
    delta = now.point - now.x
    unused = (ball.eps**2 - _length(delta, (1, 2, 3)).square()).clamp_min(0.0) / delta.shape[1]
    inside = _length(delta[one], (2, 3))
    shape = bump * signs[now.rows] + delta[one] / (1e-12 + inside)
    delta[one] = 0.0
    held = inside.square() + _length(delta[two], (2, 3)).square()
    delta[two] = 0.0
    delta[one] = shape / (1e-12 + _length(shape, (2, 3))) * (unused + held).sqrt()
    return _rescaled(now.x, delta, ball)


def _bump(side: int, like: Tensor) -> Tensor:
    """Return a bump [s,s] of length 1: the upper half rises to the middle of its rectangle, the lower half sinks.

    In a rectangle, a pixel at Chebyshev distance D of the middle has Σ_{k=D+1}^{m+1} 1/k², m the largest D, divided by
    the rectangle's length.
    """
    halves = [sign * _pyramid(rows, side) for sign, rows in ((1.0, side // 2), (-1.0, side - side // 2))]
    whole = torch.cat(halves)
    return (whole / _length(whole, (0, 1))).to(like)


def _pyramid(rows: int, columns: int) -> Tensor:
    down, across = ((torch.arange(size) - size // 2).abs() for size in (rows, columns))
    distance = torch.maximum(down[:, None], across[None, :])
    terms = torch.arange(1, max(rows // 2, columns // 2) + 2, dtype=torch.float64) ** -2
    values = terms.flip(0).cumsum(0).flip(0)[distance]
    return values / _length(values, (0, 1))


def _rescaled(x: Tensor, delta: Tensor, ball: Ball) -> Tensor:
    return (x + delta / (_length(delta, (1, 2, 3)) + 1e-12) * ball.eps).clamp(0.0, 1.0)


def _length(delta: Tensor, axes: tuple[int, ...]) -> Tensor:
    return delta.square().sum(dim=axes, keepdim=True).sqrt()


# draws


def _blocks(queries: int, p: float) -> Iterator[tuple[int, int, float]]:
    """Yield (first query, number of queries, share of the pixels) until ``queries`` are given out."""
    begin = 0
    for halvings, last in enumerate((*_LAST, queries - 1)):
        end = min(last + 1, queries)
        for first in range(begin, end, _BLOCK):
            yield first, min(_BLOCK, end - first), p / 2**halvings
        begin = end


def _windows(rng: Stream, purpose: str, count: int, side: int, x: Tensor) -> list[Window]:
    """Draw windows of s by s pixels; the last offset is never drawn, as in the released code."""
    height, width = x.shape[2:]
    tops = rng.integers(f"{purpose} top", (count,), 0, height - side).tolist()
    lefts = rng.integers(f"{purpose} left", (count,), 0, width - side).tolist()
    return [_window(top, left, side) for top, left in zip(tops, lefts, strict=True)]


def _window(top: int, left: int, side: int) -> Window:
    return ..., slice(top, top + side), slice(left, left + side)


def _signs(rng: Stream, purpose: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    return (2 * rng.integers(purpose, shape, 0, 2) - 1).to(like)
