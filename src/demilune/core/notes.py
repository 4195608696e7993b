"""Quantities to log, kept on the device until an epoch ends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Note(NamedTuple):
    """A quantity to log, as a sum and its weight on the device: an epoch's mean needs no synchronisation per step."""

    total: Tensor
    weight: Tensor


def mean(values: Tensor) -> Note:
    """Return the note of a plain mean."""
    return Note(values.sum(), values.new_full((), values.numel()))
