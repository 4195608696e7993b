"""Splits, digits, and folders of a user's own images."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import refused
from demilune.data import CORRUPTED, DATA, SUPPLIES, Data, Dataset, Digits, Folder, Split
from demilune.data.pictures import Decoder
from demilune.data.split import fingerprint, spread, statistics
from demilune.errors import DemiluneError


def _ids(data: Dataset) -> list[set[int]]:
    return [set(part.ids.tolist()) for part in (data.train, data.validation, data.test)]


def test_pixels_are_exact_and_rows_go_together() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    split = Split(images, torch.tensor([3, 1, 0, 2]), torch.tensor([10, 11, 12, 13]))
    pixels = split.pixels(slice(None))
    assert pixels.dtype == torch.float32
    assert np.array_equal(pixels.flatten().numpy(), np.arange(256, dtype=np.float32) / np.float32(255))
    assert torch.equal((pixels * 255).round().to(torch.uint8), images)
    some = split.take(torch.tensor([2, 0]))
    assert len(some) == 2 and some.ids.tolist() == [12, 10] and some.labels.tolist() == [0, 3]
    assert torch.equal(some.pixels(slice(None)), split.pixels(torch.tensor([2, 0])))
    assert torch.equal(split.to("cpu").images, images)


def test_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (1500, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = statistics(images)
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)
    assert statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


def test_spread_keeps_classes_in_proportion_from_the_beginning() -> None:
    labels = np.repeat(np.array([0, 1, 2]), [300, 60, 6])
    chosen = spread(labels)
    assert sorted(chosen.tolist()) == list(range(366))
    assert np.bincount(labels[chosen[:61]]).tolist() == [50, 10, 1]


def test_fingerprints_are_of_height_width_channel_bytes() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(1, 3, 2, 4)
    labels = np.array([7])
    made = fingerprint((images, labels), (images[:, :1], labels), 10)
    assert set(made) == {"train_images", "train_labels", "test_images", "test_labels"}
    import hashlib

    assert made["train_images"] == hashlib.sha256(images[0].transpose(1, 2, 0).tobytes()).hexdigest()
    assert made["test_labels"] == hashlib.sha256(b"\7").hexdigest()


def test_the_table_of_sources_and_their_documented_fields() -> None:
    assert list(DATA) == ["digits", "cifar10", "cifar100", "svhn", "mnist", "imagenette", "folder"]
    for source in DATA.values():
        assert issubclass(source, Data)
        for name in inspect.signature(source).parameters:
            assert f"    {name}: " in (source.__doc__ or ""), f"{source.__name__}.{name}"


def test_digits_are_always_the_same() -> None:
    data = Digits().load()
    assert (len(data.train), len(data.validation), len(data.test)) == (1097, 200, 500)
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789") and data.official
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    assert set.union(*_ids(data)) == set(range(1797)) and sum(map(len, _ids(data))) == 1797
    assert int(data.test.labels.bincount().min()) >= 48 and int(data.test.labels.bincount().max()) <= 51
    assert int(data.train.images.max()) == 255 and len(data.train.images.unique()) == 17
    assert data.sha256["train_images"].startswith("61035f87") and data.sha256["test_labels"].startswith("949d38c4")
    assert data.mean == pytest.approx((0.3052,), abs=1e-4) and data.std == pytest.approx((0.3763,), abs=1e-4)


def test_the_test_digits_do_not_depend_on_the_validation_digits() -> None:
    data = Digits(validation=0).load()
    assert len(data.validation) == 0
    assert torch.equal(data.test.ids, Digits().load().test.ids)
    assert torch.equal(data.to("cpu").test.ids, data.test.ids)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Digits(validation=-1),
        lambda: Digits(test=0),
        lambda: Digits(validation=1000, test=1000),
        lambda: Digits(pad=5),
        lambda: Folder("x", size=2),
        lambda: Folder("x", pad=17),
        lambda: Folder("x", validation=-0.1),
        lambda: Folder("x", test=0),
        lambda: Folder("x", validation=0.5, test=0.5),
        lambda: Folder("x", test=float("nan")),
        lambda: Folder("x", validation=float("inf")),
        lambda: Folder("x", size=10**400),
        lambda: Digits(validation=10**400),
    ],
)
def test_impossible_fields_are_refused(make: object) -> None:
    with pytest.raises(DemiluneError, match="not possible"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", DATA)
def test_wrong_types_are_refused(name: str) -> None:
    wrong: dict[str, Any] = {"root": [], "size": "8", "flip": "x", "pad": 1.5, "unverified": 1, "extra": 5}
    number = 10**400 if name == "folder" else 1.5
    fields = inspect.signature(DATA[name]).parameters
    for field, value in {**wrong, "validation": number, "limit": "x", "test": "x", "crop": True}.items():
        if field in fields:
            with pytest.raises(DemiluneError, match=rf"^{field} = .*: a value of type .* was expected$"):
                DATA[name](**{field: value})


@pytest.mark.parametrize("name", SUPPLIES)
def test_a_home_that_is_not_known_is_refused(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("~nosuchuser/x: the home folder ~nosuchuser is not known: give the whole path, here or in $DEMILUNE_DATA",)
    for more in ([], ["--download"]):
        refused(["data", name, "--root", "~nosuchuser/x", *more], capsys, *words)
    with pytest.raises(DemiluneError, match="~nosuchuser"):
        kinds = {**DATA, **{f"{of}-c": kind for of, kind in CORRUPTED.items()}}
        kinds[name](root="~nosuchuser/x").load()
    monkeypatch.setenv("DEMILUNE_DATA", "~nosuchuser/x")
    refused(["data", name], capsys, *words)
    with pytest.raises(DemiluneError, match="~nosuchuser"):
        Folder("~nosuchuser/x").load()


def _paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(10):
        _paint(tmp_path / "cat" / f"{i}.png", (10 * i, 0, 0))
        _paint(tmp_path / "dog" / f"{i}.PNG", (0, 10 * i, 255))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "cat" / ".hidden.png").write_text("not an image either")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_folder_of_classes_is_split(pictures: Path) -> None:
    data = Folder(str(pictures), size=8).load()
    assert data.classes == ("cat", "dog") and data.shape == (3, 8, 8) and not data.official
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert set.union(*_ids(data)) == set(range(20))
    assert data.test.labels.bincount().tolist() == [2, 2] and data.validation.labels.bincount().tolist() == [
        1,
        1,
    ]
    for part in (data.train, data.validation, data.test):
        for image, label, place in zip(part.images, part.labels, part.ids, strict=True):
            level = 10 * (int(place) % 10)
            assert image[:, 0, 0].tolist() == ([level, 0, 0] if label == 0 else [0, level, 255])
    again = Folder(str(pictures), size=8).load()
    assert again.sha256 == data.sha256 and _ids(again) == _ids(data)
    assert data.mean[2] == pytest.approx(0.5) and data.std[2] == pytest.approx(0.5)


def test_train_and_test_folders_stay_apart(tmp_path: Path) -> None:
    for i in range(4):
        _paint(tmp_path / "train" / "a" / f"{i}.png", (1, 1, 1))
        _paint(tmp_path / "train" / "b" / f"{i}.png", (2, 2, 2))
    _paint(tmp_path / "test" / "b" / "0.jpg", (200, 200, 200))
    data = Folder(str(tmp_path), size=4, pad=1, validation=0.25, grey=True).load()
    assert data.shape == (1, 4, 4)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 2, 1)
    assert data.test.labels.tolist() == [1] and data.test.images.unique().tolist() == [200]


def test_images_are_turned_upright_and_cropped_in_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255  # the centre is white
    wide[0, 4:12] = (255, 0, 0)  # its first row red
    for name in ("a", "b"):
        for i in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            turned = Image.Exif()
            turned[274] = 3 if i == 1 else 1  # 3: the camera was upside down
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png", exif=turned)
    data = Folder(str(tmp_path), size=8, validation=0, test=0.34).load()
    for part in (data.train, data.test):
        for image, place in zip(part.images, part.ids, strict=True):
            row = 7 if int(place) % 3 == 1 else 0
            assert image[:, row].unique(dim=1).flatten().tolist() == [255, 0, 0]
            assert int(image.sum()) == 255 * (3 * 64 - 2 * 8)


def test_palettes_with_transparency_and_greys_become_rgb(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(3):
            _paint(tmp_path / name / f"{i}.png", (0, 0, 0))
    Image.new("L", (8, 8), 77).save(tmp_path / "a" / "0.png")
    Image.new("P", (8, 8), 0).save(tmp_path / "a" / "1.png", transparency=b"\x80")
    Image.new("RGBA", (8, 8), (9, 9, 9, 9)).save(tmp_path / "a" / "2.png")
    assert Folder(str(tmp_path), size=8, validation=0).load().shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda root: (root / "cat" / "3.png").write_bytes(b"no picture"),
            "3.png cannot be read as an image",
        ),
        (lambda root: _truncate(root / "cat" / "3.png"), "3.png cannot be read as an image"),
        (lambda root: Image.new("I;16", (8, 8)).save(root / "cat" / "3.png"), "more than 8 bits"),
        (lambda root: (root / "emu").mkdir(), "emu holds no images"),
        (lambda root: _misplaced(root), r"test/dog is a file, where the folder of the class dog was expected: take it"),
        (lambda root: (root / "train").mkdir(), "both train and test"),
        (
            lambda root: _paint(root / "emu" / "0.png", (0, 0, 0)) or _paint(root / "fox" / "0.png", (0, 0, 0)),
            "",
        ),
    ],
)
def test_broken_folders_are_refused(pictures: Path, damage: object, words: str) -> None:
    damage(pictures)  # type: ignore[operator]
    if words:
        with pytest.raises(DemiluneError, match=words):
            Folder(str(pictures), size=8).load()
    else:
        with pytest.raises(DemiluneError, match="left to train on"):
            Folder(str(pictures), size=8, validation=0.4, test=0.4).load()


def _misplaced(root: Path) -> None:
    (root / "train").mkdir()
    (root / "cat").rename(root / "train" / "cat")
    (root / "dog").rename(root / "train" / "dog")
    _paint(root / "test" / "cat" / "0.png", (0, 0, 0))
    (root / "test" / "dog").write_text("a file where a folder should be")


def _bomb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the images have 120


def _exif(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (12, 10)).save(path, format="jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x09\0\0\0")


@pytest.mark.parametrize("damage", [_bomb, _exif])
def test_what_pillow_warns_of_is_read_without_a_warning(
    pictures: Path, damage: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(pictures / "cat" / "3.png", monkeypatch)
    with pytest.warns(UserWarning if damage is _exif else Image.DecompressionBombWarning), warnings.catch_warnings():
        warnings.simplefilter("always")
        Decoder("x", 8).read(pictures / "cat" / "3.png")
    assert len(Folder(str(pictures), size=8).load().train) == 14
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [(1, 12_000), (12_000, 1), (2, 12_000)])
def test_a_strip_is_never_enlarged_as_a_whole(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    made: list[int] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, to, *more: (made.append(max(to)), resize(image, to, *more))[1]
    )
    found = Decoder("x", 160, zoom=False).read(tmp_path / "a.png")
    assert found.shape == (3, 160, 160) and made == [64 * 160]
    assert found.reshape(3, -1).T.tolist() == [[1, 2, 3]] * 160**2


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def test_a_folder_that_is_missing_empty_or_of_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemiluneError, match="is no folder"):
        Folder(str(tmp_path / "nowhere")).load()
    with pytest.raises(DemiluneError, match="at least 2"):
        Folder(str(tmp_path)).load()
    _paint(tmp_path / "a" / "0.png", (0, 0, 0))
    with pytest.raises(DemiluneError, match="at least 2"):
        Folder(str(tmp_path)).load()
    _paint(tmp_path / "b" / "0.png", (0, 0, 0))
    with pytest.raises(DemiluneError, match="too few"):
        Folder(str(tmp_path)).load()


def test_a_class_that_only_the_test_has_is_refused(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/c"):
        _paint(tmp_path / name / "0.png", (0, 0, 0))
    with pytest.raises(DemiluneError, match="has the classes c"):
        Folder(str(tmp_path)).load()
