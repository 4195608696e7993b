"""Example images as data URIs: clean, attacked, and what the attack added."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from demilune.report.files import Arrays
from demilune.report.read import Entry

SHOWN = 6  # examples per evaluation: the first ones of the file, whatever the attack did to them


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One image before and after the attack; pictures are data URIs, confidences in [0,1]."""

    number: int
    clean: str
    attacked: str
    added: str
    label: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float


@final
@dataclass(frozen=True, slots=True)
class Gallery:
    """The examples of one evaluation under its last attack with images; differences are amplified."""

    entry: Entry
    attack: str
    factor: float
    pixelated: bool
    examples: tuple[Example, ...]


def galleries(entries: Sequence[Entry]) -> list[Gallery]:
    """Return the galleries of the entries that have one."""
    return [made for entry in entries if entry.gallery and (made := _gallery(entry, entry.gallery))]


def _gallery(entry: Entry, arrays: Arrays) -> Gallery | None:
    rows = [row for row in entry.evaluation.rows if f"image.{row.name}" in arrays]
    if not rows or not len(arrays["ids"]):
        return None
    row = rows[-1]
    clean, attacked = arrays["clean"][:SHOWN], arrays[f"image.{row.name}"][:SHOWN]
    before, after = arrays["clean_probabilities"][:SHOWN], arrays[f"probabilities.{row.name}"][:SHOWN]
    largest = float(np.abs(attacked - clean).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    names = entry.evaluation.classes
    examples = tuple(
        Example(
            int(arrays["ids"][i]),
            uri(clean[i]),
            uri(attacked[i]),
            uri(0.5 + factor * (attacked[i] - clean[i])),
            names[int(arrays["labels"][i])],
            names[int(before[i].argmax())],
            float(before[i].max()),
            names[int(after[i].argmax())],
            float(after[i].max()),
        )
        for i in range(len(clean))
    )
    return Gallery(entry, row.title, factor, clean.shape[-1] < 96, examples)


def uri(image: npt.NDArray[np.floating]) -> str:
    """Return a [C,H,W] image in [0,1] as the data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def png(image: npt.NDArray[np.floating]) -> bytes:
    """Encode a [C,H,W] image in [0,1], grey or RGB, as PNG."""
    values = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in values)  # each line begins with its filter, none

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    whole = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole
