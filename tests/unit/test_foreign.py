"""Anyone's network: declared, made, and filled from whatever a file of weights may be."""

from __future__ import annotations

import argparse
import os
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import PGD, frozen, survivors
from demilune.checkpoint import Checkpoint, save
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import CIFAR10, MNIST
from demilune.errors import DemiluneError
from demilune.foreign import Declaration, Declared, Program, load_declared, sniff

NETS = """
    import sys
    from argparse import Namespace
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Net(nn.Module):
        def __init__(self, classes=4):
            super().__init__()
            self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(3)
            self.fc = nn.Linear(3, classes)

        def forward(self, x):
            return self.fc(self.bn1(self.conv1(x)).relu().mean(dim=(2, 3)))

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1))
            self.net = Net()

        def forward(self, x):
            return self.net(x - self.mean)

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.LazyLinear(4)

    def half():
        return Net().half()

    def meta():
        with torch.device("meta"):
            return Net()

    def bare():
        return nn.Flatten()

    def sized(classes):
        return Net(classes)

    def broken():
        raise ValueError("no such\\nthing")

    def leaving():
        sys.exit("bye")

    def nothing():
        return None

    def weights():
        return Net().state_dict()

    def unruly():
        torch.set_grad_enabled(False)
        torch.manual_seed(5)
        return Net()

    whole = Net()
    number = 3
"""


class Net(nn.Module):
    """The same network, here."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn1(self.conv1(x)).relu().mean(dim=(2, 3)))


X = Stream.of(3).uniform("x", (7, 2, 6, 6))
DECLARED = Declaration("stranger:Net", classes=4, channels=2, weights="w.pth")


def net(seed: int = 1) -> Net:
    """Return a network whose running statistics are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = Net()
    with torch.no_grad():
        made(X)
    return made.eval()


