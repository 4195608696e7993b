"""Differences of two accuracies on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt


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
    n, b, c = len(first), int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return Difference((b - c) / n, math.sqrt(b + c - (b - c) ** 2 / n) / n, n)
