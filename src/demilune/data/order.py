"""The order in which an epoch visits the training images."""

from __future__ import annotations

from torch import Tensor

from demilune.core.random import Stream
from demilune.errors import DemiluneError


def order(rng: Stream, epoch: int, size: int, batch: int) -> Tensor:
    """Return the rows of each step of an epoch, int64 [steps, batch], on the stream's device.

    The rows are a permutation of 0 … size - 1 addressed by ``(rng, epoch)``, so an epoch can be resumed or
    repeated without the ones before it. The last incomplete batch is dropped; fewer images than one batch
    make one step of all of them, [1, size].
    """
    if size < 1 or batch < 1:
        raise DemiluneError(f"{size} images in batches of {batch}: both must be at least 1")
    rows = rng.sub("order", epoch).permutation("rows", size)
    batch = min(batch, size)
    steps = size // batch
    return rows[: steps * batch].reshape(steps, batch)
