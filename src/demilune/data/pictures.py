"""Image files turned into one array: decoded by a few threads, and kept, so that a run need not do it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from demilune.data.published import expanded, reason
from demilune.data.split import Bytes, Indices
from demilune.errors import DemiluneError

if TYPE_CHECKING:
    from PIL import Image

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what Pillow logs is printed, beside our refusal

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
VERSION = 1
"""Of how pixels are made: another one makes what was kept invalid."""
WORTH_KEEPING = 1 << 25
"""Bytes of pixels from which on they are kept: fewer are decoded in about a second."""
STRIP = 64
"""How many times as long as wide an image can be: of a longer one no more than its middle is resized."""


@final
@dataclass(frozen=True, slots=True)
class Decoder:
    """How an image file becomes a square of ``size`` pixels, uint8 [C,size,size].

    It is turned upright, and its centred square is taken: with ``zoom`` the largest one, resized to ``size``;
    without, the one of ``size`` after the shorter side was resized to it, if it has another length, so that an
    image of the right size keeps its pixels. Resizing is bicubic. ``grey`` makes one channel instead of three;
    ``source`` is whom refusals speak for.
    """

    source: str
    size: int
    grey: bool = False
    zoom: bool = True

    def read(self, path: Path) -> Bytes:
        """Return the pixels of a file; raise :class:`DemiluneError` where it is broken."""
        from PIL import Image, ImageOps

        side = self.size
        try:
            with Image.open(path) as opened:
                if opened.mode.startswith(("I", "F")):  # Pillow would cut its values off at 255
                    raise ValueError("more than 8 bits a channel")
                image = ImageOps.exif_transpose(opened)
                if "transparency" in image.info:  # a palette of colours and opacities cannot become RGB at once
                    image = image.convert("RGBA")
                image = image.convert("L" if self.grey else "RGB")
                if self.zoom:
                    image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
                else:
                    shorter = min(image.size)
                    if shorter != side:
                        # The whole of a strip, enlarged until it is wide enough, could fill the memory.
                        image = _middle(image, *(min(each, STRIP * shorter) for each in image.size))
                        scaled = [max(side, round(each * side / shorter)) for each in image.size]
                        image = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
                    image = _middle(image, side, side)
        except Exception as error:  # Pillow's decoders fail with any kind of exception on a broken file
            raise DemiluneError(
                f"{self.source}: {path} cannot be read as an image ({reason(error)}): replace it, or take it away"
            ) from error
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if self.grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def all(self, root: Path, paths: Sequence[Path]) -> Bytes:
        """Return the pixels of all files below ``root``, uint8 [N,C,size,size], from the last time if they are kept."""
        shape = (len(paths), 1 if self.grey else 3, self.size, self.size)
        kept = self._keeping(root, paths) if int(np.prod(shape)) >= WORTH_KEEPING else None
        images = None if kept is None else _recalled(kept, shape)
        if images is None:
            images = np.empty(shape, np.uint8)
            # Pillow decodes outside Python's lock. It warns of what it can read all the same; which warnings are heard
            # is a matter of the whole process, and so it is said here and not in the threads.
            with (
                warnings.catch_warnings(action="ignore"),
                ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            ):
                for number, pixels in enumerate(pool.map(self.read, paths)):
                    images[number] = pixels
            if kept is not None:
                _keep(kept, images)
        return images

    def _keeping(self, root: Path, paths: Sequence[Path]) -> Path | None:
        """Return the file that pixels of these files are kept in: another one when a file or the decoder changes."""
        from PIL import __version__ as pillow

        try:
            facts = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
            folder = expanded(os.environ.get("DEMILUNE_CACHE", "") or "~/.cache/demilune/decoded")
        except (OSError, DemiluneError):  # a file has just gone, or nobody is at home
            return None
        told = json.dumps([VERSION, pillow, asdict(self), facts]).encode()
        return folder / f"{hashlib.sha256(told).hexdigest()}.npz"


def _recalled(path: Path, shape: tuple[int, ...]) -> Bytes | None:
    """Return what was kept, or None where there is nothing, or nothing that can be trusted."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as held,
        ):
            images: Bytes = held["images"]  # the zip file's checksum finds a wrong bit
            return images if images.dtype == np.uint8 and images.shape == shape else None
    except Exception:  # a damaged zip file can fail in any way, and then it is made anew
        return None


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _keep(path: Path, images: Bytes) -> None:
    """Write the pixels beside ``path`` and rename them; a folder that cannot be written keeps nothing."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".keeping-", suffix=".npz", dir=path.parent)
        beside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, images=images)
            beside.chmod(0o644)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def folders(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def is_image(path: Path) -> bool:
    """Return whether a path is a file that is named as an image is, and not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def read_classes(decoder: Decoder, folder: Path, classes: Sequence[str]) -> tuple[Bytes, Indices]:
    """Return all images of the classes' folders, uint8 [N,C,size,size], by class and name, and labels, int64 [N].

    A class without a folder is passed over; one without images is refused.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (folder / name).exists():
            continue
        if not (folder / name).is_dir():
            raise DemiluneError(
                f"{decoder.source}: {folder / name} is a file, where the folder of the class {name} was expected: "
                "take it away"
            )
        found = sorted(path for path in (folder / name).iterdir() if is_image(path))
        if not found:
            raise DemiluneError(f"{decoder.source}: {folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DemiluneError(f"{decoder.source}: {folder} holds no images")
    return decoder.all(folder, paths), np.array(labels, np.int64)
