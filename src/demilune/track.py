"""Where the numbers of a run go besides its folder: TensorBoard, or whatever a callback makes of them.

A tracker is a callable that gets one :class:`Event` after every epoch and one at the end. What it raises ends the
tracker, never the run.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, final

from demilune.errors import DemiluneError, said
from demilune.options import flat
from demilune.runs import RunFolder

TENSORBOARD = "tensorboard"
"""The name of the tracker that is here, and of its folder inside the run's."""

COUNTS = ("epoch", "step", "validation_n", "monitor_n")
"""What a metrics line counts, which is nothing to plot."""


@final
@dataclass(frozen=True, slots=True)
class Event:
    """What a tracker is told.

    kind: "epoch", after the epoch's checkpoint is on the disk; or "end", once, when this process leaves the run
    run: the run's name
    folder: the run folder
    epoch: the epoch that was completed, from 1; at the end the last one that was, 0 where none was
    step: steps of the run so far
    steps: steps of the whole run
    numbers: what was measured in the epoch, by name: loss, excess, rate, seconds, images_per_second; clean and robust
        (accuracies in [0,1]) where it was validated; notes/NAME of the method's own. Empty at the end
    best: whether the epoch is the best so far
    alarm: the alarm of catastrophic overfitting, where the epoch raised it
    outcome: at the end "finished", "stopped" (--resume goes on) or "failed"; empty after an epoch
    experiment: the run's fields by their dotted names, as in --training.batch: "training.batch"
    """

    kind: Literal["epoch", "end"]
    run: str
    folder: Path
    epoch: int
    step: int
    steps: int
    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    best: bool = False
    alarm: str | None = None
    outcome: Literal["", "finished", "stopped", "failed"] = ""
    experiment: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


Tracker = Callable[[Event], object]


class Told(Protocol):
    """What of the loop's events (train.Progress) is read here."""

    @property
    def kind(self) -> str:
        """start, step, epoch, saved or end."""

    @property
    def step(self) -> int:
        """Steps so far."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Of an epoch: its metrics and timing lines together."""


Seen = TypeVar("Seen", bound=Told)


@contextlib.contextmanager
def sending(
    track: Tracker | None,
    run: str,
    experiment: Mapping[str, Any],
    folder: RunFolder,
    watch: Callable[[Seen], None],
) -> Iterator[Callable[[Seen], None]]:
    """Give what the loop is to tell its events to: ``watch``, and then the tracker.

    A run that is resumed tells of the epochs trained from there on, and of no earlier one. A run that had ended already
    tells nothing. A second Ctrl-C, which stops at once, sends no end. A tracker that raises is told no more.
    """
    if track is None:
        yield watch
        return
    tracker: Tracker | None = track
    fields = MappingProxyType({name: tuple(v) if isinstance(v, list) else v for name, v in flat(experiment).items()})
    epoch, step, steps = -1, 0, 0  # epoch -1: the run did not begin
    outcome: Literal["finished", "stopped", "failed"] = "stopped"

    def send(event: Event) -> None:
        nonlocal tracker
        if tracker is None:
            return
        try:
            tracker(event)
        except (Exception, SystemExit) as error:  # what a user's code may raise is anything
            tracker = None
            remark = ": it is told no more, training goes on" if event.kind == "epoch" else " at the end of the run"
            with contextlib.suppress(OSError):  # nobody there to read it
                print(f"warning: the tracker failed ({said(error)}){remark}", file=sys.stderr)

    def told(progress: Seen) -> None:
        nonlocal epoch, step, steps, outcome
        watch(progress)
        step, steps = progress.step, progress.steps
        if progress.kind == "start":
            epoch = len(folder.read_metrics())
        elif progress.kind == "epoch":
            line = progress.data
            epoch, best, alarm = line["epoch"], bool(line["best"]), line["alarm"]
            send(Event("epoch", run, folder.path, epoch, step, steps, numbers_of(line), best, alarm, "", fields))
        elif progress.kind == "end":
            outcome = "finished"

    def end() -> None:
        if epoch >= 0:
            send(Event("end", run, folder.path, epoch, step, steps, outcome=outcome, experiment=fields))

    try:
        yield told
    except Exception:
        outcome = "failed"
        end()
        raise
    end()


def numbers_of(line: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the numbers of an epoch's lines by name, the method's notes as notes/NAME; what is missing is left out."""
    notes = {f"notes/{name}": value for name, value in (line.get("notes") or {}).items()}
    every = {name: value for name, value in line.items() if name not in COUNTS} | notes
    numbers = {k: v for k, v in every.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return MappingProxyType(numbers)


# --- by name ---------------------------------------------------------------------------------------------------------


def tracker_of(spec: str) -> Tracker:
    """Return the tracker that is named: ``tensorboard``, or ``package.module:callback``."""
    return tensorboard() if spec == TENSORBOARD else named(spec)


def tensorboard() -> Tracker:
    """Return the tracker that writes scalars to RUN/tensorboard, over epochs; a run that is resumed goes on there.

    Raises DemiluneError where the package tensorboard is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        told = "is not installed" if _lacks(error, "tensorboard") else f"cannot be imported ({said(error)})"
        raise DemiluneError(
            f"--track tensorboard: the package tensorboard {told}: pip install 'demilune[tensorboard]', or leave out "
            "--track (metrics.jsonl has all numbers)"
        ) from None
    writer: SummaryWriter | None = None

    def send(event: Event) -> None:
        nonlocal writer
        if event.kind == "epoch":
            if writer is None:  # only now: a run's folder must be empty before it begins
                writer = SummaryWriter(str(event.folder / TENSORBOARD))
            for name, value in event.numbers.items():
                writer.add_scalar(name, value, event.epoch)
            writer.flush()
        elif writer is not None:
            writer.close()
            writer = None

    return send


def _lacks(error: ImportError, package: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package


def named(spec: str) -> Tracker:
    """Return the callback ``package.module:name``, a function of one event; the working folder's modules are found too.

    Raises DemiluneError for what is not there, cannot be imported, or cannot be called with one event.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", spec):
        raise DemiluneError(
            f"--track {spec!r}: possible are {TENSORBOARD}, and package.module:callback, a function of one event"
        )
    module, _, name = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    sys.path.insert(0, here)  # as python itself does for a script there
    importlib.invalidate_caches()
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise DemiluneError(
                f"--track {spec}: there is no module {error.name!r}: start in the folder it lies in, or install it"
            ) from None
        raise DemiluneError(f"--track {spec}: importing {module} fails ({said(error)})") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if name not in vars(found):
        raise DemiluneError(f"--track {spec}: {module} has no {name!r}: name a function of it")
    callback = vars(found)[name]
    if inspect.isclass(callback) or not callable(callback) or not _takes_one(callback):
        raise DemiluneError(
            f"--track {spec}: it is no function of one event (an object that is called with one will do, a class will "
            "not)"
        )
    return callback  # type: ignore[no-any-return]


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # it does not tell, as functions in C may not
        return True
    return True
