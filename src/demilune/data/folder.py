"""A user's own images, one folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from demilune.data.base import Data
from demilune.data.extra import Extra
from demilune.data.pictures import Decoder, folders, read_classes
from demilune.data.published import expanded
from demilune.data.split import Dataset, Split, fingerprint, spread, statistics
from demilune.errors import DemiluneError, check_types


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
    extra: images of another origin to train on besides
    """

    root: str = ""
    size: int = 32
    validation: float = 0.1
    test: float = 0.2
    grey: bool = False
    pad: int = 4
    flip: bool = True
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
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
        """Read and resize every image; many are kept for the next time in $DEMILUNE_CACHE, else in ~/.cache."""
        if not self.root:
            raise DemiluneError("folder: no root was given: name the folder of your images, --data.root DIR")
        root = expanded(self.root)
        if not root.is_dir():
            raise DemiluneError(f"folder: {root} is no folder: give the one that holds your images, --data.root DIR")
        names = [path.name for path in folders(root)]
        if ("train" in names) != ("test" in names):
            raise DemiluneError(
                f"folder: {root} holds {', '.join(names)}: there must be both train and test, or neither and "
                "one folder a class"
            )
        parted = "train" in names
        pool = root / "train" if parted else root
        classes = [path.name for path in folders(pool)]
        if len(classes) < 2:
            raise DemiluneError(
                f"folder: {pool} holds {len(classes)} folders: a classifier needs at least 2, one a class"
            )
        decoder = Decoder("folder", self.size, self.grey)
        images, labels = read_classes(decoder, pool, classes)
        chosen = spread(labels)
        if parted:
            strange = sorted({path.name for path in folders(root / "test")} - set(classes))
            if strange:
                raise DemiluneError(f"folder: {root / 'test'} has the classes {', '.join(strange)}, which {pool} lacks")
            tests = read_classes(decoder, root / "test", classes)  # which may lack classes
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
