"""Frost, which needs photographs: the user's own copies of the original five, or an installed package's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption.weather import grey
from demilune.data.published import expanded, reason
from demilune.errors import DemiluneError

NAMES = ("frost1", "frost2", "frost3", "frost4", "frost5")
"""The original brings a sixth along, which it never draws."""
PACKAGE = "imagecorruptions"
"""The package that brings the photographs along; it is not imported, because that needs OpenCV."""
REMEDY = f"get them with `pip install --no-deps {PACKAGE}`, or name a folder that has {NAMES[0]}.png … {NAMES[-1]}.jpg"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Frost:
    """Five photographs of frost at a fifth of their size, each uint8 [3,h,w]."""

    photos: tuple[Tensor, ...]

    @classmethod
    def read(cls, folder: str | Path) -> Frost:
        """Read the photographs in a folder: frost1 … frost5 (.png, .jpg), or frost1_fifth.png … frost5_fifth.png.

        Those of the original size are shrunk by taking the third of every five pixels, which is what OpenCV's linear
        resizing to exactly a fifth does. Raise :class:`DemiluneError` where one is missing or broken.
        """
        at = expanded(str(folder))
        if not at.is_dir():
            raise DemiluneError(f"frost: there is no folder {at}: {REMEDY}")
        small = [at / f"{name}_fifth.png" for name in NAMES]
        if all(map(Path.is_file, small)):
            return cls(tuple(_photo(path, 1) for path in small))
        ends = {name: [at / f"{name}{end}" for end in (".png", ".jpg")] for name in NAMES}
        found = {name: path for name, paths in ends.items() for path in reversed(paths) if path.is_file()}
        missing = [name for name in NAMES if name not in found]
        if missing:
            raise DemiluneError(f"frost: {at} lacks the photographs {', '.join(missing)} (.png or .jpg): {REMEDY}")
        return cls(tuple(_photo(found[name], 5) for name in NAMES))

    def over(self, images: Tensor, severity: int, rng: Stream) -> Tensor:
        """Return a · image + b · a random piece of a random photograph, in levels."""
        share, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
        count, channels, height, width = images.shape
        chosen = rng.integers("photo", (count,), 0, len(self.photos))
        corner = rng.uniform("corner", (count, 2), dtype=torch.float64)
        pieces = torch.empty(count, 3, height, width, dtype=torch.float64)
        for number, photo in enumerate(self.photos):
            free = torch.tensor(photo.shape[1:]) - torch.tensor([height, width])
            if free.min() < 1:
                raise DemiluneError(
                    f"frost: images of {height} by {width} pixels are too large: of {NAMES[number]} no more than "
                    f"{photo.shape[1]} by {photo.shape[2]} are left at a fifth of its size"
                )
            rows = (chosen == number).nonzero()[:, 0]
            top, left = (corner[rows] * free).long().unbind(1)
            row, column = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
            pieces[rows] = photo[:, row[:, :, None], column[:, None, :]].transpose(0, 1).double()
        mixed = share * images.double() + ice * (grey(pieces) if channels == 1 else pieces)
        return mixed.clamp(0, 255).to(torch.uint8)


def find_frost(folder: str = "") -> Frost | None:
    """Return the photographs in a folder; with none named, those of the installed package, or None without it."""
    if folder:
        return Frost.read(folder)
    spec = find_spec(PACKAGE)
    places = [Path(place, "frost") for place in (spec.submodule_search_locations or ())] if spec else []
    return next((Frost.read(place) for place in places if place.is_dir()), None)


def _photo(path: Path, every: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))[every // 2 :: every, every // 2 :: every]
    except Exception as error:  # Pillow's decoders fail with any kind of exception on a broken file
        raise DemiluneError(f"frost: {path} cannot be read as an image ({reason(error)}): replace it") from error
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
