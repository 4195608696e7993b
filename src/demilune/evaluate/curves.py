"""What the papers' figures show of a network, each kind measured by itself into a file of the folder ``curves``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from demilune.attacks import PGD, Model, correct
from demilune.console import Line, console
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import CORRUPTED
from demilune.data.cifar_c import Corrupted
from demilune.data.corruptions import SEVERITIES, TYPES, Frost, available, corrupt, find_frost
from demilune.data.split import Bytes
from demilune.errors import DemiluneError, unknown
from demilune.evaluate.assess import Request, Stopped, assess, check_writable, chosen_images, default_target
from demilune.evaluate.curvature import input_curvature, weight_curvature
from demilune.evaluate.direction import direction
from demilune.evaluate.landscape import input_landscape, weight_landscape
from demilune.evaluate.subject import Subject
from demilune.evaluate.suite import Entry
from demilune.methods import RAT
from demilune.runs import environment, write_json
from demilune.surveys import Survey

ROWS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "iterations": ("iterations100",),
        "budgets": ("budget_pgd10", "budget_margin50", "budget_apgd_ce"),
        "gaps": ("pgd10",),
    }
)
"""Kinds that are rows of an evaluation, by the attacks that fill them."""

SURVEYS = ("direction", "landscape", "landscape-weights", "curvature", "curvature-weights")
"""Kinds that are tables of their own."""

KINDS = (*ROWS, "corruptions", *SURVEYS)

IMAGES: Mapping[str, int] = MappingProxyType(
    {
        "direction": 1000,
        "landscape": 100,
        "landscape-weights": 100,
        "curvature": 100,
        "curvature-weights": 200,
        "gaps": 10_000,
    }
)
"""How many images a kind takes unless told otherwise; all of them where it is not named."""


def measure(
    kind: str, subject: Subject, request: Request, frost: str, corrupted: str, stopping: Callable[[], bool]
) -> list[Path] | None:
    """Measure one of :data:`KINDS`, and return the files written, or None where ``stopping`` said to stop.

    ``frost`` is a folder of photographs, ``corrupted`` one of official CIFAR-C files; empty for what is found, and for
    corruptions of our own. Rows go on where they were stopped; a survey begins anew. What must stand beside a row
    (frost that is missing) is printed.
    """
    if kind not in KINDS:
        raise unknown("curve", kind, KINDS)
    told = f"{kind}-official" if kind == "corruptions" and corrupted else kind
    asked = replace(request, usual=IMAGES.get(kind, 0), kind=told, folder="curves")
    if kind in SURVEYS:
        return surveyed(kind, subject, asked, stopping)
    written = []
    for split in ("test", "train") if kind == "gaps" else (request.split,):
        one = replace(asked, split=split, attacks=ROWS.get(kind))
        entries = (corruptions(subject, one, frost, corrupted),) if kind == "corruptions" else None
        found, where = assess(subject, None, one, stopping, entries)
        if found is None:
            return None
        for note in dict.fromkeys(row.note for row in found.rows if row.note):
            console().print(f"{kind}: {note}", soft_wrap=True, highlight=False)
        written.append(where)
    return written


def corruptions(subject: Subject, request: Request, frost: str, corrupted: str) -> Entry:
    """Return the entry of every corruption at every severity, with what is right on the images so changed (Table 2).

    Types that cannot be had (frost without photographs) have no row, and the entry's note says so.
    """
    name = subject.dataset.name
    if corrupted and name not in CORRUPTED:
        raise DemiluneError(f"--corrupted: official files are of {', '.join(CORRUPTED)}, not of {name}")
    if corrupted and request.split != "test":
        raise DemiluneError("--corrupted: the official images are those of the test images; leave --split out")
    files = CORRUPTED[name](corrupted).load() if corrupted else None
    photographs = find_frost(frost) if files is None else None
    names = TYPES if files is not None else available(photographs)
    missing = [name for name in TYPES if name not in names]
    made = published(files) if files is not None else generated(photographs)

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        found = {}
        for name in names:
            for severity in SEVERITIES:
                images = made(x, name, severity, rng).to(torch.float32) / torch.full((), 255.0, device=x.device)
                found[f"corruption.{name}.{severity}"] = correct(model, subject.runtime.layout(images), y)
        return found

    titles = {f"corruption.{name}.{severity}": f"{name} {severity}" for name in names for severity in SEVERITIES}
    remedy = "needs photographs: pip install 'demilune[corruptions]', or --frost DIR"
    note = f"missing: {', '.join(missing)} ({remedy})" if missing else ""
    photos = hashlib.sha256(
        b"".join(p.numpy().tobytes() for p in photographs.photos) if photographs else b""
    ).hexdigest()
    source = f"files of {files.folder}" if files is not None else f"our generator, photographs {photos}"
    cost = (len(titles), 0)
    return Entry("corruptions", titles, None, run, cost, True, role="probe", note=note, identity=source)


Made: TypeAlias = Callable[[Tensor, str, int, Stream], Tensor]
"""(x in [0,1], type, severity, the images' stream) -> corrupted images, uint8, on the device of x."""


def generated(photographs: Frost | None) -> Made:
    """Return our own generator, seeded for each type, severity and image."""

    def made(x: Tensor, name: str, severity: int, rng: Stream) -> Tensor:
        grey = (x * 255).round().to(torch.uint8).contiguous()
        return corrupt(grey, name, severity, Stream.of(0, "corruption").images(rng.ids), photographs).to(x.device)

    return made


def published(files: Corrupted) -> Made:
    """Return the images of the official files; a type's file is verified when it is first asked for."""
    held = dict[str, Bytes]()

    def made(x: Tensor, name: str, severity: int, rng: Stream) -> Tensor:
        if name not in held:
            held[name] = files.images(name)[0]
        ids = () if rng.ids is None else rng.ids.cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray(held[name][severity - 1][ids])).to(x.device)

    return made


