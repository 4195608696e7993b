"""The attacks of an evaluation by name: what each runs, and the rows of the table it fills."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from demilune.attacks import (
    APGD,
    CW,
    FAB,
    FABT,
    FGSM,
    NATTACK,
    ODI,
    PGD,
    Attack,
    BestOf,
    IterativeAttack,
    MarginDecomposition,
    Model,
    MultiTargeted,
    Rescaled,
    Search,
    Square,
    TargetedAPGD,
    Transfer,
    Uniform,
    check_allowed,
    correct,
    judged,
    read,
    right,
)
from demilune.core.geometry import Ball, Norm
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.evaluate.counted import Counted

STANDARD = ("fgsm", "pgd10", "cw10", "pgd50x5", "multi9x30")
"""The default suite, cheapest first."""

Run: TypeAlias = Callable[[Model, Model, Tensor, Tensor, Ball, Stream], Mapping[str, Tensor]]
"""(model, search, x, y, ball, rng) -> for each row which images are right after the attack, bool [N]."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One attack of a suite and the rows it fills.

    ``titles``: the rows' names and titles. ``of``: the attack in its strongest reading, for example images and for the
    record; None where it is no attack. ``run`` judges images. ``cost``: forward passes and gradients per image, at
    most (of the search; a gradient is one forward and one gradient).
    ``everywhere``: whether images misclassified when clean are attacked too, for the papers' reading.
    ``after``: a row whose broken images count as broken here without a run. ``role``: as in results.Row.
    ``most``: how many images at most, 0 for all. ``note``: where it is not quite what its title says.
    ``identity`` tells apart what the rest does not (files). ``told`` describes the attack where its own words would
    not do. ``beside`` are other models whose passes belong to its cost.
    """

    name: str
    titles: Mapping[str, str]
    of: Attack | None
    run: Run
    cost: tuple[int, int]
    everywhere: bool = False
    after: str = ""
    role: Literal["attack", "part", "probe"] = "attack"
    most: int = 0
    note: str = ""
    identity: str = ""
    told: str = ""
    beside: tuple[Counted, ...] = ()

    def described(self) -> str:
        """Return the attack as a value one can read."""
        return self.told or (self.name if self.of is None else repr(self.of))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What the meaning of a name depends on: relative step size, ball, number of classes, models to transfer from.

    ``sources`` are models, named by what is told of them; ``files`` fingerprints them. ``room``: images in a pass up to
    which AutoAttack's parts run several targets of few images together; it changes no verdict.
    """

    step_ratio: float = 0.25
    norm: Norm = "linf"
    classes: int = 10
    sources: Mapping[str, Model] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    room: int = 0


def plain(
    name: str, title: str, of: Attack, cost: tuple[int, int], everywhere: bool = False, after: str = "", note: str = ""
) -> Entry:
    """Return an attack read at its result (PGD: the last iterate of one run)."""

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        return {name: judged(model, x, of(search, x, y, ball, rng), y, ball)}

    return Entry(name, {name: title}, of, run, cost, everywhere, after, note=note)


def restarted(name: str, title: str, of: PGD, restarts: int) -> Entry:
    """Return an iterative attack from several starts, its readings last, any and best all taken from the same runs."""
    titles = {name: title, f"{name}_any": f"{title} any", f"{name}x{restarts}_any": f"{title}×{restarts} any"}

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        found = read(of, search, x, y, ball, rng, restarts)
        return {row: judged(model, x, points, y, ball) for row, points in zip(titles, found, strict=True)}

    passes = restarts * of.steps
    return Entry(name, titles, BestOf(of, restarts), run, (passes + 2 * restarts, passes))


def iterations(steps: int, ratio: float) -> Entry:
    """Return the curve over PGD's iterations: the verdict at every iterate of one run, and of all so far (Figs. 4, 7).

    ``iterations.0`` is the clean image (the papers' axis starts there), ``iterations.start`` the random start.
    """
    of = PGD(steps, step_ratio=ratio)
    titles = {"iterations.0": "PGD-0 (clean)", "iterations.start": "random start"}
    for k in range(1, steps + 1):
        titles |= {f"iterations.{k}": f"PGD-{k} of {steps}", f"iterations.{k}_any": f"PGD-{k} of {steps} any"}

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        found = {"iterations.0": correct(model, x, y)}
        still = torch.ones_like(y, dtype=torch.bool)
        for k, (point, logits) in enumerate(of.path(search, x, y, ball, rng)):
            # One trajectory holds every K: its float32 gradient steps give the verdicts, only the end costs a pass.
            precise = logits is not None and not isinstance(search, Search)
            now = right(logits, y) if logits is not None and precise else correct(model, point, y)
            check_allowed(point, x, ball)
            still = still & now if k else still
            found |= {f"iterations.{k}": now, f"iterations.{k}_any": still} if k else {"iterations.start": now}
        return found

    return Entry("iterations", titles, of, run, (steps + 2, steps), role="part")


