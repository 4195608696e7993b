"""A model that counts its work."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from demilune.attacks import Model

TICK = 1.0
"""Seconds between signs of life within a batch."""


class Counted:
    """A model that counts the images run forward, and the backward passes taken of them.

    ``tick`` is called now and then, and may raise to stop an attack in the middle.
    """

    def __init__(self, model: Model, tick: Callable[[int], None] = lambda forwards: None) -> None:
        self.model, self.tick = model, tick
        self.forwards = 0
        self.gradients = 0
        self.told = time.monotonic()

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits."""
        self.forwards += len(x)
        if time.monotonic() - self.told > TICK:
            self.told = time.monotonic()
            self.tick(self.forwards)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._taken)
        return logits

    def _taken(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)
