"""CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019): the test images under corruptions, as published.

Each type is a file of 150 MB, which is mapped into memory and not read into it.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from demilune.data.corruptions import SEVERITIES, TYPES
from demilune.data.download import Progress, fetch, unpack
from demilune.data.published import data_root, locate, mirror, opened, reason, remedy, unofficial
from demilune.data.split import Bytes, Indices
from demilune.errors import DemiluneError, check_types, unknown

LABELS = "labels.npy"


@final
@dataclass(frozen=True, slots=True)
class Upstream:
    """What the authors published: an archive at ``base`` with a ``folder`` of one .npy per type and the labels.

    ``images`` counts the test images, each of which is there in five severities; ``classes`` counts the labels. ``md5``
    are those of :attr:`files`.
    """

    name: str
    base: str
    archive: str
    archive_md5: str
    folder: str
    md5: tuple[str, ...]
    classes: int
    images: int = 10_000

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that are used: the labels, then one for each of the fifteen types."""
        return (LABELS, *(f"{name}.npy" for name in TYPES))


# MD5s of the archives: Zenodo's records, as public programs cite them. Of the files: three such programs agree (two on
# CIFAR-100-C), and both labels and five types of CIFAR-100-C were made anew from CIFAR's test images, with the same.
UPSTREAM10 = Upstream(
    name="cifar10-c",
    base="https://zenodo.org/records/2535967/files",
    archive="CIFAR-10-C.tar",
    archive_md5="56bf5dcef84df0e2308c6dcbcbbd8499",
    folder="CIFAR-10-C",
    md5=(
        "c439b113295ed5254878798ffe28fd54",
        "ecaf8b9a2399ffeda7680934c33405fd",
        "3a7239bb118894f013d9bf1984be7f11",
        "2090e01c83519ec51427e65116af6b1a",
        "7d1322666342a0702b1957e92f6254bc",
        "7361fb4019269e02dbf6925f083e8629",
        "fffa5f852ff7ad299cfe8a7643f090f4",
        "6ea8e63f1c5cdee1517533840641641b",
        "bb238de8555123da9c282dea23bd6e55",
        "31f6ab3bce1d9934abfb0cc13656f141",
        "7b397314b5670f825465fbcd1f6e9ccd",
        "0a81ef75e0b523c3383219c330a85d48",
        "3c8262171c51307f916c30a3308235a8",
        "9421657c6cd452429cf6ce96cc412b5f",
        "0f14f7e2db14288304e1de10df16832f",
        "2b9cc4c864e0193bb64db8d7728f8187",
    ),
    classes=10,
)
UPSTREAM100 = Upstream(
    name="cifar100-c",
    base="https://zenodo.org/records/3555552/files",
    archive="CIFAR-100-C.tar",
    archive_md5="11f0ed0f1191edbf9fa23466ae6021d3",
    folder="CIFAR-100-C",
    md5=(
        "bb4026e9ce52996b95f439544568cdb2",
        "ecc4d366eac432bdf25c024086f5e97d",
        "b0a1fa6e1e465a747c1b204b1914048a",
        "3b3c210ddfa0b5cb918ff4537a429fef",
        "d923e3d9c585a27f0956e2f2ad832564",
        "0bf384f38e5ccbf8dd479d9059b913e1",
        "732a7e2e54152ff97c742d4c388c5516",
        "0204613400c034a81c4830d5df81cb82",
        "0237be164583af146b7b144e73b43465",
        "3a39c6823bdfaa0bf8b12fe7004b8117",
        "4efc7ebd5e82b028bdbe13048e3ea564",
        "f22d7195aecd6abb541e27fca230c171",
        "322bb385f1d05154ee197ca16535f71e",
        "a0792bd6581f6810878be71acedfc65a",
        "96c00c60f144539e14cffb02ddbd0640",
        "c851b7f1324e1d2ffddeb76920576d11",
    ),
    classes=100,
)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Corrupted:
    """The published files, found in a folder, of which only the labels are read yet.

    ``labels`` int64 [N] are those of the test images, in upstream order; ``doubt`` says why they are not the published
    ones, or nothing. ``unverified`` accepts files in doubt.
    """

    upstream: Upstream
    root: Path
    folder: Path
    labels: Indices
    doubt: str
    unverified: bool

    def images(self, name: str) -> tuple[Bytes, str]:
        """Return the images of a type, uint8 [5,N,3,32,32], and why they are not the published ones, or nothing.

        First come the severities 1 to 5, then the images in upstream order. The array is read-only and stays on the
        disk. Raise :class:`DemiluneError` where there is no such type, or where the file is in doubt or another kind.
        """
        if name not in TYPES:
            raise unknown("corruption", name, TYPES)
        upstream, path = self.upstream, self.folder / f"{name}.npy"
        shape = (len(SEVERITIES) * upstream.images, 32, 32, 3)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            held = np.lib.format.open_memmap(path, mode="r")  # refuses what would have to be unpickled
        except Exception as error:  # a header that is damaged fails in any way
            raise self._useless(path, f"it cannot be read as an array ({reason(error)})") from error
        if held.dtype != np.uint8 or held.shape != shape:
            raise self._useless(path, f"it is {held.dtype} of shape {held.shape} instead of uint8 of shape {shape}")
        published = upstream.md5[upstream.files.index(path.name)]
        doubt = "" if found == published else f"{path} has the md5 {found}, the published file {published}"
        if doubt and not self.unverified:
            raise unofficial(upstream.name, self.root, self.folder, doubt)
        return held.reshape(len(SEVERITIES), upstream.images, 32, 32, 3).transpose(0, 1, 4, 2, 3), doubt

    def doubts(self) -> list[str]:
        """Read every file, which takes some seconds, and return why it is not the published one, where it is not."""
        return [doubt for doubt in (self.doubt, *(self.images(name)[1] for name in TYPES)) if doubt]

    def _useless(self, path: Path, why: str) -> DemiluneError:
        name = self.upstream.name
        return DemiluneError(f"{name}: {path} cannot be used: {why}; delete {path} and run {remedy(name, self.root)}")


