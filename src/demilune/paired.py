"""Differences of two accuracies on the same images, and whether they are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
"""A corrected p below this is called a difference."""


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A difference of two accuracies, in [-1,1], with its standard error."""

    value: float
    error: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether it exceeds two standard errors."""
        return abs(self.value) > 2.0 * self.error


def paired(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Difference:
    """Return the difference of two accuracies on the same images.

    With b images right only in ``first`` and c only in ``second``: (b - c)/n, with McNemar's standard error
    √(b + c - (b - c)²/n)/n.
    """
    n, (b, c) = len(first), discordant(first, second)
    return Difference((b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n, n)


def discordant(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return b and c: how many images are right only in ``first``, and only in ``second``."""
    return int(np.sum(first & ~second)), int(np.sum(second & ~first))


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test (1947): b successes in b + c tosses of a fair coin.

    p = min(1, 2·Σ_{k ≤ min(b,c)} C(b+c, k) / 2^(b+c)), in whole numbers until the last division; 1 where b + c = 0.
    """
    n, least = b + c, min(b, c)
    term = total = 1
    for k in range(least):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / (1 << n))


def holm(found: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the order given.

    The k-th smallest of m is multiplied by m - k + 1, and is at least as large as those before it: whichever
    differences there are, that any is found where there is none has a chance of at most the level.
    """
    order = sorted(range(len(found)), key=lambda i: found[i])
    corrected, largest = [0.0] * len(found), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - rank) * found[i]))
        corrected[i] = largest
    return corrected
