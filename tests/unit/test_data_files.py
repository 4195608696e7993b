"""CIFAR files, good and bad, and their download from a server on this machine."""

from __future__ import annotations

import collections
import errno
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demilune.data import CIFAR10, CIFAR100
from demilune.data.cifar import (
    UPSTREAM10,
    UPSTREAM100,
    File,
    Layout,
    Upstream,
    obtain,
    read,
    status,
    survey,
)
from demilune.data.download import fetch, unpack
from demilune.data.pickles import unpickle
from demilune.errors import DemiluneError

N = 20  # images a file


def _words(value: object) -> str:
    """Name a case by what its refusal says, not by the bytes of its file."""
    return value if isinstance(value, str) else ""


def _batch(seed: int) -> tuple[np.ndarray, list[int]]:
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (N, 3072)).astype(np.uint8), [int(each) for each in rng.randint(0, 10, N)]


def _pickled(seed: int) -> bytes:
    pixels, labels = _batch(seed)
    return pickle.dumps({b"batch_label": b"a batch", b"labels": labels, b"data": pixels, "names": ["x"] * N}, 2)


def _binary(seed: int) -> bytes:
    pixels, labels = _batch(seed)
    return np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1).tobytes()


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


PY = {f"py/{name}": _pickled(seed) for seed, name in enumerate(("one", "two", "test"))}
BIN = {f"bin/{name}.bin": _binary(seed) for seed, name in enumerate(("one", "two", "test"))}
ARCHIVE = _tar({**PY, "py/readme.html": b"hello"})


def _files(folder: dict[str, bytes], kind: str) -> tuple[File, ...]:
    return tuple(
        File(path.split("/")[1], N, hashlib.new(kind, content).hexdigest()) for path, content in folder.items()
    )


def _layout(folder: str, files: tuple[File, ...], label: str | int) -> Layout:
    return Layout(folder, f"{folder}.tar.gz", hashlib.md5(ARCHIVE).hexdigest(), label, files[:-1], files[-1])


FAKE = Upstream(
    name="fake",
    classes=tuple("abcdefghij"),
    python=_layout("py", _files(PY, "md5"), "labels"),
    binary=_layout("bin", _files(BIN, "sha1"), 1),
    mean=(0.5,) * 3,
    std=(0.2,) * 3,
)


def _write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    return root


def _here(root: Path, **fields: Any) -> CIFAR10:
    return CIFAR10(root=str(root), validation=fields.pop("validation", 5), **fields)


# Reading


@pytest.mark.parametrize("files", [PY, BIN], ids=["python", "binary"])
def test_both_versions_read_alike(tmp_path: Path, files: dict[str, bytes]) -> None:
    data = read(FAKE, _here(_write(tmp_path, files)))
    assert data.official and data.name == "fake" and data.shape == (3, 32, 32)
    assert (len(data.train), len(data.validation), len(data.test)) == (35, 5, N)
    pixels = np.concatenate([_batch(0)[0], _batch(1)[0]]).reshape(-1, 3, 32, 32)
    labels = np.array(_batch(0)[1] + _batch(1)[1])
    for part in (data.train, data.validation):
        assert np.array_equal(part.images.numpy(), pixels[part.ids.numpy()])
        assert np.array_equal(part.labels.numpy(), labels[part.ids.numpy()])
        assert part.labels.dtype == part.ids.dtype == torch.int64
    assert data.test.labels.tolist() == _batch(2)[1] and data.test.ids.tolist() == list(range(N))
    assert data.sha256["train_images"] == hashlib.sha256(pixels.transpose(0, 2, 3, 1).tobytes()).hexdigest()
    data.train.images[0] = 0  # the tensors own their memory, and may be written to


def test_validation_and_limit_are_the_first_of_a_fixed_permutation(tmp_path: Path) -> None:
    _write(tmp_path, PY)
    shuffled = np.random.RandomState(0).permutation(40)
    data = read(FAKE, _here(tmp_path, limit=7))
    assert sorted(shuffled[:5]) == data.validation.ids.tolist()
    assert sorted(shuffled[5:12]) == data.train.ids.tolist()
    assert data.sha256 == read(FAKE, _here(tmp_path)).sha256


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
@pytest.mark.parametrize(
    "fields",
    [{"validation": -1}, {"validation": 50_000}, {"limit": -1}, {"limit": 49_001}, {"pad": -1}, {"pad": 17}],
)
def test_impossible_fields_are_refused(source: type, fields: dict[str, int]) -> None:
    with pytest.raises(DemiluneError, match=rf"{next(iter(fields))} = .* is not possible"):
        source(**fields)


