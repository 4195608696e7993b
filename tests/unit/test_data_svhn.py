"""SVHN's .mat files, good and bad, and their download from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from conftest import refused
from demilune.__main__ import main
from demilune.data import SVHN, svhn
from demilune.data.published import File, Loose, obtain_loose, told
from demilune.data.svhn import UPSTREAM, read, status
from demilune.errors import DemiluneError
from serving import Server, serving

COUNTS = {"train_32x32.mat": 40, "test_32x32.mat": 20}


def _pixels(count: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (32, 32, 3, count)).astype(np.uint8)


def _labels(count: int) -> np.ndarray:
    return (np.arange(count)[:, None] % 10 + 1).astype(np.uint8)  # as published: 1 … 10 in a column


def _mat(packed: bool = True, **held: object) -> bytes:
    out = io.BytesIO()
    savemat(out, held, do_compression=packed)
    return out.getvalue()


FILES = {name: _mat(X=_pixels(count, seed), y=_labels(count)) for seed, (name, count) in enumerate(COUNTS.items())}
FAKE = replace(
    UPSTREAM, name="fake", files=tuple(File(n, COUNTS[n], hashlib.md5(c).hexdigest()) for n, c in FILES.items())
)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _here(root: Path, **fields: Any) -> SVHN:
    return SVHN(root=str(root), validation=5, **fields)


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_the_files_are_found_in_the_root_and_in_svhn(tmp_path: Path, folder: str) -> None:
    _write(tmp_path / folder, FILES)
    data = read(FAKE, _here(tmp_path))
    assert data.official and data.shape == (3, 32, 32) and data.classes == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (35, 5, 20)
    assert data.mean == data.std == (0.5, 0.5, 0.5) and (data.pad, data.flip) == (0, False)
    pixels = _pixels(40, 0)
    for part in (data.train, data.validation):
        for image, label, place in zip(part.images.numpy(), part.labels.tolist(), part.ids.tolist(), strict=True):
            assert np.array_equal(image, pixels[:, :, :, place].transpose(2, 0, 1))
            assert label == (place % 10 + 1) % 10  # 10 is the digit 0
    assert data.test.labels.tolist() == [*range(1, 10), 0] * 2
    assert sorted(np.random.RandomState(0).permutation(40)[:5]) == data.validation.ids.tolist()
    assert data.source == str(tmp_path / folder)


def test_the_published_files_are_those_of_torchvision() -> None:
    assert [(file.name, file.images, file.digest) for file in UPSTREAM.files] == [
        ("train_32x32.mat", 73_257, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", 26_032, "eb5a983be6a315427106f1b164d9cef3"),
    ]


def _body(content: bytes) -> bytes:
    """Return a file whose version says 7.3, which is an HDF5 file behind the same kind of header."""
    return content[:124] + b"\x00\x02IM" + content[128:]


GOOD = {"X": _pixels(40, 0), "y": _labels(40)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged, cut off or no .mat file"),
        (b"<html>not found</html>" * 20, "damaged, cut off or no .mat file"),
        (FILES["train_32x32.mat"][:-300], "damaged, cut off or no .mat file"),
        (FILES["train_32x32.mat"][:1000], "damaged, cut off or no .mat file"),
        (_mat(False, **GOOD)[:5000], "damaged, cut off or no .mat file"),
        (_mat(False, **GOOD)[:184] + b"s" + _mat(False, **GOOD)[185:], "damaged, cut off or no .mat file"),  # crashes
        (_body(FILES["train_32x32.mat"]), "version 7.3"),
        (_mat(X=_pixels(40, 0)), "no array y"),
        (_mat(y=_labels(40)), "no array X"),
        (_mat(X=_pixels(39, 0), y=_labels(39)), r"X is uint8 of shape \(32, 32, 3, 39\) instead of uint8 .*3, 40\)"),
        (_mat(X=_pixels(40, 0).astype(np.float64), y=_labels(40)), "X is float64"),
        (_mat(X=_pixels(40, 0).transpose(3, 0, 1, 2), y=_labels(40)), r"shape \(40, 32, 32, 3\)"),
        (_mat(X="pixels", y=_labels(40)), "X is <U6"),
        (_mat(X=np.array([{}, "b"], object), y=_labels(40)), "no array X"),
        (_mat(X=_pixels(40, 0), y=_labels(39)), r"y is uint8 of shape \(39, 1\) instead of 40 labels"),
        (_mat(X=_pixels(40, 0), y=["a"] * 40), "y is <U1"),
        (_mat(X=_pixels(40, 0), y=_labels(40) - 1), "the label 0, and labels are from 1 to 10"),
        (_mat(X=_pixels(40, 0), y=_labels(40) + 1), "the label 11, and"),
        (_mat(X=_pixels(40, 0), y=_labels(40) + 0.5), "the label 1.5, and"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    _write(tmp_path / "svhn", {**FILES, "train_32x32.mat": content})
    with pytest.raises(
        DemiluneError, match=rf"train_32x32.mat cannot be used: .*{words}.*delete .*mat and run `demilune data fake"
    ) as caught:
        read(FAKE, _here(tmp_path, unverified=True))
    assert "\n" not in str(caught.value)


def test_a_file_that_crashes_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svhn, "PROGRAM", "import os; os.abort()")
    _write(tmp_path / "svhn", FILES)
    with pytest.raises(
        DemiluneError, match=r"cannot be used: it is damaged.*its reader ended with the code -6\); delete"
    ):
        read(FAKE, _here(tmp_path, unverified=True))
    assert read(FAKE, _here(tmp_path)).official  # the published file needs no other process
    monkeypatch.setattr("sys.executable", str(tmp_path / "nowhere"))
    with pytest.raises(DemiluneError, match=r"cannot be used: it cannot be read \(.*nowhere"):
        read(FAKE, _here(tmp_path, unverified=True))


def test_other_files_are_neither_decoded_nor_reported_as_damaged_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "svhn", {**FILES, "train_32x32.mat": b"<html>"})
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("a file was decoded"))
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a file was decoded"))
    for unverified in (False, True):
        told = status(SVHN(root=str(tmp_path), unverified=unverified))
        assert told.startswith(f"svhn: not the official files: {tmp_path / 'svhn' / 'train_32x32.mat'} has the md5 ")
    with pytest.raises(
        DemiluneError, match=r"train_32x32.mat has the md5 .*unverified true .*move .*svhn away and run"
    ):
        read(FAKE, _here(tmp_path))


def test_other_files_are_used_only_on_request(tmp_path: Path) -> None:
    _write(tmp_path / "svhn", {**FILES, "test_32x32.mat": _mat(X=_pixels(20, 7), y=_labels(20).astype(float))})
    with pytest.raises(
        DemiluneError, match=r"test_32x32.mat has the md5 .*, the published file .*unverified true .*move .*svhn away"
    ):
        read(FAKE, _here(tmp_path))
    data = read(FAKE, _here(tmp_path, unverified=True))
    assert not data.official and "md5" in data.source
    assert np.array_equal(data.test.images.numpy(), _pixels(20, 7).transpose(3, 2, 0, 1))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    with pytest.raises(
        DemiluneError, match=rf"svhn: missing in {tmp_path}: .*demilune data svhn --download --root {tmp_path}"
    ):
        SVHN().load()
    assert status(SVHN()).startswith("svhn: missing in")
    _write(tmp_path / "svhn", {"train_32x32.mat.part": b"x" * 1500})
    with pytest.raises(DemiluneError, match=r"half downloaded, .*mat.part has 1,500 bytes so far: finish it with `dem"):
        SVHN().load()
    (tmp_path / "svhn" / "train_32x32.mat.part").rename(tmp_path / "svhn" / "train_32x32.mat")
    with pytest.raises(DemiluneError, match=r"svhn is incomplete, it lacks test_32x32.mat: run `demilune data svhn"):
        SVHN().load()


@pytest.mark.parametrize(
    "fields", [{"validation": -1}, {"validation": 73_257}, {"limit": -1}, {"limit": 72_258}, {"pad": -1}, {"pad": 17}]
)
def test_impossible_fields_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(DemiluneError, match=rf"svhn: {next(iter(fields))} = .* is not possible"):
        SVHN(**fields)


# Downloading


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(FILES) as made:
        yield made


def _load(data: SVHN, upstream: Loose = FAKE) -> Callable[[], object]:
    return lambda: read(upstream, data)


def test_download_then_load(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _here(tmp_path / "new")
    seen: list[tuple[int, int]] = []
    folder = obtain_loose(FAKE, data, _load(data), f"{server.base}/", lambda *now: seen.append(now))
    assert folder == tmp_path / "new" / "svhn" and server.asked == ["train_32x32.mat", "test_32x32.mat"]
    assert {len(content) for content in FILES.values()} <= {done for done, _ in seen}
    assert read(FAKE, data).official
    assert told("fake", "", lambda: read(FAKE, data)).startswith("fake: present and verified")
    assert obtain_loose(FAKE, data, _load(data), server.base, None) == folder and len(server.asked) == 2
    (folder / "test_32x32.mat").unlink()  # what is there already is not fetched again
    monkeypatch.setenv("DEMILUNE_MIRROR", server.base)
    obtain_loose(FAKE, data, _load(data), "", None)
    assert server.asked[2:] == ["test_32x32.mat"]


def test_download_leaves_other_files_alone(tmp_path: Path, server: Server) -> None:
    other = _mat(X=_pixels(20, 7), y=_labels(20))
    _write(tmp_path, {**FILES, "test_32x32.mat": other})
    data = _here(tmp_path)
    with pytest.raises(DemiluneError, match=r"not the official files.*or move them away"):
        obtain_loose(FAKE, data, _load(data), server.base, None)
    assert server.asked == [] and (tmp_path / "test_32x32.mat").read_bytes() == other


def test_the_command_downloads_and_tells(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "svhn", "--root", str(tmp_path)]) == 0
    assert "svhn: missing in" in capsys.readouterr().out
    refused(["data", "svhn", "--download", "--root", str(tmp_path), "--url", server.base], capsys, "expected e26dedcc")
    assert not (tmp_path / "svhn" / "train_32x32.mat").exists()

    monkeypatch.setattr("demilune.data.svhn.UPSTREAM", FAKE)
    monkeypatch.setattr(SVHN, "__post_init__", lambda data: None)  # 1,000 of its 40 images are held out
    assert main(["data", "svhn", "--download", "--root", str(tmp_path), "--url", server.base]) == 0
    out = capsys.readouterr().out
    assert f"verified and unpacked: {tmp_path / 'svhn'}" in out
    assert f"svhn: present and verified: {tmp_path / 'svhn'}" in out
    assert server.asked == ["train_32x32.mat", "train_32x32.mat", "test_32x32.mat"]


@pytest.mark.skipif(
    not os.environ.get("DEMILUNE_TEST_DATA") or not (Path(os.environ["DEMILUNE_TEST_DATA"]) / "svhn").is_dir(),
    reason="needs $DEMILUNE_TEST_DATA, a folder with the real files in svhn",
)
def test_the_real_files() -> None:
    data = SVHN(root=os.environ["DEMILUNE_TEST_DATA"]).load()
    assert data.official and (len(data.train), len(data.test)) == (72_257, 26_032)
