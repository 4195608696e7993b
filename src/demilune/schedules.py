"""Learning rates over a run, and how weight averages follow the weights: pure functions of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from demilune.errors import DemiluneError


class Schedule(ABC):
    """A learning rate for every step of a run."""

    __slots__ = ()

    @abstractmethod
    def at(self, step: int, steps: int) -> float:
        """Return the rate of step ``step`` (from 0) of ``steps``."""


@final
@dataclass(frozen=True, slots=True)
class Piecewise(Schedule):
    """A constant rate, multiplied by ``factor`` from each drop on.

    The default drops are the paper's 30k and 45k of 80k steps as fractions, which shorter runs keep (rat.md A12).

    rate: learning rate before the first drop
    first: fraction of the run at which the rate drops first
    second: fraction of the run at which it drops again
    factor: what a drop multiplies the rate by
    """

    rate: float = 0.1
    first: float = 0.375
    second: float = 0.5625
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if not 0.0 <= self.first <= self.second <= 1.0:
            raise DemiluneError(
                f"drops at {self.first:g} and {self.second:g} of the run: they must satisfy 0 <= first <= second <= 1"
            )
        if not 0.0 < self.factor <= 1e3:
            raise DemiluneError(
                f"factor = {self.factor:g}: a drop must multiply the rate by a number above 0, at most 1000"
            )

    def at(self, step: int, steps: int) -> float:
        """Return rate · factor^(number of drops so far)."""
        drops = sum(step >= round(fraction * steps) for fraction in (self.first, self.second))
        return self.rate * self.factor**drops


@final
@dataclass(frozen=True, slots=True)
class Triangular(Schedule):
    """From 0 up to the peak and down to 0, in straight lines (the "cyclic" schedule of fast adversarial training).

    rate: learning rate at the peak
    peak: fraction of the run at which it is reached
    """

    rate: float = 0.2
    peak: float = 0.4

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if not 0.0 < self.peak < 1.0:
            raise DemiluneError(f"peak = {self.peak:g}: it must lie between 0 and 1, a fraction of the run")

    def at(self, step: int, steps: int) -> float:
        """Return the rate in the middle of the step, so that neither the first nor the last step is lost."""
        done = (step + 0.5) / steps
        return self.rate * (done / self.peak if done < self.peak else (1.0 - done) / (1.0 - self.peak))


@final
@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """rate · (1 + cos(π t/T))/2.

    rate: learning rate at the start
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def at(self, step: int, steps: int) -> float:
        """Return the rate of the step."""
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def check_rate(rate: float) -> None:
    """Refuse a learning rate that trains nothing."""
    if not 0.0 < rate <= 1e30:
        raise DemiluneError(f"rate = {rate:g}: a learning rate must be a positive number, at most 1e30")


class Average(ABC):
    """A second copy of the weights that follows the trained ones; it is what gets validated and evaluated."""

    __slots__ = ()

    @abstractmethod
    def pull(self, step: int, steps: int, per_epoch: int) -> float | None:
        """Return the fraction by which the copy moves to the weights after step ``step``; None for no copy at all."""

    @abstractmethod
    def reestimates(self) -> bool:
        """Say whether the copy's batch-norm statistics are estimated anew rather than averaged too."""


@final
@dataclass(frozen=True, slots=True)
class NoAverage(Average):
    """The trained weights themselves."""

    def pull(self, step: int, steps: int, per_epoch: int) -> float | None:
        """Return None."""
        return None

    def reestimates(self) -> bool:
        """Return False."""
        return False


@final
@dataclass(frozen=True, slots=True)
class EMA(Average):
    """Exponential moving average of weights and batch-norm statistics after every step.

    decay: how much of the average is kept at a step; early on at most (1 + t)/(10 + t), so that it starts free of the
        initial weights
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise DemiluneError(f"decay = {self.decay:g}: it must be at least 0 and below 1")

    def pull(self, step: int, steps: int, per_epoch: int) -> float | None:
        """Return 1 - decay (more in the first steps)."""
        return 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))

    def reestimates(self) -> bool:
        """Return False: the statistics are averaged with the weights."""
        return False


@final
@dataclass(frozen=True, slots=True)
class SWA(Average):
    """Stochastic weight averaging: the plain mean of the weights at the ends of the later epochs.

    start: fraction of the run from which epochs are averaged; before, the copy is the weights
    """

    start: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < 1.0:
            raise DemiluneError(f"start = {self.start:g}: it must be at least 0 and below 1, a fraction of the run")

    def pull(self, step: int, steps: int, per_epoch: int) -> float | None:
        """Return 1 before the start, then 1/k at the end of the k-th averaged epoch and 0 within epochs."""
        first = max(1, math.ceil(round(self.start * steps / per_epoch, 9)))  # the first epoch whose end is averaged
        epoch = step // per_epoch + 1
        if epoch <= first:
            return 1.0
        ended = (step + 1) % per_epoch == 0 or step + 1 == steps
        return 1.0 / (epoch - first + 1) if ended else 0.0

    def reestimates(self) -> bool:
        """Return True."""
        return True


SCHEDULES: Mapping[str, type[Schedule]] = MappingProxyType(
    {"piecewise": Piecewise, "triangular": Triangular, "cosine": Cosine}
)
AVERAGES: Mapping[str, type[Average]] = MappingProxyType({"none": NoAverage, "ema": EMA, "swa": SWA})
