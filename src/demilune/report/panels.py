"""Which curves are drawn together: those of one setting, a figure for each kind, with what measured them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

from demilune.report import curves, theme, verdicts
from demilune.report.curves import Curve, Gap, Numbers
from demilune.report.figures import Drawing
from demilune.report.files import Measured, Setting, setting
from demilune.report.read import Entry, Run
from demilune.surveys import Curvature, Direction, Landscape, Space, Survey

Draw: TypeAlias = Callable[[Sequence[Curve], str], Drawing | None]

DRAWN: dict[str, Draw] = {
    "iterations": curves.iterations,
    "budgets": curves.budgets,
    "corruptions": curves.corruptions,
}


class Shown(NamedTuple):
    """A file of curves under the name its curve is shown by."""

    label: str
    run: Run
    file: Measured


@final
@dataclass(frozen=True, slots=True)
class Plate:
    """A figure, or a small table (``title``), or both, with what must be said and the commands that measured it."""

    drawing: Drawing | None
    numbers: Numbers | None
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    title: str = ""


@final
@dataclass(frozen=True, slots=True)
class Panel:
    """All curves of one setting."""

    title: str
    remarks: tuple[str, ...]
    plates: tuple[Plate, ...]


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Return what there is to see of the runs' curves; different settings share no figure."""
    groups: dict[Setting, list[tuple[Run, Measured]]] = {}
    for run in runs:
        for file in run.curves:
            groups.setdefault(_together(file), []).append((run, file))
    made = []
    for position, ((data, split, norm, eps, _), members) in enumerate(groups.items(), 1):
        suffix = f"-{position}" if len(groups) > 1 else ""
        foreign = [] if all(file.official for _, file in members) else ["data: not the official files"]
        plates = (*_evaluated(members, suffix), *_paired(members, suffix), *_surveyed(members, suffix))
        made.append(Panel(f"{data} ({split}), {theme.ball(norm, eps)}", tuple(foreign), plates))
    return made


def _together(file: Measured) -> Setting:
    """Return the setting under which a file's curves are drawn; both sides of a gap are of one figure."""
    data, split, norm, eps, sums = file.setting
    return (data, "test" if file.kind == "gaps" else split, norm, eps, sums)


def _labelled(members: Sequence[tuple[Run, Measured]]) -> list[Shown]:
    """Return files under their runs' names, with checkpoint, number of images and seed where these differ.

    Where a run has several that differ in none of these, they are called after the files.
    """
    said = [(_checkpoint(file), f"n {file.n:,}", f"seed {file.seed}") for _, file in members]
    apart = [len(set(part)) > 1 for part in zip(*said, strict=True)]
    words = [tuple(word for word, differs in zip(one, apart, strict=True) if differs) for one in said]
    names = [(run.label, *one) for (run, _), one in zip(members, words, strict=True)]
    made = []
    for (run, file), one, name in zip(members, words, names, strict=True):
        told = ", ".join(one) if names.count(name) == 1 else file.path.stem
        made.append(Shown(f"{run.label} ({told})" if told else run.label, run, file))
    return made


def _checkpoint(file: Measured) -> str:
    """Return a checkpoint's name without its step: best, last."""
    return file.checkpoint.split(" (")[0]


def _evaluated(members: Sequence[tuple[Run, Measured]], suffix: str) -> list[Plate]:
    made = []
    for kind, draw in DRAWN.items():
        shown = _labelled([(run, file) for run, file in members if file.kind == kind])
        named = [Curve(one.label, one.file.evaluation) for one in shown if one.file.evaluation is not None]
        drawing = draw(named, f"{kind}{suffix}")
        numbers = curves.corruption_numbers(named) if kind == "corruptions" else None
        if drawing is not None:
            said = [_sizes(named), *_remarks(named), *_verdicts(shown)]
            made.append(Plate(drawing, numbers, tuple(said), _commands(shown), "Accuracy under corruptions, %"))
    return made