def surveyed(kind: str, subject: Subject, request: Request, stopping: Callable[[], bool]) -> list[Path] | None:
    """Measure a kind that is a table of its own, and write it with its provenance."""
    if kind.endswith("weights") and subject.parameters == 0:
        raise DemiluneError(f"{kind} cannot be measured: {subject.name} shows no weights; name other kinds with --only")
    split = chosen_images(subject.dataset, request).to(subject.device)
    rng = Stream.of(request.seed, "survey", device=subject.device)
    attack = PGD(10, step_ratio=request.step_ratio)
    target = default_target(subject, request)
    check_writable(target)
    begun = time.monotonic()
    with Line(console(), 0) as line:

        def watch(done: int, total: int) -> None:
            line.total = total
            line.move(done, kind)
            if stopping():
                raise Stopped

        model, ball, layout, batch = subject.model, subject.ball, subject.runtime.layout, request.batch
        found: list[Survey]
        try:
            if kind == "direction":
                method = RAT(attack=attack)
                found = [direction(model, split, ball, rng, method, layout=layout, batch=batch, watch=watch)]
            elif kind == "landscape":
                found = [input_landscape(model, split, ball, rng, attack, layout=layout, batch=batch, watch=watch)]
            elif kind == "landscape-weights":
                along = {"a": _SPAN, "b": _SPAN}
                found = [
                    weight_landscape(
                        model, split, ball, rng, attack, along["a"], along["b"], layout=layout, batch=batch, watch=watch
                    )
                ]
            else:
                curvature = input_curvature if kind == "curvature" else weight_curvature
                found = [
                    curvature(model, split, ball, rng, one, layout=layout, batch=batch, watch=watch)
                    for one in (None, attack)
                ]
        except Stopped:
            return None
        except RuntimeError as error:  # a stranger's network need not have the derivatives that a survey takes
            lack = isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error)
            if subject.declared is None or lack:
                raise
            raise DemiluneError(
                f"{kind} cannot be measured of {subject.name} ({str(error).splitlines()[0][:200]}): its network lacks "
                "a derivative; name other kinds with --only"
            ) from error
    about = environment()
    write_json(
        target,
        {
            "surveys": [one.to_json() for one in found],
            "subject": subject.name,
            "checkpoint": subject.checkpoint,
            "data": subject.dataset.name,
            "data_sha256": dict(subject.dataset.sha256),
            "data_official": subject.dataset.official,
            "split": request.split,
            "seed": request.seed,
            "seconds": time.monotonic() - begun,
            "environment": about,
            "command": about["command"],
        },
    )
    return [target]


_SPAN = tuple(k / 5 for k in range(-5, 6))
"""A coarser plane than the default's: at each of its points adversarial images are made anew."""


__all__ = ["KINDS", "corruptions", "measure"]
