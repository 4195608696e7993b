"""The commands that examine a network, ours or anyone's: what works, and what bad input gets (one line, code 2)."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import files, refused
from demilune import examine
from demilune.__main__ import main
from demilune.attacks import APGD, FABT, Square, TargetedAPGD
from demilune.checkpoint import load
from demilune.core.geometry import Ball
from demilune.data import Digits
from demilune.errors import DemiluneError
from demilune.evaluate import counted, curves, doctor, table
from demilune.evaluate.crosscheck import Agreement
from demilune.evaluate.suite import Setting, suite
from demilune.models.small import SmallNet
from demilune.results import Evaluation
from demilune.surveys import survey

SUITE = sys.modules["demilune.evaluate.suite"]
"""The module: its package holds a function of the same name."""

TINY = ["--model.width=4", "--training.steps=60", "--training.batch=128", "--runtime.threads=1"]

STRANGERS = """
import torch
from torch import nn
from demilune.models.small import SmallNet


def plain():
    return SmallNet(4, 1, 10)


def two():
    return SmallNet(4, 1, 2)


def three():
    return SmallNet(4, 1, 3)


def five():
    return SmallNet(4, 1, 5)


def coloured():
    return SmallNet(4, 3, 10)


def fails():
    raise ValueError("no such\\nthing")


def nothing():
    return None


def sized(width):
    return SmallNet(width, 1, 10)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        return self.change(self.net(x))


class Soft(Around):
    def change(self, z):
        return z.softmax(dim=1)


class Random(Around):
    def change(self, z):
        return z + 0.3 * torch.randn_like(z)


class NoNumbers(Around):
    def change(self, z):
        return z * float("nan")


class Pair(Around):
    def change(self, z):
        return z, z


class Chosen(Around):
    def change(self, z):
        return z.argmax(dim=1)


class Batch(Around):
    def forward(self, x):
        return self.net(x - x.mean(dim=0, keepdim=True) + 0.3)


class Cut(Around):
    def forward(self, x):
        return self.net(torch.from_numpy(x.detach().numpy().round(1)))


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


network = plain()
number = 3
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a stranger's code, its weights, and images of few classes."""
    here = tmp_path_factory.mktemp("desk")
    (here / "strangers.py").write_text(STRANGERS)
    for name, more in (("run", []), ("other", ["--seed=1", "--training.steps=10"])):
        assert main(["train", "digits-standard", *TINY, *more, "--out", str(here / name)]) == 0
    tensors = load(here / "run" / "best.safetensors").part("model")
    bare = {name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")}
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in bare.items()}}, here / "w.pth")
    torch.save({f"net.{name}": tensor for name, tensor in bare.items()}, here / "around.pth")
    levels = np.random.default_rng(0).integers(0, 256, (3, 40, 8, 8), np.uint8)
    for classes in (2, 3):
        for label in range(classes):
            folder = here / f"images{classes}" / "αβγ"[label]
            folder.mkdir(parents=True)
            for i in range(40):
                Image.fromarray(levels[label, i]).save(folder / f"{i}.png")
    return here


@pytest.fixture(autouse=True)
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)


@pytest.fixture
def run(desk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(desk / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def norm(desk: Path) -> list[str]:
    """The normalisation that the stranger's network was trained with."""
    tensors = load(desk / "run" / "best.safetensors").part("model")
    return [f"--mean={float(tensors['mean'])!r}", f"--std={float(tensors['std'])!r}"]


STRANGER = ["strangers:plain", "--weights=w.pth", "--data=digits", "--ball.eps=0.15", "--runtime.threads=1"]
FGSM = ["--attacks=fgsm", "--limit=20"]
PICTURES = ["--data=folder", "--data.size=8", "--data.grey=true", "--data.pad=1"]


def found(home: Path, name: str, room: str = "evaluations") -> Any:
    return json.loads((home / room / f"{name}.json").read_text())


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# --- a foreign model -------------------------------------------------------------------------------------------------


def test_a_foreign_model_is_declared_once_and_then_known_by_its_folder(
    run: Path, norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, attacks = tmp_path / "höme 1", ["--attacks=fgsm,pgd3x2", "--limit=40"]
    assert main(["evaluate", *STRANGER, *norm, "--home", str(home), *attacks]) == 0
    told = json.loads((home / "model.json").read_text())
    assert told["name"] == "höme 1"
    assert told["model"]["model"] == "strangers:plain"
    assert Path(told["model"]["weights"]).is_absolute()
    assert len(told["model"]["weights_sha256"]) == 64
    assert told["trial"]["ball"] == {"norm": "linf", "eps": 0.15}
    first = found(home, "model_fgsm-pgd3x2_n40")
    texts = " ".join(check["text"] for check in first["checks"])
    assert "took what is under 'state_dict.module'" in texts or "took what is under 'state_dict'" in texts
    before = {path.name for path in (home / "evaluations").iterdir()}
    assert main(["evaluate", str(home), *attacks]) == 0
    assert {path.name for path in (home / "evaluations").iterdir()} == before, "the same is not written twice"
    assert found(home, "model_fgsm-pgd3x2_n40")["rows"] == first["rows"]
    assert main(["evaluate", str(run), "--runtime.threads=1", *attacks]) == 0
    assert found(run, "best_fgsm-pgd3x2_n40")["rows"] == first["rows"], "it is the same network"
    assert main(["evaluate", *STRANGER, *norm, "--home", str(home / "model.json"), *attacks]) == 2
    assert main(["evaluate", str(home / "model.json"), "--ball.eps=0.1", *FGSM]) == 0
    assert main(["evaluate", *STRANGER[:3], *norm, "--home", str(home), "--runtime.precision=bf16", *FGSM]) == 0
    assert (home / "evaluations" / "model_fgsm_n20_eps0.1.json").exists()
    assert (home / "evaluations" / "model_fgsm_n20_bf16.json").exists()


def test_what_is_declared_otherwise_is_another_model(
    norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(tmp_path / "home")]
    assert main(["evaluate", *STRANGER, *norm, *home, *FGSM]) == 0
    before = files(tmp_path)
    refused(["evaluate", *STRANGER, *home, *FGSM], capsys, "declares another model", "mean", "another folder")
    refused(["evaluate", "strangers:Soft", "--data=digits", *home, *FGSM], capsys, "declares another model")
    refused(["evaluate", home[1], "--data=digits", *FGSM], capsys, "--data", "declared already", "another --home")
    refused(["evaluate", home[1], "--mean=0.5", *FGSM], capsys, "--mean", "declared already")
    refused(["evaluate", home[1], "--checkpoint=last", *FGSM], capsys, "--checkpoint", "foreign model")
    refused(["evaluate", home[1], "--ball.eps=2", *FGSM], capsys, "eps = 2", "from 0 to 1")
    assert files(tmp_path) == before


def test_other_data_of_the_same_shape_are_another_declaration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, argv = tmp_path / "home" / "model.json", ["evaluate", "strangers:plain", "--data=digits", *FGSM, "--home"]
    assert main([*argv, str(file.parent)]) == 0
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "trial": {**told["trial"], "data": {"name": "folder", "root": "images2"}}}))
    refused([*argv, str(file.parent)], capsys, "data is 'folder' there and 'digits' here", "another folder")


