"""The only judge of an attack's success: a float32 forward pass on an image that was checked to be allowed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from demilune.attacks.base import Attack, Model, frozen, right, seeded
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.errors import DemiluneError


class Verdict(NamedTuple):
    """Per image, bool [N]: right when clean, and right after the attack whatever the clean verdict was."""

    clean: Tensor
    after: Tensor

    @property
    def robust(self) -> Tensor:
        """Right both clean and after the attack: the strict reading."""
        return self.clean & self.after


def survivors(
    model: Model, x: Tensor, y: Tensor, attack: Attack, ball: Ball, rng: Stream, search: Model | None = None
) -> Verdict:
    """Attack images and say which are still classified correctly; one row per image.

    ``x`` [N,…] float32 in [0,1], ``y`` int64 [N]; ``rng`` carries the images' ids. ``search`` is the same model
    in a lower precision for the attack to search with; the verdict is ``model``'s. The model is judged in the mode it
    stands in: call ``model.eval()`` first, as an evaluation does. Nothing of it changes.
    """
    with frozen(model, "keep"), seeded(rng.sub("verdict"), x.device):
        return Verdict(correct(model, x, y), judged(model, x, attack(search or model, x, y, ball, rng), y, ball))


def correct(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Return which images are classified correctly, bool [N]; NaN logits are never correct."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return right(model(x), y)


def judged(model: Model, x: Tensor, adversarial: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """Return which attacked images are still classified correctly, bool [N].

    Raises DemiluneError where an image is not allowed, see :func:`check_allowed`.
    """
    check_allowed(adversarial, x, ball)
    return correct(model, adversarial, y)


def check_allowed(adversarial: Tensor, x: Tensor, ball: Ball) -> None:
    """Refuse images that left the ball by more than a rounding, or left [0,1].

    linf: by 1e-7, for a rounding of x ± ε is 6e-8. l2, a sum over pixels: by 1e-6, or 1e-6 · ε in a large ball.
    """
    distance = float(ball.distance(adversarial, x).max())
    leeway = 1e-7 if ball.norm == "linf" else 1e-6 * max(1.0, ball.eps)
    low, high = (float(v) for v in torch.aminmax(adversarial))
    if not (distance <= ball.eps + leeway and low >= 0.0 and high <= 1.0):
        raise DemiluneError(
            f"the attack returned an image at {ball.norm} distance {distance:g} with pixels from {low:g} to {high:g}: "
            f"it must stay within eps = {ball.eps:g} and [0,1]; this is a fault of the attack, nothing was counted"
        )
