"""Which differences between evaluations are more than chance, and what weak attacks hide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from demilune.report.read import Entry
from demilune.results import Row

Setting: TypeAlias = tuple[str, str, str, float, tuple[tuple[str, str], ...]]

# The gap PGD-10 - multi-targeted usual for plain adversarial training (evaluation.md 6, check G6).
USUAL_GAP = 0.04


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two accuracies, in [-1,1], with its standard error."""

    value: float
    error: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard errors."""
        return abs(self.value) > 2.0 * self.error


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two evaluations and the paired difference of their worst-case accuracies, None where images differ."""

    first: Entry
    second: Entry
    difference: Difference | None


@final
@dataclass(frozen=True, slots=True)
class Overstatement:
    """How far PGD-10 lies above the multi-targeted attack, on the same images.

    ``usual`` is SAT's gap beside it, None where only the general figure is known; ``excess`` is what goes
    beyond that, None for SAT itself.
    """

    entry: Entry
    pgd: Row
    targeted: Row
    gap: Difference
    usual: Difference | None
    excess: Difference | None

    @property
    def warns(self) -> bool:
        """Whether PGD-10 flatters this model clearly more than it does SAT."""
        return self.excess is not None and self.excess.value > 0 and self.excess.clear


def paired(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Difference:
    """Return the difference of two accuracies on the same images.

    With b images right only in ``first`` and c only in ``second``: (b - c)/n, with McNemar's standard error
    √(b + c - (b - c)²/n)/n.
    """
    n, b, c = len(first), int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return Difference((b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n, n)


def setting(entry: Entry) -> Setting:
    """Return what two evaluations must share to be compared: the very data, the split and the ball."""
    found = entry.evaluation
    return (found.data, found.split, found.norm, found.eps, tuple(sorted(found.data_sha256.items())))


def settings(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Group entries by setting, in order of appearance."""
    groups: dict[Setting, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(setting(entry), []).append(entry)
    return list(groups.values())


def difference(first: Entry, second: Entry, row: str) -> Difference | None:
    """Return first - second in strict accuracy of a row; None unless both saw the same images."""
    a, b = first.images, second.images
    if a is None or b is None or setting(first) != setting(second):
        return None
    if not all({"ids", f"right.{row}"} <= set(arrays) for arrays in (a, b)):
        return None
    here, there = np.argsort(a["ids"], kind="stable"), np.argsort(b["ids"], kind="stable")
    if not np.array_equal(a["ids"][here], b["ids"][there]) or len(a["ids"]) != len(a[f"right.{row}"]):
        return None
    return paired(a[f"right.{row}"][here].astype(bool), b[f"right.{row}"][there].astype(bool))


def pairs(entries: Sequence[Entry]) -> list[Pair]:
    """Return every pair of a group, the better worst case first."""
    scored = [(entry, row) for entry in entries if (row := entry.evaluation.row("worst"))]
    scored.sort(key=lambda one: -one[1].accuracy)
    return [Pair(a, b, difference(a, b, "worst")) for (a, _), (b, _) in itertools.combinations(scored, 2)]


def overstatements(entries: Sequence[Entry]) -> list[Overstatement]:
    """Measure PGD-10 against the multi-targeted attack, and the gap against what SAT shows.

    SAT's gap is that of the group's own SAT runs (the largest), else the usual one. Labels softened with
    distance (AVM, RAT) make cross-entropy PGD a weak attack, which PGD-10 alone cannot tell from robustness.
    """
    measured = []
    for entry in entries:
        pgd = entry.evaluation.row("pgd10")
        targeted = next((row for row in entry.evaluation.rows if row.name.startswith("multi")), None)
        if pgd is not None and targeted is not None:
            measured.append((entry, pgd, targeted, _gap(entry, pgd, targeted)))
    gaps = [gap for entry, _, _, gap in measured if entry.evaluation.method == "sat"]
    usual = max(gaps, key=lambda gap: gap.value, default=None)
    return [Overstatement(*one, usual, _excess(one[0], one[3], usual)) for one in measured]


def _excess(entry: Entry, gap: Difference, usual: Difference | None) -> Difference | None:
    if usual is None:
        return Difference(gap.value - USUAL_GAP, gap.error, gap.n)
    if entry.evaluation.method == "sat":
        return None
    return Difference(gap.value - usual.value, math.hypot(gap.error, usual.error), gap.n)


def _gap(entry: Entry, pgd: Row, targeted: Row) -> Difference:
    images = entry.images or {}
    a, b = images.get(f"right.{pgd.name}"), images.get(f"right.{targeted.name}")
    if a is not None and b is not None and len(a) == len(b):
        return paired(a.astype(bool), b.astype(bool))
    # without per-image results the two are taken as independent, which overstates the error
    return Difference(pgd.accuracy - targeted.accuracy, math.hypot(pgd.error, targeted.error), targeted.n)


def tied(entry: Entry, best: Entry, row: str) -> bool:
    """Say whether an entry is within two paired standard errors of the best; False where unknown."""
    found = difference(best, entry, row)
    return found is not None and not found.clear
