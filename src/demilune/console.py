"""What a person sees while something runs: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

QUIET = 30.0
"""Seconds between plain lines in a log."""


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


@final
class Line(AbstractContextManager["Line"]):
    """A live progress line with the time that is left; in a log, a plain line now and then."""

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self.console, self.total, self.first, self.done = console, total, done, done
        self.begun = self.told = time.monotonic()
        self.text = ""
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Line:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.done, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
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
        self.console.print(text, highlight=False, soft_wrap=True)


def console(stream: Any = None, width: int = 1) -> Console:
    """Return the console on standard output, at least ``width`` columns wide.

    It goes on in silence when its reader goes away, as `| head` does: no work is lost for that.
    """
    made = Console(file=stream, markup=False)  # names may have brackets

    def go_on() -> None:
        made.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

    made.on_broken_pipe = go_on  # type: ignore[method-assign]
    if made.width < width:
        made.width = width if width > 1 else 80  # a width of 0 would print nothing
    return made
