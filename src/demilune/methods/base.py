"""What a training method is: the examples it makes, and the loss it takes on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from demilune.attacks import BatchNormMode
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.targets import entropy, one_hot


class Batch(NamedTuple):
    """Augmented training images: x [N,C,H,W] in [0,1], y int64 [N], ids int64 [N], and the epoch from 0."""

    x: Tensor
    y: Tensor
    classes: int
    ids: Tensor
    epoch: int


class Note(NamedTuple):
    """A quantity to log, as a sum and its weight on the device: an epoch's mean needs no synchronisation per step."""

    total: Tensor
    weight: Tensor


class Examples(NamedTuple):
    """What a method trains on in one step; no tensor carries a graph.

    points [R,C,H,W]; targets [R,K], a distribution per row; floor [R], the entropy of each row's target, under
    which its cross-entropy cannot fall; extra: what the objective needs besides; notes: what is logged.
    """

    batch: Batch
    points: Tensor
    targets: Tensor
    floor: Tensor
    extra: Mapping[str, Tensor]
    notes: Mapping[str, Note]


def hard(batch: Batch, points: Tensor, extra: Mapping[str, Tensor] | None = None) -> Examples:
    """Return one point per image with its one-hot label."""
    targets = one_hot(batch.y, batch.classes, points.dtype)
    return Examples(batch, points, targets, entropy(targets), extra or {}, {})


class Method(ABC):
    """A training method: the inner maximisation and the outer loss. One paper, one file."""

    __slots__ = ()

    bn: BatchNormMode
    """How batch norm behaves while training examples are made; see :func:`demilune.attacks.frozen`."""

    @abstractmethod
    def examples(self, model: nn.Module, batch: Batch, ball: Ball, rng: Stream) -> Examples:
        """Make the step's training examples: all random draws happen here, and no weight gradient.

        The caller has frozen the model in this method's ``bn`` mode, and addressed ``rng`` by epoch, step and
        image ids.
        """

    @abstractmethod
    def objective(self, model: nn.Module, made: Examples) -> Tensor:
        """Return the outer loss, one value per row [R]: a pure function of weights and examples."""

    def climbed(self, model: nn.Module, made: Examples) -> Tensor:
        """Return what a weight move ascends, [R]: by default the outer loss above its label's entropy."""
        return self.objective(model, made) - made.floor
