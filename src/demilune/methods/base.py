"""What a training method is: the examples it makes, and the loss it takes on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demilune.attacks import BatchNormMode
from demilune.core.geometry import Ball, Norm
from demilune.core.notes import Note
from demilune.core.random import Stream
from demilune.core.targets import one_hot

WHOLE = "its weights or labels are the whole batch's; use training.parts 1, or another method"


class Batch(NamedTuple):
    """Augmented training images: x [N,C,H,W] in [0,1], y int64 [N], ids int64 [N], and the epoch from 0."""

    x: Tensor
    y: Tensor
    classes: int
    ids: Tensor
    epoch: int


class Examples(NamedTuple):
    """What a method trains on in one step; no tensor carries a graph.

    points [P,C,H,W]; targets [P,K], a distribution per point; floor [R], for each row of the loss (a point, or a group
    of points) that under which it cannot fall: the entropy of its label; extra: what the objective needs besides;
    notes: what is logged.
    """

    batch: Batch
    points: Tensor
    targets: Tensor
    floor: Tensor
    extra: Mapping[str, Tensor]
    notes: Mapping[str, Note]


def hard(batch: Batch, points: Tensor, extra: Mapping[str, Tensor] | None = None) -> Examples:
    """Return points [M·N,…], one row of loss per image, with one-hot labels, whose entropy is 0."""
    targets = one_hot(batch.y.repeat(len(points) // len(batch.y)), batch.classes, points.dtype)
    return Examples(batch, points, targets, torch.zeros_like(targets[: len(batch.y), 0]), extra or {}, {})


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

    def starts(self) -> int:
        """Return the first epoch (from 0) in which it is more than the method it begins as."""
        return 0

    def objection(self, norm: Norm, parts: int) -> str | None:
        """Return why it cannot be trained in this norm, or on a batch in so many parts; None where it can."""
        return None

    def climbed(self, model: nn.Module, made: Examples) -> Tensor:
        """Return what a weight move ascends, [R]: by default the outer loss above its label's entropy."""
        return self.objective(model, made) - made.floor
