"""CIFAR-10 and CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).

Both are read from the files their authors publish, in the python or the binary version, and verified: a copy
that is not theirs is used only where the configuration says ``unverified``, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from demilune.data.base import Data
from demilune.data.download import Progress, fetch, unpack
from demilune.data.extra import Extra
from demilune.data.pickles import unpickle
from demilune.data.published import File, assembled, check_fields, data_root, locate, mirror, opened, told
from demilune.data.split import Bytes, Dataset, Indices
from demilune.errors import DemiluneError, check_types

_BASE = "https://www.cs.toronto.edu/~kriz"


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """One version of the files: an archive and the folder that it unpacks to.

    ``label`` says where the labels are: the key of a pickle (python version), or the number of bytes before
    the pixels of a record, the last of which is the label (binary version).
    """

    folder: str
    archive: str
    md5: str
    label: str | int
    train: tuple[File, ...]
    test: File

    @property
    def files(self) -> tuple[File, ...]:
        """All files, training files first."""
        return (*self.train, self.test)


@final
@dataclass(frozen=True, slots=True)
class Upstream:
    """What the authors of a data set published.

    ``python`` and ``binary`` are the same images. ``sha256`` are the fingerprints of the decoded arrays where
    they are known: images and labels can then be verified in files that were packed anew. ``mean`` and
    ``std`` are of the training images, per channel in [0,1].
    """

    name: str
    classes: tuple[str, ...]
    python: Layout
    binary: Layout
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)


# MD5s: torchvision's datasets/cifar.py, archives also the authors' page. SHA-1s of the binary files: MXNet's
# gluon/data/vision/datasets.py. Mean and deviation: Rice et al. (2020), whose released code has 0.2471 where
# the data give 0.2470.
UPSTREAM10 = Upstream(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    python=Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        label="labels",
        train=(
            File("data_batch_1", 10_000, "c99cafc152244af753f735de768cd75f"),
            File("data_batch_2", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
            File("data_batch_3", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
            File("data_batch_4", 10_000, "634d18415352ddfa80567beed471001a"),
            File("data_batch_5", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=File("test_batch", 10_000, "40351d587109b95175f43aff81a1287e"),
    ),
    binary=Layout(
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        label=1,
        train=(
            File("data_batch_1.bin", 10_000, "aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
            File("data_batch_2.bin", 10_000, "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
            File("data_batch_3.bin", 10_000, "1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
            File("data_batch_4.bin", 10_000, "aab85764eb3584312d3c7f65fd2fd016e36a258e"),
            File("data_batch_5.bin", 10_000, "26e2849e66a845b7f1e4614ae70f4889ae604628"),
        ),
        test=File("test_batch.bin", 10_000, "67eb016db431130d61cd03c7ad570b013799c88c"),
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
)

# The fingerprints are of arrays that, written as the binary version, have the SHA-1s below. Mean and
# deviation are recomputed from them.
UPSTREAM100 = Upstream(
    name="cifar100",
    classes=tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
        cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
        lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
        oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
        possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
        spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
        train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905 (a hundred quoted names are no list one can read)
    ),
    python=Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        label="fine_labels",
        train=(File("train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),),
        test=File("test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
    binary=Layout(
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        label=2,
        train=(File("train.bin", 50_000, "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"),),
        test=File("test.bin", 10_000, "8fb6623e830365ff53cf14adec797474f5478006"),
    ),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    sha256={
        "train_images": "4e457917601a66aed021f5fa37957b56c6319557c0a8ed5484de3c390af45430",
        "train_labels": "9f11b9f97aad759ba6df0a33e3218b01d8deaf4ed3a14aa1185d69b9ad7ebcb3",
        "test_images": "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19",
        "test_labels": "4dad7d09c7c97d33f6cb928d705cf4196221316fd6e31bdd978a08ed9103ee0b",
    },
)


@final
@dataclass(frozen=True, slots=True)
class CIFAR10(Data):
    """CIFAR-10: 50,000 training and 10,000 test images, 32 by 32 RGB, ten classes.

    root: folder that holds cifar-10-batches-py or -bin (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
    validation: training images taken out to choose the best checkpoint on
    limit: training images used, the first of a fixed random order (0: all)
    pad: largest random shift of a training image, in pixels
    flip: mirror training images at random
    unverified: accept files that are not the published ones (the result says so)
    extra: images of another origin to train on besides
    """

    root: str = ""
    validation: int = 1000
    limit: int = 0
    pad: int = 4
    flip: bool = True
    unverified: bool = False
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        check_fields(self, "cifar10", 50_000, 32)

    def load(self) -> Dataset:
        """Read and verify the files; a few seconds."""
        return read(UPSTREAM10, self)


@final
@dataclass(frozen=True, slots=True)
class CIFAR100(Data):
    """CIFAR-100: 50,000 training and 10,000 test images, 32 by 32 RGB, the hundred fine classes.

    root: folder that holds cifar-100-python or -binary (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
    validation: training images taken out to choose the best checkpoint on
    limit: training images used, the first of a fixed random order (0: all)
    pad: largest random shift of a training image, in pixels
    flip: mirror training images at random
    unverified: accept files that are not the published ones (the result says so)
    extra: images of another origin to train on besides
    """

    root: str = ""
    validation: int = 1000
    limit: int = 0
    pad: int = 4
    flip: bool = True
    unverified: bool = False
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        check_fields(self, "cifar100", 50_000, 32)

    def load(self) -> Dataset:
        """Read and verify the files; a few seconds."""
        return read(UPSTREAM100, self)


def download(data: CIFAR10 | CIFAR100, url: str = "", progress: Progress | None = None) -> Path:
    """Fetch the python version into ``data``'s root, unless it is there, and return its folder.

    ``url`` is the address of the folder that holds the archives (empty: $DEMILUNE_MIRROR, else the authors').
    ``progress(done, total)`` is told of bytes. Raise :class:`DemiluneError` where files are there that are
    not the published ones (they are left alone), and as :func:`fetch` and :func:`unpack` do.
    """
    return obtain(_upstream(data), data, url, progress)


def status(data: CIFAR10 | CIFAR100) -> str:
    """Say in one line whether the files are there and whether they are the published ones."""
    return survey(_upstream(data), data)


def obtain(upstream: Upstream, data: CIFAR10 | CIFAR100, url: str, progress: Progress | None) -> Path:
    """Do what :func:`download` says, for any upstream."""
    root, layout = data_root(data.root), upstream.python
    if any((root / each.folder).exists() for each in (upstream.python, upstream.binary)):
        read(upstream, replace(data, unverified=False))
        return root / _find(upstream, root).folder
    archive = root / layout.archive
    fetch(f"{mirror(url, _BASE)}/{layout.archive}", archive, layout.md5, progress)
    unpack(archive, root, [f"{layout.folder}/{file.name}" for file in layout.files])
    return root / layout.folder


def survey(upstream: Upstream, data: CIFAR10 | CIFAR100) -> str:
    """Do what :func:`status` says, for any upstream."""
    return told(upstream.name, data.root, lambda: read(upstream, replace(data, unverified=True)))


def read(upstream: Upstream, data: CIFAR10 | CIFAR100) -> Dataset:
    """Read, verify and split the files of ``upstream`` below ``data``'s root."""
    root = data_root(data.root)
    layout = _find(upstream, root)
    folder = root / layout.folder
    parts, doubts = [], []
    for file in layout.files:
        decode = partial(_decode, label=layout.label, count=file.images, classes=len(upstream.classes))
        part, doubt = opened(upstream.name, root, folder / file.name, file.digest, decode, folder)
        parts.append(part)
        doubts += [doubt] if doubt else []
    images = np.concatenate([part[0] for part in parts[:-1]])
    labels = np.concatenate([part[1] for part in parts[:-1]])
    return assembled(upstream, data, (images, labels), parts[-1], doubts, folder)


def _upstream(data: CIFAR10 | CIFAR100) -> Upstream:
    return UPSTREAM10 if isinstance(data, CIFAR10) else UPSTREAM100


def _find(upstream: Upstream, root: Path) -> Layout:
    """Return the version all of whose files are there, python before binary."""
    layouts = (upstream.python, upstream.binary)
    places = [(root / layout.folder, [file.name for file in layout.files]) for layout in layouts]
    absent = f"there is neither {layouts[0].folder} (python version) nor {layouts[1].folder} (binary version)"
    part = root / f"{upstream.python.archive}.part"
    return layouts[locate(upstream.name, root, places, [part], absent, "delete it and ")]


def _decode(content: bytes, label: str | int, count: int, classes: int) -> tuple[Bytes, Indices]:
    """Return images uint8 [count,3,32,32] and labels int64 [count] of a file; see ``Layout.label``."""
    pixels: Bytes | Any
    if isinstance(label, int):
        width = label + 3072
        if len(content) != count * width:
            raise DemiluneError(
                f"it has {len(content):,} bytes instead of {count:,} records of {width}, so it is cut off or "
                "another file"
            )
        records = np.frombuffer(content, np.uint8).reshape(count, width)
        pixels, labels = records[:, label:], records[:, label - 1].astype(np.int64)
        if labels.max() >= classes:
            raise DemiluneError(f"it has the label {labels.max()}, and labels are from 0 to {classes - 1}")
    else:
        held = unpickle(content)
        pixels, listed = held.get("data"), held.get(label)
        if not isinstance(pixels, np.ndarray) or pixels.shape != (count, 3072):
            shape = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else "no array"
            raise DemiluneError(f"its 'data' has the wrong shape: {shape} instead of ({count}, 3072)")
        if (
            not isinstance(listed, list)
            or len(listed) != count
            or not all(isinstance(each, int) and 0 <= each < classes for each in listed)
        ):
            raise DemiluneError(f"its {label!r} is no list of {count} labels from 0 to {classes - 1}")
        labels = np.array(listed, np.int64)
    return pixels.reshape(count, 3, 32, 32), labels
