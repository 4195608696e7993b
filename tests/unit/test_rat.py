"""RAT's invariants T1 to T10 (rat.md 8), its ambiguities A1 to A9, and the table of expected quantities (rat.md 7)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import BALL, Scripted, batch_of, stream, tiny
from demilune.attacks import PGD, frozen
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.core.targets import distance_aware, entropy, smooth
from demilune.errors import DemiluneError
from demilune.methods import AVM, RAT, SAT, Batch, Examples, Method

ATTACK = PGD(steps=4, step_ratio=0.4)
LIMIT = RAT(ATTACK, samples=1, scale=1.0, scale_from=1.0, mass_high=1.0, mass_low=1.0, region="segment")


def made(method: Method, model: nn.Module, batch: Batch, ball: Ball = BALL) -> Examples:
    with frozen(model, method.bn):
        return method.examples(model, batch, ball, stream(batch))


def gradients(method: Method, model: nn.Module, examples: Examples) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    method.objective(model, examples).mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_t1_with_the_end_point_alone_and_hard_labels_it_is_sat_bit_for_bit() -> None:
    batch = batch_of()
    model, other = tiny(), tiny()
    ours, theirs = made(LIMIT, model, batch), made(SAT(ATTACK), other, batch)
    assert torch.equal(ours.points, theirs.points)
    assert torch.equal(ours.targets, theirs.targets)
    for mine, his in zip(gradients(LIMIT, model, ours), gradients(SAT(ATTACK), other, theirs), strict=True):
        assert torch.equal(mine, his)


def test_t2_two_copies_change_the_running_variance_alone() -> None:
    batch, model, other = batch_of(32), tiny(), tiny()
    double = replace(LIMIT, samples=2)
    ones, twos = made(LIMIT, model, batch), made(double, other, batch)
    for mine, his in zip(gradients(LIMIT, model, ones), gradients(double, other, twos), strict=True):
        assert torch.allclose(mine, his, atol=1e-6)
    for (name, mine), his in zip(model.named_buffers(), dict(other.named_buffers()).values(), strict=True):
        if name.endswith("running_mean"):
            assert torch.allclose(mine, his, atol=1e-6)
    # Unbiased variances of n and 2n equal values differ by (2n/(2n-1))/(n/(n-1)); the running one by a tenth of it.
    n = 32 * 8 * 8
    fresh, old = (dict(m.named_buffers())["net.features.1.running_var"] for m in (other, model))
    before = dict(tiny().named_buffers())["net.features.1.running_var"]
    ratio = (fresh - 0.9 * before) / (old - 0.9 * before)
    assert torch.allclose(ratio, torch.full_like(ratio, (2 * n / (2 * n - 1)) / (n / (n - 1))), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_t3_labels_lie_on_the_simplex(classes: int) -> None:
    scale = torch.linspace(0, 2, 21)
    mass = distance_aware(scale, 2.0, 1.0, 0.1)
    y = torch.arange(21) % classes
    targets = smooth(y, mass, classes)
    assert (targets >= 0).all()
    assert torch.allclose(targets.sum(dim=1), torch.ones(21), atol=1e-6)
    assert torch.equal(targets.gather(1, y[:, None]).squeeze(1), mass)
    rest = targets.scatter(1, y[:, None], float("nan"))
    expected = (1 - mass) / (classes - 1)
    others = rest[~rest.isnan()].reshape(21, classes - 1)
    assert torch.allclose(others, expected[:, None].expand_as(others), atol=1e-7)
    assert abs(float(mass[0]) - 1.0) <= 1e-7
    assert abs(float(mass[-1]) - 0.1) <= 1e-7


@pytest.mark.parametrize("clamp", ["points", "far"])
def test_t4_points_lie_where_the_formula_says(clamp: str) -> None:
    batch, model = batch_of(8), tiny().eval()
    method = replace(RAT(ATTACK, samples=5), clamp=clamp)
    ends = method.ends(model, batch, BALL, stream(batch))
    scale = method.draw_scale(stream(batch).sub("rat"), 8, torch.float32).T
    position = stream(batch).sub("rat").uniform("position", (8, 5)).T
    points = method.points(batch.x, ends.first, ends.end, position, scale)
    assert torch.equal(points.flatten(0, 1), made(method, model, batch).points)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = (points - batch.x).abs().flatten(2).amax(dim=2)
    assert (distance <= scale * BALL.eps + 1e-6).all()
    full = torch.ones(1, 8)

    def at(position: float, scale: float) -> torch.Tensor:
        return method.points(batch.x, ends.first, ends.end, full * position, full * scale)[0]

    assert torch.equal(at(0.3, 0.0), batch.x)
    if clamp == "points":
        assert torch.equal(at(0.0, 1.0), ends.end)
        assert torch.equal(at(1.0, 1.0), ends.first)


def test_t4_without_a_clamp_points_leave_the_box() -> None:
    batch = batch_of(8)._replace(x=torch.ones(8, 1, 8, 8) * 0.99)
    method = RAT(ATTACK, samples=9, scale=3.0, clamp="none")
    first, end = batch.x - 0.1, batch.x.clone()
    end[:, :, :4] += 0.01
    points = method.points(batch.x, first, end, torch.zeros(9, 8), torch.full((9, 8), 3.0))
    assert points.max() > 1


@pytest.mark.parametrize(
    ("wrong", "tau", "where"),
    [
        # iterates x'_0 … x'_3; x'_4 = x_e is never run forward
        ([False, False, True, True], 2, 2),
        ([False, True, False, False], 1, 1),
        ([True, True, True, True], 1, 1),
        ([True, False, False, False], 4, 4),
        ([False, False, False, False], 4, 4),
    ],
)
def test_t5_the_first_point_is_the_first_iterate_that_fools(wrong: list[bool], tau: int, where: int) -> None:
    batch = Batch(
        torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1]), 3, torch.arange(1), 0
    )
    method = RAT(PGD(steps=4, step_size=0.05))
    points = [it.point for it in method.attack.path(Scripted(batch.y, [wrong]), *batch[:2], BALL, stream(batch))]
    ends = method.ends(Scripted(batch.y, [wrong]), batch, BALL, stream(batch))
    assert int(ends.tau) == tau
    assert bool(ends.found) == any(wrong[1:])
    assert torch.equal(ends.first, points[where])
    assert torch.equal(ends.end, points[4])


def test_a2_the_random_start_may_be_counted() -> None:
    batch = Batch(torch.full((1, 1, 4, 4), 0.5), torch.tensor([1]), 3, torch.arange(1), 0)
    method = RAT(PGD(steps=4, step_size=0.05), count_start=True)
    wrong = [[True, True, True, True]]
    ends = method.ends(Scripted(batch.y, wrong), batch, BALL, stream(batch))
    assert int(ends.tau) == 0
    assert torch.equal(ends.first, BALL.sample(batch.x, stream(batch).sub("start")))


def test_a1_fallbacks() -> None:
    """An untrained network that no iterate fools: its label is what it predicts by a mile."""
    batch, model = batch_of(5), tiny().eval()
    with torch.no_grad():
        model.net.linear.bias[2] += 50.0
    batch = batch._replace(y=torch.full((5,), 2))
    method = RAT(ATTACK)
    path = [it.point for it in method.attack.path(model, batch.x, batch.y, BALL, stream(batch))]
    losses = torch.stack([cross_entropy(model(p), batch.y) for p in path[1:-1]])
    loudest = torch.stack(path[1:-1])[losses.argmax(dim=0), torch.arange(5)]
    expected = {"end": path[-1], "start": path[1], "loudest": loudest}
    for fallback, points in expected.items():
        ends = replace(method, fallback=fallback).ends(model, batch, BALL, stream(batch))
        assert not ends.found.any()
        assert torch.equal(ends.first, points), fallback


def test_t6_recording_the_first_point_does_not_change_the_path() -> None:
    batch, model = batch_of(), tiny()
    assert torch.equal(
        RAT(ATTACK).ends(model.eval(), batch, BALL, stream(batch)).end, made(SAT(ATTACK), model, batch).points
    )


@pytest.mark.parametrize(("largest", "values"), [(2.0, 21), (3.0, 31)])
def test_t7_scales_are_uniform_on_the_grid(largest: float, values: int) -> None:
    n = 100_000
    method = RAT(scale=largest, samples=1)
    drawn = method.draw_scale(Stream.of(0).images(torch.arange(n)), n, torch.float32).flatten()
    grid, counts = drawn.unique(return_counts=True)
    assert torch.equal(grid, torch.arange(values).float() / 10)
    sigma = math.sqrt(n / values * (1 - 1 / values))
    assert ((counts - n / values).abs() < 5 * sigma).all()
    assert float(distance_aware(drawn, largest, 1.0, 0.1).mean()) == pytest.approx(0.55, abs=0.005)
    position = Stream.of(0).images(torch.arange(n)).uniform("position", (n, 1))
    assert float(position.mean()) == pytest.approx(0.5, abs=0.005)


def test_a4_a5_scales_can_be_shared_and_continuous() -> None:
    rng = Stream.of(0).images(torch.arange(50))
    shared = RAT(samples=3, share_scale=True)
    batch = batch_of(6)
    masses = made(shared, tiny(), batch).targets.gather(1, batch.y.repeat(3)[:, None]).reshape(3, 6)
    assert torch.equal(masses[0], masses[1])
    drawn = RAT(scales="continuous").draw_scale(rng, 50, torch.float32)
    assert len(drawn.unique()) == 100
    assert 0 <= drawn.min() < drawn.max() < 2


def test_t8_without_the_first_point_it_is_avm() -> None:
    batch, model = batch_of(16), tiny()
    avm = AVM(ATTACK, clamp=False)
    theirs = made(avm, model, batch)
    weight = stream(batch).sub("avm").uniform("weight", (16, 1)).T
    method = RAT(ATTACK, samples=1, region="segment", clamp="none", scales="continuous")
    ends = method.ends(model.eval(), batch, BALL, stream(batch))
    scale = 2 * (1 - weight)
    points = method.points(batch.x, ends.first, ends.end, torch.rand(1, 16), scale)[0]
    targets = smooth(batch.y, distance_aware(scale[0], 2.0, 1.0, 0.1), 4)
    assert torch.allclose(points, theirs.points, atol=1e-6)
    assert torch.allclose(targets, theirs.targets, atol=1e-6)


@pytest.mark.parametrize("bn", ["eval", "train_frozen", "train"])
def test_t9_nothing_leaks(bn: str) -> None:
    batch, model = batch_of(), tiny()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = made(replace(RAT(ATTACK), bn=bn), model, batch)
    assert not found.points.requires_grad
    assert not found.targets.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    same = all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert same == (bn != "train")


def test_t10_the_loss_at_the_labels_own_logits_is_their_entropy() -> None:
    mass = torch.tensor([0.95, 0.55, 0.1])
    targets = smooth(torch.tensor([0, 3, 9]), mass, 10)
    assert torch.allclose(cross_entropy(targets.log(), targets), entropy(targets), atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "largest", "high", "low", "floor"),
    [
        (10, 2, 1.0, 0.1, 1.5042),
        (100, 2, 1.0, 0.1, 2.5832),
        (10, 3, 1.0, 0.1, 1.5107),
        (10, 2, 1.0, 0.3, 1.3039),
        (10, 2, 1.0, 0.5, 1.0413),
        (10, 2, 0.8, 0.1, 1.7996),
        (10, 2, 0.6, 0.1, 2.0228),
    ],
)
def test_loss_floors(classes: int, largest: int, high: float, low: float, floor: float) -> None:
    """The floors of rat.md 7."""
    scale = torch.arange(largest * 10 + 1, dtype=torch.float64) / 10
    mass = distance_aware(scale, largest, high, low)
    targets = smooth(torch.zeros(len(scale), dtype=torch.int64), mass, classes)
    assert float(entropy(targets).mean()) == pytest.approx(floor, abs=5e-5)


def test_it_costs_exactly_the_gradients_of_sat() -> None:
    batch = batch_of()
    counts = {}
    for method in (SAT(ATTACK), RAT(ATTACK)):
        model = tiny()
        calls: list[bool] = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        made(method, model, batch)
        counts[type(method)] = calls
    assert counts[SAT] == counts[RAT] == [True] * ATTACK.steps


def test_a8_many_passes_have_the_same_loss_up_to_batch_norm() -> None:
    batch, model = batch_of(8), tiny()
    one, many = RAT(ATTACK), RAT(ATTACK, passes="many")
    found = made(one, model, batch)
    model.eval()
    assert torch.allclose(one.objective(model, found), many.objective(model, found), atol=1e-6)
    model.train()
    counter = dict(model.named_buffers())["net.features.1.num_batches_tracked"]
    before = int(counter)
    many.objective(model, found)
    assert int(counter) == before + 2


def test_notes_say_what_the_path_was_like() -> None:
    batch, model = batch_of(16), tiny()
    found = made(RAT(ATTACK), model, batch)
    ends = RAT(ATTACK).ends(model.eval(), batch, BALL, stream(batch))
    notes = {name: float(note.total / note.weight) for name, note in found.notes.items()}
    assert notes["found"] == pytest.approx(float(ends.found.float().mean()))
    assert notes["tau"] == pytest.approx(float(ends.tau[ends.found].float().mean()))
    far = (ends.first - ends.end).abs().flatten(1).amax(dim=1).mean() / BALL.eps
    assert notes["first_to_end"] == pytest.approx(float(far), rel=1e-5)
    one, two = ((end - batch.x).flatten(1) for end in (ends.first, ends.end))
    angle = (one * two).sum(dim=1) / (one.norm(dim=1) * two.norm(dim=1))
    assert notes["cosine"] == pytest.approx(float(angle.mean()), rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"scale": 0.0},
        {"scale": 2.05},
        {"scale_from": 3.0},
        {"mass_high": 1.2},
        {"mass_low": float("nan")},
        {"attack": PGD(steps=0)},
    ],
)
def test_fields_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DemiluneError):
        RAT(**wrong)
