"""A run as it goes on: a view drawn from what the loop tells, or, in another terminal, from the run folder alone.

Neither changes anything of the run: nothing is read off the device that the loop has not read, and the folder is only
read. No torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.text import Text

from demilune.console import BLOCKS, LETTERS, Line, Pane, duration, is_live, percent, size, spark
from demilune.errors import DemiluneError
from demilune.runs import RunFolder, read_json

POLL = 1.0
"""Seconds between two looks at a run folder."""

PATIENCE = 300.0
"""Seconds without a change after which a run is taken for dead where its folder's lock tells nothing."""

RECENT = 20
"""Steps over which the time of one is averaged."""

ROW = 60
"""Columns from which on a row has room for remarks."""


@final
@dataclass(frozen=True, slots=True)
class View:
    """What is shown of a run; None is what is not known, or not yet.

    name: the run's name
    state: what it is at: training, validating, finished, …
    lines: the metrics, one mapping per epoch
    step: steps so far
    steps: steps of the whole run
    per_epoch: steps of an epoch
    rate: the learning rate
    seconds: of one step
    pace: images per second
    left: seconds to the end
    remark: one more line
    over: whether the run has come to its end
    """

    name: str
    state: str
    lines: Sequence[Mapping[str, Any]] = ()
    step: int = 0
    steps: int | None = None
    per_epoch: int | None = None
    rate: float | None = None
    seconds: float | None = None
    pace: float | None = None
    left: float | None = None
    remark: str = ""
    over: bool = False


def picture(view: View, width: int, ascii_only: bool = False) -> Text:
    """Return the lines of a view, none wider than ``width`` columns."""
    name = "".join(letter if letter.isprintable() else "?" for letter in view.name)
    rows = [
        Text.assemble((name, "bold"), f"  {view.state}"),
        *_packed(_progress(view), width),
        Text(_bar(view, min(width, 80), "#-" if ascii_only else "━─"), "cyan"),
        *(_row(view, kind, width, LETTERS if ascii_only else BLOCKS) for kind in ("loss", "clean", "robust")),
        *_packed(_speed(view), width),
        *_wrapped(alarm_of(view.lines), width, "bold red"),
        *_wrapped(view.remark, width, "yellow"),
    ]
    for row in rows:
        row.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return Text("\n", no_wrap=True).join(rows)