def _paired(members: Sequence[tuple[Run, Measured]], suffix: str) -> list[Plate]:
    """Return the figure of generalisation gaps, each of a checkpoint on test and on training images.

    A checkpoint measured several times has as many gaps, in the order of its files.
    """
    sides: dict[tuple[int, str], tuple[list[Measured], list[Measured]]] = {}
    for run, file in members:
        if file.kind == "gaps":
            test, train = sides.setdefault((id(run), file.checkpoint), ([], []))
            (train if file.setting[1] == "train" else test).append(file)
    runs = {id(run): run for run, _ in members}
    both = [(runs[run], *pair) for (run, _), found in sides.items() for pair in zip(*found, strict=False)]
    shown = _labelled([(run, test) for run, test, _ in both])
    pairs = [
        Gap(one.label, train.evaluation, test.evaluation)
        for one, (_, test, train) in zip(shown, both, strict=True)
        if train.evaluation is not None and test.evaluation is not None
    ]
    drawing = curves.gaps(pairs, f"gaps{suffix}")
    if drawing is None:
        return []
    sizes = (
        _sizes([Curve(one.label, one.train) for one in pairs], "training images"),
        _sizes([Curve(one.label, one.test) for one in pairs], "test images"),
    )
    commands = _commands([*shown, *(Shown("", run, train) for run, _, train in both)])
    return [Plate(drawing, None, (*sizes, *_verdicts(shown)), commands)]


def _surveyed(members: Sequence[tuple[Run, Measured]], suffix: str) -> list[Plate]:
    """Return the figures and tables of surveys; landscapes of weights and of inputs share no scale."""
    ways = _having(members, lambda one: isinstance(one, Direction))
    walked = [(one.label, found) for one in ways for found in one.file.surveys if isinstance(found, Direction)]
    bends = _having(members, lambda one: isinstance(one, Curvature))
    bent = [(one.label, found) for one in bends for found in one.file.surveys if isinstance(found, Curvature)]
    made = [
        Plate(curves.direction(walked, f"direction{suffix}"), None, (), _commands(ways)),
        *_landscapes(members, "input", suffix),
        *_landscapes(members, "weights", suffix),
        Plate(None, curves.curvature(bent), (), _commands(bends), "Largest eigenvalue of the Hessian"),
    ]
    return [plate for plate in made if plate.drawing is not None or plate.numbers is not None]


def _landscapes(members: Sequence[tuple[Run, Measured]], space: Space, suffix: str) -> list[Plate]:
    shown = _having(members, lambda one: isinstance(one, Landscape) and one.space == space)
    seen = [
        (one.label, found)
        for one in shown
        for found in one.file.surveys
        if isinstance(found, Landscape) and found.space == space
    ]
    drawings = (curves.landscape(seen, f"landscape-{space}{suffix}"), curves.profile(seen, f"profile-{space}{suffix}"))
    return [Plate(drawing, None, (), _commands(shown)) for drawing in drawings]


def _having(members: Sequence[tuple[Run, Measured]], wanted: Callable[[Survey], bool]) -> list[Shown]:
    return _labelled([(run, file) for run, file in members if any(wanted(one) for one in file.surveys)])


def _sizes(shown: Sequence[Curve], what: str = "images") -> str:
    """Return how many images were attacked."""
    sizes = {one.label: one.evaluation.rows[0].n for one in shown}
    if len(set(sizes.values())) == 1:
        return f"n = {next(iter(sizes.values())):,} {what} each."
    if all(f"n {n:,}" in label for label, n in sizes.items()):
        return f"n, the number of {what}, stands in the name of each."
    return f"n = {', '.join(f'{n:,} ({label})' for label, n in sizes.items())} {what}."


def _remarks(shown: Sequence[Curve]) -> list[str]:
    """Return where rows are not quite what they are called, or what is missing."""
    notes = dict.fromkeys((one.label, row.note) for one in shown for row in one.evaluation.rows if row.note)
    return [f"{label}: {note}." for label, note in notes]


def _verdicts(shown: Sequence[Shown]) -> list[str]:
    """Return the verdicts on the robust accuracies of the very checkpoints that are shown, and which have none."""
    judged, without = dict[Path, Entry](), list[str]()
    for one in shown:
        found = {
            entry.path: entry
            for entry in one.run.entries
            if entry.evaluation.checkpoint == one.file.checkpoint and setting(entry.evaluation) == _together(one.file)
        }
        judged |= found
        if not found:
            without.append(one.label)
    told = [verdicts.told(list(judged.values()))] if judged else []
    return [*told, f"Not evaluated, and so without a verdict: {', '.join(without)}."] if without else told


def _commands(shown: Sequence[Shown]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.file.command for one in shown if one.file.command))
