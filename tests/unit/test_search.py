"""Searching in low precision, and several runs of few images in one pass: faster, and no verdict is another."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import batch_of, stream, tiny
from demilune.attacks import (
    APGD,
    FAB,
    FABT,
    NATTACK,
    Attack,
    Search,
    Square,
    TargetedAPGD,
    correct,
    judged,
    quick,
)
from demilune.attacks.base import SLACK, Model, doubtful
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate import evaluate
from demilune.evaluate.suite import Setting, suite
from demilune.methods import Batch
from demilune.runtime import Runtime

CPU = torch.device("cpu")
BALLS = {"linf": Ball("linf", 0.03), "l2": Ball("l2", 0.12)}
QUERYING: dict[str, Attack] = {
    "apgd": APGD(steps=6),
    "apgd_t": TargetedAPGD(targets=2, steps=6),
    "fab": FAB(steps=4, restarts=1),
    "fab_t": FABT(targets=2, steps=4),
    "square": Square(queries=30),
    "nattack": NATTACK(steps=4, population=6, every=2),
}
MANY: dict[str, Attack] = {
    "apgd": APGD(steps=6, restarts=3),
    "apgd_t": TargetedAPGD(targets=3, steps=6, restarts=2),
    "fab": FAB(steps=4, restarts=3),
    "fab_t": FABT(targets=3, steps=5, restarts=2),
}


class Asked:
    """A model that keeps how many images each pass has, and of which type its logits are."""

    def __init__(self, model: Model) -> None:
        self.model, self.sizes, self.types = model, list[int](), list[torch.dtype]()

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        self.sizes.append(len(x))
        self.types.append(logits.dtype)
        return logits


def half_broken(n: int = 24) -> tuple[nn.Module, Batch]:
    """Return a network and images that it has right, of which the balls here break some."""
    model, batch = tiny(seed=2).eval(), batch_of(n)
    with torch.no_grad():
        model.net.linear.bias -= model(batch.x).mean(dim=0)
        return model, batch._replace(y=model(batch.x).argmax(dim=1))


# low precision


def test_a_search_is_quick_where_a_gradient_is_taken_and_exact_elsewhere() -> None:
    low, high = Asked(lambda x: x.bfloat16()), Asked(lambda x: x)
    both, x = Search(high, low), torch.zeros(3, 4)
    assert both(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert both(x).dtype == torch.float32
        assert quick(both)(x).dtype == torch.bfloat16
    assert quick(high) is high
    assert (len(low.sizes), len(high.sizes)) == (2, 1)


def test_margins_near_zero_are_doubtful_in_low_precision_alone() -> None:
    def model(x: Tensor) -> Tensor:
        return x

    y = torch.zeros(5, dtype=torch.int64)
    short = torch.tensor([2.0, 2.0, -0.5 * 8 * SLACK, -2 * 8 * SLACK, 0.0])
    logits = torch.stack([8.0 * torch.ones(5), 8.0 + short], dim=1)
    logits[1] = float("nan")
    assert doubtful(model, logits, y).tolist() == [True, True, False, False, False], "the judge gives a tie to class 0"
    assert doubtful(model, logits, 1 - y).tolist() == [False, True, True, True, True]
    assert doubtful(Search(model, model), logits, y).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("name", QUERYING)
@pytest.mark.parametrize("norm", BALLS)
def test_no_image_leaves_on_the_word_of_low_precision(name: str, norm: str) -> None:
    """The quick model calls every image misclassified; the exact one none: the whole search is made, to no avail."""
    if (name, norm) == ("nattack", "l2"):
        pytest.skip("nattack is linf only")
    batch = batch_of(5)
    batch = batch._replace(y=torch.zeros(5, dtype=torch.int64))

    def sure(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(x), 4) + 0 * x.flatten(1)[:, :4]

    def liar(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 9.0, 0.0, 0.0]).expand(len(x), 4) + 0.1 * x.flatten(1)[:, :4]

    low, attack = Asked(liar), QUERYING[name]
    found = attack(Search(sure, low), batch.x, batch.y, BALLS[norm], stream(batch))
    assert judged(sure, batch.x, found, batch.y, BALLS[norm]).all()
    everything = {"apgd": 7 * 5, "apgd_t": 14 * 5, "fab": 2 * 4 * 5, "fab_t": 2 * 2 * 4 * 5, "square": 31 * 5}
    assert sum(low.sizes) == everything.get(name, 4 * 6 * 5)


@pytest.mark.parametrize("name", ["apgd", "apgd_t", "square"])
def test_what_low_precision_nearly_breaks_is_put_to_float32(name: str) -> None:
    """The exact model has every image wrong; the quick one has it right, by less than its rounding or by more."""
    batch = batch_of(5)
    batch = batch._replace(y=torch.zeros(5, dtype=torch.int64))

    def model(label: float) -> Model:
        return lambda x: torch.tensor([label, 8.0, 0.0, 0.0]).expand(len(x), 4) + 0 * x.flatten(1)[:, :4]

    passes = list[int]()
    for short in (0.5, 3.0):
        low = Asked(model(8.0 * (1 + short * SLACK)))
        QUERYING[name](Search(model(7.0), low), batch.x, batch.y, BALLS["linf"], stream(batch))
        passes.append(len(low.sizes))
    assert passes == [1, {"apgd": 7, "apgd_t": 14, "square": 31}[name]]


@pytest.mark.parametrize("name", QUERYING)
@pytest.mark.parametrize("norm", BALLS)
def test_a_search_in_float32_through_both_doors_finds_what_the_model_alone_does(name: str, norm: str) -> None:
    if (name, norm) == ("nattack", "l2"):
        pytest.skip("nattack is linf only")
    model, batch = half_broken()
    ball, attack = BALLS[norm], QUERYING[name]
    plain = attack(model, batch.x, batch.y, ball, stream(batch))
    both = attack(Search(model, model), batch.x, batch.y, ball, stream(batch))
    right = judged(model, batch.x, plain, batch.y, ball)
    assert torch.equal(right, judged(model, batch.x, both, batch.y, ball))
    assert name == "nattack" or 0 < int(right.sum()) < len(right)


def images(model: nn.Module, batch: Batch) -> Split:
    """Return the images in 8 bits, labelled as the model sees them."""
    pixels = (255 * batch.x).round().to(torch.uint8)
    with torch.no_grad():
        return Split(pixels, model(pixels / 255).argmax(dim=1), batch.ids)


@pytest.mark.parametrize("name", ["square", "nattack", "fab_t", "apgd_t", "pgd3"])
def test_bf16_searches_in_bf16_and_judges_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("demilune.evaluate.suite")
    if name != "pgd3":  # thousands of passes are too many here
        monkeypatch.setattr(module, "Square", lambda: Square(40))
        monkeypatch.setattr(module, "FABT", lambda room: FABT(targets=2, steps=12))
        monkeypatch.setattr(module, "TargetedAPGD", lambda room: TargetedAPGD(targets=2, steps=12))
        monkeypatch.setattr(module, "NATTACK", lambda **fields: NATTACK(steps=4, population=6, **fields))
    model, batch = half_broken()
    split, seen = images(model, batch), dict[torch.dtype, int]()

    def noting(module: nn.Module, given: tuple[Tensor, ...], maps: Tensor) -> None:
        seen[maps.dtype] = seen.get(maps.dtype, 0) + len(maps)

    handle = model.net.features[0].register_forward_hook(noting)
    entries, rng = suite([name], Setting(classes=4)), Stream.of(0, "evaluation")
    found = {}
    for precision in ("float32", "bf16"):
        seen.clear()
        search = functools.partial(Runtime(precision=precision).search, device=CPU)
        found[precision] = evaluate(model, split, BALLS["linf"], entries, rng, search, batch=9, examples=0)
        assert seen.get(torch.bfloat16, 0) > 0 if precision == "bf16" else torch.bfloat16 not in seen
        if precision == "bf16":
            assert seen[torch.bfloat16] > seen[torch.float32] or name not in ("square", "nattack")
    handle.remove()
    rights = {precision: one.images[f"right.{name}"] for precision, one in found.items()}
    assert 0 < rights["float32"].sum() < len(split) or name == "nattack"
    assert abs(int(rights["bf16"].sum()) - int(rights["float32"].sum())) <= 2


def test_logits_are_not_rounded_to_bf16() -> None:
    model, batch = half_broken()
    both = Runtime(precision="bf16").search(model, CPU)
    assert Runtime().search(model, CPU) is model
    with torch.no_grad():
        exact, logits = model(batch.x), quick(both)(batch.x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch.x)
    assert rounded.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, exact)
    assert not torch.equal(logits, logits.bfloat16().float())
    assert (logits - exact).square().mean() < (rounded.float() - exact).square().mean()


def test_the_curve_over_iterations_believes_no_float32_number_that_comes_of_low_precision() -> None:
    """A model may end in float32, as log-probabilities do under autocast, and still have been run in bf16."""
    model, batch = half_broken()
    split = images(model, batch)

    def search(exact: Model) -> Model:
        return Search(exact, lambda x: -9.0 * exact(x))

    entries = suite(["iterations3"], Setting(classes=4))
    found = evaluate(model, split, BALLS["linf"], entries, Stream.of(0, "evaluation"), search, examples=0)
    assert found.images["right.iterations.0"].all()
    assert found.images["right.iterations.start"].sum() > len(split) / 2


# several runs at once


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("room", [1, 24, 60, 1000])
def test_runs_taken_together_break_the_same_images(name: str, norm: str, room: int) -> None:
    model, batch = half_broken()
    ball, one = BALLS[norm], Asked(model)
    plain = MANY[name](one, batch.x, batch.y, ball, stream(batch))
    many = Asked(model)
    found = replace(MANY[name], room=room)(many, batch.x, batch.y, ball, stream(batch))
    right = judged(model, batch.x, plain, batch.y, ball)
    assert 0 < int(right.sum()) < 24
    assert torch.equal(judged(model, batch.x, found, batch.y, ball), right)
    assert max(many.sizes) <= max(24, room)
    if room > 24:
        assert len(many.sizes) < len(one.sizes)
    if room == 1:
        assert torch.equal(found, plain)
        assert many.sizes == one.sizes


def test_an_image_broken_in_one_run_leaves_the_others() -> None:
    """One of two images is broken at once: what is left are the runs of the other alone."""
    batch = batch_of(2)
    batch = batch._replace(x=torch.stack([0.2 + 0 * batch.x[0], 0.8 + 0 * batch.x[0]]), y=torch.tensor([0, 0]))

    def model(x: Tensor) -> Tensor:
        level = x.flatten(1).mean(dim=1)
        return torch.stack([torch.where(level < 0.5, 5.0, level - 0.8), 0 * level, -0.1 * level, -0.2 * level], dim=1)

    asked = Asked(model)
    for attack in (TargetedAPGD(3, steps=8, room=100), APGD(steps=8, restarts=3, room=100)):
        asked.sizes.clear()
        found = attack(asked, batch.x, batch.y, BALLS["linf"], stream(batch))
        assert correct(model, found, batch.y).tolist() == [True, False]
        assert next(size for size in asked.sizes if size > 2) == 6
        assert asked.sizes[-1] == 3


@pytest.mark.parametrize("make", [TargetedAPGD, APGD, FAB, FABT])
def test_room_is_no_part_of_what_an_attack_is_called_and_cannot_be_negative(make: type[Attack]) -> None:
    assert repr(make(room=250)) == repr(make())
    with pytest.raises(DemiluneError, match=r"room = -1: it must be 0 or more"):
        make(room=-1)


def test_an_evaluation_gives_its_batch_to_autoattack() -> None:
    parts = {one.name: one.of for one in suite(["autoattack", "autoattack_plus"], Setting(room=50))}
    rooms = {name: of.room for name, of in parts.items() if isinstance(of, APGD | TargetedAPGD | FAB | FABT)}
    assert rooms.pop("autoattack.apgd_ce") == 0  # it has one run
    assert len(rooms) == 7
    assert set(rooms.values()) == {50}
