"""Gaussian weight noise; on TRADES it is the ablation Taylor-MC (our own, taylor.md 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from demilune.core.random import Stream
from demilune.core.weights import convolutions, gaussian
from demilune.errors import DemiluneError, check_types
from demilune.moves.awp import norm
from demilune.moves.base import NOTHING, Offset, WeightMove, check_warmup


@final
@dataclass(frozen=True, slots=True)
class Gaussian(WeightMove):
    """Draw weight noise once per step.

        u_t ~ N(0, (σ ‖w_t‖/√n_t)²)  for the weights of every convolution t, of n_t elements

    The outer gradient taken at w + u is a one-sample estimate of that of E_u L(w + u), the expectation whose expansion
    gives the Taylor method its name (Jin et al. 2023, arXiv 2303.10653). "Taylor-MC" is TRADES with this move. Ours: no
    released code does this.

    sigma: standard deviation σ of the noise
    relative: whether σ is relative to the root mean square of each tensor rather than absolute
    warmup: epochs trained without it
    """

    sigma: float = 0.01
    relative: bool = True
    warmup: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_warmup(self.warmup)
        if not 0.0 <= self.sigma <= 1.0:
            raise DemiluneError(f"sigma = {self.sigma:g}: the standard deviation of the noise must be from 0 to 1")

    def starts(self) -> int:
        """Return the warm-up."""
        return self.warmup

    def offset(self, model: nn.Module, climbed: Callable[[], Tensor], rng: Stream) -> Offset:
        """Return the noise; the loss is not looked at."""
        weights = convolutions(model)
        if self.sigma == 0.0:
            return NOTHING
        if not weights:
            raise DemiluneError("gaussian: the network has no convolutions to move; use another move, or none")
        noise = gaussian(weights, self.sigma, rng.sub("gaussian"))
        if not self.relative:
            return Offset(noise, {})
        sizes = {name: (norm(weights[name]) / u.numel() ** 0.5).to(u.dtype) for name, u in noise.items()}
        return Offset({name: u * sizes[name] for name, u in noise.items()}, {})
