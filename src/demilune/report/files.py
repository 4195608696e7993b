"""The files that a report is made of, each read whole and checked, or refused in one line."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, final

import numpy as np
import numpy.typing as npt

from demilune.diagnosis import anew
from demilune.errors import DemiluneError
from demilune.results import Evaluation
from demilune.runs import read_json
from demilune.surveys import Direction, Survey, survey

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Setting: TypeAlias = tuple[str, str, str, float, tuple[tuple[str, str], ...]]

CURVES = {"iterations": "iterations", "budget": "budgets", "corruption": "corruptions"}
"""How the names of rows begin that a figure is made of, and the figure's kind."""


@final
@dataclass(frozen=True, slots=True)
class Measured:
    """A file of a run's curves: an evaluation that figures are made of, or surveys of the loss (``evaluation`` None).

    ``kind`` is iterations, budgets, corruptions, gaps (one side of one) or surveys. ``n`` images were looked at, with
    the random draws of ``seed``.
    """

    kind: str
    path: Path
    setting: Setting
    official: bool
    checkpoint: str
    command: str
    evaluation: Evaluation | None
    surveys: tuple[Survey, ...]
    n: int
    seed: int


def setting(found: Evaluation) -> Setting:
    """Return what two evaluations must share to be compared: the very data, the split and the ball."""
    return (found.data, found.split, found.norm, found.eps, tuple(sorted(found.data_sha256.items())))


