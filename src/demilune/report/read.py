"""What a report is made of: run folders and evaluations, read whole and checked against each other."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, final

import numpy as np
import numpy.typing as npt

from demilune.errors import DemiluneError
from demilune.results import Evaluation
from demilune.runs import RunFolder, read_json

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One evaluated checkpoint: a line of the tables.

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


@final
@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, or (``experiment`` None) an evaluation that stands alone."""

    label: str
    path: Path
    experiment: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    timing: tuple[Mapping[str, Any], ...]
    entries: tuple[Entry, ...]


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
    folder = RunFolder(path)
    if not folder.experiment.exists():
        raise DemiluneError(f"{path} is no run folder (no {folder.experiment.name}): give one that training wrote")
    experiment = read_json(folder.experiment, "a run's experiment")
    environment = read_json(folder.environment, "a run's environment") if folder.environment.exists() else None
    return Run(
        str(experiment.get("name") or path.name),
        path,
        experiment,
        environment,
        _epochs(folder.read_metrics, folder.metrics),
        _epochs(folder.read_timing, folder.timing),
        tuple(_entry(file, position, place) for place, file in enumerate(folder.evaluations())),
    )


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
    value = read_json(path, "an evaluation")
    try:
        evaluation = Evaluation.from_json(value)
    except DemiluneError as error:
        raise DemiluneError(f"{path}: {error}") from None
    counts = [(row.n, row.right, row.n if row.right_after is None else row.right_after) for row in evaluation.rows]
    if not counts or not all(isinstance(n, int) and n > 0 and 0 <= r <= n and 0 <= a <= n for n, r, a in counts):
        raise DemiluneError(f"{path} counts no images, or more right than there are: evaluate the checkpoint again")
    images = _arrays(path.with_name(f"{path.stem}.images.npz"))
    gallery = _arrays(path.with_name(f"{path.stem}.gallery.npz"))
    _agree(path, evaluation, images, gallery)
    return Entry(evaluation.subject, run, place, path, evaluation, images, gallery if _has_examples(gallery) else None)


def _has_examples(gallery: Arrays | None) -> TypeGuard[Arrays]:
    """Say whether there is any: a model that is never right leaves an empty gallery."""
    return gallery is not None and any(name.startswith("image.") for name in gallery)


def _arrays(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DemiluneError(f"{path} cannot be read ({error}): evaluate the checkpoint again") from None


def _agree(path: Path, evaluation: Evaluation, images: Arrays | None, gallery: Arrays | None) -> None:
    """Refuse files of different evaluations side by side: an interrupted copy must not pass for a result."""
    for row in evaluation.rows:
        right = None if images is None else images.get(f"right.{row.name}")
        if right is not None and (right.shape != (row.n,) or int(right.sum()) != row.right):
            raise DemiluneError(
                f"{path} and {path.stem}.images.npz do not belong together (row {row.name!r}): evaluate again"
            )
    if not _has_examples(gallery):
        return
    try:
        shown = [name.removeprefix("image.") for name in gallery if name.startswith("image.")]
        shape, count = gallery["clean"].shape, len(gallery["labels"])
        kinds = (count, len(evaluation.classes))
        whole = len(shape) == 4 and shape[0] == count and shape[1] in (1, 3)
        whole &= gallery["clean_probabilities"].shape == kinds and gallery["ids"].shape == (count,)
        whole &= all(gallery[f"image.{row}"].shape == shape for row in shown)
        whole &= all(gallery[f"probabilities.{row}"].shape == kinds for row in shown)
        whole &= bool(np.all((gallery["labels"] >= 0) & (gallery["labels"] < len(evaluation.classes))))
    except KeyError as error:
        raise DemiluneError(f"{path.stem}.gallery.npz beside {path} lacks {error}: evaluate again") from None
    if not whole:
        raise DemiluneError(f"{path} and {path.stem}.gallery.npz do not belong together: evaluate again")


def _unique(runs: Sequence[Run]) -> list[str]:
    """Return the runs' names, after the folder's (then a number) where two runs share one."""
    names = [run.label for run in runs]
    longer = [f"{run.path.resolve().name}/{run.label}" if names.count(run.label) > 1 else run.label for run in runs]
    return [
        f"{label} #{longer[: i + 1].count(label)}" if longer.count(label) > 1 else label
        for i, label in enumerate(longer)
    ]


def _labelled(run: Run, label: str) -> Run:
    several = len(run.entries) > 1
    entries = tuple(replace(entry, label=f"{label} ({entry.path.stem})" if several else label) for entry in run.entries)
    return replace(run, label=label, entries=entries)


def number(value: object) -> float:
    """Return a JSON number as float; what is none is NaN, which no figure draws."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
