"""Which differences between evaluations are more than chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt

from demilune.paired import LEVEL, Difference, discordant, holm, mcnemar, paired
from demilune.report import theme
from demilune.report.files import Setting, setting
from demilune.report.read import Entry
from demilune.results import Evaluation


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two evaluations and what the images that both attacked say of their accuracies in one row, first - second.

    ``difference`` is None where no image is known to be common. Of the common images ``both`` are right in both,
    ``wins`` in the first only, ``losses`` in the second only; ``p`` is the exact McNemar test's of these, ``corrected``
    the same after Holm over the pairs it was made with (NaN where unknown). ``note`` says where the row is not of the
    same attacks in both.
    """

    first: Entry
    second: Entry
    row: str
    difference: Difference | None
    both: int = 0
    wins: int = 0
    losses: int = 0
    p: float = math.nan
    corrected: float = math.nan
    note: str = ""

    @property
    def accuracies(self) -> tuple[float, float]:
        """The two accuracies on the common images, in [0,1]; NaN where there are none."""
        n = math.nan if self.difference is None else self.difference.n
        return (self.both + self.wins) / n, (self.both + self.losses) / n

    @property
    def clear(self) -> bool:
        """Whether it is more than chance: the corrected p is below :data:`demilune.paired.LEVEL`."""
        return self.corrected < LEVEL

    @property
    def reading(self) -> str:
        """Say in words which is better, or that nothing tells."""
        if self.difference is None:
            return "no per-image results of the same images"
        better, worse = (self.first, self.second) if self.difference.value > 0 else (self.second, self.first)
        said = f"{better.label} beats {worse.label}" if self.clear else f"no difference at {100 * LEVEL:g} %"
        return f"{said} ({self.note})" if self.note else said


def probability(p: float) -> str:
    """Return a p value with two digits; what is smaller than a ten-thousandth is only said to be."""
    return theme.NONE if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


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


def compared(first: Entry, second: Entry, row: str) -> Pair:
    """Return two evaluations of one setting with their difference on the images that both have, not yet corrected."""
    a, b = _by_id(first, row), _by_id(second, row)
    note = unlike(first, second, row)
    if a is None or b is None:
        return Pair(first, second, row, None, note=note)
    common, here, there = np.intersect1d(a[0], b[0], return_indices=True)
    if len(common) == 0:
        return Pair(first, second, row, None, note=note)
    one, other = a[1][here], b[1][there]
    wins, losses = discordant(one, other)
    both = int(np.sum(one & other))
    return Pair(first, second, row, paired(one, other), both, wins, losses, mcnemar(wins, losses), note=note)


def corrected(made: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with their p corrected for the number of those that have one (Holm)."""
    found = iter(holm([pair.p for pair in made if pair.difference is not None]))
    return [pair if pair.difference is None else replace(pair, corrected=next(found)) for pair in made]


def attacks(found: Evaluation, row: str) -> dict[str, str]:
    """Return the attacks that a row's figure comes from, each as a value one can read, by the names of their rows."""
    if row != "worst":
        return {one.name: one.attack for one in found.rows if one.name == row}
    return {one.name: one.attack for one in found.rows if one.role != "probe" and one.name not in ("clean", "worst")}


def unlike(first: Entry, second: Entry, row: str) -> str:
    """Say in what the attacks behind a row differ, or nothing: whoever was attacked with less is flattered by that."""
    a, b = attacks(first.evaluation, row), attacks(second.evaluation, row)
    said = []
    for entry, own, others in ((first, a, b), (second, b, a)):
        if lacking := [name for name in others if name not in own]:
            said.append(f"{entry.label} lacks {', '.join(lacking)}")
    if other := [name for name in a if name in b and a[name] != b[name]]:
        said.append(f"{', '.join(other)} not set alike")
    return "other attacks: " + "; ".join(said) if said else ""


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Return every pair of a group in the worst case, the better first; a network is not compared with itself."""
    scored = [(entry, row) for entry in entries if (row := entry.evaluation.row("worst"))]
    scored.sort(key=lambda one: -one[1].accuracy)
    both = [(a, b) for (a, _), (b, _) in itertools.combinations(scored, 2) if _network(a) != _network(b)]
    return corrected([compared(a, b, "worst") for a, b in both])


def _network(entry: Entry) -> tuple[int, str]:
    return entry.run, entry.evaluation.checkpoint


def tied(entry: Entry, best: Entry, row: str) -> bool:
    """Say whether an entry is within two paired standard errors of the best; False where unknown."""
    found = difference(best, entry, row)
    return found is not None and not found.clear