def state(seed: int = 1, before: str = "") -> dict[str, Tensor]:
    return {before + name: value for name, value in net(seed).state_dict().items()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in a folder with a stranger's module; imported anew for every test."""
    (tmp_path / "stranger.py").write_text(textwrap.dedent(NETS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "stranger", raising=False)
    yield tmp_path


def same(model: nn.Module, seed: int = 1, x: Tensor = X) -> bool:
    return torch.equal(model(x), net(seed)(x))


def refusal(declared: Declaration) -> str:
    with pytest.raises(DemiluneError) as caught:
        load_declared(declared)
    told = str(caught.value)
    assert "\n" not in told and "\x1b" not in told
    return told


# What is declared


def test_a_declaration_is_what_its_json_says() -> None:
    one = replace(DECLARED, mean=(0.5, 0.25), std=(1.0, 2.0), low=-1, weights_sha256="0" * 64, part="ema", trust=True)
    plain = one.to_json()
    assert plain["mean"] == [0.5, 0.25] and Declaration.from_json(plain) == one
    assert Declaration.from_json({"model": "a:b", "classes": 2, "channels": 1}) == Declaration("a:b", 2, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": 1}, "classes = 1"),
        ({"channels": 0}, "channels = 0"),
        ({"classes": "4"}, "classes = '4'"),
        ({"model": " "}, "empty"),
        ({"weights": ""}, "empty"),
        ({"weights": 3}, "weights = 3"),
        ({"low": 1.0}, "low = 1, high = 1"),
        ({"high": float("inf")}, "high = inf"),
        ({"low": float("nan")}, "low = nan"),
        ({"mean": [0.5]}, "1 mean and 0 std"),
        ({"mean": [0.5], "std": [0.5]}, "channels, 2"),
        ({"mean": [0.5, float("nan")], "std": [1, 1]}, "numbers"),
        ({"mean": [0.5, "a"], "std": [1, 1]}, "numbers"),
        ({"mean": 0.5}, "mean = 0.5"),
        ({"mean": [0, 0], "std": [1, 0]}, "positive"),
        ({"weights_sha256": "abc"}, "64 hexadecimal"),
        ({"trust": 1}, "trust = 1"),
        ({"part": None}, "part = None"),
        ({"wieghts": "w"}, "did you mean 'weights'"),
    ],
)
def test_what_means_nothing_is_not_declared(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DemiluneError, match=told):
        Declaration.from_json(DECLARED.to_json() | change)


def test_a_declaration_without_its_model_is_refused() -> None:
    with pytest.raises(DemiluneError, match="lacks model, channels"):
        Declaration.from_json({"classes": 4})


def test_images_are_scaled_then_normalised() -> None:
    declared = replace(DECLARED, low=-1.0, high=3.0, mean=(0.5, 0.25), std=(2.0, 4.0))
    x = X.clone().requires_grad_()
    seen = Declared(nn.Identity(), declared)(x)
    assert torch.allclose(seen[:, 0], (X[:, 0] * 4 - 1 - 0.5) / 2)
    assert torch.allclose(seen[:, 1], (X[:, 1] * 4 - 1 - 0.25) / 4)
    assert torch.autograd.grad(seen.sum(), x)[0][0, :, 0, 0].tolist() == [2.0, 1.0]
    assert torch.equal(Declared(nn.Identity(), DECLARED)(X), X)  # to the bit where nothing is declared
    plain = Declared(net(), declared).eval().under(DECLARED)
    assert torch.equal(plain(X), net()(X)) and not plain.training


# Factories


def test_a_factory_is_found_in_the_working_folder(folder: Path) -> None:
    import sys

    before = (sys.path.copy(), torch.get_rng_state())
    model = load_declared(replace(DECLARED, weights=None))
    assert isinstance(model, Declared) and not any(module.training for module in model.modules())
    assert model.notes == ()
    assert sys.path == before[0] and torch.equal(torch.get_rng_state(), before[1])
    again = load_declared(replace(DECLARED, weights=None))
    assert torch.equal(model(X), again(X))  # fresh weights are always the same
    (folder / "deep").mkdir()
    (folder / "deep" / "er.py").write_text(
        "import stranger\nclass Make:\n    net = staticmethod(lambda: stranger.Net())"
    )
    assert load_declared(replace(DECLARED, model="deep.er:Make.net", weights=None))(X).shape == (7, 4)


def test_a_factory_changes_nothing_global() -> None:
    before = torch.get_rng_state()
    load_declared(replace(DECLARED, model="stranger:unruly", weights=None))
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_widened(folder: Path) -> None:
    torch.save(state(), folder / "w.pth")
    model = load_declared(replace(DECLARED, model="stranger:half"))
    assert same(model)
    torch.save({name: value.half() for name, value in state().items()}, folder / "w.pth")
    assert load_declared(DECLARED)(X).dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("strangr:Net", ["no module 'strangr'", "did you mean 'stranger'", "install it"]),
        ("stranger.net:Net", ["no module 'stranger.net'"]),
        ("stranger:Nett", ["did you mean 'Net'", "possible are"]),
        ("stranger:Net.smal", ["function of stranger 'smal'"]),
        ("stranger.py:Net", ["write stranger:Net"]),
        ("./deep/er.py:Net", ["write deep.er:Net"]),
        ("stranger", ["package.module:function"]),
        ("stranger.Net", ["package.module:function"]),
        ("stranger:", ["package.module:function"]),
        ("stranger:Net()", ["package.module:function"]),
        ("stranger:sized", ["needs arguments", "classes", "takes none"]),
        ("stranger:broken", ["ValueError: no such, stranger.py line", "without arguments"]),
        ("stranger:leaving", ["SystemExit: bye"]),
        ("stranger:nothing", ["returned None"]),
        ("stranger:weights", ["returned an OrderedDict"]),
        ("stranger:whole", ["is a network", "makes one"]),
        ("stranger:number", ["is an int"]),
        ("stranger:Lazy", ["without values in fc.weight", "lazy"]),
        ("stranger:meta", ["without values in conv1.weight"]),
        ("missing.pt2", ["missing.pt2 does not exist"]),
        (".", ["is a folder"]),
    ],
)
def test_a_factory_that_makes_no_network_is_refused(model: str, told: list[str]) -> None:
    found = refusal(replace(DECLARED, model=model, weights=None))
    for word in told:
        assert word in found, found


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import tnesorfolw", ["importing faulty fails", "No module named 'tnesorfolw', faulty.py line 1", "install"]),
        ("x = (", ["importing faulty fails", "SyntaxError"]),
        ("1 / 0", ["ZeroDivisionError", "faulty.py line 1"]),
        ("import sys; sys.exit(3)", ["SystemExit: 3"]),
    ],
)
def test_a_module_that_does_not_import_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: list[str]
) -> None:
    (folder / "faulty.py").write_text(code)
    monkeypatch.delitem(__import__("sys").modules, "faulty", raising=False)
    found = refusal(replace(DECLARED, model="faulty:Net", weights=None))
    for word in told:
        assert word in found, found


# Weights that fit


