"""From what is examined to an evaluation file: attacks, checks, verdict."""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from demilune import __version__
from demilune.console import Line, console
from demilune.core.random import Stream
from demilune.data import Dataset, Split
from demilune.diagnosis import diagnose
from demilune.errors import DemiluneError
from demilune.evaluate.interview import raised
from demilune.evaluate.subject import Subject, opened
from demilune.evaluate.suite import STANDARD, Entry, Setting, suite
from demilune.evaluate.table import Findings, Progress, evaluate, save_npz
from demilune.experiment import plain
from demilune.results import Check, Evaluation, Finding, Verdict
from demilune.runs import RunFolder, disk_refusal, environment, read_json, write_json
from demilune.runtime import hardware


@final
@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an evaluation; ``settings`` are plain fields laid over the subject's own (data, ball, runtime).

    ``attacks`` None means the standard suite. ``limit`` 0 means as many images as are ``usual``, and 0 there all of
    them. ``kind`` becomes part of the result's name, in place of the attacks;
    ``folder`` is the room of the run folder it goes to. ``omitted`` says what was left out, and why.
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
    omitted: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


class Examination(NamedTuple):
    """What was found of a network: rows, checks and per-image results; findings G1 to G11; the verdict."""

    found: Findings
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    verdict: Verdict


def concluded(found: Findings, asked: Sequence[Check], omitted: str, eps: float) -> Examination:
    """Return what was found with the verdict on it: of rows, of what the network answered, and of what was left out."""
    checks = (*found.checks, *(check for check in asked if check.name != "randomised"))
    checks += (Check("omitted", "warning", omitted),) if omitted else ()
    return Examination(found, checks, *diagnose(found.rows, found.images, checks, eps))


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
    target = out or default_target(subject, request)
    if out is not None:
        check_target(out, "evaluation", ("rows", "checks"))
    check_writable(target)
    entries = entries or entries_of(subject, request)
    dataset, device = subject.dataset, subject.device
    split = chosen_images(dataset, request).to(device)
    partial = target.with_suffix(".partial.npz")
    identity = {
        "version": __version__,
        "data": dict(dataset.sha256),
        "split": request.split,
        "weights": subject.sha256,
        "runtime": plain(subject.runtime),
        "seed": request.seed,
        "step_ratio": request.step_ratio,
    }
    rng = Stream.of(request.seed, "evaluation", device=device)
    asked = subject.interviewed(request.limit or request.usual).asked
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
                alone=not raised(asked, "batch"),
                randomised=raised(asked, "randomised"),
            )
        except Stopped:
            return None, partial
    about = environment()
    ended = concluded(found, (*asked, *subject.checks), request.omitted, subject.ball.eps)
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
        search_precision=subject.runtime.arithmetic,
        rows=found.rows,
        checks=ended.checks,
        seed=request.seed,
        seconds=time.monotonic() - begun,
        environment=about | {"device": hardware(device)},
        command=about["command"],
        findings=ended.findings,
        verdict=ended.verdict,
    )
    save_npz(target.with_suffix(".images.npz"), found.images)
    save_npz(target.with_suffix(".gallery.npz"), found.gallery)
    write_json(target, result.to_json())
    partial.unlink(missing_ok=True)
    return result, target


def entries_of(subject: Subject, request: Request) -> tuple[Entry, ...]:
    """Return the attacks asked for, as they are for this subject."""
    sources = dict[str, Subject]()
    for path in request.sources:
        source = opened(path, {"runtime": plain(subject.runtime)})
        if source.dataset.shape != subject.dataset.shape or source.dataset.classes != subject.dataset.classes:
            raise DemiluneError(f"{path} is of other images or classes than {subject.name}: nothing transfers from it")
        if source.sha256 == subject.sha256:
            raise DemiluneError(f"{path} is the very network that is examined: name others to transfer from")
        name = f"{source.name} ({source.checkpoint})"
        sources[f"{name}, {path}" if name in sources else name] = source
    setting = Setting(
        request.step_ratio,
        subject.ball.norm,
        len(subject.dataset.classes),
        {name: source.model for name, source in sources.items()},
        {name: source.sha256 for name, source in sources.items()},
        request.batch,
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
    asked: list[str] = [request.split] if request.split != "test" else []
    named = request.kind or "-".join(request.attacks or ())
    asked += [named] if named and request.attacks != STANDARD else []
    asked += ["-".join(["from", *map(str, request.sources)]).replace("/", "-")] if request.sources else []
    asked += [f"n{request.limit}"] if request.limit else []
    asked += [f"ratio{request.step_ratio:g}"] if request.step_ratio != 0.25 else []
    asked += [f"seed{request.seed}"] if request.seed else []
    told = {"ball.norm": "", "ball.eps": "eps", "runtime.precision": ""}
    for name, value in subject.apart.items():
        section, _, field_ = name.partition(".")
        if name in told or (section == "data" and field_ not in ("root", "unverified")):
            asked.append(told.get(name, field_) + (f"{value:g}" if isinstance(value, float) else str(value)))
    stem = "_".join(asked).replace("/", "over").replace("@", "-").replace("=", "")
    stem = "_".join([subject.stem, re.sub(r"[^\w.-]+", "-", stem)] if stem else [subject.stem])
    whole = stem.encode()
    if len(whole) > LONGEST:
        stem = f"{whole[: LONGEST - 13].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:12]}"
    if subject.home is None:
        return subject.file.with_name(f"{stem}.json")
    return RunFolder(subject.home).evaluation(stem, request.folder)


LONGEST = 160
"""Bytes of a result's name; file systems allow some 255, endings and a temporary name included."""


def check_target(out: Path, what: str, fields: Sequence[str]) -> None:
    """Refuse to write over anything but an earlier result of the kind, which has these fields."""
    if out.is_dir() or not out.name:
        raise DemiluneError(f"{out} is a folder: name the JSON file to write, as --out {out / 'found.json'}")
    if out.exists() and not (out.is_file() and _has(out, fields)):
        raise DemiluneError(f"{out} is there, and no {what}: name a new file, so that nothing is lost")


def check_writable(target: Path) -> None:
    """Refuse, before any work, a place that no file can be written to."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{target.with_suffix('.partial.npz').name}.", dir=target.parent):
            pass
    except OSError as error:
        raise disk_refusal(target, error) from error


def _has(path: Path, fields: Sequence[str]) -> bool:
    try:
        return set(fields) <= read_json(path, "a result").keys()
    except DemiluneError:
        return False


def chosen_images(dataset: Dataset, request: Request) -> Split:
    """Return the images to judge: all of a split, or the same random ones for every model."""
    if request.batch < 1 or request.limit < 0:
        raise DemiluneError(f"batch {request.batch}, limit {request.limit}: they must be at least 1 and 0")
    split = dataset.sample(request.split, request.limit or request.usual)
    if len(split) == 0:
        raise DemiluneError(f"{dataset.name} has no {request.split} images: choose another --split")
    return split


__all__ = ["Examination", "Request", "Stopped", "assess", "chosen_images", "concluded", "entries_of", "watching"]
