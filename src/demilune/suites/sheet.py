"""From a suite's cells and a ledger's records to the sheet that a page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from demilune import papers
from demilune.experiment import Experiment, name_of, plain
from demilune.ledger import Record
from demilune.options import flat, levels
from demilune.pages import Asked, Sheet, Shown
from demilune.suites.base import Cell, Choice, Claim, Suite
from demilune.suites.record import Shelf

UNSEEN = (
    "name", "seed", "runtime", "data.root", "data.unverified", "training.checkpoint_every", "training.monitor",
    "training.validate_every", "training.alarm", "training.stop_on_alarm",
)  # fmt: skip
"""Fields that change no network that a paper would know of."""


def departures(experiment: Experiment, reference: Experiment | None) -> tuple[str, ...] | None:
    """Return in what a training is not the paper's, a phrase each; None where the paper has no such setting."""
    if reference is None:
        return None
    ours, theirs = (flat(plain(one)) for one in (experiment, reference))
    differing = [name for name in dict.fromkeys([*theirs, *ours]) if ours.get(name) != theirs.get(name)]
    differing = [name for name in differing if not name.startswith(UNSEEN)]
    said = []
    if any(name.startswith("model.") for name in differing):
        said.append(f"net: {_net(experiment)}, not {_net(reference)}")
    if {"training.epochs", "training.steps"} & set(differing) or any(n.startswith("schedule.") for n in differing):
        said.append(f"training: {_length(experiment)}, not {_length(reference)}")
    covered = ("model.", "schedule.", "training.epochs", "training.steps")
    rest = (name for name in differing if not name.startswith(covered))
    return (*said, *(f"{name}: {_word(ours.get(name), name)}, not {_word(theirs.get(name), name)}" for name in rest))


def _net(experiment: Experiment) -> str:
    usual = plain(type(experiment.model)())
    shown = {k: v for k, v in plain(experiment.model).items() if k in ("depth", "factor", "width") or v != usual[k]}
    return " ".join([name_of(experiment.model), *(f"{k} {v}" for k, v in shown.items() if k != "name")])


def _length(experiment: Experiment) -> str:
    training = experiment.training
    length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
    rates = ", ".join(f"{k} {_word(v)}" for k, v in plain(experiment.schedule).items() if k != "name")
    return f"{length} ({name_of(experiment.schedule)}: {rates})"


def _word(value: Any, name: str = "") -> str:
    if isinstance(value, float):
        return levels(value) if name.endswith(("eps", "step_size")) else f"{value:g}"
    return "absent" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def setting(experiment: Experiment) -> str:
    """Return in one line on what a suite's networks were trained: all but the method."""
    ball, training = experiment.ball, experiment.training
    limited = getattr(experiment.data, "limit", 0)
    images = f", {limited:,} training images" if limited else ""
    return (
        f"{name_of(experiment.data)}{images}; {_net(experiment)}; {ball.norm} ε = {levels(ball.eps)}; "
        f"{_length(experiment)}, batch {training.batch}, weight decay {training.weight_decay:g}."
    )


def sheet(suite: Suite, choice: Choice, found: Sequence[Cell], shelf: Shelf, command: str = "") -> Sheet:
    """Return the sheet of a suite's cells; ``choice`` is settled."""
    lines, left = list[Shown](), list[str]()
    of: dict[str, list[Cell]] = {}
    for cell in found:
        of.setdefault(cell.line.label, []).append(cell)
        if not shelf.answers(cell):
            left.append(f"{cell.line.label}, seed {cell.seed}: {cell.ask.told()}")
    part = _part(suite, choice.data, choice.norm)
    nearest = part or _part(suite, suite.data[0], choice.norm)  # the digits are no paper's
    for label, cells in of.items():
        known: dict[int, tuple[Cell, list[Record]]] = {}
        for cell in cells:  # of several networks that a line could be, the one that there is
            planes = shelf.answers(cell) if cell.ask.kind == "plane" else []
            records = [one for one in shelf.records(cell) if one.kind != "plane" or one in planes]
            if records and cell.seed not in known:
                known[cell.seed] = cell, records
        seeds = tuple(tuple(records) for _, records in known.values())
        one = next((cell for cell, _ in known.values()), cells[0])
        theirs = papers.values(part, _theirs(part, cells[0])) if part is not None else {}
        if suite.name == "rat/time":
            minutes: Mapping[str, float] = papers.published("rat")["timing"]["minutes"]
            mine = minutes[cells[0].line.row]
            theirs = {"pace": mine, "pace.relative": round(mine / minutes["sat"], 3)}
        apart = departures(one.experiment, one.reference)
        told = apart is not None and any(text.startswith("net: ") for text in apart)
        if apart is not None and part is not None and not told and not _same_net(part, one.experiment):
            apart = (*apart, f"net: the figures beside are of {part['model_title']}")
        if apart is not None and suite.table and not papers.table(suite.paper, suite.table).get("comparable", True):
            apart = (*apart, "the figures beside are another source's, for orientation")
        lines.append(Shown(label, theirs, seeds, apart))
    everybody = tuple(line.label for line in suite.lines if not line.only or choice.data in line.only)
    return Sheet(
        title=f"{suite.name}: {suite.title}",
        setting=setting(found[0].experiment),
        source=papers.told(suite.paper, suite.table, part) if part is not None else "",
        lines=tuple(sorted(lines, key=lambda one: [line.label for line in suite.lines].index(one.label))),
        columns=suite.columns,
        figures=suite.figures,
        claims=tuple(
            Asked(one.text, one.more, one.less, one.row, points(one, suite, nearest, found), everybody)
            for one in suite.claims
        ),
        notes=(
            *([f"The paper's points of claims are those of {suite.data[0]}."] if nearest and not part else []),
            *suite.notes,
            *(papers.notes(suite.paper, suite.table) if suite.table else ()),
        ),
        left=tuple(left),
        commands=(command,) if command else (),
        images={"": part.get("test_images", 0), "nattack": part.get("nattack_images", 0)} if part else {},
    )


def _part(suite: Suite, data: str, norm: str) -> dict[str, Any] | None:
    """Return the part of a suite's published table that is about these data, None where there is none."""
    if not suite.table:
        return None
    return papers.part(suite.paper, suite.table, data, norm, [line.theirs for line in suite.lines])


def points(claim: Claim, suite: Suite, part: Mapping[str, Any] | None, found: Sequence[Cell]) -> float | None:
    """Return by how much a claim holds among the published figures, in points; None where they do not say."""
    if part is None or not papers.table(suite.paper, suite.table).get("comparable", True):
        return None
    cells = {cell.line.label: cell for cell in found}
    figures = {label: papers.values(part, _theirs(part, cell)).get(claim.row) for label, cell in cells.items()}
    known = {label: value for label, value in figures.items() if value is not None}
    others = [value for label, value in known.items() if label not in (claim.more, claim.less)]
    more = known.get(claim.more) if claim.more else min(others, default=None)
    less = known.get(claim.less) if claim.less else max(others, default=None)
    return None if more is None or less is None else more - less


def _theirs(part: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Return the fields of the published line; of two checkpoints the one that is asked."""
    named = dict(cell.line.theirs)
    if named and any("checkpoint" in row for row in part["rows"]):
        named["checkpoint"] = cell.checkpoint
    return named


def _same_net(part: Mapping[str, Any], experiment: Experiment) -> bool:
    """Say whether the published figures are of the network of an experiment."""
    model = plain(experiment.model)
    return all(model.get(name) == value for name, value in part.get("model", {}).items())


__all__ = ["departures", "points", "setting", "sheet"]
