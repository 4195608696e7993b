"""Attacks where the answer is known, the readings of a path, the judge, and the network held still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from demilune.attacks import (
    CW,
    FGSM,
    PGD,
    Attack,
    BestOf,
    Iterate,
    IterativeAttack,
    Model,
    MultiTargeted,
    TargetedPGD,
    Verdict,
    ascend,
    correct,
    frozen,
    judged,
    read,
    survivors,
)
from demilune.core.geometry import Ball
from demilune.core.losses import margin
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

L2 = Ball("l2", 0.5)
BALLS = {"linf": BALL, "l2": L2}
ITERATIVE: dict[str, IterativeAttack] = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=6, step_ratio=0.3),
    "cw": CW(steps=6, step_ratio=0.3),
    "targeted_pgd": TargetedPGD(steps=6, step_ratio=0.3),
}
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
every_iterative = pytest.mark.parametrize("attack", ITERATIVE.values(), ids=ITERATIVE)


class Linear(nn.Module):
    """Logits x W + b of flattened images."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        weight = Stream.of(seed, "weight").normal("weight", (64, classes), dtype=torch.float64)
        self.weight = nn.Parameter(weight / 8)
        self.bias = nn.Parameter(torch.zeros(classes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias


def inner_batch(classes: int, n: int = 6) -> Batch:
    """Return images that a ball of radius 0.25 keeps inside the box."""
    batch = batch_of(n, classes, dtype=torch.float64)
    return batch._replace(x=0.3 + 0.4 * batch.x)


def towards(model: Linear, y: Tensor, wrong: Tensor) -> Tensor:
    """Return the direction w_t - w_y in which class t gains on class y, as images."""
    return (model.weight[:, wrong] - model.weight[:, y]).detach().T.reshape(-1, 1, 8, 8)


def walk(attack: IterativeAttack, model: Model, batch: Batch, ball: Ball) -> list[Iterate]:
    return list(attack.path(model, batch.x, batch.y, ball, stream(batch)))


def run(attack: Attack, model: Model, batch: Batch, ball: Ball) -> Tensor:
    return attack(model, batch.x, batch.y, ball, stream(batch))


# closed forms

TO_THE_END: dict[str, Attack] = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=60, step_ratio=0.5),
    "pgd without a random start": PGD(steps=60, step_ratio=0.5, random_start=False),
    "cw": CW(steps=60, step_ratio=0.5),
    "targeted_pgd": TargetedPGD(steps=60, step_ratio=0.5),
    "multi_targeted": MultiTargeted(steps=60, step_ratio=0.5),
    "best_of": BestOf(PGD(steps=60, step_ratio=0.5), restarts=2),
}


@pytest.mark.parametrize("attack", TO_THE_END.values(), ids=TO_THE_END)
@pytest.mark.parametrize("clipped", [False, True])
def test_on_two_linear_classes_linf_attacks_reach_the_corner_exactly(attack: Attack, clipped: bool) -> None:
    batch = batch_of(6, 2, dtype=torch.float64) if clipped else inner_batch(2)
    model = Linear(2)
    corner = batch.x + BALL.eps * towards(model, batch.y, 1 - batch.y).sign()
    assert bool((corner != corner.clamp(0, 1)).any()) == clipped
    found = run(attack, model, batch, BALL)
    if isinstance(attack, BestOf):  # of iterates with equal margins the first is kept, whatever rounding says
        assert torch.allclose(found, corner.clamp(0, 1), atol=1e-12)
    else:
        assert torch.equal(found, corner.clamp(0, 1))


@pytest.mark.parametrize("attack", TO_THE_END.values(), ids=TO_THE_END)
def test_on_two_linear_classes_l2_attacks_reach_the_pole(attack: Attack) -> None:
    batch, model = inner_batch(2), Linear(2)
    ball = Ball("l2", 0.25)
    direction = towards(model, batch.y, 1 - batch.y)
    pole = batch.x + ball.eps * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    found = run(attack, model, batch, ball)
    if isinstance(attack, BestOf):  # its margins are compared in float32, and near the pole they are flat
        assert torch.allclose(margin(model(found), batch.y), margin(model(pole), batch.y), atol=1e-6)
    else:
        assert torch.allclose(found, pole, atol=1e-6)


