"""Images of another origin to train on besides the training images, with pseudo-labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from demilune.data.published import data_root, expanded, reason
from demilune.data.split import Bytes, Dataset, Split
from demilune.errors import DemiluneError, check_types

IMAGES = ("image", "images", "data", "x")
LABELS = ("label", "labels", "targets", "extrapolated_targets", "y")
FIRST_ID = 1 << 40
"""The id of the first extra image: far above all upstream places, so that no two images share a draw."""


@final
@dataclass(frozen=True, slots=True)
class Extra:
    """More images to train on, as RST does (Carmon et al. 2019): unlabelled or generated, with pseudo-labels.

    The file is an .npz of images, uint8 [N,H,W,C] or [N,C,H,W] under the key image, images, data or x, and of
    integer labels [N] under label, labels, targets, extrapolated_targets or y; the first of these that is there
    counts, and nothing else in the file is read. That is how the 500,000 images of RST, once out of their pickle,
    and the generated sets of Rebuffi et al. and Wang et al. are laid out.

    file: an .npz of images and pseudo-labels to train on besides (empty: none; it may lie below the data root)
    share: share of each batch that is drawn from it, above 0 and below 1
    """

    file: str = ""
    share: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 < self.share < 1.0:
            raise DemiluneError(
                f"extra.share = {self.share:g} is not possible: it is the share of a batch that is extra images, above "
                "0 and below 1; to train without them leave --data.extra.file empty"
            )

    def read(self, dataset: Dataset) -> Split | None:
        """Return the extra images for a data set, uint8 [N,C,H,W] as its training images; None where none are named.

        Their ids count from 2^40. Raise :class:`DemiluneError` where the file is missing, damaged, or of images or
        labels that are not the data set's kind.
        """
        if not self.file:
            return None
        path = self._found()
        images, labels = _arrays(path, (IMAGES, "images"), (LABELS, "labels"))
        trouble = _shape_trouble(images, dataset) or _label_trouble(labels, len(images), dataset)
        if trouble:
            raise DemiluneError(f"extra images: {path}: {trouble}; name another with --data.extra.file FILE")
        ids = torch.arange(FIRST_ID, FIRST_ID + len(images))
        return Split(_upright(images, dataset), torch.from_numpy(labels.astype(np.int64)), ids)

    def _found(self) -> Path:
        given = expanded(self.file)
        path = next((each for each in (given, data_root() / given) if each.is_file()), None)
        if path is None:
            where = f"neither here nor in {data_root()}" if not given.is_absolute() else "there is no such file"
            raise DemiluneError(
                f"extra images: {given} is missing ({where}): RST trains on extra images with pseudo-labels besides "
                f"the data set's own, and needs an .npz with uint8 images (key {', '.join(IMAGES)}) and integer labels "
                f"(key {', '.join(LABELS)}); name it with --data.extra.file FILE"
            )
        return path


def unlabelled(path: Path, dataset: Dataset) -> tuple[Bytes, Split]:
    """Return the images of an .npz as they lie in it, and the same to be labelled: their labels are 0 for now.

    Raise :class:`DemiluneError` where the file is missing, damaged, or of images that are not the data set's kind.
    """
    if not path.is_file():
        raise DemiluneError(f"extra images: {path} is missing: an .npz with uint8 images (key {', '.join(IMAGES)})")
    (images,) = _arrays(path, (IMAGES, "images"))
    trouble = _shape_trouble(images, dataset)
    if trouble:
        raise DemiluneError(f"extra images: {path}: {trouble}; give another file")
    count = len(images)
    return images, Split(_upright(images, dataset), torch.zeros(count, dtype=torch.int64), torch.arange(count))


def _arrays(path: Path, *wanted: tuple[Sequence[str], str]) -> list[Any]:
    """Return arrays of an .npz, each under the first of its keys that is there."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # NumPy would leave a damaged file open
            held = np.load(file, allow_pickle=False)
            return [_entry(held, keys, what) for keys, what in wanted]
    except DemiluneError as error:
        raise DemiluneError(f"extra images: {path} {error}; name another with --data.extra.file FILE") from None
    except Exception as error:  # a zip file of arrays that is damaged fails in any way
        raise DemiluneError(
            f"extra images: {path} cannot be read as an .npz of arrays ({reason(error)}): put the right file there, or "
            "name another with --data.extra.file FILE"
        ) from error


def _upright(images: Bytes, dataset: Dataset) -> Tensor:
    """Return images [N,H,W,C] or [N,C,H,W] as [N,C,H,W]; a view, since half a million are not to be copied."""
    pixels = torch.from_numpy(images)
    return pixels if images.shape[1:] == tuple(dataset.train.images.shape[1:]) else pixels.permute(0, 3, 1, 2)


def _entry(held: Any, keys: Sequence[str], what: str) -> Any:
    if not isinstance(held, np.lib.npyio.NpzFile):
        raise DemiluneError("is one array and no .npz of several")
    key = next((each for each in keys if each in held), None)
    if key is None:
        there = ", ".join(held.files[:8]) or "nothing"
        raise DemiluneError(f"has no {what}: it holds {there}, and they are looked for under {', '.join(keys)}")
    found = held[key]
    if not isinstance(found, np.ndarray):  # NumPy hands out what is no .npy as bytes
        raise DemiluneError(f"holds no array under {key}")
    return found


def _shape_trouble(images: Any, dataset: Dataset) -> str:
    channels, height, width = dataset.train.images.shape[1:]
    shapes = ((height, width, channels), (channels, height, width))
    if images.dtype == np.uint8 and images.ndim == 4 and len(images) and images.shape[1:] in shapes:
        return ""
    return (
        f"its images are {images.dtype} {list(images.shape)}, and {dataset.name} needs uint8 "
        f"[N, {height}, {width}, {channels}] or [N, {channels}, {height}, {width}]"
    )


def _label_trouble(labels: Any, count: int, dataset: Dataset) -> str:
    last = len(dataset.classes) - 1
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        return f"its labels are {labels.dtype} {list(labels.shape)}, and {count} integers were expected"
    low, high = int(labels.min()), int(labels.max())
    if low == -1:
        return "it has the label -1, of an image without any: RST needs a pseudo-label for every image"
    if low < 0 or high > last:
        return f"it has the label {low if low < 0 else high}, and the labels of {dataset.name} are from 0 to {last}"
    return ""
