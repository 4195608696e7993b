"""Attacks: frozen values with one call, ``attack(model, x, y, ball, rng) -> x_adv``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.attacks.base import (
    Attack,
    BatchNormMode,
    Iterate,
    IterativeAttack,
    Model,
    Readings,
    ascend,
    frozen,
    read,
    seeded,
)
from demilune.attacks.judge import Verdict, correct, judged, survivors
from demilune.attacks.pgd import CW, FGSM, KLPGD, PGD, BestOf, MultiTargeted, TargetedPGD

ATTACKS: Mapping[str, type[Attack]] = MappingProxyType(
    {
        "fgsm": FGSM,
        "pgd": PGD,
        "cw": CW,
        "kl_pgd": KLPGD,
        "targeted_pgd": TargetedPGD,
        "multi_targeted": MultiTargeted,
        "best_of": BestOf,
    }
)

__all__ = [
    "ATTACKS",
    "CW",
    "FGSM",
    "KLPGD",
    "PGD",
    "Attack",
    "BatchNormMode",
    "BestOf",
    "Iterate",
    "IterativeAttack",
    "Model",
    "MultiTargeted",
    "Readings",
    "TargetedPGD",
    "Verdict",
    "ascend",
    "correct",
    "frozen",
    "judged",
    "read",
    "seeded",
    "survivors",
]
