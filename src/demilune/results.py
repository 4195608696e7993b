"""What an evaluation found, as frozen values of plain numbers: written as JSON, read without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from demilune.errors import DemiluneError, check_types


def standard_error(rate: float, n: int) -> float:
    """Return the binomial standard error √(p(1-p)/n) of a rate p measured on n images."""
    return math.sqrt(rate * (1.0 - rate) / n) if n else float("nan")


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One attack's line of a table.

    ``right`` of ``n`` images were classified correctly both clean and after the attack (the strict reading;
    ``accuracy``). ``right_after`` counts those right after the attack whatever the clean verdict was (the
    reading of the papers' tables, ``accuracy_after``); None where it was not taken.
    ``forwards`` and ``gradients`` are passes through the model per image of the whole set: an input gradient
    counts as one forward and one gradient. Readings of the same runs (PGD-50, its any, its best of five) share one
    cost, that of all the runs.
    """

    name: str
    title: str
    attack: str
    n: int
    right: int
    right_after: int | None
    forwards: float
    gradients: float

    @property
    def accuracy(self) -> float:
        """Strict accuracy in [0,1]."""
        return self.right / self.n

    @property
    def error(self) -> float:
        """Binomial standard error of ``accuracy``."""
        return standard_error(self.accuracy, self.n)

    @property
    def accuracy_after(self) -> float | None:
        """Accuracy in [0,1] in the papers' reading."""
        return None if self.right_after is None else self.right_after / self.n


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One of the checks run with every evaluation: ``level`` is "pass", "warning" or "error"."""

    name: str
    level: str
    text: str


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything one evaluation of one checkpoint found.

    ``rows`` begin with "clean"; the last is "worst", the images no attack of the table broke: an upper bound
    on robust accuracy, because a stronger attack may break more. ``chance`` is 1 / number of classes.
    ``ids`` and per-image results lie beside the JSON in ``<stem>.images.npz``: ``ids`` int64 [n], ``labels``
    int64 [n], ``right.<row>`` and ``after.<row>`` bool [n]. Example images lie in ``<stem>.gallery.npz``.
    """

    subject: str
    checkpoint: str
    architecture: str
    parameters: int
    method: str
    data: str
    split: str
    classes: tuple[str, ...]
    data_sha256: Mapping[str, str]
    data_official: bool
    norm: str
    eps: float
    randomised: bool
    search_precision: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    seed: int
    seconds: float
    environment: Mapping[str, Any]
    command: str

    def row(self, name: str) -> Row | None:
        """Return the row of that name, or None."""
        return next((row for row in self.rows if row.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation written by :meth:`to_json`; refuses what is none."""
        try:
            rows = tuple(Row(**row) for row in value["rows"])
            checks = tuple(Check(**check) for check in value["checks"])
            rest = {k: v for k, v in value.items() if k not in ("rows", "checks", "classes")}
            found = cls(rows=rows, checks=checks, classes=tuple(value["classes"]), **rest)
        except (KeyError, TypeError) as error:
            raise DemiluneError(f"this is no evaluation of demilune's ({error}): evaluate the model again") from None
        try:
            for part in (found, *rows, *checks):
                check_types(part)
        except DemiluneError as error:
            raise DemiluneError(f"this is a broken evaluation ({error}): evaluate the model again") from None
        if not (math.isfinite(found.eps) and math.isfinite(found.seconds)):
            raise DemiluneError("this is a broken evaluation (eps or seconds is no number): evaluate the model again")
        return found
