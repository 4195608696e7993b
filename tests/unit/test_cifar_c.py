"""The published files of corrupted images, good and bad, and their download from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from demilune.data.cifar_c import CIFAR10C, CIFAR100C, UPSTREAM10, UPSTREAM100, obtain, read, status, survey
from demilune.data.corruptions import SEVERITIES, TYPES
from demilune.errors import DemiluneError
from serving import Server, serving

COUNT = 6


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _pixels(name: str) -> np.ndarray:
    seed = TYPES.index(name)
    return np.random.RandomState(seed).randint(0, 256, (len(SEVERITIES) * COUNT, 32, 32, 3)).astype(np.uint8)


LABELS = (np.arange(COUNT) % 4 + 6).astype(np.uint8)
FILES = {"labels.npy": _npy(np.tile(LABELS, 5)), **{f"{name}.npy": _npy(_pixels(name)) for name in TYPES}}


def _tar(files: dict[str, bytes], folder: str = "CIFAR-10-C") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


ARCHIVE = _tar({"README.txt": b"read me", "saturate.npy": b"another type", **FILES})
FAKE = replace(
    UPSTREAM10,
    name="fake-c",
    archive_md5=hashlib.md5(ARCHIVE).hexdigest(),
    md5=tuple(hashlib.md5(FILES[file]).hexdigest() for file in UPSTREAM10.files),
    images=COUNT,
)


def _write(root: Path, **changed: bytes) -> Path:
    folder = root / "CIFAR-10-C"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(changed.get(name.removesuffix(".npy"), content))
    return folder


def _here(root: Path, unverified: bool = False) -> CIFAR10C:
    return CIFAR10C(root=str(root), unverified=unverified)


def test_images_are_mapped_and_upright(tmp_path: Path) -> None:
    folder = _write(tmp_path)
    found = read(FAKE, _here(tmp_path))
    assert found.labels.dtype == np.int64 and found.labels.tolist() == LABELS.tolist()
    assert found.folder == folder and found.doubt == "" and found.doubts() == []
    for name in TYPES:
        images, doubt = found.images(name)
        assert doubt == "" and images.shape == (5, COUNT, 3, 32, 32) and images.dtype == np.uint8
        assert isinstance(images, np.memmap) and not images.flags.writeable
        assert np.array_equal(images[3, 4], _pixels(name)[3 * COUNT + 4].transpose(2, 0, 1))
    chosen = torch.from_numpy(np.ascontiguousarray(images[4][[5, 0]]))  # how a subset becomes a tensor
    assert chosen.shape == (2, 3, 32, 32)


def test_only_the_file_that_is_asked_for_is_read(tmp_path: Path) -> None:
    _write(tmp_path, fog=b"damaged")
    found = read(FAKE, _here(tmp_path))
    assert found.images("snow")[1] == ""
    with pytest.raises(DemiluneError, match=r"fog.npy cannot be used"):
        found.images("fog")
    with pytest.raises(DemiluneError, match=r"unknown corruption 'spatter': .*possible are brightness"):
        found.images("spatter")


FOG = _pixels("fog")


def _pickled() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], object), allow_pickle=True)
    return out.getvalue()


def _zipped() -> bytes:
    out = io.BytesIO()
    np.savez(out, FOG)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an array"),
        (b"<html>not found</html>", "cannot be read as an array"),
        (FILES["fog.npy"][:-1000], "cannot be read as an array"),
        (FILES["fog.npy"][:50], "cannot be read as an array"),
        (FILES["fog.npy"][:12] + b"(" * 60 + FILES["fog.npy"][72:], "cannot be read as an array"),
        (FILES["fog.npy"].replace(b"(30,", b"(9999999999999999999,"), "cannot be read as an array"),
        (_pickled(), "cannot be read as an array"),
        (_zipped(), "cannot be read as an array"),
        (_npy(FOG[:-1]), r"it is uint8 of shape \(29, 32, 32, 3\) instead of uint8 of shape \(30, 32, 32, 3\)"),
        (_npy(FOG.transpose(0, 3, 1, 2).copy()), r"shape \(30, 3, 32, 32\) instead"),
        (_npy(FOG.astype(np.float32)), "it is float32 of shape"),
        (_npy(FOG.astype(np.int8)), "it is int8 of shape"),
    ],
    ids=["empty", "html", "cut", "head", "brackets", "huge", "pickle", "npz", "fewer", "upright", "float", "signed"],
)
def test_bad_images_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    folder = _write(tmp_path, fog=content)
    with pytest.raises(
        DemiluneError, match=rf"fake-c: {folder / 'fog.npy'} cannot be used: .*{words}.*delete .*fog.npy and run"
    ) as caught:
        read(FAKE, _here(tmp_path, unverified=True)).images("fog")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>", "cannot be read as an array"),
        (_pickled(), "cannot be read as an array"),
        (_npy(np.tile(LABELS, 4)), r"it is uint8 of shape \(24,\) instead of whole numbers of shape \(30,\)"),
        (_npy(np.tile(LABELS, 5).astype(float)), "it is float64 of shape"),
        (_npy(np.tile(LABELS + 1, 5)), "it has the label 10, and labels are from 0 to 9"),
        (_npy(np.tile(LABELS.astype(int) - 7, 5)), "it has the label -1, and labels are from 0 to 9"),
        (_npy(np.repeat(LABELS, 5)), "not the same in every severity"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    _write(tmp_path, labels=content)
    with pytest.raises(
        DemiluneError, match=rf"labels.npy cannot be used: .*{words}.*delete .*labels.npy and run"
    ) as caught:
        read(FAKE, _here(tmp_path, unverified=True))
    assert "\n" not in str(caught.value)


def test_other_files_are_used_only_on_request(tmp_path: Path) -> None:
    folder = _write(tmp_path, fog=_npy(255 - FOG))
    with pytest.raises(DemiluneError, match=r"fog.npy has the md5 .*, the published file .*move .*CIFAR-10-C away"):
        read(FAKE, _here(tmp_path)).images("fog")
    images, doubt = read(FAKE, _here(tmp_path, unverified=True)).images("fog")
    assert np.array_equal(images[0, 0], 255 - FOG[0].transpose(2, 0, 1)) and doubt.startswith(str(folder / "fog.npy"))
    assert survey(FAKE, _here(tmp_path)).startswith(f"fake-c: present, not the official files: {folder} (")

    _write(tmp_path, labels=_npy(np.tile(LABELS.astype(np.int64), 5)))  # the same labels, but not the same file
    with pytest.raises(DemiluneError, match=r"not the official files: .*labels.npy has the md5"):
        read(FAKE, _here(tmp_path))
    found = read(FAKE, _here(tmp_path, unverified=True))
    assert found.labels.tolist() == LABELS.tolist() and len(found.doubts()) == 1 and "labels.npy" in found.doubt


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    with pytest.raises(DemiluneError, match=rf"cifar10-c: missing in {tmp_path}: there is no CIFAR-10-C"):
        CIFAR10C().load()
    assert status(CIFAR10C()).startswith("cifar10-c: missing in")
    assert status(CIFAR100C()).startswith("cifar100-c: missing in")
    (tmp_path / "CIFAR-100-C.tar.part").write_bytes(b"x" * 1500)
    with pytest.raises(DemiluneError, match=r"cifar100-c: half downloaded, .*tar.part has 1,500 bytes so far"):
        CIFAR100C().load()
    (_write(tmp_path) / "frost.npy").unlink()
    with pytest.raises(DemiluneError, match=r"CIFAR-10-C is incomplete, it lacks frost.npy: delete it and run"):
        CIFAR10C().load()
    with pytest.raises(DemiluneError, match="root = 5"):
        CIFAR10C(root=5)  # type: ignore[arg-type]


def test_the_two_data_sets_are_told_apart() -> None:
    for upstream, name, classes in ((UPSTREAM10, "CIFAR-10-C", 10), (UPSTREAM100, "CIFAR-100-C", 100)):
        assert (upstream.archive, upstream.folder, upstream.classes) == (f"{name}.tar", name, classes)
        assert upstream.images == 10_000 and upstream.files == ("labels.npy", *(f"{each}.npy" for each in TYPES))
        assert len(set(upstream.md5)) == len(upstream.files) and all(len(md5) == 32 for md5 in upstream.md5)
    assert not set(UPSTREAM10.md5) & set(UPSTREAM100.md5)


# Downloading


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving({"CIFAR-10-C.tar": ARCHIVE, "damaged/CIFAR-10-C.tar": ARCHIVE[:-1]}) as made:
        yield made


def test_download_then_read(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _here(tmp_path / "new")
    seen: list[tuple[int, int]] = []
    folder = obtain(FAKE, data, f"{server.base}/", lambda *now: seen.append(now))
    assert folder == tmp_path / "new" / "CIFAR-10-C" and server.asked == ["CIFAR-10-C.tar"]
    assert seen[-1] == (len(ARCHIVE), len(ARCHIVE))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)  # and nothing else of the archive
    assert read(FAKE, data).doubts() == []
    assert survey(FAKE, data) == f"fake-c: present and verified: {folder}"
    assert obtain(FAKE, data, server.base, None) == folder and len(server.asked) == 1
    monkeypatch.setenv("DEMILUNE_MIRROR", server.base)
    obtain(FAKE, _here(tmp_path / "mirror"), "", None)
    assert len(server.asked) == 2


def test_download_leaves_other_files_alone_and_refuses_another_archive(tmp_path: Path, server: Server) -> None:
    folder = _write(tmp_path, snow=_npy(_pixels("fog")))
    with pytest.raises(DemiluneError, match=r"not the official files: .*snow.npy has the md5"):
        obtain(FAKE, _here(tmp_path, unverified=True), server.base, None)
    assert server.asked == [] and (folder / "snow.npy").read_bytes() == _npy(_pixels("fog"))
    with pytest.raises(DemiluneError, match=f"expected {FAKE.archive_md5}"):
        obtain(FAKE, _here(tmp_path / "new"), f"{server.base}/damaged", None)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("odd", ["../labels.npy", "/labels.npy"])
def test_an_archive_with_odd_paths_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    archive = _tar({**FILES, odd: b"x"}, folder="." if odd.startswith("..") else "")
    upstream = replace(FAKE, archive_md5=hashlib.md5(archive).hexdigest())
    with serving({"CIFAR-10-C.tar": archive}) as made, pytest.raises(DemiluneError, match="refused"):
        obtain(upstream, _here(tmp_path), made.base, None)
    assert [path.name for path in tmp_path.iterdir()] == ["CIFAR-10-C.tar"]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("DEMILUNE_TEST_DATA", ""), "CIFAR-10-C").is_dir(),
    reason="needs $DEMILUNE_TEST_DATA, a folder with the real files in it",
)
def test_the_real_files() -> None:
    data = CIFAR10C(root=os.environ["DEMILUNE_TEST_DATA"])
    assert data.load().doubts() == [] and status(data).startswith("cifar10-c: present and verified")
