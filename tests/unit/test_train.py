"""The training loop where it is easily wrong: low precision, late beginnings, divergence, alarms, tiny batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, RUN, batch_of, stream, tiny
from demilune.__main__ import main
from demilune.attacks import PGD
from demilune.checkpoint import load
from demilune.core.notes import Note
from demilune.core.weights import moved
from demilune.data import Dataset, Digits
from demilune.errors import DemiluneError
from demilune.experiment import Experiment
from demilune.methods import AVM, SAT, Batch, Examples, Standard
from demilune.models import PreActResNet18
from demilune.moves import AWP, RWP, NoMove, WeightMove
from demilune.runs import RunFolder
from demilune.schedules import Triangular
from demilune.train import Progress, chance, fit, overfitting, step

ATTACK = PGD(steps=1, step_ratio=1.0)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


@contextmanager
def low() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def test_every_step_of_a_move_is_taken_at_the_weights_it_has_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps low-precision copies of weights: a move in place was once computed at those of before."""
    climbed, losses = SAT.climbed, list[float]()

    def watched(self: SAT, net: nn.Module, made: Examples) -> Tensor:
        found = climbed(self, net, made)
        losses.append(float(found.detach().mean()))
        return found

    monkeypatch.setattr(SAT, "climbed", watched)
    for autocast in (nullcontext, low):
        model, batch = tiny(), batch_of(12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        move = RWP(gamma=0.05, steps=4, c_min=1e9)
        step(model, optimizer, SAT(ATTACK), batch, BALL, stream(batch), autocast=autocast, move=move)
    exact, rough = torch.tensor(losses[:4]), torch.tensor(losses[4:])
    assert len(rough) == 4
    assert bool((exact.diff() > 0).all()) and float(exact[1] - exact[0]) > 0.05, "each step climbs"
    assert torch.allclose(rough.diff(), exact.diff(), atol=0.01)


def test_weights_that_moved_are_computed_with_in_low_precision_too() -> None:
    model, x = nn.Linear(4, 3), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x).detach().clone()
        with moved(model, {"weight": torch.ones(3, 4)}):
            there = model(x).detach().clone()
        after = model(x).detach().clone()
    assert torch.allclose(there.float(), before.float() + 4.0, atol=0.1)
    assert torch.equal(before, after)


@pytest.mark.parametrize("move", [AWP(gamma=0.01), RWP(gamma=0.01, steps=2)])
def test_a_move_leaves_frozen_weights_where_they_are(move: WeightMove) -> None:
    model, batch = tiny(), batch_of(6)
    first = next(weight for weight in model.parameters() if weight.dim() >= 2).requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    bits = first.clone()
    step(model, optimizer, SAT(ATTACK), batch, BALL, stream(batch), move=move)
    assert torch.equal(first, bits)
    model.requires_grad_(False)
    next(weight for weight in model.parameters() if weight.dim() == 1).requires_grad_()
    with pytest.raises(DemiluneError, match="without a trained weight"):
        step(model, optimizer, SAT(ATTACK), batch, BALL, stream(batch), move=move)


def test_decoupled_weight_decay_is_not_put_into_the_gradient() -> None:
    gradients = []
    for decay in (0.0, 0.5):
        model, batch = tiny(), batch_of(6)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=decay)
        step(model, optimizer, SAT(ATTACK), batch, BALL, stream(batch), move=AWP(gamma=0.05))
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]


def test_a_network_that_calls_everything_one_class_is_no_best_to_fall_from(digits: Dataset) -> None:
    assert overfitting(RUN, 0.5, 0.5, 0.29) is None, "two classes: it had learned nothing, and begins to"
    assert overfitting(RUN, 0.1, 0.1, 0.02) is None
    assert overfitting(RUN, 0.1, 0.45, 0.30) is None, "within the alarm, and more than half is left"
    fallen = (
        (0.1, 0.45, 0.2),
        (0.1, 0.25, 0.12),
        (0.5, 0.8, 0.55),
        (0.0, 0.5, 0.2),
        (0.5, 0.58, 0.0),
        (0.1, 0.19, 0.0),
    )
    for base, best, now in fallen:
        assert "catastrophic overfitting" in (overfitting(RUN, base, best, now) or ""), (base, best, now)
    assert overfitting(replace(RUN, method=Standard()), 0.1, 0.9, 0.0) is None
    labels = digits.validation.labels
    assert chance(digits.validation) == max(int((labels == k).sum()) for k in range(10)) / len(labels)


