"""What a hostile user does: one clear line and exit code 2, nothing overwritten, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import files, refused
from demilune.__main__ import main
from demilune.attacks import PGD
from demilune.checkpoint import HEADER, load
from demilune.core.geometry import Ball
from demilune.errors import DemiluneError
from demilune.experiment import Experiment, Training, build
from demilune.methods import RAT, SAT
from demilune.runs import alone, replacing
from demilune.runtime import Runtime, enough_memory

TINY = ["--model.width=4", "--training.epochs=1", "--training.batch=500", "--runtime.threads=1"]
QUICK = ["--attacks", "fgsm", "--limit", "10"]
FOUR = "data: digits\nmodel: small\nmethod: sat\nball: {eps: 0.1}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "run"
    assert main(["train", "digits-sat", *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FOUR + "schedule: [cosine]", ["schedule is ['cosine']", "a name was expected"]),
        (FOUR + "schedule: {name: {a: b}}", ["schedule is {'a': 'b'}"]),
        (FOUR + "schedule: null", ["schedule is None"]),
        (FOUR.replace("method: sat", "method: {attack: {steps: 3}}"), ["names no method"]),
        (FOUR + "training: 3", ["training is 3", "fields were expected"]),
        (FOUR + "training: [1, 2]", ["training is [1, 2]"]),
        (FOUR + "runtime: null", ["runtime is None"]),
        (FOUR + "training: {epochs: [1]}", ["training.epochs is [1]"]),
        (FOUR + "training: {'a b': 2}", ["training.a b"]),
        (FOUR + "training: {name: 3}", ["--training.name"]),
        (FOUR + "name: {a: 1}", ["name is {'a': 1}"]),
        (FOUR + "nmae: 'my run'", ["'nmae'", "did you mean 'name'"]),
        (FOUR + "out: x", ["'out'", "possible are"]),
        (FOUR + "seed: 1\nseed: 2", ["gives seed twice", "leave one out"]),
        (FOUR + "training: {epochs: 1, epochs: 2}", ["gives epochs twice"]),
        (FOUR + "training: &t\n  epochs: *t", ["Circular"]),
        (FOUR + "seed: " + "9" * 5000, ["cannot be read as YAML"]),
        (FOUR + "x: " + "[" * 3000 + "]" * 3000, ["cannot be read as YAML"]),
        (FOUR + "seed: 99999999999999999999", ["--seed", "too large"]),
        (FOUR + "runtime: {device: 'cpu:x'}", ["device 'cpu:x'", "cuda:N"]),
        (FOUR + "runtime: {threads: 100000}", ["threads = 100000", "up to 1024"]),
        (FOUR + "schedule: {rate: 1.0e+300}", ["rate = 1e+300"]),
        (FOUR + "training: {weight_decay: 1.0e+300}", ["training.weight_decay = 1e+300"]),
        (FOUR + 'name: "a\\nb"\nball.eps: 2', ["eps = 2"]),
    ],
)
def test_configurations_of_odd_shapes(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    refused(["show", "--config", str(file)], capsys, *words)


def test_a_configuration_may_be_flat_and_repeat_anchors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(FOUR + "training: &t {epochs: 3}\nmethod.attack.steps: 3\nname: 5")
    refused(["show", "--config", str(file), "--typo=a b"], capsys, "--typo=a b")
    assert main(["show", "--config", str(file)]) == 0
    assert "name: '5'" in capsys.readouterr().out


def test_odd_words(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(["train", "digits-sat", "--out="], capsys, "--out: the name is empty")
    refused(["report", "x", "--out", ""], capsys, "--out: the name is empty")
    refused(["show", "digits-sat", "--config="], capsys, "--config: the name is empty")
    refused(["show", "digits-sat", "--method="], capsys, "unknown method ''")
    refused(["train", "digits-sat", "--out", "x" * 300], capsys, "xxx")
    refused(["data", "cifar10", "--download", "--root", ".", "--url", "http://["], capsys, "http://[")
    refused(["lst\nx"], capsys, "unknown command")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": "x"}', "[" * 100000, "9" * 5000, '{"hologram": 1}'])
def test_an_experiment_file_that_is_none(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "experiment.json").write_text(text)
    before = files(run)
    refused(["train", "--resume", "--out", str(run)], capsys, "experiment.json")
    refused(["evaluate", str(run), *QUICK], capsys, "experiment.json")
    assert files(run) == before


def _header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = dict(load(path).about)
    about["data"] = dict(about["data"])
    told = change(about)
    save_file(load_file(path), path, metadata={HEADER: told if isinstance(told, str) else json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda about: about.update(format=2), "format 2"),
        (lambda about: about.pop("format"), "format None"),
        (lambda about: about.pop("data"), "(data)"),
        (lambda about: [about.pop("checkpoint")], "(checkpoint)"),
        (lambda about: about.update(step="x"), "(step)"),
        (lambda about: about.update(best=None), "(best)"),
        (lambda about: about.update(metrics=None), "(metrics)"),
        (lambda about: about["data"].update(shape=[]), "(data)"),
        (lambda about: about["data"].update(mean=["a"]), "(data)"),
        (lambda about: about["data"].update(std=None), "(data.std)"),
        (lambda about: "[]", "damaged header"),
        (lambda about: "{", "damaged header"),
    ],
)
def test_damaged_headers(
    run: Path, change: Callable[[dict[str, Any]], object], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last", "best"):
        _header(run / f"{name}.safetensors", change)
    before = files(run)
    refused(["train", "--resume", "--out", str(run)], capsys, "last.safetensors", word)
    refused(["evaluate", str(run), *QUICK], capsys, "best.safetensors", word)
    assert files(run) == before


def test_damaged_tensors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "last.safetensors"
    good, about = load_file(path), {HEADER: json.dumps(dict(load(path).about))}
    kernel = next(name for name, tensor in good.items() if name.startswith("model.") and tensor.dim() == 4)
    momentum = next(name for name in good if name.startswith("momentum."))
    cases = {
        "no numbers": {kernel: good[kernel] * float("nan")},
        "float64": {kernel: good[kernel].double()},
        "damaged momentum": {momentum: torch.ones(1)},
        "damaged tally": {"tally.loss": torch.ones(5)},
    }
    for word, changed in cases.items():
        save_file({**good, **changed}, path, metadata=about)
        refused(["train", "--resume", "--out", str(run)], capsys, "last.safetensors", word)
    save_file({**good, **cases["no numbers"]}, run / "best.safetensors", metadata=about)
    refused(["evaluate", str(run), *QUICK], capsys, "best.safetensors", "no numbers", "use another checkpoint")
    for step in (-1, 99):
        save_file(good, path, metadata={HEADER: json.dumps({**load(path).about, "step": step})})
        refused(["train", "--resume", "--out", str(run)], capsys, f"at step {step}")


def test_metrics_that_were_edited(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(b" " + metrics.read_bytes())
    before = files(run)
    refused(["train", "--resume", "--out", str(run)], capsys, "metrics.jsonl was edited")
    assert files(run) == before
    metrics.unlink()
    metrics.mkdir()
    refused(["train", "--resume", "--out", str(run)], capsys, "metrics.jsonl")


def test_an_evaluation_overwrites_only_an_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    before = files(tmp_path)
    for name in ("best.safetensors", "experiment.json", "metrics.jsonl", "../notes"):
        refused(["evaluate", str(run), *QUICK, "--out", str(run / name)], capsys, "no evaluation", "name a new file")
    refused(["evaluate", str(run), *QUICK, "--out", str(tmp_path)], capsys, "is a folder", "found.json")
    refused(["evaluate", str(run), *QUICK, "--out", "/"], capsys, "is a folder")
    refused(["evaluate", str(run), *QUICK, "--out", os.devnull], capsys, "no evaluation")
    refused(["evaluate", str(run), *QUICK, "--checkpoint", "both", "--out", "x"], capsys, "leave out --out")
    assert files(tmp_path) == before
    for _ in range(2):
        assert main(["evaluate", str(run), *QUICK, "--out", str(tmp_path / "found.json")]) == 0


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DemiluneError, match="no plain file"), replacing(tmp_path / "pipe") as beside:
        beside.write_text("x")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_other_data_are_said_to_be_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _header(run / "best.safetensors", lambda about: about["data"].update(sha256={}))
    out = tmp_path / "x.json"
    assert main(["evaluate", str(run), *QUICK, "--out", str(out)]) == 0
    assert "may have been trained on" in capsys.readouterr().out
    assert json.loads(out.read_text())["checks"][-1]["level"] == "warning"


@pytest.mark.parametrize("damage", ["half", "shape", "type", "empty"])
def test_leftovers_of_an_evaluation_that_are_broken(
    run: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}

    def spy(path: Path, arrays: Mapping[str, Any]) -> None:
        kept.update(arrays if "partial" in path.name else {})

    argv = ["evaluate", str(run), *QUICK, "--out", str(tmp_path / "x.json")]
    with monkeypatch.context() as patched:
        patched.setattr("demilune.evaluate.table.save_npz", spy)
        assert main(argv) == 0
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    partial = tmp_path / "x.partial.npz"
    wrong = {"shape": np.ones(3, np.int8), "type": np.array(["a"] * 10)}.get(damage, kept["known.clean"])
    np.savez(partial, **{**kept, "known.clean": wrong})
    content = partial.read_bytes()
    partial.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert main(argv) == 0
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == rows
    assert not partial.exists()


def test_one_training_at_a_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    with alone(run):
        refused(["train", "--resume", "--out", str(run)], capsys, "another process is training in")
    assert files(run) == before
    assert main(["train", "--resume", "--out", str(run)]) == 0


def test_a_lack_of_memory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "digits-sat", "--model.width", "99999999999", "--out", str(tmp_path / "x")]
    refused(argv, capsys, "out of memory", "--training.parts")
    with pytest.raises(RuntimeError, match="something else"), enough_memory():
        raise RuntimeError("something else")
    with pytest.raises(DemiluneError, match="out of memory"), enough_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


def _demilune(*argv: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demilune", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="latin1",
        env={**os.environ, **environment},
    )


def test_a_terminal_without_greek_letters(run: Path) -> None:
    argv = ["evaluate", str(run), *QUICK, "--out", str(run / "x.json")]
    done = _demilune(*argv, PYTHONIOENCODING="ascii", COLUMNS="20")
    out, error = done.communicate(timeout=60)
    assert done.returncode == 0, error
    assert "upper bound" in out
    assert "1 + 1" in out, "a narrow terminal cuts no number"
    assert (run / "x.json").exists()


def test_a_reader_that_goes_away_costs_no_work(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = _demilune("train", "digits-sat", *TINY, "--out", str(out))
    assert done.stdout is not None and done.stderr is not None
    done.stdout.close()
    assert done.wait(timeout=60) == 0, done.stderr.read()
    assert (out / "best.safetensors").exists()
    done.stderr.close()


def test_output_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(argv: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("demilune.cli.run", full)
    assert main(["list", "methods"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_stopped_before_the_training_began(number: int, seconds: float, tmp_path: Path) -> None:
    code = "import signal, sys, time, demilune.cli as c, demilune.__main__ as m\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it is ignored in a shell's background
    code += "c.run = lambda argv: (print('ready', flush=True), time.sleep(30))\nsys.exit(m.main())"
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    assert done.stdout.readline() == "ready\n"
    time.sleep(seconds / 10)
    done.send_signal(number)
    _, error = done.communicate(timeout=30)
    assert done.returncode == 130
    assert error.count("\n") == 1
    assert "--resume" in error


def test_fields_of_wrong_types_in_a_library_s_hands() -> None:
    wrong: list[tuple[Callable[..., object], dict[str, Any], str]] = [
        (Ball, {"eps": "0.1"}, "eps = '0.1': a value of type float"),
        (Ball, {"eps": True}, "eps = True"),
        (RAT, {"samples": 1.5}, "samples = 1.5"),
        (RAT, {"attack": 5}, "attack = 5: a value of type PGD"),
        (RAT, {"fallback": "ende"}, "did you mean 'end'"),
        (RAT, {"region": "square"}, "possible are segment, triangle"),
        (RAT, {"scale": 1e9}, "scale <= 1000"),
        (SAT, {"bn": "evl"}, "did you mean 'eval'"),
        (Training, {"decay": "some"}, "possible are all, kernels"),
        (Training, {"epochs": "3"}, "epochs = '3'"),
        (Runtime, {"device": None}, "device = None"),
    ]
    for kind, fields, words in wrong:
        with pytest.raises(DemiluneError, match=words.replace("(", r"\(")):
            kind(**fields)
    assert Ball(eps=1).eps == 1
    assert RAT(PGD(steps=2)).attack.steps == 2
    with pytest.raises(DemiluneError, match="has no field name"):
        build(Experiment, {})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("eps",), None),
        (("eps",), float("nan")),
        (("seconds",), float("inf")),
        (("data_sha256",), []),
        (("method",), {}),
        (("parameters",), "x"),
        (("rows", 1, "right"), None),
        (("rows", 1, "right_after"), "x"),
        (("rows", 1, "title"), 5),
        (("rows", 1, "forwards"), []),
        (("checks", 0, "level"), None),
    ],
)
def test_reports_of_broken_evaluations(
    run: Path, tmp_path: Path, path: tuple[str | int, ...], value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.json"
    assert main(["evaluate", str(run), *QUICK, "--out", str(file)]) == 0
    found = json.loads(file.read_text())
    place: Any = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(found))
    refused(["report", str(file), "--out", str(tmp_path / "report")], capsys, "x.json", "evaluate the model again")
    assert not (tmp_path / "report").exists()
