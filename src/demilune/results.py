"""What an evaluation found, as frozen values of plain numbers: written as JSON, read without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

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
    cost, that of all the runs. ``role`` is "attack"; or "part", a reading that counts for the worst case but is no
    column of a table; or "probe", which asks something else (another ball, other images) and does not count.
    ``note`` says where the attack is not quite what its title says (the margin instead of DLR for two classes).
    An attack that was given fewer images than the others has its own ``n``.
    """

    name: str
    title: str
    attack: str
    n: int
    right: int
    right_after: int | None
    forwards: float
    gradients: float
    role: Literal["attack", "part", "probe"] = "attack"
    note: str = ""

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
class Finding:
    """One of the checks G1 to G11 for masked or flattering robustness (evaluation.md 6).

    ``outcome``: it fails where ``value`` is beyond ``threshold`` by two standard errors ``error``, is inconclusive
    within them, and not examined where what it needs was not run. ``value``, ``threshold`` and ``error`` are
    rates in [0,1]; NaN where there is none. ``attack`` is the row that shows it, or the flag; ``n`` on how many images.
    """

    name: str
    title: str
    outcome: Literal["pass", "fail", "inconclusive", "not examined"]
    text: str
    value: float = math.nan
    threshold: float = math.nan
    error: float = math.nan
    attack: str = ""
    n: int = 0


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to believe the robust accuracy that the field would report, and why.

    ``kind``: believable, overestimated, masked, or not examined; ``text`` is the whole sentence. ``reported`` and
    ``strongest`` are the titles of the attack reported (PGD-10) and of the one that left least; ``points`` by how
    much the first lies above what survives all attacks, in [0,1], with its paired standard error.
    """

    kind: Literal["believable", "overestimated", "masked", "not examined"]
    text: str
    reported: str
    strongest: str
    points: float
    error: float


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything one evaluation of one checkpoint found.

    ``rows`` begin with "clean"; the last is "worst", the images no attack of the table broke: an upper bound
    on robust accuracy, because a stronger attack may break more. An attack on fewer images lowers it on these alone,
    which its note says.
    ``ids`` and per-image results lie beside the JSON in ``<stem>.images.npz``: ``ids`` int64 [n], ``labels``
    int64 [n], ``right.<row>`` and ``after.<row>`` bool [n]; for a row with fewer images also ``place.<row>``, int64,
    which of the images its entries are. Example images lie in ``<stem>.gallery.npz``.
    ``findings`` and ``verdict`` say what the rows mean; see :mod:`demilune.diagnosis`.
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
    findings: tuple[Finding, ...] = ()
    verdict: Verdict | None = None

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
            findings = tuple(Finding(**finding) for finding in value.get("findings", ()))
            verdict = Verdict(**value["verdict"]) if value.get("verdict") is not None else None
            own = ("rows", "checks", "classes", "findings", "verdict")
            rest = {k: v for k, v in value.items() if k not in own}
            found = cls(
                rows=rows,
                checks=checks,
                classes=tuple(value["classes"]),
                findings=findings,
                verdict=verdict,
                **rest,
            )
        except (KeyError, TypeError) as error:
            raise DemiluneError(f"this is no evaluation of demilune's ({error}): evaluate the model again") from None
        try:
            for part in (found, *rows, *checks, *findings, *(() if verdict is None else (verdict,))):
                check_types(part)
        except DemiluneError as error:
            raise DemiluneError(f"this is a broken evaluation ({error}): evaluate the model again") from None
        if not (math.isfinite(found.eps) and math.isfinite(found.seconds)):
            raise DemiluneError("this is a broken evaluation (eps or seconds is no number): evaluate the model again")
        return found
