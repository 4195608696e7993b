"""Example images as data URIs: clean, under each attack, what the attack added, and who was fooled by it."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from demilune.report.files import Arrays
from demilune.report.read import Entry
from demilune.results import Row

BUDGET = 1_500_000  # characters of pictures on a page; more examples than fit are left out, and it is said how many
LARGE = 96  # pixels: from this side on pictures are compressed with loss
GUESSES = 3  # classes beside a picture


class Guess(NamedTuple):
    """A class, its confidence on the clean and on the attacked image in [0,1], and whether it is the true one."""

    name: str
    before: float
    after: float
    true: bool


@final
@dataclass(frozen=True, slots=True)
class View:
    """An image under one attack: pictures as data URIs, and the likeliest classes before and after."""

    attack: str
    picture: str
    added: str
    broken: bool
    guesses: tuple[Guess, ...]


class Judged(NamedTuple):
    """What the evaluation found of one image under one attack."""

    attack: str
    right: bool


@final
@dataclass(frozen=True, slots=True)
class Specimen:
    """One image under all attacks of which the gallery has a picture; ``judged`` is empty where results are missing."""

    number: int
    label: str
    clean: str
    said: str
    confidence: float
    views: tuple[View, ...]
    judged: tuple[Judged, ...]

    @property
    def size(self) -> int:
        """Characters of its pictures."""
        return len(self.clean) + sum(len(view.picture) + len(view.added) for view in self.views)


@final
@dataclass(frozen=True, slots=True)
class Gallery:
    """The examples of one evaluation, differences amplified by ``factor``.

    ``lacking`` are the attacks that were run and of which it holds no picture, ``left`` the number of examples that
    it holds and the page does not show.
    """

    entry: Entry
    factor: float
    pixelated: bool
    lossy: bool
    lacking: tuple[str, ...]
    specimens: tuple[Specimen, ...]
    left: int


def galleries(entries: Sequence[Entry]) -> list[Gallery]:
    """Return the galleries of the entries that have one; as many examples of each as a page has room for."""
    made = [gallery for entry in entries if entry.gallery and (gallery := _gallery(entry, entry.gallery))]
    most = max((len(one.specimens) for one in made), default=0)
    fitting = [k for k in range(2, most + 1) if sum(x.size for one in made for x in one.specimens[:k]) <= BUDGET]
    shown = max(fitting, default=1)
    return [replace(one, specimens=one.specimens[:shown], left=max(0, len(one.specimens) - shown)) for one in made]


def _gallery(entry: Entry, arrays: Arrays) -> Gallery | None:
    attacks = [row for row in entry.evaluation.rows if row.role == "attack" and row.name not in ("clean", "worst")]
    shown = [row for row in entry.evaluation.rows if f"image.{row.name}" in arrays]
    if not shown or not len(arrays["ids"]):
        return None
    clean = arrays["clean"]
    largest = max(float(np.abs(arrays[f"image.{row.name}"] - clean).max()) for row in shown)
    factor = 0.5 / largest if largest > 0 else 1.0
    side = max(clean.shape[-2:])
    specimens = tuple(_specimen(entry, arrays, i, shown, attacks, factor) for i in range(len(clean)))
    lacking = tuple(row.title for row in attacks if row not in shown)
    return Gallery(entry, factor, side < LARGE, side >= LARGE, lacking, specimens, 0)


def _specimen(
    entry: Entry, arrays: Arrays, i: int, shown: Sequence[Row], attacks: Sequence[Row], factor: float
) -> Specimen:
    names, label, clean = entry.evaluation.classes, int(arrays["labels"][i]), arrays["clean"][i]
    before = arrays["clean_probabilities"][i]
    views = []
    for row in shown:
        attacked, after = arrays[f"image.{row.name}"][i], arrays[f"probabilities.{row.name}"][i]
        likely = dict.fromkeys([label, *np.argsort(-after, kind="stable"), *np.argsort(-before, kind="stable")])
        guesses = [Guess(names[k], float(before[k]), float(after[k]), k == label) for k in list(likely)[:GUESSES]]
        views.append(
            View(
                _alone(row), uri(attacked), uri(0.5 + factor * (attacked - clean)), int(after.argmax()) != label,
                tuple(guesses),
            )
        )  # fmt: skip
    judged = tuple(Judged(row.title, right) for row in attacks if (right := _right(entry, row, arrays, i)) is not None)
    said = int(before.argmax())
    return Specimen(
        int(arrays["ids"][i]), names[label], uri(clean), names[said], float(before[said]), tuple(views), judged
    )


def _alone(row: Row) -> str:
    """Return an attack's title without those before it in a partial sum: pictures are of the attack alone."""
    return row.title.rpartition(" + ")[2] if row.name.startswith("autoattack") else row.title


def _right(entry: Entry, row: Row, arrays: Arrays, i: int) -> bool | None:
    """Return whether the evaluation found the example right under an attack; None where it does not say."""
    images = entry.images
    right = None if images is None else images.get(f"right.{row.name}")
    if images is None or right is None or "ids" not in images:
        return None
    place = images.get(f"place.{row.name}", np.arange(len(images["ids"])))
    found = np.flatnonzero(images["ids"][place] == arrays["ids"][i])
    return bool(right[found[0]]) if len(found) == 1 else None


def uri(image: npt.NDArray[np.floating]) -> str:
    """Return a [C,H,W] image in [0,1] as a data URI: of a PNG, or of a JPEG where it is large."""
    kind, content = ("jpeg", jpeg(image)) if max(image.shape[-2:]) >= LARGE else ("png", png(image))
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


def jpeg(image: npt.NDArray[np.floating]) -> bytes:
    """Encode a [C,H,W] image in [0,1], grey or RGB, as JPEG."""
    from PIL import Image

    values, out = _bytes(image), io.BytesIO()
    Image.fromarray(values if values.shape[2] == 3 else values[:, :, 0]).save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()


def png(image: npt.NDArray[np.floating]) -> bytes:
    """Encode a [C,H,W] image in [0,1], grey or RGB, as PNG."""
    values = _bytes(image)
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in values)  # each line begins with its filter, none

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    whole = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole


def _bytes(image: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Return a [C,H,W] image in [0,1] as [H,W,C] in 255ths."""
    values: npt.NDArray[np.uint8] = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)
    return values


__all__ = ["Gallery", "Guess", "Judged", "Specimen", "View", "galleries", "png", "uri"]
