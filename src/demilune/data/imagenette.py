"""ImageNette, version 2: ten easy classes of ImageNet (J. Howard, github.com/fastai/imagenette, 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from demilune.data.base import Data
from demilune.data.download import Progress, fetch, unpack
from demilune.data.extra import Extra
from demilune.data.pictures import Decoder, folders, is_image, read_classes
from demilune.data.published import check_counts, data_root, mirror, nowhere, remedy
from demilune.data.split import Dataset, Split, fingerprint, spread
from demilune.errors import DemiluneError, check_types

CLASSES: Mapping[str, str] = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""The folders, by the names of WordNet, in the order of the labels."""
FOLDERS = ("imagenette2-160", "imagenette2-320", "imagenette2", "imagenette")
IMAGES = 9_469
"""The published training images; a subset may have fewer."""

# The MD5 is that of torchvision's datasets/imagenette.py.
BASE = "https://s3.amazonaws.com/fast-ai-imageclas"
ARCHIVE, MD5 = "imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"

# ImageNet's, as its networks have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@final
@dataclass(frozen=True, slots=True)
class ImageNette(Data):
    """ImageNette 2: 9,469 training and 3,925 test images (its folder val), ten classes of ImageNet, RGB.

    Each image's shorter side is resized to size, if it has another length, and its centred square is kept. Trained is
    on random crops of that square, judged is its centre: crops are drawn from the square and not from the whole image,
    because images that lie in one tensor have one size. Decoded images are kept in $DEMILUNE_CACHE, else in
    ~/.cache/demilune/decoded. No digest of the single images is published, so that they never count as official.

    root: folder that holds imagenette2-160, -320, imagenette2 or imagenette (empty: $DEMILUNE_DATA, else
        ~/.cache/demilune)
    size: side of the squares that are kept, in pixels
    crop: side of the windows that are trained on and judged, in pixels
    validation: training images taken out to choose the best checkpoint on, with the classes in proportion
    limit: training images used, with the classes in proportion (0: all)
    pad: black pixels around a training image before it is cropped
    flip: mirror training images at random
    extra: images of another origin to train on besides
    """

    root: str = ""
    size: int = 160
    crop: int = 128
    validation: int = 500
    limit: int = 0
    pad: int = 0
    flip: bool = True
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        if not 8 <= self.size <= 512:
            raise DemiluneError(f"imagenette: size = {self.size} is not possible: it is from 8 to 512 pixels")
        if not 4 <= self.crop <= self.size:
            raise DemiluneError(
                f"imagenette: crop = {self.crop} is not possible: it is from 4 to {self.size}, the size of the squares"
            )
        if not 0 <= self.pad <= self.crop // 2:
            raise DemiluneError(
                f"imagenette: pad = {self.pad} is not possible: it is from 0 to {self.crop // 2}, half a crop"
            )
        check_counts(self.validation, self.limit, "imagenette", IMAGES)

    def load(self) -> Dataset:
        """Read every image: a minute the first time, then a second or two."""
        folder = _find(self)
        decoder = Decoder("imagenette", self.size, zoom=False)
        images, labels = read_classes(decoder, folder / "train", tuple(CLASSES))
        tests, answers = read_classes(decoder, folder / "val", tuple(CLASSES))
        check_counts(self.validation, self.limit, "imagenette", len(labels))
        chosen = spread(labels)
        end = self.validation + self.limit if self.limit else len(labels)
        return Dataset(
            name="imagenette",
            classes=tuple(CLASSES.values()),
            train=Split.of(images, labels, chosen[self.validation : end]),
            validation=Split.of(images, labels, chosen[: self.validation]).centred(self.crop, self.crop),
            test=Split.of(tests, answers, np.arange(len(answers))).centred(self.crop, self.crop),
            mean=MEAN,
            std=STD,
            pad=self.pad,
            flip=self.flip,
            sha256=fingerprint((images, labels), (tests, answers), len(CLASSES)),
            official=False,
            source=f"{folder} ({len(labels)} training and {len(answers)} test images; no digest of them is published)",
        )


def download(data: ImageNette, url: str = "", progress: Progress | None = None) -> Path:
    """Fetch the archive of 160 pixels into ``data``'s root and unpack it, unless a folder is there; return the folder.

    ``url`` and refusals are as for :func:`demilune.data.cifar.download`.
    """
    root = data_root(data.root)
    if any((root / each).exists() for each in FOLDERS):
        return _find(data)
    fetch(f"{mirror(url, BASE)}/{ARCHIVE}", root / ARCHIVE, MD5, progress)
    unpack(root / ARCHIVE, root, [f"{FOLDERS[0]}/"])
    return _find(data)


def status(data: ImageNette) -> str:
    """Say in one line whether the images are there, and how many."""
    data_root(data.root)  # a folder that cannot be is refused, not reported
    try:
        folder = _find(data)
    except DemiluneError as error:
        return str(error)
    train, test = (sum(map(is_image, (folder / part).glob("*/*"))) for part in ("train", "val"))
    return f"imagenette: present: {folder}: {train} training and {test} test images (no digest of them is published)"


def _find(data: ImageNette) -> Path:
    """Return the folder that holds train and val, each with the ten classes."""
    root = data_root(data.root)
    # The folder itself may have been named, instead of the one that holds it.
    places = [*(root / each for each in FOLDERS), *([root] if (root / "train" / next(iter(CLASSES))).is_dir() else [])]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise nowhere("imagenette", root, [root / f"{ARCHIVE}.part"], f"there is none of {', '.join(FOLDERS)}")
    for part in (folder / "train", folder / "val"):
        if not part.is_dir():
            raise DemiluneError(
                f"imagenette: {folder} is incomplete, it has no folder {part.name}: delete it and run "
                f"{remedy('imagenette', root)}"
            )
        found = {each.name for each in folders(part)}
        lacking, strange = sorted(set(CLASSES) - found), sorted(found - set(CLASSES))
        if lacking:
            raise DemiluneError(
                f"imagenette: {part} lacks {', '.join(f'{each} ({CLASSES[each]})' for each in lacking)}: delete "
                f"{folder} and run {remedy('imagenette', root)}"
            )
        if strange:
            raise DemiluneError(
                f"imagenette: {part} has {', '.join(strange[:5])}, which ImageNette has not: take it away, or read "
                "your own classes with --data folder"
            )
    return folder
