"""Attacks: frozen values with one call, ``attack(model, x, y, ball, rng) -> x_adv``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from demilune.attacks.apgd import APGD, TargetedAPGD
from demilune.attacks.base import (
    Attack,
    BatchNormMode,
    Iterate,
    IterativeAttack,
    Model,
    Readings,
    Search,
    ascend,
    breach,
    frozen,
    quick,
    read,
    right,
    seeded,
)
from demilune.attacks.decomposition import MarginDecomposition
from demilune.attacks.fab import FAB, FABT
from demilune.attacks.judge import Verdict, check_allowed, correct, judged, survivors
from demilune.attacks.nattack import NATTACK
from demilune.attacks.odi import ODI
from demilune.attacks.pgd import CW, FGSM, KLPGD, PGD, BestOf, MultiTargeted, TargetedPGD
from demilune.attacks.rescale import Rescaled
from demilune.attacks.sampling import Uniform
from demilune.attacks.square import Square
from demilune.attacks.transfer import Transfer

ATTACKS: Mapping[str, type[Attack]] = MappingProxyType(
    {
        "fgsm": FGSM,
        "pgd": PGD,
        "cw": CW,
        "kl_pgd": KLPGD,
        "targeted_pgd": TargetedPGD,
        "multi_targeted": MultiTargeted,
        "best_of": BestOf,
        "apgd": APGD,
        "apgd_t": TargetedAPGD,
        "fab": FAB,
        "fab_t": FABT,
        "square": Square,
        "nattack": NATTACK,
        "md": MarginDecomposition,
        "odi": ODI,
        "uniform": Uniform,
        "rescaled": Rescaled,
    }
)

__all__ = [
    "APGD",
    "ATTACKS",
    "CW",
    "FAB",
    "FABT",
    "FGSM",
    "KLPGD",
    "NATTACK",
    "ODI",
    "PGD",
    "Attack",
    "BatchNormMode",
    "BestOf",
    "Iterate",
    "IterativeAttack",
    "MarginDecomposition",
    "Model",
    "MultiTargeted",
    "Readings",
    "Rescaled",
    "Search",
    "Square",
    "TargetedAPGD",
    "TargetedPGD",
    "Transfer",
    "Uniform",
    "Verdict",
    "ascend",
    "breach",
    "check_allowed",
    "correct",
    "frozen",
    "judged",
    "quick",
    "read",
    "right",
    "seeded",
    "survivors",
]
