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
    """How far PGD-10 lies above the multi-targeted attack; ``warning`` is empty where that is usual."""

    entry: Entry
    pgd: Row
    targeted: Row
    gap: Difference
    warning: str


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
    """Measure PGD-10 against the multi-targeted attack, and warn where the gap exceeds what SAT shows.

    SAT's gap is that of the group's own SAT runs (the largest), else the usual one. Labels softened with
    distance (AVM, RAT) make cross-entropy PGD a weak attack, which PGD-10 alone cannot tell from robustness.
    """
    found = []
    for entry in entries:
        pgd = entry.evaluation.row("pgd10")
        targeted = next((row for row in entry.evaluation.rows if row.name.startswith("multi")), None)
        if pgd is not None and targeted is not None:
            found.append(Overstatement(entry, pgd, targeted, _gap(entry, pgd, targeted), ""))
    usual = max((one.gap for one in found if one.entry.evaluation.method == "sat"), key=_value, default=None)
    return [Overstatement(one.entry, one.pgd, one.targeted, one.gap, _warning(one, usual)) for one in found]


def _value(gap: Difference) -> float:
    return gap.value


def _gap(entry: Entry, pgd: Row, targeted: Row) -> Difference:
    images = entry.images or {}
    a, b = images.get(f"right.{pgd.name}"), images.get(f"right.{targeted.name}")
    if a is not None and b is not None and len(a) == len(b):
        return paired(a.astype(bool), b.astype(bool))
    # without per-image results the two are taken as independent, which overstates the error
    return Difference(pgd.accuracy - targeted.accuracy, math.hypot(pgd.error, targeted.error), targeted.n)


def _warning(one: Overstatement, usual: Difference | None) -> str:
    if usual is None:
        excess = Difference(one.gap.value - USUAL_GAP, one.gap.error, one.gap.n)
        against = f"than the {100 * USUAL_GAP:.0f} points usual for SAT"
    elif one.entry.evaluation.method == "sat":
        return ""
    else:
        excess = Difference(one.gap.value - usual.value, math.hypot(one.gap.error, usual.error), one.gap.n)
        against = f"than SAT shows here ({100 * usual.value:.1f} ± {100 * usual.error:.1f})"
    if excess.value <= 0 or not excess.clear:
        return ""
    return f"{100 * excess.value:.1f} ± {100 * excess.error:.1f} points more {against}"


def tied(entry: Entry, best: Entry, row: str) -> bool:
    """Say whether an entry is within two paired standard errors of the best; False where unknown."""
    found = difference(best, entry, row)
    return found is not None and not found.clear
