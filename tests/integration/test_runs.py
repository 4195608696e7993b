"""Runs that are stopped, killed and resumed end with the same bits; folders and checkpoints are never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from conftest import ATTACK, RUN
from demilune.checkpoint import Checkpoint, load, save
from demilune.data import Dataset, Digits
from demilune.errors import DemiluneError
from demilune.experiment import Experiment
from demilune.methods import RAT, SAT, Standard
from demilune.models import Small
from demilune.runs import RunFolder
from demilune.runtime import Runtime
from demilune.schedules import EMA, SWA, NoAverage, Triangular
from demilune.train import Progress, fit


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


def contents(folder: Path) -> dict[str, bytes]:
    names = ("last.safetensors", "best.safetensors", "metrics.jsonl", "experiment.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "run",
    [
        RUN,
        replace(RUN, method=SAT(ATTACK), average=EMA(0.9), training=replace(RUN.training, parts=2)),
        replace(RUN, method=Standard(), average=SWA(0.3), training=replace(RUN.training, validate_every=2)),
        replace(RUN, runtime=Runtime(threads=1, precision="bf16", channels_last=True)),
    ],
    ids=["rat", "sat-ema-parts", "standard-swa", "rat-bf16"],
)
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(run: Experiment, digits: Dataset, tmp_path: Path) -> None:
    whole, torn = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "torn")
    assert fit(run, digits, whole)
    for _ in range(100):
        steps = iter([False] * (2 if _ % 2 else 0))
        if fit(run, digits, torn, resume=torn.experiment.exists(), stopping=lambda s=steps: next(s, True)):
            break
    assert contents(torn.path) == contents(whole.path)
    assert [line["epoch"] for line in torn.read_metrics()] == [1, 2, 3]


def test_an_end_that_was_reached_is_not_trained_again(digits: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    fit(RUN, digits, folder)
    before, events = contents(folder.path), list[Progress]()
    assert fit(RUN, digits, folder, resume=True, watch=events.append)
    assert [event.kind for event in events] == ["end"]
    assert contents(folder.path) == before


def test_a_run_killed_again_and_again_ends_with_the_same_bits(digits: Dataset, tmp_path: Path) -> None:
    run = replace(RUN, training=replace(RUN.training, epochs=12, checkpoint_every=0.0))
    whole, torn = RunFolder(tmp_path / "whole"), tmp_path / "torn"
    fit(run, digits, whole)
    settings = ["--model.width=4", "--training.batch=256", "--training.checkpoint_every=0", "--training.epochs=12"]
    settings += ["--method.attack.steps=2", "--method.attack.step_ratio=0.5", "--training.weight_decay=2e-4"]
    settings += ["--training.validation.steps=2", "--training.validation.step_ratio=0.5"]
    settings += ["--runtime.threads=1", "--runtime.channels_last=false", "--name=tiny"]
    command = [sys.executable, "-m", "demilune", "train", "digits-rat", *settings, "--out", str(torn), "--resume"]
    last = torn / "last.safetensors"
    kills = 0
    for wait in (0.0, 0.11, 0.23, 0.05):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        seen = last.stat().st_mtime_ns if last.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if last.exists() and last.stat().st_mtime_ns != seen:
                break
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert not error, error.decode()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert contents(torn) == contents(whole.path)
    assert not [path for path in torn.iterdir() if path.name.startswith(".")]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "demilune", "train", "digits-sat", "--out", str(out), "--training.epochs", "500"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"demilune train --resume --out {out}" in output
    assert not error
    assert load(out / "last.safetensors").about["step"] > 0


def test_the_alarm_of_catastrophic_overfitting_is_raised_and_can_stop(digits: Dataset, tmp_path: Path) -> None:
    """The threshold is set so low that any fall counts."""
    run = replace(RUN, training=replace(RUN.training, epochs=30, alarm=0.0, stop_on_alarm=True))
    folder = RunFolder(tmp_path / "run")
    assert fit(run, digits, folder)
    lines = folder.read_metrics()
    assert "catastrophic overfitting" in lines[-1]["alarm"]
    assert lines[-1]["robust"] < lines[-2]["robust"]
    assert len(lines) < 30
    events = list[Progress]()
    assert fit(run, digits, folder, resume=True, watch=events.append)
    assert events[-1].kind == "end"


def test_without_validation_images_the_best_checkpoint_is_the_last(tmp_path: Path) -> None:
    run = replace(RUN, data=Digits(validation=0), average=NoAverage())
    folder = RunFolder(tmp_path / "run")
    assert fit(run, run.data.load(), folder)
    best, last = (load(folder.checkpoint(name)) for name in ("best", "last"))
    assert all(torch.equal(tensor, last.tensors[name]) for name, tensor in best.tensors.items())


def test_the_best_checkpoint_is_of_the_best_epoch(digits: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    fit(RUN, digits, folder)
    lines = folder.read_metrics()
    top = max(line["robust"] for line in lines)
    first = next(line for line in lines if line["robust"] == top)
    assert load(folder.checkpoint("best")).about["step"] == first["step"]


def test_training_that_diverges_says_so_and_keeps_the_last_good_checkpoint(digits: Dataset, tmp_path: Path) -> None:
    run = replace(RUN, schedule=Triangular(rate=1e30))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DemiluneError, match=r"diverged; lower schedule\.rate"):
        fit(run, digits, folder)
    assert all(tensor.isfinite().all() for tensor in load(folder.checkpoint("last")).tensors.values())


def refused(digits: Dataset, folder: Path, words: str, run: Experiment = RUN, resume: bool = True) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(DemiluneError, match=words):
        fit(run, digits, RunFolder(folder), resume)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_folders_that_hold_something_else_are_refused_and_left_alone(digits: Dataset, tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("years of work")
    refused(digits, strange, "not empty and holds no run")
    run = tmp_path / "run"
    fit(RUN, digits, RunFolder(run))
    refused(digits, run, "already holds a run: add --resume", resume=False)
    refused(digits, run, "method.samples is 2 there and 3 here", replace(RUN, method=RAT(ATTACK, samples=3)))
    other = replace(digits, sha256={**digits.sha256, "train_images": "0" * 64})
    refused(other, run, "data.sha256.train_images")


def test_a_checkpoint_of_another_run_is_refused(digits: Dataset, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    fit(RUN, digits, RunFolder(mine))
    fit(replace(RUN, model=Small(8)), digits, RunFolder(other))
    (other / "last.safetensors").replace(mine / "last.safetensors")
    refused(digits, mine, "is of another run: model.width is 8 there and 4 here")


@pytest.mark.parametrize("kept", [0, 7, 100, 5000])
def test_truncated_checkpoints_are_refused(kept: int, digits: Dataset, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    fit(RUN, digits, folder)
    path = folder.checkpoint("last")
    path.write_bytes(path.read_bytes()[:kept])
    refused(digits, folder.path, "truncated or no safetensors file")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    for protocol in (2, 4):
        torch.save({"weights": torch.ones(2)}, tmp_path / "model.safetensors", pickle_protocol=protocol)
        with pytest.raises(DemiluneError, match="is a pickle"):
            load(tmp_path / "model.safetensors")


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    save(path, Checkpoint({"step": 1}, {"w": torch.ones(3)}))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DemiluneError, match="the disk is full"):
        save(path, Checkpoint({"step": 2}, {"w": torch.zeros(3)}))
    assert load(path).about == {"step": 1}
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_checkpoint_library_s_word_for_a_full_disk_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is what safetensors 0.8.0 said on a full tmpfs."""

    def full(*_: object, metadata: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("demilune.checkpoint.save_file", full)
    with pytest.raises(DemiluneError, match="the disk is full"):
        save(tmp_path / "last.safetensors", Checkpoint({}, {"w": torch.ones(3)}))
    assert not list(tmp_path.iterdir())


def test_metrics_are_json_lines_that_stay_equal_from_run_to_run(digits: Dataset, tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    fit(RUN, digits, one)
    fit(RUN, digits, two)
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    line = json.loads(one.metrics.read_text().splitlines()[0])
    assert set(line) == {
        "epoch",
        "step",
        "rate",
        "loss",
        "excess",
        "notes",
        "clean",
        "robust",
        "validation_n",
        "alarm",
        "best",
    }
    assert set(line["notes"]) == {"found", "tau", "first_to_end", "cosine", "scale", "mass"}
    assert "seconds" not in one.metrics.read_text()
    assert [set(t) for t in one.read_timing()] == [{"epoch", "seconds", "images_per_second"}] * 3
