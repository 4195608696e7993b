"""The papers' tables and figures as suites: frozen values that name their cells and what these are set against."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.errors import unknown
from demilune.suites import lrat, rat, rwp, taylor
from demilune.suites.base import SCHEDULES, Ask, Cell, Choice, Claim, Line, Presets, Suite, settled
from demilune.suites.base import cells as cells_of

PAPERS: Mapping[str, tuple[tuple[Suite, ...], Presets]] = MappingProxyType(
    {
        "rat": (rat.SUITES, rat.presets),
        "rwp": (rwp.SUITES, rwp.presets),
        "lrat": (lrat.SUITES, lrat.presets),
        "taylor": (taylor.SUITES, taylor.presets),
    }
)
"""Each paper's suites in the order of their worth, and how its rows are called among the presets."""

SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suites, _ in PAPERS.values() for suite in suites})


def named(name: str) -> Suite:
    """Return the suite of that name; refuses an unknown one with the nearest."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def holding(word: str) -> list[str]:
    """Return the names that begin with a word, else those that hold it (rat/ is not lrat/); refuses what none has."""
    found = [name for name in SUITES if name.startswith(word)] or [name for name in SUITES if word in name]
    if not found:
        raise unknown("suite", word, SUITES)
    return found


def cells(suite: Suite, choice: Choice) -> tuple[Cell, ...]:
    """Return the suite's cells under a choice, seed by seed and line by line."""
    return cells_of(suite, choice, PAPERS[suite.paper][1])


__all__ = [
    "PAPERS",
    "SCHEDULES",
    "SUITES",
    "Ask",
    "Cell",
    "Choice",
    "Claim",
    "Line",
    "Suite",
    "cells",
    "holding",
    "named",
    "settled",
]
