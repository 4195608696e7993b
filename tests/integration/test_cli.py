"""The command line as a user meets it: what works, and what bad input gets (one line, exit code 2, nothing lost)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from conftest import files, refused
from demilune.__main__ import main
from demilune.checkpoint import Checkpoint, load, save
from demilune.methods import METHODS

TINY = ["--model.width=4", "--training.epochs=1", "--training.batch=256", "--runtime.threads=1"]
QUICK = ["--attacks", "fgsm,pgd2", "--limit", "40"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sat"
    assert main(["train", "digits-sat", *TINY, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        (["train", "digits-ratt"], ["unknown preset 'digits-ratt'", "did you mean 'digits-rat'"]),
        (["train", "digits-rat", "--method", "rta"], ["unknown method 'rta'", "possible are adt, avm, gairat"]),
        (["train", "digits-rat", "--model", "preact_resnet"], ["did you mean 'preact_resnet18'"]),
        (["train", "digits-rat", "--data", "cifar"], ["unknown data 'cifar'", "cifar10"]),
        (["train", "digits-rat", "--schedule", "linear"], ["unknown schedule"]),
        (["train", "digits-rat", "--method.sampels", "3"], ["did you mean --method.samples?"]),
        (["train", "digits-sat", "--method.samples", "3"], ["unrecognized arguments: --method.samples"]),
        (["train", "digits-rat", "--method.samples", "two"], ["--method.samples", "'two' is no whole number"]),
        (["train", "digits-rat", "--method.samples", "0"], ["samples = 0", "1 or more"]),
        (["train", "digits-rat", "--method.bn", "evil"], ["--method.bn", "eval", "train_frozen"]),
        (["train", "digits-rat", "--method.share_scale", "maybe"], ["'maybe' is neither true nor false"]),
        (["train", "digits-rat", "--ball.eps", "-0.1"], ["eps = -0.1", "from 0 to 1"]),
        (["train", "digits-rat", "--ball.eps", "nan"], ["eps = nan"]),
        (["train", "digits-rat", "--ball.eps", "8"], ["eps = 8", "8/255"]),
        (["train", "digits-rat", "--ball.eps", "8/0"], ["'8/0' is no number"]),
        (["train", "digits-rat", "--ball.norm", "l1"], ["--ball.norm", "linf"]),
        (["train", "digits-rat", "--training.parts", "3"], ["parts = 3 does not divide"]),
        (["train", "digits-rat", "--training.epochs", "0"], ["training.epochs = 0"]),
        (["train", "digits-rat", "--schedule.rate", "0"], ["rate = 0", "positive"]),
        (["train", "digits-rat", "--runtime.device", "tpu"], ["device 'tpu'"]),
        (["train", "digits-rat", "--runtime.precision", "fp8"], ["fp8"]),
        (["train", "digits-rat"], ["--out is missing"]),
        (["train", "--out", "x"], ["no preset was named"]),
        (["train", "--config", "absent.yaml", "--out", "x"], ["absent.yaml does not exist"]),
        (
            ["train", "cifar10-rat", "--data.root", "/nowhere", "--out", "x"],
            ["/nowhere", "demilune data cifar10 --download"],
        ),
        (["train", "digits-rat", "--data", "folder", "--data.root", "/nowhere", "--out", "x"], ["/nowhere"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["evaluate"], ["MODEL"]),
        (["list", "methds"], ["did you mean 'methods'"]),
        (["data", "cifar"], ["unknown data set 'cifar'"]),
        (["data", "digits", "--download"], ["scikit-learn"]),
        (["data", "cifar10", "--download", "--root", ".", "--url", "http://127.0.0.1:9"], ["127.0.0.1:9", "again"]),
        (["report", "nowhere", "--out", "x"], ["nowhere"]),
        (["report", "nowhere"], ["--out is missing"]),
        (["completion", "tcsh"], ["tcsh"]),
    ],
)
def test_bad_words_get_one_line(
    argv: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(argv, capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["train", "digits-sat", "--runtime.device", "cuda", "--out", str(tmp_path / "x")]
    refused(argv, capsys, "torch finds no CUDA device", "--runtime.device cpu")
    assert not (tmp_path / "x").exists()


def test_bad_configuration_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    cases = {
        "method: [": ["cannot be read as YAML"],
        "- a list": ["holds no fields"],
        "method: sat": ["names no data"],
        "{data: digits, model: small, ball: {eps: 0.1}, method: {name: rat, sampels: 2}}": [
            "did you mean --method.samples?"
        ],
        "{data: digits, model: small, ball: {eps: 0.1}, method: {name: rta}}": ["unknown method 'rta'"],
        "{data: digits, model: small, ball: {eps: wide}, method: rat}": ["'wide' is no number"],
    }
    for text, words in cases.items():
        file.write_text(text)
        refused(["train", "--config", str(file), "--out", str(tmp_path / "x")], capsys, *words)
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_folder_that_holds_another_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    refused(["train", "digits-sat", *TINY, "--out", str(run)], capsys, "already holds a run", "--resume")
    argv = ["train", "digits-sat", *TINY, "--out", str(run), "--resume", "--seed", "1"]
    refused(argv, capsys, "seed is 0 there and 1 here")
    refused(["train", "digits-rat", *TINY, "--out", str(run), "--resume"], capsys, "holds another experiment")
    assert files(run) == before


def test_resuming_needs_no_preset(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert files(run) == before


def test_a_preset_a_file_and_options_are_laid_over_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{method: {samples: 4, mass_low: 0.3}, ball: {eps: 16/255}, training: {epochs: 7}}")
    assert main(["show", "digits-rat", "--config", str(file), "--method.samples=5", "--average", "ema"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["method"]["samples"] == 5
    assert shown["method"]["mass_low"] == 0.3
    assert shown["method"]["attack"]["step_ratio"] == 0.25
    assert shown["ball"]["eps"] == 16 / 255
    assert shown["training"]["epochs"] == 7
    assert shown["average"] == {"name": "ema", "decay": 0.999}
    file.write_text(yaml.safe_dump(shown))
    assert main(["show", "--config", str(file)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == shown


def test_another_method_keeps_the_preset_s_attack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits-sat", "--method", "avm"]) == 0
    method = yaml.safe_load(capsys.readouterr().out)["method"]
    assert method["name"] == "avm"
    assert method["attack"]["step_ratio"] == 0.25


@pytest.mark.parametrize("kind", ["methods", "attacks", "models", "data", "schedules", "averages", "presets"])
def test_lists(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "label", "stationary", "report", "list", "show", "data", "completion"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"demilune {command}" in capsys.readouterr().out


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "digits-rat", "--help"])
    text = capsys.readouterr().out
    for line in text.split("options:", 1)[1].split(" --")[1:]:
        assert len(line.split()) > 3, f"--{line.strip()} has no help"


def test_evaluation_writes_the_table_and_every_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert main(["evaluate", str(run), *QUICK, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "upper bound" in " ".join(printed.split())
    found = json.loads(out.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["clean", "fgsm", "pgd2", "worst"]
    with np.load(tmp_path / "found.images.npz", allow_pickle=False) as images:
        for name, row in rows.items():
            assert row["right"] == int(images[f"right.{name}"].sum())
            assert row["n"] == 40
        assert rows["pgd2"]["right_after"] == int(images["after.pgd2"].sum())
        assert (images["right.worst"] == images["right.fgsm"] & images["right.pgd2"]).all()
    assert rows["pgd2"]["forwards"] == rows["pgd2"]["gradients"] == 2.0
    assert not list(tmp_path.glob("*.partial*"))


def test_an_evaluation_changes_with_neither_batch_nor_interruption(run: Path, tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.json" for name in ("one", "two", "three"))
    argv = ["evaluate", str(run), "--attacks", "fgsm,pgd3x2,multi2x2", "--limit", "60", "--batch"]
    assert main([*argv, "60", "--out", str(one)]) == 0
    assert main([*argv, "7", "--out", str(two)]) == 0
    code = (
        "import sys, demilune.evaluate.table as t, demilune.cli as c\n"
        "t.SAVE_EVERY = 0.0\n"
        "calls = iter([False] * 11)\n"
        "import contextlib\n"
        "c.interruptible = lambda: contextlib.nullcontext(lambda: next(calls, True))\n"
        f"sys.exit(c.run({[*argv, '7', '--out', str(three)]!r}))\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped and saved" in stopped.stdout
    assert (tmp_path / "three.partial.npz").exists()
    assert main([*argv, "7", "--out", str(three)]) == 0
    results = [json.loads(path.read_text())["rows"] for path in (one, two, three)]
    assert results[0] == results[1] == results[2]
    for other in ("two", "three"):
        with np.load(tmp_path / "one.images.npz") as a, np.load(tmp_path / f"{other}.images.npz") as b:
            assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_checkpoints_that_do_not_fit_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = load(run / "best.safetensors")
    alone = tmp_path / "alone.safetensors"
    wider = {**good.about, "experiment": {**good.about["experiment"], "model": {"name": "small", "width": 8}}}
    save(alone, Checkpoint(wider, good.tensors))
    refused(
        ["evaluate", str(alone), *QUICK], capsys, "another architecture or another number of classes", "Small(width=8)"
    )
    fewer = {**good.about, "data": {**good.about["data"], "classes": list("abc")}}
    save(alone, Checkpoint(fewer, good.tensors))
    refused(["evaluate", str(alone), *QUICK], capsys, "tells 3 classes apart", "digits has 10")
    alone.write_bytes((run / "best.safetensors").read_bytes()[:2000])
    refused(["evaluate", str(alone), *QUICK], capsys, "truncated")
    torch.save({"weights": torch.ones(2)}, alone)
    refused(["evaluate", str(alone), *QUICK], capsys, "is a pickle")
    refused(["evaluate", str(run), "--attacks", "pgd"], capsys, "unknown attack 'pgd'")
    refused(["evaluate", str(run), "--attacks", "pgd0"], capsys, "1 or more")
    refused(["evaluate", str(run), "--attacks", "pgd5,pgd5x2"], capsys, "twice")
    refused(["evaluate", str(run), "--ball.eps", "2"], capsys, "eps = 2")
    assert list(tmp_path.iterdir()) == [alone]


def test_completion_scripts_hold_commands_presets_and_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        for word in ("evaluate", "digits-rat", "--method.samples", "--data.unverified", "presets"):
            assert word in text
        if shell == "bash":
            script = f"{text}\nCOMP_WORDS=(demilune train digits-m); COMP_CWORD=2; _demilune; echo ${{COMPREPLY[@]}}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
            assert done.stdout.strip() == "digits-mart", done.stderr


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[2] / "examples").glob("*.py")), ids=lambda path: path.stem
)
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", str(example)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_package_is_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "demilune", "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout.startswith("demilune 0.")


def test_a_resumed_run_refuses_other_settings_and_loses_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    resume = ["train", "--resume", "--out", str(run)]
    refused([*resume, "--seed", "7"], capsys, "seed is 0 there and 7 here")
    refused([*resume, "--method", "avm"], capsys, "method.name is 'sat' there and 'avm' here")
    refused([*resume, "--training.epochs", "9"], capsys, "training.epochs is 1 there and 9 here")
    assert files(run) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["digits-sat", "digits-standard"])
def test_every_method_can_take_a_preset_s_place(method: str, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", preset, "--method", method]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["method"]
    assert shown["name"] == method
    if preset == "digits-sat" and "attack" in shown:
        assert shown["attack"]["step_ratio"] == 0.25
    if "attack" in shown and method in ("trades", "mart"):
        assert shown["attack"]["noise"] == 0.001


def test_another_method_takes_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits-rat", "--method", "avm"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "digits-avm"
    assert main(["show", "digits-rat", "--move", "rwp"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "digits-rat-rwp"
    assert main(["show", "digits-rat", "--method", "avm", "--name", "mine"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "mine"


def test_different_evaluations_of_a_run_lie_side_by_side(run: Path) -> None:
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--limit", "20"]) == 0
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--limit", "20", "--split", "train"]) == 0
    assert main(["evaluate", str(run), "--attacks", "fgsm", "--limit", "20", "--ball.eps", "0.1"]) == 0
    written = {path.name for path in (run / "evaluations").glob("*.json")}
    assert {"best_fgsm_n20.json", "best_train_fgsm_n20.json", "best_fgsm_n20_eps0.1.json"} <= written


def test_which_images_are_test_images_cannot_be_changed_afterwards(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["evaluate", str(run), "--data.test", "1500"], capsys, "unrecognized arguments: --data.test")


def test_an_attack_that_cannot_reach_the_edge_of_the_ball_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = ["--method.attack.step_ratio", "null", "--method.attack.step_size", "1/255"]
    assert main(["train", "digits-sat", *TINY, *weak, "--out", str(tmp_path / "x")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "warning: the training attack takes 10 steps of 0.003922, which cannot reach eps = 0.15" in printed
    assert "validation attack" not in printed


def test_the_names_evaluate_takes_are_listed(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert main(["list", "attacks"]) == 0
    assert "pgdKxR" in capsys.readouterr().out
    refused(["evaluate", str(run), "--attacks", "fgms"], capsys, "did you mean 'fgsm'?")
