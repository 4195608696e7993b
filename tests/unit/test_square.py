"""Square where the answer is known: linear models, the schedule, the windows it may draw, and images that leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from conftest import batch_of, stream, tiny
from demilune.attacks.base import breach
from demilune.attacks.judge import correct, judged
from demilune.attacks.square import Square, _blocks
from demilune.core.geometry import Ball, Norm
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

BALLS = {"linf": Ball("linf", 0.06), "l2": Ball("l2", 0.6)}
every_norm = pytest.mark.parametrize("norm", BALLS)


class Recorded:
    """A model that keeps what it is asked and what it answers."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model, self.asked, self.told = model, list[Tensor](), list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append(x.clone())
        self.told.append(self.model(x))
        return self.told[-1]

    @property
    def sizes(self) -> list[int]:
        return [len(x) for x in self.asked]


def network_case(n: int = 16, norm: Norm = "linf") -> tuple[nn.Module, Batch, Ball]:
    """Return a network and images it has right, of which a short attack breaks some."""
    model, batch = tiny(seed=2).eval(), batch_of(n)
    with torch.no_grad():
        model.net.linear.bias -= model(batch.x).mean(dim=0)
        y = model(batch.x).argmax(dim=1)
    return model, batch._replace(y=y), Ball(norm, {"linf": 0.02, "l2": 0.1}[norm])


def sure(x: Tensor) -> Tensor:
    """Answer class 0 whatever the image."""
    return torch.tensor([1.0, 0.0]).expand(len(x), 2)


def inner(n: int, shape: tuple[int, ...] = (3, 8, 8)) -> Tensor:
    """Return images that no ball here reaches out of the box from."""
    return Stream.of(1).uniform("x", (n, *shape), 0.3, 0.7)


def zeros(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.int64)


def rng_of(n: int) -> Stream:
    return Stream.of(0, "square").images(torch.arange(50, 50 + n))


# what it reaches


@pytest.mark.parametrize(("norm", "reach"), [("linf", 0.8), ("l2", 0.5)])
def test_on_a_linear_model_images_break_near_the_best_radius_and_none_below(norm: Norm, reach: float) -> None:
    """The weights are +1 and -1 on the two halves of an image, as squares can follow; distances from 0.3 to 1.3 ε.

    The windows of linf never reach the last row and column: of 16 by 16 pixels it can turn 88 %.
    """
    halves = torch.where(torch.arange(16) < 8, 1.0, -1.0)[:, None].expand(16, 16)
    share, ball = torch.linspace(0.3, 1.3, 50), Ball(norm, {"linf": 0.06, "l2": 0.96}[norm])
    x = 0.5 + 0.06 * share.reshape(50, 1, 1, 1) * halves

    def model(images: Tensor) -> Tensor:
        side = ((images - 0.5) * halves).flatten(1).sum(dim=1)
        return torch.stack((side, -side), dim=1)

    found = Square(300)(model, x, zeros(x), ball, rng_of(50))
    right = judged(model, x, found, zeros(x), ball)
    assert not right[share < reach].any()
    assert right[share > 1].all()


@every_norm
def test_the_point_of_largest_margin_is_returned(norm: Norm) -> None:
    model, batch, ball = network_case(norm=norm)
    asked = Recorded(model)
    found = Square(60)(asked, batch.x, batch.y, ball, stream(batch))
    right = judged(model, batch.x, found, batch.y, ball)
    assert 0 < int(right.sum()) < 16
    last = int(right.nonzero()[0])
    alone = Recorded(model)
    rows = torch.tensor([last])
    Square(60)(alone, batch.x[rows], batch.y[rows], ball, stream(batch).take(rows))
    heights = torch.stack([breach(logits, batch.y[rows]) for logits in alone.told])
    assert torch.allclose(breach(model(found[rows]), batch.y[rows]), heights.amax(dim=0), atol=1e-6)


@every_norm
def test_all_that_is_asked_is_allowed(norm: Norm) -> None:
    batch, ball = batch_of(1), BALLS[norm]
    for n, x in ((1, batch.x), (1, batch.x.round()), (1, inner(1, (1, 8, 8)))):
        asked = Recorded(sure)
        found = Square(100)(asked, x, zeros(x), ball, rng_of(n))
        for point in (*asked.asked, found):
            assert point.min() >= 0
            assert point.max() <= 1
            assert float(ball.distance(point.double(), x.double())) <= ball.eps + (1e-7 if norm == "linf" else 1e-6)


