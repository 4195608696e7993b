"""From a checkpoint file to an evaluation file: reads only the one, writes only the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch

from demilune.checkpoint import Checkpoint, fill, load_run
from demilune.console import Line, console
from demilune.core.random import Stream
from demilune.data import Dataset, Split
from demilune.errors import DemiluneError
from demilune.evaluate.suite import STANDARD, suite
from demilune.evaluate.table import Progress, evaluate, save_npz
from demilune.experiment import Experiment, build, difference, name_of, plain
from demilune.methods import ORIGIN
from demilune.models import create
from demilune.options import overlaid
from demilune.results import Check, Evaluation
from demilune.runs import RunFolder, environment, read_json, write_json
from demilune.runtime import hardware


@final
@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of an evaluation; ``settings`` are plain fields laid over the run's own (data, ball, runtime)."""

    attacks: tuple[str, ...] | None = None
    limit: int = 0
    split: Literal["test", "validation", "train"] = "test"
    batch: int = 250
    step_ratio: float = 0.25
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def assess(
    file: Path, out: Path | None, request: Request, stopping: Callable[[], bool]
) -> tuple[Evaluation | None, Path]:
    """Evaluate a checkpoint and write the JSON, the per-image results and the example images.

    Returns the evaluation and its file, or None and the file of what is done so far when ``stopping`` said so.
    """
    if request.batch < 1 or request.limit < 0:
        raise DemiluneError(f"batch {request.batch}, limit {request.limit}: they must be at least 1 and 0")
    entries = suite(request.attacks if request.attacks is not None else STANDARD, request.step_ratio)
    checkpoint = load_run(file)
    same_run(file, checkpoint)
    # Searching is float32 unless asked otherwise: the trainer's precision is no reason to attack with less.
    tree = overlaid(checkpoint.about["experiment"], {"runtime": {"precision": "float32"}})
    experiment = build(Experiment, overlaid(tree, request.settings))
    device = experiment.runtime.start()
    dataset = experiment.data.load()
    check_data(file, checkpoint, dataset)
    split = chosen_images(dataset, request).to(device)
    model = rebuild(file, checkpoint, experiment).eval()
    model = experiment.runtime.place(model, device)

    target = out or default_target(file, request)
    if out is not None:
        check_target(out)
    partial = target.with_suffix(".partial.npz")
    identity = {
        "data": dict(dataset.sha256),
        "split": request.split,
        "weights": hashlib.sha256(file.read_bytes()).hexdigest(),
        "suite": [repr(one) for one in entries],
        "runtime": plain(experiment.runtime),
        "seed": request.seed,
    }
    begun = ended = time.monotonic()
    title = ""
    with Line(console(), len(entries) + 1) as line:

        def watch(event: Progress) -> None:
            nonlocal title, ended
            if event.title != title:
                title = event.title
                line.total, line.first, line.done, line.begun = event.total, 0, 0, ended
            ended = time.monotonic()
            line.move(event.done, f"{event.title}, {event.right} standing")
            if stopping():
                raise Stopped

        try:
            found = evaluate(
                model,
                split,
                experiment.ball,
                entries,
                Stream.of(request.seed, "evaluation", device=device),
                lambda m: experiment.runtime.search(m, device),
                experiment.runtime.layout,
                request.batch,
                partial,
                identity,
                watch,
            )
        except Stopped:
            return None, partial
    about = environment()
    result = Evaluation(
        subject=experiment.name,
        checkpoint=f"{checkpoint.about['checkpoint']} (step {checkpoint.about['step']})",
        architecture=repr(experiment.model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        method=described(experiment),
        data=dataset.name,
        split=request.split,
        classes=dataset.classes,
        data_sha256=dict(dataset.sha256),
        data_official=dataset.official,
        norm=experiment.ball.norm,
        eps=experiment.ball.eps,
        randomised=found.randomised,
        search_precision=experiment.runtime.precision,
        rows=found.rows,
        checks=(*found.checks, *same_data(checkpoint, dataset)),
        seed=request.seed,
        seconds=time.monotonic() - begun,
        environment=about | {"device": hardware(device)},
        command=about["command"],
    )
    save_npz(target.with_suffix(".images.npz"), found.images)
    save_npz(target.with_suffix(".gallery.npz"), found.gallery)
    write_json(target, result.to_json())
    partial.unlink(missing_ok=True)
    return result, target


def described(experiment: Experiment) -> str:
    """Return the method with all that makes it another one: a move, extra images, and whose idea of it this is."""
    name, move = name_of(experiment.method), name_of(experiment.move)
    told = f"{name} ({ORIGIN[name]})" if ORIGIN.get(name) in ("reconstructed", "ours") else name
    more = [name for name in (move, name_of(experiment.average)) if name != "none"]
    more += ["extra images"] if experiment.data.extra.file else []
    return " + ".join([told, *more])


class Stopped(Exception):  # noqa: N818 - no error
    """Somebody wished to stop; what is done so far is on the disk."""


def default_target(file: Path, request: Request) -> Path:
    """Return where a checkpoint's evaluation goes: into its run folder, or beside the file.

    Whatever differs from the defaults is in the name, so that one evaluation does not take another's place.
    """
    ball = request.settings.get("ball", {})
    asked: list[str] = [request.split] if request.split != "test" else []
    asked += ["-".join(request.attacks)] if request.attacks not in (None, STANDARD) else []
    asked += [f"n{request.limit}"] if request.limit else []
    asked += [f"ratio{request.step_ratio:g}"] if request.step_ratio != 0.25 else []
    asked += [f"seed{request.seed}"] if request.seed else []
    asked += [str(ball["norm"])] if "norm" in ball else []
    asked += [f"eps{ball['eps']:g}"] if "eps" in ball else []
    stem = "_".join([file.stem, *asked])
    folder = RunFolder(file.parent)
    return folder.evaluation(stem) if folder.experiment.exists() else file.with_name(f"{stem}.json")


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


def same_run(file: Path, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that was put into another run's folder."""
    folder = RunFolder(file.parent)
    if folder.experiment.exists():
        told = read_json(folder.experiment, "the experiment of a run")
        other = checkpoint.about["experiment"]
        if told != other:
            raise DemiluneError(
                f"{file} is of another run than its folder ({difference(other, told)}): "
                "put the right file back, or move this one out to evaluate it alone"
            )


def check_data(file: Path, checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse images the network was not made for."""
    made = checkpoint.about["data"]
    if list(dataset.shape) != made["shape"] and dataset.shape[0] != made["shape"][0]:
        raise DemiluneError(
            f"{file} takes images of {made['shape'][0]} channels; {dataset.name} has {dataset.shape[0]}"
        )
    if len(dataset.classes) != len(made["classes"]):
        raise DemiluneError(
            f"{file} tells {len(made['classes'])} classes apart; {dataset.name} has {len(dataset.classes)}: "
            "name the data it was trained for"
        )
    if list(dataset.classes) != made["classes"]:
        other = next(i for i, (a, b) in enumerate(zip(dataset.classes, made["classes"], strict=True)) if a != b)
        raise DemiluneError(
            f"{file} calls class {other} {made['classes'][other]!r}; {dataset.name} calls it "
            f"{dataset.classes[other]!r}: name the data it was trained for"
        )


def same_data(checkpoint: Checkpoint, dataset: Dataset) -> tuple[Check, ...]:
    """Warn where the images are divided or made otherwise than for training: they may hold what was trained on."""
    if checkpoint.about["data"].get("sha256") == dict(dataset.sha256):
        return ()
    text = "the data differ from those of the training: images judged here may have been trained on"
    return (Check("data", "warning", text),)


def chosen_images(dataset: Dataset, request: Request) -> Split:
    """Return the images to judge: all of a split, or the same random ones for every model."""
    split = dataset.sample(request.split, request.limit)
    if len(split) == 0:
        raise DemiluneError(f"{dataset.name} has no {request.split} images: choose another --split")
    return split


def rebuild(file: Path, checkpoint: Checkpoint, experiment: Experiment) -> torch.nn.Module:
    """Return the network with the checkpoint's weights: their average where the run kept one."""
    made = checkpoint.about["data"]
    model = create(
        experiment.model, made["shape"][0], len(made["classes"]), made["mean"], made["std"], Stream.of(0, "unused")
    )
    weights = checkpoint.part("average") or checkpoint.part("model")
    fill(model, weights, file, f"the network its header describes ({experiment.model!r})")
    return model


__all__ = ["Request", "assess", "chosen_images", "rebuild"]