def test_weights_that_are_no_numbers_are_never_saved(digits: Dataset, tmp_path: Path) -> None:
    """The loss of the last step was still finite: it is that of the weights before."""
    run = replace(RUN, method=Standard(), schedule=Triangular(rate=1e20), training=replace(RUN.training, steps=2))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DemiluneError, match=r"diverged; lower schedule\.rate.*last good checkpoint is .*last"):
        fit(run, digits, folder)
    assert not folder.checkpoint("best").exists()
    assert all(bool(t.isfinite().all()) for t in load(folder.checkpoint("last")).tensors.values())


def test_the_time_of_a_run_counts_what_begins_later(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes a second, three once the weights move; 40 epochs of so many steps."""
    clock = [0.0]

    def timed(model: nn.Module, optimizer: object, method: object, batch: Batch, *others: Any) -> dict[str, Note]:
        clock[0] += 3.0 if batch.epoch >= others[-1].starts() and not isinstance(others[-1], NoMove) else 1.0
        return {}

    monkeypatch.setattr("demilune.train.step", timed)
    monkeypatch.setattr("demilune.train.time.perf_counter", lambda: clock[0])

    class EnoughError(Exception):
        pass

    def seconds(move: WeightMove, name: str) -> float:
        run = replace(RUN, method=SAT(ATTACK), move=move, training=replace(RUN.training, epochs=40))
        found = list[float]()

        def watch(event: Progress) -> None:
            found.append(event.data["seconds"])
            raise EnoughError

        with pytest.raises(EnoughError):
            fit(run, digits, RunFolder(tmp_path / name), watch=watch)
        return found[0]

    steps, _ = replace(RUN.training, epochs=40).lengths(len(digits.train), 0.0)
    assert seconds(NoMove(), "a") == steps
    for warmup in (0, 10, 39):
        assert seconds(RWP(warmup=warmup), f"b{warmup}") == steps * (3.0 - 2.0 * warmup / 40)


def narrow(batch: int, parts: int) -> Experiment:
    training = replace(RUN.training, batch=batch, parts=parts, steps=2)
    return replace(RUN, method=SAT(ATTACK), model=PreActResNet18(4), training=training)


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (8, 8)])
def test_portions_too_small_for_batch_norm_are_refused_before_anything_is_written(
    batch: int, parts: int, digits: Dataset, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DemiluneError, match=rf"training.batch = {batch}, training.parts = {parts}: a portion of one"):
        fit(narrow(batch, parts), digits, folder)
    assert not folder.experiment.exists()


def test_one_image_is_enough_where_batch_norm_sees_many_pixels(digits: Dataset, tmp_path: Path) -> None:
    assert fit(replace(narrow(1, 1), model=RUN.model), digits, RunFolder(tmp_path / "run"))


def test_the_pace_counts_images_that_are_there(digits: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    run = replace(RUN, method=Standard(), training=replace(RUN.training, epochs=1, batch=100_000))
    assert fit(run, digits, folder)
    (line,) = (json.loads(text) for text in folder.timing.read_text().splitlines())
    assert line["images_per_second"] * line["seconds"] == pytest.approx(len(digits.train))


@pytest.mark.parametrize("gamma", [float("nan"), -5.0, 1e38])
def test_avm_extrapolates_by_a_factor_that_means_something(gamma: float) -> None:
    with pytest.raises(DemiluneError, match="gamma"):
        AVM(gamma=gamma)


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["--method.attack.steps=0"], True),
        (["--method.attack.steps=2", "--method.attack.step_ratio=0.25"], True),
        (["--method.attack.steps=4", "--method.attack.step_ratio=0.25"], False),
    ],
)
def test_an_attack_that_cannot_reach_the_ball_s_edge_is_said(
    words: list[str], warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "digits-sat", *words, "--model.width=4", "--training.steps=1", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    assert ("the training attack" in "".join(capsys.readouterr())) == warned