BUDGETS = 16
"""Steps of a budget curve; step 8 is the ball's own ε: 0, 1, …, 16 grey levels at ε = 8/255."""


def budgets(kind: str, ratio: float) -> Entry:
    """Return an accuracy-over-budget curve, ε = 0, ε₀/8, …, 2 ε₀ (Figs. 5, 8; evaluation.md 3).

    ``pgd10``: as the papers do it, ten steps of one size, ``ratio`` · ε₀, at every ε (above ε₀ · 10/8 they cannot
    cross the ball, below ε₀/4 they overshoot). ``margin50``: 50 steps of ε/4 on the margin. ``apgd_ce``: APGD of 100
    steps. The ``_nested`` rows count an image that was broken at a smaller ε as broken.
    """
    titles, cost = dict[str, str](), {"pgd10": (11, 10), "margin50": (51, 50), "apgd_ce": (102, 101)}[kind]
    named = {"pgd10": "PGD-10", "margin50": "margin PGD-50", "apgd_ce": "APGD-CE"}[kind]
    for step in range(BUDGETS + 1):
        row = f"budget.{kind}.{step}"
        titles |= {row: f"{named} at {step}/8 ε", f"{row}_nested": f"{named} at up to {step}/8 ε"}

    def attack(ball: Ball) -> Attack:
        if kind == "pgd10":
            return PGD(10, step_size=ratio * ball.eps)
        return CW(50, step_ratio=0.25) if kind == "margin50" else APGD()

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        of, found = attack(ball), dict[str, Tensor]()
        still = correct(model, x, y)
        for step in range(BUDGETS + 1):
            there = ball.times(step / 8)
            after = judged(model, x, of(search, x, y, there, rng), y, there) if step else correct(model, x, y)
            still = still & after
            found |= {f"budget.{kind}.{step}": after, f"budget.{kind}.{step}_nested": still}
        return found

    each = (cost[0] * BUDGETS, cost[1] * BUDGETS)
    return Entry(f"budget.{kind}", titles, None, run, each, role="probe")


