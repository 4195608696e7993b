"""CIFAR-10 and CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009).

Both are read from the files their authors publish, in the python or the binary version, and verified: a copy
that is not theirs is used only where the configuration says ``unverified``, and the result says so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from demilune.data.download import Progress, fetch, unpack
from demilune.data.pickles import unpickle
from demilune.data.split import Bytes, Data, Dataset, Indices, Split, fingerprint
from demilune.errors import DemiluneError

_BASE = "https://www.cs.toronto.edu/~kriz"


class File(NamedTuple):
    """A file of images, how many it holds, and the MD5 (32 digits) or SHA-1 (40) of the published one."""

    name: str
    images: int
    digest: str


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
    """

    root: str = ""
    validation: int = 1000
    limit: int = 0
    pad: int = 4
    flip: bool = True
    unverified: bool = False

    def __post_init__(self) -> None:
        _check(self, "cifar10")

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
    """

    root: str = ""
    validation: int = 1000
    limit: int = 0
    pad: int = 4
    flip: bool = True
    unverified: bool = False

    def __post_init__(self) -> None:
        _check(self, "cifar100")

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
    root, layout = _root(data), upstream.python
    if any((root / each.folder).exists() for each in (upstream.python, upstream.binary)):
        read(upstream, replace(data, unverified=False))
        return root / _find(upstream, root).folder
    base = (url or os.environ.get("DEMILUNE_MIRROR", "") or _BASE).rstrip("/")
    archive = root / layout.archive
    fetch(f"{base}/{layout.archive}", archive, layout.md5, progress)
    unpack(archive, root, [f"{layout.folder}/{file.name}" for file in layout.files])
    return root / layout.folder


def survey(upstream: Upstream, data: CIFAR10 | CIFAR100) -> str:
    """Do what :func:`status` says, for any upstream."""
    try:
        found = read(upstream, replace(data, unverified=True))
    except DemiluneError as error:
        return str(error)
    state = "present and verified" if found.official else "present, not the official files"
    return f"{upstream.name}: {state}: {found.source}"


def read(upstream: Upstream, data: CIFAR10 | CIFAR100) -> Dataset:
    """Read, verify and split the files of ``upstream`` below ``data``'s root.

    Validation images are the first of NumPy's ``RandomState(0).permutation``, as in the released code of Rice
    et al. (2020), and the limited training images the next of it.
    """
    root = _root(data)
    layout = _find(upstream, root)
    parts, doubts = [], []
    for file in layout.files:
        path = root / layout.folder / file.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DemiluneError(f"{upstream.name}: cannot read {path}: {error.strerror}") from error
        doubt = _doubt(path, content, file.digest)
        try:
            parts.append(_decode(content, layout.label, file.images, len(upstream.classes)))
        except DemiluneError as error:
            raise DemiluneError(
                f"{upstream.name}: {path} cannot be used: {error}; delete {path.parent} and run "
                f"{_remedy(upstream, root)}"
            ) from error
        doubts += [doubt] if doubt else []
    images = np.concatenate([part[0] for part in parts[:-1]])
    labels = np.concatenate([part[1] for part in parts[:-1]])
    test_images, test_labels = parts[-1]
    sha256 = fingerprint((images, labels), (test_images, test_labels), len(upstream.classes))
    official = not doubts or sha256 == upstream.sha256
    if not (official or data.unverified):
        raise DemiluneError(
            f"{upstream.name}: not the official files: {doubts[0]}; use them all the same with "
            f"--data.unverified true (results will say so), or move {root / layout.folder} away and run "
            f"{_remedy(upstream, root)}"
        )
    source = str(root / layout.folder)
    if doubts:
        source += " (repacked; images and labels are the published ones)" if official else f" ({doubts[0]})"
    shuffled = np.random.RandomState(0).permutation(len(labels)).astype(np.int64)
    end = data.validation + data.limit if data.limit else len(labels)
    return Dataset(
        name=upstream.name,
        classes=upstream.classes,
        train=Split.of(images, labels, shuffled[data.validation : end]),
        validation=Split.of(images, labels, shuffled[: data.validation]),
        test=Split.of(test_images, test_labels, np.arange(len(test_labels))),
        mean=upstream.mean,
        std=upstream.std,
        pad=data.pad,
        flip=data.flip,
        sha256=sha256,
        official=official,
        source=source,
    )


def _check(data: CIFAR10 | CIFAR100, name: str) -> None:
    if not 0 <= data.validation < 50_000:
        raise DemiluneError(
            f"{name}: validation = {data.validation} is not possible: it is from 0 to 49999, because the "
            "images are taken out of the 50000 for training"
        )
    if not 0 <= data.limit <= 50_000 - data.validation:
        raise DemiluneError(
            f"{name}: limit = {data.limit} is not possible: it is from 1 to {50_000 - data.validation}, the "
            "training images that validation leaves, or 0 for all of them"
        )
    if not 0 <= data.pad <= 16:
        raise DemiluneError(f"{name}: pad = {data.pad} is not possible: it is from 0 to 16, half an image")


def _upstream(data: CIFAR10 | CIFAR100) -> Upstream:
    return UPSTREAM10 if isinstance(data, CIFAR10) else UPSTREAM100


def _root(data: CIFAR10 | CIFAR100) -> Path:
    return Path(data.root or os.environ.get("DEMILUNE_DATA", "") or "~/.cache/demilune").expanduser()


def _remedy(upstream: Upstream, root: Path) -> str:
    return f"`demilune data {upstream.name} --download --root {root}`"


def _find(upstream: Upstream, root: Path) -> Layout:
    """Return the version all of whose files are there, python before binary."""
    incomplete = ""
    for layout in (upstream.python, upstream.binary):
        folder = root / layout.folder
        missing = [file.name for file in layout.files if not (folder / file.name).is_file()]
        if not missing:
            return layout
        if folder.exists():
            incomplete = incomplete or (
                f"{upstream.name}: {folder} is incomplete, it lacks {', '.join(missing)}: delete it and run "
                f"{_remedy(upstream, root)}"
            )
    if incomplete:
        raise DemiluneError(incomplete)
    part = root / f"{upstream.python.archive}.part"
    if part.is_file():
        raise DemiluneError(
            f"{upstream.name}: half downloaded, {part} has {part.stat().st_size:,} bytes so far: finish it "
            f"with {_remedy(upstream, root)}"
        )
    raise DemiluneError(
        f"{upstream.name}: missing in {root}: there is neither {upstream.python.folder} (python version) nor "
        f"{upstream.binary.folder} (binary version); give another folder with --data.root, or get it with "
        f"{_remedy(upstream, root)}"
    )


def _doubt(path: Path, content: bytes, digest: str) -> str:
    """Return why a file is not the published one, or nothing."""
    kind = "md5" if len(digest) == 32 else "sha1"
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    return "" if found == digest else f"{path} has the {kind} {found}, the published file {digest}"


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
