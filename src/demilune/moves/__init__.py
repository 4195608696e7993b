"""Weight moves: where the outer gradient is taken. Any of them goes with any method."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.moves.awp import AWP
from demilune.moves.base import NoMove, WeightMove
from demilune.moves.rwp import RWP

MOVES: Mapping[str, type[WeightMove]] = MappingProxyType({"none": NoMove, "awp": AWP, "rwp": RWP})

__all__ = ["AWP", "MOVES", "RWP", "NoMove", "WeightMove"]
