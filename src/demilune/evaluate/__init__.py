"""Evaluation: everything is built on who is still right, one row per image."""

from __future__ import annotations

from demilune.evaluate.suite import STANDARD, Entry, entry, suite
from demilune.evaluate.table import Findings, evaluate, save_npz

__all__ = ["STANDARD", "Entry", "Findings", "entry", "evaluate", "save_npz", "suite"]