def old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def tensors(value: Any, path: Path) -> None:
    save_file(value, path)


@pytest.mark.parametrize("write", [torch.save, old, tensors])
@pytest.mark.parametrize("name", ["w.pth", "w.model", "w.safetensors", "w"])
def test_formats_are_known_by_their_bytes(folder: Path, write: Callable[[Any, Path], None], name: str) -> None:
    write(state(), folder / name)
    model = load_declared(replace(DECLARED, weights=name))
    assert same(model) and model.notes == ()


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (lambda: {"state_dict": state(), "epoch": 3, "optimizer": {"state": {0: {"m": X}}, "lr": X}}, "state_dict"),
        (lambda: {"model": state(before="module.")}, "model"),
        (lambda: {"a": {"b": {"net": state(before="model.backbone.")}}}, "a.b.net.model.backbone"),
        (lambda: state(before="module._orig_mod."), ""),
        (lambda: state(before="1."), "1"),
        (lambda: state(before="module.module.net."), "net"),
        (lambda: {"params": state(), "params_ema": {"conv1.weight": X}}, "params"),
        (lambda: {n: v for n, v in state().items() if "num_batches" not in n}, ""),
        (lambda: {n.replace("conv1.", "conv1.module."): v for n, v in state().items()}, ""),
        (lambda: {**state(before="module.model."), **state(before="module.attacker.model.")}, "model"),
    ],
)
def test_weights_are_found_in_their_wrappings(folder: Path, value: Callable[[], Any], part: str) -> None:
    torch.save(value(), folder / "w.pth")
    model = load_declared(DECLARED)
    assert same(model)
    told = [note for note in model.notes if "took" in note]
    assert told == ([f"w.pth: took what is under {part!r}"] if part else [])


def test_a_normalisation_in_the_file_is_left_out_and_told(folder: Path) -> None:
    mean = torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1)
    for before, own in (("model.", "normalize.mean"), ("", "mu"), ("1.", "0.mean")):
        torch.save({**state(before=before), own: mean}, folder / "w.pth")
        model = load_declared(DECLARED)
        assert same(model)
        assert model.notes[-1] == f"w.pth: left out {own} (0.5 0.25); the network lacks this normalisation: declare it"
    declared = load_declared(replace(DECLARED, mean=(0.5, 0.25), std=(1.0, 1.0)))
    assert declared.notes[-1] == "w.pth: left out 0.mean (0.5 0.25)"
    torch.save({**state(before="model."), "teacher.fc.weight": X}, folder / "w.pth")
    assert load_declared(DECLARED).notes[-1] == "w.pth: left out teacher.fc.weight"


def test_a_wrapper_keeps_its_normalisation_where_the_file_has_none(folder: Path) -> None:
    wrapped = replace(DECLARED, model="stranger:Wrapper")
    mean = torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1)
    torch.save(state(), folder / "w.pth")
    model = load_declared(wrapped)
    assert torch.equal(model(X), net()(X - mean)) and "mean: as stranger:Wrapper made them" in model.notes[0]
    for before in ("net.", "module.net."):
        torch.save({**state(before=before), before.removesuffix("net.") + "mean": 0 * mean}, folder / "w.pth")
        model = load_declared(wrapped)
        assert same(model) and model.notes == ()
    torch.save({**state(), "mean": 0 * mean}, folder / "w.pth")
    assert same(load_declared(wrapped))


def test_several_weights_that_fit_are_told_apart_by_their_name(folder: Path) -> None:
    torch.save({"model": state(1), "ema": state(2, "module.")}, folder / "w.pth")
    told = refusal(DECLARED)
    assert "several" in told and "model, ema" in told and "part" in told
    assert same(load_declared(replace(DECLARED, part="ema")), 2)
    assert same(load_declared(replace(DECLARED, part="model")), 1)
    assert "did you mean 'ema'" in refusal(replace(DECLARED, part="emaa"))
    torch.save({"model": state(1), "ema": state(1)}, folder / "w.pth")
    assert same(load_declared(DECLARED))  # the same weights twice are no question
    torch.save({**state(1), **state(2, "teacher.")}, folder / "w.pth")
    assert "the file itself, teacher" in refusal(DECLARED)


def test_the_file_is_the_one_that_was_declared(folder: Path) -> None:
    import hashlib

    torch.save(state(), folder / "w.pth")
    sha = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    assert same(load_declared(replace(DECLARED, weights_sha256=sha)))
    torch.save(state(2), folder / "w.pth")
    told = refusal(replace(DECLARED, weights_sha256=sha))
    assert "another file than was declared" in told and sha[:12] in told


