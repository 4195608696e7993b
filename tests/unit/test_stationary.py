"""RWP's loss stationary condition: who perturbs the weights, which images are watched, and what the study says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import batch_of, tiny
from demilune.attacks import PGD
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.core.weights import movable, moved
from demilune.data import Dataset, Digits
from demilune.errors import DemiluneError
from demilune.evaluate.assess import Request, chosen_images
from demilune.experiment import Experiment, Training, completed, difference, plain
from demilune.methods import SAT
from demilune.models import Small
from demilune.moves import AWP, RWP, NoMove
from demilune.report.read import read
from demilune.report.stationary import build, curve, label, to_markdown
from demilune.study import MONITOR, RANGES, loss_ranges, runs_of
from demilune.train import watched_images

ATTACK = PGD(steps=2, step_ratio=0.5)
RUN = Experiment("tiny", Digits(), Small(4), SAT(ATTACK), Ball("linf", 0.15), training=Training(validation=ATTACK))
RNG = Stream.of(0, "test")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


# --- who perturbs ----------------------------------------------------------------------------------------------------


def by_hand(move: RWP, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], list[int]]:
    """RWP's recursion, each gradient taken on the selected rows alone; returns how many they were, too."""
    model = tiny(dtype=torch.float64).eval()
    weights = movable(model)
    whole = torch.cat([w.detach().flatten() for w in weights.values()]).norm()
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    offset, counts = dict[str, Tensor](), list[int]()
    for _ in range(move.steps):
        with moved(model, offset):
            losses = cross_entropy(model(x), y).detach()
            rows = [i for i, loss in enumerate(losses.tolist()) if move.low <= loss < move.c_min]
            counts.append(len(rows))
            if rows:
                alone = cross_entropy(model(x[rows]), y[rows]).sum() / len(x)
                found = torch.autograd.grad(alone, list(weights.values()))
                total = {name: s + g for (name, s), g in zip(total.items(), found, strict=True)}
        length = torch.cat([s.flatten() for s in total.values()]).norm()
        offset = {name: move.gamma * whole * s / (length + 1e-20) for name, s in total.items()}
    return offset, counts


@pytest.mark.parametrize("ends", [(0.0, 1.2), (1.2, 1.64), (1.64, math.inf), (0.0, math.inf), (90.0, 91.0)])
def test_only_examples_of_the_range_contribute_to_the_offset(ends: tuple[float, float]) -> None:
    """In eval mode, where no row sees another through batch norm."""
    model, batch = tiny(dtype=torch.float64).eval(), batch_of(24, dtype=torch.float64)
    move = RWP(gamma=0.05, steps=3, low=ends[0], c_min=ends[1])
    ours = move.offset(model, lambda: cross_entropy(model(batch.x), batch.y), RNG).by
    theirs, counts = by_hand(move, batch.x, batch.y)
    assert counts[0] == 24 if ends == (0.0, math.inf) else counts[0] < 24
    assert bool(counts[0]) == (ends[0] < 90)
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-10, atol=1e-15)
        assert bool(ours[name].any()) == bool(counts[0])


def test_the_bins_share_every_example_out() -> None:
    losses = torch.rand(1000, dtype=torch.float64) * 5
    bins = loss_ranges("0:0.5,0.5:1,1:1.5,1.5:2,2:inf")
    assert sum(((losses >= low) & (losses < high)).int() for low, high in bins).eq(1).all()


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1:1", "holds no loss"),
        ("2:1", "holds no loss"),
        ("nan:1", "holds no loss"),
        ("inf:inf", "holds no loss"),
        ("0:0.5,low:high", "'low:high' is no range"),
        ("0.5", "'0.5' is no range"),
        ("0:1:2", "is no range"),
        (":1", "is no range"),
        ("none", "comes by itself"),
        ("", "is empty"),
        (" , ", "is empty"),
        ("0:0.5,1:2,0.0:1/2", "'0.0:1/2' twice"),
    ],
)
def test_what_is_no_range_is_refused(text: str, words: str) -> None:
    with pytest.raises(DemiluneError, match=words) as refusal:
        loss_ranges(text)
    assert "\n" not in str(refusal.value)


def test_ranges_become_runs_that_differ_in_the_move_alone() -> None:
    runs = runs_of(replace(RUN, move=RWP(gamma=0.02, steps=4, norm="tensor")), loss_ranges("0:0.5,2:inf,-inf:1.7"))
    assert list(runs) == ["none", "0_0.5", "2_inf", "minusinf_1.7"]
    assert runs["2_inf"].move == RWP(gamma=0.02, steps=4, norm="tensor", low=2.0, c_min=math.inf)
    assert [run.name for run in runs.values()] == ["tiny-none", "tiny-0:0.5", "tiny-2:inf", "tiny--inf:1.7"]
    assert {replace(run, name="", move=NoMove()) for run in runs.values()} == {
        replace(RUN, name="", training=replace(RUN.training, monitor=MONITOR))
    }


def test_the_default_ranges_are_bins_and_those_from_zero() -> None:
    runs = runs_of(RUN, loss_ranges(RANGES))
    assert len(runs) == 11
    assert runs["0_1.7"].move == RWP(low=0.0)


def test_a_study_is_of_rwp() -> None:
    with pytest.raises(DemiluneError, match="the move is awp"):
        runs_of(replace(RUN, move=AWP()), [(0.0, 1.0)])


def test_labels_lose_no_digit() -> None:
    assert label(0.0, 0.5) == "0:0.5"
    assert label(-math.inf, math.inf) == "-inf:inf"
    assert label(0.1, 0.1000000001) == "0.1:0.1000000001"


