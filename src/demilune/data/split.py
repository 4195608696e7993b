"""What every source of data yields: images and labels in tensors, split three ways, and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from demilune.core.random import Stream

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Some images of a data set, on one device.

    ``images`` is uint8 [N,C,H,W], ``labels`` int64 [N], ``ids`` int64 [N]: each image's place in the order of
    the upstream files, by which its random draws are addressed.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    @classmethod
    def of(cls, images: Bytes, labels: Indices, index: Indices) -> Split:
        """Return the images at ``index``, in upstream order, out of all [N,C,H,W] and their labels [N]."""
        index = np.sort(index)
        return cls(torch.from_numpy(images[index]), torch.from_numpy(labels[index]), torch.from_numpy(index))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """Return the rows at ``index``, int64 or bool [n]."""
        return Split(self.images[index], self.labels[index], self.ids[index])

    def to(self, device: torch.device | str) -> Split:
        """Return the same images on another device."""
        return Split(self.images.to(device), self.labels.to(device), self.ids.to(device))

    def centred(self, height: int, width: int) -> Split:
        """Return the centre of each image, uint8 [N,C,height,width]: what a network sees where training crops."""
        top, left = ((side - kept) // 2 for side, kept in zip(self.images.shape[2:], (height, width), strict=True))
        return replace(self, images=self.images[:, :, top : top + height, left : left + width].contiguous())

    def pixels(self, index: Tensor | slice) -> Tensor:
        """Return float32 [n,C,H,W] in [0,1]: exactly uint8/255, rounded once, on every device."""
        # CUDA divides by a Python number by multiplying with its reciprocal, which rounds twice; by a tensor
        # of the device it divides.
        return self.images[index].to(torch.float32) / torch.full((), 255.0, device=self.images.device)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set, ready to train on and to be judged on.

    The validation images are taken from the upstream training images: the best checkpoint is chosen on them,
    never on the test images. ``mean`` and ``std`` are per channel, of pixels in [0,1]. ``pad`` and ``flip``
    are the augmentation of training images, which may be larger than ``shape``: then a random crop of that
    size is part of it, see :func:`~demilune.data.augment.crop_flip`. ``sha256`` fingerprints the arrays before
    validation images and limits are taken out, see :func:`fingerprint`; ``official`` says that they are those
    its authors published, ``source`` in one line where they came from. ``extra`` are images of another origin
    to train on, of which ``extra_share`` of each batch is drawn; see :class:`~demilune.data.extra.Extra`.
    ``extra_sha256`` is the sha256 of their bytes and, after them, of their labels', written as those of
    ``sha256`` are.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    sha256: Mapping[str, str]
    official: bool
    source: str
    extra: Split | None = None
    extra_share: float = 0.0
    extra_sha256: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C,H,W) of an image as the network sees it; training images may be larger."""
        channels, height, width = self.test.images.shape[1:]
        return channels, height, width

    def sample(self, name: Literal["train", "validation", "test"], limit: int = 0) -> Split:
        """Return a split as a network sees it: all images, or so many random ones, the same for every model."""
        split = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if 0 < limit < len(split):
            rng = Stream.of(0, "subset", name, device=split.ids.device)
            split = split.take(rng.permutation("images", len(split))[:limit].sort().values)
        return split.centred(*self.shape[1:])  # training images may be larger than what is trained on

    def extras(self, batch: int) -> int:
        """Return how many images of a batch are extra ones."""
        return int(self.extra_share * batch)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data on another device."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
            extra=None if self.extra is None else self.extra.to(device),
        )


def fingerprint(train: tuple[Bytes, Indices], test: tuple[Bytes, Indices], classes: int) -> dict[str, str]:
    """Return the sha256 of ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``.

    Images are hashed as uint8 [N,H,W,C], labels as uint8 (int64 above 256 classes), both in C order.
    """
    return {
        f"{part}_{what}": sha256(array, classes)
        for part, (images, labels) in (("train", train), ("test", test))
        for what, array in (("images", images), ("labels", labels))
    }


def sha256(array: Bytes | Indices, classes: int, *more: Bytes | Indices) -> str:
    """Return the sha256 of images or labels, and of what follows, written as :func:`fingerprint` says."""
    kind = np.uint8 if classes <= 256 else np.int64
    found = hashlib.sha256()
    for each in (array, *more):
        for start in range(0, len(each), 1024):  # in blocks, so that no second copy of all images is made
            block = each[start : start + 1024]
            written = block.transpose(0, 2, 3, 1) if each.ndim == 4 else block.astype(kind)
            found.update(np.ascontiguousarray(written).data)
    return found.hexdigest()


def spread(labels: Indices) -> Indices:
    """Return an order, int64 [N], of which every beginning holds the classes in proportion.

    Always the same: each class is shuffled by NumPy's ``RandomState(0)``, then the j-th of its n images is
    sorted to (j + ½)/n.
    """
    shuffled = np.random.RandomState(0).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")].astype(np.int64)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 [N,C,H,W], in units of [0,1].

    Both come from exact counts of the 256 levels. A deviation is at least one level, so that it can divide.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for start in range(0, len(images), 1024):  # in blocks, because bincount widens its input to int64
            counts += torch.bincount(images[start : start + 1024, channel].flatten(), minlength=256)
        share = counts.double() / counts.sum()
        mean.append(float((share * level).sum()))
        std.append(max(float((share * (level - mean[-1]) ** 2).sum().sqrt()), 1 / 255))
    return tuple(mean), tuple(std)