def test_the_root_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    with pytest.raises(
        DemiluneError, match=rf"missing in {tmp_path}.*demilune data cifar10 --download --root {tmp_path}"
    ):
        CIFAR10().load()
    monkeypatch.delenv("DEMILUNE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DemiluneError, match=f"missing in {tmp_path}/.cache/demilune"):
        CIFAR100().load()
    assert status(CIFAR100()).startswith("cifar100: missing in ")


def test_an_incomplete_folder_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    _write(tmp_path, PY)
    (tmp_path / "py" / "two").unlink()
    with pytest.raises(DemiluneError, match="incomplete, it lacks two: delete it and run `demilune data fake"):
        read(FAKE, _here(tmp_path))
    assert read(FAKE, _here(_write(tmp_path, BIN))).source.endswith("bin")


def test_a_half_downloaded_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "py.tar.gz.part").write_bytes(b"x" * 1234)
    with pytest.raises(
        DemiluneError, match=r"half downloaded, .*part has 1,234 bytes so far: finish it with `demilune"
    ):
        read(FAKE, _here(tmp_path))


class _Exploit:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("echo owned",)


def _dump(**held: Any) -> bytes:
    return pickle.dumps(held, 2)


PIXELS, LABELS = _batch(0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PY["py/one"][:-500], "damaged or no such pickle"),
        (b"", "damaged or no such pickle"),
        (b"<html>not found</html>", "damaged or no such pickle"),
        (pickle.dumps([1, 2]), "a list instead of a dict"),
        (pickle.dumps(_Exploit()), r"it asks for (posix|nt)\.system"),
        (pickle.dumps({"data": collections.Counter()}), r"it asks for collections\.Counter"),
        (_dump(data=PIXELS[:-1], labels=LABELS), r"wrong shape: shape \(19, 3072\) instead of \(20, 3072\)"),
        (_dump(data=PIXELS[:, :300], labels=LABELS), r"wrong shape: shape \(20, 300\)"),
        (_dump(data=PIXELS.astype(np.float32), labels=LABELS), "instead of bytes"),
        (_dump(data="abc", labels=LABELS), "wrong shape: no array"),
        (_dump(labels=LABELS), "wrong shape: no array"),
        (_dump(data=PIXELS), "no list of 20 labels"),
        (_dump(data=PIXELS, labels=LABELS[:-1]), "no list of 20 labels"),
        (_dump(data=PIXELS, labels=[10, *LABELS[1:]]), "labels from 0 to 9"),
        (_dump(data=PIXELS, labels=[-1, *LABELS[1:]]), "labels from 0 to 9"),
        (_dump(data=PIXELS, labels=[0.5, *LABELS[1:]]), "labels from 0 to 9"),
    ],
    ids=_words,
)
@pytest.mark.parametrize("unverified", [False, True])
def test_bad_pickles_are_refused(
    tmp_path: Path, content: bytes, words: str, unverified: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path, {**PY, "py/one": content})
    with pytest.raises(
        DemiluneError, match=rf"py/one cannot be used: .*{words}.*demilune data fake --download"
    ) as caught:
        read(FAKE, _here(tmp_path, unverified=unverified))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""  # nothing of the pickle ran


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BIN["bin/one.bin"][:-1], "61,459 bytes instead of 20 records of 3073"),
        (b"\x0a" + BIN["bin/one.bin"][1:], "the label 10, and labels are from 0 to 9"),
    ],
    ids=_words,
)
def test_bad_binary_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    _write(tmp_path, {**BIN, "bin/one.bin": content})
    with pytest.raises(DemiluneError, match=rf"one.bin cannot be used: .*{words}"):
        read(FAKE, _here(tmp_path))