@every_ball
def test_fgsm_is_one_step_of_pgd_of_the_whole_radius(ball: Ball) -> None:
    batch, model = batch_of(), tiny().eval()
    one = PGD(steps=1, step_ratio=1.0, random_start=False)
    assert torch.equal(run(FGSM(), model, batch, ball), run(one, model, batch, ball))
    assert torch.equal(
        run(replace(one, step_ratio=None, step_size=ball.eps), model, batch, ball), run(one, model, batch, ball)
    )


def test_without_steps_pgd_returns_its_start() -> None:
    batch, model = batch_of(), tiny().eval()
    start = BALL.sample(batch.x, stream(batch).sub("start"))
    assert torch.equal(run(PGD(steps=0), model, batch, BALL), start)
    assert torch.equal(run(PGD(steps=0, random_start=False), model, batch, BALL), batch.x)


# paths


@every_iterative
@every_ball
def test_a_path_has_k_plus_one_points_with_the_logits_at_each_but_the_last(attack: IterativeAttack, ball: Ball) -> None:
    batch, model = batch_of(), tiny().eval()
    path = walk(attack, model, batch, ball)
    assert len(path) == getattr(attack, "steps", 1) + 1
    assert path[-1].logits is None
    for point, logits in path[:-1]:
        assert torch.equal(logits, model(point).detach())
        assert not point.requires_grad
        assert not logits.requires_grad
    for point, _ in path:
        assert (ball.distance(point, batch.x) <= ball.eps + 1e-6).all()
    assert torch.equal(path[-1].point, run(attack, model, batch, ball))


@every_iterative
@every_ball
def test_a_short_run_is_the_beginning_of_a_long_one(attack: IterativeAttack, ball: Ball) -> None:
    batch, model = batch_of(), tiny().eval()
    if isinstance(attack, FGSM):
        return
    path = walk(attack, model, batch, ball)
    for steps in range(attack.steps + 1):
        assert torch.equal(run(replace(attack, steps=steps), model, batch, ball), path[steps].point)


def test_a_path_that_is_left_early_leaves_nothing_behind() -> None:
    batch, model = batch_of(), tiny()
    path = ITERATIVE["pgd"].path(model, batch.x, batch.y, BALL, stream(batch))
    next(path)
    assert torch.is_grad_enabled()
    assert model.training
    del path
    assert all(parameter.grad is None for parameter in model.parameters())


# readings


@every_iterative
@every_ball
def test_readings_are_ordered(attack: IterativeAttack, ball: Ball) -> None:
    batch, model = batch_of(12), tiny().eval()
    found = read(attack, model, batch.x, batch.y, ball, stream(batch), restarts=3)
    assert torch.equal(found.last, run(attack, model, batch, ball))
    last, some, best = (margin(model(points), batch.y).detach() for points in found)
    assert (some >= last).all()
    assert (best >= some).all()
    path = walk(attack, model, batch, ball)
    heights = torch.stack([margin(model(point), batch.y).detach() for point, _ in path[1:]])
    assert torch.allclose(some, heights.amax(dim=0), atol=1e-6)
    alone = read(attack, model, batch.x, batch.y, ball, stream(batch))
    assert torch.equal(alone.best, alone.any)
    assert torch.equal(alone.any, found.any)
    best_of = BestOf(attack, restarts=3)
    assert torch.equal(run(best_of, model, batch, ball), found.best)


