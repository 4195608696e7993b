"""Our attacks beside those of other libraries, from equal budgets, image by image."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.attacks import (
    APGD,
    FABT,
    FGSM,
    PGD,
    Attack,
    Model,
    Square,
    TargetedAPGD,
    breach,
    correct,
    frozen,
    judged,
    right,
    seeded,
)
from demilune.console import percent
from demilune.core.geometry import Ball, Norm, per_image
from demilune.core.random import Stream
from demilune.errors import DemiluneError, check_types, unknown
from demilune.evaluate.counted import Counted
from demilune.evaluate.table import Progress, is_randomised
from demilune.paired import Difference, paired

LIBRARIES: Mapping[str, str] = MappingProxyType(
    {"foolbox": "foolbox>=3.3.4", "pyautoattack": "pyautoattack>=0.2.0", "torchattacks": "torchattacks>=3.5.1"}
)
"""The other libraries by name, with what pip is asked for."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "fgsm": "FGSM",
        "pgd": "PGD",
        "apgd_ce": "APGD-CE",
        "apgd_t": "APGD-T",
        "fab_t": "FAB-T",
        "square": "Square",
    }
)
"""The attacks that are compared, by name."""

LEEWAY = 1e-5
"""How far a library may leave the ball or [0,1] by rounding; in a ball of ε > 1 this times ε."""

SHOWN = 20
"""How many disagreements the text shows; a result holds them all."""

FAULTS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What a library raises where it cannot go on; whoever watches stops with something else."""


@final
@dataclass(frozen=True, slots=True)
class Side:
    """What an attack came to on one side: how many images are right clean and after it, and what that took.

    ``seconds`` for all images; ``forwards`` and ``gradients``: passes through the model per image attacked, a gradient
    being one forward and one gradient. ``excess``: how far the farthest image lies outside the ball or [0,1], in the
    ball's norm. ``left``: images further out than ``LEEWAY``, or none at all (NaN); they count as not attacked.
    """

    right: int
    seconds: float
    forwards: float
    gradients: float
    excess: float
    left: int


@final
@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image right after one side's attack alone, by its id, with the margins max_{i≠y} z_i - z_y of both results.

    The margin is positive where the result is misclassified. An attack that found nothing may return the image itself.
    """

    image: int
    ours: float
    theirs: float


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """One attack, ours and a library's, on ``attacked`` images: those of ``n`` that are right when clean.

    ``both`` are right after either. ``difference`` is our accuracy minus theirs, in the strict reading, of all ``n``.
    ``value`` is our attack; ``shared`` says whether theirs began at the very same points.
    """

    attack: str
    library: str
    version: str
    value: str
    n: int
    attacked: int
    ours: Side
    theirs: Side
    both: int
    difference: Difference
    shared: bool
    disagreements: tuple[Disagreement, ...]

    @property
    def only_ours(self) -> int:
        """Images that are right after our attack, and broken by theirs."""
        return self.ours.right - self.both

    @property
    def only_theirs(self) -> int:
        """Images that are right after their attack, and broken by ours."""
        return self.theirs.right - self.both

    @property
    def agreement(self) -> float:
        """Share of the images attacked with the same verdict; those wrong when clean would only flatter it."""
        return 1.0 - (self.only_ours + self.only_theirs) / self.attacked


@final
@dataclass(frozen=True, slots=True)
class Absent:
    """A comparison that was asked for and not made, and why; ``attack`` is "" where it is the whole library."""

    attack: str
    library: str
    why: str


