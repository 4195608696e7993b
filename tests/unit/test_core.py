"""The pure maths: addressed draws, the ball, losses, targets and regions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.core.geometry import Ball, Norm, per_image
from demilune.core.losses import cross_entropy, margin, others, targeted_margin
from demilune.core.random import Stream
from demilune.core.regions import segment, triangle
from demilune.core.targets import distance_aware, entropy, one_hot, smooth
from demilune.core.weights import convolutions, penultimate
from demilune.errors import DemiluneError
from demilune.methods.gairat import balanced

WORD = (1 << 64) - 1
DRAWS: dict[str, Callable[[Stream, Sequence[int]], Tensor]] = {
    "uniform": lambda rng, shape: rng.uniform("draw", shape),
    "normal": lambda rng, shape: rng.normal("draw", shape),
    "integers": lambda rng, shape: rng.integers("draw", shape, 0, 1 << 30),
}
NORMS: tuple[Norm, ...] = ("linf", "l2")
property_test = settings(max_examples=60, deadline=None, derandomize=True, database=None)
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def mixed(state: int) -> int:
    """SplitMix64's output function in Python's integers."""
    state &= WORD
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & WORD
    return state ^ (state >> 31)


# Stream


@every_draw
def test_the_same_address_gives_the_same_bits(draw: Callable[[Stream, Sequence[int]], Tensor]) -> None:
    one, other = (Stream.of(3, "a").sub("b", 4).images(torch.arange(5)) for _ in range(2))
    assert torch.equal(draw(one, (5, 2, 3)), draw(other, (5, 2, 3)))
    assert torch.equal(draw(one, (5, 2, 3)), draw(one, (5, 2, 3)))
    assert torch.equal(draw(Stream.of(3, "a", "b"), (5,)), draw(Stream.of(3).sub("a").sub("b"), (5,)))


@every_draw
def test_another_address_gives_other_bits(draw: Callable[[Stream, Sequence[int]], Tensor]) -> None:
    ids = torch.arange(4)
    streams = [
        Stream.of(0, "a").images(ids),
        Stream.of(1, "a").images(ids),
        Stream.of(0, "b").images(ids),
        Stream.of(0, "a", "b").images(ids),
        Stream.of(0, "a", 0).images(ids),
        Stream.of(0, "a", 1).images(ids),
        Stream.of(0, "a", "1").images(ids),
        Stream.of(0, "a").images(ids + 4),
        Stream.of(0, "a"),
    ]
    rows = torch.cat([draw(rng, (4, 8)) for rng in streams])
    assert len(rows.unique(dim=0)) == len(rows)


def test_another_purpose_gives_other_bits() -> None:
    rng = Stream.of(0).images(torch.arange(3))
    assert not torch.equal(rng.uniform("one", (3, 4)), rng.uniform("other", (3, 4)))
    assert not torch.equal(rng.uniform(1, (3, 4)), rng.uniform("1", (3, 4)))
    assert rng.seed("one") != rng.seed("other")
    assert 0 <= rng.seed("one") < 1 << 63


@every_draw
def test_neither_order_nor_batch_mates_change_the_draw_of_an_image(
    draw: Callable[[Stream, Sequence[int]], Tensor],
) -> None:
    rng, ids = Stream.of(0, "a"), torch.tensor([7, 0, 123456, 3, 9])
    whole = draw(rng.images(ids), (5, 2, 4))
    for rows in (torch.tensor([4, 2, 0, 1, 3]), torch.tensor([1, 3]), torch.tensor([2])):
        assert torch.equal(draw(rng.images(ids[rows]), (len(rows), 2, 4)), whole[rows])


@every_draw
def test_take_draws_what_the_whole_draws(draw: Callable[[Stream, Sequence[int]], Tensor]) -> None:
    rng = Stream.of(0).images(torch.tensor([5, 8, 2]))
    whole = draw(rng, (3, 4))
    assert torch.equal(draw(rng.take(torch.tensor([2, 0])), (2, 4)), whole[[2, 0]])
    assert torch.equal(draw(rng.take(torch.tensor([False, True, True])), (2, 4)), whole[1:])
    shared = Stream.of(0)
    assert shared.take(torch.tensor([0])) is shared


def test_bits_are_those_of_splitmix64_in_integers_of_any_width() -> None:
    rng, gamma = Stream.of(11, "a"), 0x9E3779B97F4A7C15
    root = rng.seed("draw") << 1
    shared = [(mixed(root + (i + 1) * gamma) >> 40) * 2.0**-24 for i in range(6)]
    assert rng.uniform("draw", (2, 3)).flatten().tolist() == shared
    ids = [0, 41]
    rows = [mixed((number + 1) * gamma + root) for number in ids]
    per = [[(mixed(row + (i + 1) * gamma) >> 40) * 2.0**-24 for i in range(3)] for row in rows]
    assert rng.images(torch.tensor(ids)).uniform("draw", (2, 3)).tolist() == per
    expected = [(mixed(root + (i + 1) * gamma) >> 32) * 7 >> 32 for i in range(6)]
    assert rng.integers("draw", (6,), 0, 7).tolist() == expected


def test_uniform_draws_have_the_moments_and_the_range() -> None:
    for rng in (Stream.of(0), Stream.of(0).images(torch.arange(1000))):
        drawn = rng.uniform("draw", (1000, 100), dtype=torch.float64)
        assert 0 <= drawn.min() < 1e-3
        assert 1 - 1e-3 < drawn.max() < 1
        assert float(drawn.mean()) == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / 1e5))
        assert float(drawn.var()) == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / 1e5))
    scaled = Stream.of(0).uniform("draw", (10_000,), -0.3, 0.7)
    assert -0.3 <= scaled.min() < -0.29
    assert 0.69 < scaled.max() <= 0.7


def test_normal_draws_have_the_moments() -> None:
    for rng in (Stream.of(0), Stream.of(0).images(torch.arange(1000))):
        drawn = rng.normal("draw", (1000, 100)).double()
        for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
            assert float((drawn**power).mean()) == pytest.approx(moment, abs=5 * math.sqrt(variance / 1e5))
        rows = torch.corrcoef(drawn[:20])
        assert (rows - torch.eye(20)).abs().max() < 0.6
        assert drawn.isfinite().all()


def test_integers_are_uniform() -> None:
    drawn = Stream.of(0).images(torch.arange(70_000)).integers("draw", (70_000, 1), -2, 5)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == list(range(-2, 5))
    assert ((counts - 10_000).abs() < 5 * math.sqrt(70_000 * 6 / 49)).all()
    assert drawn.dtype == torch.int64


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_a_permutation_is_one(size: int) -> None:
    rng = Stream.of(0)
    order = rng.permutation("order", size)
    assert torch.equal(order.sort().values, torch.arange(size))
    assert torch.equal(rng.images(torch.arange(3)).permutation("order", size), order)
    if size == 1000:
        assert not torch.equal(order, torch.arange(size))
        assert not torch.equal(order, rng.permutation("other", size))


def test_uniform_draws_are_the_same_in_every_precision() -> None:
    rng = Stream.of(0)
    exact = rng.uniform("draw", (1000,), dtype=torch.float64)
    assert torch.equal(rng.uniform("draw", (1000,), dtype=torch.float32).double(), exact)
    for dtype in (torch.float16, torch.bfloat16):
        drawn = rng.uniform("draw", (1000,), dtype=dtype)
        assert drawn.dtype == dtype
        assert torch.equal(drawn, exact.to(dtype))


def test_no_draw_touches_a_global_generator() -> None:
    before, python = torch.get_rng_state(), random.getstate()
    rng = Stream.of(0).images(torch.arange(3))
    for draw in DRAWS.values():
        draw(rng, (3, 2))
    rng.permutation("draw", 5)
    rng.seed("draw")
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


def test_a_stream_of_images_refuses_another_number_of_rows() -> None:
    with pytest.raises(ValueError, match="3 images"):
        Stream.of(0).images(torch.arange(3)).uniform("draw", (2, 4))


# Ball

seeds = st.integers(0, 1 << 30)
radii = st.floats(0.0, 1.0)


def images(seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return images, some of whose pixels are on the edge of the box, and points around them."""
    rng = Stream.of(seed)
    x = rng.uniform("x", (3, 2, 3, 3), -0.2, 1.2, dtype=dtype).clamp(0, 1)
    return x, x + spread * rng.normal("point", x.shape, dtype=dtype)


