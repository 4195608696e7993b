"""What is examined: a network of ours or anyone's, with the data and the ball it is judged by."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, final

import torch
from torch import nn

from demilune.attacks import frozen, seeded
from demilune.checkpoint import Checkpoint, fill, load_run
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Data, Dataset
from demilune.errors import DemiluneError
from demilune.evaluate.interview import PAIRED, first_look, interview, normalisations
from demilune.experiment import Experiment, build, difference, name_of, plain, stored
from demilune.foreign import (
    FACTORY,
    LACKING,
    LIBRARIES,
    PROGRAMS,
    Declaration,
    Declared,
    Still,
    cut_off,
    load_declared,
    published,
)
from demilune.methods import ORIGIN
from demilune.models import create
from demilune.options import flat, overlaid
from demilune.results import Check
from demilune.runs import RunFolder, read_json, write_json
from demilune.runtime import Runtime

DECLARED = "model.json"
"""The file of a foreign model's folder: what was declared of it, its data, its ball."""

ASKED = 256
"""Images that a network is interviewed on."""


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """What a foreign model is judged by.

    data: the images
    ball: the threat model
    runtime: how the arithmetic is done
    """

    data: Data
    ball: Ball = Ball()
    runtime: Runtime = Runtime()


@final
@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A network on its device, in eval mode, with all that its result has to say.

    ``file`` is its checkpoint or declaration, ``home`` the folder its results go to (None: beside the file),
    ``stem`` how they are called; ``sha256`` fingerprints the weights. ``declared`` is None for a network trained here.
    ``apart``: the fields of data, ball and runtime that were asked to be otherwise than the file says, by dotted name.
    ``asked`` is what it answered when it was interviewed, empty before.
    """

    name: str
    model: nn.Module
    dataset: Dataset
    ball: Ball
    runtime: Runtime
    device: torch.device
    checkpoint: str
    architecture: str
    method: str
    sha256: str
    file: Path
    home: Path | None
    stem: str
    checks: tuple[Check, ...] = ()
    declared: Declaration | None = None
    apart: Mapping[str, Any] = field(default_factory=dict)
    asked: tuple[Check, ...] = ()

    def interviewed(self, limit: int = 0) -> Subject:
        """Return the same with what it answers of itself, once for a whole command.

        It is asked on 256 of its images, or on ``limit`` where that is less and not 0; about its normalisation, where
        that was declared, on 500, since fewer do not tell two apart; test images where there are any. Raises
        DemiluneError as :func:`~demilune.evaluate.interview.interview` does.
        """
        if self.asked:
            return self
        data, layout = self.dataset, self.runtime.layout
        kind: Literal["test", "validation", "train"] = (
            "test" if len(data.test) else "validation" if len(data.validation) else "train"
        )
        few = data.sample(kind, min(ASKED, limit or ASKED)).to(self.device)
        asked = interview(self.model, layout(few.pixels(slice(None))), few.labels, len(data.classes))
        if isinstance(self.model, Declared) and self.declared is not None:
            more = data.sample(kind, PAIRED).to(self.device)
            x = layout(more.pixels(slice(None)))
            asked = (*asked, normalisations(self.model.under, x, more.labels, self.declared))
            notes = ((note, "warning" if note.endswith(LACKING) else "pass") for note in self.model.notes)
            asked = (*asked, *(Check("weights", level, note) for note, level in notes))
        return replace(self, asked=asked)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())


PLAIN: Mapping[str, Any] = MappingProxyType(
    {"runtime": {"precision": "float32", "convolution": "plain", "compile": False}}
)
"""What is laid over a run's own runtime: an evaluation searches with no less than float32 unless asked to."""


def is_foreign(path: Path) -> bool:
    """Say whether a command line's MODEL is anything but a run of ours."""
    if path.is_dir() or path.name == DECLARED:
        return path.name == DECLARED or (path / DECLARED).exists()
    return path.suffix in PROGRAMS or is_factory(path)


def is_factory(path: Path) -> bool:
    """Say whether a command line's MODEL is package.module:function, and no file of such a name."""
    return ":" in str(path) and not path.exists()


def trial_of(path: Path, data: str | None) -> Trial | None:
    """Return what a foreign model is judged by: as declared, or with the data named now; None where none is."""
    file = path if path.name == DECLARED else path / DECLARED
    if file.exists():
        return told(file).trial
    return None if data is None else build(Trial, {"data": {"name": data}}, "")


class Told(NamedTuple):
    """What a declaration's file says."""

    name: str
    declaration: Declaration
    trial: Trial


def told(file: Path) -> Told:
    """Read a declaration's file."""
    found = read_json(file, "a model's declaration")
    missing = [name for name in ("model", "trial") if not isinstance(found.get(name), dict)]
    try:
        if missing:
            raise DemiluneError(f"it lacks {' and '.join(missing)}")
        return Told(
            str(found.get("name") or file.absolute().parent.name),
            Declaration.from_json(found["model"]),
            build(Trial, found["trial"]),
        )
    except DemiluneError as error:
        raise DemiluneError(f"{file} is damaged ({error}): declare the model anew, with another --home") from None


