"""Training methods: one paper, one file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.core.notes import Note
from demilune.methods.adt import ADT
from demilune.methods.avm import AVM
from demilune.methods.base import Batch, Examples, Method
from demilune.methods.gairat import GAIRAT
from demilune.methods.local import Local
from demilune.methods.lrat import LRAT, LRATRAT, LRATTRADES
from demilune.methods.mart import MART
from demilune.methods.rat import RAT
from demilune.methods.sat import SAT
from demilune.methods.standard import Standard
from demilune.methods.taylor import TaylorCode
from demilune.methods.taylor_exact import TaylorExact
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
        "lrat": LRAT,
        "lrat_trades": LRATTRADES,
        "lrat_rat": LRATRAT,
        "taylor_code": TaylorCode,
        "taylor_exact": TaylorExact,
        "rat": RAT,
    }
)

ORIGIN: Mapping[str, str] = MappingProxyType(
    {
        "standard": "textbook",
        "sat": "released code",
        "trades": "released code",
        "mart": "reconstructed",
        "avm": "released code",
        "adt": "released code",
        "gairat": "released code",
        "lrat": "reconstructed",
        "lrat_trades": "reconstructed",
        "lrat_rat": "ours",
        "taylor_code": "released code",
        "taylor_exact": "ours",
        "rat": "paper only",
    }
)
"""What each method was written from. One that is reconstructed or ours is called so wherever results are."""

__all__ = [
    "ADT",
    "AVM",
    "GAIRAT",
    "LRAT",
    "LRATRAT",
    "LRATTRADES",
    "MART",
    "METHODS",
    "ORIGIN",
    "RAT",
    "SAT",
    "TRADES",
    "Batch",
    "Examples",
    "Local",
    "Method",
    "Note",
    "Standard",
    "TaylorCode",
    "TaylorExact",
]