@final
@dataclass(frozen=True, slots=True)
class Agreement:
    """How far our attacks and others agree on ``n`` images, of which ``clean`` are right when clean.

    ``steps``, ``queries``, ``targets`` and ``step_ratio`` (PGD's step as a ratio of ε) are the budgets of both sides,
    each with one restart. A ``randomised`` model answers differently on the same images, and no runs agree on it.
    """

    rows: tuple[Comparison, ...]
    absent: tuple[Absent, ...]
    n: int
    clean: int
    classes: int
    norm: str
    eps: float
    steps: int
    queries: int
    targets: int
    step_ratio: float
    randomised: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "agreement", **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Agreement:
        """Return the agreement written by :meth:`to_json`; refuses what is none."""
        try:
            rows = tuple(_comparison(row) for row in value["rows"])
            absent = tuple(Absent(**one) for one in value["absent"])
            rest = {name: given for name, given in value.items() if name not in ("kind", "rows", "absent")}
            found = cls(rows=rows, absent=absent, **rest)
        except (KeyError, TypeError) as error:
            raise DemiluneError(f"this is no crosscheck of demilune's ({error}): run it again") from None
        try:
            parts = [part for row in rows for part in (row, row.ours, row.theirs, row.difference, *row.disagreements)]
            for part in (found, *absent, *parts):
                check_types(part)
        except DemiluneError as error:
            raise DemiluneError(f"this is a broken crosscheck ({error}): run it again") from None
        return found


def _comparison(row: Mapping[str, Any]) -> Comparison:
    made = {
        "ours": Side(**row["ours"]),
        "theirs": Side(**row["theirs"]),
        "difference": Difference(**row["difference"]),
        "disagreements": tuple(Disagreement(**one) for one in row["disagreements"]),
    }
    return Comparison(**{**row, **made})


def crosscheck(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    rng: Stream,
    libraries: Sequence[str] = (),
    names: Sequence[str] = tuple(TITLES),
    classes: int = 10,
    watch: Callable[[Progress], None] = lambda progress: None,
    steps: int = 100,
    queries: int = 5000,
    targets: int = 9,
    step_ratio: float = 0.25,
    batch: int = 250,
) -> Agreement:
    """Run our attacks and those of other libraries, and compare who is still right.

    ``x`` [N,C,H,W] float32 in [0,1], ``y`` int64 [N]; ``rng`` carries the images' ids. ``libraries`` by name, none
    meaning all that are installed; ``names`` as in ``TITLES``. Every attack has one restart and the same budget on
    both sides, and is run on the images right when clean. Where a library takes a start it is given ours; where not it
    draws its own, from ``rng``, for ``batch`` images at a time. The verdicts are our judge's alone. The model is in
    eval mode, and nothing of it, nor of the global generators, changes. ``watch`` may raise to stop.
    Raises DemiluneError for an unknown name, for a library asked for that is not there, and where nothing is left.
    """
    for name in names:
        if name not in TITLES:
            raise unknown("attack", name, TITLES)
    if batch < 1:
        raise DemiluneError(f"batch = {batch}: it must be 1 or more")
    budget = Budget(steps, step_ratio * ball.eps, queries, min(targets, classes - 1))
    attacks: Mapping[str, Attack] = {
        "fgsm": FGSM(),
        "pgd": PGD(steps, step_ratio=step_ratio),
        "apgd_ce": APGD("ce", steps),
        "apgd_t": TargetedAPGD(targets, steps),
        "fab_t": FABT(targets, steps),
        "square": Square(queries),
    }
    present, absent = installed(libraries)
    made = list[Comparison]()
    with frozen(model, "eval"), seeded(rng.sub("crosscheck"), x.device):
        randomised = is_randomised(model, x[:64])
        parts = zip(x.split(batch), y.split(batch), strict=True)
        rows = torch.cat([correct(model, *part) for part in parts]).nonzero().squeeze(1)
        if len(rows) == 0:
            raise DemiluneError(f"none of {len(x)} images is classified correctly: there is nothing to attack")
        ids = rows if rng.ids is None else rng.ids.to(x.device)[rows]
        bench = _Bench(model, x[rows], y[rows], ball, rng.images(ids), batch, watch, budget)
        for name in dict.fromkeys(names):
            able, lacking = _able(name, present, ball, classes)
            absent += lacking
            if not able:
                continue
            of = attacks[name]
            ours = bench.run(name, "", bench.mine(of), True)
            for library, adaptor in able.items():
                try:
                    theirs = bench.run(name, library, bench.other(name, present[library], adaptor, ours.start), False)
                except FAULTS as error:
                    absent.append(Absent(name, library, f"it failed: {type(error).__name__}: {error}"))
                    continue
                version = str(getattr(present[library], "__version__", ""))
                made.append(_compared(name, library, version, of, adaptor.shared, len(x), ids, ours, theirs))
    if not made:
        told = "; ".join(_told(one) for one in absent)
        raise DemiluneError(f"nothing could be compared: {told or 'no attack was named'}")
    return Agreement(
        rows=tuple(made),
        absent=tuple(absent),
        n=len(x),
        clean=len(rows),
        classes=classes,
        norm=ball.norm,
        eps=ball.eps,
        steps=steps,
        queries=queries,
        targets=targets,
        step_ratio=step_ratio,
        randomised=randomised,
    )


