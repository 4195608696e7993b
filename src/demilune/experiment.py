"""A run as one frozen value, and its plain form (JSON, YAML, the command line's)."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from demilune.attacks import PGD
from demilune.core.geometry import Ball
from demilune.data import DATA, Data, Extra
from demilune.errors import DemiluneError, check_types, unknown
from demilune.methods import METHODS, Method
from demilune.models import MODELS, Architecture
from demilune.moves import MOVES, RWP, NoMove, WeightMove
from demilune.runtime import Runtime
from demilune.schedules import AVERAGES, SCHEDULES, Average, NoAverage, Piecewise, Schedule

VARIANTS: Mapping[str, Mapping[str, type]] = types.MappingProxyType(
    {"data": DATA, "model": MODELS, "method": METHODS, "move": MOVES, "schedule": SCHEDULES, "average": AVERAGES}
)
"""The fields of an experiment whose class is chosen by name, with the classes they can hold."""

TABLES: Mapping[type, Mapping[str, type]] = types.MappingProxyType(
    dict(zip((Data, Architecture, Method, WeightMove, Schedule, Average), VARIANTS.values(), strict=True))
)
"""The same by the abstract class of the field."""


@final
@dataclass(frozen=True, slots=True)
class Training:
    """How long, in what portions, and how a run is watched.

    epochs: passes over the training images
    steps: number of steps; when above 0 it takes the place of epochs
    batch: images per step
    parts: into how many portions a batch is cut, their gradients accumulated; batch norm sees one portion at a time,
        and an attack in eval mode the running statistics that the portions before have moved
    momentum: of SGD
    nesterov: whether the momentum is Nesterov's
    weight_decay: of SGD
    normalize: whether the network sees pixels by the data set's mean and deviation, or as they are, in [0,1]
    decay: which weights decay: all, or kernels (of convolutions and linear layers only)  (rat.md A15)
    validation: the attack on the held-out images after each epoch
    validate_every: epochs between validations; the last is always validated
    monitor: so many training and so many test images, the same for every run, are attacked too at every validation,
        to see robust overfitting; for curves only: no checkpoint is ever chosen on them, and 0 leaves them alone
    alarm: fall of robust validation accuracy below its best so far that raises the alarm of catastrophic overfitting; a
        fall to less than half always does
    stop_on_alarm: whether the alarm ends the run
    checkpoint_every: seconds between checkpoints within an epoch
    """

    epochs: int = 30
    steps: int = 0
    batch: int = 128
    parts: int = 1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    normalize: bool = True
    decay: Literal["all", "kernels"] = "all"
    validation: PGD = PGD()
    validate_every: int = 1
    monitor: int = 0
    alarm: float = 0.2
    stop_on_alarm: bool = False
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("epochs", "batch", "parts", "validate_every"):
            if getattr(self, name) < 1:
                raise DemiluneError(f"training.{name} = {getattr(self, name)}: it must be 1 or more")
        for name in ("momentum", "weight_decay", "alarm", "checkpoint_every"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise DemiluneError(f"training.{name} = {value:g}: it must be 0 or more")
        if self.momentum > 1.0 or self.weight_decay > 1e6:
            raise DemiluneError(
                f"training.momentum = {self.momentum:g}, training.weight_decay = {self.weight_decay:g}: they must be "
                "at most 1 and 1e6"
            )
        if self.steps < 0:
            raise DemiluneError(f"training.steps = {self.steps}: it must be 0 (use epochs) or more")
        if self.monitor < 0:
            raise DemiluneError(f"training.monitor = {self.monitor}: it must be 0 (no images) or more")
        if self.batch % self.parts:
            raise DemiluneError(
                f"training.parts = {self.parts} does not divide the batch of {self.batch}: unequal parts would weigh "
                "images unequally in batch norm"
            )
        if self.nesterov and self.momentum == 0.0:
            raise DemiluneError("training.nesterov needs a momentum above 0")

    def lengths(self, images: int, share: float = 0.0) -> tuple[int, int]:
        """Return (all steps, steps per epoch) for so many training images; the last partial batch is dropped.

        Where a ``share`` of each batch is extra images, an epoch has as many steps as the training images would fill
        alone, the last one too, and visits a part of them (released RST code).
        """
        per_epoch = images // self.batch
        if share > 0.0:
            per_epoch = min(-(-images // self.batch), images // (self.batch - int(share * self.batch)))
        per_epoch = max(1, per_epoch)
        return self.steps or self.epochs * per_epoch, per_epoch


@final
@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything a run depends on; equal experiments give equal bits on the same machine and versions."""

    name: str
    data: Data
    model: Architecture
    method: Method
    ball: Ball
    move: WeightMove = NoMove()
    schedule: Schedule = Piecewise()
    average: Average = NoAverage()
    training: Training = Training()
    runtime: Runtime = Runtime()
    seed: int = 0

    def __post_init__(self) -> None:
        training, extra = self.training, self.data.extra
        if training.parts > 1 and not isinstance(self.move, NoMove):
            raise DemiluneError(
                f"training.parts = {training.parts} with the move {name_of(self.move)}: the offset is the whole "
                "batch's; use one part, or move none"
            )
        objection = self.method.objection(self.ball.norm, training.parts)
        if objection:
            setting = f"ball.norm {self.ball.norm} and training.parts {training.parts}"
            raise DemiluneError(f"{name_of(self.method)} with {setting}: {objection}")
        if not training.steps:
            self.check_starts(training.epochs)
        if isinstance(self.move, RWP) and self.move.c_min <= 0.0:
            raise DemiluneError(
                f"move.c_min = {self.move.c_min:g}: no loss lies below it, and the weights would never move; give a "
                "number above 0, or leave out the move"
            )
        if not extra.file and extra.share != Extra().share:
            raise DemiluneError(
                f"data.extra.share = {extra.share:g} without extra images: name them with --data.extra.file FILE"
            )
        if extra.file and int(extra.share * training.batch) == 0:
            raise DemiluneError(
                f"data.extra.share = {extra.share:g} of a batch of {training.batch} is no image: give a larger share"
            )

    def check_starts(self, epochs: int) -> None:
        """Refuse a move or a method that would begin after the last epoch."""
        late = {f"move.warmup of {name_of(self.move)}": self.move.starts()}
        late[f"method.begin of {name_of(self.method)}"] = self.method.starts()
        for name, epoch in late.items():
            if epoch >= epochs:
                raise DemiluneError(
                    f"{name} = {epoch} with {epochs} epochs: it would never begin; lower it, or train longer"
                )


