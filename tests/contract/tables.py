"""One value of every method and of every move, for all tests that run over them."""

from __future__ import annotations

from dataclasses import replace

from demilune.attacks import KLPGD, PGD
from demilune.methods import (
    ADT,
    AVM,
    GAIRAT,
    LRAT,
    LRATRAT,
    LRATTRADES,
    MART,
    RAT,
    SAT,
    TRADES,
    Local,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from demilune.moves import AWP, RWP, Gaussian, NoMove, WeightMove

ATTACK, KL_ATTACK = PGD(steps=3, step_ratio=0.4), KLPGD(steps=3, step_ratio=0.4)
METHOD_TABLE: dict[str, Method] = {
    "standard": Standard(),
    "sat": SAT(ATTACK),
    "trades": TRADES(KL_ATTACK),
    "mart": MART(replace(ATTACK, noise=0.001)),
    "avm": AVM(ATTACK),
    "adt": ADT(steps=2, draws=2),
    "gairat": GAIRAT(ATTACK),
    "lrat": LRAT(ATTACK),
    "lrat_trades": LRATTRADES(KL_ATTACK),
    "lrat_rat": LRATRAT(RAT(ATTACK)),
    "taylor_code": TaylorCode(KL_ATTACK),
    "taylor_exact": TaylorExact(KL_ATTACK),
    "rat": RAT(ATTACK),
}
VARIANTS: dict[str, Method] = METHOD_TABLE | {
    "sat with soft labels": SAT(ATTACK, mass=0.6),
    "avm with two samples": AVM(ATTACK, samples=2),
    "gairat averaged with sat": GAIRAT(ATTACK, share=0.5),
    "lrat with two attacks": LRAT(ATTACK, attacks="both", local=Local(floor=0.25)),
    "lrat measured in eval mode": LRAT(ATTACK, attacks="cw", local=Local(measured="eval", vulnerability="logit")),
    "lrat, global and local": LRAT(ATTACK, across=-1.0),
    "rat with hard labels": RAT(ATTACK, mass_high=1.0, mass_low=1.0),
    "rat in many passes": RAT(ATTACK, samples=3, passes="many"),
    "taylor with symmetric second order": TaylorCode(KL_ATTACK, second_sym=True, noise=0.01),
}
MOVE_TABLE: dict[str, WeightMove] = {"none": NoMove(), "awp": AWP(), "rwp": RWP(steps=3), "gaussian": Gaussian()}
