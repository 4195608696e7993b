"""Which unfinished cells are worth most: what fits into the time there is, the most valuable first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from demilune.errors import DemiluneError, unknown
from demilune.presets import SHORT
from demilune.suites import PAPERS, SUITES, cells, holding
from demilune.suites.base import Cell, Choice, settled
from demilune.suites.cost import estimate, kept
from demilune.suites.record import Shelf

LENGTHS = ("paper", "s30", "s15", "usual", "quick")
"""Schedules in the order of their worth: the paper's own first, the digits last."""

SEEDS = 3
"""Seeds that are worth running, unless told otherwise."""


class Worth(NamedTuple):
    """The order of value, smaller first: the paper (RAT, RWP, LRAT, Taylor), the schedule, the seed, headline cells
    that have published figures, other headline cells, then the suite, the data and the line as they are listed.
    """

    paper: int
    schedule: int
    seed: int
    plain: int
    suite: int
    data: int
    line: int


def ordered(choice: Choice, word: str = "") -> list[Cell]:
    """Return all cells there are under a choice, the most valuable first; ``word`` is part of the suites' names.

    An empty schedule or data set means all of them.
    Raises DemiluneError where no suite is called so, or none can be run so.
    """
    refusals = list[DemiluneError]()
    found = sorted(_all(choice, word, refusals), key=lambda pair: pair[0])
    if not found:
        raise refusals[0] if refusals else nowhere(choice)
    return [cell for _, cell in found]


def nowhere(choice: Choice) -> DemiluneError:
    """Return the refusal of data or a ball that no suite has."""
    every = dict.fromkeys(data for suite in SUITES.values() for data in (*suite.data, "digits"))
    if choice.data and choice.data not in every:
        return unknown("data", choice.data, every)
    return DemiluneError(f"none of these suites is for {choice.data or 'such data'} and {choice.norm}")


def _all(choice: Choice, word: str, refusals: list[DemiluneError]) -> Iterator[tuple[Worth, Cell]]:
    names = holding(word)
    seeds = choice.seeds if choice.seeds > 1 else SEEDS
    for p, (suites, _) in enumerate(PAPERS.values()):
        for s, suite in enumerate(suites):
            sets = (*suite.data, "digits")
            if suite.name not in names or choice.norm not in suite.norms or (choice.data and choice.data not in sets):
                continue
            for d, data in enumerate([choice.data] if choice.data else sets):
                lengths = [choice.schedule.lower()] if choice.schedule else LENGTHS
                for k, schedule in enumerate(lengths):
                    if (data == "digits") != (schedule in ("usual", "quick")) and not (
                        data == "digits" and schedule in SHORT and choice.schedule
                    ):
                        continue
                    try:
                        here = settled(suite, replace(choice, data=data, schedule=schedule, seeds=seeds))
                        made = cells(suite, here)
                    except DemiluneError as error:  # what a suite has no preset for
                        refusals.append(error)
                        continue
                    for cell in made:
                        line = suite.lines.index(cell.line)
                        plain = 0 if cell.line.headline and cell.line.theirs else 1 if cell.line.headline else 2
                        yield Worth(p, k, cell.seed, plain, s, d, line), cell


def plan(
    shelf: Shelf, choice: Choice, seconds: float, word: str, begun: Callable[[Cell], bool]
) -> tuple[list[tuple[Cell, float]], list[str]]:
    """Return the most valuable unfinished cells that fit into so many seconds, each with its own, and what lacks data.

    A training that several cells share counts once, and not at all where ``begun`` says that its folder is there
    (what is left of it is not known, so that it is counted whole). Data that are not there are left out, and said.
    """
    paces, picked, absent = kept(), list[tuple[Cell, float]](), dict[str, str]()
    left, trained, seen, refused = seconds, set[str](), set[tuple[str, str]](), set[str]()
    for cell in ordered(choice, word):
        key = (cell.trained, cell.ask.told())
        if key in seen or shelf.answers(cell):
            continue
        seen.add(key)
        data = repr(cell.experiment.data)
        if data in absent:
            continue
        if any(_covers(other, cell) for other, _ in picked):
            continue
        if cell.trained in refused and cell.ask.kind != "pace":
            continue
        one = estimate(cell, paces)
        free = cell.trained in trained or (begun(cell) and _done(cell, shelf))
        needed = one.measuring + (0.0 if free else one.training)
        if needed > left:
            if not free and one.training > left:
                refused.add(cell.trained)
            continue
        lack = _lacking(cell)
        if lack:
            absent[data] = lack
            continue
        trained.add(cell.trained)
        left -= needed
        picked.append((cell, needed))
    return picked, [f"left out: {lack}" for lack in dict.fromkeys(absent.values())]


def _covers(other: Cell, cell: Cell) -> bool:
    """Say whether what is asked of a cell is a part of what another, of the same network, brings along."""
    if other.trained != cell.trained or other.ask.kind != cell.ask.kind or cell.ask.kind != "evaluation":
        return cell.ask.kind == "training" and other.trained == cell.trained and other.ask.kind not in ("pace",)
    more = other.ask.limit == 0 or 0 < cell.ask.limit <= other.ask.limit
    return more and set(cell.ask.names) <= set(other.ask.names)


def _done(cell: Cell, shelf: Shelf) -> bool:
    """Say whether a network's training is in the ledger, hence finished."""
    return any(record.kind == "training" for record in shelf.of(cell))


def _lacking(cell: Cell) -> str:
    """Return why a cell's data cannot be had here, nothing where they can."""
    try:
        cell.experiment.data.mixed()
    except DemiluneError as error:
        return str(error)
    return ""


__all__ = ["LENGTHS", "Worth", "ordered", "plan"]
