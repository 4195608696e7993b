"""LRAT's claims (arXiv 2106.15776), as far as its abstract and a summary tell them (lrat.md 12): all reconstructed."""

from __future__ import annotations

from demilune.core.geometry import Norm
from demilune.suites.base import Ask, Claim, Fields, Line, Suite

TABLE = Ask("evaluation", ("pgd20", "pgd100", "cw100"))
STRONG = Ask("evaluation", ("pgd10", "cw10", "multi9x30", "autoattack"), limit=1000)
COLUMNS = ("clean", "pgd20", "pgd100", "cw100", "multi9x30", "autoattack")

UNREAD = (
    "LRAT is reconstructed: neither the body of its paper nor code was found, and no figure of it stands here. The "
    "setting is GAIRAT's released one."
)
_NO_WEIGHTS = {"method.local.curve": "one", "method.local.mass": 0.0}


def presets(row: str, data: str, norm: Norm) -> tuple[str, Fields]:
    """Return the preset of a row in GAIRAT's setting; RAT, of which there is none, takes plain training's."""
    if row == "rat":
        return f"lrat-{data}-sat", {"method.name": "rat", "method.attack.step_size": 0.007}
    return f"lrat-{data}-{row}", {}


SAT = Line("SAT, PGD", "sat", theirs={"method": "sat"}, headline=True)
IRAT = Line("IRAT (GAIRAT), PGD", "gairat", theirs={"method": "gairat"}, headline=True)
LRAT = Line("LRAT, PGD", "lrat", headline=True)

SUITES = (
    Suite(
        "lrat/attacks",
        "Train with one attack, test with another: plain, global and local weights, and both",
        (
            SAT,
            IRAT,
            LRAT,
            Line("SAT, CW∞", "lrat", {"method.attacks": "cw", **_NO_WEIGHTS}),
            Line("LRAT, CW∞", "lrat", {"method.attacks": "cw"}),
            Line("SAT, both", "lrat", {"method.attacks": "both", "method.local.reduction": "mean", **_NO_WEIGHTS}),
            Line("LRAT, both", "lrat", {"method.attacks": "both"}),
            Line("SAT and IRAT averaged, PGD", "gairat", {"method.share": 0.5}),
            Line("IRAT × LRAT, PGD", "lrat", {"method.across": -1.0}),
            Line("LRAT, natural floor 0.25, PGD", "lrat", {"method.local.floor": 0.25}),
            Line("LRAT-TRADES", "lrat_trades"),
        ),
        (TABLE, STRONG),
        ("cifar10", "svhn"),
        COLUMNS,
        "GAIRAT README",
        claims=(
            Claim("trained with PGD, LRAT is above SAT under CW∞", "LRAT, PGD", "SAT, PGD", "cw100"),
            Claim("trained with PGD, LRAT is above SAT under AutoAttack", "LRAT, PGD", "SAT, PGD", "autoattack"),
            Claim("trained with PGD, LRAT is above IRAT under AutoAttack", "LRAT, PGD", IRAT.label, "autoattack"),
            Claim("trained with PGD, IRAT is below SAT under AutoAttack", "SAT, PGD", IRAT.label, "autoattack"),
            Claim("trained with CW∞, LRAT is above SAT under PGD-20", "LRAT, CW∞", "SAT, CW∞", "pgd20"),
        ),
        notes=(
            UNREAD,
            "SAT with CW∞ is LRAT with all weights one; IRAT with CW∞ is not had: its weights count PGD's steps.",
            "The figures beside ours are GAIRAT's own, of another net (WRN-32-10), for orientation only.",
        ),
    ),
    Suite(
        "lrat/inconsistent",
        "Vulnerability differs from attack to attack: who is safe under A and broken by B",
        (SAT, IRAT, LRAT),
        (Ask("evaluation", ("pgd20", "cw20", "apgd_t", "square"), limit=1000), Ask("probe", ("margins",))),
        ("cifar10", "svhn"),
        ("clean", "pgd20", "cw20", "apgd_t", "square"),
        figures=("crossed", "probe-margins"),
        notes=(UNREAD,),
    ),
    Suite(
        "lrat/rat",
        "LRAT over RAT's examples (ours)",
        (Line("RAT", "rat", headline=True), Line("LRAT over RAT", "lrat_rat", headline=True), SAT),
        (TABLE, STRONG),
        ("cifar10", "svhn"),
        COLUMNS,
        claims=(Claim("LRAT over RAT is above RAT under AutoAttack", "LRAT over RAT", "RAT", "autoattack"),),
        notes=(UNREAD,),
    ),
)
