"""Which differences between evaluations are more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from demilune.paired import Difference, paired
from demilune.report.files import Setting, setting
from demilune.report.read import Entry


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two evaluations and the paired difference of their worst-case accuracies, None where images differ."""

    first: Entry
    second: Entry
    difference: Difference | None


def settings(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Group entries by setting, in order of appearance."""
    groups: dict[Setting, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(setting(entry.evaluation), []).append(entry)
    return list(groups.values())


def difference(first: Entry, second: Entry, row: str) -> Difference | None:
    """Return first - second in strict accuracy of a row; None unless both saw the same images."""
    if setting(first.evaluation) != setting(second.evaluation):
        return None
    a, b = _by_id(first, row), _by_id(second, row)
    if a is None or b is None or not np.array_equal(a[0], b[0]):
        return None
    return paired(a[1], b[1])


def _by_id(entry: Entry, row: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
    """Return a row's images in the order of their ids: the ids, and which are right; None where unknown."""
    images = entry.images
    if images is None or not {"ids", f"right.{row}"} <= set(images):
        return None
    ids, right = images["ids"], images[f"right.{row}"].astype(bool)
    place = images.get(f"place.{row}", np.arange(len(ids)))
    if len(place) != len(right) or place.max(initial=0) >= len(ids):
        return None
    order = np.argsort(ids[place], kind="stable")
    return ids[place][order], right[order]


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Return every pair of a group, the better worst case first."""
    scored = [(entry, row) for entry in entries if (row := entry.evaluation.row("worst"))]
    scored.sort(key=lambda one: -one[1].accuracy)
    return [Pair(a, b, difference(a, b, "worst")) for (a, _), (b, _) in itertools.combinations(scored, 2)]


def tied(entry: Entry, best: Entry, row: str) -> bool:
    """Say whether an entry is within two paired standard errors of the best; False where unknown."""
    found = difference(best, entry, row)
    return found is not None and not found.clear