def _compared(
    name: str, library: str, version: str, of: Attack, shared: bool, n: int, ids: Tensor, ours: _Run, theirs: _Run
) -> Comparison:
    """Return the comparison of two runs on the images ``ids`` int64, those of ``n`` that are right when clean."""
    apart = (ours.right != theirs.right).nonzero().squeeze(1).tolist()
    # The others are wrong on both sides, and count in the accuracies.
    first, second = (F.pad(one.right.cpu(), (0, n - len(ids))).numpy() for one in (ours, theirs))
    return Comparison(
        attack=name,
        library=library,
        version=version,
        value=repr(of),
        n=n,
        attacked=len(ids),
        ours=ours.side,
        theirs=theirs.side,
        both=int((ours.right & theirs.right).sum()),
        difference=paired(first, second),
        shared=shared,
        disagreements=tuple(
            Disagreement(int(ids[row]), float(ours.margin[row]), float(theirs.margin[row])) for row in apart
        ),
    )


# libraries


def installed(libraries: Sequence[str] = ()) -> tuple[dict[str, ModuleType], list[Absent]]:
    """Return the libraries that import, and those that do not, with the reason; none named means all.

    Raises DemiluneError for a library that is named and does not import, and where none does.
    """
    found, absent = dict[str, ModuleType](), list[Absent]()
    for name in dict.fromkeys(libraries or LIBRARIES):
        if name not in LIBRARIES:
            raise unknown("library", name, LIBRARIES)
        try:
            with _silenced():
                found[name] = importlib.import_module(name)
        # Whatever a broken installation raises: torchvision beside another torch's raises RuntimeError.
        except Exception as error:
            absent.append(Absent("", name, _reason(name, error)))
    if absent and (libraries or not found):
        raise DemiluneError("; ".join(_told(one) for one in absent))
    return found, absent


def _reason(name: str, error: Exception) -> str:
    """Return why a library is not there, and the remedy."""
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        why = f"not installed: pip install 'demilune[crosscheck]', or '{LIBRARIES[name]}' alone"
        more = " (it brings torchvision, which must be the release that goes with your torch)"
        return why + (more if name == "torchattacks" else "")
    remedy = f"the torchvision that goes with torch {torch.__version__}" if name == "torchattacks" else "it anew"
    return f"there, but it does not import ({type(error).__name__}: {error}): install {remedy}"


def _told(one: Absent) -> str:
    title = f"{TITLES[one.attack]} of {one.library}" if one.attack else one.library
    return f"{title}: {one.why}"


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Let nothing be printed, logged or warned of: these libraries say much that is of no use to anybody here."""
    threshold = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(threshold)


class Budget(NamedTuple):
    """What both sides may spend: steps, PGD's step in pixel units, queries of Square, wrong classes aimed at."""

    steps: int
    size: float
    queries: int
    targets: int

    def most(self, name: str) -> int:
        """Return the forward passes per image of an attack on images that it does not break, about."""
        aimed = {"apgd_t": self.targets * (self.steps + 1), "fab_t": 2 * self.targets * self.steps}
        return {"fgsm": 1, "square": self.queries + 1, **aimed}.get(name, self.steps + 1)


