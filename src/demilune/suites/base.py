"""What a suite is: the cells of a published table or figure as one frozen value, and the runs they come to here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from demilune.core.geometry import Norm
from demilune.errors import DemiluneError, unknown
from demilune.experiment import VARIANTS, Experiment, build, name_of, plain, table_of
from demilune.options import flat, nested, overlaid
from demilune.presets import PRESETS, SHORT
from demilune.schedules import Piecewise, Triangular

Fields = Mapping[str, Any]
"""Fields of an experiment by dotted name, as {"method.mass_low": 0.3}."""

Kind = Literal["evaluation", "curve", "training", "pace", "plane", "probe"]

FIRST = "first"

QUICK_WIDTH, QUICK_EPOCHS, QUICK_IMAGES = 16, 15, 200
"""Our own short schedule for the embedded digits: channels, epochs, and test images at most."""

SCHEDULES = ("paper", "usual", *SHORT, "quick")
"""Lengths of training: the paper's own; that of the digits' presets; our short ones; the digits' shortest."""


@final
@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked of a trained network, or of its training.

    kind: evaluation (``names`` are attacks), curve (``names`` is one kind of `demilune curves`), training (the epochs'
        metrics), pace (seconds of a training step, relative to the first line's), plane (RAT's Fig. 1; ``names`` is
        the image's id, or FIRST for the first that fits), probe (``names`` is one of `suites.probe`)
    names: what of that kind
    limit: so many test images at most, 0 for all
    small: what is asked in their place on the digits; empty for the same
    """

    kind: Kind
    names: tuple[str, ...] = ()
    limit: int = 0
    small: tuple[str, ...] = ()

    def told(self) -> str:
        """Return it in a few words."""
        return " ".join([self.kind, ",".join(self.names)]).strip() + (f" n{self.limit}" if self.limit else "")


@final
@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table, or one curve of a figure: a network that is trained.

    label: as the table has it
    row: the presets' last word: sat, rat, trades-rwp, …
    changes: fields that differ from the preset's
    theirs: fields by which papers/ knows the published line; empty where there is none
    headline: whether the paper's claim rests on it; such lines come first
    only: data sets it can be had on; empty for all
    """

    label: str
    row: str
    changes: Fields = field(default_factory=dict)
    theirs: Fields = field(default_factory=dict)
    headline: bool = False
    only: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """What a paper says, as a comparison of two lines by one row of the evaluation, or of their gaps.

    ``more`` is claimed to be above ``less``; an empty one is the best, or worst, of the others.
    """

    text: str
    more: str
    less: str
    row: str


@final
@dataclass(frozen=True, slots=True)
class Suite:
    """The cells of a table or figure, how they are laid out, and what they are set against.

    name: paper/what
    title: what it shows, in one line
    lines: the networks
    asks: what is asked of each
    data: data sets of the paper, the usual first; ``digits`` can always be had
    columns: rows of an evaluation that make the table, in order; empty where a figure alone is made
    table: the published table's number in papers/, or the name of others' figures there; 0 for none
    figures: curves that are drawn
    claims: what the paper says
    notes: what has to be said besides the notes of the published table
    norms: the balls it is made for
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    asks: tuple[Ask, ...]
    data: tuple[str, ...] = ("cifar10",)
    columns: tuple[str, ...] = ()
    table: int | str = 0
    figures: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ("linf",)

    @property
    def paper(self) -> str:
        """The paper's name in papers/."""
        return self.name.partition("/")[0]


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """How a suite is run here.

    data, schedule: empty for the suite's first data set, and for its longest schedule
    net: a network's name in place of the preset's, empty for that
    norm: the ball's norm
    seeds: how many, from 0 on
    limit: test images, 0 for as many as the suite asks
    checkpoint: which of a run is asked
    image: the test image of a plane, None for one that fits
    fields: fields of all experiments, by section, laid over everything else
    """

    data: str = ""
    schedule: str = ""
    net: str = ""
    norm: Norm = "linf"
    seeds: int = 1
    limit: int = 0
    checkpoint: Literal["best", "last"] = "best"
    image: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Cell:
    """A trained network, and one thing asked of it.

    ``reference`` is the experiment of the paper's own setting for the same line, None where there is none;
    ``trained`` is the key of the network: equal for equal trainings, whatever they are called.
    """

    suite: str
    line: Line
    seed: int
    experiment: Experiment
    ask: Ask
    checkpoint: str
    trained: str
    reference: Experiment | None


Presets = Callable[[str, str, Norm], tuple[str, Fields]]
"""(row, data, norm) -> a paper's preset for its own schedule, and what has to be changed in it."""

TEST_IMAGES = {
    "digits": 500,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "svhn": 26_032,
    "mnist": 10_000,
    "imagenette": 3_925,
}
TRAIN_IMAGES = {
    "digits": 1_297, "cifar10": 50_000, "cifar100": 50_000, "svhn": 73_257, "mnist": 60_000, "imagenette": 9_469,
}  # fmt: skip
"""Sizes of the published data sets, validation images included."""

DIGITS_L2 = 0.6
"""ε in l2 on the digits: half of what the linf ball of 0.15 reaches into a corner; ours."""


def settled(suite: Suite, choice: Choice) -> Choice:
    """Return a choice with data and schedule filled in; refuses what the suite cannot be run on."""
    data = choice.data or suite.data[0]
    if data not in (*suite.data, "digits"):
        raise unknown(f"data of {suite.name}", data, dict.fromkeys((*suite.data, "digits")))
    schedule = choice.schedule.lower() or ("usual" if data == "digits" else "paper")
    if schedule not in SCHEDULES:
        raise unknown("schedule", choice.schedule, SCHEDULES)
    if schedule == "paper" and data == "digits":
        raise DemiluneError("schedule paper on digits: no paper has them; possible are usual, quick, s15, s30, …")
    if schedule in ("quick", "usual") and data != "digits":
        raise DemiluneError(f"schedule {schedule} is for the digits: on {data} take paper, s15, s30, p40 or p75")
    if choice.norm not in suite.norms:
        raise unknown(f"norm of {suite.name}", choice.norm, suite.norms)
    if choice.seeds < 1:
        raise DemiluneError(f"--seeds {choice.seeds}: it is a number of seeds, 1 or more")
    if choice.limit < 0:
        raise DemiluneError(f"--limit {choice.limit}: it is a number of test images, 0 for as many as the suite asks")
    if choice.image is not None and (choice.image < 0 or all(ask.kind != "plane" for ask in suite.asks)):
        raise DemiluneError(f"--image {choice.image}: it is the id of a test image, 0 or more, of a plane (rat/fig1)")
    return replace(choice, data=data, schedule=schedule)


def cells(suite: Suite, choice: Choice, presets: Presets) -> tuple[Cell, ...]:
    """Return the suite's cells here, seed by seed and line by line."""
    choice = settled(suite, choice)
    lines = [line for line in suite.lines if not line.only or choice.data in line.only]
    each = [(line, experiment_of(line, choice, presets), reference_of(line, choice, presets)) for line in lines]
    asks = [asked_here(ask, choice) for ask in suite.asks]
    found = []
    for seed in range(choice.seeds):
        for line, plain_, reference in each:
            experiment = replace(plain_, seed=seed, name=called(line, seed))
            key = trained_key(experiment)
            found += [Cell(suite.name, line, seed, experiment, ask, choice.checkpoint, key, reference) for ask in asks]
    return tuple(found)


def asked_here(ask: Ask, choice: Choice) -> Ask:
    """Return what is asked under a choice: less on the digits, and of fewer images where it says so."""
    if choice.data == "digits":
        ask = replace(ask, names=ask.small or ask.names)
    if ask.kind == "plane":
        return ask if choice.image is None else replace(ask, names=(str(choice.image),))
    if ask.kind in ("training", "pace"):
        return ask
    if choice.schedule == "quick":
        ask = replace(ask, limit=min(ask.limit or QUICK_IMAGES, QUICK_IMAGES))
    names = tuple(name for name in ask.names if choice.norm == "linf" or name.split("@")[0] not in LINF_ONLY)
    limit = min(choice.limit, ask.limit or choice.limit) if choice.limit else ask.limit
    return replace(ask, names=names, limit=0 if limit >= TEST_IMAGES[choice.data] else limit)


LINF_ONLY = ("nattack", "nattack_official", "md", "md_t")


def called(line: Line, seed: int) -> str:
    """Return what the run of a line is called: its row, what differs from the preset, its seed."""
    told = [f"{name.rpartition('.')[2]}={_word(value)}" for name, value in line.changes.items() if name != "move.name"]
    move = line.changes.get("move.name")
    words = [line.row + (f"-{move}" if move else ""), *told, *([f"seed {seed}"] if seed else [])]
    return " ".join(words)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def experiment_of(line: Line, choice: Choice, presets: Presets) -> Experiment:
    """Return a line's experiment: preset, schedule, norm, line, network and fields laid one over the other."""
    row, data, short = line.row, choice.data, choice.schedule
    base, more = _preset(row, choice, presets)
    found = changed(base, more)
    if short in SHORT and not base.name.startswith(f"{short}-"):
        epochs, schedule = SHORT[short]
        if data == "svhn":  # where the papers' own rates are a tenth of CIFAR's
            assert isinstance(schedule, Piecewise | Triangular)
            schedule = replace(schedule, rate=schedule.rate / 10)
        found = rescheduled(replace(found, schedule=schedule), {"steps": 0, "epochs": epochs, "weight_decay": 5e-4})
    if short == "quick":
        # Threads of a tiny network wait for each other more than they work.
        found = changed(found, {"model.width": QUICK_WIDTH, "runtime.threads": 1})
        found = rescheduled(found, {"epochs": QUICK_EPOCHS})
    if choice.norm == "l2" and data == "digits":
        found = changed(found, {"ball.norm": "l2", "ball.eps": DIGITS_L2})
    found = changed(found, line.changes)
    if choice.net:
        if choice.net not in VARIANTS["model"]:
            raise unknown("net", choice.net, VARIANTS["model"])
        found = changed(found, {"model.name": choice.net})
    return over(found, choice.fields)


def _preset(row: str, choice: Choice, presets: Presets) -> tuple[Experiment, Fields]:
    """Return the preset nearest to a row under a choice, and what has to be changed in it.

    A row with a move, of which there is no preset, is the plain row's with that move, at the papers' γ.
    """
    data, short = choice.data, choice.schedule
    base, _, move = row.partition("-")
    ours = "digits" if data == "digits" else f"{short}-{data}" if short in SHORT and choice.norm == "linf" else ""
    if f"{ours}-{row}" in PRESETS:
        return PRESETS[f"{ours}-{row}"].experiment, {}
    if move in VARIANTS["move"] and f"{ours}-{base}" in PRESETS:
        gentle = base.startswith(("trades", "taylor", "rst"))
        return PRESETS[f"{ours}-{base}"].experiment, {
            "move.name": move, "move.gamma": 0.005 if gentle else 0.01,
        }  # fmt: skip
    if ours != "digits":
        name, more = presets(row, data, choice.norm)
        if name in PRESETS:
            return PRESETS[name].experiment, more
    raise DemiluneError(
        f"{row} cannot be had on {data}{' in l2' if choice.norm == 'l2' else ''}: there is no preset of it; "
        "demilune list presets shows them, and --data names other images"
    )


_PLACES = ("data.root", "data.unverified")


def over(found: Experiment, fields: Mapping[str, Any]) -> Experiment:
    """Return an experiment with the fields of a choice, its beginnings moved with the number of epochs."""
    training, own = fields.get("training", {}), plain(found)["data"]
    rest = flat({section: value for section, value in fields.items() if section != "training"})
    # Where data lie is asked of all data sets alike, and the embedded one lies nowhere.
    rest = {k: v for k, v in rest.items() if k not in _PLACES or k.partition(".")[2] in own}
    return rescheduled(changed(found, rest), training)


def rescheduled(found: Experiment, training: Mapping[str, Any]) -> Experiment:
    """Return an experiment trained for longer or shorter; what begins at some epoch begins at the same share of it."""
    if not training:
        return found
    before = found.training.epochs
    tree = plain(found)
    tree["training"] = overlaid(tree["training"], training)
    after = tree["training"]["epochs"]
    for section, name in (("method", "begin"), ("move", "warmup")):
        if tree[section].get(name):
            moved = round(tree[section][name] * after / before)
            tree[section][name] = min(moved, after - 1) if not tree["training"]["steps"] else moved
    return build(Experiment, tree)


def changed(found: Experiment, fields: Fields) -> Experiment:
    """Return an experiment with other fields; naming another class brings that class's own defaults."""
    if not fields:
        return found
    tree = plain(found)
    given = nested(fields)
    for section, table in VARIANTS.items():
        name = given.get(section, {}).get("name")
        if name is not None and name != tree[section]["name"]:
            if name not in table:
                raise unknown(section, name, table)
            tree[section] = plain(build(table[name], {}))
    return build(Experiment, overlaid(tree, given))


def reference_of(line: Line, choice: Choice, presets: Presets) -> Experiment | None:
    """Return the experiment of the paper's own setting for the line, None where there is none."""
    if choice.data == "digits":
        return None
    name, more = presets(line.row, choice.data, choice.norm)
    return changed(PRESETS[name].experiment, {**more, **line.changes}) if name in PRESETS else None


# --- identity --------------------------------------------------------------------------------------------------------


def identity(experiment: Experiment) -> dict[str, Any]:
    """Return what a training is, and nothing else: fields at their defaults are left out, so that a new field with the
    old behaviour as its default changes no key; so are the name, where data lie, the runtime and how often it is saved.
    """
    tree = _minimal(experiment)
    for name in ("name", "runtime"):
        tree.pop(name, None)
    for section, names in (("data", ("root", "unverified")), ("training", ("checkpoint_every",))):
        for name in names:
            tree.get(section, {}).pop(name, None)
    if tree.get("training") == {}:
        del tree["training"]
    return tree | {"seed": experiment.seed}


def _minimal(value: Any) -> dict[str, Any]:
    """Return the fields of a frozen value that are not at their defaults; one that a table names carries its name."""
    found: dict[str, Any] = {"name": name_of(value)} if table_of(type(value)) else {}
    for one in dataclasses.fields(value):
        held = getattr(value, one.name)
        default = one.default
        if default is dataclasses.MISSING and one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        if default is dataclasses.MISSING or held != default:
            found[one.name] = _minimal(held) if dataclasses.is_dataclass(held) else held
    return found


def trained_key(experiment: Experiment) -> str:
    """Return the key of a training, 12 hexadecimal digits: equal for equal trainings, whatever they are called."""
    return hashlib.sha256(json.dumps(identity(experiment), sort_keys=True).encode()).hexdigest()[:12]


def slug(experiment: Experiment) -> str:
    """Return the beginning of a folder's or a file's name: data, network, run."""
    words = f"{name_of(experiment.data)}-{name_of(experiment.model)}-{experiment.name}"
    return re.sub(r"[^\w.=-]+", "-", words).strip("-")[:80]
