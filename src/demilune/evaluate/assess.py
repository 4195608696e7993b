"""From what is examined to an evaluation file: attacks, checks, verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch

from demilune.console import Line, console
from demilune.core.random import Stream
from demilune.data import Dataset, Split
from demilune.diagnosis import diagnose
from demilune.errors import DemiluneError
from demilune.evaluate.interview import PAIRED, interview, normalisations
from demilune.evaluate.subject import Subject, opened
from demilune.evaluate.suite import STANDARD, Entry, Setting, suite
from demilune.evaluate.table import Progress, evaluate, save_npz
from demilune.experiment import plain
from demilune.foreign import Declared
from demilune.results import Check, Evaluation
from demilune.runs import RunFolder, environment, read_json, write_json
from demilune.runtime import hardware


@final
@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an evaluation; ``settings`` are plain fields laid over the subject's own (data, ball, runtime).

    ``attacks`` None means the standard suite. ``limit`` 0 means as many images as are ``usual``, and 0 there all of
    them. ``kind`` becomes part of the result's name, in place of the attacks;
    ``folder`` is the room of the run folder it goes to.
    """

    attacks: tuple[str, ...] | None = None
    limit: int = 0
    usual: int = 0
    split: Literal["test", "validation", "train"] = "test"
    batch: int = 250
    step_ratio: float = 0.25
    seed: int = 0
    sources: tuple[Path, ...] = ()
    kind: str = ""
    folder: str = "evaluations"
    settings: Mapping[str, Any] = field(default_factory=dict)


class Stopped(Exception):  # noqa: N818 - no error
    """Somebody wished to stop; what is done so far is on the disk."""


def assess(
    subject: Subject,
    out: Path | None,
    request: Request,
    stopping: Callable[[], bool],
    entries: tuple[Entry, ...] | None = None,
) -> tuple[Evaluation | None, Path]:
    """Evaluate a network and write the JSON, the per-image results and the example images.

    ``entries`` take the place of the attacks that the request names. Returns the evaluation and its file, or None and
    the file of what is done so far when ``stopping`` said so.
    """
    if request.batch < 1 or request.limit < 0:
        raise DemiluneError(f"batch {request.batch}, limit {request.limit}: they must be at least 1 and 0")
    entries = entries or entries_of(subject, request)
    dataset, device = subject.dataset, subject.device
    split = chosen_images(dataset, request).to(device)
    target = out or default_target(subject, request)
    if out is not None:
        check_target(out)
    partial = target.with_suffix(".partial.npz")
    identity = {
        "data": dict(dataset.sha256),
        "split": request.split,
        "weights": subject.sha256,
        "suite": [[one.name, one.described(), one.most, one.identity] for one in entries],
        "runtime": plain(subject.runtime),
        "seed": request.seed,
    }
    rng = Stream.of(request.seed, "evaluation", device=device)
    first = split.take(torch.arange(min(len(split), 256), device=device))
    x = subject.runtime.layout(first.pixels(slice(None)))
    asked = interview(subject.model, x, first.labels, len(dataset.classes))
    if isinstance(subject.model, Declared) and subject.declared is not None:
        some = split.take(torch.arange(min(len(split), PAIRED), device=device))
        x = subject.runtime.layout(some.pixels(slice(None)))
        asked = (*asked, normalisations(subject.model.under, x, some.labels, subject.declared))
        asked = (*asked, *(Check("weights", "pass", note) for note in subject.model.notes))
    begun = time.monotonic()
    with Line(console(), len(entries) + 1) as line:
        try:
            found = evaluate(
                subject.model,
                split,
                subject.ball,
                entries,
                rng,
                lambda m: subject.runtime.search(m, device),
                subject.runtime.layout,
                request.batch,
                partial,
                identity,
                watching(line, stopping),
            )
        except Stopped:
            return None, partial
    about = environment()
    checks = (*found.checks, *(c for c in asked if c.name != "randomised"), *subject.checks)
    findings, verdict = diagnose(found.rows, found.images, checks)
    result = Evaluation(
        subject=subject.name,
        checkpoint=subject.checkpoint,
        architecture=subject.architecture,
        parameters=subject.parameters,
        method=subject.method,
        data=dataset.name,
        split=request.split,
        classes=dataset.classes,
        data_sha256=dict(dataset.sha256),
        data_official=dataset.official,
        norm=subject.ball.norm,
        eps=subject.ball.eps,
        randomised=found.randomised,
        search_precision=subject.runtime.precision,
        rows=found.rows,
        checks=checks,
        seed=request.seed,
        seconds=time.monotonic() - begun,
        environment=about | {"device": hardware(device)},
        command=about["command"],
        findings=findings,
        verdict=verdict,
    )
    save_npz(target.with_suffix(".images.npz"), found.images)
    save_npz(target.with_suffix(".gallery.npz"), found.gallery)
    write_json(target, result.to_json())
    partial.unlink(missing_ok=True)
    return result, target