class Task(NamedTuple):
    """What a library is given: its module, the network, images with labels, our start, the ball, and the budget.

    ``seed`` is what its own draws begin with.
    """

    library: Any
    model: nn.Module
    x: Tensor
    y: Tensor
    start: Tensor
    ball: Ball
    budget: Budget
    seed: int

    @property
    def norm(self) -> str:
        """The ball's norm as pyautoattack and torchattacks write it."""
        return {"linf": "Linf", "l2": "L2"}[self.ball.norm]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Adaptor:
    """How a library runs an attack, the norms it has it for, and whether it begins at the very points that ours does.

    All parameters that matter are written out: defaults differ from AutoAttack's (torchattacks: 10 steps; Square in
    both: a schedule that is stretched to the number of queries).
    """

    run: Callable[[Task], Tensor]
    shared: bool = False
    norms: tuple[Norm, ...] = ("linf", "l2")


def _foolbox_fgsm(task: Task) -> Tensor:
    attacks = task.library.attacks
    attack = attacks.LinfFastGradientAttack() if task.ball.norm == "linf" else attacks.L2FastGradientAttack()
    return _foolbox(task, attack)


def _foolbox_pgd(task: Task) -> Tensor:
    attacks = task.library.attacks
    kinds = {"linf": attacks.LinfProjectedGradientDescentAttack, "l2": attacks.L2ProjectedGradientDescentAttack}
    attack = kinds[task.ball.norm](abs_stepsize=task.budget.size, steps=task.budget.steps, random_start=True)
    # The start is the one method an attack is told to fill in; the ball stays around x.
    start = importlib.import_module("eagerpy").astensor(task.start)
    attack.get_random_start = lambda x, eps: start
    return _foolbox(task, attack)


def _foolbox(task: Task, attack: Any) -> Tensor:
    net = task.library.PyTorchModel(task.model, bounds=(0.0, 1.0), device=task.x.device)
    # ``run`` and not a call: a call clips what it returns, which would hide how far an image is out.
    points: Tensor = attack.run(net, task.x, task.y, epsilon=task.ball.eps)
    return points


def _pyautoattack_apgd_ce(task: Task) -> Tensor:
    base = importlib.import_module("pyautoattack.autopgd_base")
    attack = base.APGDAttack(
        task.model, n_iter=task.budget.steps, norm=task.norm, n_restarts=1, eps=task.ball.eps, seed=task.seed,
        loss="ce", eot_iter=1, rho=0.75, device=task.x.device,
    )  # fmt: skip
    # ``perturb`` takes a start too, and does not use it. This is what it does with one restart.
    attack.init_hyperparam(task.x)
    _, standing, _, broken = attack.attack_single_run(task.x, task.y, x_init=task.start)
    return torch.where(per_image(standing.bool(), task.x), task.x, broken.detach())


def _pyautoattack_apgd_t(task: Task) -> Tensor:
    base = importlib.import_module("pyautoattack.autopgd_base")
    attack = base.APGDAttack_targeted(
        task.model, n_iter=task.budget.steps, norm=task.norm, n_restarts=1, eps=task.ball.eps, seed=task.seed,
        eot_iter=1, rho=0.75, n_target_classes=task.budget.targets, device=task.x.device,
    )  # fmt: skip
    points: Tensor = attack.perturb(task.x, task.y)
    return points


def _pyautoattack_fab_t(task: Task) -> Tensor:
    attack = importlib.import_module("pyautoattack.fab_pt").FABAttack_PT(
        task.model, norm=task.norm, n_restarts=1, n_iter=task.budget.steps, eps=task.ball.eps, alpha_max=0.1, eta=1.05,
        beta=0.9, seed=task.seed, targeted=True, device=task.x.device, n_target_classes=task.budget.targets,
    )  # fmt: skip
    points: Tensor = attack.perturb(task.x, task.y)
    return points


def _pyautoattack_square(task: Task) -> Tensor:
    attack = importlib.import_module("pyautoattack.square").SquareAttack(
        task.model, norm=task.norm, n_queries=task.budget.queries, eps=task.ball.eps, p_init=0.8, n_restarts=1,
        seed=task.seed, loss="margin", resc_schedule=False, device=task.x.device,
    )  # fmt: skip
    points: Tensor = attack.perturb(task.x, task.y)
    return points