def evaluation(path: Path, value: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation that a file holds."""
    try:
        found = Evaluation.from_json(value)
    except DemiluneError as error:
        raise DemiluneError(f"{path}: {error}") from None
    counts = [(row.n, row.right, row.n if row.right_after is None else row.right_after) for row in found.rows]
    if not counts or not all(isinstance(n, int) and n > 0 and 0 <= r <= n and 0 <= a <= n for n, r, a in counts):
        raise DemiluneError(f"{path} counts no images, or more right than there are: evaluate the checkpoint again")
    if found.rows[0].name != "clean":
        raise DemiluneError(f"{path} does not begin with the clean accuracy: evaluate the checkpoint again")
    return found


def judged(path: Path, found: Evaluation, images: Arrays | None) -> Evaluation:
    """Return the evaluation with findings and verdict by the present rules, which may not be those it was written by.

    A verdict that was written stays where per-image results are missing: it was made of more than is there.
    """
    whole = images is not None and all(f"right.{row.name}" in images for row in found.rows)
    if found.verdict is not None and not whole:
        return found
    try:
        return anew(found, images)
    except (ValueError, ArithmeticError) as error:  # names of rows that evaluating does not write
        raise DemiluneError(f"{path} cannot be judged ({error}): evaluate the checkpoint again") from None


def arrays(path: Path) -> Arrays | None:
    """Return the arrays beside an evaluation, None where there is no such file."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DemiluneError(f"{path} cannot be read ({error}): evaluate the checkpoint again") from None


def has_examples(gallery: Arrays | None) -> TypeGuard[Arrays]:
    """Say whether there is any: a model that is never right leaves an empty gallery."""
    return gallery is not None and any(name.startswith("image.") for name in gallery)


def agree(path: Path, found: Evaluation, images: Arrays | None, gallery: Arrays | None) -> None:
    """Refuse files of different evaluations side by side: an interrupted copy must not pass for a result."""
    for row in found.rows:
        right = None if images is None else images.get(f"right.{row.name}")
        if images is None or right is None:
            continue
        whole = right.shape == (row.n,) and int(right.sum()) == row.right
        if not whole or not _placed(images.get(f"place.{row.name}"), row.n, found.rows[0].n):
            raise DemiluneError(
                f"{path} and {path.stem}.images.npz do not belong together (row {row.name!r}): evaluate again"
            )
    if not has_examples(gallery):
        return
    try:
        shown = [name.removeprefix("image.") for name in gallery if name.startswith("image.")]
        shape, count = gallery["clean"].shape, len(gallery["labels"])
        kinds = (count, len(found.classes))
        whole = len(shape) == 4 and shape[0] == count and shape[1] in (1, 3)
        whole &= gallery["clean_probabilities"].shape == kinds and gallery["ids"].shape == (count,)
        whole &= all(gallery[f"image.{row}"].shape == shape for row in shown)
        whole &= all(gallery[f"probabilities.{row}"].shape == kinds for row in shown)
        whole &= bool(np.all((gallery["labels"] >= 0) & (gallery["labels"] < len(found.classes))))
    except KeyError as error:
        raise DemiluneError(f"{path.stem}.gallery.npz beside {path} lacks {error}: evaluate again") from None
    if not whole:
        raise DemiluneError(f"{path} and {path.stem}.gallery.npz do not belong together: evaluate again")


def _placed(place: Array | None, n: int, images: int) -> bool:
    """Say whether it is known which of the images a row's ``n`` are: all of them, or those at ``place``."""
    if place is None:
        return n == images
    if place.shape != (n,) or place.dtype.kind not in "iu":
        return False
    return bool(place[0] >= 0 and place[-1] < images and np.all(place[1:] > place[:-1]))


def measured(path: Path) -> Measured | None:
    """Return what a file of the folder ``curves`` holds; None for a cross-check, of which no figure is made."""
    value = read_json(path, "a curve")
    if value.get("kind") == "agreement":
        return None
    if "surveys" in value:
        return _surveyed(path, value)
    if "rows" not in value:
        raise DemiluneError(f"{path} is neither an evaluation nor a survey: take it out of that folder")
    found = evaluation(path, value)
    kind = kind_of(found, path)
    if not kind:
        raise DemiluneError(f"{path} is an evaluation of which no figure is made: move it to the folder evaluations")
    return Measured(
        kind, path, setting(found), found.data_official, found.checkpoint, found.command, found, (), found.rows[0].n,
        found.seed,
    )  # fmt: skip


def kind_of(found: Evaluation, path: Path) -> str:
    """Return the kind of figure that an evaluation's rows were measured for, empty where for none.

    What lies in the folder ``evaluations`` is none, whatever its rows are: PGD-10 alone is an evaluation there, and one
    side of a gap only in ``curves``.
    """
    if path.parent.name == "evaluations":
        return ""
    kinds = [kind for row in found.rows if (kind := CURVES.get(row.name.split(".")[0]))]
    if kinds:
        return kinds[0]
    return "gaps" if {row.name for row in found.rows} - {"clean", "worst"} == {"pgd10"} else ""


def _surveyed(path: Path, value: Mapping[str, Any]) -> Measured:
    given, sums = value["surveys"], value.get("data_sha256")
    data, split, checkpoint, command = (value.get(name) for name in ("data", "split", "checkpoint", "command"))
    texts = [data, split, checkpoint, command, *(sums.values() if isinstance(sums, dict) else (None,))]
    whole = all(isinstance(text, str) for text in texts) and isinstance(given, list) and given
    if not whole or not all(isinstance(one, dict) for one in given):
        raise DemiluneError(f"{path} is a broken survey: measure it again with demilune curves")
    try:
        found = tuple(survey(one) for one in given)
    except DemiluneError as error:
        raise DemiluneError(f"{path}: {error}") from None
    where = (str(data), str(split), found[0].norm, found[0].eps, tuple(sorted(dict(sums or {}).items())))
    n, seed = max(one.images if isinstance(one, Direction) else one.n for one in found), value.get("seed", 0)
    return Measured(
        "surveys", path, where, value.get("data_official") is True, str(checkpoint), str(command), None, found, n,
        seed if isinstance(seed, int) else 0,
    )  # fmt: skip


__all__ = [
    "CURVES",
    "Arrays",
    "Measured",
    "Setting",
    "agree",
    "arrays",
    "evaluation",
    "has_examples",
    "judged",
    "kind_of",
    "measured",
    "setting",
]
