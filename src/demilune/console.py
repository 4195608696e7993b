"""What a person sees while something runs: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

QUIET = 30.0
"""Seconds between plain lines in a log."""

PAUSE = 0.25
"""Seconds at least between two drawings of a pane."""

SHARE = 0.01
"""Part of the time at most that goes into drawing a pane."""

BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
"""Eight heights, and the same where the terminal has no such characters."""


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Return bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def percent(rate: float | None) -> str:
    """Return a rate as a percentage, or a dash."""
    return "–" if rate is None else f"{100 * rate:.2f} %"


def spark(values: Sequence[float | None], width: int, heights: str = BLOCKS) -> str:
    """Return values as one line of at most ``width`` characters, from the least of them to the greatest.

    More values than fit are averaged in equal portions. What is missing is a space; equal values are all lowest.
    """
    count = len(values)
    if width < 1 or not count:
        return ""
    cells = min(width, count)
    portions = [values[i * count // cells : (i + 1) * count // cells] for i in range(cells)]
    known = [[value for value in portion if value is not None and math.isfinite(value)] for portion in portions]
    means = [sum(portion) / len(portion) if portion else None for portion in known]
    there = [mean for mean in means if mean is not None]
    low, range_ = min(there, default=0.0), max(there, default=0.0) - min(there, default=0.0)
    top = len(heights) - 1
    return "".join(
        " " if mean is None else heights[round((mean - low) / range_ * top) if range_ > 0 else 0] for mean in means
    )


def is_live(console: Console) -> bool:
    """Say whether a console can draw anew what it has drawn: a terminal, not a log, a pipe or a dumb terminal."""
    try:
        return bool(console.is_terminal and not console.is_dumb_terminal and console.file.isatty())
    except ValueError:  # it was closed
        return False


def silence(console: Console) -> None:
    """Send what is still to be printed nowhere."""
    console.quiet = True
    with suppress(OSError, ValueError):  # it has no file of its own, or it was closed
        _to_nowhere(console.file.fileno())


def _to_nowhere(handle: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)


@contextmanager
def _tolerant(console: Console) -> Iterator[None]:
    """Go on in silence where a terminal went away, or the disk of a log is full: no work is lost for that."""
    try:
        yield
    except OSError:
        silence(console)


@contextmanager
def outliving(remark: str) -> Iterator[None]:
    """Go on when the terminal goes away (SIGHUP), with ``remark`` for a log; under nohup too.

    What reads from or prints to the terminal that is gone is given nothing, and says it to nobody.
    """

    def hung_up(number: int, frame: object) -> None:
        for handle in terminals:
            _to_nowhere(handle)
        with suppress(OSError):
            os.write(2, f"warning: {remark}\n".encode())  # print could be in the middle of another line

    number = getattr(signal, "SIGHUP", None)  # Windows has none
    terminals = [handle for handle in (0, 1, 2) if os.isatty(handle)]  # one that is gone does not look like one
    before = None if number is None else signal.getsignal(number)
    if number is None or before not in (signal.SIG_DFL, signal.SIG_IGN):
        yield
        return
    signal.signal(number, hung_up)
    try:
        yield
    finally:
        signal.signal(number, before)


@final
class Pane(AbstractContextManager["Pane"]):
    """Some lines at the foot of a terminal that are drawn anew; what is said stays above them.

    ``draw`` returns the lines, none wider than the console. It is called at most every ``PAUSE`` seconds, and seldomer
    where drawing takes more than ``SHARE`` of the time. There is no thread: nothing happens outside the calls. A
    terminal that goes away ends the drawing, and nothing else.
    """

    def __init__(self, console: Console, draw: Callable[[], Text]) -> None:
        self.console, self.draw = console, draw
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.said: list[str] = []
        self.due = 0.0

    def __enter__(self) -> Pane:
        with _tolerant(self.console):
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _tolerant(self.console):
            self._print()
        with _tolerant(self.console):
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays, with the next drawing or at the end."""
        self.said.append(text)
        self.move()

    def move(self) -> None:
        """Draw anew, where it is time to."""
        begun = time.monotonic()
        if begun < self.due:
            return
        with _tolerant(self.console), self.console:
            self._print()
            self.live.update(self.draw(), refresh=True)
        now = time.monotonic()
        self.due = begun + max(PAUSE, (now - begun) / SHARE)

    def _print(self) -> None:
        if self.said:
            text, self.said = "\n".join(self.said), []
            self.console.print(text, highlight=False, soft_wrap=True)


@final
class Line(AbstractContextManager["Line"]):
    """A live progress line with the time that is left; in a log, a plain line now and then."""

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self.console, self.total, self.first, self.done = console, total, done, done
        self.begun = self.told = time.monotonic()
        self.text = ""
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if is_live(console):
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Line:
        if self.bar is not None:
            with _tolerant(self.console):
                self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            with _tolerant(self.console):
                self.bar.stop()

    def left(self) -> float:
        """Return the seconds that are left at the pace so far."""
        passed = time.monotonic() - self.begun
        return passed / max(1, self.done - self.first) * (self.total - self.done)

    def move(self, done: int, text: str) -> None:
        """Show how far it is."""
        self.done = done
        note = f"{done}/{self.total}, {duration(self.left())} left"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, description=text, note=note)
        elif time.monotonic() - self.told > QUIET:
            self.told = time.monotonic()
            self.say(f"{text}: {note}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with _tolerant(self.console):
            self.console.print(text, highlight=False, soft_wrap=True)


def console(stream: Any = None, width: int = 1) -> Console:
    """Return the console on standard output, at least ``width`` columns wide.

    It goes on in silence when its reader goes away, as `| head` does: no work is lost for that.
    """
    made = Console(file=stream, markup=False)  # names may have brackets

    made.on_broken_pipe = lambda: silence(made)  # type: ignore[method-assign]
    if made.width < width:
        made.width = width if width > 1 else 80  # a width of 0 would print nothing
    return made
