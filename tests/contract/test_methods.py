"""What every training method keeps, one table over all of them; and the limits in which two methods are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from contract.tables import ATTACK, KL_ATTACK, METHOD_TABLE, VARIANTS
from demilune.attacks import frozen
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.targets import one_hot
from demilune.methods import (
    ADT,
    AVM,
    GAIRAT,
    LRATRAT,
    METHODS,
    ORIGIN,
    RAT,
    SAT,
    Batch,
    Examples,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from demilune.train import step

every_method = pytest.mark.parametrize("method", METHOD_TABLE.values(), ids=METHOD_TABLE)
every_variant = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
RNG = Stream.of(0, "test")


class Plain(nn.Module):
    """A network without batch norm: every image's loss is its own."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        draw = Stream.of(0, "plain")
        self.first = nn.Parameter(0.2 * draw.normal("first", (64, 16), dtype=torch.float64))
        self.second = nn.Parameter(0.5 * draw.normal("second", (16, classes), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x - 0.5).flatten(1) @ self.first) @ self.second


def made(method: Method, model: nn.Module, batch: Batch, ball: Ball = BALL) -> Examples:
    with frozen(model, method.bn):
        return method.examples(model, batch, ball, stream(batch))


def gradients(method: Method, batch: Batch, ball: Ball, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return the gradients of one step that is not taken."""
    model = tiny(dtype=dtype)
    step(model, torch.optim.SGD(model.parameters(), lr=0.0), method, batch, ball, RNG)
    return [parameter.grad for parameter in model.parameters()]


def assert_equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, his in zip(ours, theirs, strict=True):
        assert torch.equal(mine, his)


def corners(n: int = 32) -> Batch:
    """Return images whose class is the corner that is bright."""
    rng = Stream.of(0, "corners")
    x, y = 0.3 * rng.uniform("x", (n, 1, 8, 8)), torch.arange(n) % 4
    for image, label in zip(x, y.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 0.7
    return Batch(x, y, 4, torch.arange(n), 0)


class Corners(nn.Module):
    """Brightness of the image's parts, batch norm, a hidden layer: small, and able to tell the corners apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_the_table_holds_every_method() -> None:
    assert {name: type(method) for name, method in METHOD_TABLE.items()} == dict(METHODS)


def test_the_docs_say_of_every_method_what_it_was_written_from() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert ORIGIN.keys() == METHODS.keys()
    for name, origin in ORIGIN.items():
        line = next(line for line in docs.splitlines() if line.startswith(f"| `{name}` | "))  # the first table's
        assert name == "standard" or origin in line


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_defaults_and_is_a_frozen_value(name: str) -> None:
    assert METHODS[name]() == METHODS[name]()
    with pytest.raises((AttributeError, TypeError)):
        METHODS[name]().bn = "train"
    assert all(field.type is not None for field in fields(METHODS[name]))


@every_variant
def test_it_learns_a_tiny_set(method: Method) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Corners()
    batch = corners()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for number in range(40):
        note = step(model, optimizer, method, batch, BALL, RNG.sub(number))["excess"]
        losses.append(float(note.total / note.weight))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    accuracy = float((model.eval()(batch.x).argmax(dim=1) == batch.y).float().mean())
    assert accuracy > 0.9


@every_variant
def test_no_global_generator_is_touched_or_read(method: Method) -> None:
    batch, before = batch_of(), torch.get_rng_state()
    first = gradients(method, batch, BALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert_equal(gradients(method, batch, BALL), first)
    model = tiny()
    before = torch.get_rng_state()
    made(method, model, batch)
    assert torch.equal(torch.get_rng_state(), before)


@every_variant
def test_examples_are_as_their_type_says_and_carry_no_graph(method: Method) -> None:
    batch, model = batch_of(), tiny()
    x, y = batch.x.clone(), batch.y.clone()
    found = made(method, model, batch)
    points, rows = len(found.points), len(method.objective(model, found))
    assert found.points.shape == (points, 1, 8, 8)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    assert found.targets.shape == (points, 4)
    assert torch.allclose(found.targets.sum(dim=1), torch.ones(points), atol=1e-6)
    assert found.targets.min() >= 0
    assert found.floor.shape == (rows,)
    kept = [found.points, found.targets, found.floor, *found.extra.values()]
    kept += [value for note in found.notes.values() for value in note]
    assert not any(tensor.requires_grad for tensor in kept)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, y)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_loss_falls_below_its_floor(method: Method, dtype: torch.dtype) -> None:
    batch, model = batch_of(dtype=dtype), tiny(dtype=dtype)
    found = made(method, model, batch)
    losses = method.objective(model, found)
    assert losses.shape == found.floor.shape
    assert losses.dtype == found.points.dtype == found.targets.dtype == dtype
    assert losses.requires_grad
    assert (losses - found.floor >= -1e-6).all()
    perfect = -(found.targets * found.targets.clamp_min(1e-30).log()).sum(dim=1)
    if isinstance(method, LRATRAT):  # its losses count above the labels' entropy
        perfect = torch.zeros_like(found.floor)
    assert torch.allclose(perfect[: len(found.floor)], found.floor, atol=1e-6)


@every_variant
def test_notes_are_finite_means(method: Method) -> None:
    model = tiny()
    notes = step(model, torch.optim.SGD(model.parameters(), lr=0.0), method, batch_of(12), BALL, RNG)
    assert {"loss", "excess"} <= notes.keys()
    for note in notes.values():
        assert note.total.shape == note.weight.shape == ()
        assert float(note.weight) > 0
        assert torch.isfinite(note.total)
        assert not note.total.requires_grad
    assert float(notes["loss"].total) >= float(notes["excess"].total)


@every_method
@pytest.mark.parametrize("bn", ["eval", "train_frozen", "train"])
def test_batch_norm_moves_in_the_attack_only_where_the_method_says_so(method: Method, bn: str) -> None:
    batch, model = batch_of(), tiny()
    counter = dict(model.named_buffers())["net.features.1.num_batches_tracked"]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    start = int(counter)
    found = made(replace(method, bn=bn), model, batch)
    attacked = not isinstance(method, Standard)
    same = all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert same == (bn != "train" or not attacked)
    # TRADES' attack runs the clean images too; ADT's runs its draws.
    passes = 4 if isinstance(method, ADT) else ATTACK.steps + (getattr(method, "attack", None) == KL_ATTACK)
    assert int(counter) - start == (passes if attacked and bn == "train" else 0)
    if attacked:
        running = made(replace(method, bn="eval"), tiny(), batch)
        assert torch.equal(found.points, running.points) == (bn == "eval")


@every_method
def test_a_step_trains_in_train_mode_and_counts_one_batch(method: Method) -> None:
    model = tiny()
    counter = dict(model.named_buffers())["net.features.1.num_batches_tracked"]
    start = int(counter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), method, batch_of(), BALL, RNG)
    alone = isinstance(method, Standard | SAT | AVM | ADT | GAIRAT | RAT)  # the others see the clean images too
    assert int(counter) == start + (1 if alone else 2)
    assert not any(torch.equal(b, a) for b, a in zip(before, model.parameters(), strict=True))


