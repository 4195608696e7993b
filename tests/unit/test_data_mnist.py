"""MNIST's idx files, packed and not, good and bad, and their download."""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import refused
from demilune.__main__ import main
from demilune.data import MNIST
from demilune.data.mnist import UPSTREAM, read, status
from demilune.data.published import File
from demilune.errors import DemiluneError
from serving import serving

NAMES = [file.name.removesuffix(".gz") for file in UPSTREAM.files]
COUNTS = (40, 40, 20, 20)


def _idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    return head + values.astype(np.uint8).tobytes()


def _values(number: int) -> np.ndarray:
    rng, count = np.random.RandomState(number), COUNTS[number]
    return rng.randint(0, 10, count) if number % 2 else rng.randint(0, 256, (count, 28, 28))


RAW = {name: _idx(_values(number)) for number, name in enumerate(NAMES)}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in RAW.items()}


def _sha256(number: int) -> str:
    return hashlib.sha256(_values(number).astype(np.uint8).tobytes()).hexdigest()


FAKE = replace(
    UPSTREAM,
    name="fake",
    files=tuple(
        File(name, count, hashlib.md5(content).hexdigest())
        for (name, content), count in zip(PACKED.items(), COUNTS, strict=True)
    ),
    sha256=dict(zip(UPSTREAM.sha256, map(_sha256, range(4)), strict=True)),
)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _here(root: Path, **fields: Any) -> MNIST:
    return MNIST(root=str(root), validation=5, **fields)


def _mixed() -> dict[str, bytes]:
    return {**dict(list(RAW.items())[:2]), **dict(list(PACKED.items())[2:])}


@pytest.mark.parametrize("files", [RAW, PACKED, _mixed(), {**RAW, **PACKED}], ids=["raw", "gz", "mixed", "both"])
@pytest.mark.parametrize("folder", ["", "MNIST/raw"])
def test_idx_files_are_read_packed_or_not(tmp_path: Path, files: dict[str, bytes], folder: str) -> None:
    _write(tmp_path / folder, files)
    data = read(FAKE, _here(tmp_path))
    assert data.official and data.shape == (1, 28, 28) and data.sha256 == FAKE.sha256
    assert (len(data.train), len(data.validation), len(data.test)) == (35, 5, 20)
    assert (data.pad, data.flip) == (0, False)
    for part in (data.train, data.validation):
        assert np.array_equal(part.images[:, 0].numpy(), _values(0)[part.ids.numpy()])
        assert np.array_equal(part.labels.numpy(), _values(1)[part.ids.numpy()])
        assert part.labels.dtype == torch.int64
    assert np.array_equal(data.test.images[:, 0].numpy(), _values(2)) and data.test.labels.tolist() == list(_values(3))
    data.train.images[0] = 0  # the tensors own their memory


def _shorter(name: str, count: int) -> bytes:
    return _idx(_values(NAMES.index(name))[:count])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (NAMES[0], b"", "begins with nothing instead of 00000803"),
        (NAMES[0], b"<html>", "begins with 3c68746d"),
        (NAMES[0], RAW[NAMES[1]], "begins with 00000801 instead of 00000803"),
        (NAMES[1], RAW[NAMES[0]], "begins with 00000803 instead of 00000801"),
        (NAMES[0], _shorter(NAMES[0], 39), r"shape \(39, 28, 28\) instead of \(40, 28, 28\)"),
        (NAMES[0], RAW[NAMES[0]][:9], "shape"),
        (NAMES[0], RAW[NAMES[0]][:-1], "31,359 values instead of 31,360, so it is cut off"),
        (NAMES[0], RAW[NAMES[0]] + b"x", "31,361 values instead of 31,360"),
        (NAMES[3], RAW[NAMES[3]][:-1] + b"\x0a", "the label 10, and labels are from 0 to 9"),
        (f"{NAMES[2]}.gz", PACKED[f"{NAMES[2]}.gz"][:-30], "damaged or cut off"),
        (f"{NAMES[2]}.gz", b"no gzip", "damaged or cut off"),
        (f"{NAMES[2]}.gz", PACKED[f"{NAMES[2]}.gz"][:60] + b"\xff" * 60, "damaged or cut off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("unverified", [False, True])
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str, unverified: bool) -> None:
    good = PACKED if name.endswith(".gz") else RAW
    _write(tmp_path / "MNIST" / "raw", {**good, name: content})
    with pytest.raises(
        DemiluneError, match=rf"{name} cannot be used: .*{words}.*delete .*{name} and run `demilune data fake"
    ) as caught:
        read(FAKE, _here(tmp_path, unverified=unverified))
    assert "\n" not in str(caught.value)


