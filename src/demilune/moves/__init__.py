"""Weight moves: where the outer gradient is taken. Any of them goes with any method."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.moves.awp import AWP
from demilune.moves.base import NOTHING, NoMove, Offset, WeightMove
from demilune.moves.gaussian import Gaussian
from demilune.moves.rwp import RWP

MOVES: Mapping[str, type[WeightMove]] = MappingProxyType({"none": NoMove, "awp": AWP, "rwp": RWP, "gaussian": Gaussian})

__all__ = ["AWP", "MOVES", "NOTHING", "RWP", "Gaussian", "NoMove", "Offset", "WeightMove"]
