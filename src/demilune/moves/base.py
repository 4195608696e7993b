"""What a weight move is: an offset at which the outer gradient is taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

from torch import Tensor, nn

from demilune.core.notes import Note
from demilune.core.random import Stream
from demilune.core.weights import movable
from demilune.errors import DemiluneError


class Offset(NamedTuple):
    """What is added to which weights, by name of tensor (empty for none), and what is logged."""

    by: Mapping[str, Tensor]
    notes: Mapping[str, Note]


NOTHING = Offset({}, {})


class WeightMove(ABC):
    """An offset of the weights, computed before every step; any method can be trained with any move.

    The step takes its gradient at w + offset, where weight decay acts too, and then puts the bits of w back.
    """

    __slots__ = ()

    @abstractmethod
    def starts(self) -> int:
        """Return the first epoch (from 0) in which the weights are moved."""

    @abstractmethod
    def offset(self, model: nn.Module, climbed: Callable[[], Tensor], rng: Stream) -> Offset:
        """Return the offset.

        ``climbed()`` gives the per-row losses [R] to ascend, at the weights as they stand; ``rng`` is addressed by
        epoch and step. Neither weights, gradients nor buffers change.
        """


def climbable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that a move climbs in: those of P(w) that are trained; refuses a network without any."""
    found = {name: weight for name, weight in movable(model).items() if weight.requires_grad}
    if not found:
        raise DemiluneError(
            "a weight move was given a network without a trained weight of two dimensions or more: train some, or "
            "leave the move out"
        )
    return found


@final
@dataclass(frozen=True, slots=True)
class NoMove(WeightMove):
    """The weights stay where they are."""

    def starts(self) -> int:
        """Return 0."""
        return 0

    def offset(self, model: nn.Module, climbed: Callable[[], Tensor], rng: Stream) -> Offset:
        """Return no offset."""
        return NOTHING


def check_move(gamma: float, warmup: int) -> None:
    """Refuse a size or a warm-up that means nothing."""
    if not 0.0 <= gamma < 1.0:
        raise DemiluneError(
            f"gamma = {gamma:g}: the size of the move relative to the weights must be from 0 to below 1"
        )
    check_warmup(warmup)


def check_warmup(warmup: int) -> None:
    """Refuse a warm-up that means nothing."""
    if warmup < 0:
        raise DemiluneError(f"warmup = {warmup}: it must be 0 epochs or more")
