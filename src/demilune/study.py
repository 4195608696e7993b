"""The study of RWP's loss stationary condition: the runs it has, by ranges of the loss (docs/stationary.md)."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from demilune.errors import DemiluneError
from demilune.experiment import Experiment, difference, name_of, plain, stored
from demilune.moves import RWP, NoMove
from demilune.options import names, number
from demilune.report.stationary import label
from demilune.runs import RunFolder, read_json

RANGES = "0:0.5,0.5:1,1:1.5,1.5:2,2:inf,0:1,0:1.5,0:1.7,0:2,0:inf"
"""Ranges of the loss: bins half a unit wide, as in the later code of RWP's first author, and those from 0 up."""

MONITOR = 1000
"""Images of either kind that a study attacks at every validation, where nothing else is asked for."""


def loss_ranges(text: str) -> list[tuple[float, float]]:
    """Return the ranges of a list as 0:0.5,2:inf; refuses what is none."""
    found: list[tuple[float, float]] = []
    for word in names(text):
        low, colon, high = word.partition(":")
        try:
            ends = number(low), number(high)
        except argparse.ArgumentTypeError:
            colon = ""
        if not colon:
            raise DemiluneError(
                f"--ranges: {word!r} is no range: two numbers were expected, as 0:0.5 or 2:inf (none, the run without "
                "a move, comes by itself)"
            )
        if not ends[0] < ends[1]:
            raise DemiluneError(f"--ranges: {word!r} holds no loss: the first number must be smaller than the second")
        if ends in found:
            raise DemiluneError(f"--ranges names {word!r} twice: leave one out")
        found.append(ends)
    if not found:
        raise DemiluneError(f"--ranges is empty: name ranges, as --ranges {RANGES}")
    return found


def runs_of(experiment: Experiment, ranges: Sequence[tuple[float, float]]) -> dict[str, Experiment]:
    """Return the runs of a study by the names of their folders: without a move, then one for every range."""
    move = RWP() if isinstance(experiment.move, NoMove) else experiment.move
    if not isinstance(move, RWP):
        raise DemiluneError(f"the move is {name_of(move)}, and the study is of rwp: leave out --move")
    watched = dataclasses.replace(experiment.training, monitor=experiment.training.monitor or MONITOR)
    base = experiment.name.removesuffix("-rwp")  # the preset's name with the move's is no name for a run without
    experiment = dataclasses.replace(experiment, training=watched, move=NoMove())
    runs = {"none": dataclasses.replace(experiment, name=f"{base}-none")}
    for low, high in ranges:
        name = label(low, high)
        moved = dataclasses.replace(move, low=low, c_min=high)
        # a colon is no part of a file's name everywhere, and a minus at its beginning reads as an option
        folder = name.replace(":", "_").replace("-", "minus")
        runs[folder] = dataclasses.replace(experiment, name=f"{base}-{name}", move=moved)
    return runs


def check_study(folder: Path, runs: Mapping[str, Experiment]) -> None:
    """Refuse, before anything is trained, a folder that holds something else or other runs under these names."""
    if folder.exists() and not folder.is_dir():
        raise DemiluneError(f"{folder} is a file: name a folder for the study")
    for there in sorted(folder.iterdir()) if folder.exists() else ():
        ours = there.name in runs or re.match(r"\.?stationary\.", there.name)
        if not ours and not RunFolder(there).experiment.exists():
            raise DemiluneError(
                f"{folder} holds {there.name}, which is no part of a study: name a new folder, nothing was written"
            )
    for name, run in runs.items():
        file = RunFolder(folder / name).experiment
        if file.exists():
            changed = difference(plain(stored(file, read_json(file, "the experiment of a run"))), plain(run))
            if changed:
                raise DemiluneError(
                    f"{folder / name} holds another experiment: {changed}; give the study's own settings, or another "
                    "folder"
                )


def finished(folder: Path, runs: Mapping[str, Experiment], steps: int) -> list[str]:
    """Return the names of the other runs in a study's folder that came to their end, of so many steps."""
    found = []
    for there in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in runs):
        run = RunFolder(there)
        lines = run.read_metrics() if run.experiment.exists() else []
        found += [there.name] if lines and lines[-1]["step"] == steps else []
    return found