# --- what is watched -------------------------------------------------------------------------------------------------


def test_watched_images_are_those_an_evaluation_with_this_limit_takes(digits: Dataset) -> None:
    watched = watched_images(digits, 30)
    assert list(watched) == ["train", "test"]
    for name in ("train", "test"):
        theirs = chosen_images(digits, Request(limit=30, split=name))  # type: ignore[arg-type]
        assert torch.equal(watched[name].ids, theirs.ids)
        assert torch.equal(watched[name].images, theirs.images)
    assert watched_images(digits, 0) == {}
    assert [len(split) for split in watched_images(digits, 10**6).values()] == [500, 500]


def test_a_number_of_watched_images_below_zero_is_refused() -> None:
    with pytest.raises(DemiluneError, match=r"training\.monitor = -1"):
        Training(monitor=-1)


def test_a_field_that_an_older_version_lacked_is_no_difference() -> None:
    now = plain(RUN)
    old = json.loads(json.dumps(now))
    del old["training"]["monitor"], old["move"], old["method"]["attack"]["noise"]
    assert difference(completed(old), now) is None
    other = plain(replace(RUN, training=replace(RUN.training, monitor=5)))
    assert difference(completed(old), other) == "training.monitor is 0 there and 5 here"
    broken = {**old, "seed": "none"}
    assert completed(broken) is broken


# --- what the study says ---------------------------------------------------------------------------------------------


def written(path: Path, move: NoMove | RWP, test: list[float], marked: int = 2, **change: Any) -> Path:
    """Write a run folder with these robust accuracies on test images, the epoch ``marked`` the validation's choice."""
    path.mkdir(parents=True)
    run = plain(replace(RUN, name=path.name, move=move))
    (path / "experiment.json").write_text(json.dumps(run))
    lines = [
        {
            "epoch": epoch, "step": epoch, "clean": 0.9, "robust": 0.6, "validation_n": 200, "best": epoch == marked,
            "train_clean": 0.95, "train_robust": 0.7 + 0.02 * epoch, "test_clean": 0.9, "test_robust": rate,
            "monitor_n": 400, **change,
        }
        for epoch, rate in enumerate(test, 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def folders(root: Path) -> list[Path]:
    none = written(root / "none", NoMove(), [0.3, 0.5, 0.6, 0.55])
    return [none, written(root / "0_0.5", RWP(low=0.0, c_min=0.5), [0.3, 0.5, 0.6, 0.6], marked=4)]


def ranges(out: Path) -> list[Mapping[str, Any]]:
    text = (out / "stationary.json").read_text()
    assert "Infinity" not in text
    found: list[Mapping[str, Any]] = json.loads(text)["ranges"]
    return found


def test_best_chosen_and_last_are_what_they_say(tmp_path: Path) -> None:
    build(folders(tmp_path), tmp_path)
    none, low = ranges(tmp_path)
    assert (none["range"], none["low"], none["high"]) == ("none", None, None)
    assert (low["range"], low["low"], low["high"], low["folder"]) == ("0:0.5", 0.0, 0.5, "0_0.5")
    assert [none[name]["epoch"] for name in ("best", "chosen", "last")] == [3, 2, 4]
    assert [low[name]["epoch"] for name in ("best", "chosen", "last")] == [3, 4, 4]  # the first of equals is the best
    assert none["best"]["gap"] == pytest.approx(0.76 - 0.6)
    assert none["last"]["gap"] == pytest.approx(0.78 - 0.55)
    assert none["fall"] == pytest.approx(0.05)
    assert none["best"]["test_robust_error"] == pytest.approx(math.sqrt(0.6 * 0.4 / 400))
    assert none["last"]["gap_error"] == pytest.approx(math.sqrt((0.78 * 0.22 + 0.55 * 0.45) / 400))
    assert none["curves"]["test_robust"] == [0.3, 0.5, 0.6, 0.55]


def test_the_table_says_that_the_best_was_chosen_on_the_test_images(tmp_path: Path) -> None:
    text = to_markdown([curve(run) for run in read(folders(tmp_path))])
    assert "chosen on the test images, hence optimistic" in text
    assert "n = 400 test and 400 training images" in text
    row = next(line for line in text.splitlines() if line.startswith("| none"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == [
        "none", "60.0 ± 2.4", "3", "50.0 ± 2.5", "2", "55.0 ± 2.5", "5.0", "+16.0 ± 3.2", "+23.0 ± 3.2",
    ]  # fmt: skip
    assert "steps 10" in text
    assert "c_min" not in text


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    found = folders(tmp_path)
    build(found, tmp_path / "one")
    build(found, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert (tmp_path / "one" / "stationary.md").read_text() == to_markdown([curve(run) for run in read(found)])
    assert names == ["stationary.json", "stationary.md", "stationary.png", "stationary.svg"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_epochs_that_were_not_validated_are_left_out(tmp_path: Path) -> None:
    run = written(tmp_path / "none", NoMove(), [0.3, 0.5, 0.6, 0.4])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0] |= {f"{split}_{kind}": None for split in ("train", "test") for kind in ("clean", "robust")}
    lines[0]["monitor_n"] = 0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(read([run])[0]).series("epoch") == [2, 3, 4]


def test_runs_that_were_not_monitored_are_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "none", NoMove(), [0.3], marked=1, test_robust=None)
    with pytest.raises(DemiluneError, match=r"training\.monitor above 0"):
        build([run], tmp_path)
    assert not list(tmp_path.glob("stationary.*"))
