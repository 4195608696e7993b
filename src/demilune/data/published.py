"""What data sets have in common whose authors published files: where they lie, if they are those, their division."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, final

import numpy as np

from demilune.data.download import Progress, fetch
from demilune.data.split import Bytes, Dataset, Indices, Split, fingerprint
from demilune.errors import DemiluneError

Decoded = TypeVar("Decoded")
Arrays = tuple[Bytes, Indices]


class Fields(Protocol):
    """The fields that the configurations of such data sets have."""

    @property
    def root(self) -> str:
        """Folder that holds the files."""

    @property
    def validation(self) -> int:
        """Training images taken out."""

    @property
    def limit(self) -> int:
        """Training images used, or 0."""

    @property
    def pad(self) -> int:
        """Largest shift."""

    @property
    def flip(self) -> bool:
        """Whether images are mirrored."""

    @property
    def unverified(self) -> bool:
        """Whether other files are accepted."""


class Known(Protocol):
    """What is known of a data set, whatever its files."""

    @property
    def name(self) -> str:
        """The name that the command line knows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0,1]."""

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixels in [0,1]."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """Fingerprints of the published arrays, where they are known."""


class File(NamedTuple):
    """A file of images, how many it holds, and the MD5 (32 digits) or SHA-1 (40) of the published one."""

    name: str
    images: int
    digest: str


@final
@dataclass(frozen=True, slots=True)
class Loose:
    """A data set that is published as loose files.

    They are fetched from the folder ``base`` into ``folder`` below the data root, and also found in the root itself.
    ``files`` carry MD5s; ``mean``, ``std`` and ``sha256`` are as for :class:`Known`.
    """

    name: str
    classes: tuple[str, ...]
    base: str
    folder: str
    files: tuple[File, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Supply:
    """How a data set comes to this machine: ``download(data, url, progress)`` returns its folder, ``status(data)``
    says in one line what is there.
    """

    download: Callable[[Any, str, Progress | None], Path]
    status: Callable[[Any], str]


def expanded(given: str) -> Path:
    """Return a path that the user gave, its ~ replaced; refuse one that begins in a home that cannot be found."""
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise DemiluneError(
            f"{given}: the home folder {Path(given).parts[0]} is not known: give the whole path, here or in "
            "$DEMILUNE_DATA"
        ) from error


def data_root(given: str = "") -> Path:
    """Return the folder of all data: the given one, else $DEMILUNE_DATA, else ~/.cache/demilune."""
    return expanded(given or os.environ.get("DEMILUNE_DATA", "") or "~/.cache/demilune")


def reason(error: Exception) -> str:
    """Return in one line what an exception of foreign code says."""
    return " ".join(str(error).split()) or type(error).__name__


def mirror(url: str, base: str) -> str:
    """Return the address of the folder to download from: the given one, else $DEMILUNE_MIRROR, else the authors'."""
    return (url or os.environ.get("DEMILUNE_MIRROR", "") or base).rstrip("/")


def remedy(name: str, root: Path) -> str:
    """Return the command that gets a data set."""
    return f"`demilune data {name} --download --root {root}`"


def check_fields(data: Fields, name: str, images: int, side: int) -> None:
    """Refuse fields that ``images`` training images of ``side`` pixels do not allow."""
    check_counts(data.validation, data.limit, name, images)
    if not 0 <= data.pad <= side // 2:
        raise DemiluneError(f"{name}: pad = {data.pad} is not possible: it is from 0 to {side // 2}, half an image")


def check_counts(validation: int, limit: int, name: str, images: int) -> None:
    """Refuse numbers of validation and training images that ``images`` do not allow."""
    if not 0 <= validation < images:
        raise DemiluneError(
            f"{name}: validation = {validation} is not possible: it is from 0 to {images - 1}, because the "
            f"images are taken out of the {images} for training"
        )
    if not 0 <= limit <= images - validation:
        raise DemiluneError(
            f"{name}: limit = {limit} is not possible: it is from 1 to {images - validation}, the "
            "training images that validation leaves, or 0 for all of them"
        )


def locate(
    name: str, root: Path, places: Sequence[tuple[Path, Sequence[str]]], parts: Sequence[Path], absent: str, mend: str
) -> int:
    """Return which of some places, folders with the files they must hold, is the first that lacks none of them.

    Refuse where there is none: by what the first incomplete folder lacks, by a half-finished download among
    ``parts``, or as missing (``absent`` says what was looked for). ``mend`` is what has to be done with an incomplete
    folder before a download can make it anew; empty where a download completes it.
    """
    incomplete = ""
    for number, (folder, files) in enumerate(places):
        missing = [file for file in files if not (folder / file).is_file()]
        if not missing:
            return number
        if folder.exists() and (mend or len(missing) < len(files)):
            incomplete = incomplete or (
                f"{name}: {folder} is incomplete, it lacks {', '.join(missing)}: {mend}run {remedy(name, root)}"
            )
    if incomplete and (mend or not any(map(Path.is_file, parts))):
        raise DemiluneError(incomplete)
    raise nowhere(name, root, parts, absent)


def nowhere(name: str, root: Path, parts: Sequence[Path], absent: str) -> DemiluneError:
    """Return the refusal of a data set that is missing, or whose download got no further than one of ``parts``."""
    for part in parts:
        if part.is_file():
            return DemiluneError(
                f"{name}: half downloaded, {part} has {part.stat().st_size:,} bytes so far: finish it "
                f"with {remedy(name, root)}"
            )
    return DemiluneError(
        f"{name}: missing in {root}: {absent}; give another folder with --data.root, or get it with "
        f"{remedy(name, root)}"
    )