def _torchattacks_fgsm(task: Task) -> Tensor:
    return _torchattacks(task, task.library.FGSM(task.model, eps=task.ball.eps))


def _torchattacks_pgd(task: Task) -> Tensor:
    kind = task.library.PGD if task.ball.norm == "linf" else task.library.PGDL2
    attack = kind(task.model, eps=task.ball.eps, alpha=task.budget.size, steps=task.budget.steps, random_start=True)
    return _torchattacks(task, attack)


def _torchattacks_apgd_ce(task: Task) -> Tensor:
    attack = task.library.APGD(
        task.model, norm=task.norm, eps=task.ball.eps, steps=task.budget.steps, n_restarts=1, seed=task.seed, loss="ce",
        eot_iter=1, rho=0.75,
    )  # fmt: skip
    return _torchattacks(task, attack)


def _torchattacks_apgd_t(task: Task) -> Tensor:
    attack = task.library.APGDT(
        task.model, norm=task.norm, eps=task.ball.eps, steps=task.budget.steps, n_restarts=1, seed=task.seed,
        eot_iter=1, rho=0.75, n_classes=task.budget.targets + 1,
    )  # fmt: skip
    return _torchattacks(task, attack)


def _torchattacks_fab_t(task: Task) -> Tensor:
    attack = task.library.FAB(
        task.model, norm=task.norm, eps=task.ball.eps, steps=task.budget.steps, n_restarts=1, alpha_max=0.1, eta=1.05,
        beta=0.9, seed=task.seed, multi_targeted=True, n_classes=task.budget.targets + 1,
    )  # fmt: skip
    return _torchattacks(task, attack)


def _torchattacks_square(task: Task) -> Tensor:
    attack = task.library.Square(
        task.model, norm=task.norm, eps=task.ball.eps, n_queries=task.budget.queries, n_restarts=1, p_init=0.8,
        loss="margin", resc_schedule=False, seed=task.seed,
    )  # fmt: skip
    return _torchattacks(task, attack)


def _torchattacks(task: Task, attack: Any) -> Tensor:
    attack.set_device(task.x.device)  # it looks for the first weight's, and a callable has none
    points: Tensor = attack(task.x, task.y)
    return points


ADAPTORS: Mapping[tuple[str, str], Adaptor] = MappingProxyType(
    {
        ("fgsm", "foolbox"): Adaptor(_foolbox_fgsm, shared=True),
        ("fgsm", "torchattacks"): Adaptor(_torchattacks_fgsm, shared=True, norms=("linf",)),
        ("pgd", "foolbox"): Adaptor(_foolbox_pgd, shared=True),
        ("pgd", "torchattacks"): Adaptor(_torchattacks_pgd),
        ("apgd_ce", "pyautoattack"): Adaptor(_pyautoattack_apgd_ce, shared=True),
        ("apgd_ce", "torchattacks"): Adaptor(_torchattacks_apgd_ce),
        ("apgd_t", "pyautoattack"): Adaptor(_pyautoattack_apgd_t),
        ("apgd_t", "torchattacks"): Adaptor(_torchattacks_apgd_t),
        ("fab_t", "pyautoattack"): Adaptor(_pyautoattack_fab_t, shared=True),  # its first run begins at the image
        ("fab_t", "torchattacks"): Adaptor(_torchattacks_fab_t, shared=True),
        ("square", "pyautoattack"): Adaptor(_pyautoattack_square),
        ("square", "torchattacks"): Adaptor(_torchattacks_square),
    }
)
"""What the libraries have of our attacks: (attack, library)."""


