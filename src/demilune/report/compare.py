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
    same attacks in both: then a difference is one of the attacks too, and no network is better by it.
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
        """Whether it is more than chance: the corrected p is below :data:`demilune.paired.LEVEL`.

        Never where the attacks differ, whatever p says: whoever was attacked with less is flattered by that.
        """
        return not self.note and self.corrected < LEVEL

    @property
    def better(self) -> str:
        """Which is better, "first" or "second"; "neither" where nothing tells, empty where it cannot be asked."""
        if self.difference is None or self.note:
            return ""
        return "neither" if not self.clear else "first" if self.difference.value > 0 else "second"

    @property
    def reading(self) -> str:
        """The same in words."""
        names = {"first": (self.first, self.second), "second": (self.second, self.first)}.get(self.better)
        if names is not None:
            return f"{names[0].label} beats {names[1].label}"
        if self.difference is None:
            return "no per-image results of the same images"
        return "not attacked alike" if self.note else f"no difference at {100 * LEVEL:g} %"


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
    """Return the pairs with their p corrected for the number of those that were tested (Holm).

    That is those with common images and the same attacks: a pair that was not attacked alike tests nothing.
    """
    found = iter(holm([pair.p for pair in made if tested(pair)]))
    return [replace(pair, corrected=next(found)) if tested(pair) else pair for pair in made]


def tested(pair: Pair) -> bool:
    """Say whether a pair's difference tests which network is better: on common images, by the same attacks."""
    return pair.difference is not None and not pair.note


def attacks(found: Evaluation, row: str) -> dict[str, str]:
    """Return the attacks that a row's figure comes from, each as a value one can read, by the names of their rows.

    Those of the worst case that were run on some of the images lowered it on these alone, and so are others.
    """
    if row != "worst":
        return {one.name: one.attack for one in found.rows if one.name == row}
    n = found.rows[0].n
    behind = [one for one in found.rows if one.role != "probe" and one.name not in ("clean", "worst")]
    return {one.name: one.attack + (f", on {one.n} of {n}" if one.n != n else "") for one in behind}


def unlike(first: Entry, second: Entry, row: str) -> str:
    """Say in what the attacks behind a row differ, or nothing: whoever was attacked with less is flattered by that.

    The worst case of a model that answers at random is that of its strongest attack alone, of any other what survives
    all of them: the first is higher for that alone.
    """
    a, b = attacks(first.evaluation, row), attacks(second.evaluation, row)
    said = []
    for entry, own, others in ((first, a, b), (second, b, a)):
        if lacking := [name for name in others if name not in own]:
            said.append(f"{entry.label} lacks {', '.join(lacking)}")
    if other := [name for name in a if name in b and a[name] != b[name]]:
        said.append(f"{', '.join(other)} not set alike")
    notes = ["other attacks: " + "; ".join(said)] if said else []
    if row == "worst" and first.evaluation.randomised != second.evaluation.randomised:
        notes.append("one answers at random: its worst case is that of one attack")
    return "; ".join(notes)


def aside(entries: Sequence[Entry], row: str) -> list[Entry]:
    """Return the entries whose row is not of the attacks that most networks had (of equals, the most attacks)."""
    groups: list[list[Entry]] = []
    for entry in entries:
        of = next((group for group in groups if not unlike(group[0], entry, row)), None)
        if of is None:
            groups.append([entry])
        else:
            of.append(entry)

    def size(group: Sequence[Entry]) -> tuple[int, int]:
        networks = {(entry.run, entry.evaluation.checkpoint) for entry in group}
        return len(networks), len(attacks(group[0].evaluation, row))

    most = max(groups, key=size, default=[])
    return [entry for entry in entries if entry not in most]


def rank(entry: Entry) -> tuple[bool, int, int]:
    """Return what puts the evaluation first that best represents a network: its best checkpoint, images, attacks."""
    found = entry.evaluation
    return not found.checkpoint.startswith("best"), -found.rows[0].n, -len(found.rows)


def alike(first: Entry, second: Entry) -> bool:
    """Say whether the worst cases of two evaluations are known, and of the same attacks."""
    known = all(_by_id(one, "worst") is not None for one in (first, second))
    return known and not unlike(first, second, "worst")


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Return every pair of a group's networks in the worst case, the better first.

    Of the evaluations of two networks those are taken that ran the same attacks, on the most images; where there are
    none, the fullest, and the pair's note says so.
    """
    networks: dict[tuple[int, str], list[Entry]] = {}
    for entry in sorted((one for one in entries if one.evaluation.row("worst")), key=rank):
        networks.setdefault((entry.run, entry.evaluation.checkpoint), []).append(entry)
    made = []
    for one, other in itertools.combinations(networks.values(), 2):
        both = ((a, b) for a, b in itertools.product(one, other) if alike(a, b))
        made.append(sorted(next(both, (one[0], other[0])), key=lambda entry: -_worst(entry)))
    made.sort(key=lambda pair: [-_worst(entry) for entry in pair])
    return corrected([compared(first, second, "worst") for first, second in made])


def _worst(entry: Entry) -> float:
    row = entry.evaluation.row("worst")
    return 0.0 if row is None else row.accuracy


def tied(entry: Entry, best: Entry, row: str) -> bool:
    """Say whether an entry is within two paired standard errors of the best; False where unknown."""
    found = difference(best, entry, row)
    return found is not None and not found.clear