# Weights that do not


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fc.weight": None}, ["lacks fc.weight", "nearest"]),
        ({"fc.weight": None, "head.weight": X}, ["the file lacks fc.weight", "the network lacks head.weight"]),
        ({"head.weight": X}, ["the network lacks head.weight"]),
        ({"fc.weight": torch.zeros(10, 3)}, ["fc.weight is float32 [10, 3] in the file and float32 [4, 3]"]),
        ({"fc.weight": torch.zeros(4, 3, dtype=torch.int8)}, ["fc.weight is int8"]),
        ({"fc.weight": torch.full((4, 3), float("nan"))}, ["no numbers (fc.weight)"]),
        ({"bn1.running_var": torch.full((3,), float("nan"))}, ["no numbers (bn1.running_var)"]),
        ({"fc.bias": torch.full((4,), float("inf"))}, ["no numbers (fc.bias)"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, change: dict[str, Tensor | None], told: list[str]) -> None:
    torch.save({"model": {k: v for k, v in {**state(), **change}.items() if v is not None}}, folder / "w.pth")
    found = refusal(DECLARED)
    for word in (*told, "w.pth"):
        assert word in found, found


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    torch.save({f"layer{i}.kernel": X for i in range(6)}, folder / "w.pth")
    told = refusal(DECLARED)
    assert "lacks conv1.weight, conv1.bias, bn1.weight and 5 more" in told or "and 4 more" in told
    assert "the network lacks layer0.kernel, layer1.kernel, layer2.kernel and 3 more" in told
    torch.save(state(), folder / "w.pth")
    assert "no weights that w.pth could fill" in refusal(replace(DECLARED, model="stranger:bare"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1, 2], "but a list"),
        (X, "but a Tensor"),
        ({"epoch": 3, "lr": 0.1}, "its keys are epoch, lr"),
        ({}, "its keys are"),
    ],
)
def test_a_checkpoint_without_a_state_dict_is_refused(folder: Path, value: Any, told: str) -> None:
    torch.save(value, folder / "w.pth")
    assert told in refusal(DECLARED)


@pytest.mark.parametrize("write", [torch.save, old])
def test_a_pickle_that_runs_code_is_not_loaded(folder: Path, write: Callable[[Any, Path], None]) -> None:
    write(net(), folder / "w.pth")
    told = refusal(DECLARED)
    assert "test_foreign.Net" in told and "runs code" in told and "state_dict()" in told
    write({"state_dict": state(), "args": argparse.Namespace(lr=1)}, folder / "w.pth")
    assert "argparse.Namespace" in refusal(DECLARED)

    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(folder / "boom"),))

    write({"state_dict": state(), "x": Bomb()}, folder / "w.pth")
    refusal(DECLARED)
    assert not (folder / "boom").exists()


def cut(value: Any, write: Callable[[Any, Path], None], share: float) -> bytes:
    path = Path("whole")
    write(value, path)
    content = path.read_bytes()
    return content[: int(share * len(content))]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"\n<!DOCTYPE html>\n<html>not found</html>", "web page"),
        (lambda: b"\xef\xbb\xbf<html>", "web page"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (lambda: b"\x89HDF\r\n\x1a\n and so on", "a Keras file"),
        (lambda: b"\x1f\x8b\x08\x00 and so on", "gzip"),
        (lambda: b"only some text", "no file of PyTorch's"),
        (lambda: b"\x80", "no file of PyTorch's"),
        (lambda: b"\x80\x04rubbish", "damaged"),
        (lambda: cut(state(), torch.save, 0.5), "truncated"),
        (lambda: cut(state(), old, 0.5), "truncated"),
        (lambda: cut(state(), old, 0.99), "truncated"),
        (lambda: cut(state(), tensors, 0.5), "truncated"),
        (lambda: (1 << 62).to_bytes(8, "little") + b"{}", "truncated"),
    ],
)
def test_files_that_are_no_weights_are_refused(folder: Path, content: Callable[[], bytes], told: str) -> None:
    (folder / "w.pth").write_bytes(content())
    found = refusal(DECLARED)
    assert told in found and "w.pth" in found, found


