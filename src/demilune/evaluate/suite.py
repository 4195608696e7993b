"""The attacks of an evaluation by name: what each runs, and the rows of the table it fills."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from demilune.attacks import (
    CW,
    FGSM,
    PGD,
    Attack,
    BestOf,
    Model,
    MultiTargeted,
    judged,
    read,
)
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.errors import DemiluneError

STANDARD = ("fgsm", "pgd10", "cw10", "pgd50x5", "multi9x30")
"""The default suite, cheapest first."""


class Entry(ABC):
    """One attack of a suite."""

    __slots__ = ()

    @abstractmethod
    def rows(self) -> Mapping[str, str]:
        """Return the names of the rows it fills, with their titles."""

    @abstractmethod
    def attack(self) -> Attack:
        """Return the attack in its strongest reading, for example images and for the record."""

    @abstractmethod
    def everywhere(self) -> bool:
        """Say whether images misclassified when clean are attacked too, for the papers' reading."""

    @abstractmethod
    def run(self, model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        """Return, for each row, which of the images are right after the attack, bool [N]."""


@final
@dataclass(frozen=True, slots=True)
class Plain(Entry):
    """An attack read at its result (PGD: the last iterate of one run), on every image."""

    name: str
    title: str
    of: Attack
    all_images: bool = True

    def rows(self) -> Mapping[str, str]:
        """Return the one row."""
        return {self.name: self.title}

    def attack(self) -> Attack:
        """Return the attack."""
        return self.of

    def everywhere(self) -> bool:
        """Return whether the papers' reading is taken."""
        return self.all_images

    def run(self, model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        """Attack, and judge the result."""
        return {self.name: judged(model, x, self.of(search, x, y, ball, rng), y, ball)}


@final
@dataclass(frozen=True, slots=True)
class Restarted(Entry):
    """An iterative attack from several starts, its readings last, any and best all taken from the same runs."""

    name: str
    title: str
    of: PGD
    restarts: int

    def rows(self) -> Mapping[str, str]:
        """Return the rows of the readings."""
        first = {self.name: self.title, f"{self.name}_any": f"{self.title} any"}
        return first | {f"{self.name}x{self.restarts}_any": f"{self.title}×{self.restarts} any"}

    def attack(self) -> Attack:
        """Return the best of all runs."""
        return BestOf(self.of, self.restarts)

    def everywhere(self) -> bool:
        """Return False: the reading any is about images that were right to begin with."""
        return False

    def run(self, model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        """Run once with all restarts, and judge the three readings."""
        found = read(self.of, search, x, y, ball, rng, self.restarts)
        return {name: judged(model, x, points, y, ball) for name, points in zip(self.rows(), found, strict=True)}


FORMS = (
    "fgsm",
    "pgdK, K steps from one start",
    "pgdKxR, R restarts",
    "cwK, K steps on the margin",
    "multiTxK, K steps at each of T targets",
)
"""What an attack of a suite can be called."""

_FORMS = (
    re.compile(r"fgsm"),
    re.compile(r"pgd(\d+)"),
    re.compile(r"pgd(\d+)x(\d+)"),
    re.compile(r"cw(\d+)"),
    re.compile(r"multi(\d+)x(\d+)"),
)


def entry(name: str, step_ratio: float = 0.25) -> Entry:
    """Return the suite's entry of that name; step sizes are ``step_ratio`` · ε (2/255 at ε = 8/255).

    Raises DemiluneError for a name of no known form.
    """
    matches = [form.fullmatch(name) for form in _FORMS]
    form = next((i for i, found in enumerate(matches) if found), -1)
    numbers = [int(n) for found in matches if found for n in found.groups()]
    if form == -1:
        near = difflib.get_close_matches(name, STANDARD, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DemiluneError(f"unknown attack {name!r}: {hint}possible are {'; '.join(FORMS)}")
    if any(number < 1 for number in numbers):
        raise DemiluneError(f"attack {name!r}: its numbers must be 1 or more")
    if form == 0:
        return Plain(name, "FGSM", FGSM())
    if form == 1:
        return Plain(name, f"PGD-{numbers[0]}", PGD(numbers[0], step_ratio=step_ratio))
    if form == 2:
        base = f"pgd{numbers[0]}"
        return Restarted(base, f"PGD-{numbers[0]}", PGD(numbers[0], step_ratio=step_ratio), numbers[1])
    if form == 3:
        return Plain(name, f"CW∞-{numbers[0]}", CW(numbers[0], step_ratio=step_ratio))
    targets, steps = numbers
    attack = MultiTargeted(targets, steps, step_ratio=step_ratio)
    return Plain(name, f"Multi-targeted {targets}×{steps}", attack, all_images=False)


def suite(names: Sequence[str], step_ratio: float = 0.25) -> tuple[Entry, ...]:
    """Return the entries of these names; refuses a row that two of them would fill."""
    entries = tuple(entry(name, step_ratio) for name in names)
    seen: set[str] = set()
    for one in entries:
        twice = seen & set(one.rows())
        if twice:
            raise DemiluneError(f"attacks {', '.join(names)} fill the row {min(twice)!r} twice: leave one out")
        seen |= set(one.rows())
    if not entries:
        raise DemiluneError("no attack was named: give some, as fgsm,pgd10,multi9x30")
    return entries


__all__ = ["STANDARD", "Entry", "Plain", "Restarted", "entry", "suite"]
