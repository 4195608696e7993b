"""Scikit-learn's handwritten digits: small enough to learn in seconds, and always there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from demilune.data.base import Data
from demilune.data.extra import Extra
from demilune.data.split import Dataset, Split, fingerprint, spread, statistics
from demilune.errors import DemiluneError, check_types


@final
@dataclass(frozen=True, slots=True)
class Digits(Data):
    """The 1,797 grey 8 by 8 digits that scikit-learn ships (Alpaydin and Kaynak 1998), ten classes.

    Their 17 levels are stretched to 0 … 255. The split is fixed, with the classes in proportion.

    validation: images taken out to choose the best checkpoint on
    test: test images
    pad: largest random shift of a training image, in pixels
    flip: mirror training images at random (a mirrored digit is no digit)
    extra: images of another origin to train on besides
    """

    validation: int = 200
    test: int = 500
    pad: int = 1
    flip: bool = False
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        if self.validation < 0 or self.test < 1 or self.validation + self.test > 1600:
            raise DemiluneError(
                f"digits: validation = {self.validation} and test = {self.test} are not possible: validation "
                "is at least 0, test at least 1, and both together at most 1600 of the 1797 images"
            )
        if not 0 <= self.pad <= 4:
            raise DemiluneError(f"digits: pad = {self.pad} is not possible: it is from 0 to 4, half an image")

    def load(self) -> Dataset:
        """Read the digits from the installed scikit-learn."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = bunch.target.astype(np.int64)
        chosen = spread(labels)
        test, rest = chosen[: self.test], chosen[self.test :]
        train = Split.of(images, labels, rest[self.validation :])
        mean, std = statistics(train.images)
        kept, tested = np.sort(rest), np.sort(test)
        return Dataset(
            name="digits",
            classes=tuple("0123456789"),
            train=train,
            validation=Split.of(images, labels, rest[: self.validation]),
            test=Split.of(images, labels, test),
            mean=mean,
            std=std,
            pad=self.pad,
            flip=self.flip,
            sha256=fingerprint((images[kept], labels[kept]), (images[tested], labels[tested]), 10),
            official=True,
            source="the digits that scikit-learn ships",
        )