def test_other_images_are_used_only_on_request(tmp_path: Path) -> None:
    other = _values(2)
    other[3, 4, 5] ^= 1
    _write(tmp_path, {**RAW, NAMES[2]: _idx(other)})
    with pytest.raises(
        DemiluneError, match=rf"fake: not the official files: test_images have the sha256 .*ones {_sha256(2)}; .*unver"
    ):
        read(FAKE, _here(tmp_path))
    data = read(FAKE, _here(tmp_path, unverified=True))
    assert not data.official and "test_images have the sha256" in data.source
    assert np.array_equal(data.test.images[:, 0].numpy(), other)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    with pytest.raises(DemiluneError, match=rf"mnist: missing in {tmp_path}: train-images-idx3-ubyte and .*download"):
        MNIST().load()
    assert status(MNIST()).startswith("mnist: missing in")
    _write(tmp_path, dict.fromkeys(NAMES[:3], b""))
    with pytest.raises(
        DemiluneError, match=r"is incomplete, it lacks t10k-labels-idx1-ubyte.gz: run `demilune data mn"
    ):
        MNIST().load()


@pytest.mark.parametrize("fields", [{"validation": 60_000}, {"limit": 59_001}, {"pad": 15}])
def test_impossible_fields_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(DemiluneError, match=rf"mnist: {next(iter(fields))} = .* is not possible"):
        MNIST(**fields)


def test_the_command_downloads_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "MNIST" / "raw"
    assert main(["data", "mnist", "--root", str(tmp_path)]) == 0
    assert "mnist: missing in" in capsys.readouterr().out
    with serving(PACKED) as server:
        words = ["data", "mnist", "--download", "--root", str(tmp_path), "--url", server.base]
        refused(words, capsys, "expected f68b3c2dcbeaaa9fbdd348bbdeb94873")
        assert list(folder.iterdir()) == []
        monkeypatch.setattr("demilune.data.mnist.UPSTREAM", FAKE)
        monkeypatch.setattr(MNIST, "__post_init__", lambda data: None)  # 1,000 of its 40 images are held out
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"verified and unpacked: {folder}" in out and f"mnist: present and verified: {folder}" in out
        assert main(words) == 0
        assert server.asked == [f"{NAMES[0]}.gz", *(f"{name}.gz" for name in NAMES)]
    (folder / f"{NAMES[0]}.gz").write_bytes(gzip.compress(RAW[NAMES[0]][:-1] + b"x", mtime=0))
    refused(words, capsys, "not the official files", "train_images have the sha256")


@pytest.mark.skipif(
    not (Path(os.environ.get("DEMILUNE_TEST_DATA", "/nowhere")) / "MNIST").is_dir(),
    reason="needs $DEMILUNE_TEST_DATA, a folder with the real files in MNIST/raw",
)
def test_the_real_files() -> None:
    data = MNIST(root=os.environ["DEMILUNE_TEST_DATA"]).load()
    assert data.official and (len(data.train), len(data.validation), len(data.test)) == (59_000, 1_000, 10_000)
    pixels = torch.cat([data.train.images, data.validation.images]).double() / 255
    assert float(pixels.mean()) == pytest.approx(UPSTREAM.mean[0], abs=1e-4)
    assert float(pixels.std(correction=0)) == pytest.approx(UPSTREAM.std[0], abs=1e-4)
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