@property_test
@given(seeds, radii, st.floats(0.0, 2.0))
def test_the_linf_projection_is_the_nearest_point_of_ball_and_box(seed: int, eps: float, spread: float) -> None:
    x, point = images(seed, spread)
    ball = Ball("linf", eps)
    nearest = ball.project(point, x)
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    assert ((nearest >= low) & (nearest <= high)).all()
    assert (ball.distance(nearest, x) <= eps + 1e-15).all()
    assert torch.equal(ball.project(nearest, x), nearest)
    away = point - nearest
    furthest = torch.where(away > 0, high, low)  # of all points allowed, the one furthest in the direction away
    assert ((away * (furthest - nearest)).flatten(1).sum(dim=1) <= 1e-12).all()


@property_test
@given(seeds, st.floats(0.0, 32.0), st.floats(0.0, 2.0), st.sampled_from([torch.float32, torch.float64]))
def test_the_l2_projection_is_feasible(seed: int, eps: float, spread: float, dtype: torch.dtype) -> None:
    x, point = images(seed, spread, dtype)
    ball = Ball("l2", eps)
    allowed = ball.project(point, x)
    assert (ball.distance(allowed, x) <= eps + 1e-6).all()
    assert allowed.min() >= 0
    assert allowed.max() <= 1
    assert torch.allclose(ball.project(allowed, x), allowed, atol=1e-6)