def declare(path: Path, given: Mapping[str, Any], fields: Mapping[str, Any]) -> Path:
    """Return the folder of a foreign model, after writing down there what is declared of it, if it is new.

    ``given`` are the declaration's options by name, ``fields`` those of data, ball and runtime. Raises DemiluneError
    where they contradict what was declared before, so that results under one name are of one model; nothing is written
    for what does not load, or gives no logits of the data's images.
    """
    if path.is_dir() or path.name == DECLARED:
        if given:
            raise DemiluneError(
                f"--{next(iter(given))}: {path} was declared already (see {DECLARED} there); to declare it otherwise "
                "name the factory again, with another --home"
            )
        return path if path.is_dir() else path.parent
    if "data" not in given:
        raise DemiluneError(f"--data is missing: name the images to judge {path} by, as --data cifar10")
    factory = is_factory(path)
    if factory and "trust" in given:
        raise DemiluneError(f"--trust is for files of torch.export and TorchScript; {path} is imported: leave it out")
    if "part" in given and "weights" not in given:
        raise DemiluneError(f"--part {given['part']} is of a file of weights: name it with --weights, or leave it out")
    named = re.sub(r"\W+", "-", str(path).rpartition(":")[2] if factory else path.stem).strip("-")
    home = Path(given.get("home", named))
    trial = build(Trial, overlaid({"data": {"name": given["data"]}}, fields))
    dataset = trial.data.load()
    low, high = _bounds(given.get("bounds", (0.0, 1.0)))
    model, mean, std = str(path if factory else path.resolve()), given.get("mean", ()), given.get("std", ())
    if given.get("pretrained") and model.partition(":")[0] in LIBRARIES:
        # Its full name is kept, which another version of the library takes for the same weights.
        says = published(model, given.get("classes", len(dataset.classes)), dataset.shape[0])
        model = says.model
        if not given.keys() & {"mean", "std", "bounds"}:
            mean, std = says.mean, says.std
    weights = Path(given["weights"]).resolve() if "weights" in given else None
    file = weights or (None if factory else path)
    declaration = Declaration(
        model=model,
        weights=None if weights is None else str(weights),
        weights_sha256=_sha256(file) if file is not None and file.is_file() else None,
        low=low,
        high=high,
        mean=mean,
        std=std,
        classes=given.get("classes", len(dataset.classes)),
        channels=dataset.shape[0],
        trust=given.get("trust", False),
        part=given.get("part", ""),
        pretrained=given.get("pretrained", False),
    )
    file = home / DECLARED
    if file.exists():
        before = told(file)
        other = difference(before.declaration.to_json(), declaration.to_json())
        other = other or difference(name_of(before.trial.data), name_of(trial.data), "data")
        if other:
            raise DemiluneError(f"{file} declares another model ({other}): name another folder with --home")
        return home
    made(file, Told(home.name, declaration, trial), trial, dataset)
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise DemiluneError(f"{home} is there, and no declared model: name a new folder with --home")
    write_json(file, {"name": home.absolute().name, "model": declaration.to_json(), "trial": plain(trial)})
    return home


