"""Extra images to train on: a good file, every kind of bad one, and how a data set carries them."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import refused
from demilune.data import DATA, Digits, Extra
from demilune.data.base import Data
from demilune.data.extra import FIRST_ID, IMAGES, LABELS
from demilune.errors import DemiluneError
from demilune.experiment import build, plain


def _images(n: int = 6) -> np.ndarray:
    """Return images that look like digits, [N,H,W,C]."""
    return np.random.RandomState(0).randint(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def _labels(n: int = 6) -> np.ndarray:
    return np.arange(n) % 10


def _write(path: Path, **held: Any) -> str:
    np.savez(path, **held)
    return str(path)


@pytest.fixture(scope="module")
def digits() -> Any:
    return Digits().load()


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("label", LABELS)
def test_every_name_of_images_and_labels_is_known(tmp_path: Path, digits: Any, image: str, label: str) -> None:
    file = _write(tmp_path / "extra.npz", **{image: _images(), label: _labels().astype(np.uint8), "other": [1]})
    split = Extra(file).read(digits)
    assert split is not None and split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    assert np.array_equal(split.images.numpy(), _images().transpose(0, 3, 1, 2))
    assert split.labels.tolist() == _labels().tolist()
    assert split.ids.tolist() == [FIRST_ID + i for i in range(6)] and FIRST_ID == 1 << 40


def test_channels_may_come_first(tmp_path: Path, digits: Any) -> None:
    last = Extra(_write(tmp_path / "last.npz", x=_images(), y=_labels())).read(digits)
    first = Extra(_write(tmp_path / "first.npz", x=_images().transpose(0, 3, 1, 2), y=_labels())).read(digits)
    assert last is not None and first is not None and torch.equal(first.images, last.images)
    pixels = np.random.RandomState(1).randint(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    colour = dataclasses.replace(
        digits, train=dataclasses.replace(digits.train, images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    )
    for number, held in enumerate((pixels, pixels.transpose(0, 3, 1, 2), np.asfortranarray(pixels))):
        split = Extra(_write(tmp_path / f"{number}.npz", x=held, y=_labels(5))).read(colour)
        assert split is not None and np.array_equal(split.images.numpy(), pixels.transpose(0, 3, 1, 2))
        assert torch.equal(split.pixels(slice(2, 3)), torch.from_numpy(pixels[2:3]).permute(0, 3, 1, 2) / 255)


def test_of_several_names_the_first_counts(tmp_path: Path, digits: Any) -> None:
    file = _write(tmp_path / "e.npz", data=_images(3), image=_images(6), y=np.zeros(2, int), targets=_labels())
    split = Extra(file).read(digits)
    assert split is not None and len(split) == 6 and split.labels.tolist() == _labels().tolist()


def test_none_named_is_none(digits: Any) -> None:
    assert Extra().read(digits) is None
    data = Digits().mixed()
    assert data.extra is None and data.extra_share == 0.0 and data.extra_sha256 == ""


def test_a_data_set_carries_them_for_training_and_evaluation_does_not_need_them(tmp_path: Path) -> None:
    file = _write(tmp_path / "extra.npz", image=_images(2500), label=_labels(2500))
    source = Digits(extra=Extra(file, 0.25))
    data = source.mixed()
    assert data.extra is not None and len(data.extra) == 2500 and data.extra_share == 0.25
    written = _images(2500).tobytes() + _labels(2500).astype(np.uint8).tobytes()
    assert data.extra_sha256 == hashlib.sha256(written).hexdigest()
    first = _write(tmp_path / "first.npz", image=_images(2500).transpose(0, 3, 1, 2), label=_labels(2500))
    assert Digits(extra=Extra(first)).mixed().extra_sha256 == data.extra_sha256
    moved = data.to("cpu")
    assert moved.extra is not None and torch.equal(moved.extra.images, data.extra.images)
    assert moved.extra_sha256 == data.extra_sha256 and moved.extra_share == 0.25
    assert data.to("meta").extra.images.device.type == "meta"  # type: ignore[union-attr]
    Path(file).unlink()
    assert torch.equal(source.load().train.images, data.train.images) and source.load().extra is None
    with pytest.raises(DemiluneError, match="missing"):
        source.mixed()


def test_a_relative_file_is_also_looked_for_below_the_data_root(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "here").mkdir()
    _write(tmp_path / "root" / "extra.npz", image=_images(4), label=_labels(4))
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path / "here")
    split = Extra("extra.npz").read(digits)
    assert split is not None and len(split) == 4
    _write(tmp_path / "here" / "extra.npz", image=_images(5), label=_labels(5))
    split = Extra("extra.npz").read(digits)
    assert split is not None and len(split) == 5
    with pytest.raises(
        DemiluneError,
        match=rf"gone.npz is missing \(neither here nor in {tmp_path}/root\): RST .*key image, .*extrapolated_targets, "
        r"y\); name it with --data.extra.file FILE",
    ):
        Extra("gone.npz").read(digits)
    with pytest.raises(DemiluneError, match="there is no such file"):
        Extra(str(tmp_path / "here")).read(digits)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, _images())


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"data": _images(), "extrapolated_targets": _labels()}))


def _raw(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("image", "hello")
        file.writestr("label", "hello")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "cannot be read as an .npz of arrays"),
        (_flip, "cannot be read as an .npz of arrays"),
        (_pickled, "cannot be read as an .npz of arrays"),
        (_raw, "holds no array under image"),
        (_array, "is one array and no .npz of several"),
        (lambda path: path.write_bytes(b""), "cannot be read as an .npz of arrays"),
        (lambda path: path.write_bytes(b"<html>"), "cannot be read as an .npz of arrays"),
        (lambda path: _write(path, image=np.array([{}] * 6, object), label=_labels()), "allow_pickle"),
        (lambda path: _write(path, pixels=_images(), label=_labels()), r"has no images: it holds pixels, label, and"),
        (lambda path: _write(path, image=_images()), "has no labels: it holds image, and they are looked for under la"),
        (lambda path: _write(path, image=_images()[:, :, :7], label=_labels()), r"uint8 \[6, 8, 7, 1\], and digits n"),
        (lambda path: _write(path, image=_images() / 255.0, label=_labels()), "images are float64"),
        (lambda path: _write(path, image=_images()[..., 0], label=_labels()), r"images are uint8 \[6, 8, 8\]"),
        (lambda path: _write(path, image=_images(0), label=_labels(0)), r"images are uint8 \[0, 8, 8, 1\]"),
        (lambda path: _write(path, image=_images(), label=_labels(5)), r"labels are int64 \[5\], and 6 integers"),
        (lambda path: _write(path, image=_images(), label=_labels() / 1.0), "labels are float64"),
        (lambda path: _write(path, image=_images(), label=_labels()[:, None]), r"labels are int64 \[6, 1\]"),
        (lambda path: _write(path, image=_images(), label=_labels() - 1), "needs a pseudo-label for every image"),
        (lambda path: _write(path, image=_images(), label=_labels() - 7), "label -7, and the labels of digits"),
        (lambda path: _write(path, image=_images(), label=_labels() + 5), "label 10, and the labels .* from 0 to 9"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, digits: Any, damage: Any, words: str) -> None:
    path = tmp_path / "extra.npz"
    _write(path, image=_images(), label=_labels())
    damage(path)
    with pytest.raises(DemiluneError, match=words) as caught:
        Extra(str(path)).read(digits)
    assert "\n" not in str(caught.value) and "--data.extra.file" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(DemiluneError, match=r"extra.share = .* is not possible"):
        Extra("x.npz", share)


@pytest.mark.parametrize("source", DATA.values(), ids=DATA)
def test_every_source_has_them_as_a_plain_field(source: type[Data]) -> None:
    assert plain(source())["extra"] == {"file": "", "share": 0.5}
    made = build(source, {"extra": {"file": "e.npz", "share": 0.7}})
    assert made.extra == Extra("e.npz", 0.7)


def test_the_command_line_sets_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits-sat", "--data.extra.share", "1", "--out", str(tmp_path / "run")]
    refused(words, capsys, "extra.share = 1 is not possible")


def _python2(path: Path) -> str:
    """Write an .npz whose headers Python 2 wrote, of which NumPy warns."""
    _write(path, image=_images(), label=_labels())
    with zipfile.ZipFile(path) as file:
        held = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in held.items():
            head = content.replace(b"(6, ", b"(6L,").replace(b"(6,)", b"(6L)") if name == "image.npy" else content
            file.writestr(name, head)
    return str(path)


def test_a_header_of_python_2_is_read_without_a_warning(tmp_path: Path, digits: Any) -> None:
    split = Extra(_python2(tmp_path / "old.npz")).read(digits)
    assert split is not None and len(split) == 6


@pytest.mark.parametrize("given", [{"share": "x"}, {"share": None}, {"file": None}, {"file": 3}, {"share": 10**400}])
def test_wrong_types_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DemiluneError, match=rf"^{next(iter(given))} = .*: a value of type .* was expected$"):
        Extra(**given)


def test_a_home_that_is_not_known_is_refused(digits: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "digits-sat", "--data.extra.file", "~nosuchuser/x.npz", "--out", str(tmp_path / "run")]
    refused(words, capsys, "~nosuchuser/x.npz: the home folder ~nosuchuser is not known: give the whole path")
