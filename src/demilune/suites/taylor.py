"""Taylor's claims (arXiv 2303.10653; taylor.md 11); no figure of the paper, whose body could not be read."""

from __future__ import annotations

from demilune.core.geometry import Norm
from demilune.suites.base import Ask, Claim, Fields, Line, Suite

TABLE = Ask("evaluation", ("fgsm", "pgd20", "cw20"))
STRONG = Ask("evaluation", ("pgd10", "cw10", "multi9x30", "autoattack"), limit=1000)
COLUMNS = ("clean", "fgsm", "pgd20", "cw20", "multi9x30", "autoattack")

UNREAD = "The paper's tables were not found, and its repository has no numbers. Anchors are other methods' figures."
_ROWS = {
    "trades": "trades", "trades-awp": "trades-awp", "taylor_code": "code", "taylor_code-awp": "code-awp",
    "taylor_exact": "exact", "taylor_mc": "mc",
}  # fmt: skip


def presets(row: str, data: str, norm: Norm) -> tuple[str, Fields]:
    """Return the preset of a row as released."""
    return f"taylor-{data}-{_ROWS.get(row, row)}", {}


TRADES = Line("TRADES (zeroth)", "trades", theirs={"method": "trades", "move": "none"}, headline=True)
CODE = Line("Taylor-code (zeroth, first, second)", "taylor_code", headline=True)
FIRST = Line("Taylor-code (zeroth, first)", "taylor_code", {"method.second": 0.0})
AWP = Line("AWP-TRADES", "trades-awp", theirs={"method": "trades", "move": "awp"}, headline=True)
CODE_AWP = Line("Taylor-code with AWP", "taylor_code-awp", headline=True)
SWA = Line("TRADES with SWA", "trades", {"average.name": "swa"})
DATA = ("cifar10", "cifar100", "svhn")


def _both(name: str, told: str) -> tuple[Line, Line]:
    net = {"model.name": name}
    return Line(f"TRADES, {told}", "trades", net), Line(f"Taylor-code, {told}", "taylor_code", net)


def _above(better: str, worse: str) -> tuple[Claim, ...]:
    rows = (("clean", "on clean images"), ("pgd20", "under PGD-20"), ("autoattack", "under AutoAttack"))
    return tuple(Claim(f"{better} is above {worse} {told}", better, worse, row) for row, told in rows)


SUITES = (
    Suite(
        "taylor/table",
        "TRADES and AWP-TRADES, with and without the Taylor terms",
        (TRADES, CODE, AWP, CODE_AWP),
        (TABLE, STRONG),
        DATA,
        COLUMNS,
        "anchors",
        claims=(*_above(CODE.label, TRADES.label), *_above(CODE_AWP.label, AWP.label)),
        notes=(UNREAD, "Gains may be of the size of seed noise: at least 3 seeds."),
    ),
    Suite(
        "taylor/order",
        "Orders of the expansion",
        (TRADES, FIRST, CODE),
        (TABLE, STRONG),
        columns=COLUMNS,
        claims=(*_above(FIRST.label, TRADES.label), *_above(CODE.label, FIRST.label)),
        notes=(UNREAD,),
    ),
    Suite(
        "taylor/alpha",
        "Weight α of the Taylor terms",
        tuple(
            Line(f"α = {value:g}", "taylor_code", {"method.alpha": value}, headline=value in (0.0, 0.2))
            for value in (0.0, 0.1, 0.2, 0.3, 0.4)
        ),
        (TABLE, STRONG),
        columns=COLUMNS,
        notes=(UNREAD, "The paper's η and the code's α are taken to be the same, unverified; the values are ours."),
    ),
    Suite(
        "taylor/nets",
        "Networks: ResNet-18, WRN-34-10, VGG-16, MobileNetV2",
        (
            *_both("preact_resnet18", "PreActResNet-18"),
            *_both("wide_resnet", "WRN-34-10"),
            *_both("vgg16", "VGG-16"),
            *_both("mobilenet_v2", "MobileNetV2"),
        ),
        (TABLE, STRONG),
        DATA,
        COLUMNS,
        notes=(UNREAD, "No settings for VGG-16 and MobileNetV2 were found: they have WRN's."),
    ),
    Suite(
        "taylor/swa",
        "The rival the paper discusses: stochastic weight averaging",
        (TRADES, CODE, SWA),
        (TABLE, STRONG),
        DATA,
        COLUMNS,
        claims=_above(CODE.label, SWA.label),
        notes=(UNREAD,),
    ),
    Suite(
        "taylor/flat",
        "Flatness: the largest curvature, and the landscape of weights",
        (TRADES, CODE, AWP, SWA),
        (Ask("curve", ("curvature-weights",)), Ask("curve", ("landscape-weights",))),
        figures=("curvature-weights", "landscape-weights"),
        notes=(UNREAD, "The paper shows landscapes; their normalisation and axes were not found. Filter-wise here."),
    ),
    Suite(
        "taylor/readings",
        "Readings of the paper: the released code, the literal one, and noise on the weights",
        (TRADES, CODE, Line("Taylor-exact (ours)", "taylor_exact"), Line("Taylor-MC (ours)", "taylor_mc")),
        (TABLE, STRONG),
        columns=COLUMNS,
        notes=(UNREAD,),
    ),
)