def nattack(name: str, loss: Literal["margin", "official_scalar"]) -> Entry:
    """Return NATTACK at both published step sizes, each of which is reported, and the minimum (attacks.md 5)."""
    runs = {f"{name}_{rate:g}": NATTACK(loss=loss, rate=rate) for rate in (0.008, 0.02)}
    told = "NATTACK" if loss == "margin" else "NATTACK as released"
    titles = {row: f"{told} η {of.rate:g}" for row, of in runs.items()} | {name: told}

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        found = {row: judged(model, x, of(search, x, y, ball, rng), y, ball) for row, of in runs.items()}
        return found | {name: torch.stack(list(found.values())).all(dim=0)}

    of = NATTACK(loss=loss)
    passes = 2 * (of.steps * of.population + -(-of.steps // of.every) + 1)
    return Entry(name, titles, of, run, (passes, 0))


def at(one: Entry, eps: float, told: str) -> Entry:
    """Return an entry in a ball of another radius: a probe, which no worst case counts."""
    titles = {f"{row}@eps={told}": f"{title} at ε = {told}" for row, title in one.titles.items()}

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        found = one.run(model, search, x, y, Ball(ball.norm, eps), rng)
        return dict(zip(titles, found.values(), strict=True))

    name = f"{one.name}@eps={told}"
    after = f"{one.after}@eps={told}" if one.after else ""
    return replace(
        one, name=name, titles=titles, of=None, run=run, role="probe", everywhere=False, after=after, told=""
    )


def unbounded() -> Entry:
    """Return the attack that must reach 100 %: all of [0,1], 100 steps of 8/255 on the margin (check G3)."""
    of, whole = CW(100, step_size=8 / 255), Ball("linf", 1.0)

    def run(model: Model, search: Model, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> Mapping[str, Tensor]:
        return {"unbounded": judged(model, x, of(search, x, y, whole, rng), y, whole)}

    return Entry("unbounded", {"unbounded": "Unbounded margin PGD-100"}, None, run, (101, 100), role="probe")


def cascade(name: str, setting: Setting) -> tuple[Entry, ...]:
    """Return AutoAttack's components in order, each on the images that all before it left standing (attacks.md 6).

    The row of each is cumulative, hence an upper bound on AutoAttack's own figure, the last: "APGD-CE+T", say.
    """
    parts = [components(setting)[part] for part in CASCADES[name].parts]
    told, before, made = list[str](), "", list[Entry]()
    for part in parts:
        told.append(part.title)
        last = len(told) == len(parts) and name != "apgd"
        row = CASCADES[name].row if last else f"{CASCADES[name].row}.{part.row}"
        title = CASCADES[name].title if last else CASCADES[name].joined(told)
        notes = [part.note] if part.note else []
        if name == "autoattack_rand" and part.row == "apgd_dlr":
            notes.append("ascends the DLR of mean log-probabilities, the released code the mean of DLRs")
        made.append(plain(row, title, part.of, part.cost, after=before, note="; ".join(notes)))
        before = row
    return tuple(made)


class Component(NamedTuple):
    """A part of AutoAttack."""

    row: str
    title: str
    of: Attack
    cost: tuple[int, int]
    note: str


class Cascade(NamedTuple):
    """A version of AutoAttack: its row, its title and its parts in order."""

    row: str
    title: str
    parts: tuple[str, ...]

    def joined(self, told: Sequence[str]) -> str:
        """Return the title of a partial sum."""
        start = "" if self.row == "autoattack" else f"{self.title}: "
        return start + " + ".join(told)


CASCADES: Mapping[str, Cascade] = {
    "apgd": Cascade("autoattack", "APGD-CE + APGD-T", ("apgd_ce", "apgd_t")),
    "autoattack": Cascade("autoattack", "AutoAttack", ("apgd_ce", "apgd_t", "fab_t", "square")),
    "autoattack_rand": Cascade("autoattack_rand", "AutoAttack rand", ("apgd_ce", "apgd_dlr")),
    "autoattack_plus": Cascade(
        "autoattack_plus",
        "AutoAttack plus",
        ("apgd_ce5", "apgd_dlr5", "fab5", "square", "apgd_t", "fab_t"),
    ),
}


def components(setting: Setting) -> Mapping[str, Component]:
    """Return AutoAttack's parts by name; where DLR does not exist the note says what took its place."""
    targets, room = min(9, setting.classes - 1), setting.room

    def apgd(row: str, title: str, of: APGD) -> Component:
        passes = of.restarts * (of.steps + 1)
        return Component(row, title, of, (passes + 2, passes), of.instead(setting.classes))

    aimed, fabt, fab, square = TargetedAPGD(room=room), FABT(room=room), FAB(restarts=5, room=room), Square()
    gradients = targets * (aimed.steps + 1)
    found = (
        apgd("apgd_ce", "APGD-CE", APGD("ce")),
        apgd("apgd_dlr", "APGD-DLR", APGD("dlr")),
        apgd("apgd_ce5", "APGD-CE×5", APGD("ce", restarts=5, room=room)),
        apgd("apgd_dlr5", "APGD-DLR×5", APGD("dlr", restarts=5, room=room)),
        Component("apgd_t", "APGD-T", aimed, (gradients + 2, gradients), aimed.instead(setting.classes)),
        Component("fab_t", "FAB-T", fabt, (2 * targets * fabt.steps + 2, targets * fabt.steps), ""),
        Component("fab5", "FAB×5", fab, _untargeted(fab, setting.classes), ""),
        Component("square", "Square", square, (square.queries + 2, 0), ""),
    )
    return {part.row: part for part in found}


def _untargeted(fab: FAB, classes: int) -> tuple[int, int]:
    """Return the cost of FAB, which differentiates every logit in each step."""
    steps = fab.restarts * fab.steps
    return 2 * steps + 2, steps * (classes - 1)


FORMS = (
    "fgsm",
    "pgdK, K steps from one start",
    "pgdKxR, R restarts",
    "cwK, K steps on the margin, cwK_rlfat, as RLFAT's code masks the true class",
    "multiTxK, K steps at each of T targets",
    "apgd_ce, apgd_dlr, apgd_t, fab_t, square, apgd_ce5, apgd_dlr5, fab5 (untargeted), each alone on all images",
    "apgd, AutoAttack's first two parts",
    "autoattack, autoattack_rand (for a random model), autoattack_plus",
    "nattack, nattack_official (as released)",
    "md, md_t, margin decomposition, and at each target",
    "odi, PGD from output-diversified starts",
    "transfer, from the models of --sources",
    "uniformN, N random images of the ball",
    "unbounded, all of [0,1]",
    "iterationsK, the curve over PGD's iterations",
    "budget_pgd10, budget_margin50, budget_apgd_ce, the curves over ε",
    "NAME@eps=E, in a ball of another radius (8/255)",
    "NAME@scale=T, searching with logits times T",
    "NAME@n=N, on N of the images",
)
"""What an attack of a suite can be called."""

_NUMBERED = {
    "pgd": re.compile(r"pgd(\d+)(?:x(\d+))?", re.ASCII),
    "cw": re.compile(r"cw(\d+)", re.ASCII),
    "rlfat": re.compile(r"cw(\d+)_rlfat", re.ASCII),
    "multi": re.compile(r"multi(\d+)x(\d+)", re.ASCII),
    "uniform": re.compile(r"uniform(\d+)", re.ASCII),
    "iterations": re.compile(r"iterations(\d+)", re.ASCII),
}


def entry(name: str, setting: Setting | None = None) -> tuple[Entry, ...]:
    """Return the suite's entries of that name; step sizes are ``step_ratio`` · ε (2/255 at ε = 8/255).

    Raises DemiluneError for a name of no known form, and for an attack that the norm lacks.
    """
    setting = setting or Setting()
    base, *changes = name.split("@")
    kinds = [change.partition("=")[0] for change in changes]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise DemiluneError(f"attack {name!r} gives @{kind} twice: leave one out")
    made = _numbered(base, setting) or _named(base, setting)
    if not made:
        known = (*STANDARD, *CASCADES, *_PLAIN)
        near = difflib.get_close_matches(base.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DemiluneError(f"unknown attack {name!r}: {hint}possible are {'; '.join(FORMS)}")
    # Another radius makes a probe, whose logits are rescaled already; so the order typed does not matter.
    for change in sorted(changes, key=lambda change: change.startswith("eps")):
        made = tuple(_changed(one, name, change, setting.norm) for one in made)
    return made


def _numbered(name: str, setting: Setting) -> tuple[Entry, ...]:
    ratio = setting.step_ratio
    form, numbers = next(
        (
            (kind, [int(n[:9]) for n in found.groups() if n])  # nine digits are too large already
            for kind, one in _NUMBERED.items()
            if (found := one.fullmatch(name))
        ),
        ("", []),
    )
    if any(not 1 <= number <= 10**6 for number in numbers):
        raise DemiluneError(f"attack {name!r}: its numbers must be 1 or more, and at most a million")
    if form == "pgd":
        steps, *more = numbers
        of = PGD(steps, step_ratio=ratio)
        if more:
            return (restarted(f"pgd{steps}", f"PGD-{steps}", of, more[0]),)
        return (plain(name, f"PGD-{steps}", of, (steps, steps), everywhere=True),)
    if form == "cw":
        cw = "CW∞" if setting.norm == "linf" else "CW"
        return (plain(name, f"{cw}-{numbers[0]}", CW(numbers[0], step_ratio=ratio), (numbers[0],) * 2, True),)
    if form == "rlfat":
        note = "as released, where all wrong logits below 0 count as 0: no fair attack on models that keep them there"
        released = CW(numbers[0], step_ratio=ratio, masking="zero")
        made = plain(name, f"CW-{numbers[0]} of RLFAT", released, (numbers[0],) * 2, True, note=note)
        return (replace(made, told=f"{released!r}, masking zero"),)
    if form == "multi":
        targets, steps = numbers
        passes = min(targets, setting.classes - 1) * steps
        attack = MultiTargeted(targets, steps, step_ratio=ratio)
        return (plain(name, f"Multi-targeted {targets}×{steps}", attack, (passes + targets + 1, passes)),)
    if form == "uniform":
        return (plain(name, f"{numbers[0]} random images", Uniform(numbers[0]), (numbers[0], 0)),)
    return (iterations(numbers[0], ratio),) if form else ()


_PLAIN = (
    "fgsm", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "apgd_ce5", "apgd_dlr5", "fab5",
    "nattack", "nattack_official", "md", "md_t", "odi", "transfer", "unbounded",
    "budget_pgd10", "budget_margin50", "budget_apgd_ce",
)  # fmt: skip


def _named(name: str, setting: Setting) -> tuple[Entry, ...]:
    if name in CASCADES:
        return cascade(name, setting)
    if name not in _PLAIN:
        return ()
    if name == "fgsm":
        return (plain(name, "FGSM", FGSM(), (1, 1), everywhere=True),)
    if name.startswith("budget_"):
        return (budgets(name.removeprefix("budget_"), setting.step_ratio),)
    if name == "unbounded":
        return (unbounded(),)
    if name == "transfer":
        return transfer(setting)
    if name == "odi":
        odi = ODI(step_ratio=setting.step_ratio)
        passes = odi.restarts * (odi.odi_steps + odi.steps)
        return (plain(name, f"ODI-PGD {odi.restarts}×{odi.steps}", odi, (passes + 2 * odi.restarts, passes)),)
    if name in ("nattack", "nattack_official", "md", "md_t") and setting.norm != "linf":
        raise DemiluneError(
            f"attack {name!r} is linf only, and the ball is {setting.norm}: leave it out, or --ball.norm linf"
        )
    if name.startswith("nattack"):
        return (nattack(name, "margin" if name == "nattack" else "official_scalar"),)
    if name.startswith("md"):
        targets = min(9, setting.classes - 1)
        of = MarginDecomposition(targets=targets if name == "md_t" else 0)
        passes = 2 * of.steps * max(1, of.targets)
        title = f"Margin decomposition, {targets} targets" if of.targets else "Margin decomposition"
        return (plain(name, title, of, (passes + 2 * max(1, of.targets) + 1, passes)),)
    part = components(setting)[name]
    return (plain(name, f"{part.title} alone", part.of, part.cost, note=part.note),)


def transfer(setting: Setting) -> tuple[Entry, ...]:
    """Return the attack with what breaks other models (attacks.md 8); refuses to go without one."""
    if not setting.sources:
        raise DemiluneError(
            "attack 'transfer' needs models to transfer from: name them, as --sources runs/sat,runs/trades"
        )
    sources = tuple(Counted(model) for model in setting.sources.values())
    attack = PGD(20, step_ratio=0.25)
    of = Transfer(sources, attack)
    title, steps = f"Transfer from {', '.join(setting.sources)}", len(sources) * attack.steps
    made = plain("transfer", title, of, (steps + len(sources), steps))
    told = f"Transfer(sources=({', '.join(setting.sources)}), attack={of.attack!r})"  # networks would fill pages
    return (replace(made, identity=repr(sorted(setting.files.items())), told=told, beside=sources),)


_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(/\d+\.?\d*)?", re.ASCII)


def _changed(one: Entry, name: str, change: str, norm: Norm) -> Entry:
    """Return an entry with one modifier."""
    key, _, value = change.partition("=")
    over, _, under = value.partition("/")
    number = float(over) / float(under or 1) if _NUMBER.fullmatch(value) and float(under or 1) else float("nan")
    if key == "eps" and one.name == "unbounded":
        raise DemiluneError(f"attack {name!r}: it takes all of [0,1], whatever the radius: leave @{change} out")
    if key == "eps" and number > 0:
        try:
            Ball(norm, number)
        except DemiluneError as error:
            raise DemiluneError(f"attack {name!r}: {error}") from None
        return at(one, number, value)
    if key == "scale" and 0 < number < 1e6 and isinstance(one.of, IterativeAttack) and len(one.titles) == 1:
        row, title = f"{one.name}@scale={value}", f"{one.titles[one.name]}, logits × {value}"
        scaled = plain(row, title, Rescaled(number, one.of), one.cost, note=one.note)
        return replace(scaled, role="part", most=one.most)
    if key == "n" and re.fullmatch(r"[1-9]\d{0,9}", value, re.ASCII):
        return replace(one, most=int(value))
    raise DemiluneError(
        f"attack {name!r}: @{change} is none of @eps=8/255 (a radius), @scale=10 (of the logits of an iterative attack "
        "with one start) and @n=100 (a number of images)"
    )


def suite(names: Sequence[str], setting: Setting | None = None) -> tuple[Entry, ...]:
    """Return the entries of these names; refuses a row that two of them would fill."""
    entries = tuple(one for name in names for one in entry(name, setting))
    seen: set[str] = set()
    for one in entries:
        twice = seen & set(one.titles)
        if twice:
            raise DemiluneError(f"attacks {', '.join(names)} fill the row {min(twice)!r} twice: leave one out")
        seen |= set(one.titles)
    if not entries:
        raise DemiluneError("no attack was named: give some, as fgsm,pgd10,multi9x30")
    return entries


__all__ = ["STANDARD", "Entry", "Setting", "entry", "plain", "suite"]
