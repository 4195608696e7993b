"""What a cell needs to be done: train its network, ask it, measure the pace of its steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from demilune.automatic import stepping
from demilune.core.random import Stream
from demilune.evaluate.assess import Request, assess, chosen_images
from demilune.evaluate.curves import corruptions, measure
from demilune.evaluate.subject import Subject, opened
from demilune.experiment import Experiment, completed, name_of, stored
from demilune.methods import RAT
from demilune.runs import RunFolder, environment, read_json, write_json
from demilune.runtime import enough_memory, hardware
from demilune.suites.base import FIRST, Cell, slug
from demilune.suites.cost import SHAPES, learn
from demilune.suites.plane import plane
from demilune.suites.probe import margins, region, rise
from demilune.suites.record import Made, finished, images_asked, pace_record

Train = Callable[[Experiment, RunFolder], bool]
"""Trains, or goes on, in a folder; False where somebody stopped it."""

Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]

ROUNDS = 5
"""Steps that are counted of each line for the pace, besides one to warm up."""


def trained(cell: Cell, runs: Path, train: Train) -> RunFolder | None:
    """Return the folder of a cell's network, trained to its end; None where somebody stopped it.

    A run that is there keeps its own name and runtime, whatever suite it was trained for.
    """
    there = next((path for path in sorted(runs.glob(f"*-{cell.trained}")) if path.is_dir()), None)
    folder = RunFolder(there or runs / f"{slug(cell.experiment)}-{cell.trained}")
    experiment = cell.experiment
    if folder.experiment.exists():
        experiment = stored(folder.experiment, completed(read_json(folder.experiment, "the experiment of a run")))
    if finished(folder):
        return folder
    if not train(experiment, folder):
        return None
    timing = folder.read_timing()
    learn(experiment, sum(line["seconds"] for line in timing))
    return folder


def asked(cell: Cell, folder: RunFolder, given: Mapping[str, str], stopping: Stopping) -> bool:
    """Ask a trained network what a cell asks, into its folder; return False where somebody stopped it.

    ``given`` are folders for corruptions, by name.
    """
    ask, runtime = cell.ask, cell.experiment.runtime
    if ask.kind == "training":
        return True
    settings = {"runtime": {"device": runtime.device, "threads": runtime.threads}}
    with stopping() as stop, enough_memory():
        subject = opened(folder.checkpoint(cell.checkpoint), settings)
        request = Request(limit=ask.limit, settings=settings)
        if ask.kind in ("plane", "probe"):
            found = looked(cell, subject, request, stop)
            if found is None:
                return False
            about = {
                "names": list(subject.dataset.classes), "checkpoint": subject.checkpoint, "data": subject.dataset.name,
                "data_sha256": dict(subject.dataset.sha256), "data_official": subject.dataset.official,
                "environment": environment() | {"device": hardware(subject.device)},
            }  # fmt: skip
            write_json(folder.path / f"{ask.kind}-{ask.names[0]}.json", {**found, **about})
            return True
        if ask.kind == "curve":
            kind = ask.names[0]
            if kind == "corruptions":  # refuse what is missing before anything is run
                corruptions(subject, request, given.get("frost", ""), given.get("corrupted", ""))
            done = measure(kind, subject, request, given.get("frost", ""), given.get("corrupted", ""), stop)
            return done is not None
        result, _ = assess(subject, None, replace(request, attacks=ask.names), stop)
        return result is not None


def looked(cell: Cell, subject: Subject, request: Request, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Return a plane or a probe of a network as plain values; None where somebody stopped it."""
    ask, model, ball = cell.ask, subject.model, subject.ball
    rng, method = Stream.of(0, "survey", device=subject.device), region_of(cell.experiment)
    if ask.kind == "plane":
        image = int(ask.names[0]) if ask.names[0] != FIRST else None
        return plane(model, subject.dataset.test.to(subject.device), ball, rng, method, image)
    split = chosen_images(subject.dataset, replace(request, limit=images_asked(cell))).to(subject.device)
    if ask.names[0] == "region":
        return region(model, split, ball, rng, method)
    return rise(model, split, ball, rng) if ask.names[0] == "rise" else margins(model, split, ball, rng, stop=stop)


def region_of(experiment: Experiment) -> RAT:
    """Return RAT as an experiment trains it, or with the attack of another method: what a plane is drawn with."""
    if isinstance(experiment.method, RAT):
        return experiment.method
    return RAT(attack=experiment.training.validation)


def paced(cell: Cell, first: Cell) -> Made:
    """Measure the seconds of a cell's training step, in turn with a step of the first line's, and return the record."""
    runtime = cell.experiment.runtime
    device = runtime.start()
    seconds: dict[str, list[float]] = {"mine": [], "first": []}
    turns = {"mine": cell.experiment, "first": first.experiment}
    if cell.trained == first.trained:
        turns.pop("first")
    data = name_of(cell.experiment.data)
    shape, classes = SHAPES.get(data, (3, 32, 32)), 100 if data == "cifar100" else 10
    steps = {name: stepping(experiment, shape, classes, device) for name, experiment in turns.items()}
    for _ in range(ROUNDS + 1):
        for name, take in steps.items():
            seconds[name].append(take())
    mine = seconds["mine"][1:]
    ratios = [a / b for a, b in zip(mine, seconds["first"][1:], strict=True)] if "first" in turns else [1.0]
    found: dict[str, Any] = {
        "seconds_per_step": [round(one, 4) for one in mine],
        "batch": cell.experiment.training.batch,
        "minutes": round(1000.0 * statistics.median(mine) / 60.0, 3),
        "relative": round(statistics.median(ratios), 3),
        "to": first.line.label,
    }
    about = environment() | {"device": hardware(device)}
    return pace_record(cell, found, about)


__all__ = ["asked", "paced", "trained"]
