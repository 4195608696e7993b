"""RAT's tables and figures (arXiv 2109.00678v2), and the experiments that test what they claim (rat.md 9)."""

from __future__ import annotations

from demilune.core.geometry import Norm
from demilune.suites.base import FIRST, Ask, Claim, Fields, Line, Suite

FOUR = ("fgsm", "pgd10", "cw10", "nattack")

TABLE = Ask("evaluation", ("fgsm", "pgd10", "cw10", "nattack@n=1000"), small=("fgsm", "pgd10", "cw10", "nattack@n=10"))
"""The columns of Table 1; NATTACK on 1,000 images, as the paper has it."""

STRONG = Ask("evaluation", ("fgsm", "pgd10", "cw10", "multi9x30", "autoattack"), limit=1000)
"""What decides whether a PGD accuracy is to be believed (E-AA)."""

ABLATION = Ask("evaluation", ("pgd10", "cw10"))
STRONGER = ("clean", "fgsm", "pgd10", "cw10", "multi9x30", "autoattack")

ST = Line("ST", "standard", theirs={"method": "standard"})
SAT = Line("SAT", "sat", theirs={"method": "sat"}, headline=True)
TRADES = Line("TRADES", "trades", theirs={"method": "trades"})
AVM = Line("AVM", "avm", theirs={"method": "avm"}, headline=True)
ADT = Line("ADT", "adt", theirs={"method": "adt"})
RAT = Line("RAT", "rat", theirs={"method": "rat"}, headline=True)
SIX = (RAT, SAT, AVM, TRADES, ADT, ST)

