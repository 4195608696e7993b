"""Surveys of the loss: closed forms on networks whose loss is known, and what must stay as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import tiny
from demilune.attacks import PGD
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.weights import movable
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate.curvature import hessian_product, input_curvature, lanczos, weight_curvature
from demilune.evaluate.direction import SCALES, direction
from demilune.evaluate.landscape import filter_normalised, input_landscape, weight_landscape
from demilune.methods import RAT
from demilune.surveys import Curvature, Direction, Landscape, Survey, survey

BALL = Ball("linf", 0.1)
RNG = Stream.of(0, "evaluation")
ATTACK = PGD(steps=3, step_ratio=0.4)
METHOD = RAT(ATTACK)
PLACES = (-1.0, 0.0, 0.5)


def images(n: int = 10, side: int = 8, classes: int = 4) -> Split:
    draw = Stream.of(1)
    x = draw.integers("x", (n, 1, side, side), 0, 256).to(torch.uint8)
    return Split(x, draw.integers("y", (n,), 0, classes), torch.arange(100, 100 + n))


def easy(model: nn.Module, split: Split) -> Split:
    """Return the images labelled as the model sees them."""
    with torch.no_grad():
        return Split(split.images, model.eval()(split.pixels(slice(None))).argmax(dim=1), split.ids)


def linear(side: int = 3, classes: int = 4, scale: float = 1.0) -> nn.Sequential:
    """Return z = W x + b, of which loss and second derivatives are known."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes))
    draw = Stream.of(2)
    with torch.no_grad():
        model[1].weight.copy_(scale * draw.normal("weight", (classes, side * side)))
        model[1].bias.copy_(scale * draw.normal("bias", (classes,)))
    return model


def state(model: nn.Module) -> list[Any]:
    tensors = [tensor.clone() for tensor in model.state_dict().values()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    return [tensors, flags, [module.training for module in model.modules()], torch.get_rng_state()]


def same(one: list[Any], other: list[Any]) -> bool:
    bits = all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
    return bits and one[1:3] == other[1:3] and torch.equal(one[3], other[3])


class Stop(Exception):  # noqa: N818 - no error
    pass


def stop_at(count: int) -> Callable[[int, int], None]:
    def watch(done: int, total: int) -> None:
        if done >= count:
            raise Stop

    return watch


SURVEYS: dict[str, Callable[[nn.Module, Split, int, Callable[[int, int], None]], Survey]] = {
    "direction": lambda m, s, b, w: direction(m, s, BALL, RNG, METHOD, SCALES[::5], batch=b, watch=w),
    "weights": lambda m, s, b, w: weight_landscape(m, s, BALL, RNG, ATTACK, PLACES, (0.0, 1.0), batch=b, watch=w),
    "input": lambda m, s, b, w: input_landscape(m, s, BALL, RNG, ATTACK, PLACES, (0.0, 1.0), batch=b, watch=w),
    "weight curvature": lambda m, s, b, w: weight_curvature(m, s, BALL, RNG, ATTACK, batch=b, watch=w),
    "input curvature": lambda m, s, b, w: input_curvature(m, s, BALL, RNG, ATTACK, batch=b, watch=w),
}


@pytest.mark.parametrize("name", SURVEYS)
def test_a_survey_changes_nothing_and_depends_on_no_batch(name: str) -> None:
    model = tiny()
    split = easy(model, images())
    before = state(model.train())
    told: list[tuple[int, int]] = []
    whole = SURVEYS[name](model, split, 10, lambda done, total: told.append((done, total)))
    again = SURVEYS[name](model, split, 10, lambda done, total: None)
    parts = SURVEYS[name](model, split, 3, lambda done, total: None)
    with pytest.raises(Stop):
        SURVEYS[name](model, split, 3, stop_at(4))
    assert same(before, state(model))
    assert whole == again
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)
    first, second = ({k: v for k, v in one.to_json().items() if k != "residual"} for one in (whole, parts))
    for key, value in first.items():
        if isinstance(value, tuple) and key != "axes":
            assert torch.allclose(torch.tensor(value), torch.tensor(second[key]), rtol=2e-3, atol=1e-5), key
        else:
            assert value == pytest.approx(second[key]) if isinstance(value, float) else value == second[key]


