"""What a report is made of: run folders and evaluations, read whole and checked against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from demilune.errors import DemiluneError
from demilune.report import files
from demilune.report.files import Arrays, Measured
from demilune.results import Evaluation, Verdict
from demilune.runs import RunFolder, read_json

NOTHING = np.empty(0)
DECLARED = "model.json"  # the file of a foreign model's folder, which was evaluated and never trained


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One evaluated checkpoint: a line of the tables. Its evaluation always has a verdict.

    ``run`` and ``place`` are the positions of its run among the runs and of itself within the run; ``images``
    and ``gallery`` are None where the files are missing, which costs the paired differences and the examples.
    """

    label: str
    run: int
    place: int
    path: Path
    evaluation: Evaluation
    images: Arrays | None
    gallery: Arrays | None

    @property
    def verdict(self) -> Verdict:
        """Whether to believe its robust accuracy."""
        assert self.evaluation.verdict is not None
        return self.evaluation.verdict


@final
@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, or (``experiment`` None) the folder of a foreign model, or an evaluation that stands alone.

    ``repeated`` are the files of evaluations that say nothing which another of the same checkpoint does not.
    """

    label: str
    path: Path
    experiment: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    timing: tuple[Mapping[str, Any], ...]
    entries: tuple[Entry, ...]
    curves: tuple[Measured, ...] = ()
    repeated: tuple[Path, ...] = ()


def read(paths: Sequence[Path]) -> list[Run]:
    """Read run folders and evaluation files; labels are made unique."""
    if not paths:
        raise DemiluneError("a report needs at least one run folder or evaluation file")
    different = list({path.resolve(): path for path in paths}.values())
    runs = [_run(path, position) for position, path in enumerate(different)]
    return [_labelled(run, label) for run, label in zip(runs, _unique(runs), strict=True)]


def _run(path: Path, position: int) -> Run:
    if not path.exists():
        raise DemiluneError(f"{path} does not exist: give a run folder or an evaluation's JSON file")
    if path.is_file():
        alone = _entry(path, position, 0)
        return Run(alone.evaluation.subject, path, None, None, (), (), (alone,))
    folder, declared = RunFolder(path), path / DECLARED
    experiment, about = None, {}
    if folder.experiment.exists():
        experiment = about = read_json(folder.experiment, "a run's experiment")
    elif declared.exists():
        about = read_json(declared, "a model's declaration")
    else:
        raise DemiluneError(f"{path} is no run folder (no {folder.experiment.name}): give one that training wrote")
    environment = read_json(folder.environment, "a run's environment") if folder.environment.exists() else None
    measured = [files.measured(file) for file in folder.evaluations("curves")]
    entries, repeated = _apart([_entry(file, position, 0) for file in folder.evaluations()])
    return Run(
        str(about.get("name") or path.name),
        path,
        experiment,
        environment,
        _epochs(folder.read_metrics, folder.metrics),
        _epochs(folder.read_timing, folder.timing),
        tuple(replace(entry, place=place) for place, entry in enumerate(entries)),
        tuple(one for one in measured if one is not None),
        repeated,
    )


def _apart(entries: Sequence[Entry]) -> tuple[list[Entry], tuple[Path, ...]]:
    """Return the entries that say something of their own, and the files of those which another repeats whole."""
    kept, repeated = list(entries), list[Path]()
    for entry in entries:
        if any(_repeats(other, entry) for other in kept if other is not entry):
            kept.remove(entry)
            repeated.append(entry.path)
    return kept, tuple(repeated)


def _repeats(whole: Entry, part: Entry) -> bool:
    """Say whether all rows of ``part`` but its worst case stand in ``whole`` too, with the same images right."""
    a, b = whole.evaluation, part.evaluation
    if (files.setting(a), a.checkpoint, a.randomised) != (files.setting(b), b.checkpoint, b.randomised):
        return False
    if part.images is None or whole.images is None or len(a.rows) < len(b.rows):
        return False
    for row in b.rows:
        other, names = a.row(row.name), [f"{kind}.{row.name}" for kind in ("right", "after", "place")]
        if row.name == "worst":
            continue
        if other is None or (other.n, other.right, other.right_after) != (row.n, row.right, row.right_after):
            return False
        for name in ("ids", *names):
            if not np.array_equal(part.images.get(name, NOTHING), whole.images.get(name, NOTHING)):
                return False
    return True


def _epochs(reading: Callable[[], Sequence[object]], path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        lines = reading()
    except (OSError, UnicodeDecodeError) as error:
        raise DemiluneError(f"{path} cannot be read ({error}): resume the run to write it again") from None
    found: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
            raise DemiluneError(f"{path} is broken at line {number} (no epoch): resume the run to write it again")
        found.append(line)
    return tuple(found)


def _entry(path: Path, run: int, place: int) -> Entry:
    evaluation = files.evaluation(path, read_json(path, "an evaluation"))
    images = files.arrays(path.with_name(f"{path.stem}.images.npz"))
    gallery = files.arrays(path.with_name(f"{path.stem}.gallery.npz"))
    files.agree(path, evaluation, images, gallery)
    evaluation = files.judged(path, evaluation, images)
    shown = gallery if files.has_examples(gallery) else None
    return Entry(evaluation.subject, run, place, path, evaluation, images, shown)


def _unique(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, after the folder's (then a number) where two runs share one."""
    names = [run.label for run in runs]
    longer = [f"{run.path.resolve().name}/{run.label}" if names.count(run.label) > 1 else run.label for run in runs]
    return [
        f"{label} #{longer[: i + 1].count(label)}" if longer.count(label) > 1 else label
        for i, label in enumerate(longer)
    ]


def _labelled(run: Run, label: str) -> Run:
    """Name a run's entries: the fullest of each checkpoint after that, others after their images or their files."""
    fullest: dict[str, Entry] = {}
    for entry in sorted(run.entries, key=lambda entry: (-entry.evaluation.rows[0].n, -len(entry.evaluation.rows))):
        fullest.setdefault(_checkpoint(entry), entry)

    def called(entry: Entry) -> str:
        checkpoint = _checkpoint(entry)
        words = [checkpoint] if len(fullest) > 1 else []
        if fullest[checkpoint] is not entry:
            n = entry.evaluation.rows[0].n
            alike = [one for one in run.entries if _checkpoint(one) == checkpoint and one.evaluation.rows[0].n == n]
            words = [*words, f"n {n:,}"] if len(alike) == 1 else [entry.path.stem]
        return f"{label} ({', '.join(words)})" if words else label

    return replace(run, label=label, entries=tuple(replace(entry, label=called(entry)) for entry in run.entries))


def _checkpoint(entry: Entry) -> str:
    """Return a checkpoint's name without its step: best, last."""
    return entry.evaluation.checkpoint.split(" (")[0]


def number(value: object) -> float:
    """Return a JSON number as float; what is none is NaN, which no figure draws."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