DATA = ("cifar10", "cifar100", "imagenette")
COARSE = "PGD-10 alone flatters soft labels: read it beside AutoAttack and the verdict."
TYPES = (
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip


def presets(row: str, data: str, norm: Norm) -> tuple[str, Fields]:
    """Return the preset of a row in the paper's own setting."""
    return f"{data}-{row}", {}


def _variant(label: str, field: str, value: str) -> Line:
    return Line(label, "rat", {f"method.{field}": value})


def _grid(high: float, low: float) -> Line:
    changes = {"method.mass_high": high, "method.mass_low": low}
    theirs = {"mass_high": high, "mass_low": low}
    return Line(f"β {high:g} to {low:g}", "rat", changes, theirs, headline=(high, low) == (1.0, 0.1))


def _figure(
    number: int, title: str, kind: str, data: tuple[str, ...], claims: tuple[Claim, ...] = (), *notes: str
) -> Suite:
    return Suite(
        f"rat/fig{number}", title, SIX, (Ask("curve", (kind,)),), data, figures=(kind,), claims=claims, notes=notes
    )


_GAPS = (
    Claim("RAT has the smallest standard gap", "", "RAT", "gap:clean"),
    Claim("RAT has the smallest robust gap", "", "RAT", "gap:pgd10"),
)
_STEPS = tuple(
    Claim(f"RAT is above all others at {k} iterations", "RAT", "", f"iterations.{k}") for k in (1, 10, 20, 50, 100)
)
_BUDGETS = tuple(
    Claim(f"RAT is above all others at {e}/8 of ε ({told})", "RAT", "", f"budget.{kind}.{e}")
    for kind, told in (("pgd10", "PGD-10, as the paper"), ("margin50", "50 steps of ε/4 on the margin"))
    for e in (4, 8, 12, 16)
)
_WIDE = (
    "Ten steps of 2/255 cannot cross the ball for ε above 10/255, so the paper's curve flatters every model there; the "
    "other two panels step in proportion.",
    "RAT trains on points up to 2ε (ImageNette 3ε), the others do not: its lead beyond ε is partly in-distribution.",
)
_SMALL = "A small gap is no virtue by itself: RAT's labels keep the training loss, and the upper bar, down."

SUITES = (
    Suite(
        "rat/table1",
        "White- and black-box accuracy, and what survives AutoAttack",
        SIX,
        (TABLE, STRONG),
        DATA,
        ("clean", *FOUR, "multi9x30", "autoattack"),
        1,
        claims=(
            *(
                Claim(f"RAT is the most robust under {told}", "RAT", "", row)
                for row, told in (
                    ("fgsm", "FGSM"),
                    ("pgd10", "PGD-10"),
                    ("cw10", "CW∞-10"),
                    ("nattack", "NATTACK"),
                )
            ),
            Claim("RAT gains clean accuracy over SAT", "RAT", "SAT", "clean"),
            Claim("RAT gains PGD-10 accuracy over SAT", "RAT", "SAT", "pgd10"),
            Claim("our question: RAT is above SAT under AutoAttack", "RAT", "SAT", "autoattack"),
        ),
        notes=(
            COARSE,
            "AutoAttack and the multi-targeted attack are ours; where they were run on fewer images, n says so.",
        ),
    ),
    Suite(
        "rat/table2",
        "Natural corruptions: mean accuracy over five severities",
        SIX,
        (Ask("curve", ("corruptions",)),),
        ("cifar10", "cifar100"),
        ("corruption.mean", *(f"corruption.{kind}" for kind in TYPES)),
        2,
        ("corruptions",),
        (Claim("RAT has the best mean under corruptions", "RAT", "", "corruption.mean"),),
        (
            "The twelve types leave out the three noises, on which adversarial training is strong.",
            "Unless the official CIFAR-C files are named, the images are from our own generator: random types match "
            "the published ones statistically only.",
        ),
    ),
    Suite(
        "rat/table3",
        "Ablation of the two components",
        (
            RAT,
            SAT,
            Line(
                "SAT + ARS (hard labels)",
                "rat",
                {"method.mass_high": 1.0, "method.mass_low": 1.0},
                {"method": "sat+ars"},
                headline=True,
            ),
        ),
        (ABLATION, STRONG),
        columns=("clean", "pgd10", "cw10", "multi9x30", "autoattack"),
        table=3,
        claims=(
            Claim("ARS alone gains over SAT under PGD-10", "SAT + ARS (hard labels)", "SAT", "pgd10"),
            Claim("the labels gain over ARS under PGD-10", "RAT", "SAT + ARS (hard labels)", "pgd10"),
        ),
        notes=(COARSE,),
    ),
    Suite(
        "rat/table4",
        "Grid over the true-class masses of the labels",
        (_grid(1.0, 0.1), _grid(1.0, 0.3), _grid(1.0, 0.5), _grid(0.8, 0.1), _grid(0.6, 0.1)),
        (ABLATION, STRONG),
        columns=("clean", "pgd10", "cw10", "multi9x30", "autoattack"),
        table=4,
        claims=(Claim("masses 1.0 to 0.1 are the most robust under PGD-10", "β 1 to 0.1", "", "pgd10"),),
        notes=(COARSE,),
    ),
    Suite(
        "rat/fig1",
        "The region: the plane of one image, its first and its last adversarial point",
        (RAT, SAT),
        (Ask("plane", (FIRST,)),),
        figures=("plane",),
        notes=("The paper's figure is a sketch; this is the plane of a real image of the test set.",),
    ),
    Suite(
        "rat/fig2",
        "Loss and success on the way in a random direction of the region",
        (RAT, SAT, ST),
        (Ask("curve", ("direction",)),),
        figures=("direction",),
        notes=(
            "The paper shows one image of a network it does not name; this is the mean over all images that are right.",
        ),
    ),
    _figure(3, "Generalisation gaps (CIFAR-10 in the paper)", "gaps", ("cifar10",), _GAPS, _SMALL),
    _figure(4, "Accuracy over PGD's iterations (CIFAR-10 in the paper)", "iterations", ("cifar10",), _STEPS),
    _figure(5, "Accuracy over the budget (CIFAR-10 in the paper)", "budgets", ("cifar10",), _BUDGETS, *_WIDE),
    _figure(6, "Generalisation gaps (CIFAR-100 and ImageNette)", "gaps", ("cifar100", "imagenette"), _GAPS, _SMALL),
    _figure(7, "Accuracy over PGD's iterations (CIFAR-100 and ImageNette)", "iterations", DATA[1:], _STEPS),
    _figure(8, "Accuracy over the budget (CIFAR-100 and ImageNette)", "budgets", DATA[1:], _BUDGETS, *_WIDE),
    Suite(
        "rat/time",
        "Time of 1,000 training iterations",
        (SAT, RAT),
        (Ask("pace"),),
        columns=("pace", "pace.relative"),
        notes=("The paper measured on one V100; only the ratio can be compared with another machine.",),
    ),
    Suite(
        "rat/aa",
        "E-AA: what survives AutoAttack and targeted PGD",
        SIX,
        (STRONG,),
        DATA,
        STRONGER,
        claims=(Claim("RAT is the most robust under AutoAttack", "RAT", "", "autoattack"),),
        notes=("No AutoAttack figure of RAT or AVM was published.",),
    ),
    Suite(
        "rat/near",
        "E-NEAR: the single steps from AVM to RAT",
        (
            Line("AVM", "avm", headline=True),
            Line("AVM, m = 2", "avm", {"method.samples": 2}),
            _variant("RAT without x_f (λ ≡ 0)", "region", "segment"),
            Line("RAT", "rat", headline=True),
        ),
        (STRONG,),
        DATA,
        STRONGER,
        claims=(
            Claim("x_f helps under PGD-10", "RAT", "RAT without x_f (λ ≡ 0)", "pgd10"),
            Claim("x_f helps under AutoAttack", "RAT", "RAT without x_f (λ ≡ 0)", "autoattack"),
            Claim("RAT is above AVM under AutoAttack", "RAT", "AVM", "autoattack"),
        ),
    ),
    Suite(
        "rat/ls",
        "E-LS: SAT under the constant soft label that RAT gives at s = 1",
        (RAT, SAT, AVM, Line("SAT, β = 0.55", "sat", {"method.mass": 0.55}, headline=True)),
        (STRONG,),
        DATA,
        STRONGER,
        claims=(
            Claim("label smoothing alone raises PGD-10", "SAT, β = 0.55", "SAT", "pgd10"),
            Claim("label smoothing alone raises AutoAttack", "SAT, β = 0.55", "SAT", "autoattack"),
            Claim("RAT is above smoothed SAT under AutoAttack", "RAT", "SAT, β = 0.55", "autoattack"),
        ),
    ),
    Suite(
        "rat/a1",
        "E-A1: x_f where no iterate fools the network",
        (RAT, _variant("x_f := x'_1", "fallback", "start"), _variant("x_f := loudest x'_t", "fallback", "loudest")),
        (STRONG,),
        columns=STRONGER,
        notes=("The paper does not say; x_f := x_e is our default.",),
    ),
    Suite(
        "rat/a8",
        "E-A8: one batch of m·n points, or m of n",
        (RAT, _variant("m passes of n", "passes", "many")),
        (STRONG,),
        columns=STRONGER,
    ),
    Suite(
        "rat/a9",
        "E-A9: batch norm during the attack",
        (
            RAT,
            SAT,
            _variant("RAT, batch statistics", "bn", "train_frozen"),
            Line("SAT, batch statistics", "sat", {"method.bn": "train_frozen"}),
        ),
        (STRONG,),
        columns=STRONGER,
    ),
    Suite(
        "rat/diag",
        "E-DIAG: the region: found rate, τ, ‖x_f − x_e‖, cosine",
        (Line("RAT", "rat", headline=True),),
        (Ask("training"), Ask("probe", ("region",))),
        DATA,
        figures=("region", "probe-region"),
        notes=(
            "Over training the means of an epoch are logged; the distributions of τ, distance and cosine are those of "
            "the chosen checkpoint, around test images.",
        ),
    ),
)