def test_files_that_are_no_files_are_refused(folder: Path) -> None:
    assert "does not exist" in refusal(DECLARED)
    torch.save(state(), folder / "w2.pth")
    assert "did you mean w2.pth" in refusal(DECLARED)
    (folder / "w.pth").mkdir()
    assert "is a folder" in refusal(DECLARED)
    os.mkfifo(folder / "pipe")
    assert "no plain file" in refusal(replace(DECLARED, weights="pipe"))
    assert "cannot be read" in refusal(replace(DECLARED, weights="a\0b"))
    with zipfile.ZipFile(folder / "z.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "it holds readme.txt" in refusal(replace(DECLARED, weights="z.pth"))
    with zipfile.ZipFile(folder / "z.pth", "w") as archive:
        archive.writestr("m/data/aotinductor/model/a.so", "hello")
    assert "compiled code" in refusal(replace(DECLARED, weights="z.pth"))
    save(folder / "best.safetensors", Checkpoint({}, state()))
    assert "trained here" in refusal(replace(DECLARED, weights="best.safetensors"))


# Programs

BATCH = torch.export.Dim("batch")


def exported(path: Path, model: nn.Module, size: Any = None, x: Tensor = X[:4]) -> None:
    shapes = None if size is None else ({0: size},)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=shapes), path)