def test_a_wrong_normalisation_is_noticed(norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*STRANGER, "--attacks=fgsm", "--limit=20", "--home"]
    assert main(["evaluate", *argv, str(tmp_path / "wrong"), "--bounds", "-255,0"]) == 0
    printed = said(capsys)
    assert "warning: accuracy on 500 images is" in printed, "however few are attacked"
    assert "it was probably trained with that; declare it anew with" in printed
    assert main(["evaluate", *argv, str(tmp_path / "right"), *norm]) == 0
    assert "probably trained" not in said(capsys)


def test_programs_run_where_they_are_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, home = tmp_path / "net.pt", tmp_path / "home"
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(SmallNet(4, 1, 10).eval(), torch.rand(2, 1, 8, 8)).save(file)
    argv = ["evaluate", str(file), "--data=digits", "--home", str(home), *FGSM]
    refused(argv, capsys, "net.pt is a program", "--trust")
    refused([*argv, "--trust", "--weights=w.pth"], capsys, "w.pth out")
    refused(["evaluate", "w.pth", *argv[2:]], capsys, "w.pth holds weights", "package.module:function")
    refused(["evaluate", str(tmp_path / "nte.pt"), *argv[2:], "--trust"], capsys, "does not exist", "did you mean")
    assert not home.exists()
    assert main([*argv, "--trust"]) == 0
    rows = found(home, "model_fgsm_n20")["rows"]
    assert main(["evaluate", str(home), *FGSM]) == 0
    assert found(home, "model_fgsm_n20")["rows"] == rows
    file.write_bytes(file.read_bytes() + b" ")
    refused(["evaluate", str(home), *FGSM], capsys, "another file than was declared", "declare the model again")
    file.unlink()
    refused(["evaluate", str(home), *FGSM], capsys, "net.pt", "put it back")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("strangerz:plain", ["no module 'strangerz'", "did you mean 'strangers'?"]),
        ("strangers:plian", ["unknown function of strangers 'plian'", "did you mean 'plain'?"]),
        ("strangers:plain.inner", ["no 'inner' is there", "name a function of strangers"]),
        ("strangers.plain", ["strangers.plain does not exist", "package.module:factory"]),
        ("strangers.py:plain", ["write strangers:plain"]),
        ("strangers:", ["neither package.module:function"]),
        ("::", ["neither package.module:function"]),
        (" ", ["name is empty"]),
        ("x" * 300, ["too long"]),
        ("strangers:fails", ["the function fails (ValueError: no such", "strangers.py line"]),
        ("strangers:nothing", ["returned None", "torch.nn.Module"]),
        ("strangers:sized", ["needs arguments", "width"]),
        ("strangers:network", ["name a function that makes one"]),
        ("strangers:number", ["is an int"]),
        ("strangers:five", ["returned [8, 5] for 8 images and 10 classes"]),
        ("strangers:coloured", ["the model fails on images [8, 1, 8, 8]", "3 channels"]),
        ("strangers:Sized", ["the model fails on images [8, 1, 8, 8]", "64"]),
        ("strangers:Pair", ["an object of type tuple of 2"]),
        ("strangers:Chosen", ["returned torch.int64"]),
        ("images2", ["holds neither a run", "package.module:factory"]),
        ("strangers.py", ["strangers.py"]),
    ],
)
def test_factories_and_answers_that_are_none(
    model: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["evaluate", model, "--data=digits", "--home", str(tmp_path / "home"), *FGSM], capsys, *words)
    refused(["doctor", model, "--data=digits", "--home", str(tmp_path / "home"), "--limit=8"], capsys, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--data="], ["unknown data ''"]),
        (["--data=digitz"], ["unknown data 'digitz'", "did you mean 'digits'?"]),
        (["--data=cifar10", "--data.root=/nowhere"], ["/nowhere", "--download"]),
        (["--data=folder"], ["--data.root DIR"]),
        (["--data=digits", "--data.tset=3"], ["did you mean --data.test?"]),
        (["--data=digits", "--classes=5"], ["tell 5 classes apart", "digits has 10", "leave --classes out"]),
        (["--data=digits", "--classes=1"], ["classes = 1"]),
        (["--data=digits", "--mean=0.5"], ["1 mean and 0 std"]),
        (["--data=digits", "--std=0.5"], ["0 mean and 1 std"]),
        (["--data=digits", "--mean=0.5,0.5,0.5", "--std=1,1,1"], ["3 mean and 3 std", "channels, 1"]),
        (["--data=digits", "--mean=grey", "--std=1"], ["'grey' is no number"]),
        (["--data=digits", "--mean=0.5", "--std=0"], ["positive numbers"]),
        (["--data=digits", "--bounds=1"], ["--bounds", "0,1 or -1,1 or 0,255"]),
        (["--data=digits", "--bounds=1,0"], ["low = 1, high = 0"]),
        (["--data=digits", "--bounds=nan,1"], ["low = nan"]),
        (["--data=digits", "--bounds", "low,high"], ["'low' is no number"]),
        (["--data=digits", "--trust"], ["--trust", "strangers:plain is imported"]),
        (["--data=digits", "--part=ema"], ["--part ema", "--weights"]),
        (["--data=digits", "--checkpoint=last"], ["--checkpoint", "foreign"]),
        (["--data=digits", "--weights=gone.pth"], ["gone.pth does not exist"]),
        (["--data=digits", "--weights=run"], ["run is a folder"]),
        (["--data=digits", "--weights=strangers.py"], ["no file of PyTorch's or safetensors"]),
        (["--data=digits", "--weights=w.pth", "--part=ema"], ["unknown part of w.pth 'ema'", "state_dict"]),
        (["--data=digits", "--weights=run/best.safetensors"], ["was trained here"]),
        (["--data=digits", "--batch=0"], ["--batch", "at least 1"]),
        (["--data=digits", "--limit=-1"], ["--limit"]),
        ([], ["--data is missing", "--data cifar10"]),
    ],
)
def test_declarations_that_make_no_sense(
    more: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["evaluate", "strangers:plain", "--home", str(tmp_path / "home"), *FGSM, *more], capsys, *words)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_broken_or_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "strangers:plain", "--data=digits", "--home", str(tmp_path / "home"), *FGSM]
    whole = Path("w.pth").read_bytes()
    state = torch.load("w.pth", weights_only=True)["state_dict"]
    broken = dict.fromkeys(state, torch.full((), float("nan")))
    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "half": (lambda path: path.write_bytes(whole[: len(whole) // 2]), "truncated or damaged"),
        "empty": (lambda path: path.write_bytes(b""), "is empty"),
        "web": (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
        "code": (lambda path: torch.save(SmallNet(4, 1, 10), path), "holds more than tensors"),
        "other": (lambda path: torch.save(SmallNet(5, 1, 10).state_dict(), path), "does not fit strangers:plain"),
        "scalar": (lambda path: torch.save(broken, path), "does not fit strangers:plain"),
        "nan": (lambda path: torch.save({k: v * float("nan") for k, v in state.items()}, path), "no numbers"),
    }
    for name, (make, word) in cases.items():
        make(tmp_path / f"{name}.pth")
        refused([*argv, "--weights", str(tmp_path / f"{name}.pth")], capsys, f"{name}.pth", word)
    assert not (tmp_path / "home").exists()


def test_homes_that_are_something_else(
    run: Path, desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    before, argv = files(tmp_path), ["evaluate", "strangers:plain", "--data=digits", *FGSM, "--home"]
    refused([*argv, str(tmp_path / "file")], capsys, "no declared model", "--home")
    refused([*argv, str(tmp_path / "file" / "inside")], capsys, "cannot write", "Not a directory")
    refused([*argv, str(run)], capsys, "no declared model", "name a new folder")
    refused([*argv, str(tmp_path / ("x" * 300))], capsys, "too long")
    refused([*argv, ""], capsys, "--home: the name is empty")
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda told: "{", ["cannot be read as a model's declaration"]),
        (lambda told: told.pop("trial"), ["is damaged", "lacks trial", "another --home"]),
        (lambda told: told.update(model=[]), ["is damaged", "lacks model"]),
        (lambda told: told["model"].update(classes="ten"), ["is damaged", "classes = 'ten'"]),
        (lambda told: told["model"].update(mean=["a"], std=["b"]), ["is damaged", "numbers were expected"]),
        (lambda told: told["model"].update(hidden=1), ["is damaged", "unknown field", "hidden"]),
        (lambda told: told["trial"].update(data={"name": "digitz"}), ["is damaged", "did you mean 'digits'?"]),
        (lambda told: told["trial"].update(ball={"eps": 3.0}), ["is damaged", "eps = 3"]),
        (lambda told: told["model"].update(weights="/gone/w.pth"), ["/gone/w.pth", "put it back"]),
        (lambda told: told["model"].update(weights_sha256="0" * 64), ["another file than was declared"]),
        (lambda told: told["model"].update(model="gone:net"), ["no module 'gone'"]),
    ],
)
def test_declarations_that_were_damaged(
    damage: Callable[[Any], Any], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "home" / "model.json"
    if not (Path.cwd() / "kept").exists():
        assert main(["evaluate", *STRANGER, "--home=kept", *FGSM]) == 0
    shutil.copytree("kept", tmp_path / "home")
    told = json.loads(file.read_text())
    text = damage(told)
    file.write_text(text if isinstance(text, str) else json.dumps(told))
    before = files(tmp_path)
    for command in ("evaluate", "doctor", "curves", "crosscheck"):
        refused([command, str(tmp_path / "home"), "--limit=8"], capsys, "model.json", *words)
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_noticed_before_the_work(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.chmod(0o500)
    refused(["evaluate", str(run), *FGSM], capsys, "cannot write", "permissions")
    run.chmod(0o700)


def test_a_place_that_cannot_be_written_is_noticed_before_the_work(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def attacked(*_: object, **__: object) -> None:
        raise AssertionError("it was attacked")

    monkeypatch.setattr("demilune.evaluate.assess.evaluate", attacked)
    monkeypatch.setattr("demilune.evaluate.crosscheck.crosscheck", attacked)
    for room in ("evaluations", "curves", "crosschecks"):
        (run / room).write_text("mine")
    refused(["evaluate", str(run), *FGSM], capsys, "cannot write", "evaluations")
    refused(["curves", str(run), "--only=gaps", "--limit=8"], capsys, "cannot write", "curves")
    refused(["curves", str(run), "--only=curvature", "--limit=8"], capsys, "cannot write", "curves")
    refused(["crosscheck", str(run), "--limit=8"], capsys, "cannot write", "crosschecks")
    refused(["evaluate", str(run), *FGSM, "--out", str(run / "evaluations" / "x.json")], capsys, "cannot write")
    refused(["evaluate", str(run), *FGSM, "--out", str(run / ("x" * 250))], capsys, "too long")
    assert (run / "evaluations").read_text() == "mine"


def test_a_run_of_ours_takes_no_declaration(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--data=digits", "--weights=w.pth", "--trust", "--mean=0.5", "--classes=10", "--home=x"):
        name = option.partition("=")[0]
        refused(["evaluate", str(run), *FGSM, option], capsys, f"{name} belongs to a foreign model")
    refused(["label", "kept", "--images=a.npz", "--out=b.npz"], capsys, "kept")


# --- models that are not what they seem ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Soft", ["warning: the model returns probabilities, not logits", "Verdict: not examined"]),
        ("Random", ["warning: the model answers differently on the same images", "Verdict: not examined"]),
        ("NoNumbers", ["warning: the logits of 100.0% of 80 images are not finite", "Clean │ 0.00"]),
        ("Batch", ["error: an image's logits", "a verdict holds for one batch only", "Verdict: masked (G9"]),
        ("Cut", ["error: no gradient reaches the image", "a gradient of zero", "Verdict: masked"]),
    ],
)
def test_faults_of_a_model_are_named_and_lead_to_a_verdict(
    name: str, words: list[str], norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"strangers:{name}", "--weights=around.pth", "--data=digits", *norm, "--home", str(tmp_path / "home")]
    attacks = ["--attacks=fgsm,pgd3x2,pgd4", "--limit=80", "--batch=50"]
    assert main(["evaluate", *argv, *attacks]) == 0
    printed = said(capsys)
    for word in words:
        assert word in printed, printed
    (file,) = (tmp_path / "home" / "evaluations").glob("*.json")
    assert Evaluation.from_json(json.loads(file.read_text())).verdict is not None


def test_a_model_that_looks_at_its_batch_may_contradict_itself(
    norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["strangers:Batch", "--weights=around.pth", "--data=digits", *norm, "--home", str(tmp_path / "home")]
    for eps in ("0.02", "0.03", "0.05"):
        names = ["--attacks=fgsm,pgd3x3", "--limit=100", f"--ball.eps={eps}"]
        assert main(["evaluate", *argv, *names]) == 0
        printed = said(capsys)
        assert "error: an image's logits" in printed
        assert "Verdict: masked" in printed


def test_a_random_model_costs_twenty_passes_and_the_estimate_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "strangers:Random", "--data=digits", "--home", str(tmp_path / "home"), "--limit=8"]
    assert main([*argv, "--attacks=pgd2"]) == 0
    assert "at most 40 forward passes and 40 gradients an image" in said(capsys)


def test_surveys_of_a_network_that_shows_no_gradient_or_no_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(tmp_path / "cut")
    assert main(["evaluate", "strangers:Cut", "--data=digits", "--home", home, *FGSM]) == 0
    assert main(["curves", home, "--only=curvature", "--limit=3"]) == 0
    largest = survey(found(tmp_path / "cut", "model_curvature_n3", "curves")["surveys"][0]).largest
    assert largest == (0.0, 0.0, 0.0)
    refused(["curves", home, "--only=curvature-weights", "--limit=3"], capsys, "lacks a derivative", "--only")
    file = tmp_path / "frozen.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.freeze(torch.jit.trace(SmallNet(4, 1, 10).eval(), torch.rand(2, 1, 8, 8))).save(file)
    argv = [str(file), "--data=digits", "--trust", "--home", str(tmp_path / "frozen")]
    refused(["curves", *argv, "--only=curvature-weights", "--limit=3"], capsys, "shows no weights", "--only")


# --- attacks by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attacks", "words"),
    [
        ("", ["no attack was named", "fgsm,pgd10"]),
        (" , ", ["no attack was named"]),
        ("fgms", ["unknown attack 'fgms'", "did you mean 'fgsm'?"]),
        ("PGD10", ["unknown attack 'PGD10'", "did you mean 'pgd10'?"]),
        ("pgd", ["unknown attack 'pgd'"]),
        ("pgd@eps=1", ["unknown attack 'pgd@eps=1'"]),
        ("@n=3", ["unknown attack '@n=3'"]),
        ("pgd0", ["must be 1 or more"]),
        ("pgd" + "9" * 5000, ["at most a million"]),
        ("pgd１０", ["unknown attack"]),
        ("pgd10@", ["'pgd10@'", "@eps=8/255"]),
        ("pgd10@eps", ["@eps is none of"]),
        ("pgd10@eps=", ["@eps= is none of"]),
        ("pgd10@eps=-1", ["@eps=-1 is none of"]),
        ("pgd10@eps=0", ["@eps=0 is none of"]),
        ("pgd10@eps=8/0", ["@eps=8/0 is none of"]),
        ("pgd10@eps=8/255/2", ["is none of"]),
        ("pgd10@eps=nan", ["is none of"]),
        ("pgd10@eps=1_0", ["is none of"]),
        ("pgd10@eps=2", ["attack 'pgd10@eps=2'", "eps = 2", "from 0 to 1"]),
        ("unbounded@eps=0.1", ["whatever the radius"]),
        ("pgd10@n=", ["@n= is none of"]),
        ("pgd10@n=0", ["@n=0 is none of"]),
        ("pgd10@n=nan", ["@n=nan is none of"]),
        ("pgd10@n=inf", ["@n=inf is none of"]),
        ("pgd10@n=1.5", ["@n=1.5 is none of"]),
        ("pgd10@n=5@n=6", ["@n twice"]),
        ("pgd10@eps=0.1@scale=2@eps=0.2", ["@eps twice"]),
        ("pgd10@scale=0", ["@scale=0 is none of"]),
        ("apgd@scale=10", ["@scale=10", "iterative attack with one start"]),
        ("pgd10x2@scale=10", ["@scale=10", "one start"]),
        ("pgd10@sclae=10", ["@sclae=10"]),
        ("pgd3,pgd3", ["'pgd3' twice"]),
        ("pgd3,pgd3@n=5", ["'pgd3' twice"]),
        ("pgd3@eps=0.1@scale=2,pgd3@scale=2@eps=0.1", ["twice"]),
        ("transfer", ["--sources"]),
    ],
)
def test_names_of_attacks_that_are_none(
    desk: Path, attacks: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["evaluate", "run", "--limit=8", f"--attacks={attacks}"], capsys, *words)
    assert not list((desk / "run").glob("evaluations/*"))


@pytest.mark.parametrize("name", ["nattack", "md", "md_t", "nattack_official@n=3"])
def test_attacks_that_a_norm_lacks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "run", "--limit=8", f"--attacks=fgsm,{name}", "--ball.norm=l2"]
    refused(argv, capsys, name.split("@")[0], "linf only", "--ball.norm linf")


def test_modifiers(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    names = "fgsm@n=7,pgd3,pgd4@n=5@scale=10,pgd4@scale=10@eps=0.02,pgd3@eps=8/255,pgd4x2@n=6"
    assert main(["evaluate", str(run), f"--attacks={names}", "--limit=20", "--out", str(out)]) == 0
    result = Evaluation.from_json(json.loads(out.read_text()))
    rows = {row.name: row for row in result.rows}
    assert {name: row.n for name, row in rows.items()} == {
        "clean": 20,
        "fgsm": 7,
        "pgd3": 20,
        "pgd4@scale=10": 5,
        "pgd4@scale=10@eps=0.02": 20,
        "pgd3@eps=8/255": 20,
        "pgd4": 6,
        "pgd4_any": 6,
        "pgd4x2_any": 6,
        "worst": 20,
    }
    assert rows["pgd4@scale=10"].role == "part"
    assert rows["pgd3@eps=8/255"].role == rows["pgd4@scale=10@eps=0.02"].role == "probe"
    assert not [check for check in result.checks if check.name == "FGSM ≥ PGD"], "not of the same images"
    with np.load(tmp_path / "x.images.npz") as images:
        for name, row in rows.items():
            place = images[f"place.{name}"] if row.n < 20 else np.arange(20)
            assert (f"place.{name}" in images) == (row.n < 20)
            assert len(images[f"right.{name}"]) == len(place) == row.n
            assert not (images[f"right.{name}"] & ~images["right.clean"][place]).any()
        assert set(images["place.pgd4@scale=10"]) <= set(images["place.fgsm"]), "fewer images are part of more"


def test_a_long_list_of_attacks_has_a_short_name(run: Path) -> None:
    names = [f"pgd1@eps={k}/255" for k in range(1, 40)]
    for some in (names, names[:-1]):
        assert main(["evaluate", str(run), f"--attacks={','.join(some)}", "--limit=4"]) == 0
    written = list((run / "evaluations").glob("*.json"))
    assert len(written) == 2, "and yet its own"
    assert all(len(path.name.encode()) <= 170 for path in written)


def test_autoattack_is_a_cascade(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SUITE, "APGD", lambda loss="ce", steps=5, restarts=1, room=0: APGD(loss, steps, restarts=restarts)
    )
    monkeypatch.setattr(SUITE, "TargetedAPGD", lambda room: TargetedAPGD(2, 5, room=room))
    monkeypatch.setattr(SUITE, "FABT", lambda room: FABT(2, 5, room=room))
    monkeypatch.setattr(SUITE, "Square", lambda: Square(60))
    out = tmp_path / "x.json"
    argv = ["evaluate", str(run), "--attacks=autoattack", "--limit=40", "--ball.eps=0.04", "--out", str(out)]
    assert main(argv) == 0
    rows = json.loads(out.read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names == [
        "clean", "autoattack.apgd_ce", "autoattack.apgd_t", "autoattack.fab_t", "autoattack", "worst"
    ]  # fmt: skip
    assert [row["title"] for row in rows[1:5]] == [
        "APGD-CE", "APGD-CE + APGD-T", "APGD-CE + APGD-T + FAB-T", "AutoAttack"
    ]  # fmt: skip
    with np.load(tmp_path / "x.images.npz") as images:
        right = [images[f"right.{name}"] for name in names]
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(right))
    assert (right[-1] == right[-2]).all()
    assert 0 < right[-1].sum() < right[0].sum(), "some fall, some stand"
    queries = [row["forwards"] for row in rows]
    assert queries[4] - queries[3] <= 62 * right[3].sum() / 40, "only what is standing is attacked"


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SUITE, "APGD", lambda loss="ce", steps=3, restarts=1, room=0: APGD(loss, steps, restarts=restarts)
    )
    monkeypatch.setattr(SUITE, "TargetedAPGD", lambda room: TargetedAPGD(2, 3, room=room))
    name, pictures = {2: "two", 3: "three"}[classes], [*PICTURES, f"--data.root=images{classes}"]
    argv = [f"strangers:{name}", *pictures, "--home", str(tmp_path / "home"), "--limit=12"]
    assert main(["evaluate", *argv, "--attacks=pgd2,apgd_dlr,apgd,multi9x2,square@n=1"]) == 0
    (file,) = (tmp_path / "home" / "evaluations").glob("*.json")
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert "margin instead of targeted DLR" in rows["autoattack.apgd_t"]["note"]
    assert ("margin" in rows["apgd_dlr"]["note"]) == (classes == 2)
    assert not rows["pgd2"]["note"]


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_stop_in_the_middle_of_square_loses_no_image(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--attacks=fgsm,square,pgd2x2@n=9", "--ball.eps=0.002", "--limit=24", "--batch=6"]
    argv = ["evaluate", str(run), *names, "--runtime.threads=1", "--out"]
    call, calls = counted.Counted.__call__, itertools.count()

    def stopping(self: counted.Counted, x: Tensor) -> Tensor:
        if next(calls) == 90:  # in the second of four batches
            os.kill(os.getpid(), signal.SIGINT)
        return call(self, x)

    monkeypatch.setattr(SUITE, "Square", lambda: Square(50))
    with monkeypatch.context() as patched:
        patched.setattr(counted, "TICK", 0.0)
        patched.setattr(counted.Counted, "__call__", stopping)
        assert main([*argv, str(tmp_path / "two.json")]) == 130
    assert "stopped and saved: the same command goes on" in said(capsys)
    assert not (tmp_path / "two.json").exists()
    with np.load(tmp_path / "two.partial.npz") as left:
        known = left["known.square"]
        assert (left["known.fgsm"] >= 0).all()
    assert 0 < (known >= 0).sum() < 24, "it was stopped in the middle"

    noted: list[tuple[str, list[int]]] = []
    note = table.Book.note

    def spy(self: table.Book, one: Any, rows: Tensor, after: Mapping[str, Tensor], cost: tuple[int, int]) -> None:
        noted.append(("clean" if one is None else one.name, rows.tolist()))
        note(self, one, rows, after, cost)

    monkeypatch.setattr(table.Book, "note", spy)
    assert main([*argv, str(tmp_path / "two.json")]) == 0
    again = [row for name, rows in noted if name == "square" for row in rows]
    assert {name for name, _ in noted} == {"square", "pgd2"}
    assert again
    assert (known[again] == -1).all(), "what was done is not done again"
    assert main([*argv, str(tmp_path / "one.json")]) == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["rows"] == two["rows"]
    assert one["verdict"] == two["verdict"]
    with np.load(tmp_path / "one.images.npz") as a, np.load(tmp_path / "two.images.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert not list(tmp_path.glob("*.partial.npz"))


def test_a_signal_before_the_attacks_begin_is_heeded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate = doctor.estimate

    def stopped(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return estimate(*given)

    monkeypatch.setattr(doctor, "estimate", stopped)
    assert main(["evaluate", str(run), *FGSM]) == 130
    assert "goes on" in said(capsys)
    assert not list((run / "evaluations").glob("*.json"))


def test_another_step_size_does_not_go_on_with_a_probe(run: Path, tmp_path: Path) -> None:
    results = []
    for ratio, stops in (("0.05", True), ("1", False), ("1", False)):
        calls = iter([False] * 4 if stops else [])
        argv = ["evaluate", str(run), "--attacks=pgd2@eps=0.03", "--limit=24", "--batch=6", "--step_ratio", ratio]
        with pytest.MonkeyPatch.context() as patched:
            if stops:
                patched.setattr(
                    "demilune.cli.interruptible",
                    lambda calls=calls: contextlib.nullcontext(lambda: next(calls, True)),
                )
            assert main([*argv, "--out", str(tmp_path / "x.json")]) == (130 if stops else 0)
        if not stops:
            results.append(json.loads((tmp_path / "x.json").read_text())["rows"])
    assert results[0] == results[1]


# --- transfer --------------------------------------------------------------------------------------------------------


def test_transfer(run: Path, norm: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = shutil.copytree("other", tmp_path / "again")
    assert main(["evaluate", *STRANGER, *norm, "--home", str(tmp_path / "home"), *FGSM]) == 0
    argv = ["evaluate", str(run), "--attacks=transfer,pgd2", "--limit=20", "--sources"]
    out = tmp_path / "x.json"
    assert main([*argv, f"other,{again},{tmp_path / 'home'}", "--out", str(out)]) == 0
    row = json.loads(out.read_text())["rows"][1]
    assert row["title"].startswith("Transfer from digits-standard (best")
    assert str(again) in row["title"], "two runs of one name are two sources"
    assert "home (w.pth)" in row["title"]
    assert "SmallNet" not in row["attack"]
    assert "PGD(" in row["attack"]
    assert main([*argv, "other"]) == 0
    assert main([*argv, str(tmp_path / "home")]) == 0
    assert len(list((run / "evaluations").glob("best_transfer-pgd2_from-*_n20.json"))) == 2, "each in a file of its own"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ("nowhere", ["nowhere does not exist"]),
        (",", ["--sources"]),
        ("run", ["the very network", "name others"]),
        ("strangers:plain", ["strangers:plain", "declared first"]),
        ("w.pth", ["w.pth", "declared first"]),
        ("images2", ["images2"]),
        ("small", ["other images or classes"]),
        ("other,small", ["other images or classes"]),
    ],
)
def test_sources_that_are_none(sources: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if "small" in sources and not Path("small").exists():
        pictures = [*PICTURES, "--data.root=images2"]
        assert main(["evaluate", "strangers:two", *pictures, "--home=small", *FGSM]) == 0
    for command in (["evaluate", "run", "--attacks=transfer"], ["doctor", "run"]):
        if sources != "," or command[0] == "evaluate":
            refused([*command, "--limit=8", f"--sources={sources}"], capsys, *words)


def test_sources_without_the_attack_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused(["evaluate", "run", *FGSM, "--sources=other"], capsys, "--sources", "transfer")
    refused(["evaluate", "run", "--sources=other"], capsys, "--sources", "transfer")


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_the_doctor_tells_eleven_checks_and_one_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(run), "--budget=quick", "--limit=10", "--sources=other"]) == 0
    printed = capsys.readouterr().out
    for number in range(1, 12):
        assert f"\nG{number:<2} " in printed
    assert printed.count("\nVerdict: ") == 1
    (file,) = (run / "evaluations").glob("best_doctor-quick_from-other-best.safetensors_n10.json")
    result = Evaluation.from_json(json.loads(file.read_text()))
    assert [finding.name for finding in result.findings] == [f"G{number}" for number in range(1, 12)]
    assert result.verdict is not None
    assert f"Verdict: {result.verdict.text}" in printed
    assert result.row("transfer") is not None


def test_the_doctor_in_an_l2_ball_says_what_it_leaves_out(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for budget in ("quick", "full"):
        names = doctor.attacks(budget, Ball("l2", 0.5))
        assert not [name for name in names if name.startswith(("md", "nattack"))]
    few = ("fgsm", "pgd2", "md", "nattack@n=3", "pgd2@eps={half}", "pgd2@eps={double}")
    monkeypatch.setattr(doctor, "BUDGETS", {"quick": few})
    assert main(["doctor", str(run), "--limit=8", "--ball.norm=l2", "--ball.eps=20"]) == 0
    assert "not examined by md, nattack: linf only, and the ball is l2" in said(capsys)
    rows = [row["name"] for row in found(run, "best_doctor-quick_n8_l2_eps20")["rows"]]
    assert rows == ["clean", "fgsm", "pgd2", "pgd2@eps=10", "pgd2@eps=32", "worst"]


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.5, 2 / 3, 0.8, 1.0])
def test_the_doctors_radii_are_radii(eps: float) -> None:
    for ball in (Ball("linf", eps), Ball("l2", eps), Ball("l2", 32 * eps)):
        for budget in ("quick", "full"):
            names = doctor.attacks(budget, ball)
            assert suite(names, Setting(0.25, ball.norm, 10))


def test_bad_words_for_the_doctor(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["doctor", "run", "--budget=tiny"], capsys, "'tiny'", "'quick', 'full'")
    refused(["doctor", "run", "--ball.eps=0"], capsys, "eps = 0", "--ball.eps 8/255")
    refused(["doctor", "run", "--attacks=fgsm"], capsys, "--attacks")
    refused(["doctor", "nowhere"], capsys, "nowhere does not exist")
    refused(["doctor"], capsys, "MODEL")
    refused(["doctor", str(run), "--checkpoint=both", f"--out={tmp_path / 'x'}"], capsys, "two files")
    before = files(run)
    for name in ("best.safetensors", "experiment.json"):
        refused(["doctor", str(run), "--limit=4", "--out", str(run / name)], capsys, "no evaluation", "new file")
    assert files(run) == before


# --- curves ----------------------------------------------------------------------------------------------------------


def test_every_curve_writes_its_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_SPAN", (-0.5, 0.0, 0.5))
    monkeypatch.setattr(curves, "ROWS", {**curves.ROWS, "iterations": ("iterations5",), "budgets": ("budget_pgd10",)})
    monkeypatch.setattr(curves, "find_frost", lambda folder: None)
    assert main(["curves", str(run), "--limit=4"]) == 0
    written = {path.stem: json.loads(path.read_text()) for path in (run / "curves").glob("*.json")}
    names = [f"best_{kind}_n4" for kind in curves.KINDS]
    assert sorted(written) == sorted([*names, "best_train_gaps_n4"])
    for kind in curves.SURVEYS:
        value = written[f"best_{kind}_n4"]
        assert value["subject"] == "digits-standard"
        assert [survey(one).to_json()["kind"] for one in value["surveys"]]
    for kind in (*curves.ROWS, "corruptions"):
        assert Evaluation.from_json(written[f"best_{kind}_n4"]).rows
    rows = [row for row in written["best_corruptions_n4"]["rows"] if row["name"].startswith("corruption.")]
    assert len(rows) == 14 * 5
    assert not [row for row in rows if "frost" in row["name"]]
    assert all("missing: frost" in row["note"] for row in rows)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only=gap"], ["unknown curve 'gap'", "did you mean 'gaps'?"]),
        (["--only=gaps,landscpe"], ["did you mean 'landscape'?"]),
        (["--only="], ["unknown curve ''", "possible are budgets"]),
        (["--only=,"], ["unknown curve ''"]),
        (["--only=curvature", "--limit=-2"], ["--limit"]),
        (["--only=curvature", "--batch=0"], ["--batch"]),
        (["--only=gaps", "--frost=images2"], ["--frost", "--only corruptions"]),
        (["--only=gaps", "--corrupted=images2"], ["--corrupted", "--only corruptions"]),
        (["--frost=nowhere"], ["there is no folder nowhere", "frost1.png"]),
        (["--only=corruptions", "--frost=strangers.py"], ["strangers.py", "frost1.png"]),
        (["--frost=images2"], ["images2 lacks the photographs"]),
        (["--corrupted=nowhere"], ["--corrupted", "cifar10, cifar100, not of digits"]),
        (["--out=x"], ["--out"]),
    ],
)
def test_bad_words_for_curves(
    desk: Path, more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["curves", "run", *more], capsys, *words)
    assert not list((desk / "run").glob("curves/*")), "refused before anything is measured"


