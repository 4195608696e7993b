"""MNIST (LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998), read from its idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from demilune.data.base import Data
from demilune.data.download import Progress
from demilune.data.extra import Extra
from demilune.data.published import (
    File,
    Loose,
    assembled,
    check_fields,
    data_root,
    find_loose,
    obtain_loose,
    opened,
    told,
)
from demilune.data.split import Bytes, Dataset
from demilune.errors import DemiluneError, check_types

# MD5s of the packed files: torchvision's datasets/mnist.py, whose mirror this is. The fingerprints are of files that
# equal the authors' unpacked ones. Mean and deviation are recomputed from them.
UPSTREAM = Loose(
    name="mnist",
    classes=tuple("0123456789"),
    base="https://ossci-datasets.s3.amazonaws.com/mnist",
    folder="MNIST/raw",
    files=(
        File("train-images-idx3-ubyte.gz", 60_000, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        File("train-labels-idx1-ubyte.gz", 60_000, "d53e105ee54ea40749a09fcbcd1e9432"),
        File("t10k-images-idx3-ubyte.gz", 10_000, "9fb629c4189551a2d022fa330f9573f3"),
        File("t10k-labels-idx1-ubyte.gz", 10_000, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    mean=(0.1307,),
    std=(0.3081,),
    sha256={
        "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
)


@final
@dataclass(frozen=True, slots=True)
class MNIST(Data):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 by 28 grey, ten classes.

    The files may be packed (.gz) or not; their pixels and labels are verified. There is no augmentation.

    root: folder that holds the idx files, or MNIST/raw with them (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
    validation: training images taken out to choose the best checkpoint on
    limit: training images used, the first of a fixed random order (0: all)
    pad: largest random shift of a training image, in pixels
    flip: mirror training images at random (a mirrored digit is no digit)
    unverified: accept files that are not the published ones (the result says so)
    extra: images of another origin to train on besides
    """

    root: str = ""
    validation: int = 1000
    limit: int = 0
    pad: int = 0
    flip: bool = False
    unverified: bool = False
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        check_fields(self, "mnist", UPSTREAM.files[0].images, 28)

    def load(self) -> Dataset:
        """Read and verify the files; a second."""
        return read(UPSTREAM, self)


def download(data: MNIST, url: str = "", progress: Progress | None = None) -> Path:
    """Fetch the four packed files into MNIST/raw below ``data``'s root, unless they are there; return their folder.

    ``url`` and refusals are as for :func:`demilune.data.cifar.download`.
    """
    return obtain_loose(UPSTREAM, data, replace(data, unverified=False).load, url, progress)


def status(data: MNIST) -> str:
    """Say in one line whether the files are there and whether they are the published ones."""
    return told("mnist", data.root, replace(data, unverified=True).load)


def read(upstream: Loose, data: MNIST) -> Dataset:
    """Read, verify and split the files of ``upstream``, images before labels, below ``data``'s root."""
    root = data_root(data.root)
    folder, names = find_loose(upstream, root)
    parts = []
    for number, (file, name) in enumerate(zip(upstream.files, names, strict=True)):
        shape = (file.images,) if number % 2 else (file.images, 28, 28)
        decode = partial(_decode, shape=shape, packed=name.endswith(".gz"))
        part, _ = opened(upstream.name, root, folder / name, "", decode, folder / name)
        parts.append(part)
    images, labels, test_images, test_labels = parts
    train, test = (images[:, None], labels.astype(np.int64)), (test_images[:, None], test_labels.astype(np.int64))
    return assembled(upstream, data, train, test, None, folder)


def _decode(content: bytes, shape: tuple[int, ...], packed: bool) -> Bytes:
    """Return the bytes of an idx file: two zeros, 8 (bytes), the dimensions' number, the dimensions, the values."""
    if packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DemiluneError(f"it is damaged or cut off ({error})") from error
    head = bytes([0, 0, 8, len(shape)]) + b"".join(side.to_bytes(4, "big") for side in shape)
    if not content.startswith(head[:4]):
        raise DemiluneError(
            f"it begins with {content[:4].hex() or 'nothing'} instead of {head[:4].hex()}: no such idx file"
        )
    if not content.startswith(head):
        given = [int.from_bytes(content[at : at + 4], "big") for at in range(4, len(head), 4)]
        raise DemiluneError(f"it has the shape {tuple(given)} instead of {shape}")
    values = np.frombuffer(content, np.uint8, offset=len(head))
    if len(values) != math.prod(shape):
        raise DemiluneError(
            f"it has {len(values):,} values instead of {math.prod(shape):,}, so it is cut off or damaged"
        )
    if len(shape) == 1 and values.max() > 9:
        raise DemiluneError(f"it has the label {values.max()}, and labels are from 0 to 9")
    return values.reshape(shape)