def _able(
    name: str, present: Mapping[str, ModuleType], ball: Ball, classes: int
) -> tuple[dict[str, Adaptor], list[Absent]]:
    """Return the libraries that have an attack for this ball and number of classes, and those that lack that alone."""
    having = {library: ADAPTORS[name, library] for library in present if (name, library) in ADAPTORS}
    if not having:
        return {}, [Absent(name, library, "not there") for library in present]
    lost = f"needs 4 classes or more, and there are {classes}" if name == "apgd_t" and classes < 4 else ""
    why = {lib: lost or ("" if ball.norm in one.norms else f"not there for {ball.norm}") for lib, one in having.items()}
    able = {library: one for library, one in having.items() if not why[library]}
    return able, [Absent(name, library, why[library]) for library in having if why[library]]


# running

_Attacking = Callable[[nn.Module, Tensor], Tensor]
"""From a network and the rows int64 of a bench's images to what becomes of them."""


@final
class Counting(nn.Module):
    """A network that is counted, as the module that libraries want; it keeps the first that it was asked about.

    ``tick`` is told the images run forward, now and then, and may raise to stop an attack in the middle.
    """

    def __init__(self, model: Model, tick: Callable[[int], None] = lambda forwards: None) -> None:
        super().__init__()
        self.model, self.counted = model, Counted(model, tick)
        self.first: Tensor | None = None

    @property
    def forwards(self) -> int:
        """Images run forward so far."""
        return self.counted.forwards

    @property
    def gradients(self) -> int:
        """Images run back so far."""
        return self.counted.gradients

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        self.first = x.detach().clone() if self.first is None else self.first
        # There and back, so that gradients are NCHW in memory even of a network kept as NHWC: torchattacks views them.
        return self.counted(x.flatten(1).unflatten(1, x.shape[1:]))


