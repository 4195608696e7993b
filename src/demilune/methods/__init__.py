"""Training methods: one paper, one file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.methods.avm import AVM
from demilune.methods.base import Batch, Examples, Method, Note
from demilune.methods.rat import RAT
from demilune.methods.sat import SAT
from demilune.methods.standard import Standard

METHODS: Mapping[str, type[Method]] = MappingProxyType({"standard": Standard, "sat": SAT, "avm": AVM, "rat": RAT})

__all__ = ["AVM", "METHODS", "RAT", "SAT", "Batch", "Examples", "Method", "Note", "Standard"]