@pytest.mark.parametrize("name", SURVEYS)
def test_a_survey_is_written_and_read(name: str) -> None:
    model = tiny()
    found = SURVEYS[name](model, easy(model, images(4)), 4, lambda done, total: None)
    assert survey(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


def test_a_direction_is_the_formula() -> None:
    model, split = linear(), images(40, 3)
    x, y = split.pixels(slice(None)), split.labels
    right = model(x).argmax(dim=1) == y
    assert 3 < right.sum() < 40
    x, y, draws = x[right], y[right], RNG.images(split.ids[right])
    path = [point for point, _ in ATTACK.path(model, x, y, BALL, draws)]
    wrong = torch.stack([model(point).argmax(dim=1) != y for point in path[1:]])
    tau = torch.where(wrong.any(dim=0), wrong.int().argmax(dim=0), 2)
    first = torch.stack(path[1:])[tau, torch.arange(len(x))]
    weight = draws.sub("direction").uniform("position", (len(x), 1))[:, :, None, None]
    middle = weight * first + (1 - weight) * path[-1]
    found = direction(model, split, BALL, RNG, METHOD, (0.0, 0.5, 1.0, 2.0), batch=7)
    for k, scale in enumerate(found.scales):
        logits = model((x + scale * (middle - x)).clamp(0, 1)).detach().double()
        loss = torch.logsumexp(logits, dim=1) - logits.gather(1, y[:, None]).squeeze(1)
        assert found.loss[k] == pytest.approx(float(loss.mean()), rel=1e-5)
        assert found.spread[k] == pytest.approx(float(loss.std()), rel=1e-4)
        assert found.quantiles[k] == pytest.approx(
            torch.quantile(loss, torch.tensor(found.levels).double()).tolist(), rel=1e-4
        )
        assert found.right[k] == int((logits.argmax(dim=1) == y).sum())
        chances = logits.softmax(dim=1)
        assert found.mass[k] == pytest.approx(float(chances.gather(1, y[:, None]).mean()), rel=1e-5)
        rest = chances.scatter(1, y[:, None], 0.0)
        assert found.other[k] == pytest.approx(float(rest.amax(dim=1).mean()), rel=1e-5)
    assert (found.n, found.images, found.right[0]) == (int(right.sum()), 40, int(right.sum()))
    assert found.fooled[0] == 0.0 and found.accuracy[0] == found.n / 40 and found.errors[0] == 0.0
    assert found.falls == 0


def test_a_direction_needs_a_right_image_and_a_loss_that_is_a_number() -> None:
    model, split = linear(), images(6, 3)
    other = Split(split.images, (model(split.pixels(slice(None))).argmax(dim=1) + 1) % 4, split.ids)
    with pytest.raises(DemiluneError, match="none of 6 images"):
        direction(model, other, BALL, RNG, METHOD)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model(x)
            return logits if len(x) == 6 and torch.equal(x, split.pixels(slice(None))) else logits * float("nan")

    with pytest.raises(DemiluneError, match="loss holds nan"):
        direction(Broken(), easy(model, split), BALL, RNG, METHOD, (0.0, 1.0))


def test_filters_of_a_random_direction_have_the_weights_norms() -> None:
    model = tiny()
    weights = movable(model)
    assert sorted(name.split(".")[-1] for name in weights) == ["weight"] * 4
    for name, drawn in filter_normalised(weights, RNG).items():
        assert torch.allclose(drawn.flatten(1).norm(dim=1), weights[name].flatten(1).norm(dim=1), rtol=1e-5)
    with torch.no_grad():
        next(iter(weights.values()))[0] = 0.0  # a filter that is off stays off
    assert not filter_normalised(weights, RNG)[next(iter(weights))][0].any()


def test_a_weight_landscape_is_the_loss_of_the_moved_network() -> None:
    model, split = linear(), images(12, 3)
    x, y = split.pixels(slice(None)), split.labels
    found = weight_landscape(model, split, BALL, RNG, None, PLACES, (0.0, 2.0), batch=5)
    name = "1.weight"
    drawn = [filter_normalised(movable(model), RNG.sub("landscape", which))[name] for which in ("first", "second")]
    for i, a in enumerate(found.a):
        for j, b in enumerate(found.b):
            weight = model[1].weight.detach() + a * drawn[0] + b * drawn[1]
            logits = F.linear(x.flatten(1), weight, model[1].bias.detach())
            assert found.loss[i][j] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
            assert found.right[i][j] == int((logits.argmax(dim=1) == y).sum())
    flat = [one.flatten() for one in drawn]
    assert found.cosine == pytest.approx(abs(float(F.cosine_similarity(*flat, dim=0))), abs=1e-6)
    attacked = weight_landscape(model, split, BALL, RNG, ATTACK, PLACES, (0.0,), batch=5)
    assert all(hard[0] > clean[0] for hard, clean in zip(attacked.loss, found.loss, strict=True))
    with pytest.raises(DemiluneError, match="no landscape"):
        weight_landscape(nn.Flatten(), split, BALL, RNG, None)


@pytest.mark.parametrize("ball", [BALL, Ball("l2", 0.5)])
def test_an_input_landscape_holds_the_image_and_the_attacks_point(ball: Ball) -> None:
    model, split = linear(), images(12, 3)
    x, y, draws = split.pixels(slice(None)), split.labels, RNG.images(split.ids)
    found = input_landscape(model, split, ball, RNG, ATTACK, (0.0, 1.0), (0.0, 1.0), batch=5)
    end = ATTACK(model, x, y, ball, draws)
    for place, points in ((0, x), (1, end)):
        assert found.loss[place][0] == pytest.approx(F.cross_entropy(model(points), y).item(), rel=1e-6)
    normal = draws.sub("landscape").normal("second", x.shape)
    side = 0.1 * normal.sign() if ball.norm == "linf" else 0.5 * F.normalize(normal.flatten(1)).view_as(x)
    loss = F.cross_entropy(model((end + side).clamp(0, 1)), y)
    assert found.loss[1][1] == pytest.approx(loss.item(), rel=1e-5)
    assert 0.0 < found.cosine < 0.6


def test_lanczos_finds_the_largest_value_not_the_largest_in_size() -> None:
    draw = Stream.of(3)
    turn = torch.linalg.qr(draw.normal("turn", (3, 20, 20), dtype=torch.float64)).Q
    values = draw.uniform("values", (3, 20), -9.0, 4.0, dtype=torch.float64)
    values[2] = 0.0  # nothing is curved
    matrix = ((turn * values[:, None]) @ turn.mT).float()
    start = draw.normal("start", (3, 20))
    found = lanczos(lambda v: torch.einsum("nij,nj->ni", matrix, v), start, 20, 1e-5)
    assert values[:2].abs().amax() > 6.0
    assert torch.allclose(found.value, values.amax(dim=1), atol=1e-4)
    assert (found.residual <= 1e-5).all()
    short = lanczos(lambda v: torch.einsum("nij,nj->ni", matrix, v), start, 3, 1e-5)
    assert short.iterations == 3 and (short.residual[:2] > 1e-5).all()
    assert (short.value <= values.amax(dim=1) + 1e-4).all(), "a value that has not converged is a lower bound"
    # the residual that is told is the residual: a value lies within it of an eigenvalue
    near = (values[:2] - short.value[:2, None]).abs().amin(dim=1)
    assert (near <= short.residual[:2] * short.value[:2].abs() + 1e-5).all()
    with pytest.raises(DemiluneError, match="at least 1"):
        lanczos(lambda v: v, start, 0, 1e-3)


def test_the_hessian_of_a_quadratic_is_its_matrix() -> None:
    draw = Stream.of(4)
    matrix = draw.normal("matrix", (6, 6), dtype=torch.float64)
    matrix = matrix + matrix.T
    point, along = (
        draw.normal("point", (2, 3), dtype=torch.float64).requires_grad_(),
        draw.normal("along", (2, 3)).double(),
    )
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * point.flatten() @ matrix @ point.flatten()
    found = hessian_product(loss, [point, unused], [along, torch.ones(2, dtype=torch.float64)])
    assert torch.allclose(found[0].flatten(), matrix @ along.flatten())
    assert not found[1].any()


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_the_curvature_of_a_linear_network_is_the_closed_form(attack: PGD | None) -> None:
    model, split = linear(), images(8, 3)
    x, y = split.pixels(slice(None)), split.labels
    points = x if attack is None else attack(model, x, y, BALL, RNG.images(split.ids))
    chances = model(points).detach().double().softmax(dim=1)
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]  # ∇²_z CE = diag(p) - p pᵀ
    inputs = torch.cat([points.flatten(1), torch.ones(len(points), 1)], dim=1).double()  # with the bias's 1
    whole = sum(torch.kron(m, v[:, None] * v) for m, v in zip(middle, inputs, strict=True)) / len(points)
    found = weight_curvature(model, split, BALL, RNG, attack, tolerance=1e-5, batch=3)
    assert found.largest == pytest.approx([float(torch.linalg.eigvalsh(whole)[-1])], rel=1e-4)
    assert found.converged and found.size == 40 and found.iterations < 30
    weight = model[1].weight.detach().double()
    each = [float(torch.linalg.eigvalsh(weight.T @ m @ weight)[-1]) for m in middle]
    mine = input_curvature(model, split, BALL, RNG, attack, tolerance=1e-5, batch=3)
    assert mine.largest == pytest.approx(each, rel=1e-4)
    assert mine.size == 9 and mine.iterations <= 9 and mine.converged
    assert mine.mean == pytest.approx(sum(each) / 8, rel=1e-4) and mine.spread > 0.0
    assert mine.quartiles[0] < mine.quartiles[1] < mine.quartiles[2]
    assert found.quartiles == found.largest * 3 and found.spread == 0.0


