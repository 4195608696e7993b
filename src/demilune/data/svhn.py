"""SVHN (Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011), cropped digits."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

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
    reason,
    told,
)
from demilune.data.split import Bytes, Dataset, Indices
from demilune.errors import DemiluneError, check_types

# MD5s: torchvision's datasets/svhn.py. Mean and deviation are those that RWP's code normalises with (rwp.md 7).
UPSTREAM = Loose(
    name="svhn",
    classes=tuple("0123456789"),
    base="http://ufldl.stanford.edu/housenumbers",
    folder="svhn",
    files=(
        File("train_32x32.mat", 73_257, "e26dedcc434d2e4c54c9b2d4a06d8373"),
        File("test_32x32.mat", 26_032, "eb5a983be6a315427106f1b164d9cef3"),
    ),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

# SciPy's reader can crash on a damaged file, and then it takes this program with it.
PROGRAM = """
import io, sys, numpy
from scipy.io import loadmat
held = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=("X", "y"))
arrays = {name: held[name] for name in ("X", "y") if isinstance(held.get(name), numpy.ndarray)}
numpy.savez(out := io.BytesIO(), **{name: array for name, array in arrays.items() if not array.dtype.hasobject})
sys.stdout.buffer.write(out.getbuffer())
"""
"""Turns a .mat file into an .npz of its arrays, in a process of its own."""


@final
@dataclass(frozen=True, slots=True)
class SVHN(Data):
    """Street View House Numbers: 73,257 training and 26,032 test images, 32 by 32 RGB, ten digits.

    As is usual in adversarial training, there is no augmentation (a mirrored digit is no digit), and the 531,131
    easier images of the extra set are not used.

    root: folder that holds train_32x32.mat and test_32x32.mat, or svhn (empty: $DEMILUNE_DATA, else ~/.cache/demilune)
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
    pad: int = 0
    flip: bool = False
    unverified: bool = False
    extra: Extra = Extra()

    def __post_init__(self) -> None:
        check_types(self)
        check_fields(self, "svhn", UPSTREAM.files[0].images, 32)

    def load(self) -> Dataset:
        """Read and verify the files; a few seconds."""
        return read(UPSTREAM, self)


def download(data: SVHN, url: str = "", progress: Progress | None = None) -> Path:
    """Fetch both files into svhn below ``data``'s root, unless they are there, and return their folder.

    ``url`` and refusals are as for :func:`demilune.data.cifar.download`.
    """
    return obtain_loose(UPSTREAM, data, replace(data, unverified=False).load, url, progress)


def status(data: SVHN) -> str:
    """Say in one line whether the files are there and whether they are the published ones."""
    return told("svhn", data.root, replace(data, unverified=False).load)  # others are not read: see PROGRAM


def read(upstream: Loose, data: SVHN) -> Dataset:
    """Read, verify and split the files of ``upstream`` below ``data``'s root."""
    root = data_root(data.root)
    folder, _ = find_loose(upstream, root)
    parts, doubts = [], []
    for file in upstream.files:
        path = folder / file.name
        decode = partial(_decode, count=file.images, apart=data.unverified)
        part, doubt = opened(upstream.name, root, path, file.digest, decode, path, strict=not data.unverified)
        parts.append(part)
        doubts += [doubt] if doubt else []
    return assembled(upstream, data, parts[0], parts[1], doubts, folder)


def _decode(content: bytes, count: int, apart: bool) -> tuple[Bytes, Indices]:
    """Return images uint8 [count,3,32,32] and labels int64 [count] of a .mat file: its 10 is the digit 0.

    ``apart`` reads it in another process, for a file that nobody vouches for.
    """
    held: Any
    if apart:
        held = _apart(content)
    else:
        from scipy.io import loadmat

        held = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    pixels, labels = _array(held, "X"), _array(held, "y")
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, count):
        raise DemiluneError(
            f"its X is {pixels.dtype} of shape {pixels.shape} instead of uint8 of shape (32, 32, 3, {count})"
        )
    if labels.dtype.kind not in "iuf" or labels.size != count:
        raise DemiluneError(f"its y is {labels.dtype} of shape {labels.shape} instead of {count} labels")
    strange = labels[~np.isin(labels, np.arange(1, 11))]
    if strange.size:
        raise DemiluneError(f"it has the label {strange[0]}, and labels are from 1 to 10, which is the digit 0")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return images, labels.reshape(-1).astype(np.int64) % 10


def _apart(content: bytes) -> dict[str, Any]:
    """Return the arrays X and y of a .mat file, those that are there; any end of their reader is a refusal."""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], input=content, capture_output=True)
        if done.returncode == 0:
            with np.load(io.BytesIO(done.stdout), allow_pickle=False) as held:
                return dict(held)
    except Exception as error:  # there is no memory for another process, or for what it read
        raise DemiluneError(f"it cannot be read ({reason(error)})") from error
    lines = done.stderr.decode(errors="replace").splitlines()
    last = lines[-1] if done.returncode == 1 and lines else f"its reader ended with the code {done.returncode}"
    if last.startswith("NotImplementedError"):  # how SciPy says that it is an HDF5 file
        raise DemiluneError("it was saved by MATLAB as version 7.3, and the published files are of version 5")
    raise DemiluneError(f"it is damaged, cut off or no .mat file ({last})")


def _array(held: Any, name: str) -> Any:
    found = held.get(name)
    if not isinstance(found, np.ndarray):
        raise DemiluneError(f"it has no array {name}")
    return found
