"""ImageNette's folders, good and bad; squares, crops, what is kept of them, and the download."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import refused
from demilune.__main__ import main
from demilune.core.random import Stream
from demilune.data import SUPPLIES, Dataset, Folder, ImageNette, Split, augment, pictures
from demilune.data.imagenette import CLASSES, FOLDERS, download
from demilune.data.pictures import Decoder
from demilune.errors import DemiluneError
from demilune.evaluate.assess import Request, chosen_images
from demilune.train import draw
from serving import serving

SMALL = {"size": 16, "crop": 12, "validation": 10}


def _picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    levels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3))
    return Image.fromarray(levels.astype(np.uint8))


def _paint(folder: Path, train: int = 4, val: int = 2) -> Path:
    """Write noise, so that every image is another, without loss (the files are named as the real ones)."""
    seed = 0
    for part, count in (("train", train), ("val", val)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                _picture(seed).save(folder / part / name / f"{name}_{number}.JPEG", format="png")
                seed += 1
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DEMILUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "WORTH_KEEPING", 0)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _paint(tmp_path / "data" / "imagenette2-160")
    return tmp_path / "data"


def _load(root: Path, **fields: Any) -> Dataset:
    return ImageNette(str(root), **{**SMALL, **fields}).load()


def test_squares_are_trained_on_and_centres_judged(root: Path) -> None:
    data = _load(root)
    assert data.name == "imagenette" and data.shape == (3, 12, 12) and not data.official
    assert data.classes[:3] == ("tench", "English springer", "cassette player") and len(data.classes) == 10
    assert "40 training and 20 test images" in data.source
    assert tuple(data.train.images.shape) == (30, 3, 16, 16) and data.flip and data.pad == 0
    assert tuple(data.validation.images.shape) == (10, 3, 12, 12) and tuple(data.test.images.shape) == (20, 3, 12, 12)
    assert data.validation.labels.tolist() == list(range(10))  # in proportion
    for part, first, per, edge in ((data.train, 0, 4, 0), (data.validation, 0, 4, 2), (data.test, 40, 2, 2)):
        for image, label, place in zip(part.images.numpy(), part.labels.tolist(), part.ids.tolist(), strict=True):
            pixels = np.asarray(_picture(first + place)).transpose(2, 0, 1)
            assert np.array_equal(image, pixels[:, edge : 16 - edge, edge : 16 - edge])
            assert label == place // per


def test_limit_and_validation_are_in_proportion_and_change_no_fingerprint(root: Path) -> None:
    data = _load(root, limit=20)
    assert data.train.labels.bincount().tolist() == [2] * 10
    assert data.sha256 == _load(root, validation=0, crop=8).sha256
    assert not set(data.train.ids.tolist()) & set(data.validation.ids.tolist())


@pytest.mark.parametrize("name", FOLDERS)
def test_every_release_is_found_and_so_is_the_folder_itself(tmp_path: Path, name: str) -> None:
    folder = _paint(tmp_path / "data" / name)
    assert _load(tmp_path / "data").source.startswith(str(folder))
    assert _load(folder).source.startswith(str(folder))


@pytest.mark.parametrize(
    ("size", "scaled"), [((16, 16), (16, 16)), ((21, 16), (21, 16)), ((16, 33), (16, 33)), ((40, 20), (32, 16))]
)
def test_a_shorter_side_of_the_right_length_keeps_its_pixels(
    tmp_path: Path, size: tuple[int, int], scaled: tuple[int, int]
) -> None:
    image = _picture(0, size)
    image.save(tmp_path / "a.png")
    whole = np.asarray(image if size == scaled else image.resize(scaled, Image.Resampling.BICUBIC))
    left, top = (scaled[0] - 16) // 2, (scaled[1] - 16) // 2
    found = Decoder("x", 16, zoom=False).read(tmp_path / "a.png")
    assert np.array_equal(found, whole[top : top + 16, left : left + 16].transpose(2, 0, 1))


# Crops


def test_every_window_occurs_and_no_other() -> None:
    n, side, size, pad = 4000, 5, 4, 1
    image = torch.arange(1, side * side + 1, dtype=torch.uint8).reshape(1, 1, side, side)
    rng = Stream.of(0, "augment").images(torch.arange(n))
    made = augment(image.expand(n, 1, side, side), rng, pad, False, (size, size))
    padded = torch.nn.functional.pad(image, (pad,) * 4)[0, 0]
    corners = range(side + 2 * pad - size + 1)
    windows = [padded[r : r + size, c : c + size] for r in corners for c in corners]
    hits = torch.stack([(made[:, 0] == window).flatten(1).all(1) for window in windows])
    assert (hits.sum(0) == 1).all() and len(windows) == 16
    assert (hits.sum(1) - n / 16).abs().max() < 5 * (n / 16) ** 0.5


def test_a_window_of_the_whole_size_draws_what_it_always_drew() -> None:
    images = torch.arange(12 * 3 * 8 * 6).reshape(12, 3, 8, 6).remainder(251).to(torch.uint8)
    rng = Stream.of(0, "augment").images(torch.arange(12))
    made = augment(images, rng, 2, True)
    assert torch.equal(made, augment(images, rng, 2, True, (8, 6)))
    corner, mirrored = rng.integers("crop", (12, 2), 0, 5), rng.integers("flip", (12, 1), 0, 2)
    padded = torch.nn.functional.pad(images, (2,) * 4)
    for row in range(12):
        r, c = corner[row].tolist()
        window = padded[row, :, r : r + 8, c : c + 6]
        assert torch.equal(made[row], window.flip(2) if mirrored[row] else window)
    assert augment(images, rng, 0, False, (8, 6)) is images
    assert tuple(augment(images, rng, 0, True, (5, 2)).shape) == (12, 3, 5, 2)


def test_training_draws_crops_of_the_square_and_an_evaluation_of_it_the_centre(root: Path) -> None:
    data = _load(root)
    batch = draw(data, torch.arange(10), 0, Stream.of(0))
    assert tuple(batch.x.shape) == (10, 3, 12, 12)
    split = data.train.take(torch.arange(10))
    cropped = augment(split.images, Stream.of(0, "augment").images(split.ids), 0, True, (12, 12))
    assert torch.equal((batch.x * 255).round().to(torch.uint8), cropped)
    judged = chosen_images(data, Request(split="train"))
    assert torch.equal(judged.images, data.train.images[:, :, 2:14, 2:14])
    assert torch.equal(judged.ids, data.train.ids)
    assert torch.equal(chosen_images(data, Request()).images, data.test.images)


def test_the_centre_of_images_of_the_right_size_is_themselves() -> None:
    images = torch.arange(2 * 7 * 6, dtype=torch.uint8).reshape(2, 1, 7, 6)
    split = Split(images, torch.zeros(2), torch.arange(2))
    assert torch.equal(split.centred(7, 6).images, images)
    assert torch.equal(split.centred(4, 6).images, images[:, :, 1:5])
    assert torch.equal(split.centred(7, 3).images, images[:, :, :, 1:4])


# What is kept


def _kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(Decoder, "read", fail)


def test_decoded_images_are_kept_and_read_the_next_time(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(root)
    assert len(_kept(cache)) == 2 and all(path.suffix == ".npz" for path in _kept(cache))
    with monkeypatch.context() as patched:
        _blind(patched)
        again = _load(root, crop=8)  # crops are taken afterwards
    assert torch.equal(again.train.images, first.train.images) and again.sha256 == first.sha256
    assert len(_kept(cache)) == 2
    path = next((root / "imagenette2-160" / "train").glob("*/*_0.JPEG"))
    _picture(99).save(path, format="png")
    os.utime(path, ns=(1, 1))  # another time, were the size the same
    changed = _load(root)
    assert changed.sha256["train_images"] != first.sha256["train_images"]
    assert changed.sha256["test_images"] == first.sha256["test_images"] and len(_kept(cache)) == 3
    _load(root, size=14)
    assert len(_kept(cache)) == 5


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _other(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, images=np.zeros((3, 3, 16, 16), np.uint8))


def _floats(path: Path) -> None:
    with np.load(path) as held:
        images = held["images"].astype(np.float32)
    with path.open("wb") as file:
        np.savez(file, images=images)


def _pickle(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, images=np.array([{}], dtype=object))


def _raw(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images", "hello")


def _python2(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        content = file.read("images.npy")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", content.replace(b", 3, 16, 16), ", b", 3, 16L,16), ", 1))


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _raw,
        _python2,
        _other,
        _floats,
        _pickle,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b"no zip file"),
    ],
)
def test_what_was_kept_is_not_trusted_when_it_is_damaged(
    root: Path, cache: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(root)
    for path in _kept(cache):
        damage(path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        again = _load(root)
    assert again.sha256 == first.sha256 and heard == []
    _blind(monkeypatch)
    assert _load(root).sha256 == first.sha256  # and it was written anew
    assert len(_kept(cache)) == 2


def test_a_place_that_cannot_be_written_keeps_nothing(
    root: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _load(root)
    (tmp_path / "taken").write_text("a file where a folder should be")
    monkeypatch.setenv("DEMILUNE_CACHE", str(tmp_path / "taken"))
    assert _load(root).sha256 == first.sha256

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("DEMILUNE_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(np, "savez", full)
    assert _load(root).sha256 == first.sha256
    assert _kept(tmp_path / "full") == []


def test_a_cache_in_a_home_that_is_not_known_keeps_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _load(root)
    monkeypatch.setenv("DEMILUNE_CACHE", "~nosuchuser/x")
    assert _load(root).sha256 == first.sha256


def test_few_images_are_not_kept(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "WORTH_KEEPING", 1 << 25)
    _load(root)
    assert not cache.exists()


def test_a_folder_of_ones_own_is_kept_too(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Folder(str(root / "imagenette2-160" / "train"), size=8)
    first = own.load()
    assert len(_kept(cache)) == 1
    _blind(monkeypatch)
    assert own.load().sha256 == first.sha256


# What is wrong


def _remove(path: Path) -> None:
    for each in sorted(path.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda at: _remove(at / "val"), r"is incomplete, it has no folder val: delete it and run `demilune data ima"),
        (lambda at: _remove(at / "train"), "is incomplete, it has no folder train"),
        (lambda at: _remove(at / "val" / "n03028079"), r"val lacks n03028079 \(church\): delete"),
        (lambda at: _remove(at / "train" / "n01440764"), r"train lacks n01440764 \(tench\): delete"),
        (lambda at: (at / "train" / "n99999999").mkdir(), "has n99999999, which ImageNette has not"),
        (lambda at: (_remove(at / "val" / "n01440764"), (at / "val" / "n01440764").mkdir()), "holds no images"),
        (
            lambda at: (at / "val" / "n01440764" / "n01440764_1.JPEG").write_bytes(b"no picture"),
            "imagenette: .*n01440764_1.JPEG cannot be read as an image",
        ),
        (
            lambda at: _cut(at / "train" / "n03888257" / "n03888257_3.JPEG"),
            "imagenette: .*n03888257_3.JPEG cannot be read as an image",
        ),
    ],
)
def test_broken_folders_are_refused(root: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(root / "imagenette2-160")
    with pytest.raises(DemiluneError, match=words) as caught:
        _load(root)
    assert "\n" not in str(caught.value)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_what_is_missing_or_half_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMILUNE_DATA", str(tmp_path))
    with pytest.raises(DemiluneError, match=rf"imagenette: missing in {tmp_path}: .*imagenette2-160.*--download"):
        ImageNette().load()
    (tmp_path / "imagenette2-160.tgz.part").write_bytes(b"x" * 1234)
    with pytest.raises(DemiluneError, match=r"half downloaded, .*part has 1,234 bytes"):
        ImageNette().load()
    assert "half downloaded" in SUPPLIES["imagenette"].status(ImageNette())


@pytest.mark.parametrize(
    "fields",
    [{"size": 7}, {"size": 513}, {"crop": 3}, {"crop": 161}, {"pad": 65}, {"pad": -1}, {"validation": 9469},
     {"validation": -1}, {"limit": 8970}, {"limit": -1}],
)  # fmt: skip
def test_impossible_fields_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(DemiluneError, match=rf"imagenette: {next(iter(fields))} = .* is not possible"):
        ImageNette(**fields)


def test_more_validation_than_a_subset_has_is_refused(root: Path) -> None:
    with pytest.raises(DemiluneError, match=r"validation = 40 is not possible: it is from 0 to 39"):
        _load(root, validation=40)
    with pytest.raises(DemiluneError, match=r"limit = 31 is not possible: it is from 1 to 30"):
        _load(root, limit=31)


# Downloading


def _archive(folder: Path, **more: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(folder, "imagenette2-160")
        for name, content in {"elsewhere/file": b"unwanted", **more}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_the_archive_is_fetched_and_all_below_its_folder_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    content, new = _archive(root / "imagenette2-160"), tmp_path / "new"
    data = ImageNette(str(new), **SMALL)
    with serving({"imagenette2-160.tgz": content}) as server:
        words = ["data", "imagenette", "--download", "--root", str(new), "--url", server.base]
        refused(words, capsys, "expected e793b78cc4c9e9a4ccc0c1155377a412")
        assert list(new.iterdir()) == []
        monkeypatch.setattr("demilune.data.imagenette.MD5", hashlib.md5(content).hexdigest())
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"verified and unpacked: {new / 'imagenette2-160'}" in out and "40 training and 20 test images" in out
        assert main(words) == 0
        assert server.asked == ["imagenette2-160.tgz"] * 2
    assert data.load().sha256 == _load(root).sha256
    assert {each.name for each in new.iterdir()} == {"imagenette2-160", "imagenette2-160.tgz"}
    _remove(tmp_path / "new" / "imagenette2-160" / "val")
    with pytest.raises(DemiluneError, match="has no folder val"):
        download(data)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"../outside": b"x"}, "'../outside', which is no plain file below its folder: refused"),
        ({"imagenette2-160/../../outside": b"x"}, "no plain file below its folder: refused"),
    ],
)
def test_an_archive_that_reaches_outside_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, bytes], words: str
) -> None:
    content = _archive(root / "imagenette2-160", **more)
    new = tmp_path / "new"
    new.mkdir()
    (new / "imagenette2-160.tgz").write_bytes(content)
    monkeypatch.setattr("demilune.data.imagenette.MD5", hashlib.md5(content).hexdigest())
    with pytest.raises(DemiluneError, match=words):
        download(ImageNette(str(new)))
    assert [each.name for each in new.iterdir()] == ["imagenette2-160.tgz"]


def test_an_archive_without_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    content = _archive(tmp_path / "empty")
    (tmp_path / "imagenette2-160.tgz").write_bytes(content)
    monkeypatch.setattr("demilune.data.imagenette.MD5", hashlib.md5(content).hexdigest())
    with pytest.raises(DemiluneError, match=r"tgz lacks imagenette2-160/: delete it"):
        download(ImageNette(str(tmp_path)))


@pytest.mark.skipif(
    not (Path(os.environ.get("DEMILUNE_TEST_DATA", "/nowhere")) / "imagenette2-160").is_dir(),
    reason="needs $DEMILUNE_TEST_DATA, a folder with the real images in imagenette2-160",
)
def test_the_real_images() -> None:
    data = ImageNette(os.environ["DEMILUNE_TEST_DATA"], limit=500).load()
    assert data.shape == (3, 128, 128) and tuple(data.train.images.shape) == (500, 3, 160, 160)
    assert len(data.train.labels.unique()) == len(data.test.labels.unique()) == 10
    assert 0.4 < float(data.test.pixels(slice(100)).mean()) < 0.6