@pytest.mark.parametrize(("files", "kind"), [(PY, "md5"), (BIN, "sha1")])
def test_other_files_are_used_only_on_request(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    name = next(iter(files))
    _write(tmp_path, {**files, name: _pickled(9) if kind == "md5" else _binary(9)})
    with pytest.raises(DemiluneError, match=rf"{name} has the {kind} .*, the published file .*--data.unverified true"):
        read(FAKE, _here(tmp_path))
    data = read(FAKE, _here(tmp_path, unverified=True))
    assert not data.official and kind in data.source and len(data.sha256) == 4
    assert survey(FAKE, _here(tmp_path)).startswith("fake: present, not the official files")


def test_repacked_files_with_the_published_content_are_verified(tmp_path: Path) -> None:
    known = replace(FAKE, sha256=read(FAKE, _here(_write(tmp_path, PY))).sha256)
    _write(tmp_path, {"py/one": _dump(data=PIXELS, labels=LABELS)})
    assert read(known, _here(tmp_path)).official
    _write(tmp_path, {"py/one": _pickled(9)})
    with pytest.raises(DemiluneError, match="not the official files"):
        read(known, _here(tmp_path))


def test_pickles_of_python_2_are_read() -> None:
    """As Python 2 wrote them: text as bytes, NumPy's old module, the type's flags as numbers."""
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff"
        b"\xffK\x00tb\x89U\x06\x01\x02\x03\xfd\xfe\xfftbU\x06labels](K\x01K\x02eu."
    )
    held = unpickle(content)
    assert held["data"].tolist() == [[1, 2, 3], [253, 254, 255]] and held["labels"] == [1, 2]


# Downloading


@dataclass
class _Server:
    base: str
    content: bytes
    ranges: bool = True
    stop_after: int | None = None
    status: int = 200
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("no_proxy", "*")
    with _serve() as made:
        yield made