def test_corrupted_files_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "cifar10-c", "--root", str(tmp_path)]) == 0
    assert "there is no CIFAR-10-C" in said(capsys)
    monkeypatch.setattr(curves, "CORRUPTED", {"digits": curves.CORRUPTED["cifar10"]})
    argv = ["curves", "run", "--only=corruptions", "--limit=4", "--corrupted", str(tmp_path)]
    refused(argv, capsys, "there is no CIFAR-10-C", str(tmp_path))
    refused([*argv, "--split=validation"], capsys, "--corrupted", "--split")


# --- crosscheck ------------------------------------------------------------------------------------------------------


def test_crosscheck(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyautoattack")
    budget = ["--libraries=pyautoattack", "--limit=8", "--steps=2", "--queries=10", "--targets=2"]
    argv = ["crosscheck", str(run), "--attacks=apgd_ce,square", *budget]
    assert main(argv) == 0
    printed = said(capsys)
    assert "APGD-CE pyautoattack" in printed
    name = "best_crosscheck-pyautoattack-apgd_ce-square-steps2-queries10-targets2_n8"
    agreement = Agreement.from_json(found(run, name, "crosschecks"))
    assert [row.attack for row in agreement.rows] == ["apgd_ce", "square"]
    assert agreement.n == 8
    before = files(run)
    for victim in ("best.safetensors", "experiment.json", "metrics.jsonl"):
        refused([*argv, "--out", str(run / victim)], capsys, "no crosscheck", "new file")
    refused([*argv, "--checkpoint=both", "--out", str(tmp_path / "x")], capsys, "two files")
    assert files(run) == before
    for _ in range(2):
        assert main([*argv, "--out", str(tmp_path / "x.json")]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--libraries=foolbx"], ["unknown library 'foolbx'", "did you mean 'foolbox'?"]),
        (["--attacks=pgd10"], ["unknown attack 'pgd10'", "possible are"]),
        (["--limit=-1"], ["--limit"]),
        (["--batch=0"], ["--batch"]),
        (["--steps=many"], ["'many' is no whole number"]),
        (["--sources=other"], ["--sources"]),
    ],
)
def test_bad_words_for_crosscheck(more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(["crosscheck", "run", *more], capsys, *words)


# --- the function ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(desk: Path) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    split = Digits().load().test.take(torch.arange(60))
    tensors = load(desk / "run" / "best.safetensors").part("model")
    net = SmallNet(4, 1, 10)
    bare = {name.removeprefix("net."): value for name, value in tensors.items() if name.startswith("net.")}
    net.load_state_dict(bare, strict=False)
    net.eval()
    return lambda x: net((x - tensors["mean"]) / tensors["std"]), split.pixels(slice(None)), split.labels


BALL = Ball("linf", 0.15)
FEW = ("fgsm", "pgd3x2", "square@n=2")


def test_examine(images: tuple[Callable[[Tensor], Tensor], Tensor, Tensor]) -> None:
    model, x, y = images
    state = torch.random.get_rng_state()
    one = examine(model, x, y, BALL, ("fgsm", "pgd3", "apgd"))
    assert [finding.name for finding in one.findings] == [f"G{number}" for number in range(1, 12)]
    assert one.verdict.strongest == "APGD-CE + APGD-T"
    two = examine(model, (x * 255).round().to(torch.uint8), y, BALL, ("fgsm", "pgd3", "apgd"), batch=5)
    assert one.found.rows == two.found.rows
    assert one.verdict == two.verdict
    sources = {"other": lambda x: 2 * model(x)}
    named = [row.title for row in examine(model, x, y, BALL, ("transfer",), sources=sources).found.rows]
    assert "Transfer from other" in named
    assert torch.equal(state, torch.random.get_rng_state())


def test_examine_leaves_a_module_as_it_was(images: tuple[Callable[[Tensor], Tensor], Tensor, Tensor]) -> None:
    _, x, y = images
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = examine(net, x, y, BALL, FEW)
    assert found.found.randomised is False
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda model: lambda x: model(x).softmax(dim=1), "probabilities"),
        (lambda model: lambda x: model(x) + 0.3 * torch.randn(len(x), 10), "randomised"),
        (lambda model: lambda x: model(x - x.mean(dim=0, keepdim=True) + 0.3), "batch"),
        (lambda model: lambda x: model(x).detach(), "no gradient"),
        (lambda model: lambda x: model(x * 1.0).clone() * float("nan"), "numbers"),
    ],
)
def test_examine_names_what_is_wrong(
    change: Callable[[Any], Any], check: str, images: tuple[Callable[[Tensor], Tensor], Tensor, Tensor]
) -> None:
    model, x, y = images
    found = examine(change(model), x, y, Ball("linf", 0.02), FEW)  # where something is left standing
    assert check in [one.name for one in found.checks if one.level != "pass"]
    assert found.verdict.kind == ("masked" if check in ("batch", "no gradient") else "not examined")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda m, x, y: (m, x[:0], y[:0], BALL, FEW), "were expected"),
        (lambda m, x, y: (m, x[:, 0], y, BALL, FEW), "were expected"),
        (lambda m, x, y: (m, x, y[:5], BALL, FEW), "were expected"),
        (lambda m, x, y: (m, x, y.int(), BALL, FEW), "int64"),
        (lambda m, x, y: (m, x * float("nan"), y, BALL, FEW), "8-bit images"),
        (lambda m, x, y: (m, x * 0.99, y, BALL, FEW), "8-bit images"),
        (lambda m, x, y: (m, x - 1.0, y, BALL, FEW), "8-bit images"),
        (lambda m, x, y: (m, (x * 255).long(), y, BALL, FEW), "8-bit images"),
        (lambda m, x, y: (m, x, y + 5, BALL, FEW), "classes are 0 to 9"),
        (lambda m, x, y: (m, x, y - 5, BALL, FEW), "has the label -"),
        (lambda m, x, y: (m, x, y, BALL, "fgsm"), "unknown budget 'fgsm'"),
        (lambda m, x, y: (m, x, y, BALL, ()), "no attack was named"),
        (lambda m, x, y: (m, x, y, BALL, ("transfer",)), "needs models"),
        (lambda m, x, y: (m, x, y, Ball("l2", 0.5), ("md",)), "linf only"),
        (lambda m, x, y: (m, x, y, Ball("linf", 0.0)), "eps = 0"),
        (lambda m, x, y: (m, x, y, BALL, FEW, 0), "batch = 0"),
        (lambda m, x, y: (lambda x: (m(x), 1), x, y, BALL, FEW), "type tuple of 2"),
        (lambda m, x, y: (lambda x: m(x).detach().numpy(), x, y, BALL, FEW), "type ndarray"),
        (lambda m, x, y: (lambda x: m(x).flatten(), x, y, BALL, FEW), "logits are"),
        (lambda m, x, y: (lambda x: m(x).argmax(dim=1), x, y, BALL, FEW), "floating-point"),
        (lambda m, x, y: (lambda x: 1 / 0, x, y, BALL, FEW), "ZeroDivisionError"),
        (lambda m, x, y: (None, x, y, BALL, FEW), "TypeError"),
        (lambda m, x, y: (lambda x: m(x)[:, :1], x, y % 2, BALL, FEW), "0 and z"),
    ],
)
def test_examine_refuses(
    given: Callable[..., Any], words: str, images: tuple[Callable[[Tensor], Tensor], Tensor, Tensor]
) -> None:
    with pytest.raises(DemiluneError, match=words):
        examine(*given(*images))