@every_variant
@pytest.mark.parametrize(("n", "parts"), [(6, 2), (6, 3), (5, 2), (6, 6)])
def test_the_parts_of_a_step_add_up(method: Method, n: int, parts: int) -> None:
    if isinstance(method, ADT | GAIRAT | TaylorCode | TaylorExact) or getattr(method, "across", None) is not None:
        pytest.skip("its examples, weights or labels depend on the whole batch, in the released code too")
    batch, found = batch_of(n, dtype=torch.float64), []
    for number in (1, parts):
        model = Plain()
        notes = step(model, torch.optim.SGD(model.parameters(), lr=0.0), method, batch, BALL, RNG, number)
        found.append(([parameter.grad for parameter in model.parameters()], notes))
    (whole, notes), (sums, other) = found
    for mine, his in zip(whole, sums, strict=True):
        assert torch.allclose(mine, his, atol=1e-6)
        assert mine.abs().max() > 1e-4
    for name, note in notes.items():
        assert float(note.total) == pytest.approx(float(other[name].total), abs=1e-6), name
        assert float(note.weight) == pytest.approx(float(other[name].weight)), name


@every_variant
def test_neither_the_order_nor_the_batch_mates_change_an_images_examples(method: Method) -> None:
    if isinstance(method, ADT):
        pytest.skip("its inner gradients are means over the batch, damped at 1e-8, in the released code too")
    batch, model = batch_of(6, dtype=torch.float64), Plain()
    whole = made(method, model, batch)
    rows = torch.tensor([4, 1, 2])
    some = made(method, model, batch._replace(x=batch.x[rows], y=batch.y[rows], ids=batch.ids[rows]))
    for ours, theirs in ((some.points, whole.points), (some.targets, whole.targets)):
        mine, his = ours.unflatten(0, (-1, 3)), theirs.unflatten(0, (-1, 6))
        assert torch.allclose(mine, his[:, rows], atol=1e-9)