@property_test
@given(seeds, st.floats(0.001, 1.0), st.sampled_from(NORMS), st.sampled_from([torch.float32, torch.float64]))
def test_points_that_are_allowed_keep_their_bits(seed: int, eps: float, norm: Norm, dtype: torch.dtype) -> None:
    x, point = images(seed, 1.0, dtype)
    ball = Ball(norm, eps)
    inside = torch.lerp(x, ball.project(point, x), 0.5)
    assert torch.equal(ball.project(inside, x), inside)
    assert torch.equal(ball.project(x, x), x)


@property_test
@given(seeds, radii, st.sampled_from(NORMS), st.sampled_from([torch.float32, torch.float64]))
def test_samples_are_allowed(seed: int, eps: float, norm: Norm, dtype: torch.dtype) -> None:
    x, _ = images(seed, 1.0, dtype)
    ball = Ball(norm, eps)
    drawn = ball.sample(x, Stream.of(seed, "draw").images(torch.arange(3)))
    assert drawn.dtype == dtype
    assert (ball.distance(drawn, x) <= eps + 1e-6).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1


@every_norm
def test_samples_fill_the_ball(norm: Norm) -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    drawn = Ball(norm, 0.1).sample(x, Stream.of(0).images(torch.arange(4000)))
    assert float((drawn - x).mean()) == pytest.approx(0.0, abs=0.003)
    share = Ball(norm, 0.1).distance(drawn, x) / 0.1
    if norm == "linf":
        assert float((drawn - x).var()) == pytest.approx(0.2**2 / 12, rel=0.05)
        assert share.min() < 0.3
    else:
        assert float(share.mean()) == pytest.approx(0.5, abs=0.03)


@property_test
@given(seeds, st.sampled_from(NORMS))
def test_no_direction_of_unit_norm_is_steeper(seed: int, norm: Norm) -> None:
    rng = Stream.of(seed)
    gradient = rng.normal("gradient", (3, 2, 3, 3), dtype=torch.float64)
    ball = Ball(norm, 1.0)
    steepest = ball.steepest(gradient)
    zero = torch.zeros_like(steepest)
    assert torch.allclose(ball.distance(steepest, zero), torch.ones(3, dtype=torch.float64))
    rise = (gradient * steepest).flatten(1).sum(dim=1)
    for trial in range(5):
        other = rng.normal(trial, gradient.shape, dtype=torch.float64) + trial * steepest
        other = other / per_image(ball.distance(other, zero), other)
        assert ((gradient * other).flatten(1).sum(dim=1) <= rise + 1e-12).all()


