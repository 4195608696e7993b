"""The page of results: everything a ledger holds, by paper and by setting, beside what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from demilune.errors import DemiluneError
from demilune.experiment import Experiment, build, completed, name_of, plain
from demilune.ledger import Record
from demilune.pages import Shown, blocks, number, to_markdown
from demilune.report.curves import Numbers
from demilune.report.theme import NONE, percent
from demilune.results import Row
from demilune.suites import PAPERS, cells
from demilune.suites.base import Cell, Choice, Suite, identity, rescheduled, trained_key
from demilune.suites.record import Shelf
from demilune.suites.sheet import setting, sheet

HEAD = "# Results: published and ours"

SEEDS = 10
"""Seeds that are looked for, from 0 on."""


@final
@dataclass(frozen=True, slots=True)
class Group:
    """The records whose trainings share everything but method, move, average, name and seed."""

    experiment: Experiment
    records: tuple[Record, ...]


def page(records: Sequence[Record], ledger: str) -> str:
    """Return the Markdown page of a ledger's records; ``ledger`` is the folder's name."""
    parts = [HEAD]
    parts.append(
        f"Made by `demilune ledger results` from the {len(records)} cells of the folder `{ledger}`; do not edit it by "
        "hand. Every setting stands by itself. A difference from a published figure is drawn only where the setting is "
        "the paper's as far as that is known; everywhere else the page says in what it is not, and compares nothing. "
        "Figures are left out here: `demilune reproduce` draws them."
    )
    left: list[Record] = []
    noted: set[str] = set()
    for group in grouped(records):
        made, used = _sheets(group, noted)
        parts += made
        left += [one for one in group.records if one.key not in used and one.kind == "evaluation"]
    if left:
        parts += ["## Cells of no suite", _others(left)]
    return "\n\n".join(parts).rstrip() + "\n"


def grouped(records: Sequence[Record]) -> list[Group]:
    """Return the records by setting, those with most cells first; what this version cannot build is left out."""
    groups: dict[str, tuple[Experiment, list[Record]]] = {}
    for record in records:
        try:
            experiment = build(Experiment, completed(record.experiment))
        except DemiluneError:
            continue
        tree = identity(experiment)
        shared = {k: v for k, v in tree.items() if k not in ("method", "move", "average", "seed")}
        groups.setdefault(json.dumps(shared, sort_keys=True), (experiment, []))[1].append(record)
    ordered = sorted(groups.values(), key=lambda one: -len(one[1]))
    return [Group(experiment, tuple(found)) for experiment, found in ordered]


def _sheets(group: Group, noted: set[str]) -> tuple[list[str], set[str]]:
    """Return the pages of the suites that a group's networks belong to, and the keys of the records they used.

    ``noted`` are the suites whose notes stand on the page already.
    """
    shelf = Shelf.holding(group.records)
    parts, used, shown = list[str](), set[str](), set[tuple[str, str]]()
    seeds = 1 + max(int(one.experiment.get("seed", 0)) for one in group.records)
    best = {one.checkpoint.split(" ")[0] for one in group.records if one.checkpoint}
    for suites, _ in PAPERS.values():
        for suite in suites:
            everywhere = placed(suite, group.experiment, seeds)
            for checkpoint in sorted(best):
                found = tuple(replace(cell, checkpoint=checkpoint) for cell in everywhere)
                have = [cell for cell in found if shelf.records(cell)]
                choice = Choice(
                    data=name_of(group.experiment.data), norm=group.experiment.ball.norm,
                    checkpoint="last" if checkpoint == "last" else "best",
                )  # fmt: skip
                if not have:
                    continue
                made = sheet(suite, choice, found, shelf)
                lines = tuple(line for line in made.lines if _has(line, suite))
                fresh = {
                    (one.key, name) for line in lines for one in line.records for name in (one.kind, *suite.columns)
                }
                fresh = {pair for pair in fresh if pair not in shown}
                if len(lines) < 2 or not fresh:
                    continue
                shown |= fresh
                used |= {one.key for line in lines for one in line.records}
                title = made.title if checkpoint == "best" else f"{made.title} (last checkpoint)"
                notes = () if suite.name in noted else made.notes
                noted.add(suite.name)
                kept = replace(made, title=title, lines=lines, left=(), figures=_tables(made.figures), notes=notes)
                parts.append(to_markdown(blocks(kept, 2), folder="").rstrip())
    return parts, used


def _tables(figures: Sequence[str]) -> tuple[str, ...]:
    """Return those figures that are tables."""
    return tuple(kind for kind in figures if kind in ("crossed", "region", "stationary") or kind.startswith("probe-"))


def _has(line: Shown, suite: Suite) -> bool:
    return bool(_numbers(line, suite)) or any(one.kind == "training" for one in line.records if suite.figures)


def _numbers(line: Shown, suite: Suite) -> list[str]:
    return [f"{line.label} {name}" for name in suite.columns if number(line, name) is not None]


def placed(suite: Suite, here: Experiment, seeds: int = 1) -> tuple[Cell, ...]:
    """Return a suite's cells in another setting: its methods and moves on these data, this net, for so long.

    Empty where the suite is not for such data or such a ball.
    """
    data = name_of(here.data)
    if data not in (*suite.data, "digits") or here.ball.norm not in suite.norms:
        return ()
    found, networks = list[Cell](), dict[str, Cell | None]()
    for schedule in ("usual",) if data == "digits" else ("s30", "paper"):
        choice = Choice(data=data, schedule=schedule, norm=here.ball.norm, seeds=min(seeds, SEEDS))
        try:
            made = cells(suite, choice)
        except DemiluneError:
            continue
        seen = {cell.trained for cell in found}
        for cell in made:
            if cell.trained not in networks:
                networks[cell.trained] = _moved(cell, here)
        moved = [
            None if (there := networks[cell.trained]) is None
            else replace(cell, experiment=there.experiment, trained=there.trained)
            for cell in made
        ]  # fmt: skip
        found += [cell for cell in moved if cell is not None and cell.trained not in seen]
    return tuple(found)


def _moved(cell: Cell, here: Experiment) -> Cell | None:
    """Return a cell in another setting; None where its line is about another network or length."""
    if any(name.startswith(("model.", "data.")) for name in cell.line.changes):
        same = all(plain(here.model).get(k.removeprefix("model.")) == v for k, v in cell.line.changes.items())
        if not same:
            return None
    if cell.experiment.data.extra.file != here.data.extra.file:
        return None
    training = {"epochs": here.training.epochs, "steps": here.training.steps}
    try:
        there = rescheduled(cell.experiment, training)
        there = replace(
            there, data=here.data, model=here.model, ball=here.ball, schedule=here.schedule, training=here.training,
            runtime=here.runtime,
        )  # fmt: skip
    except DemiluneError:
        return None
    return replace(cell, experiment=there, trained=trained_key(there))


def _others(records: Sequence[Record]) -> str:
    """Return the evaluations that belong to no suite, as they are, beside nothing."""
    names = dict.fromkeys(
        (row.name, row.title) for one in records for row in one.rows if row.role == "attack" and row.name != "worst"
    )
    lines = []
    for one in records:
        experiment = build(Experiment, completed(one.experiment))
        cells_ = [_cell(one.row(name)) for name, _ in names]
        kind = found.verdict.kind if (found := one.evaluation) is not None and found.verdict is not None else NONE
        told = f"{one.label} ({setting(experiment).rstrip('.')}, {one.checkpoint.split(' ')[0]})"
        lines.append((told, str(one.n), *cells_, kind))
    note = (
        "Strict accuracy in % ± binomial standard error. No setting of a paper, or of a suite here: compared with "
        "nothing. Methods marked so in docs/methods.md are reconstructed."
    )
    heads = ("run", "n", *(title for _, title in names), "verdict")
    return Numbers(heads, tuple(lines), note).to_markdown().rstrip()


def _cell(row: Row | None) -> str:
    return NONE if row is None else f"{percent(row.accuracy)} ± {percent(row.error)}"


__all__ = ["HEAD", "page"]
