"""Training methods: one paper, one file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.methods.adt import ADT
from demilune.methods.avm import AVM
from demilune.methods.base import Batch, Examples, Method, Note
from demilune.methods.gairat import GAIRAT
from demilune.methods.mart import MART
from demilune.methods.rat import RAT
from demilune.methods.sat import SAT
from demilune.methods.standard import Standard
from demilune.methods.trades import TRADES

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        "standard": Standard,
        "sat": SAT,
        "trades": TRADES,
        "mart": MART,
        "avm": AVM,
        "adt": ADT,
        "gairat": GAIRAT,
        "rat": RAT,
    }
)

__all__ = [
    "ADT",
    "AVM",
    "GAIRAT",
    "MART",
    "METHODS",
    "RAT",
    "SAT",
    "TRADES",
    "Batch",
    "Examples",
    "Method",
    "Note",
    "Standard",
]