@every_norm
def test_where_the_gradient_is_zero_nothing_moves(norm: Norm) -> None:
    assert torch.equal(Ball(norm, 0.5).steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


def test_distances_by_hand() -> None:
    x = torch.zeros(2, 1, 1, 2)
    point = torch.tensor([0.3, -0.4, 0.0, 1.0]).reshape(2, 1, 1, 2)
    assert Ball("linf", 1.0).distance(point, x).tolist() == pytest.approx([0.4, 1.0])
    assert Ball("l2", 1.0).distance(point, x).tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize(
    ("norm", "eps"),
    [
        ("linf", -0.1),
        ("linf", float("nan")),
        ("linf", float("inf")),
        ("linf", 1.01),
        ("linf", 8.0),
        ("l2", -1e-9),
        ("l2", float("nan")),
        ("l2", float("inf")),
        ("l2", 33.0),
        ("l1", 0.1),
        ("Linf", 0.1),
        ("", 0.1),
    ],
)
def test_balls_that_mean_nothing_are_refused(norm: str, eps: float) -> None:
    with pytest.raises(DemiluneError):
        Ball(norm, eps)


def test_a_radius_in_grey_levels_is_refused_with_the_remedy() -> None:
    with pytest.raises(DemiluneError, match="8/255"):
        Ball("linf", 8.0)
    assert Ball("linf", 0.0).eps == 0.0
    assert Ball("linf", 1.0).eps == 1.0
    assert Ball("l2", 8.0).eps == 8.0


# losses


def logits_of(rows: int = 5, classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = Stream.of(0)
    return 3 * rng.normal("logits", (rows, classes), dtype=dtype), rng.integers("y", (rows,), 0, classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_that_of_torch(dtype: torch.dtype) -> None:
    logits, y = logits_of(dtype=dtype)
    expected = F.cross_entropy(logits, y, reduction="none")
    assert torch.equal(cross_entropy(logits, y), expected)
    assert torch.allclose(cross_entropy(logits, one_hot(y, 4, dtype)), expected)
    soft = smooth(y, torch.linspace(0, 1, 5, dtype=dtype), 4)
    assert torch.allclose(cross_entropy(logits, soft), F.cross_entropy(logits, soft, reduction="none"))
    assert cross_entropy(logits, y).dtype == dtype


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert float(cross_entropy(logits, torch.tensor([0]))) == pytest.approx(math.log(4))
    assert float(cross_entropy(logits, torch.tensor([[0.5, 0.5]]))) == pytest.approx(math.log(4) - math.log(3) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(dtype: torch.dtype) -> None:
    logits, y = logits_of()
    narrow = logits.to(dtype)
    for loss in (cross_entropy, margin, lambda z, t: targeted_margin(z, t, (t + 1) % 4)):
        assert loss(narrow, y).dtype == torch.float32
        assert torch.equal(loss(narrow, y), loss(narrow.float(), y))


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -5.0, -2.0], [0.0, 0.0, -9.0]])
    y = torch.tensor([0, 1, 0])
    assert others(logits, y).tolist() == [2.0, -1.0, 0.0]
    assert margin(logits, y).tolist() == [-1.0, 4.0, 0.0]
    assert targeted_margin(logits, y, torch.tensor([1, 2, 2])).tolist() == [-2.0, 3.0, -9.0]


def test_the_margin_is_the_largest_targeted_margin() -> None:
    logits, y = logits_of()
    each = torch.stack([targeted_margin(logits, y, (y + shift) % 4) for shift in (1, 2, 3)])
    assert torch.equal(margin(logits, y), each.amax(dim=0))
    assert torch.equal(margin(logits, y) > 0, logits.argmax(dim=1) != y)


@pytest.mark.parametrize("shift", [-100.0, 7.5])
def test_losses_do_not_see_a_constant_added_to_all_logits(shift: float) -> None:
    logits, y = logits_of()
    for loss in (cross_entropy, margin, lambda z, t: targeted_margin(z, t, (t + 1) % 4)):
        assert torch.allclose(loss(logits + shift, y), loss(logits, y), atol=1e-12)


# targets


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_smooth_labels_lie_on_the_simplex(classes: int) -> None:
    y, mass = torch.arange(11) % classes, torch.linspace(0, 1, 11)
    targets = smooth(y, mass, classes)
    assert torch.equal(targets.gather(1, y[:, None]).squeeze(1), mass)
    assert torch.allclose(targets.sum(dim=1), torch.ones(11))
    assert (targets >= 0).all()
    assert torch.equal(smooth(y, torch.ones(11), classes), one_hot(y, classes))
    even = smooth(y, torch.full((11,), 1 / classes), classes)
    assert torch.allclose(even, torch.full_like(even, 1 / classes))


def test_one_hot_and_entropy() -> None:
    y = torch.tensor([2, 0])
    hot = one_hot(y, 3, torch.float64)
    assert hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert hot.dtype == torch.float64
    assert entropy(hot).tolist() == [0, 0]
    assert float(entropy(torch.full((1, 8), 0.125))) == pytest.approx(math.log(8))


def test_the_label_mass_falls_in_a_line_from_the_image_to_the_far_end() -> None:
    scale = torch.tensor([0.0, 1.0, 2.0])
    assert distance_aware(scale, 2.0, 1.0, 0.1).tolist() == pytest.approx([1.0, 0.55, 0.1])
    assert distance_aware(scale, 2.0, 0.7, 0.7).tolist() == pytest.approx([0.7] * 3)
    assert distance_aware(torch.zeros(2), 0.0, 0.9, 0.1).tolist() == pytest.approx([0.9] * 2)


@pytest.mark.parametrize(("high", "low"), [(0.9, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.0), (1.0, 0.1)])
def test_no_rounding_takes_a_label_off_the_simplex(high: float, low: float) -> None:
    for tenths in range(1, 41):
        mass = distance_aware(torch.arange(tenths + 1) / 10, tenths / 10, high, low)
        targets = smooth(torch.zeros(tenths + 1, dtype=torch.int64), mass, 10)
        assert (targets >= 0).all()
        assert entropy(targets).isfinite().all()


# regions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments_are_exact_at_their_ends_and_where_these_are_equal(dtype: torch.dtype) -> None:
    rng = Stream.of(0)
    start, end = (rng.uniform(name, (500, 1, 4, 4), dtype=dtype) for name in ("start", "end"))
    weight = rng.uniform("weight", (500, 1, 1, 1), dtype=dtype)
    assert torch.equal(segment(start, end, torch.zeros_like(weight)), start)
    assert torch.equal(segment(start, end, torch.ones_like(weight)), end)
    assert torch.equal(segment(start, start, weight), start)
    assert torch.allclose(segment(start, end, weight), start + weight * (end - start))


def test_triangles_are_exact_at_their_corners() -> None:
    rng = Stream.of(0)
    x, first, end = (rng.uniform(name, (7, 1, 4, 4)) for name in ("x", "first", "end"))
    zero, one, shape = torch.zeros(2, 7, 1, 1, 1), torch.ones(2, 7, 1, 1, 1), (2, 7, 1, 4, 4)
    some = rng.uniform("position", (2, 7, 1, 1, 1))
    assert torch.equal(triangle(x, first, end, some, zero), x.expand(shape))
    assert torch.equal(triangle(x, first, end, one, one), first.expand(shape))
    assert torch.equal(triangle(x, first, end, zero, one), end.expand(shape))
    assert torch.equal(triangle(x, x, x, some, 2 * some), x.expand(shape))
    assert torch.allclose(triangle(x, first, end, zero, 2 * one), (x + 2 * (end - x)).expand(shape), atol=1e-6)


class Backwards(nn.Module):
    """A network whose layers are registered in another order than they run in."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, 3), nn.Linear(64, 5)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x.flatten(1))))


def test_what_the_last_linear_layer_is_given_is_found_by_running() -> None:
    model, x = Backwards(nn.Identity()), torch.rand(2, 1, 8, 8)
    with penultimate(model) as features:
        model(x)
        model(2 * x)
    assert len(features) == 2
    assert torch.equal(features[1], model.body((2 * x).flatten(1)))
    assert not model._forward_hooks
    assert not model.head._forward_hooks
    narrow = Backwards(nn.Flatten())
    narrow.forward = lambda x: narrow.head(narrow.body(x.flatten(1)))[:, :2]
    with pytest.raises(DemiluneError, match="linear layer"), penultimate(narrow):
        narrow(x)
    flat = nn.Flatten()
    with pytest.raises(DemiluneError, match="linear layer"), penultimate(flat):
        flat(x)


def test_a_shared_convolution_is_moved_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 3, bias=False))
    model[1].weight = model[0].weight
    assert convolutions(model).keys() == {"0.weight"}


def test_gairats_weights_do_not_underflow() -> None:
    weight = balanced(torch.tensor([10, 10, 9]), 10, -300.0, torch.float32)
    assert weight.isfinite().all()
    assert float(weight.mean()) == pytest.approx(1.0)