class Counted:
    """A model that notes how many images each pass has."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.sizes = model, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.model(x)


def half_broken() -> tuple[nn.Module, Batch, Ball]:
    """Return a network and images of which some break at the first run, some later, some never."""
    batch, model = batch_of(24), tiny().eval()
    batch = batch._replace(y=torch.where(torch.arange(24) < 20, model(batch.x).argmax(dim=1), batch.y))
    return model, batch, Ball("linf", 0.04)


def test_restarts_skip_broken_images_and_change_no_others_result() -> None:
    model, batch, ball = half_broken()
    attack, rng = PGD(steps=3, step_ratio=0.4), stream(batch)
    counted = Counted(model)
    found = read(attack, counted, batch.x, batch.y, ball, rng, restarts=4)
    unbroken = margin(model(found.any), batch.y) <= 0
    assert 0 < int(unbroken.sum()) < 24
    first, later = counted.sizes[:5], counted.sizes[5:]
    assert first == [24] * 5
    assert max(later) == later[0] == int(unbroken.sum())
    rows = unbroken.nonzero().squeeze(1)
    alone = read(attack, model, batch.x[rows], batch.y[rows], ball, rng.take(rows), restarts=4)
    assert torch.allclose(alone.best, found.best[rows], atol=1e-6)
    assert torch.equal(found.best[~unbroken], found.any[~unbroken])


def test_restarts_start_elsewhere() -> None:
    _, batch, ball = half_broken()
    attack, starts = PGD(steps=1, step_ratio=0.01), list[Tensor]()

    def constant(x: Tensor) -> Tensor:
        starts.append(x.detach())
        return torch.nn.functional.one_hot(batch.y, 4).float() + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    read(attack, constant, batch.x, batch.y, ball, stream(batch), restarts=3)
    begun = torch.stack(starts[::3]).flatten(1)
    assert len(begun.unique(dim=0)) == len(begun) == 3


def test_the_random_start_is_no_iterate_that_counts() -> None:
    batch, attack, calls = batch_of(1, 2), PGD(steps=3, step_size=0.05), list[Tensor]()

    def fooled_by_the_start(x: Tensor) -> Tensor:
        calls.append(x.detach())
        gain = 0.01 * x.flatten(1).mean(dim=1) + (5.0 if torch.equal(x, calls[0]) else -5.0)
        return torch.zeros(len(x), 2).scatter(1, 1 - batch.y[:, None], gain[:, None])

    found = read(attack, fooled_by_the_start, batch.x, batch.y, BALL, stream(batch))
    assert not torch.equal(calls[0], calls[1])
    assert torch.equal(found.any, found.last)
    assert not torch.equal(found.any, calls[0])


@pytest.mark.parametrize("attack", [ITERATIVE["pgd"], ITERATIVE["cw"]])
def test_robust_accuracy_never_rises_with_more_steps(attack: IterativeAttack) -> None:
    model, batch, ball = half_broken()
    before, right = torch.full((24,), float("-inf")), 24
    for steps in range(1, 7):
        found = read(replace(attack, steps=steps), model, batch.x, batch.y, ball, stream(batch)).any
        height = margin(model(found), batch.y).detach()
        assert (height >= before - 1e-6).all()
        now = int(correct(model, found, batch.y).sum())
        assert now <= right
        before, right = height, now
    assert right < int(correct(model, batch.x, batch.y).sum())


def test_the_verdict_of_a_reading_is_not_the_searchs_own() -> None:
    """Logits that are wrong under gradients, as low precision may make them, do not break an image."""
    model, batch, ball = half_broken()

    def lying(x: Tensor) -> Tensor:
        return -model(x) if torch.is_grad_enabled() else model(x)

    found = read(PGD(steps=3), lying, batch.x, batch.y, ball, stream(batch))
    last, some = (margin(model(points), batch.y).detach() for points in (found.last, found.any))
    assert (some >= last).all()


# CW


@every_ball
def test_at_kappa_50_cw_ascends_the_plain_margin(ball: Ball) -> None:
    batch, model = batch_of(), tiny().eval()
    start = ball.sample(batch.x, stream(batch).sub("start"))
    plain = ascend(model, batch.x, start, lambda logits: margin(logits, batch.y), ball, 0.02, 5)
    for ours, theirs in zip(walk(CW(steps=5, step_size=0.02), model, batch, ball), plain, strict=True):
        assert torch.equal(ours.point, theirs.point)


@pytest.mark.parametrize("attack", [ITERATIVE["cw"], ITERATIVE["pgd"], ITERATIVE["targeted_pgd"], CW(kappa=0.0)])
@pytest.mark.parametrize("shift", [-100.0, 30.0])
@every_ball
def test_a_constant_added_to_all_logits_changes_no_attack(attack: IterativeAttack, shift: float, ball: Ball) -> None:
    """Fails for the form whose true class contributes 0 to the maximum: with all wrong logits below 0 it stalls."""
    batch, model = batch_of(dtype=torch.float64), tiny(dtype=torch.float64).eval()
    shifted = run(attack, lambda x: model(x) + shift, batch, ball)
    assert torch.allclose(shifted, run(attack, model, batch, ball), atol=1e-6)


@every_ball
def test_at_kappa_0_misclassified_images_stay_put(ball: Ball) -> None:
    model, batch, _ = half_broken()
    path = walk(CW(steps=6, step_ratio=0.3, kappa=0.0), model, batch, ball)
    stayed = 0
    for here, after in pairwise(path):
        wrong = margin(here.logits, batch.y) > 0
        assert torch.equal(here.point[wrong], after.point[wrong])
        assert not torch.equal(here.point[~wrong], after.point[~wrong])
        stayed += int(wrong.sum())
    assert stayed > 0


# targets


@pytest.mark.parametrize("rank", [1, 2, 3, 99, -1, -2, -3, -99])
def test_ranks_aim_at_the_right_class(rank: int) -> None:
    batch, model = inner_batch(4), Linear(4)
    logits = model(batch.x).detach()
    order = [[int(c) for c in row.argsort(descending=True) if c != y] for row, y in zip(logits, batch.y, strict=True)]
    place = min(rank, 3) - 1 if rank > 0 else max(3 + rank, 0)
    wrong = torch.tensor([row[place] for row in order])
    found = run(TargetedPGD(rank, steps=60, step_ratio=0.5), model, batch, BALL)
    assert torch.equal(found, batch.x + BALL.eps * towards(model, batch.y, wrong).sign())


def test_an_image_survives_multi_targeted_only_if_it_survives_every_target() -> None:
    model, batch, _ = half_broken()
    ball = Ball("linf", 0.05)
    attack = MultiTargeted(targets=3, steps=4, step_ratio=0.3)
    height = margin(model(run(attack, model, batch, ball)), batch.y).detach()
    broken = torch.zeros(24, dtype=torch.bool)
    for number in range(3):
        single = TargetedPGD(number + 1, 4, step_ratio=0.3)
        point = single(model, batch.x, batch.y, ball, stream(batch).sub("target", number))
        alone = margin(model(point), batch.y).detach()
        assert (height >= alone - 1e-6)[~broken].all()
        broken |= alone > 0
    assert torch.equal(height > 0, broken)
    assert 0 < int(broken.sum()) < 24


def test_multi_targeted_runs_no_more_targets_than_there_are_nor_broken_images() -> None:
    model, batch, ball = half_broken()
    counted = Counted(model)
    run(MultiTargeted(targets=9, steps=2, step_ratio=0.5), counted, batch, ball)
    sizes = counted.sizes[1::3]
    assert counted.sizes[0] == 24
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 24 > sizes[-1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: PGD(steps=-1),
        lambda: PGD(step_size=0.0),
        lambda: PGD(step_size=float("nan")),
        lambda: PGD(step_ratio=0.0),
        lambda: CW(step_ratio=float("inf")),
        lambda: CW(steps=-3),
        lambda: TargetedPGD(rank=0),
        lambda: TargetedPGD(steps=-1),
        lambda: MultiTargeted(targets=0),
        lambda: MultiTargeted(step_size=-1.0),
        lambda: BestOf(restarts=0),
    ],
)
def test_fields_that_mean_nothing_are_refused(make: Callable[[], Attack]) -> None:
    with pytest.raises(DemiluneError):
        make()


# the judge


def fixed(logits: list[list[float]]) -> Model:
    return lambda x: torch.tensor(logits)[: len(x)]


def test_an_image_outside_the_ball_or_the_box_is_refused() -> None:
    batch, model = batch_of(3), tiny().eval()
    x = batch.x.clone()
    for ball in (Ball("linf", 0.1), Ball("l2", 0.1)):
        for value in (x[1, 0, 0, 0] + (0.101 if x[1, 0, 0, 0] < 0.5 else -0.101), float("nan")):
            moved = x.clone()
            moved[1, 0, 0, 0] = value
            with pytest.raises(DemiluneError, match="nothing was counted"):
                judged(model, x, moved, batch.y, ball)
        assert len(judged(model, x, ball.project(x + 1, x), batch.y, ball)) == 3
    for value in (1.0001, -0.0001):
        outside = torch.full_like(x, value)
        with pytest.raises(DemiluneError, match=r"\[0,1\]"):
            judged(model, outside.clamp(0, 1), outside, batch.y, BALL)


def test_a_large_ball_in_many_pixels_may_round() -> None:
    """At radius 8 over 150,528 pixels a projected point is 3e-6 away from the sphere, as float32 has it."""
    rng, ball = Stream.of(0), Ball("l2", 8.0)
    x = 0.475 + 0.05 * rng.uniform("x", (2, 3, 224, 224))
    point = ball.project(x + rng.uniform("point", x.shape, -10.0, 10.0), x)
    assert judged(fixed([[1.0, 0.0]] * 2), x, point, torch.tensor([0, 1]), ball).tolist() == [True, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_never_correct(value: float) -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    logits = [[1.0, 0.0], [value, 0.0], [0.0, value]]
    assert correct(fixed(logits), x, torch.tensor([0, 0, 0])).tolist() == [True, False, False]
    assert correct(fixed(logits), x, torch.tensor([1, 1, 1])).tolist() == [False, False, False]


def test_the_strict_reading_wants_both() -> None:
    verdict = Verdict(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
    assert verdict.robust.tolist() == [True, False, False, False]


def test_survivors_searches_with_one_model_and_judges_with_the_other() -> None:
    model, batch, _ = half_broken()
    attack, rng = PGD(steps=3), stream(batch)
    searched = list[Tensor]()

    def search(x: Tensor) -> Tensor:
        searched.append(x)
        return -model(x)

    verdict = survivors(model, batch.x, batch.y, attack, BALL, rng, search)
    point = attack(lambda x: -model(x), batch.x, batch.y, BALL, rng)
    assert len(searched) == 3
    assert torch.equal(verdict.clean, correct(model, batch.x, batch.y))
    assert torch.equal(verdict.after, correct(model, point, batch.y))
    plain = survivors(model, batch.x, batch.y, attack, BALL, rng)
    assert torch.equal(plain.after, correct(model, attack(model, batch.x, batch.y, BALL, rng), batch.y))
    assert int(plain.robust.sum()) < int(plain.clean.sum())


def test_at_radius_zero_robust_accuracy_is_clean_accuracy() -> None:
    model, batch, _ = half_broken()
    for attack in TO_THE_END.values():
        verdict = survivors(model, batch.x, batch.y, attack, Ball("linf", 0.0), stream(batch))
        assert torch.equal(verdict.clean, verdict.after)


# a network held still


def mixed_modes() -> nn.Module:
    """Return a network in train mode with one batch norm in eval mode, one weight fixed, and dropout."""
    model = nn.Sequential(tiny(), nn.Dropout(0.5)).train()
    model[0].net.features[1].eval()
    model[0].net.linear.bias.requires_grad_(False)
    return model


def flags(model: nn.Module) -> list[object]:
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    return [*modes, *(parameter.requires_grad for parameter in model.parameters())]


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([buffer.flatten().float() for norm in norms(model) for buffer in norm.buffers()])


@pytest.mark.parametrize("bn", ["eval", "train_frozen", "train", "keep"])
@pytest.mark.parametrize("fails", [False, True])
def test_frozen_holds_a_network_in_the_mode_named_and_restores_every_flag(bn: str, fails: bool) -> None:
    model, x = mixed_modes(), batch_of().x
    before, old = flags(model), statistics(model)
    training = [module.training for module in model.modules()]
    try:
        with frozen(model, bn):
            assert not any(parameter.requires_grad for parameter in model.parameters())
            wanted = training if bn == "keep" else [bn != "eval"] * len(training)
            assert [module.training for module in model.modules()] == wanted
            model(x)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert flags(model) == before
    assert torch.equal(statistics(model), old) == (bn != "train")
    if bn == "train":
        assert all(int(norm.num_batches_tracked) == 2 for norm in norms(model))


def test_batch_norm_uses_the_statistics_named() -> None:
    model, x = tiny(), batch_of().x
    running = tiny().eval()(x).detach()
    batch = tiny().train()(x).detach()
    assert not torch.allclose(running, batch, atol=1e-3)
    for start in (True, False):
        for bn, expected in (("eval", running), ("train_frozen", batch), ("keep", batch if start else running)):
            with frozen(model.train(start), bn):
                assert torch.equal(model(x), expected), bn


def test_frozen_leaves_what_is_no_module_alone() -> None:
    model = tiny()
    with frozen(lambda x: model(x), "eval"):
        assert model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