@every_norm
def test_inside_the_box_the_whole_radius_is_used(norm: Norm) -> None:
    x, ball = inner(2), BALLS[norm]
    asked = Recorded(sure)
    Square(100)(asked, x, zeros(x), ball, rng_of(2))
    for point in asked.asked:
        used = (point - x).abs() if norm == "linf" else (point - x).flatten(1).norm(dim=1)
        assert torch.allclose(used, torch.full_like(used, ball.eps), atol=1e-6)


# the schedule and the draws


def test_the_share_of_pixels_is_halved_where_the_released_code_halves_it() -> None:
    def share(query: int) -> float:
        lasts = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
        return 0.8 / 2 ** sum(query > last for last in lasts)

    for queries in (0, 1, 11, 12, 51, 700, 5000, 9001):
        given = [(first + i, p) for first, count, p in _blocks(queries, 0.8) for i in range(count)]
        assert given == [(query, share(query)) for query in range(queries)]
        assert all(count <= 500 for _, count, _ in _blocks(queries, 0.8))


def test_a_linf_query_changes_one_window_in_the_same_place_of_every_image() -> None:
    """One sign a channel; the side follows the schedule; the last row and column are never reached."""
    x, ball = inner(4), BALLS["linf"]
    asked = Recorded(sure)  # no query is ever better: each changes the start
    Square(600)(asked, x, zeros(x), ball, rng_of(4))
    start, reached = asked.asked[0], torch.zeros(8, 8, dtype=torch.bool)
    stripes = start - x
    assert torch.allclose(stripes, stripes[:, :, :1].expand_as(x), atol=1e-6)
    assert len((stripes[:, :, 0] > 0).flatten().unique()) == 2
    lows: list[tuple[int, int]] = []
    for number, point in enumerate(asked.asked[1:]):
        share = 0.8 / 2 ** sum(number > last for last in (10, 50, 200, 500))
        side = max(round(math.sqrt(share * 64)), 1)
        changed = (point != start).flatten(0, 1).any(dim=0)
        if not changed.any():
            continue  # every stripe there had the sign drawn
        rows, columns = (changed.any(dim=axis).nonzero().squeeze(1) for axis in (1, 0))
        assert int(rows[-1] - rows[0]) + 1 == side  # columns may have had the sign in every image
        assert int(columns[-1] - columns[0]) + 1 <= side
        signs = (point - x)[:, :, rows[0], columns[0]].sign()
        assert (signs == signs[:1]).all()
        reached |= changed
        lows.append((int(rows[0]), int(columns[0])))
    assert not reached[-1].any()
    assert not reached[:, -1].any()
    assert reached[:-1, :-1].all()
    assert len(set(lows)) > 30


def test_an_l2_query_empties_one_window_and_fills_another() -> None:
    """Windows of 5 by 5 (√20 and odd) after query 50; elsewhere the change keeps its shape; all images share places."""
    x, ball = inner(3, (3, 10, 10)), BALLS["l2"]
    asked = Recorded(sure)
    Square(90)(asked, x, zeros(x), ball, rng_of(3))
    start, emptied = asked.asked[0] - x, 0
    for point in asked.asked[52:]:
        gone = ((point - x).abs() < 1e-7).all(dim=1)
        assert torch.equal(gone, gone[:1].expand_as(gone))
        assert int(gone[0].sum()) <= 25
        emptied += bool(gone.any())
        ratio = (point - x) / start
        scale = ratio.flatten(2).median(dim=2).values[:, :, None, None]
        changed = ((ratio - scale).abs() > 0.01).flatten(0, 1).any(dim=0)
        assert 9 <= int(changed.sum()) <= 50
    assert emptied > 20


def test_l2_signs_are_an_images_own() -> None:
    x, ball = inner(1, (3, 10, 10)).expand(6, 3, 10, 10), BALLS["l2"]
    asked = Recorded(sure)
    Square(3)(asked, x, zeros(x), ball, rng_of(6))
    for point in asked.asked:
        assert len((point - x).flatten(1).unique(dim=0)) == 6


@every_norm
def test_a_short_attack_is_the_beginning_of_a_long_one(norm: Norm) -> None:
    model, batch, ball = network_case(norm=norm)
    short, long = Recorded(model), Recorded(model)
    Square(70)(short, batch.x, batch.y, ball, stream(batch))
    Square(120)(long, batch.x, batch.y, ball, stream(batch))
    assert all(torch.equal(one, other) for one, other in zip(short.asked, long.asked, strict=False))