def _progress(view: View) -> list[str]:
    done = view.lines[-1]["epoch"] if view.lines else 0
    parts = []
    if view.per_epoch:
        now = done if view.over else done + 1
        if view.steps:
            every = -(-view.steps // view.per_epoch)
            parts.append(f"epoch {min(now, every)}/{every}")
        else:
            parts.append(f"epoch {now}")
    parts.append(f"step {view.step}" + (f"/{view.steps}" if view.steps else ""))
    if view.steps:
        parts.append(f"{100 * view.step // view.steps} %")
    return parts


def _bar(view: View, width: int, marks: str) -> str:
    full = width * view.step // view.steps if view.steps else 0
    return marks[0] * full + marks[1] * (width - full)


def _row(view: View, kind: str, width: int, heights: str) -> Text:
    """Return the last and the best value of one column of the metrics, and its course."""
    values = [line.get(kind) for line in view.lines]
    known = [(value, line) for value, line in zip(values, view.lines, strict=True) if value is not None]
    wide = width >= ROW
    if kind == "loss":
        now = f"{known[-1][0]:.4f}" if known and abs(known[-1][0]) < 1e4 else f"{known[-1][0]:.2e}" if known else "–"
        rest = _above_floor(known[-1][1]) if wide and known else ""
    else:
        now = percent(known[-1][0] if known else None)
        top, at = max(known, key=lambda pair: pair[0]) if known else (None, None)
        rest = f"best {percent(top)}"
        rest += f" (epoch {at['epoch']})" if wide and at is not None else ""
    told = f"{kind:<7}{now:>8}  {rest:<{26 if wide else 13}} "
    return Text.assemble(told, (spark(values, min(width - len(told), 40), heights), "cyan"))


def _speed(view: View) -> list[str]:
    parts = []
    if view.left is not None and not view.over:
        parts.append(f"{duration(view.left)} left")
    if view.seconds is not None:
        parts.append(f"{1000 * view.seconds:.1f} ms a step" if view.seconds < 10 else f"{view.seconds:.1f} s a step")
    if view.pace is not None:
        parts.append(f"{view.pace:.0f} images/s" if view.pace >= 10 else f"{view.pace:.2g} images/s")
    if view.rate is not None:
        parts.append(f"rate {view.rate:.4g}")
    return parts


def _packed(parts: Sequence[str], width: int) -> list[Text]:
    """Return words as lines, as many beside each other as fit."""
    rows = [""]
    for part in parts:
        longer = f"{rows[-1]}  {part}" if rows[-1] else part
        rows[-1:] = [longer] if len(longer) <= width or not rows[-1] else [rows[-1], part]
    return [Text(row) for row in rows if row]


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    """Return a text as lines, cut between words; a word that is wider than the console is cut by the caller."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows[-1] else word
        rows[-1:] = [longer] if len(longer) <= width or not rows[-1] else [rows[-1], word]
    return [Text(row, style) for row in rows if row]


def alarm_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return what is to be said of catastrophic overfitting: nothing, that it is there, or that it was."""
    raised = [line for line in lines if line.get("alarm")]
    judged = [line for line in lines if line.get("robust") is not None]
    if not raised:
        return ""
    if raised[-1] is (judged or raised)[-1]:
        return f"ALARM: {raised[-1]['alarm']}"
    return f"The alarm of catastrophic overfitting was raised in epoch {raised[-1]['epoch']}, and is over."


def _above_floor(line: Mapping[str, Any], after: str = "") -> str:
    """Return the part of the loss that can be learned away; nothing where that is all of it, as with hard labels."""
    return "" if line["excess"] == line["loss"] else f"above floor {line['excess']:.4f}{after}"


def epoch_line(line: Mapping[str, Any], left: float | None) -> str:
    """Return the line that stays of an epoch."""
    return (
        f"epoch {line['epoch']:>3}  rate {line['rate']:.4f}  loss {line['loss']:.4f}  {_above_floor(line, '  ')}"
        f"clean {percent(line['clean'])}  robust {percent(line['robust'])}{'  best' if line['best'] else ''}"
        f"{'' if left is None else f'  {duration(left)} left'}"
    )


# --- in the process that trains --------------------------------------------------------------------------------------


@final
class Watcher(AbstractContextManager["Watcher"]):
    """Shows a run from what its loop tells: a view on a terminal with a line per epoch above, plain lines elsewhere.

    ``name`` is the run's; ``steps`` and ``per_epoch`` are the lengths of the run and of an epoch, ``batch`` the images
    of a step, ``rate`` the learning rate of a step (from 0). Drawing reads nothing but what it was told.
    """

    def __init__(
        self,
        console: Console,
        folder: RunFolder,
        name: str,
        steps: int,
        per_epoch: int,
        batch: int,
        rate: Callable[[int], float],
    ) -> None:
        self.console, self.folder, self.batch, self.rate = console, folder, batch, rate
        self.per_epoch = per_epoch
        self.view = View(name, "training", steps=steps, per_epoch=per_epoch)
        self.lines: list[Mapping[str, Any]] = []
        self.took: deque[float] = deque(maxlen=RECENT)
        self.foreseen = 0.0
        # On a terminal the line is never entered: it only counts.
        self.line = Line(console, steps)
        self.pane = Pane(console, self._draw) if is_live(console) else None
        self.stack = ExitStack()

    def __enter__(self) -> Watcher:
        self.stack.enter_context(self.line if self.pane is None else self.pane)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.pane is None:
            self.line.say(text)
        else:
            self.pane.say(text)

    def begin(self, step: int, seconds: float, memory: float) -> None:
        """Tell what the run will take from a step on; the epochs before it are read from its folder."""
        with contextlib.suppress(DemiluneError):  # an edited file shows nothing, and stops nothing
            self.lines = list(_entries(self.folder.metrics))
        self.foreseen = seconds
        self.line.first = self.line.done = step
        self.line.begun = time.monotonic()
        left = self.line.total - step
        self.say(f"{left} steps to go: about {duration(seconds)}, {size(memory)} of memory")

    def move(self, step: int, seconds: float) -> None:
        """Tell that a step was taken, and the seconds it took."""
        self.took.append(seconds)
        if self.pane is None:
            self.line.move(step, self.view.name)
        else:
            self.line.done = step
            if self._at_end(step):
                self.pane.due = 0.0  # what follows may take minutes: say that it validates
            self.pane.move()

    def close_epoch(self, line: Mapping[str, Any]) -> None:
        """Tell an epoch's metrics."""
        self.lines.append(line)
        shown = self.pane is not None or line["step"] == self.line.total
        self.say(epoch_line(line, None if shown else self.line.left()))
        if line["alarm"]:
            self.say(f"ALARM: {line['alarm']}")

    def _at_end(self, step: int) -> bool:
        return step % self.per_epoch == 0 or step == self.line.total

    def _draw(self) -> Text:
        step = self.line.done
        closed = self.lines[-1]["step"] if self.lines else 0
        seconds = sum(self.took) / len(self.took) if self.took else None
        now = replace(
            self.view,
            state="validating" if self._at_end(step) and step > closed else "training",
            lines=self.lines,
            step=step,
            rate=self.rate(max(0, step - 1)),
            seconds=seconds,
            pace=self.batch / seconds if seconds else None,
            left=self.line.left() if step > self.line.first else self.foreseen,
        )
        return picture(now, self.console.width, self.console.options.ascii_only)


# --- in another terminal ---------------------------------------------------------------------------------------------


def follow(
    folder: RunFolder,
    console: Console,
    once: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Show a run from its folder until it has ended, or ``once``.

    On a terminal the view is drawn anew; elsewhere every epoch is one line. A folder that is not there yet is waited
    for; ``once``, and a folder that holds something else, is refused with DemiluneError. Ctrl-C ends it; the last view
    stays.
    """
    waited = awaited(folder)
    if once and waited:
        raise DemiluneError(f"{waited}: name a run folder, or leave out --once to wait for it")
    view = View(folder.path.name, "waiting", remark=waited) if waited else look(folder, clock())

    def show() -> Text:
        return picture(view, console.width, console.options.ascii_only)

    def stay(text: Text | str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if once:
        stay(show())
        return
    live = is_live(console)
    told, remark = 0, ""
    try:
        with Pane(console, show) if live else contextlib.nullcontext() as pane:
            while True:
                if pane is not None:
                    pane.move()
                else:
                    told = min(told, len(view.lines))  # fewer where it was resumed from an earlier checkpoint
                    for line in view.lines[told:]:
                        stay(epoch_line(line, view.left if line is view.lines[-1] and not view.over else None))
                        if line["alarm"]:
                            stay(f"ALARM: {line['alarm']}")
                    told = len(view.lines)
                    if view.remark and view.remark != remark:
                        stay(view.remark)
                    remark = view.remark
                if view.over:
                    break
                sleep(POLL)
                waited = awaited(folder)
                view = View(folder.path.name, "waiting", remark=waited) if waited else look(folder, clock())
    except KeyboardInterrupt:
        pass
    if live or view.over:
        stay(show() if live else f"{view.name}: {view.state}")


def awaited(folder: RunFolder) -> str:
    """Return what a run folder is still waited for with, or nothing where it is there; refuses what is none."""
    path = folder.path
    if folder.experiment.exists():
        return ""
    if path.exists() and not path.is_dir():
        raise DemiluneError(f"{path} is a file: name the run's folder")
    there = sorted(path.iterdir()) if path.is_dir() else []
    # The first file of a run is written beside its place.
    other = [file for file in there if not file.name.startswith(".experiment.json.")]
    if other:
        inner = [str(file) for file in other if RunFolder(file).experiment.exists()]
        hint = f"one of {', '.join(inner[:8])}" if inner else "the folder that was given to `demilune train --out`"
        raise DemiluneError(f"{path} holds no run (experiment.json): name {hint}")
    return f"{path} holds no run yet" if path.is_dir() else f"{path} does not exist yet"


def look(folder: RunFolder, now: float) -> View:
    """Return the view of a run at the time ``now`` (seconds since the epoch, as the files' times are).

    Raises DemiluneError where a file holds what no run writes.
    """
    tree = read_json(folder.experiment, "a run's experiment")
    training = tree.get("training")
    numbers = training if isinstance(training, dict) else {}
    batch, epochs, steps = (numbers.get(name) for name in ("batch", "epochs", "steps"))
    if not (isinstance(batch, int) and batch > 0 and isinstance(epochs, int) and isinstance(steps, int | None)):
        raise DemiluneError(f"{folder.experiment} holds no experiment: put the run's own file back")
    lines, timing = _entries(folder.metrics), _entries(folder.timing)
    header = _header(folder.checkpoint("last"))
    step = max([header.get("step", 0), *(line["step"] for line in lines[-1:])])
    per_epoch = lines[0]["step"] // lines[0]["epoch"] if lines else None
    total = steps or (epochs * per_epoch if per_epoch else None)
    paces = [line["images_per_second"] for line in timing[-5:]]
    pace = statistics.median(paces) if paces else None
    quiet = max(0.0, now - _latest(folder.path, now))
    at_end = header.get("step") == step and bool(lines) and lines[-1]["step"] == step
    over = at_end and (header.get("stopped") is True or step == total)
    held = taken(folder.path)
    running = quiet < PATIENCE if held is None else held
    left, remark = None, ""
    if over:
        state = "ended by the alarm" if header.get("stopped") else "finished"
    elif running:
        state = f"running, saved {duration(quiet)} ago"
        left = max(0.0, (total - step) * batch / pace - quiet) if total and pace else None
        remark = "" if lines else "no epoch is complete yet"
    else:
        state = f"not running, saved {duration(quiet)} ago"
        sign = "no process of this machine is training in it" if held is False else "it gives no sign of life"
        remark = (
            f"{sign}: it was stopped or killed, or runs on another machine; "
            f"`demilune train --resume --out {folder.path}` goes on with it"
        )
    return View(
        name=str(tree.get("name", folder.path.name)),
        state=state,
        lines=lines,
        step=step,
        steps=total,
        per_epoch=per_epoch,
        rate=lines[-1]["rate"] if lines else None,
        seconds=batch / pace if pace else None,
        pace=pace,
        left=left,
        remark=remark,
        over=over,
    )


def taken(path: Path) -> bool | None:
    """Say whether a process is training in a folder, by the lock of runs.alone; None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go again at once, below
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


_NUMBER, _MAYBE = (int, float), (int, float, type(None))
_KINDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "metrics.jsonl": {"epoch": (int,), "step": (int,), "alarm": (str, type(None)), "best": (bool,)}
    | dict.fromkeys(("rate", "loss", "excess"), _NUMBER)
    | dict.fromkeys(("clean", "robust"), _MAYBE),
    "timing.jsonl": {"epoch": (int,), "seconds": _NUMBER, "images_per_second": _NUMBER},
}


def _entries(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; what follows the last line's end is still being copied."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DemiluneError(f"{path} cannot be read ({error}): put the run's own file back") from None
    found = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        sound = isinstance(entry, dict) and all(
            name in entry and isinstance(entry[name], kinds) for name, kinds in _KINDS[path.name].items()
        )
        if not sound or entry["epoch"] < 1:
            raise DemiluneError(f"{path} is broken at line {number}: resume the run to write it again")
        found.append(entry)
    return found


def _header(path: Path) -> Mapping[str, Any]:
    """Return what a checkpoint says of itself, from its first bytes; nothing where it is missing or unreadable."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("demilune", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("step"), int) else {}


def _latest(path: Path, otherwise: float) -> float:
    """Return when a run last changed a file of its own."""
    return max(_times(path), default=otherwise)


def _times(path: Path) -> Iterator[float]:
    own = ("experiment.", "environment.", "metrics.", "timing.", "last.", "best.")
    for file in path.iterdir():
        if file.name.removeprefix(".").startswith(own):
            with contextlib.suppress(FileNotFoundError):  # replaced just now
                yield file.stat().st_mtime
