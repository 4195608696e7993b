"""RWP's methods and moves, the loss stationary condition, and its ablations (rwp.md 11 to 14); AWP's besides.

The body of RWP's paper could not be read: only AWP's official logs have figures to set beside ours.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from demilune.core.geometry import Norm
from demilune.study import MONITOR, RANGES, loss_ranges
from demilune.suites.base import Ask, Claim, Fields, Line, Suite

TABLE = Ask("evaluation", ("fgsm", "pgd20", "pgd100", "cw100"))
STRONG = Ask("evaluation", ("pgd10", "cw10", "multi9x30", "autoattack"), limit=1000)
COLUMNS = ("clean", "fgsm", "pgd20", "pgd100", "cw100", "multi9x30", "autoattack")

UNREAD = "RWP's own tables were not found: the body of the paper could not be read. No figure of it stands here."
LOGS = (
    "The figures beside ours are those of AWP's official logs: PGD-20 of the best epoch, chosen on the test images "
    "themselves; ours is chosen on held-out training images."
)


def presets(row: str, data: str, norm: Norm) -> tuple[str, Fields]:
    """Return the preset of a row in the released setting; RAT, of which there is none, takes plain training's."""
    if row.startswith("rst"):
        return f"{data}-{row}", {}
    base, _, move = row.partition("-")
    name = "-".join(["rwp", data, *(["l2"] if norm == "l2" else []), "sat" if base == "rat" else base])
    step = 15 / 255 if norm == "l2" else 1 / 255 if data == "svhn" else 2 / 255
    more: Fields = {"method.name": "rat", "method.attack.step_size": step} if base == "rat" else {}
    return (f"{name}-{move}" if move else name), more


def _line(label: str, row: str, headline: bool = False, fields: Fields = MappingProxyType({})) -> Line:
    base, _, move = row.partition("-")
    theirs = {"method": base, "move": move or "none"}
    return Line(label, row, {f"move.{name}": value for name, value in fields.items()}, theirs, headline)


AT = (_line("AT", "sat", True), _line("AT-AWP", "sat-awp", True), _line("AT-RWP", "sat-rwp", True))
_CLAIMS = (
    Claim("AT-RWP is at least AT-AWP under AutoAttack", "AT-RWP", "AT-AWP", "autoattack"),
    Claim("AT-AWP is above AT under AutoAttack", "AT-AWP", "AT", "autoattack"),
    Claim("AT-RWP is above AT-AWP on clean images", "AT-RWP", "AT-AWP", "clean"),
)


def _trio(name: str, title: str, base: str, told: str, data: tuple[str, ...], table: str = "", *notes: str) -> Suite:
    plain, awp, rwp = told, f"{told}-AWP", f"{told}-RWP"
    return Suite(
        name,
        title,
        (_line(plain, base, True), _line(awp, f"{base}-awp", True), _line(rwp, f"{base}-rwp", True)),
        (TABLE, STRONG),
        data,
        COLUMNS,
        table or 0,
        claims=(
            Claim(f"{rwp} is at least {awp} under AutoAttack", rwp, awp, "autoattack"),
            Claim(f"{awp} is above {plain} under AutoAttack", awp, plain, "autoattack"),
            Claim(f"{rwp} is above {awp} on clean images", rwp, awp, "clean"),
        ),
        notes=(UNREAD, *notes),
    )


def _ranges() -> tuple[Line, ...]:
    watched = {"training.monitor": MONITOR}
    lines = [Line("none", "sat", watched, headline=True)]
    for low, high in loss_ranges(RANGES):
        told = f"{low:g} ≤ loss < {high:g}" if low > 0 else f"loss < {high:g}"
        ends = {"move.low": low, "move.c_min": high}
        lines.append(Line(told, "sat-rwp", {**ends, **watched}, headline=(low, high) in ((0.0, 1.7), (2.0, math.inf))))
    return tuple(lines)


def _sweep(values: tuple[float, ...]) -> tuple[Line, ...]:
    return tuple(_line(f"γ = {value:g}", "sat-awp", value == 0.01, {"gamma": value}) for value in values)


SUITES = (
    Suite(
        "rwp/at",
        "Plain adversarial training with AWP and RWP: three data sets, two norms",
        AT,
        (TABLE, STRONG),
        ("cifar10", "cifar100", "svhn"),
        COLUMNS,
        "AWP logs",
        claims=_CLAIMS,
        notes=(UNREAD, LOGS),
        norms=("linf", "l2"),
    ),
    _trio("rwp/trades", "TRADES with AWP and RWP", "trades", "TRADES", ("cifar10", "cifar100"), "AutoAttack"),
    _trio(
        "rwp/rst", "RST with AWP and RWP", "rst", "RST", ("cifar10",), "AutoAttack",
        "AutoAttack's published ball is 8/255; RST is trained, and examined here, at 0.031.",
        "RST trains on pseudo-labelled images besides: name them, --data.extra.file FILE.",
    ),
    _trio(
        "rwp/rat", "RAT with AWP and RWP (ours: nobody published it)", "rat", "RAT", ("cifar10", "cifar100"),
    ),
    Suite(
        "rwp/stationary",
        "Loss stationary condition: which losses' examples perturb the weights (Fig. 1)",
        _ranges(),
        (Ask("training"),),
        figures=("stationary",),
        notes=(
            UNREAD,
            "The paper's ranges were not found; the bins are those of its first author's later code.",
            "Best on test is the paper's protocol, and optimistic.",
        ),
    ),
    Suite(
        "rwp/awp-gamma",
        "AWP's size γ: robustness to weight perturbation against adversarial robustness",
        (_line("γ = 0", "sat", True), *_sweep((0.0025, 0.005, 0.01, 0.02, 0.04))),
        (Ask("evaluation", ("pgd20", "autoattack"), limit=1000), Ask("probe", ("rise",))),
        columns=("clean", "pgd20", "autoattack"),
        figures=("probe-rise",),
        notes=(UNREAD, "The values are ours."),
    ),
    Suite(
        "rwp/c_min",
        "RWP's threshold c_min at K2 = 10 (Fig. 3)",
        tuple(_line(f"c_min = {c:g}", "sat-rwp", c == 1.7, {"c_min": c}) for c in (1.3, 1.5, 1.7, 1.9, 2.1)),
        (Ask("evaluation", ("pgd20", "autoattack"), limit=1000),),
        columns=("clean", "pgd20", "autoattack"),
        notes=(UNREAD, "The values are ours."),
    ),
    Suite(
        "rwp/k2",
        "RWP's steps K2 at c_min = 1.7 (Fig. 3)",
        tuple(_line(f"K2 = {k}", "sat-rwp", k == 10, {"steps": k}) for k in (1, 2, 5, 10)),
        (Ask("evaluation", ("pgd20", "autoattack"), limit=1000),),
        columns=("clean", "pgd20", "autoattack"),
        notes=(UNREAD, "The values are ours."),
    ),
)  # fmt: skip