def scripted(path: Path, model: nn.Module, how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = torch.jit.script(model) if how == "scripted" else torch.jit.trace(model, X[:4])
        torch.jit.save(torch.jit.freeze(made) if how == "frozen" else made, str(path))


def program(path: str, **rest: Any) -> Declaration:
    return replace(Declaration(path, classes=4, channels=2, trust=True), **rest)


@pytest.mark.parametrize(
    ("size", "bounds"), [(None, "4 "), (BATCH, ""), (torch.export.Dim("batch", min=2, max=5), "2 to 5")]
)
def test_an_exported_program_takes_any_batch(folder: Path, size: Any, bounds: str) -> None:
    exported(folder / "net.pt2", net(), size)
    model = load_declared(program("net.pt2"))
    assert [note for note in model.notes if f"takes batches of {bounds}" in note] == list(model.notes) != [""]
    assert len(model.notes) == bool(bounds)
    for n in (1, 2, 3, 4, 5, 7):
        x = X[:n].clone().requires_grad_()
        own = X[:n].clone().requires_grad_()
        assert torch.allclose(model(x), net()(own), atol=1e-6)
        (found,) = torch.autograd.grad(F.cross_entropy(model(x), torch.zeros(n, dtype=torch.int64)), x)
        (wanted,) = torch.autograd.grad(F.cross_entropy(net()(own), torch.zeros(n, dtype=torch.int64)), own)
        assert torch.allclose(found, wanted, atol=1e-7) and bool(found.abs().amax(dim=(1, 2, 3)).gt(0).all())


@pytest.mark.parametrize("how", ["scripted", "traced", "frozen"])
def test_a_script_is_a_network_like_others(folder: Path, how: str) -> None:
    scripted(folder / "net.pt", net(), how)
    assert sniff(folder / "net.pt") == "torchscript"
    model = load_declared(program("net.pt"))
    x = X.clone().requires_grad_()
    assert torch.allclose(model(x), net()(X), atol=1e-6)
    assert bool(torch.autograd.grad(model(x).sum(), x)[0].abs().amax(dim=(1, 2, 3)).gt(0).all())


@pytest.mark.parametrize("kind", ["export", "scripted", "traced", "frozen"])
def test_a_program_can_be_attacked_as_any_network(folder: Path, kind: str) -> None:
    path = folder / "net.bin"
    exported(path, net()) if kind == "export" else scripted(path, net(), kind)
    model = load_declared(program("net.bin"))
    y = net()(X).argmax(dim=1)
    ball, rng = Ball("linf", 0.3), Stream.of(0).images(torch.arange(7))
    with frozen(model, "eval"):
        found = survivors(model, X, y, PGD(3, step_ratio=0.5), ball, rng)
    wanted = survivors(net(), X, y, PGD(3, step_ratio=0.5), ball, rng)
    assert torch.equal(found.after, wanted.after) and bool(found.clean.all())


def test_a_scripted_network_leaves_training_mode(folder: Path) -> None:
    scripted(folder / "net.pt", nn.Sequential(net(), nn.Dropout(0.5)).train(), "scripted")
    model = load_declared(program("net.pt"))
    assert torch.allclose(model(X), net()(X), atol=1e-6)


def test_a_program_runs_only_where_it_is_trusted(folder: Path) -> None:
    exported(folder / "net.pt2", net())
    scripted(folder / "net.pt", net(), "traced")
    for name in ("net.pt2", "net.pt"):
        assert "--trust" in refusal(program(name, trust=False))
        assert "is a program, not weights" in refusal(replace(DECLARED, weights=name))
        assert "leave w.pth out" in refusal(program(name, weights="w.pth"))
        assert "another file" in refusal(program(name, weights_sha256="0" * 64))
    torch.save(state(), folder / "w.pth")
    assert "holds weights" in refusal(program("w.pth"))
    (folder / "net.pt2").write_bytes((folder / "net.pt2").read_bytes()[:-500])
    assert "truncated" in refusal(program("net.pt2"))


class Two(nn.Module):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return (x + z).flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x


def test_an_exported_program_that_takes_no_images_is_refused(folder: Path) -> None:
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(Two(), (X, X)), path)
    assert "one batch of images" in refusal(program("net.pt2"))
    exported(path, nn.Flatten(), None, X[:, 0])
    assert "one batch of images" in refusal(program("net.pt2"))
    exported(path, net())
    assert "not float32 images of 3 channels" in refusal(program("net.pt2", channels=3))
    exported(path, nn.Flatten(), None, X.half())
    assert "float16" in refusal(program("net.pt2"))
    exported(path, net().train(), BATCH)
    assert "training mode" in refusal(program("net.pt2"))
    exported(path, net(), 2 * torch.export.Dim("half"))
    assert "only batches of 2*" in refusal(program("net.pt2"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/models/model.json", "{}")
    assert "cannot be loaded by torch" in refusal(program("net.pt2"))


def test_what_else_a_program_returns_is_passed_on(folder: Path) -> None:
    exported(folder / "net.pt2", Pair())
    model = load_declared(program("net.pt2"))
    assert isinstance(model(X), tuple) and isinstance(model(X[:4]), tuple)
    assert isinstance(model.net, Program)


# The real ones

REAL = {
    "resnet20": ("resnet20-12fca82f.th", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.9173),
    "resnet2b": ("cifar_resnet2b_adv.pth", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), 0.6925),
    "cnn_a": ("cifar_cnn_a_adv.model", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 0.6975),
    "smallcnn": ("trades_mnist_smallcnn.pt", (), (), 0.9948),
}
"""Factory in tests/foreign_nets.py: file, mean, std, and the accuracy on the 10,000 test images."""


def real(name: str) -> Declaration:
    """Return the declaration of a published network, whose file is in $DEMILUNE_TEST_CHECKPOINTS."""
    root = os.environ.get("DEMILUNE_TEST_CHECKPOINTS")
    if not root:
        pytest.skip("needs $DEMILUNE_TEST_CHECKPOINTS, a folder with the published checkpoints")
    file, mean, std, _ = REAL[name]
    channels = len(mean) or 1
    return Declaration(f"tests.foreign_nets:{name}", 10, channels, str(Path(root) / file), mean=mean, std=std)


@pytest.mark.parametrize("name", REAL)
def test_the_real_checkpoints_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = real(name)
    monkeypatch.chdir(Path(__file__).parents[2])
    model = load_declared(Declaration.from_json(declared.to_json()))
    side = 28 if name == "smallcnn" else 32
    assert model(torch.rand(3, declared.channels, side, side)).shape == (3, 10)
    wrapped = name in ("resnet20", "resnet2b")
    assert model.notes == (
        (f"{Path(declared.weights or '').name}: took what is under 'state_dict'",) if wrapped else ()
    )
    other = "cnn_a" if name != "cnn_a" else "resnet2b"
    assert "does not fit" in refusal(replace(declared, model=f"tests.foreign_nets:{other}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_checkpoints_reach_their_accuracy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = real(name)
    root = os.environ.get("DEMILUNE_TEST_DATA")
    if not root:
        pytest.skip("needs $DEMILUNE_TEST_DATA, a folder with the real CIFAR-10 and MNIST")
    monkeypatch.chdir(Path(__file__).parents[2])
    model = load_declared(declared)
    source = MNIST(root=root) if name == "smallcnn" else CIFAR10(root=root, unverified=True)
    test = source.load().test
    with torch.no_grad():
        right = sum(
            int((model(test.pixels(rows)).argmax(dim=1) == test.labels[rows]).sum())
            for rows in torch.arange(len(test)).split(500)
        )
    assert len(test) == 10_000
    assert right / 10_000 == pytest.approx(REAL[name][3], abs=2e-4)  # rounding may turn an image
