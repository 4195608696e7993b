"""Contestants in turns: what each took in every round, and what one is of another, round by round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch

from benchmarks.targets import Target, target_of
from demilune.console import duration

Say = Callable[[str], None]
MOST = 50
"""Times that a call is repeated within a round, at most."""


class Contestant(NamedTuple):
    """Who is measured, and the call that is."""

    name: str
    run: Callable[[], Any]


class Timed(NamedTuple):
    """Seconds per call of each contestant in every counted round, and what each returned in the first, uncounted."""

    seconds: dict[str, list[float]]
    first: dict[str, Any]
    repeats: int


def timed(
    contestants: Sequence[Contestant], rounds: int, device: torch.device, say: Say, least: float = 0.0, warm: int = 1
) -> Timed:
    """Measure in turns: ``warm`` rounds that do not count, then ``rounds`` that do, each begun by the next in line.

    A call that takes less than ``least`` seconds is repeated until the fastest contestant takes as long; all of them
    are repeated as often, and the mean of a round counts.
    """
    first, seconds = dict[str, Any](), {one.name: list[float]() for one in contestants}
    took = dict[str, float]()
    for number in range(warm):
        for one in contestants:
            returned, took[one.name] = _once(one, 1, device)
            if number == 0:
                first[one.name] = returned
    fastest = min(took.values(), default=0.0)
    repeats = min(MOST, max(1, math.ceil(least / max(fastest, 1e-9)))) if warm else 1
    whole = sum(took.values()) * repeats
    if warm:
        say(f"  warm; {rounds} rounds of {duration(whole)}, {duration(rounds * whole)} in all")
    begun = time.perf_counter()
    for number in range(rounds):
        turn = number % max(1, len(contestants))
        for one in (*contestants[turn:], *contestants[:turn]):
            seconds[one.name].append(_once(one, repeats, device)[1])
        left = (time.perf_counter() - begun) / (number + 1) * (rounds - number - 1)
        say(f"  round {number + 1} of {rounds}" + (f", {duration(left)} left" if number + 1 < rounds else ""))
    return Timed(seconds, first, repeats)


def _once(one: Contestant, repeats: int, device: torch.device) -> tuple[Any, float]:
    """Return what a contestant returned and its seconds per call; rubbish is swept before, and a GPU waited for."""
    gc.collect()
    wait(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        returned = one.run()
    wait(device)
    return returned, (time.perf_counter() - begun) / repeats


def wait(device: torch.device) -> None:
    """Wait for a GPU to have done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A contestant: its seconds per call in each round; ``rate`` is what it gets done in a second, in ``unit``."""

    name: str
    seconds: tuple[float, ...]
    rate: float
    unit: str
    note: str = ""

    @property
    def median(self) -> float:
        """The median of its seconds."""
        return statistics.median(self.seconds)


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """A number that is reported: the median over the rounds, the least and the most, and the target beside it."""

    key: str
    label: str
    value: float
    low: float
    high: float
    unit: str
    target: Target | None


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What a sub-benchmark found. ``details`` are plain values; ``notes`` say what a reader must know."""

    rows: tuple[Row, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def rows(seconds: Mapping[str, Sequence[float]], count: float, unit: str, notes: Mapping[str, str] = {}) -> list[Row]:
    """Return the contestants' rows, of whom each gets ``count`` done by a call."""
    return [
        Row(name, tuple(taken), count / statistics.median(taken), unit, notes.get(name, ""))
        for name, taken in seconds.items()
    ]


def figure(key: str, label: str, values: Sequence[float], unit: str, device: str, target: str | None = None) -> Figure:
    """Return the median of one value per round with its spread; ``target`` names the target if the key does not."""
    return Figure(
        key, label, statistics.median(values), min(values), max(values), unit, target_of(target or key, device)
    )


def ratio(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return one ratio per round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def fastest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """Return who has the smallest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))
