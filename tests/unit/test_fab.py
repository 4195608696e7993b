"""FAB where the answer is known: linear boundaries, projections that are least, and images that leave when done."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from conftest import batch_of, stream, tiny
from demilune.attacks.base import Attack, Model
from demilune.attacks.fab import FAB, FABT, project
from demilune.attacks.judge import correct, judged
from demilune.core.geometry import Ball, Norm
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

BALLS = {"linf": Ball("linf", 0.06), "l2": Ball("l2", 0.4)}
ATTACKS: dict[str, FAB | FABT] = {"fab_t": FABT(3, 12), "fab": FAB(12, 2)}
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
every_norm = pytest.mark.parametrize("norm", BALLS)
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


class Linear(nn.Module):
    """Logits x W + b of flattened images; every pixel counts."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        draws = Stream.of(4, "linear")
        size = draws.uniform("weight", (64, classes), 0.5, 1.5, dtype=torch.float64)
        signs = 2.0 * draws.integers("signs", (64, classes), 0, 2) - 1
        self.weight, self.bias = nn.Parameter(size * signs / 8), nn.Parameter(torch.zeros(classes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias


def linear_case(classes: int, n: int = 12) -> tuple[Linear, Batch]:
    """Return a linear model and images far from the box's sides that it has right."""
    model, batch = Linear(classes), batch_of(n, classes, dtype=torch.float64)
    x = 0.4 + 0.2 * batch.x
    with torch.no_grad():
        model.bias -= model(x).mean(dim=0)
        return model, batch._replace(x=x, y=model(x).argmax(dim=1))


def boundaries(model: Linear, batch: Batch, norm: str) -> Tensor:
    """Return how far the boundary to each class is, [N,K] in the order of classes; inf for the class itself."""
    logits, weight = model(batch.x).detach(), model.weight.detach()
    gap = logits.gather(1, batch.y[:, None]) - logits
    slope = weight[:, batch.y].T[:, :, None] - weight[None]
    dual = slope.abs().sum(dim=1) if norm == "linf" else slope.norm(dim=1)
    return (gap / dual).scatter(1, batch.y[:, None], float("inf"))


def likeliest(model: Model, batch: Batch) -> Tensor:
    return model(batch.x).scatter(1, batch.y[:, None], float("-inf")).argmax(dim=1)


def over(steps: int, eta: float = 1.05, beta: float = 0.9, alpha: float = 0.1) -> float:
    """Return FAB's distance on a linear model in units of the true one: it all happens along one direction."""
    here, best = 0.0, float("inf")
    for _ in range(steps):
        share = min(abs(1 - here) / (abs(1 - here) + 1), alpha)
        here = (1 - share) * (here + eta * (1 - here)) + share * eta
        if here > 1:
            best, here = min(best, here), beta * here
    return best


# linear models


@every_norm
@pytest.mark.parametrize("classes", [2, 4])
def test_on_linear_classes_the_distance_is_the_gap_over_the_dual_norm(norm: Norm, classes: int) -> None:
    model, batch = linear_case(classes)
    true, aimed = boundaries(model, batch, norm), likeliest(model, batch)
    for attack, expected in (
        (FABT(1, 20, eta=1.00001), true.gather(1, aimed[:, None]).squeeze(1)),
        (FABT(9, 20, eta=1.00001), true.amin(dim=1)),
        (FAB(20, 1, eta=1.00001), true.amin(dim=1)),
    ):
        found = attack.nearest(model, batch.x, batch.y, BALLS[norm], stream(batch))
        # On the way to one class the point may enter another: it is no farther than the boundary aimed at.
        aims = classes == 2 or attack != FABT(1, 20, eta=1.00001)
        assert (found.distance <= expected * 1.0001).all()
        assert (found.distance >= (expected if aims else true.amin(dim=1)) * 0.9999).all()
        assert torch.allclose(BALLS[norm].distance(found.point, batch.x), found.distance)
        assert not correct(model, found.point, batch.y).any()


@every_norm
def test_with_overshoot_the_distance_is_the_recursions(norm: Norm) -> None:
    model, batch = linear_case(2)
    found = FABT(1, 30).nearest(model, batch.x, batch.y, BALLS[norm], stream(batch))
    assert 1.001 < over(30) < 1.006
    assert torch.allclose(found.distance, over(30) * boundaries(model, batch, norm).amin(dim=1), rtol=1e-6)


@every_norm
@pytest.mark.parametrize("attack", [FABT(eta=1.00001, steps=20), FAB(eta=1.00001, steps=20, restarts=1)])
def test_an_attack_succeeds_where_the_boundary_is_within_the_radius_and_nowhere_else(
    norm: Norm, attack: Attack
) -> None:
    model, batch = linear_case(4, 24)
    true = boundaries(model, batch, norm).amin(dim=1)
    ball = Ball(norm, float(true.sort().values[11:13].mean()))
    found = attack(model, batch.x, batch.y, ball, stream(batch))
    assert int((true <= ball.eps).sum()) == 12
    assert torch.equal(judged(model, batch.x, found, batch.y, ball), true > ball.eps)
    assert torch.equal(found[true > ball.eps], batch.x[true > ball.eps])


@every_norm
def test_in_the_box_the_boundary_is_found_where_it_is(norm: Norm) -> None:
    """Pixels at 0 and 1 have no room on one side: the true distance is that of a convex problem."""
    model, batch = linear_case(2, 8)
    x = (7 * (batch.x - 0.5) + 0.5).clamp(0, 1)
    with torch.no_grad():
        model.bias -= model(x).mean(dim=0)
        batch = batch._replace(x=x, y=model(x).argmax(dim=1))
    assert ((x == 0) | (x == 1)).double().mean() > 0.2
    logits, rows = model(x).detach(), torch.arange(8)
    slope = (model.weight[:, 1 - batch.y] - model.weight[:, batch.y]).detach().T
    gap = logits[rows, 1 - batch.y] - logits[rows, batch.y]
    true = BALLS[norm].distance(bisected(x.flatten(1), slope, gap, norm), torch.zeros(8, 64))
    found = FABT(1, 40, eta=1.00001).nearest(model, x, batch.y, BALLS[norm], stream(batch))
    assert torch.allclose(found.distance, true, rtol=1e-3)


# projections


def bisected(point: Tensor, slope: Tensor, gap: Tensor, norm: Norm) -> Tensor:
    """Return the least move onto a hyperplane by bisection on its one multiplier."""
    direction = -(slope * gap.sign()[:, None]).sign()
    room, speed = (
        torch.where(direction > 0, 1 - point, point),
        torch.ones_like(slope) if norm == "linf" else slope.abs(),
    )
    low, high = torch.zeros(len(point), dtype=slope.dtype), torch.full((len(point),), 1e6, dtype=slope.dtype)
    for _ in range(200):
        middle = (low + high) / 2
        short = (slope.abs() * torch.minimum(middle[:, None] * speed, room)).sum(dim=1) < gap.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return direction * torch.minimum(high[:, None] * speed, room)


def hyperplanes(seed: int, width: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return points of the box, some at its sides, slopes with zeros, and gaps: a share of what can be closed."""
    draws = Stream.of(seed, "hyperplanes")
    point = draws.uniform("point", (8, width), -0.4, 1.4, dtype=torch.float64).clamp(0, 1)
    slope = draws.normal("slope", (8, width), dtype=torch.float64)
    slope = torch.where(draws.uniform("zero", (8, width)) < 0.1, 0.0, slope)
    signs = 2.0 * draws.integers("signs", (8,), 0, 2).double() - 1
    room = torch.where(slope * signs[:, None] < 0, 1 - point, point)
    return point, slope, signs * share * (slope.abs() * room).sum(dim=1)


@every_norm
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.0, 1.5))
def test_a_projection_is_the_least_move_onto_the_hyperplane(norm: Norm, seed: int, width: int, share: float) -> None:
    point, slope, gap = hyperplanes(seed, width, share)
    move = project(point, slope, gap, norm)
    assert ((point + move).clamp(0, 1) - point - move).abs().max() <= 1e-15
    left = gap + (slope * move).sum(dim=1)
    assert (left.abs() <= 1e-12 + gap.abs() * max(0.0, 1 - 1 / max(share, 1e-9)) * (1 + 1e-9)).all()
    if share < 0.999:
        assert torch.allclose(move, bisected(point, slope, gap, norm), atol=1e-9)


def test_a_linf_projection_solves_the_linear_programme() -> None:
    for seed in range(5):
        point, slope, gap = hyperplanes(seed, 9, 0.6)
        move = project(point, slope, gap, "linf")
        for row in range(8):
            # min t with |δ_j| ≤ t, slope·δ = -gap, point + δ in the box; variables (δ, t)
            eye, ones = torch.eye(9, dtype=torch.float64), torch.ones(9, 1, dtype=torch.float64)
            limits = torch.cat((torch.cat((eye, -ones), 1), torch.cat((-eye, -ones), 1)))
            bounds = [*zip((-point[row]).tolist(), (1 - point[row]).tolist(), strict=True), (0, None)]
            equal = [[*slope[row].tolist(), 0.0]]
            solved = linprog([0.0] * 9 + [1.0], limits.tolist(), [0.0] * 18, equal, [-float(gap[row])], bounds)
            assert solved.fun == pytest.approx(float(move[row].abs().max()), abs=1e-9)


def test_no_move_of_smaller_l2_length_reaches_the_hyperplane() -> None:
    point, slope, gap = hyperplanes(3, 12, 0.5)
    move = project(point, slope, gap, "l2")
    for number in range(200):  # a step along the hyperplane, back into the box, and onto the hyperplane again
        step = 0.1 * Stream.of(number).normal("step", (8, 12), dtype=torch.float64)
        other = (point + move + step).clamp(0, 1)
        other = other + project(other, slope, gap + (slope * (other - point)).sum(dim=1), "l2")
        reached = (gap + (slope * (other - point)).sum(dim=1)).abs() < 1e-9
        assert ((other - point).norm(dim=1) >= move.norm(dim=1) - 1e-9)[reached].all()


@every_norm
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_a_projection_does_not_depend_on_the_scale_of_the_slope(norm: Norm, size: float) -> None:
    point, slope, gap = (values.float() for values in hyperplanes(1, 30, 0.5))
    assert torch.allclose(project(point, size * slope, size * gap, norm), project(point, slope, gap, norm), atol=1e-5)


@every_norm
def test_without_a_slope_nothing_moves(norm: Norm) -> None:
    point = Stream.of(0).uniform("point", (3, 1, 8, 8))
    assert (project(point, torch.zeros_like(point), torch.tensor([1.0, -1.0, 0.0]), norm) == 0).all()


# networks


def network_case(n: int = 16) -> tuple[nn.Module, Batch]:
    """Return a network and images of which it has all but two right."""
    model, batch = tiny(seed=2).eval(), batch_of(n)
    with torch.no_grad():
        model.net.linear.bias -= model(batch.x).mean(dim=0)
        y = model(batch.x).argmax(dim=1)
    return model, batch._replace(y=torch.where(torch.arange(n) < n - 2, y, (y + 1) % 4))


def radius(attack: FAB | FABT, norm: Norm) -> Ball:
    """Return a ball that breaks about half of the network's images, its radius exactly one image's distance."""
    model, batch = network_case()
    found = attack.nearest(model, batch.x, batch.y, BALLS[norm], stream(batch)).distance[:-2]
    return Ball(norm, float(found.sort().values[6]))


@every_attack
@every_norm
def test_what_is_returned_is_in_the_ball_and_broken_or_the_image(attack: FAB | FABT, norm: Norm) -> None:
    (model, batch), ball = network_case(), radius(attack, norm)
    found = attack(model, batch.x, batch.y, ball, stream(batch))
    right = judged(model, batch.x, found, batch.y, ball)
    assert (ball.distance(found, batch.x) <= ball.eps).all()
    assert torch.equal((found != batch.x).flatten(1).any(dim=1), ~right & (torch.arange(16) < 14))
    assert torch.equal(found[-2:], batch.x[-2:])
    assert 0 < int(right.sum()) < 14
    nearest = attack.nearest(model, batch.x, batch.y, ball, stream(batch))
    assert torch.equal(nearest.distance <= ball.eps, ~right)
    assert torch.equal(nearest.distance[-2:], torch.zeros(2))


@every_attack
@every_norm
def test_batch_mates_and_places_change_nothing(attack: FAB | FABT, norm: Norm) -> None:
    (model, batch), ball = network_case(), radius(attack, norm)
    together = attack(model, batch.x, batch.y, ball, stream(batch))
    assert torch.equal(attack(model, batch.x, batch.y, ball, stream(batch)), together)
    for rows in (torch.tensor([3]), torch.tensor([9, 1, 12])):
        some = attack(model, batch.x[rows], batch.y[rows], ball, stream(batch).take(rows))
        assert torch.allclose(some, together[rows], atol=1e-5)


class Counted:
    """A model that notes how many images each pass has, and whether it is one for a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.sizes, self.asked = model, list[tuple[int, bool]](), list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append((len(x), torch.is_grad_enabled()))
        self.asked.append(x.detach().clone())
        return self.model(x)


@every_norm
def test_images_leave_when_they_are_done(norm: Norm) -> None:
    """One clean forward for all; then a gradient and a check for each image left, at every iteration."""
    (model, batch), attack = network_case(), FABT(3, 12)
    counted, ball = Counted(model), radius(attack, norm)
    found = attack(counted, batch.x, batch.y, ball, stream(batch))
    left = int(correct(model, found, batch.y).sum())
    assert counted.sizes[0] == (16, False)
    pairs = list(zip(counted.sizes[1::2], counted.sizes[2::2], strict=True))
    assert len(pairs) == 36
    assert all(one == (size, True) and other == (size, False) for one, other in pairs for size in [one[0]])
    sizes = [one[0] for one, _ in pairs]
    assert sizes[0] == 14
    assert all(after <= before for before, after in pairwise(sizes))
    assert sizes[1] < 14
    assert sizes[-1] == left


@every_norm
def test_when_all_are_done_no_more_is_asked(norm: Norm) -> None:
    (model, batch), ball = network_case(), Ball(norm, {"linf": 1.0, "l2": 8.0}[norm])
    counted = Counted(model)
    found = FABT(3, 12)(counted, batch.x, batch.y, ball, stream(batch))
    assert not correct(model, found, batch.y).any()
    assert len(counted.sizes) < 20
    counted = Counted(model)
    wrong = batch._replace(x=batch.x[-2:], y=batch.y[-2:], ids=batch.ids[-2:])
    assert torch.equal(FAB()(counted, wrong.x, wrong.y, ball, stream(wrong)), wrong.x)
    assert counted.sizes == [(2, False)]


@every_ball
def test_restarts_begin_half_a_radius_away(ball: Ball) -> None:
    model, batch = network_case()
    x = 0.3 + 0.4 * batch.x
    y = model(x).argmax(dim=1)
    counted, ball = Counted(model), Ball(ball.norm, ball.eps / 500)  # breaks none
    FABT(1, 1, restarts=3)(counted, x, y, ball, stream(batch))
    one, two, three = counted.asked[1::2]
    assert torch.equal(one, x)
    for start in (two, three):
        assert torch.allclose(ball.distance(start, x), torch.full((16,), ball.eps / 2), atol=1e-6)
    assert not torch.equal(two, three)
    alone, rows = Counted(model), torch.tensor([4, 2])
    FABT(1, 1, restarts=3)(alone, x[rows], y[rows], ball, stream(batch).take(rows))
    assert torch.equal(alone.asked[3], two[rows])


@every_attack
@every_norm
def test_more_restarts_bring_no_image_farther(attack: FAB | FABT, norm: Norm) -> None:
    model, batch = network_case()
    one, two = (FAB(2, restarts) if isinstance(attack, FAB) else FABT(2, 2, restarts) for restarts in (1, 3))
    before, after = (a.nearest(model, batch.x, batch.y, BALLS[norm], stream(batch)).distance for a in (one, two))
    assert (after <= before).all()


@every_attack
@every_norm
def test_success_is_confirmed_without_gradients(attack: FAB | FABT, norm: Norm) -> None:
    """Logits under gradients may be of low precision: what they call broken is not."""
    (model, batch), ball = network_case(), radius(attack, norm)

    def coarse(x: Tensor) -> Tensor:
        return model(x) + (100.0 * nn.functional.one_hot((y + 1) % 4, 4) if torch.is_grad_enabled() else 0.0)

    y = batch.y[:1]
    found = attack(coarse, batch.x[:1], y, ball, stream(batch).take(torch.tensor([0])))
    assert correct(model, found, y).tolist() == [torch.equal(found, batch.x[:1])]


@every_attack
@every_norm
def test_logits_that_are_no_numbers_are_broken(attack: FAB | FABT, norm: Norm) -> None:
    batch = batch_of(3)
    x = 0.5 + 0.0 * batch.x

    def model(images: Tensor) -> Tensor:
        """Answer right, and towards the upper half of the box not at all."""
        sums = images.flatten(1).mean(dim=1, keepdim=True)
        logits = nn.functional.one_hot(batch.y[: len(images)], 4) * (1.0 - sums)
        return torch.where(sums > 0.501, float("nan"), logits)

    ball = Ball(norm, {"linf": 0.2, "l2": 1.6}[norm])
    found = attack(model, x, batch.y, ball, stream(batch))
    assert not judged(model, x, found, batch.y, ball).any()
    counted = Counted(lambda images: model(images) * float("nan"))
    assert torch.equal(attack(counted, x, batch.y, ball, stream(batch)), x)
    assert len(counted.sizes) == 1


@every_attack
@every_norm
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_without_slope_gives_the_images_back(attack: FAB | FABT, norm: Norm, classes: int) -> None:
    batch = batch_of(4, classes)

    def flat(x: Tensor) -> Tensor:
        return nn.functional.one_hot(batch.y[: len(x)], classes) + 0.0 * x.flatten(1).sum(dim=1, keepdim=True)

    assert torch.equal(attack(flat, batch.x, batch.y, BALLS[norm], stream(batch)), batch.x)


def test_the_untargeted_attack_goes_to_the_nearest_boundary_not_the_likeliest_class() -> None:
    """The likeliest wrong class has a flat logit and is far away; another one is near."""
    x, y = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    slopes = torch.tensor([0.0, 1.0, 10.0]) / 64

    def model(images: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.9, 0.5]) + (images - 0.5).flatten(1).sum(dim=1, keepdim=True) * slopes

    ball, rng = Ball("linf", 0.06), Stream.of(0).images(torch.arange(1))
    assert FAB(5, 1).nearest(model, x, y, ball, rng).distance < 0.053
    assert correct(model, FABT(1, 5)(model, x, y, ball, rng), y).all()
    assert not correct(model, FABT(2, 5)(model, x, y, ball, rng), y).any()
    assert not correct(model, FAB(5, 1)(model, x, y, ball, rng), y).any()


def test_an_untargeted_step_costs_a_gradient_for_every_wrong_class() -> None:
    (model, batch), passes = network_case(), list[int]()
    counted = Counted(model)

    def noted(x: Tensor) -> Tensor:
        logits = counted(x)
        if logits.requires_grad:
            logits.register_hook(lambda slope: passes.append(len(slope)))
        return logits

    FAB(3, 1)(noted, batch.x[:5], batch.y[:5], Ball("linf", 1e-4), stream(batch).take(torch.arange(5)))
    assert counted.sizes == [(5, False)] + 3 * [(5, True), (5, False)]
    assert passes == 9 * [5]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: FABT(targets=0),
        lambda: FABT(steps=-1),
        lambda: FABT(restarts=0),
        lambda: FABT(alpha_max=1.5),
        lambda: FABT(eta=0.0),
        lambda: FABT(beta=float("nan")),
        lambda: FAB(steps=-1),
        lambda: FAB(restarts=0),
        lambda: FAB(beta=0.0),
    ],
)
def test_fields_that_mean_nothing_are_refused(make: Callable[[], Attack]) -> None:
    with pytest.raises(DemiluneError):
        make()