@every_norm
def test_batch_mates_and_places_change_nothing(norm: Norm) -> None:
    model, batch, ball = network_case(norm=norm)
    together = Square(60, restarts=2)(model, batch.x, batch.y, ball, stream(batch))
    assert torch.equal(Square(60, restarts=2)(model, batch.x, batch.y, ball, stream(batch)), together)
    for rows in (torch.tensor([3]), torch.tensor([9, 1, 12])):
        some = Square(60, restarts=2)(model, batch.x[rows], batch.y[rows], ball, stream(batch).take(rows))
        assert torch.allclose(some, together[rows], atol=1e-5)
    other = Square(60)(model, batch.x, batch.y, ball, Stream.of(9).images(batch.ids))
    assert not torch.equal(other, together)


# images leave


@every_norm
def test_a_survivor_costs_the_queries_and_one_and_a_broken_image_one(norm: Norm) -> None:
    x = inner(5)
    y = torch.tensor([0, 1, 0, 1, 1])
    asked = Recorded(sure)
    Square(30)(asked, x, y, BALLS[norm], rng_of(5))
    assert asked.sizes == [5] + 30 * [2]
    asked = Recorded(sure)
    Square(30)(asked, x, torch.ones_like(y), BALLS[norm], rng_of(5))
    assert asked.sizes == [5]


@every_norm
def test_images_leave_at_the_query_that_breaks_them(norm: Norm) -> None:
    model, batch, ball = network_case(norm=norm)
    asked = Recorded(model)
    found = Square(80)(asked, batch.x, batch.y, ball, stream(batch))
    rows = torch.arange(16)
    for number, logits in enumerate(asked.told):
        assert len(logits) == len(rows)
        broken = breach(logits, batch.y[rows]) >= 0
        assert torch.equal(found[rows[broken]], asked.asked[number][broken])
        rows = rows[~broken]
    assert torch.equal(correct(model, found, batch.y).nonzero().squeeze(1), rows)
    assert len(asked.sizes) == 81
    assert len(set(asked.sizes)) > 3
    assert all(after <= before for before, after in pairwise(asked.sizes))


@every_norm
def test_restarts_ask_only_of_images_that_stand_and_look_elsewhere(norm: Norm) -> None:
    model, batch, ball = network_case(norm=norm)
    one, two = Recorded(model), Recorded(model)
    first = Square(40)(one, batch.x, batch.y, ball, stream(batch))
    both = Square(40, restarts=2)(two, batch.x, batch.y, ball, stream(batch))
    assert all(torch.equal(a, b) for a, b in zip(one.asked, two.asked, strict=False))
    left = correct(model, first, batch.y)
    assert two.sizes[41] == int(left.sum())
    assert not torch.equal(two.asked[41], two.asked[0][left])
    assert torch.equal(both[~left], first[~left])
    assert (breach(model(both), batch.y) >= breach(model(first), batch.y) - 1e-6).all()


@every_norm
def test_logits_that_are_no_numbers_are_broken(norm: Norm) -> None:
    x = inner(3)
    asked = Recorded(
        lambda images: sure(images) * torch.where(torch.arange(len(images)) == 1, float("nan"), 1.0)[:, None]
    )
    found = Square(10)(asked, x, zeros(x), BALLS[norm], rng_of(3))
    assert asked.sizes[:3] == [3, 2, 1]
    assert found.isfinite().all()


# odd images


@every_norm
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 3), (1, 3, 3), (2, 4, 9), (1, 14, 7), (1, 28, 28)])
@pytest.mark.parametrize("p", [0.8, 1e-6, 1.0])
def test_images_of_any_size_are_attacked(norm: Norm, shape: tuple[int, ...], p: float) -> None:
    x, ball = inner(2, shape).double(), Ball(norm, 0.06)
    found = Square(15, p)(sure, x, zeros(x), ball, rng_of(2))
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    assert torch.allclose(ball.distance(found, x), torch.full((2,), ball.eps, dtype=torch.float64), atol=1e-6)


@every_norm
def test_radius_zero_gives_the_image_back(norm: Norm) -> None:
    x = inner(2)
    assert torch.equal(Square(15)(sure, x, zeros(x), Ball(norm, 0.0), rng_of(2)), x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Square(queries=-1),
        lambda: Square(p=0.0),
        lambda: Square(p=1.5),
        lambda: Square(p=float("nan")),
        lambda: Square(restarts=0),
        lambda: Square(5)(sure, inner(2).flatten(1), torch.tensor([0, 0]), BALLS["linf"], rng_of(2)),
    ],
)
def test_what_means_nothing_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DemiluneError):
        make()
