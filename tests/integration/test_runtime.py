"""How the command line settles a run's arithmetic, and that it stays settled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from demilune import automatic
from demilune.__main__ import main
from demilune.automatic import Choice
from demilune.runtime import Runtime

TINY = ["--model.width=4", "--training.steps=2", "--training.batch=32", "--runtime.threads=1"]


def runtime(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "experiment.json").read_text())["runtime"]
    return found


def test_auto_says_what_it_chose_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "digits-sat", *TINY, "--out", str(run)]) == 0
    said = capsys.readouterr()
    told = said.out + said.err
    assert "runtime: precision float32 (" in told and "channels_last true (" in told and "compile false (" in told
    assert (runtime(run)["precision"], runtime(run)["channels_last"], runtime(run)["compile"]) == (
        "float32",
        True,
        False,
    )
    reasons = json.loads((run / "environment.json").read_text())["runtime"]
    assert set(reasons) == {"precision", "channels_last", "convolution", "compile"} and all(reasons.values())


def test_plain_leaves_every_lever_off_but_what_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "digits-sat", *TINY, "--runtime", "plain", "--out", str(run)]) == 0
    plain = Runtime(threads=1)
    assert runtime(run) == {name: getattr(plain, name) for name in runtime(run)}
    named = tmp_path / "named"
    argv = ["train", "digits-sat", *TINY, "--runtime=plain", "--runtime.channels_last", "true", "--out", str(named)]
    assert main(argv) == 0
    assert runtime(named) == runtime(run) | {"channels_last": True}


def test_a_run_keeps_its_runtime_where_another_would_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "digits-sat", *TINY, "--runtime", "plain", "--out", str(run)]) == 0
    before = runtime(run)

    def other(experiment: Any, *rest: object) -> Choice:
        raise AssertionError("a run that is there is asked nothing")

    monkeypatch.setattr(automatic, "choose", other)
    for argv in (["digits-sat", *TINY], []):
        assert main(["train", *argv, "--resume", "--out", str(run)]) == 0
    assert runtime(run) == before
    capsys.readouterr()
    assert main(["train", "digits-sat", *TINY, "--runtime.channels_last=true", "--resume", "--out", str(run)]) == 2
    assert "runtime.channels_last is False there and True here" in capsys.readouterr().err


def test_a_papers_preset_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(experiment: Any, shape: object, classes: object, said: set[str], steps: object) -> Choice:
        asked.append(set(said))
        return Choice(experiment.runtime, {})

    monkeypatch.setattr(automatic, "choose", noted)
    words = ["--data", "digits", "--model", "small", *TINY, "--schedule.rate=0.01"]
    for name, preset in (("paper", "cifar10-sat"), ("ours", "s30-cifar10-sat")):
        assert main(["train", preset, *words, "--out", str(tmp_path / name)]) == 0
    assert asked == [{"threads", "precision"}, {"threads"}]


def test_a_net_that_would_corrupt_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    words = ["train", "digits-sat", "--model", "preact_resnet18", *TINY, "--runtime.channels_last=true"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "4 channels" in error and "--runtime.channels_last false" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runtime", "fast"], ["fast", "auto", "plain"]),
        (["--runtime.device", "mps"], ["mps", "not supported"]),
        (["--runtime.convolution", "fft"], ["fft", "winograd"]),
        (["--runtime.convolution", "winograd", "--runtime.precision", "bf16"], ["winograd is float32"]),
    ],
)
def test_bad_words(words: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits-sat", *TINY, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in told) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