Value = TypeVar("Value")


def plain(value: Any) -> Any:
    """Return a frozen value as dicts of plain values; one that a table names carries its ``name``."""
    return ({"name": name_of(value)} if table_of(type(value)) else {}) | _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields alone; of those that are values themselves, only what could be another class has a name."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        inner = _fields if hints[field.name] not in TABLES else plain
        found[field.name] = inner(held) if dataclasses.is_dataclass(held) else held
    return found


def build(kind: type[Value], given: Mapping[str, Any], where: str = "") -> Value:
    """Return the frozen value that :func:`plain` wrote; unknown names and wrong types are refused by name.

    ``where`` is the dotted path said in refusals.
    """
    if not isinstance(given, Mapping):
        raise DemiluneError(f"{where or 'the experiment'} = {given!r}: fields were expected, as {{name: value, …}}")
    table = TABLES.get(kind)
    given = dict(given)
    if table is not None:
        name = given.pop("name", None)
        if not isinstance(name, str) or name not in table:
            raise unknown(where, str(name), table)
        kind = table[name]
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in given:
        if key not in fields:
            raise unknown("field", f"{where}.{key}".lstrip("."), [f"{where}.{f}".lstrip(".") for f in fields])
    path = f"{where}." if where else ""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise DemiluneError(f"{where or 'the experiment'} has no field {path}{field.name}: it is needed")
    return kind(**{key: _convert(hints[key], value, path + key) for key, value in given.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return a plain value as the type a field declares."""
    if isinstance(kind, type) and (kind in TABLES or dataclasses.is_dataclass(kind)):
        return build(kind, value, where)
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if value not in options:
            raise unknown(where, str(value), [str(o) for o in options])
        return value
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise DemiluneError(f"{where} = {value!r}: a value of type {getattr(kind, '__name__', kind)} was expected")


def table_of(kind: type) -> Mapping[str, type] | None:
    """Return the table that names this class, if one does."""
    return next((table for table in TABLES.values() if kind in table.values()), None)


def name_of(value: object) -> str:
    """Return the name by which a table knows a value's class."""
    table = table_of(type(value)) or {}
    return next((name for name, kind in table.items() if kind is type(value)), type(value).__name__)


def stored(path: Path, tree: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a file holds; a refusal names the file."""
    try:
        return build(Experiment, tree)
    except DemiluneError as error:
        raise DemiluneError(f"{path} holds no experiment of this version: {error}") from None


def completed(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored plain experiment with the fields it lacks: a run of an older version had not all of them.

    They are at their defaults, as the older version did. What cannot be built is returned as it stands.
    """
    try:
        whole: Mapping[str, Any] = plain(build(Experiment, found))
    except DemiluneError:
        return found
    return whole


def difference(old: Any, new: Any, where: str = "") -> str | None:
    """Return the first field in which two plain experiments differ, as one phrase; None where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            found = difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else f"{where} is {old!r} there and {new!r} here"