@contextmanager
def _serve() -> Iterator[_Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            if begin and begin >= len(state.content):
                self.send_error(416)
                return
            body = state.content[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if state.stop_after is None else body[: state.stop_after])

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state = _Server(f"http://127.0.0.1:{http.server_port}", ARCHIVE)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


MD5 = hashlib.md5(ARCHIVE).hexdigest()


def test_a_download_is_verified_and_reported(tmp_path: Path, server: _Server) -> None:
    seen: list[tuple[int, int]] = []
    path = tmp_path / "new" / "file"
    fetch(f"{server.base}/file", path, MD5, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == ARCHIVE and [each.name for each in path.parent.iterdir()] == ["file"]
    assert seen[-1] == (len(ARCHIVE), len(ARCHIVE)) and seen == sorted(seen)
    fetch(f"{server.base}/file", path, MD5)
    assert len(server.asked) == 1  # it was there


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_resumed(tmp_path: Path, server: _Server, ranges: bool) -> None:
    server.stop_after, server.ranges = 1000, ranges
    path = tmp_path / "file"
    with pytest.raises(DemiluneError, match=f"stopped at 1,000 of {len(ARCHIVE):,} bytes: run it again to resume"):
        fetch(f"{server.base}/file", path, MD5)
    assert not path.exists() and (tmp_path / "file.part").stat().st_size == 1000
    server.stop_after = None
    seen: list[tuple[int, int]] = []
    fetch(f"{server.base}/file", path, MD5, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == ARCHIVE and server.asked == [None, "bytes=1000-"]
    assert seen[-1] == (len(ARCHIVE), len(ARCHIVE))


def test_a_whole_part_needs_only_its_verification(tmp_path: Path, server: _Server) -> None:
    (tmp_path / "file.part").write_bytes(ARCHIVE)
    fetch(f"{server.base}/file", tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_wrong_content_is_deleted_and_refused(tmp_path: Path, server: _Server) -> None:
    (tmp_path / "file.part").write_bytes(b"something else")
    with pytest.raises(DemiluneError, match=rf"has the md5 .*, expected {MD5}: it was deleted"):
        fetch(f"{server.base}/file", tmp_path / "file", MD5)
    assert list(tmp_path.iterdir()) == []
    fetch(f"{server.base}/file", tmp_path / "file", MD5)


def test_a_damaged_file_in_the_way_is_named_and_left(tmp_path: Path, server: _Server) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(DemiluneError, match=r"is there, but damaged.*delete it"):
        fetch(f"{server.base}/file", tmp_path / "file", MD5)
    assert (tmp_path / "file").read_bytes() == b"mine" and server.asked == []


def test_a_refusing_server_and_no_server_are_named(tmp_path: Path, server: _Server) -> None:
    server.status = 404
    with pytest.raises(DemiluneError, match="answers 404 Not Found; check the address"):
        fetch(f"{server.base}/file", tmp_path / "file", MD5)
    with pytest.raises(DemiluneError, match=r"stopped after 0 bytes .*run it again to resume"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5)
    for url in ("file:///etc/passwd", "kriz"):
        with pytest.raises(DemiluneError, match="must begin with https://"):
            fetch(url, tmp_path / "file", MD5)


def test_a_full_disk_keeps_the_part_and_says_so(
    tmp_path: Path, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", *rest: Full() if mode == "r+b" else real(path, mode, *rest)
    )
    with pytest.raises(DemiluneError, match=r"the disk is full at .*file.part: free some space and run it again"):
        fetch(f"{server.base}/file", tmp_path / "file", MD5)
    assert not (tmp_path / "file").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path, server: _Server) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(DemiluneError, match=r"cannot write .*give another folder"):
        fetch(f"{server.base}/file", tmp_path / "taken" / "file", MD5)


# Unpacking


def _archive(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_an_archive_is_unpacked_at_once_and_only_what_is_wanted(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "a.tar.gz", ARCHIVE)
    unpack(archive, tmp_path, list(PY))
    assert {each.name for each in (tmp_path / "py").iterdir()} == {"one", "two", "test"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tar.gz", "py"]
    with pytest.raises(DemiluneError, match="is there already: move it away or delete it"):
        unpack(archive, tmp_path, list(PY))


def _linked() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        entry = tarfile.TarInfo("py/one")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_tar({**PY, "../outside": b"x"}), "'../outside', which is no plain file"),
        (_tar({**PY, "py/../../outside": b"x"}), "no plain file below its folder: refused"),
        (_tar({**PY, "/tmp/outside": b"x"}), "no plain file below its folder: refused"),
        (_linked(), "'py/one', which is no plain file"),
        (_tar({name: PY[name] for name in list(PY)[:2]}), "lacks py/test"),
        (ARCHIVE[: len(ARCHIVE) // 2], "is damaged .*delete it and run it again"),
        (b"no archive", "is damaged"),
        (gzip.compress(b"no archive"), "is damaged"),
    ],
    ids=_words,
)
def test_bad_archives_leave_nothing(tmp_path: Path, content: bytes, words: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = _archive(root / "a.tar.gz", content)
    with pytest.raises(DemiluneError, match=words):
        unpack(archive, root, list(PY))
    assert [each.name for each in root.iterdir()] == ["a.tar.gz"]
    assert [each.name for each in tmp_path.iterdir()] == ["root"]


def test_a_disk_that_fills_while_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = _archive(tmp_path / "a.tar.gz", ARCHIVE)
    monkeypatch.setattr(tarfile.TarFile, "makefile", full)
    with pytest.raises(DemiluneError, match="the disk is full"):
        unpack(archive, tmp_path, list(PY))
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar.gz"]


# All together


def test_download_then_load(tmp_path: Path, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _here(tmp_path / "new")
    assert survey(FAKE, data).startswith("fake: missing")
    assert obtain(FAKE, data, f"{server.base}/", None) == tmp_path / "new" / "py"
    assert read(FAKE, data).official
    assert survey(FAKE, data).startswith("fake: present and verified")
    assert obtain(FAKE, data, server.base, None) == tmp_path / "new" / "py"
    assert len(server.asked) == 1
    monkeypatch.setenv("DEMILUNE_MIRROR", server.base)
    obtain(FAKE, _here(tmp_path / "other"), "", None)
    assert len(server.asked) == 2


def test_download_leaves_other_files_alone(tmp_path: Path, server: _Server) -> None:
    _write(tmp_path, {**PY, "py/one": _pickled(9)})
    with pytest.raises(DemiluneError, match="not the official files"):
        obtain(FAKE, _here(tmp_path, unverified=True), server.base, None)
    assert server.asked == [] and (tmp_path / "py" / "one").read_bytes() == _pickled(9)


# The real files


@pytest.mark.skipif(
    not os.environ.get("DEMILUNE_TEST_DATA"),
    reason="needs $DEMILUNE_TEST_DATA, a folder with the real CIFAR files",
)
@pytest.mark.parametrize(("source", "upstream"), [(CIFAR10, UPSTREAM10), (CIFAR100, UPSTREAM100)])
def test_the_real_files(source: type[CIFAR10] | type[CIFAR100], upstream: Upstream) -> None:
    data = source(root=os.environ["DEMILUNE_TEST_DATA"], unverified=True).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (49_000, 1_000, 10_000)
    assert len(data.classes) == len(set(data.classes)) == int(data.test.labels.max()) + 1
    assert data.test.labels.bincount().unique().tolist() == [10_000 // len(data.classes)]
    pixels = torch.cat([data.train.images, data.validation.images]).transpose(0, 1).flatten(1).double() / 255
    assert pixels.mean(1).tolist() == pytest.approx(upstream.mean, abs=1e-4)
    assert pixels.std(1, correction=0).tolist() == pytest.approx(upstream.std, abs=1e-4)
