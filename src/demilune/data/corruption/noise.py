"""The three noises: Gaussian, shot, impulse. The papers' mean over twelve types leaves them out."""

from __future__ import annotations

import torch
from torch import Tensor

from demilune.core.random import Stream
from demilune.data.corruption.filters import levels, units


def gaussian(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return x + σ z, z ~ N(0, 1) for every value."""
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return levels(units(images) + sigma * rng.normal("noise", images.shape, torch.float64))


def shot(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return n / c, n ~ Poisson(c x) for every value.

    n is the number of values of the distribution function at or below a uniform of 31 bits, and so every probability
    is right to 2^-31. More than c events are clipped to white, and so the table ends there.
    """
    from scipy.special import pdtr

    events = (500, 250, 100, 75, 50)[severity - 1]
    rate = torch.arange(256, dtype=torch.float64) / 255 * events
    below = torch.from_numpy(pdtr(torch.arange(events).numpy(), rate[:, None].numpy()))  # P(n <= 0 … c - 1), [256,c]
    # One sorted row for all levels, each in an interval of its own, and so one search finds all counts.
    row = (below.clamp(max=1.0) + torch.arange(256)[:, None]).flatten()
    draw = (rng.integers("events", images.shape, 0, 1 << 31).double() + 0.5) * 2.0**-31
    level = images.long()
    count = torch.searchsorted(row, draw + level, right=True) - level * events
    return levels(count.double() / events)


def impulse(images: Tensor, severity: int, rng: Stream) -> Tensor:
    """Return images of whose values a share p is replaced, half by white and half by black."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    draw = rng.uniform("struck", images.shape, dtype=torch.float64)
    struck = torch.where(draw < share / 2, 255, 0).to(torch.uint8)
    return torch.where(draw < share, struck, images)
