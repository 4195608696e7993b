"""Adversarial training of image classifiers, and an honest account of what it achieved.

Importing this package does not import torch: its names are loaded when first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Ball": "demilune.core.geometry",
    "Stream": "demilune.core.random",
    "FGSM": "demilune.attacks",
    "KLPGD": "demilune.attacks",
    "PGD": "demilune.attacks",
    "CW": "demilune.attacks",
    "TargetedPGD": "demilune.attacks",
    "MultiTargeted": "demilune.attacks",
    "APGD": "demilune.attacks",
    "TargetedAPGD": "demilune.attacks",
    "FAB": "demilune.attacks",
    "FABT": "demilune.attacks",
    "Square": "demilune.attacks",
    "NATTACK": "demilune.attacks",
    "MarginDecomposition": "demilune.attacks",
    "ODI": "demilune.attacks",
    "BestOf": "demilune.attacks",
    "Rescaled": "demilune.attacks",
    "Transfer": "demilune.attacks",
    "Uniform": "demilune.attacks",
    "examine": "demilune.evaluate.doctor",
    "frozen": "demilune.attacks",
    "Standard": "demilune.methods",
    "SAT": "demilune.methods",
    "AVM": "demilune.methods",
    "RAT": "demilune.methods",
    "ADT": "demilune.methods",
    "GAIRAT": "demilune.methods",
    "LRAT": "demilune.methods",
    "LRATRAT": "demilune.methods",
    "LRATTRADES": "demilune.methods",
    "Local": "demilune.methods",
    "MART": "demilune.methods",
    "TRADES": "demilune.methods",
    "TaylorCode": "demilune.methods",
    "TaylorExact": "demilune.methods",
    "AWP": "demilune.moves",
    "RWP": "demilune.moves",
    "Gaussian": "demilune.moves",
    "Batch": "demilune.methods",
    "step": "demilune.train",
    "survivors": "demilune.attacks",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'demilune' has no attribute {name!r}")
