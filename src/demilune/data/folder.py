"""A user's own images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from demilune.data.split import Bytes, Data, Dataset, Indices, Split, fingerprint, spread, statistics
from demilune.errors import DemiluneError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@final
@dataclass(frozen=True, slots=True)
class Folder(Data):
    """Your own images: root/train/<class>/*.png and root/test/<class>/*.png, or root/<class>/*.png alone.

    Of the second kind a fixed share is held out for the test, with the classes in proportion. Images (png,
    jpg, bmp, gif, webp, tif, ppm) are turned upright, and their largest centred square is resized to size.
    Hidden files and other kinds are ignored.

    root: folder that holds train and test, or the classes
    size: side of the square images that are made, in pixels
    validation: share of the images (of those in train) taken out to choose the best checkpoint on
    test: share of the images held out for the test, where root has no folders train and test
    grey: one channel instead of three
    pad: largest random shift of a training image, in pixels
    flip: mirror training images at random
    """

    root: str = ""
    size: int = 32
    validation: float = 0.1
    test: float = 0.2
    grey: bool = False
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if not 4 <= self.size <= 1024:
            raise DemiluneError(f"folder: size = {self.size} is not possible: it is from 4 to 1024 pixels")
        if not 0 <= self.pad <= self.size // 2:
            raise DemiluneError(
                f"folder: pad = {self.pad} is not possible: it is from 0 to {self.size // 2}, half an image"
            )
        if not (self.validation >= 0 and self.test > 0 and self.validation + self.test < 1):
            raise DemiluneError(
                f"folder: validation = {self.validation:g} and test = {self.test:g} are not possible: they "
                "are shares (0.1 is a tenth), test above 0, and together below 1"
            )

    def load(self) -> Dataset:
        """Read and resize every image."""
        if not self.root:
            raise DemiluneError("folder: no root was given: name the folder of your images, --data.root DIR")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise DemiluneError(f"folder: {root} is no folder: give the one that holds your images, --data.root DIR")
        names = [path.name for path in _folders(root)]
        if ("train" in names) != ("test" in names):
            raise DemiluneError(
                f"folder: {root} holds {', '.join(names)}: there must be both train and test, or neither and "
                "one folder a class"
            )
        parted = "train" in names
        pool = root / "train" if parted else root
        classes = [path.name for path in _folders(pool)]
        if len(classes) < 2:
            raise DemiluneError(
                f"folder: {pool} holds {len(classes)} folders: a classifier needs at least 2, one a class"
            )
        images, labels = self._read(pool, classes)
        chosen = spread(labels)
        if parted:
            strange = sorted({path.name for path in _folders(root / "test")} - set(classes))
            if strange:
                raise DemiluneError(f"folder: {root / 'test'} has the classes {', '.join(strange)}, which {pool} lacks")
            tests = self._read(root / "test", classes)
            tested = np.arange(len(tests[1]))
        else:
            held = round(self.test * len(labels))
            if held == 0:
                raise DemiluneError(f"folder: the {len(labels)} images of {root} are too few to hold some out")
            tests, tested, chosen = (images, labels), np.sort(chosen[:held]), chosen[held:]
        count = round(self.validation * len(labels))
        train = Split.of(images, labels, chosen[count:])
        bare = [name for label, name in enumerate(classes) if label not in train.labels]
        if bare:
            raise DemiluneError(
                f"folder: no image of {', '.join(bare)} is left to train on: add images, or hold out smaller "
                "shares for validation and test"
            )
        mean, std = statistics(train.images)
        kept = np.sort(chosen)
        return Dataset(
            name="folder",
            classes=tuple(classes),
            train=train,
            validation=Split.of(images, labels, chosen[:count]),
            test=Split.of(*tests, tested),
            mean=mean,
            std=std,
            pad=self.pad,
            flip=self.flip,
            sha256=fingerprint((images[kept], labels[kept]), (tests[0][tested], tests[1][tested]), len(classes)),
            official=False,
            source=f"the images in {root}",
        )

    def _read(self, folder: Path, classes: Sequence[str]) -> tuple[Bytes, Indices]:
        """Return all images, uint8 [N,C,size,size], sorted by class and name, and their labels, [N]."""
        images: list[Bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            if not (folder / name).exists():  # a test folder may lack classes, a class may not lack images
                continue
            paths = sorted(path for path in (folder / name).iterdir() if _is_image(path))
            if not paths:
                raise DemiluneError(f"folder: {folder / name} holds no images ({', '.join(sorted(_SUFFIXES))})")
            images += [_decode(path, self.size, self.grey) for path in paths]
            labels += [label] * len(paths)
        if not images:
            raise DemiluneError(f"folder: {folder} holds no images")
        return np.stack(images), np.array(labels, np.int64)


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _decode(path: Path, size: int, grey: bool) -> Bytes:
    """Return an image as uint8 [C,size,size]: upright, its largest centred square, resized (bicubic)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
                raise ValueError("more than 8 bits a channel")
            image = ImageOps.exif_transpose(opened)
            if "transparency" in image.info:  # a palette of colours and opacities cannot become RGB at once
                image = image.convert("RGBA")
            image = image.convert("L" if grey else "RGB")
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders fail with any kind of exception on a broken file
        raise DemiluneError(
            f"folder: {path} cannot be read as an image ({error}): replace it, or take it away"
        ) from error
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))
