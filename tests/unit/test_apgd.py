"""APGD where the answer is known, who leaves the search and when, what it costs, and its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from demilune.attacks import Attack, Model, correct, judged
from demilune.attacks.apgd import APGD, TargetedAPGD, Visit, apgd_path, checkpoints, hunt
from demilune.core.geometry import Ball, Norm
from demilune.core.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

ATTACKS: dict[str, Attack] = {
    "ce": APGD(steps=20),
    "dlr": APGD("dlr", steps=20),
    "margin": APGD("margin", steps=20),
    "targeted": TargetedAPGD(steps=20),
}
SMALL = Ball("linf", 1e-4)  # nothing breaks in it
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
every_ball = pytest.mark.parametrize("ball", [BALL, Ball("l2", 0.5)], ids=["linf", "l2"])


def run(attack: Attack, model: Model, batch: Batch, ball: Ball) -> Tensor:
    return attack(model, batch.x, batch.y, ball, stream(batch))


def asked(attack: Attack, model: Model, batch: Batch, ball: Ball) -> list[Tensor]:
    """The points an attack asks gradients at."""
    points = list[Tensor]()

    def noting(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            points.append(x.detach())
        return model(x)

    run(attack, noting, batch, ball)
    return points


def path(attack: APGD, model: Model, batch: Batch, ball: Ball) -> list[Visit]:
    """The iterates of one run."""

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return margin(logits, batch.y[rows])

    rows = torch.arange(len(batch.x))
    return list(apgd_path(model, batch.x, batch.y, rows, ball, stream(batch), loss, attack.steps, attack.rho))


def half_broken(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Batch, Ball]:
    """Return a network and images, most of them right, of which some break at the start, some later, some never."""
    batch, model = batch_of(24, dtype=dtype), tiny(dtype=dtype).eval()
    batch = batch._replace(y=torch.where(torch.arange(24) < 20, model(batch.x).argmax(dim=1), batch.y))
    return model, batch, Ball("linf", 0.03)


class Counted:
    """A model that notes how many images each pass has, with gradient and without."""

    def __init__(self, model: Model) -> None:
        self.model, self.ascents, self.verdicts = model, list[int](), list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        (self.ascents if torch.is_grad_enabled() else self.verdicts).append(len(x))
        return self.model(x)


class TwoFaced:
    """A model that errs on the rows given while gradients are computed, and is right whenever they are not."""

    def __init__(self, batch: Batch, wrong: Tensor, face: float = 1.0) -> None:
        self.batch, self.wrong, self.face = batch, wrong, face

    def __call__(self, x: Tensor) -> Tensor:
        distance = (x.detach()[:, None] - self.batch.x[None]).flatten(2).norm(dim=2)
        rows = distance.argmin(dim=1)  # the batch's images lie far apart
        right = nn.functional.one_hot(self.batch.y[rows], 4).to(x)
        if torch.is_grad_enabled():
            lie = self.face * (self.wrong[rows].to(x) * 2)[:, None] * right.roll(1, dims=1)
            right = right + lie
        return right + right * x.flatten(1).mean(dim=1, keepdim=True)


# closed forms


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@every_attack
def test_on_a_linear_model_it_succeeds_just_where_the_distance_is_within_the_radius(
    attack: Attack, norm: Norm, classes: int
) -> None:
    batch = batch_of(40, classes, dtype=torch.float64)
    x = 0.3 + 0.4 * batch.x  # away from the box
    # Large logits: the cross-entropy then follows the nearest class alone, as the distance does.
    weight = 16 * Stream.of(classes, "weight").normal("weight", (64, classes), dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ weight

    y = model(x).argmax(dim=1)
    gap = -(model(x) - model(x).gather(1, y[:, None]))  # z_y - z_t, [N,K]
    reach = (weight[:, None, :] - weight[:, :, None]).norm(p=1 if norm == "linf" else 2, dim=0)[y]  # ‖w_y - w_t‖
    distance = (gap / reach.clamp_min(1e-12)).scatter(1, y[:, None], float("inf")).amin(dim=1)
    for eps in distance.sort().values[[5, 20, 35]].tolist():
        ball = Ball(norm, eps * 1.0001)
        sure = (distance / ball.eps - 1).abs() > 0.02  # the released algorithm is no exact solver at the boundary
        found = run(attack, model, batch._replace(x=x, y=y), ball)
        broken = ~judged(model, x, found, y, ball)
        assert (broken == (distance <= ball.eps))[sure].all()
        assert not (broken & (distance > ball.eps)).any()
        assert torch.equal(found[~broken], x[~broken])


def test_the_step_shrinks_until_the_top_is_found() -> None:
    top = torch.tensor([0.42, 0.5, 0.61], dtype=torch.float64).reshape(3, 1)
    batch = Batch(torch.full_like(top, 0.5), torch.zeros(3, dtype=torch.int64), 2, torch.arange(3), 0)

    def model(x: Tensor) -> Tensor:  # margin -1 - (x - top)²: a top inside the ball, where nothing is broken
        hill = (x - top) ** 2
        return torch.cat([1 + hill, 0 * hill], dim=1)

    walked = path(APGD(steps=100), model, batch, Ball("linf", 0.2))
    assert len(walked) == 101
    assert ((walked[-1].point - top).abs() < 0.2 * 2**-6).all()
    assert ((walked[20].point - top).abs() > 0.02).any()  # before the first checkpoint it overshoots


def test_checkpoints() -> None:
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(1) == {1: 1}
    assert checkpoints(50) == {11: 11, 21: 10, 30: 9, 38: 8, 45: 7}  # the next would be 51: 3 is 0.06 · 50, 6 before it
    for steps in range(1, 130):  # as the released code counts
        window, since, found = max(int(0.22 * steps), 1), 0, {}
        for step in range(1, steps + 1):
            since += 1
            if since == window:
                found[step] = window
                window, since = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)), 0
        assert checkpoints(steps) == found


# results


@every_attack
@every_ball
def test_the_result_is_allowed_and_the_same_again(attack: Attack, ball: Ball) -> None:
    batch, model = batch_of(12), tiny().eval()
    found = run(attack, model, batch, ball)
    right = judged(model, batch.x, found, batch.y, ball)
    assert torch.equal(found[right], batch.x[right])
    assert torch.equal(run(attack, model, batch, ball), found)
    other = attack(model, batch.x, batch.y, ball, stream(batch, seed=1))
    assert not torch.equal(other, found)


@every_ball
def test_every_iterate_is_allowed_and_the_start_lies_on_the_sphere(ball: Ball) -> None:
    batch = batch_of(6, dtype=torch.float64)
    batch = batch._replace(x=0.3 + 0.4 * batch.x, y=tiny(dtype=torch.float64).eval()(batch.x).argmax(dim=1))
    walked = path(APGD(steps=20), tiny(dtype=torch.float64).eval(), batch, replace(ball, eps=ball.eps / 4))
    start = walked[0].point
    assert torch.allclose(ball.distance(start, batch.x), torch.tensor(ball.eps / 4).double())
    for visit in walked:
        assert (ball.distance(visit.point, batch.x[visit.rows]) <= ball.eps / 4 + 1e-12).all()
        assert visit.point.min() >= 0
        assert visit.point.max() <= 1
        assert not visit.point.requires_grad


@every_attack
def test_no_image_feels_who_else_is_attacked_or_leaves(attack: Attack) -> None:
    model, batch, ball = half_broken()
    together = run(attack, model, batch, ball)
    assert 4 < int((~correct(model, together, batch.y)).sum()) < 20
    for rows in (torch.arange(8), torch.arange(23, 7, -3), torch.tensor([5])):
        alone = attack(model, batch.x[rows], batch.y[rows], ball, stream(batch).take(rows))
        assert torch.allclose(alone, together[rows], atol=1e-9)


# who is searched, and what it costs


def test_broken_images_leave_at_once_and_are_judged_once() -> None:
    model, batch, ball = half_broken()
    counted = Counted(model)
    found = run(APGD(steps=20), counted, batch, ball)
    broken = int((~correct(model, found, batch.y)).sum())
    assert len(counted.ascents) == 21
    assert sum(counted.verdicts) == broken
    assert counted.ascents[0] == 24
    assert counted.ascents[-1] >= 24 - broken > 0
    assert counted.ascents == sorted(counted.ascents, reverse=True)
    standing = [24 - sum(counted.verdicts[:number]) for number in range(len(counted.verdicts) + 1)]
    assert set(counted.ascents) <= set(standing)


@every_ball
def test_an_image_broken_at_the_start_costs_two_passes_and_one_that_stands_a_gradient_an_iterate(ball: Ball) -> None:
    batch, model = batch_of(3), tiny().eval()
    y = model(batch.x).argmax(dim=1)
    small = replace(ball, eps=1e-6)
    wrong = Counted(model)
    run(APGD(steps=20, restarts=3), wrong, batch._replace(y=(y + 1) % 4), small)
    assert (wrong.ascents, wrong.verdicts) == ([3], [3])
    right = Counted(model)
    run(APGD(steps=20, restarts=3), right, batch._replace(y=y), small)
    assert (right.ascents, right.verdicts) == ([3] * 63, [])
    aimed = Counted(model)
    run(TargetedAPGD(targets=9, steps=20, restarts=2), aimed, batch._replace(y=y), small)
    assert (aimed.ascents, aimed.verdicts) == ([3] * 21 * 2 * 3, [3])  # 3 wrong classes; the clean pass ranks them


@pytest.mark.parametrize("attack", [APGD(steps=5, restarts=4), TargetedAPGD(steps=5, restarts=2)], ids=["ce", "aimed"])
def test_later_runs_skip_broken_images_and_start_elsewhere(attack: APGD | TargetedAPGD) -> None:
    model, batch, ball = half_broken()
    points = asked(attack, model, batch, ball)
    sizes = [len(point) for point in points]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 24
    # The images that stand to the end are there in every run, at another point.
    found = run(attack, model, batch, ball)
    standing = correct(model, found, batch.y)
    assert sizes[-1] >= int(standing.sum()) > 0
    starts = [point[:: max(len(point) - 1, 1)] for point in points[::6]]
    assert len(torch.cat(starts).flatten(1).unique(dim=0)) == sum(map(len, starts))
    if isinstance(attack, APGD):  # one run's finds are the finds of several
        once = run(replace(attack, restarts=1), model, batch, ball)
        gone = ~correct(model, once, batch.y)
        assert torch.equal(found[gone], once[gone])


def test_a_hunt_gives_each_run_what_stands() -> None:
    x, asked = torch.zeros(5, 2), list[list[int]]()

    def walk(number: int, rows: Tensor) -> list[Visit]:
        asked.append(rows.tolist())
        return [Visit(rows, torch.full((len(rows), 2), number + 1.0), torch.arange(len(rows))[:2])]

    found = hunt(x, 9, lambda runs, rows: iter(walk(runs.start, rows)))
    assert asked == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]
    assert found[:, 0].tolist() == [1, 1, 2, 2, 3]
    assert torch.equal(x, torch.zeros(5, 2))


def test_a_search_that_errs_breaks_nothing() -> None:
    batch = batch_of(6)
    wrong = torch.tensor([True, False, True, False, False, False])
    counted = Counted(TwoFaced(batch, wrong))
    found = run(APGD(steps=4), counted, batch, Ball("linf", 0.01))
    assert torch.equal(found, batch.x)
    assert counted.ascents == [6] * 5
    assert counted.verdicts == [2] * 5


def test_a_search_that_gives_no_number_breaks_nothing_and_makes_no_image_of_none() -> None:
    batch = batch_of(6)
    model = TwoFaced(batch, torch.tensor([True, False, True, False, False, False]), face=float("nan"))
    walked = path(APGD(steps=4), model, batch, Ball("linf", 0.01))
    assert [len(visit.broken) for visit in walked] == [0] * 5
    assert all(visit.point.isfinite().all() for visit in walked)


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    batch, net = batch_of(6), tiny().eval()
    batch = batch._replace(y=net(batch.x).argmax(dim=1))

    def model(x: Tensor) -> Tensor:  # the gradient of the root at 0 is infinite
        return net(x) + (0 * x).sqrt().flatten(1).sum(dim=1, keepdim=True)

    for ball in (SMALL, Ball("l2", 1e-4)):
        start, *rest = asked(APGD(steps=4), model, batch, ball)
        assert start.isfinite().all()
        assert all(torch.equal(point, start) for point in rest)


def test_logits_that_are_no_number_are_wrong() -> None:
    batch, model = batch_of(6), tiny().eval()
    batch = batch._replace(y=model(batch.x).argmax(dim=1))
    found = run(APGD(steps=4), lambda x: model(x) * float("nan"), batch, BALL)
    assert not correct(lambda x: model(x) * float("nan"), found, batch.y).any()
    assert found.isfinite().all()
    assert (found != batch.x).flatten(1).any(dim=1).all()


# losses


def test_dlr_of_logits_that_are_known() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, -2.0], [4.0, 1.0, 3.0, 0.0, -2.0]], dtype=torch.float64)
    y, wrong = torch.tensor([0, 1]), torch.tensor([3, 0])
    assert torch.allclose(dlr(logits, y), torch.tensor([-1 / 3, 1.0]).double())
    assert torch.allclose(targeted_dlr(logits, y, wrong), torch.tensor([-4 / 3.5, 3 / 3.5]).double())
    for loss in (lambda z: dlr(z, y), lambda z: targeted_dlr(z, y, wrong)):
        assert torch.allclose(loss(3 * logits + 7), loss(logits))
        assert loss(logits.bfloat16()).dtype == torch.float32
        assert loss(torch.zeros(2, 4)).eq(0).all()


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_with_few_classes_the_margin_takes_the_place_of_the_ratio(classes: int) -> None:
    batch, model = batch_of(12, classes), tiny(classes).eval()
    batch = batch._replace(y=model(batch.x).argmax(dim=1))
    dlr_is_there, targeted_is_there = classes >= 3, classes >= 4
    assert APGD("dlr").instead(classes) == ("" if dlr_is_there else "margin instead of DLR: 2 classes")
    assert APGD("ce").instead(classes) == APGD("margin").instead(classes) == ""
    said = "" if targeted_is_there else f"margin instead of targeted DLR: {classes} classes"
    assert TargetedAPGD().instead(classes) == said
    plain = {name: asked(APGD(name, steps=5), model, batch, SMALL) for name in ("dlr", "margin")}
    assert all(map(torch.equal, plain["dlr"], plain["margin"])) == (not dlr_is_there)
    ascended: Callable[[Tensor, Tensor, Tensor], Tensor] = targeted_dlr if targeted_is_there else targeted_margin
    aimed = asked(TargetedAPGD(1, steps=5), model, batch, SMALL)
    wrong = model(batch.x).scatter(1, batch.y[:, None], float("-inf")).argmax(dim=1)
    walked = apgd_path(
        model,
        batch.x,
        batch.y,
        torch.arange(12),
        SMALL,
        stream(batch).sub("target", 0, "restart", 0),
        lambda logits, rows: ascended(logits, batch.y[rows], wrong[rows]),
        5,
        0.75,
    )
    assert all(map(torch.equal, aimed, [visit.point for visit in walked]))


def test_it_ascends_what_it_says() -> None:
    batch, model = batch_of(12), tiny().eval()
    batch = batch._replace(y=model(batch.x).argmax(dim=1))
    ascended = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
    for name, loss in ascended.items():
        points = asked(APGD(name, steps=5), model, batch, SMALL)
        leaf = points[0].requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(leaf), batch.y).sum(), leaf)
        first = SMALL.project(points[0] + 2 * SMALL.eps * gradient.sign(), batch.x)
        assert torch.equal(points[1], first.detach())


def test_what_means_nothing_is_refused() -> None:
    for make in (
        lambda: APGD(steps=0),
        lambda: APGD(restarts=0),
        lambda: APGD(rho=1.5),
        lambda: APGD(rho=float("nan")),
        lambda: APGD("cw"),
        lambda: TargetedAPGD(targets=0),
        lambda: TargetedAPGD(steps=0),
        lambda: TargetedAPGD(steps=1.5),
    ):
        with pytest.raises(DemiluneError):
            make()