class _Run(NamedTuple):
    """What became of the images [n]: which are right, bool, their margins, and where the search began."""

    right: Tensor
    margin: Tensor
    start: Tensor
    side: Side


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """The images that are attacked, all right when clean, and what the runs of both sides share."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    rng: Stream
    batch: int
    watch: Callable[[Progress], None]
    budget: Budget

    def mine(self, of: Attack) -> _Attacking:
        """Return an attack of ours."""
        return lambda net, rows: of(net, self.x[rows], self.y[rows], self.ball, self.rng.take(rows))

    def other(self, name: str, library: ModuleType, adaptor: Adaptor, start: Tensor) -> _Attacking:
        """Return a library's attack."""

        def attack(net: nn.Module, rows: Tensor) -> Tensor:
            draws = self.rng.sub(library.__name__, name, int(rows[0]))
            x = self.x[rows].contiguous()
            task = Task(library, net, x, self.y[rows], start[rows], self.ball, self.budget, draws.seed("library"))
            with _silenced(), torch.enable_grad(), seeded(draws, x.device):
                return adaptor.run(task)

        return attack

    def run(self, name: str, library: str, attack: _Attacking, ours: bool) -> _Run:
        """Attack the images in batches, judge them, and count; our own results have to lie in the ball."""
        title = f"{TITLES[name]} of {library}" if library else TITLES[name]
        streams, most = (sys.stdout, sys.stderr), max(1, self.budget.most(name))
        parts, seconds, forwards, gradients, standing = list[tuple[Tensor, ...]](), 0.0, 0, 0, 0
        for rows in torch.arange(len(self.x), device=self.x.device).split(self.batch):
            state = Progress(title, int(rows[0]), len(self.x), standing, 0.0, len(rows))

            def tick(forwards: int, state: Progress = state) -> None:
                # A library's run is silenced; whoever watches is not.
                with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                    self.watch(state._replace(within=min(1.0, forwards / (state.batch * most))))

            net = Counting(self.model, tick).eval()
            begun = self._now()
            points = attack(net, rows)
            seconds += self._now() - begun
            forwards, gradients = forwards + net.forwards, gradients + net.gradients
            parts.append((*self.verdict(points, rows, ours), self.x[rows] if net.first is None else net.first))
            standing += int(parts[-1][0].sum())
            self.watch(Progress(title, int(rows[-1]) + 1, len(self.x), standing, 0.0))
        fine, margin, excess, start = (torch.cat(column) for column in zip(*parts, strict=True))
        n, left = len(self.x), int((excess > self._leeway).sum())
        side = Side(standing, seconds, forwards / n, gradients / n, float(excess.max()), left)
        return _Run(fine, margin, start, side)

    def verdict(self, points: Tensor, rows: Tensor, ours: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return which results are right, bool [n], their margins [n], and how far outside they are [n]."""
        x, y = self.x[rows], self.y[rows]
        points = points.detach().to(x)
        if ours:
            judged(self.model, x, points, y, self.ball)  # refuses what lies outside: a fault of ours, no disagreement
        flat = points.flatten(1)
        outside = (self.ball.distance(points, x) - self.ball.eps, -flat.amin(dim=1), flat.amax(dim=1) - 1.0)
        excess = torch.stack(outside).amax(dim=0).nan_to_num(nan=math.inf, posinf=math.inf).clamp_min(0.0).abs()
        legal = torch.where(per_image(excess > self._leeway, x), x, points)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            logits = self.model(legal)
        return right(logits, y), breach(logits, y), excess

    @property
    def _leeway(self) -> float:
        return LEEWAY * max(1.0, self.ball.eps)

    def _now(self) -> float:
        if self.x.device.type == "cuda":
            torch.cuda.synchronize(self.x.device)
        return time.perf_counter()


# text


def lines(found: Agreement) -> list[str]:
    """Return an agreement as lines of text: verdicts, costs, what could not be compared, and some disagreements."""
    told = [
        f"{found.n} images, {found.clean} right when clean and attacked; {found.norm}, ε = {found.eps:g}; one restart, "
        f"{found.steps} steps (PGD's of {found.step_ratio:g} ε), {found.queries} queries, "
        f"{min(found.targets, found.classes - 1)} targets"
    ]
    if found.randomised:
        told.append("the model answers differently on the same images: not even two runs of one attack would agree")
    named = [(TITLES[row.attack], f"{row.library} {row.version}".strip(), row) for row in found.rows]
    told.append("")
    told += _table(
        "attack|library|ours|theirs|both right|only ours|only theirs|agree|difference|start",
        [
            (
                *who,
                percent(row.ours.right / row.n),
                percent(row.theirs.right / row.n),
                str(row.both),
                str(row.only_ours),
                str(row.only_theirs),
                percent(row.agreement),
                f"{100 * row.difference.value:+.2f} ± {100 * row.difference.error:.2f}",
                "shared" if row.shared else "own",
            )
            for *who, row in named
        ],
    )
    told += ["", "seconds in all; passes forward and back for each image attacked; their images outside the ball"]
    told += _table(
        "attack|library|our seconds|theirs|our forward|theirs|our back|theirs|farthest out|left the ball",
        [
            (
                *who,
                f"{row.ours.seconds:.2f}",
                f"{row.theirs.seconds:.2f}",
                f"{row.ours.forwards:.1f}",
                f"{row.theirs.forwards:.1f}",
                f"{row.ours.gradients:.1f}",
                f"{row.theirs.gradients:.1f}",
                f"{row.theirs.excess:.1e}",
                str(row.theirs.left),
            )
            for *who, row in named
        ],
    )
    told += ["", *(_told(one) for one in found.absent)] if found.absent else []
    apart = [
        (*who, str(one.image), f"{one.ours:+.2e}", f"{one.theirs:+.2e}")
        for *who, row in named
        for one in row.disagreements
    ]
    if apart:
        told += ["", f"{min(SHOWN, len(apart))} of {len(apart)} disagreements (a margin above 0 is broken)"]
        told += _table("attack|library|image|our margin|their margin", apart[:SHOWN])
    return told


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows under a head in columns: the first two are words, the others numbers."""
    whole = [head.split("|"), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*whole, strict=True)]
    aligned = [[*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])] for row in whole]
    return ["  ".join(row) for row in aligned]


__all__ = [
    "ADAPTORS", "LIBRARIES", "TITLES", "Absent", "Adaptor", "Agreement", "Comparison", "Disagreement", "Side",
    "crosscheck", "installed", "lines",
]  # fmt: skip