def test_images_whose_loss_is_flat_have_no_curvature_and_hold_nobody_up() -> None:
    found = input_curvature(linear(scale=300.0), easy(linear(), images(6, 3)), BALL, RNG)
    assert min(found.largest) < 1e-6 and found.converged


def test_second_derivatives_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DemiluneError, match="no numbers"):
        weight_curvature(linear(scale=float("nan")), images(4, 3), BALL, RNG, None)


WAY = Direction(
    (0.0, 1.0), (0.1, 0.5), (0.0, 0.2), (0.5,), ((0.1,), (0.4,)), (4, 3), (0.9, 0.6), (0.05, 0.3), 4, 5, "RAT()",
    "linf", 0.1,
)  # fmt: skip
PLANE = Landscape("input", ("a", "b"), (0.0, 1.0), (0.0,), ((0.1,), (0.5,)), ((4,), (3,)), 5, "PGD()", 0.1, "linf", 0.1)
BEND = Curvature("input", "clean", (0.1, 0.2), 9, 2, 5, 1e-4, 1e-3, 1e-6, "linf", 0.1)


@pytest.mark.parametrize(
    ("found", "change", "words"),
    [
        (WAY, {"loss": [0.1]}, "loss has 1 values where 2 belong"),
        (WAY, {"loss": [0.1, float("nan")]}, "loss holds nan"),
        (WAY, {"mass": [0.1, True]}, "mass holds True"),
        (WAY, {"right": [4, 5]}, "right holds 5 where a count from 0 to 4"),
        (WAY, {"right": [4, 1.5]}, "right holds 1.5"),
        (WAY, {"scales": [1.0, 0.0]}, "each must be above"),
        (WAY, {"scales": []}, "scales has 0 values"),
        (WAY, {"quantiles": [[0.1], 0.4]}, "quantiles has 0.4"),
        (WAY, {"n": 6}, "n = 6 of 5 images"),
        (WAY, {"method": 3}, "method = 3"),
        (WAY, {"more": 3}, "no direction of demilune's"),
        (WAY, {"kind": "landscape"}, "no landscape of demilune's"),
        (WAY, {"kind": "table"}, "unknown kind of survey 'table'"),
        (PLANE, {"space": "output"}, "unknown space 'output'"),
        (PLANE, {"axes": ["a"]}, "two directions"),
        (PLANE, {"loss": [[0.1, 0.2], [0.3, 0.4]]}, "loss has 2 values where 1 belong"),
        (PLANE, {"eps": 10**400}, "eps"),
        (PLANE, {"cosine": float("inf")}, "cosine holds inf"),
        (BEND, {"largest": [0.1]}, "largest has 1 values where 2 belong"),
        (BEND, {"space": "weights"}, "largest has 2 values where 1 belong"),
        (BEND, {"residual": None}, "residual"),
        (BEND, {"n": 0}, "n = 0"),
    ],
)
def test_broken_surveys_are_refused(found: Survey, change: dict[str, Any], words: str) -> None:
    assert survey(found.to_json()) == found
    with pytest.raises(DemiluneError, match=words):
        survey(json.loads(json.dumps(found.to_json() | change)))


def test_what_is_said_of_a_survey() -> None:
    assert WAY.accuracy == (0.8, 0.6) and WAY.fooled == (0.0, 0.25) and WAY.falls == 0
    assert replace(WAY, loss=(0.5, 0.1)).falls == 1
    assert PLANE.accuracy == ((0.8,), (0.6,))
    assert BEND.converged and not replace(BEND, residual=0.1).converged