@final
@dataclass(frozen=True, slots=True)
class CIFAR10C:
    """CIFAR-10-C: the 10,000 test images of CIFAR-10 under fifteen corruptions, each in five severities.

    root: folder that holds CIFAR-10-C (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
    unverified: accept files that are not the published ones (the result says so)
    """

    root: str = ""
    unverified: bool = False

    def __post_init__(self) -> None:
        check_types(self)

    def load(self) -> Corrupted:
        """Find the files and read the labels."""
        return read(UPSTREAM10, self)


@final
@dataclass(frozen=True, slots=True)
class CIFAR100C:
    """CIFAR-100-C: the 10,000 test images of CIFAR-100 under fifteen corruptions, each in five severities.

    root: folder that holds CIFAR-100-C (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
    unverified: accept files that are not the published ones (the result says so)
    """

    root: str = ""
    unverified: bool = False

    def __post_init__(self) -> None:
        check_types(self)

    def load(self) -> Corrupted:
        """Find the files and read the labels."""
        return read(UPSTREAM100, self)


def download(data: CIFAR10C | CIFAR100C, url: str = "", progress: Progress | None = None) -> Path:
    """Fetch the archive (2.9 GB) into ``data``'s root and unpack it, unless its folder is there; return the folder.

    ``url`` and refusals are as for :func:`demilune.data.cifar.download`. The archive is verified before it is opened,
    and so what it unpacks to is what was published, and no larger; four more types that it holds are left in it.
    """
    return obtain(_upstream(data), data, url, progress)


def status(data: CIFAR10C | CIFAR100C) -> str:
    """Say in one line whether the files are there and whether they are the published ones; this reads all of them."""
    return survey(_upstream(data), data)


def obtain(upstream: Upstream, data: CIFAR10C | CIFAR100C, url: str, progress: Progress | None) -> Path:
    """Do what :func:`download` says, for any upstream."""
    root = data_root(data.root)
    if (root / upstream.folder).exists():
        read(upstream, replace(data, unverified=False)).doubts()
        return root / upstream.folder
    archive = root / upstream.archive
    fetch(f"{mirror(url, upstream.base)}/{upstream.archive}", archive, upstream.archive_md5, progress)
    unpack(archive, root, [f"{upstream.folder}/{file}" for file in upstream.files])
    return root / upstream.folder


def survey(upstream: Upstream, data: CIFAR10C | CIFAR100C) -> str:
    """Do what :func:`status` says, for any upstream."""
    data_root(data.root)  # a folder that cannot be is refused, not reported
    try:
        found = read(upstream, replace(data, unverified=True))
        doubts = found.doubts()
    except DemiluneError as error:
        return str(error)
    if doubts:
        return f"{upstream.name}: present, not the official files: {found.folder} ({doubts[0]})"
    return f"{upstream.name}: present and verified: {found.folder}"


def read(upstream: Upstream, data: CIFAR10C | CIFAR100C) -> Corrupted:
    """Find the files of ``upstream`` below ``data``'s root, and read their labels."""
    root = data_root(data.root)
    folder, part = root / upstream.folder, root / f"{upstream.archive}.part"
    absent = f"there is no {upstream.folder}"
    locate(upstream.name, root, [(folder, upstream.files)], [part], absent, "delete it and ")
    path, decode = folder / LABELS, partial(_labels, count=upstream.images, classes=upstream.classes)
    labels, doubt = opened(upstream.name, root, path, upstream.md5[0], decode, path)
    if doubt and not data.unverified:
        raise unofficial(upstream.name, root, folder, doubt)
    return Corrupted(upstream, root, folder, labels, doubt, data.unverified)


def _upstream(data: CIFAR10C | CIFAR100C) -> Upstream:
    return UPSTREAM10 if isinstance(data, CIFAR10C) else UPSTREAM100


def _labels(content: bytes, count: int, classes: int) -> Indices:
    """Return labels int64 [count] of a file that repeats them for every severity."""
    try:
        held = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # as above
        raise DemiluneError(f"it cannot be read as an array ({reason(error)})") from error
    shape = (len(SEVERITIES) * count,)
    if held.dtype.kind not in "iu" or held.shape != shape:
        raise DemiluneError(f"it is {held.dtype} of shape {held.shape} instead of whole numbers of shape {shape}")
    labels: Indices = held.reshape(len(SEVERITIES), count).astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        strange = labels.min() if labels.min() < 0 else labels.max()
        raise DemiluneError(f"it has the label {strange}, and labels are from 0 to {classes - 1}")
    if (labels != labels[0]).any():
        raise DemiluneError("its labels are not the same in every severity")
    first: Indices = labels[0]
    return first