def _bounds(given: Sequence[float]) -> tuple[float, float]:
    if len(given) != 2:
        raise DemiluneError(f"--bounds {','.join(map(str, given))}: two numbers were expected, as 0,1 or -1,1 or 0,255")
    return given[0], given[1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def opened(file: Path, settings: Mapping[str, Any]) -> Subject:
    """Return what a run's checkpoint, or a foreign model's folder, holds; ``settings`` are laid over its own.

    Searching is float32 unless asked otherwise: the trainer's precision is no reason to attack with less.
    Raises DemiluneError for whatever is missing, damaged, or does not go together.
    """
    if file.name == DECLARED or (file.is_dir() and (file / DECLARED).exists()):
        return declared(file if file.name == DECLARED else file / DECLARED, settings)
    checkpoint = load_run(file)
    same_run(file, checkpoint)
    tree = overlaid(checkpoint.about["experiment"], PLAIN)
    experiment = build(Experiment, overlaid(tree, settings))
    device = experiment.runtime.start()
    dataset = experiment.data.load()
    check_data(file, checkpoint, dataset)
    model = rebuild(file, checkpoint, experiment).eval()
    return Subject(
        name=experiment.name,
        model=experiment.runtime.place(model, device),
        dataset=dataset,
        ball=experiment.ball,
        runtime=experiment.runtime,
        device=device,
        checkpoint=f"{checkpoint.about['checkpoint']} (step {checkpoint.about['step']})",
        architecture=repr(experiment.model),
        method=described(experiment),
        sha256=_sha256(file),
        file=file,
        home=file.parent if RunFolder(file.parent).experiment.exists() else None,
        stem=file.stem,
        checks=same_data(checkpoint, dataset),
        apart=apart(tree, settings),
    )


def apart(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say otherwise than ``own`` does, by dotted name."""
    before = flat(own)
    return {name: value for name, value in flat(settings).items() if name not in before or before[name] != value}


def declared(file: Path, settings: Mapping[str, Any]) -> Subject:
    """Return the foreign model that a declaration describes."""
    written = told(file)
    model, weights = written.declaration.model, written.declaration.weights
    for lost in (weights, None if written.declaration.library or FACTORY.fullmatch(model) else model):
        if lost is not None and not Path(lost).exists():
            raise DemiluneError(
                f"{file} names a file that is not there, {lost}: put it back, or declare the model anew, with another "
                "--home"
            )
    tree = overlaid(plain(written.trial), PLAIN)
    try:
        trial = build(Trial, overlaid(tree, settings))
        return made(file, written, trial, trial.data.load(), apart(tree, settings))
    except DemiluneError as error:
        raise DemiluneError(f"{file}: {error}") from None


def made(
    file: Path, written: Told, trial: Trial, dataset: Dataset, apart: Mapping[str, Any] = MappingProxyType({})
) -> Subject:
    """Return the foreign model of a declaration, whether or not it is in its file yet; it has answered some images."""
    declaration = written.declaration
    device = trial.runtime.start()
    if declaration.channels != dataset.shape[0]:
        raise DemiluneError(
            f"{declaration.model} takes images of {declaration.channels} channels; {dataset.name} has "
            f"{dataset.shape[0]}: name its own data"
        )
    if declaration.classes != len(dataset.classes):
        raise DemiluneError(
            f"{declaration.model} is declared to tell {declaration.classes} classes apart; {dataset.name} has "
            f"{len(dataset.classes)}: name its own data (--data NAME), or leave --classes out"
        )
    model = load_declared(declaration, device).eval()
    placed = trial.runtime.place(model, device)
    asked = answered(model, dataset, trial.runtime, device)
    return Subject(
        name=written.name,
        model=placed,
        dataset=dataset,
        ball=trial.ball,
        runtime=trial.runtime,
        device=device,
        checkpoint=Path(declaration.weights or declaration.model).name,
        architecture=declaration.model,
        method="foreign",
        sha256=fingerprint(model, declaration),
        file=file,
        home=file.parent,
        stem="model",
        checks=asked,
        declared=declaration,
        apart=apart,
    )


def answered(model: Declared, dataset: Dataset, runtime: Runtime, device: torch.device) -> tuple[Check, ...]:
    """Refuse a model whose answers are no logits; give one that is cut off from its images a gradient of zero."""
    some = dataset.test.take(torch.arange(min(8, len(dataset.test)))).to(device)
    if len(some) == 0:
        return ()
    x = runtime.layout(some.pixels(slice(None)))
    first_look(model, x, some.labels, len(dataset.classes))
    with frozen(model, "keep"), seeded(Stream.of(0, "gradient"), device):
        why = cut_off(model, x)
    if not why:
        return ()
    model.net = Still(model.net).eval()
    return (Check("cut off", "warning", f"{why}: attacks by gradient were given a gradient of zero"),)


def fingerprint(model: nn.Module, declaration: Declaration) -> str:
    """Return the sha256 of a foreign model: what was declared of it, and its weights."""
    found = hashlib.sha256(json.dumps(declaration.to_json(), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def described(experiment: Experiment) -> str:
    """Return the method with all that makes it another one: a move, extra images, and whose idea of it this is."""
    name, move = name_of(experiment.method), name_of(experiment.move)
    told = f"{name} ({ORIGIN[name]})" if ORIGIN.get(name) in ("reconstructed", "ours") else name
    more = [name for name in (move, name_of(experiment.average)) if name != "none"]
    more += ["extra images"] if experiment.data.extra.file else []
    return " + ".join([told, *more])


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


class Network(NamedTuple):
    """A network alone, in eval mode on the cpu, from images [N, *shape] in [0,1] to logits of the classes."""

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    described: str


def network(file: Path) -> Network:
    """Return the network of a run's checkpoint, whose images need not be there, or of a declared model's folder."""
    if file.name == DECLARED or file.is_dir():
        found = opened(file, {"runtime": {"device": "cpu"}})
        return Network(found.name, found.model, found.dataset.shape, found.dataset.classes, found.architecture)
    checkpoint = load_run(file)
    same_run(file, checkpoint)
    experiment = stored(file, checkpoint.about["experiment"])
    made = checkpoint.about["data"]
    return Network(
        experiment.name,
        rebuild(file, checkpoint, experiment).eval(),
        tuple(made["shape"]),
        tuple(made["classes"]),
        f"{experiment.model!r}, {described(experiment)}, {checkpoint.about['checkpoint']} checkpoint",
    )


def rebuild(file: Path, checkpoint: Checkpoint, experiment: Experiment) -> torch.nn.Module:
    """Return the network with the checkpoint's weights: their average where the run kept one."""
    made = checkpoint.about["data"]
    model = create(
        experiment.model, made["shape"][0], len(made["classes"]), made["mean"], made["std"], Stream.of(0, "unused")
    )
    weights = checkpoint.part("average") or checkpoint.part("model")
    fill(model, weights, file, f"the network its header describes ({experiment.model!r})")
    return model