# limits


@pytest.mark.parametrize(
    "method",
    [
        SAT(ATTACK),
        AVM(ATTACK, mass_vertex=1.0),
        RAT(ATTACK, samples=1, mass_high=1.0, mass_low=1.0),
        RAT(ATTACK, samples=1, mass_high=1.0, mass_low=1.0, clamp="none"),
        RAT(ATTACK, samples=1, mass_high=1.0, mass_low=1.0, clamp="far"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_at_radius_zero_with_hard_labels_every_method_is_standard_training(method: Method) -> None:
    batch, ball = batch_of(), Ball("linf", 0.0)
    assert_equal(gradients(method, batch, ball), gradients(Standard(), batch, ball))


@pytest.fixture
def weight(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> float:
    """AVM's mixing weight w, which is drawn, at the value asked for."""
    drawn = Stream.uniform

    def fake(self: Stream, purpose: str, shape: Sequence[int], *args: float, **kwargs: torch.dtype) -> Tensor:
        values = drawn(self, purpose, shape, *args, **kwargs)
        return torch.full_like(values, request.param) if purpose == "weight" else values

    monkeypatch.setattr(Stream, "uniform", fake)
    return float(request.param)


@pytest.mark.parametrize("weight", [1.0], indirect=True)
def test_avm_at_weight_one_is_standard_training(weight: float) -> None:
    batch = batch_of()
    assert_equal(gradients(AVM(ATTACK), batch, BALL), gradients(Standard(), batch, BALL))


@pytest.mark.parametrize("weight", [0.0], indirect=True)
def test_avm_at_weight_zero_without_extrapolation_or_smoothing_is_sat(weight: float) -> None:
    batch, model = batch_of(), tiny()
    ours, theirs = made(AVM(ATTACK, gamma=1.0, mass_vertex=1.0), model, batch), made(SAT(ATTACK), model, batch)
    assert torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.floor, theirs.floor)
    # x + (x_e - x) is x_e but for one rounding
    assert (ours.points - theirs.points).abs().max() <= 6e-8


def test_hard_labels_change_rats_labels_alone() -> None:
    batch, model = batch_of(), tiny()
    soft, hard = (made(RAT(ATTACK, mass_high=1.0, mass_low=low), model, batch) for low in (0.1, 1.0))
    assert torch.equal(soft.points, hard.points)
    assert torch.equal(hard.targets, one_hot(batch.y.repeat(2), 4))
    assert torch.equal(hard.floor, torch.zeros(12))
    assert not torch.equal(soft.targets, hard.targets)