def opened(
    name: str,
    root: Path,
    path: Path,
    digest: str,
    decode: Callable[[bytes], Decoded],
    spoiled: Path,
    strict: bool = False,
) -> tuple[Decoded, str]:
    """Return what ``decode`` makes of a file, and why the file is not the published one, or nothing.

    ``decode`` raises :class:`DemiluneError` for what is wrong with it; then ``spoiled`` is what is to be deleted.
    An empty ``digest`` raises no doubt. ``strict`` refuses a file in doubt before ``decode`` sees it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DemiluneError(f"{name}: cannot read {path}: {error.strerror}") from error
    doubt = _doubt(path, content, digest) if digest else ""
    if doubt and strict:
        raise unofficial(name, root, path.parent, doubt)
    try:
        return decode(content), doubt
    except DemiluneError as error:
        raise DemiluneError(
            f"{name}: {path} cannot be used: {error}; delete {spoiled} and run {remedy(name, root)}"
        ) from error


def _doubt(path: Path, content: bytes, digest: str) -> str:
    kind = "md5" if len(digest) == 32 else "sha1"
    found = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    return "" if found == digest else f"{path} has the {kind} {found}, the published file {digest}"


def unofficial(name: str, root: Path, at: Path, doubt: str) -> DemiluneError:
    """Return the refusal of files in the folder ``at`` that are not the published ones."""
    return DemiluneError(
        f"{name}: not the official files: {doubt}; use them all the same with --data.unverified true (results will "
        f"say so), or move {'them' if at == root else at} away and run {remedy(name, root)}"
    )


def assembled(
    known: Known, data: Fields, train: Arrays, test: Arrays, doubts: Sequence[str] | None, at: Path
) -> Dataset:
    """Verify and split the arrays that were read from the folder ``at``.

    They are the published ones where no file is in doubt, or where their fingerprints are (``doubts`` is None where
    files say nothing). Validation images are the first of NumPy's ``RandomState(0).permutation``, as in the released
    code of Rice et al. (2020), and the limited training images the next of it.
    """
    images, labels = train
    sha256 = fingerprint(train, test, len(known.classes))
    official = doubts == [] or sha256 == known.sha256
    if doubts is None and not official:
        other = next(each for each in sha256 if sha256[each] != known.sha256.get(each))
        doubts = [f"{other} have the sha256 {sha256[other]}, the published ones {known.sha256.get(other)}"]
    if not (official or data.unverified):
        raise unofficial(known.name, data_root(data.root), at, (doubts or [""])[0])
    source = str(at)
    if doubts:
        source += " (repacked; images and labels are the published ones)" if official else f" ({doubts[0]})"
    shuffled = np.random.RandomState(0).permutation(len(labels)).astype(np.int64)
    end = data.validation + data.limit if data.limit else len(labels)
    return Dataset(
        name=known.name,
        classes=known.classes,
        train=Split.of(images, labels, shuffled[data.validation : end]),
        validation=Split.of(images, labels, shuffled[: data.validation]),
        test=Split.of(*test, np.arange(len(test[1]))),
        mean=known.mean,
        std=known.std,
        pad=data.pad,
        flip=data.flip,
        sha256=sha256,
        official=official,
        source=source,
    )


def told(name: str, root: str, load: Callable[[], Dataset]) -> str:
    """Say in one line whether the files that ``load`` reads, or refuses, are there and the published ones."""
    data_root(root)  # a folder that cannot be is refused, not reported
    try:
        found = load()
    except DemiluneError as error:
        return str(error)
    state = "present and verified" if found.official else "present, not the official files"
    return f"{name}: {state}: {found.source}"


def find_loose(upstream: Loose, root: Path) -> tuple[Path, list[str]]:
    """Return the folder that holds all files of a data set and their names there; a name without .gz will do."""
    places = [
        (folder, [_packed_or_not(folder, file.name) for file in upstream.files])
        for folder in (root / upstream.folder, root)
    ]
    parts = [root / upstream.folder / f"{file.name}.part" for file in upstream.files]
    names = " and ".join(file.name.removesuffix(".gz") for file in upstream.files[:2])
    absent = f"{names} are neither in {upstream.folder} nor in it itself"
    return places[locate(upstream.name, root, places, parts, absent, "")]


def _packed_or_not(folder: Path, name: str) -> str:
    plain = name.removesuffix(".gz")
    return plain if (folder / plain).is_file() else name


def obtain_loose(
    upstream: Loose, data: Fields, load: Callable[[], object], url: str, progress: Progress | None
) -> Path:
    """Fetch the files of a data set, unless they are there, and return their folder.

    ``load`` reads and verifies what is there. Raise :class:`DemiluneError` where files are there that are not the
    published ones (they are left alone), and as :func:`~demilune.data.download.fetch` does.
    """
    root = data_root(data.root)
    try:
        folder, _ = find_loose(upstream, root)
    except DemiluneError:
        folder = root / upstream.folder
        for file in upstream.files:
            fetch(f"{mirror(url, upstream.base)}/{file.name}", folder / file.name, file.digest, progress)
        return folder
    load()
    return folder