def entries_of(subject: Subject, request: Request) -> tuple[Entry, ...]:
    """Return the attacks asked for, as they are for this subject."""
    sources = [opened(path, {"runtime": request.settings.get("runtime", {})}) for path in request.sources]
    for path, source in zip(request.sources, sources, strict=True):
        if source.dataset.shape[0] != subject.dataset.shape[0] or source.dataset.classes != subject.dataset.classes:
            raise DemiluneError(f"{path} is of other images or classes than {subject.name}: nothing transfers from it")
    told = {f"{source.name} ({source.checkpoint})": source for source in sources}
    setting = Setting(
        request.step_ratio,
        subject.ball.norm,
        len(subject.dataset.classes),
        {name: source.model for name, source in told.items()},
        {name: source.sha256 for name, source in told.items()},
    )
    return suite(request.attacks if request.attacks is not None else STANDARD, setting)


def watching(line: Line, stopping: Callable[[], bool]) -> Callable[[Progress], None]:
    """Return what shows an evaluation's progress on a line, and raises :class:`Stopped` when somebody wishes so."""
    title, ended = "", time.monotonic()

    def watch(event: Progress) -> None:
        nonlocal title, ended
        if event.title != title:
            title = event.title
            line.total, line.first, line.done, line.begun = event.total, 0, 0, ended
        ended = time.monotonic()
        done = event.done + int(event.within * event.batch)
        line.move(done, f"{event.title}, {event.right} standing" if event.done else event.title)
        if stopping():
            raise Stopped

    return watch


def default_target(subject: Subject, request: Request) -> Path:
    """Return where a subject's evaluation goes: into its folder, or beside the file.

    Whatever differs from the defaults is in the name, so that one evaluation does not take another's place.
    """
    ball = request.settings.get("ball", {})
    asked: list[str] = [request.split] if request.split != "test" else []
    named = request.kind or "-".join(request.attacks or ())
    asked += [named] if named and request.attacks != STANDARD else []
    asked += [f"n{request.limit}"] if request.limit else []
    asked += [f"ratio{request.step_ratio:g}"] if request.step_ratio != 0.25 else []
    asked += [f"seed{request.seed}"] if request.seed else []
    asked += [str(ball["norm"])] if "norm" in ball else []
    asked += [f"eps{ball['eps']:g}"] if "eps" in ball else []
    stem = "_".join([subject.stem, *asked]).replace("/", "over").replace("@", "-").replace("=", "")
    if subject.home is None:
        return subject.file.with_name(f"{stem}.json")
    return RunFolder(subject.home).evaluation(stem, request.folder)


def check_target(out: Path) -> None:
    """Refuse to write over anything but an earlier evaluation."""
    if out.is_dir() or not out.name:
        raise DemiluneError(f"{out} is a folder: name the JSON file to write, as --out {out / 'found.json'}")
    if out.exists() and not (out.is_file() and _is_evaluation(out)):
        raise DemiluneError(f"{out} is there, and no evaluation: name a new file, so that nothing is lost")


def _is_evaluation(path: Path) -> bool:
    try:
        return {"rows", "checks"} <= read_json(path, "an evaluation").keys()
    except DemiluneError:
        return False


def chosen_images(dataset: Dataset, request: Request) -> Split:
    """Return the images to judge: all of a split, or the same random ones for every model."""
    split = dataset.sample(request.split, request.limit or request.usual)
    if len(split) == 0:
        raise DemiluneError(f"{dataset.name} has no {request.split} images: choose another --split")
    return split


__all__ = ["Request", "Stopped", "assess", "chosen_images", "entries_of", "watching"]
