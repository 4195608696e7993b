"""Pages that set what was measured beside what was published: values in, Markdown and HTML out, without torch.

A line of a suite comes with the records of its network, seed by seed. What is not the paper's setting is said to be so,
and no difference is drawn.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np

from demilune.ledger import Record, images_of
from demilune.paired import LEVEL, paired
from demilune.report import curves, theme, verdicts
from demilune.report.curves import Curve, Gap, Numbers
from demilune.report.figures import Drawing
from demilune.results import Row, Verdict, standard_error
from demilune.surveys import Curvature, Direction, Landscape, Survey

CLEAR = 2.0
"""So many standard errors of the images make a difference; of seeds it takes more, see :attr:`Number.margin`."""

SEVERITY = ("masked", "overestimated", "believable", "not examined")
"""Kinds of verdicts, the worst first; what settles nothing stands last."""

TITLES = {
    "clean": "Clean", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd20": "PGD-20", "pgd100": "PGD-100", "cw10": "CW∞-10",
    "cw20": "CW∞-20", "cw100": "CW∞-100", "nattack": "NATTACK", "multi9x30": "Multi-targeted", "apgd_t": "APGD-T",
    "square": "Square", "autoattack": "AutoAttack", "corruption.mean": "mean", "pace": "minutes",
    "pace.relative": "relative",
}  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """One line: its name, the published figures in percent by row, and the records of its network for each seed.

    ``departures`` say in what the training is not the paper's; None where the paper has no such setting.
    """

    label: str
    theirs: Mapping[str, float]
    seeds: tuple[tuple[Record, ...], ...]
    departures: tuple[str, ...] | None

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, of all seeds."""
        return tuple(one for records in self.seeds for one in records)

    @property
    def by_seed(self) -> dict[int, tuple[Record, ...]]:
        """The records by the seed of their training: of two lines those of one seed belong together."""
        return {int(records[0].experiment.get("seed", 0)): records for records in self.seeds if records}


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A claim to be looked at: what it says, and that one line is above another in a row; empty for the best other.

    ``lines`` are the labels that a claim against all others is about; one of them that was not measured leaves the
    claim open.
    """

    text: str
    more: str
    less: str
    row: str
    points: float | None
    lines: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Sheet:
    """All that a page says of one suite in one setting.

    ``source`` is the published table or figure, empty where there is none; ``notes`` the paper's contradictions and
    what else must be said; ``left`` the cells that are missing; ``images`` the published numbers of test images.
    """

    title: str
    setting: str
    source: str
    lines: tuple[Shown, ...]
    columns: tuple[str, ...]
    figures: tuple[str, ...] = ()
    claims: tuple[Asked, ...] = ()
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Number:
    """A rate, or a difference of two, over k seeds.

    value: its mean over the seeds
    image: the binomial (or paired) standard error of one seed; the images are the same for all seeds
    spread: sd/√k over the seeds; 0 for one seed, whose training nobody knows the spread of
    sizes: how many images, each number that occurs once, ascending
    seeds: k
    """

    value: float
    image: float
    spread: float
    sizes: tuple[int, ...]
    seeds: int

    @property
    def error(self) -> float:
        """The standard error: of images and seeds in quadrature."""
        return math.hypot(self.image, self.spread)

    @property
    def margin(self) -> float:
        """How far from a value is clear: two errors of the images, t of k - 1 degrees of the spread, in quadrature."""
        return math.hypot(CLEAR * self.image, student(self.seeds - 1) * self.spread if self.seeds > 1 else 0.0)

    @property
    def n(self) -> int:
        """The fewest images of a seed."""
        return self.sizes[0]


Block: TypeAlias = str | Numbers | Drawing
"""A paragraph (or a heading that begins with #, a list item with -, a [link](file)), a table, or a figure."""


# --- numbers ---------------------------------------------------------------------------------------------------------


def rate(row: Row) -> float:
    """Return an accuracy as the papers count it: right after the attack, whatever the clean verdict was."""
    return row.accuracy if row.accuracy_after is None else row.accuracy_after


def student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t: 12.7 for two seeds, 4.3 for three."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - LEVEL / 2))


def over_seeds(found: Sequence[Number]) -> Number:
    """Return the mean of one number for each seed, with the seeds' spread beside the images' error."""
    k = len(found)
    spread = statistics.stdev(one.value for one in found) / math.sqrt(k) if k > 1 else 0.0
    image = statistics.fmean(one.image for one in found)
    sizes = tuple(sorted({n for one in found for n in one.sizes}))
    return Number(statistics.fmean(one.value for one in found), image, spread, sizes, k)


def best_row(records: Sequence[Record], name: str) -> tuple[Record, Row] | None:
    """Return the row of that name with the most images."""
    found = [(one, row) for one in records if one.kind in ("evaluation", "curve") and (row := one.row(name))]
    tests = [(one, row) for one, row in found if not one.what.endswith(("-train", "-validation"))]
    return max(tests, key=lambda pair: (pair[1].n, pair[0].kind == "evaluation"), default=None)


def single(records: Sequence[Record], name: str) -> Number | None:
    """Return what one seed's records say of a row, or of what is made of rows: gaps and means under corruptions."""
    found = sourced(records, name)
    return None if found is None else found[0]


def sourced(records: Sequence[Record], name: str) -> tuple[Number, tuple[Record, ...]] | None:
    """Return one seed's number, and the records that it was taken from."""
    if name.startswith("gap:"):
        row = name.removeprefix("gap:")
        sides = [next((one for one in records if one.what == what), None) for what in ("gaps-train", "gaps")]
        if sides[0] is None or sides[1] is None:
            return None
        train, test = sides[0].row(row), sides[1].row(row)
        if train is None or test is None:
            return None
        error = math.hypot(train.error, test.error)
        return Number(train.accuracy - test.accuracy, error, 0.0, (test.n,), 1), (sides[0], sides[1])
    if name.startswith("corruption.") and name.count(".") == 1:
        kind = name.partition(".")[2]
        kinds = curves.TWELVE if kind == "mean" else (kind,)
        for one in records:
            if one.what == "corruptions" and one.evaluation is not None:
                value = curves.mean(one.evaluation, kinds)
                if not math.isnan(value):
                    return Number(value, standard_error(value, one.n), 0.0, (one.n,), 1), (one,)
        return None
    if name in ("pace", "pace.relative"):
        field_ = "minutes" if name == "pace" else "relative"
        taken = next((one for one in records if one.kind == "pace"), None)
        return None if taken is None else (Number(float(taken.found[field_]), 0.0, 0.0, (0,), 1), (taken,))
    found = best_row(records, name)
    if found is None:
        return None
    value, n = rate(found[1]), found[1].n
    return Number(value, standard_error(value, n), 0.0, (n,), 1), (found[0],)


def number(line: Shown, name: str) -> Number | None:
    """Return a line's number over its seeds."""
    found = [one for records in line.seeds if (one := single(records, name)) is not None]
    return over_seeds(found) if found else None


def apart(first: Shown, second: Shown, name: str) -> tuple[Number, bool] | None:
    """Return first - second in a row over the seeds both have, and whether it is paired by image.

    A seed of the one is compared with the same seed of the other. Paired differences are of the strict accuracies,
    right clean and after the attack.
    """
    found, by_image = list[Number](), True
    others = second.by_seed
    for seed, one in first.by_seed.items():
        other = others.get(seed, ())
        pair = _paired(one, other, name)
        a, b = single(one, name), single(other, name)
        if pair is not None:
            found.append(pair)
        elif a is not None and b is not None:
            found.append(Number(a.value - b.value, math.hypot(a.image, b.image), 0.0, (min(a.n, b.n),), 1))
            by_image = False
    if not found:
        return None
    return over_seeds(found), by_image


def _paired(first: Sequence[Record], second: Sequence[Record], name: str) -> Number | None:
    """Return a paired difference where both saw the same images of the same data."""
    pairs = []
    for one in first:
        for other in second:
            same = one.data["sha256"] == other.data["sha256"] and one.bits.get("ids") == other.bits.get("ids")
            if not (same and name in one.bits and name in other.bits and one.bits.get("ids")):
                continue
            a, b = images_of(one), images_of(other)
            here = a.get(f"place.{name}", np.arange(one.n))
            if np.array_equal(here, b.get(f"place.{name}", np.arange(other.n))):
                pairs.append(paired(a[f"right.{name}"], b[f"right.{name}"]))
    if not pairs:
        return None
    most = max(pairs, key=lambda pair: pair.n)
    # one image more than McNemar's error counts, which is zero where nothing differs
    return Number(most.value, math.hypot(most.error, 1.0 / most.n), 0.0, (most.n,), 1)


def same_setting(line: Shown, name: str, images: Mapping[str, int]) -> list[str]:
    """Return why a line's number is not the published one's equal; empty where it may be compared."""
    if line.departures is None:
        return ["no paper has this setting"]
    said = list(line.departures)
    if any(not one.data["official"] for one in line.records):
        said.append("data: not the official files")
    found = number(line, name)
    wanted = images.get(name, images.get("", 0))
    if found is not None and wanted and found.sizes != (wanted,):
        said.append(f"test images: {counts(found.sizes)}, not {wanted:,}")
    elif found is not None and len(found.sizes) > 1:
        said.append(f"seeds of different numbers of test images: {counts(found.sizes)}")
    return said


def counts(sizes: Sequence[int]) -> str:
    """Return numbers of images as text."""
    return ", ".join(f"{n:,}" for n in sizes)


# --- what is said ----------------------------------------------------------------------------------------------------


def claimed(claim: Asked, lines: Sequence[Shown]) -> tuple[str, str, str, str, str]:
    """Return a claim's row of the page: what it says, the paper's points, ours, of how many seeds, and if it holds.

    A claim against all others holds only where all of them were measured; one that was is enough to refute it.
    """
    named = {line.label: line for line in lines}
    theirs = theme.NONE if claim.points is None else f"{claim.points:+.2f}".replace("-", theme.MINUS)
    ends = [named.get(claim.more), named.get(claim.less)]
    all_others = [name for name in dict.fromkeys((*claim.lines, *named)) if name not in (claim.more, claim.less)]
    others = [named[name] for name in all_others if name in named and number(named[name], claim.row) is not None]
    if not claim.more and others and ends[1]:  # everybody is claimed to lie above it
        ends[0] = min(others, key=lambda line: _value(line, claim.row))
    if not claim.less and others and ends[0]:
        ends[1] = max(others, key=lambda line: _value(line, claim.row))
    found = apart(ends[0], ends[1], claim.row) if ends[0] is not None and ends[1] is not None else None
    if found is None or ends[0] is None or ends[1] is None:
        both = all(end is not None and number(end, claim.row) is not None for end in ends)
        told = "not compared: no seed in common" if both else "not measured"
        return claim.text, theirs, theme.NONE, theme.NONE, told
    one, by_image = found
    against_all = not (claim.more and claim.less)
    against = f" against {(ends[0] if not claim.more else ends[1]).label}" if against_all else ""
    ours = f"{theme.signed(one.value)} ± {theme.percent(one.error)}{against}{'' if by_image else ' (not paired)'}"
    measured = {line.label for line in others}
    missing = [name for name in all_others if name not in measured] if against_all else []
    return claim.text, theirs, ours, str(one.seeds), _holds(one, missing)


def _holds(one: Number, missing: Sequence[str]) -> str:
    """Say whether a difference is above zero; of one seed it is known of its trainings only."""
    here = "for this one seed" if one.seeds == 1 else "here"
    if one.seeds > 1 and len(one.sizes) > 1:
        return f"not compared: seeds of different numbers of images ({counts(one.sizes)})"
    if one.value < -one.margin:
        return f"does not hold {here}"
    if missing:
        return f"not decided: {', '.join(missing)} missing"
    if one.value > one.margin:
        return f"holds {here}"
    if one.seeds == 1:
        return "not decided: within 2 standard errors"
    return f"not decided: within ± {theme.percent(one.margin)}, the 95 % margin of {one.seeds} seeds"


def _value(line: Shown, row: str) -> float:
    found = number(line, row)
    return math.nan if found is None else found.value


def verdict(line: Shown) -> str:
    """Return the doctor's verdicts on a line, of each seed the worst that was settled; all that occur, worst first."""
    found = [told for records in line.seeds if (told := _judged(records)) is not None]
    if not found:
        return theme.NONE
    ranked = sorted((one for _, one in found), key=lambda one: SEVERITY.index(one.kind))
    said = [verdicts.short(one) for one in ranked]
    alike = dict.fromkeys(said)
    if len(alike) == 1:
        return said[0]
    return "; ".join(f"{text} ({said.count(text)} of {len(line.seeds)} seeds)" for text in alike)


def _judged(records: Sequence[Record]) -> tuple[Record, Verdict] | None:
    """Return the worst verdict of one seed, and the evaluation it is of; of equal kinds the strongest attacks'."""
    judged = [(one, told.verdict) for one in records if one.kind == "evaluation" and (told := one.evaluation)]
    found = [(one, verdict_) for one, verdict_ in judged if verdict_ is not None]
    return min(
        found,
        key=lambda pair: (SEVERITY.index(pair[1].kind), "at least" in pair[1].text, -pair[0].n, -len(pair[0].rows)),
        default=None,
    )


def table(sheet: Sheet) -> Numbers | None:
    """Return the table: for each line the published figures, ours, and, where they may be, their difference."""
    shown = [name for name in sheet.columns if any(name in one.theirs or number(one, name) for one in sheet.lines)]
    if not shown:
        return None
    lines = []
    for one in sheet.lines:
        if one.theirs:
            lines.append((one.label, "published", *(_theirs(one, name) for name in shown), ""))
        if not any(number(one, name) for name in shown):
            lines.append((one.label, "ours: missing", *[theme.NONE] * len(shown), ""))
            continue
        found = [number(one, name) for name in shown]
        seeds = max((each.seeds for each in found if each), default=0)
        told = "ours" if seeds == 1 else f"ours, {seeds} seeds"
        usual = next(((each.sizes, seeds) for each in found if each), ((0,), seeds))
        ours = (_ours(name, each, *usual) for name, each in zip(shown, found, strict=True))
        lines.append((one.label, told, *ours, verdict(one)))
        differing = [_difference(sheet, one, name, each) for name, each in zip(shown, found, strict=True)]
        if any(differing):
            of = "one seed" if seeds == 1 else f"{seeds} seeds"
            lines.append((one.label, f"ours − published, in standard errors, {of}", *differing, ""))
    note = (
        "Accuracy in % ± standard error: the binomial one and, of several seeds, their sd/√k, in quadrature; that of "
        "one seed is of its images alone, and says nothing of other trainings. As the papers count, right after the "
        "attack whatever the clean verdict was; of multi-targeted attacks and AutoAttack, right clean too. All are "
        "upper bounds on robust accuracy."
    )
    if "pace" in shown:
        note = "1,000 training steps. The relative time is the median over steps taken in turn with the first line's."
    taken = [each for one in sheet.lines for name in shown if (each := number(one, name))]
    sizes = sorted({n for each in taken for n in each.sizes if n})
    counted = f" n = {counts(sizes)}." if sizes else ""
    heads = ("", "", *(TITLES.get(name, name.removeprefix("corruption.").replace("_", " ")) for name in shown))
    return Numbers((*heads, "verdict"), tuple(lines), note + counted)


def _theirs(line: Shown, name: str) -> str:
    return f"{line.theirs[name]:.2f}" if name in line.theirs else theme.NONE


def _ours(name: str, found: Number | None, sizes: tuple[int, ...], seeds: int) -> str:
    """Return a cell of ours; where its images or its seeds are not the line's own it says which."""
    if found is None:
        return theme.NONE
    if name.startswith("pace"):
        return f"{found.value:.3g}"
    apart_ = [f"n {counts(found.sizes)}"] if found.sizes != sizes or len(sizes) > 1 else []
    apart_ += [f"{found.seeds} of {seeds} seeds"] if found.seeds != seeds else []
    told = f" ({', '.join(apart_)})" if apart_ else ""
    return f"{theme.percent(found.value, 2)} ± {theme.percent(found.error, 2)}{told}"


def _difference(sheet: Sheet, line: Shown, name: str, found: Number | None) -> str:
    """Return ours - published; the published figure's own error counts where it is of other images than ours."""
    if found is None or name not in line.theirs or name.startswith("pace") or same_setting(line, name, sheet.images):
        return ""
    apart_ = found.value - line.theirs[name] / 100.0
    sample = sheet.images.get(name, 0)
    theirs = standard_error(line.theirs[name] / 100.0, sample) if sample else 0.0
    error, margin = math.hypot(found.error, theirs), math.hypot(found.margin, CLEAR * theirs)
    told = "agrees" if abs(apart_) <= margin else "higher" if apart_ > 0 else "lower"
    size = f"{apart_ / error:+.1f} SE" if error else "no error known"
    return f"{100.0 * apart_:+.2f} ({size}), {told}".replace("-", theme.MINUS)


def departures(sheet: Sheet) -> list[str]:
    """Return the sentences that say whose setting the numbers are of, the same for several lines once."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for line in sheet.lines:
        if line.seeds:
            row = next((name for name in sheet.columns if number(line, name) is not None), "clean")
            alike.setdefault(tuple(same_setting(line, row, sheet.images)), []).append(line.label)
    said = []
    for reasons, labels in alike.items():
        of = "All lines" if len(alike) == 1 else ", ".join(labels)
        if reasons:
            said.append(f"{of}: **not the paper's setting, and not compared with it**: {'; '.join(reasons)}.")
        else:
            said.append(
                f"{of}: the published setting as far as it is known, but that the best checkpoint is chosen on "
                "training images held out for that."
            )
    return said


def provenance(sheet: Sheet) -> list[str]:
    """Return the sentences that say where the numbers shown come from: hardware, hours, the code's commits."""
    shown = {one.key: one for one in sources(sheet)}
    trained = [
        [one.trained for one in records if one.key in shown and one.trained][:1]
        for line in sheet.lines
        for records in line.seeds
    ]
    each, said = [one for first in trained for one in first], list[str]()
    if each:
        hours = sum(float(one.get("seconds", 0.0)) for one in each) / 3600
        networks = f"{len(each)} network{'' if len(each) == 1 else 's'}"
        told = _commits([str(one.get("commit", "")) for one in each])
        said.append(f"Trained on {_machines(each)}: {networks}, {hours:.2f} hours; {told}.")
    measured = [one for one in shown.values() if one.measured]
    if measured:
        hours = sum(float(one.measured.get("seconds", 0.0)) for one in measured) / 3600
        cells = f"{len(measured)} cell{'' if len(measured) == 1 else 's'}"
        told = _commits([one.commit for one in measured])
        said.append(f"Measured on {_machines([one.measured for one in measured])}: {cells}, {hours:.2f} hours; {told}.")
    return [" ".join(said)] if said else []


def sources(sheet: Sheet) -> list[Record]:
    """Return the records that a page shows: those of its table's numbers and verdicts, and of its figures."""
    found = list[Record]()
    for line in sheet.lines:
        for records in line.seeds:
            taken = [one for name in sheet.columns if (one := sourced(records, name)) is not None]
            found += [one for _, held in taken for one in held]
            judged = _judged(records) if taken else None
            found += [judged[0]] if judged is not None else []
        # figures are of the first seed
        found += [
            one for records in line.seeds[:1] for one in records if any(_draws(kind, one) for kind in sheet.figures)
        ]
    return list({one.key: one for one in found}.values())


def _draws(figure: str, one: Record) -> bool:
    """Say whether a figure is made of a record."""
    if one.kind in ("curve", "survey"):
        return one.what in (figure, f"{figure}-train")
    if one.kind == "training":
        return figure in ("region", "stationary")
    if one.kind == "probe":
        return figure == f"probe-{one.what}"
    return one.kind == figure or (one.kind == "evaluation" and figure == "crossed")


def _commits(found: Sequence[str]) -> str:
    """Return the commits, and of how many none is known."""
    known = [one[:7] + one[40:] for one in found if one]
    without = len(found) - len(known)
    if not known:
        return "commit not recorded"
    changed = " (+: with changes)" if any(one.endswith("+") for one in known) else ""
    told = f"commit {', '.join(dict.fromkeys(known))}{changed}"
    return told + (f", not recorded for {without} of {len(found)}" if without else "")


def _machines(found: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(dict.fromkeys(_hardware(one.get("environment", {})) for one in found))


def _hardware(about: Mapping[str, Any]) -> str:
    parts = [about.get("processor"), about.get("device")]
    torch = about.get("versions", {}).get("torch")
    return ", ".join(str(part) for part in (*parts, f"torch {torch}" if torch else None) if part) or "unknown hardware"


def crossed(lines: Sequence[Shown], rows: Sequence[str]) -> Numbers | None:
    """Return who is safe under A and broken by B, in % of all images, for every pair of attacks and every line."""
    found = []
    for line in lines:
        held = [one for records in line.seeds[:1] for one in records if one.kind == "evaluation"]
        for one in held:
            known = {name: right for name in rows if name != "clean" and (right := one.right(name)) is not None}
            if len(known) < len(rows) - 1:
                continue
            for first, a in known.items():
                cells = [
                    theme.NONE if first == second or second not in known else theme.percent(
                        float(np.mean(a & ~known[second])), 1
                    )
                    for second in rows
                    if second != "clean"
                ]  # fmt: skip
                found.append((line.label, f"safe under {TITLES.get(first, first)}", *cells))
    if not found:
        return None
    heads = tuple(f"broken by {TITLES.get(name, name)}" for name in rows if name != "clean")
    return Numbers(("", "", *heads), tuple(found), "In % of all images. The first seed of each line.")


# --- figures ---------------------------------------------------------------------------------------------------------


def figures(sheet: Sheet) -> list[Block]:
    """Return the figures that a suite asks for, as a report draws them; the first seed of each line."""
    firsts = [(line.label, line.seeds[0]) for line in sheet.lines if line.seeds]
    made: list[Block | None] = []
    for kind in sheet.figures:
        named = [Curve(label, found) for label, records in firsts if (found := _curve(records, kind)) is not None]
        if kind == "iterations":
            made.append(curves.iterations(named, kind))
        elif kind == "budgets":
            made.append(curves.budgets(named, kind))
        elif kind == "corruptions":
            made.append(curves.corruptions(named, kind))
        elif kind == "gaps":
            made.append(curves.gaps([gap for label, records in firsts if (gap := _gap(label, records))], kind))
        elif kind == "crossed":
            made.append(crossed(sheet.lines, sheet.columns))
        elif kind == "plane":
            made += [plane(label, one.found, f"plane-{i}") for i, (label, one) in enumerate(_of(firsts, "plane"))]
        elif kind == "region":
            made += [epochs(label, one.found["epochs"]) for label, one in _of(firsts, "training")]
        elif kind == "stationary":
            made.append(stationary(firsts))
        elif kind.startswith("probe-"):
            what = kind.removeprefix("probe-")
            probed = [(label, one) for label, one in _of(firsts, "probe") if one.what == what]
            if what == "margins":
                made += [agreement(label, one.found) for label, one in probed]
            elif probed:
                made.append(region(probed) if what == "region" else rise(sheet, probed))
        else:
            made += _surveyed(kind, firsts)
    return [one for one in made if one is not None]


def _of(firsts: Sequence[tuple[str, Sequence[Record]]], kind: str) -> list[tuple[str, Record]]:
    return [(label, one) for label, records in firsts for one in records if one.kind == kind][:12]


def _curve(records: Sequence[Record], what: str) -> Any:
    return next((one.evaluation for one in records if one.kind == "curve" and one.what == what), None)


def _gap(label: str, records: Sequence[Record]) -> Gap | None:
    train, test = _curve(records, "gaps-train"), _curve(records, "gaps")
    return None if train is None or test is None else Gap(label, train, test)


def _surveyed(kind: str, firsts: Sequence[tuple[str, Sequence[Record]]]) -> list[Block | None]:
    seen: list[tuple[str, Survey]] = [
        (label, one) for label, records in firsts for record in records if record.what == kind for one in record.surveys
    ]
    if kind == "direction":
        return [curves.direction([(label, one) for label, one in seen if isinstance(one, Direction)], kind)]
    if kind.startswith("landscape"):
        planes = [(label, one) for label, one in seen if isinstance(one, Landscape)]
        return [curves.landscape(planes, kind), curves.profile(planes, f"profile-{kind}")]
    return [curves.curvature([(label, one) for label, one in seen if isinstance(one, Curvature)])]


def epochs(label: str, found: Sequence[Mapping[str, Any]]) -> Numbers | None:
    """Return what RAT's region was like over the epochs, every tenth of them; an older run has no cosine."""
    noted = [line for line in found if isinstance(line.get("notes"), dict) and "found" in line["notes"]]
    if not noted:
        return None
    step = max(1, len(noted) // 10)
    some = [*noted[:-1][::step], noted[-1]]
    keys = (
        ("found", "share found"),
        ("tau", "mean τ"),
        ("first_to_end", "‖x_f − x_e‖/ε"),
        ("cosine", "cosine"),
        ("scale", "mean s"),
    )

    def told(line: Mapping[str, Any], key: str) -> str:
        value = line["notes"].get(key)
        return theme.NONE if value is None else f"{value:.3f}"

    lines = tuple((str(line["epoch"]), *(told(line, key) for key, _ in keys)) for line in some)
    return Numbers(("epoch", *(title for _, title in keys)), lines, f"{label}: means over an epoch of training.")


def stationary(firsts: Sequence[tuple[str, Sequence[Record]]]) -> Numbers | None:
    """Return robust overfitting by range of losses: best on test, last, the fall, the gap, and the chosen epoch."""
    lines = []
    for label, one in _of(firsts, "training"):
        watched = [line for line in one.found["epochs"] if line.get("test_robust") is not None]
        if not watched:
            continue
        n, last = watched[-1]["monitor_n"], watched[-1]
        top = max(watched, key=lambda line: line["test_robust"])
        chosen = next((line for line in reversed(watched) if line.get("best")), last)
        fall, gap = top["test_robust"] - last["test_robust"], last["train_robust"] - last["test_robust"]
        values = (top["test_robust"], chosen["test_robust"], last["test_robust"], fall, gap)
        error = theme.percent(standard_error(last["test_robust"], n))
        lines.append((label, *(theme.percent(value) for value in values), f"± {error} (n {n})"))
    if not lines:
        return None
    heads = ("range", "best on test", "chosen by validation", "last", "fall", "gap at the end", "standard error")
    note = (
        "Robust accuracy in %. Best on test is chosen on the images it is told for, hence optimistic. A large fall and "
        "gap are robust overfitting. demilune stationary draws the same over epochs."
    )
    return Numbers(heads, tuple(lines), note)


def region(found: Sequence[tuple[str, Record]]) -> Numbers:
    """Return how RAT's region is distributed around test images: who is fooled first when, and where x_f lies."""
    steps = len(found[0][1].found["tau"])
    heads = ("", "n", "found", *(f"τ = {t}" for t in range(1, steps + 1)), "‖x_f − x_e‖/ε", "cosine")
    lines = []
    for label, one in found:
        seen, n = one.found, one.n
        shares = [theme.percent(count / n) for count in (seen["found"], *seen["tau"])]
        spread = ["–" if None in seen[name] else " / ".join(f"{value:.2f}" for value in seen[name]) for name in SPREADS]
        lines.append((label, str(n), *shares, *spread))
    note = (
        "In % of n test images: those that an iterate before the last fools, and the first that does. Of these the "
        "10 %, 50 % and 90 % quantiles of the distance, and of the cosine between x_f − x and x_e − x."
    )
    return Numbers(heads, tuple(lines), note)


SPREADS = ("apart", "cosine")


def rise(sheet: Sheet, found: Sequence[tuple[str, Record]]) -> Numbers:
    """Return the adversarial loss at w and at w + v, by the size γ of v, beside the accuracies."""
    gammas = found[0][1].found["gammas"]
    shown = [name for name in sheet.columns if name != "clean"]
    heads = ("", "loss at w", *(f"rise at γ = {value:g}" for value in gammas), *(TITLES.get(k, k) for k in shown))
    lines = []
    for label, one in found:
        line = next(line for line in sheet.lines if line.label == label)
        beside = [_alone(k, number(line, k)) for k in shown]
        loss = one.found["loss"]
        lines.append((label, f"{loss:.3f}", *(f"{value - loss:+.3f}" for value in one.found["moved"]), *beside))
    note = (
        f"Mean cross-entropy in nats of PGD-10's points of {found[0][1].n} test images, made at w; v is AWP's offset "
        "that ascends it, of relative size γ. The first seed of each line; accuracies over seeds."
    )
    return Numbers(heads, tuple(lines), note)


def _alone(name: str, found: Number | None) -> str:
    return theme.NONE if found is None else _ours(name, found, found.sizes, found.seeds)


def agreement(label: str, found: Mapping[str, Any]) -> Numbers:
    """Return the rank correlations between attacks of images' margins."""
    names = [TITLES.get(name, name) for name in found["attacks"]]

    def told(value: float | None) -> str:
        return theme.NONE if value is None else f"{value:.2f}"

    lines = tuple(
        (name, *(f"{told(a)} ({told(b)})" for a, b in zip(whole, part, strict=True)))
        for name, whole, part in zip(names, found["rank"], found["rank_standing"], strict=True)
    )
    note = (
        f"{label}: Spearman's correlation of the highest margins max p_k − p_y that each attack reached, over the "
        f"{found['right']} of {found['images']} images that are right; in brackets over the {found['standing']} that "
        "survive all of them. APGD-T and Square leave an image once it is broken."
    )
    return Numbers(("", *names), lines, note)


def plane(label: str, found: Mapping[str, Any], name: str) -> Drawing:
    """Draw RAT's Fig. 1: the plane of an image, its first and its last adversarial point; class regions and loss.

    ``found``: ``a`` [A] and ``b`` [B] places along the orthonormal axes, in units of ε√d; ``classes`` and ``loss``
    [A][B]; ``points``, the places of clean, first and end by name; ``samples`` [S][2], with the label's mass ``mass``.
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    from demilune.report.figures import drawn

    names, label_ = found["names"], found["label"]
    seen = sorted({one for row in found["classes"] for one in row})
    lowest, highest = min(map(min, found["loss"])), max(map(max, found["loss"]))

    def draw(figure: Any) -> None:
        left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, sharey=None)
        hues = colormaps["tab20"]
        place = {one: i for i, one in enumerate(seen)}
        regions = [[place[one] for one in row] for row in found["classes"]]
        limits = BoundaryNorm([i - 0.5 for i in range(len(seen) + 1)], len(seen))
        left.pcolormesh(
            found["b"], found["a"], regions, cmap=hues.resampled(max(len(seen), 1)), norm=limits, shading="nearest",
            alpha=0.55,
        )  # fmt: skip
        right.pcolormesh(found["b"], found["a"], found["loss"], cmap="cividis", shading="nearest")
        for one, i in place.items():
            where = [
                (a, b)
                for a, line in zip(found["a"], regions, strict=True)
                for b, region in zip(found["b"], line, strict=True)
                if region == i
            ]
            a, b = (statistics.median(axis) for axis in zip(*where, strict=True))
            left.text(b, a, names[one], ha="center", va="center", fontsize=9, fontweight="bold", color="#000000")
        for axes in (left, right):
            for text, (a, b) in found["points"].items():
                axes.plot([b], [a], "o", color="#000000", markersize=4.5)
                axes.annotate(text, (b, a), xytext=(5, 4), textcoords="offset points", fontsize=8, color="#000000")
            axes.scatter(
                [b for _, b in found["samples"]], [a for a, _ in found["samples"]], c=found["mass"], cmap="Greys",
                vmin=0.0, vmax=1.0, s=9, linewidths=0.4, edgecolors="#000000",
            )  # fmt: skip
            axes.set_aspect("equal")
            axes.grid(visible=False)
        left.set_title("class regions: " + ", ".join(names[one] for one in seen), loc="left", fontsize=7)
        right.set_title(
            f"cross-entropy against the true class, {lowest:.2f} to {highest:.2f} nats", loc="left", fontsize=7
        )

    corners = "; ".join(f"{text} is taken for {names[one]}" for text, one in found["taken"].items())
    return drawn(
        name,
        f"{label}: the plane of test image {found['id']} ({names[label_]}), x, its first adversarial point x_f and its "
        "last x_e, axes in units of the distance ε√d. Dots: points that RAT draws from the region, the darker the more "
        "mass their label leaves the true class.",
        f"{label}: {corners}. Loss from {lowest:.2f} to {highest:.2f} nats.",
        (1.5 * theme.WIDTH, 3.6),
        draw,
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def blocks(sheet: Sheet, deep: int = 1) -> list[Block]:
    """Return a page from top to bottom; ``deep`` is the level of its heading."""
    head = "#" * deep
    made: list[Block] = [f"{head} {sheet.title}", sheet.setting]
    if sheet.source:
        made.append(f"Set against: {sheet.source}.")
    made += [*departures(sheet), *provenance(sheet)]
    found = table(sheet)
    made += [found] if found is not None else []
    asked = tuple(claimed(one, sheet.lines) for one in sheet.claims)
    asked = tuple(one for one in asked if one[-1] != "not measured") if deep > 1 else asked
    if asked:
        note = (
            "Points of accuracy ± standard error, paired by image (strict accuracy) where both saw the same images, "
            "and by seed. Clear is what exceeds two errors of the images and, of k seeds, the 97.5 % quantile of "
            "Student's t for k − 1 degrees times sd/√k, in quadrature. Of one seed only the images' error is known: "
            "what holds, holds for the trainings of that seed. What holds here holds in this setting."
        )
        heads = ("claim", "paper, points", "ours, points", "seeds", "here")
        made += [f"{head}# What is claimed", Numbers(heads, asked, note)]
    drawings = figures(sheet)
    made += drawings
    if sheet.notes:
        made += [f"{head}# Notes", *(f"- {one}" for one in sheet.notes)]
    if sheet.left:
        made += [f"{head}# Missing", *(f"- {one}" for one in sheet.left)]
    if sheet.commands:
        made += [f"{head}# Command", *(f"    {one}" for one in sheet.commands)]
    return made


def to_markdown(made: Sequence[Block], folder: str = "figures") -> str:
    """Return a page as Markdown; drawings are links to their SVGs in ``folder``, left out where that is empty."""
    parts: list[str] = []
    for one in made:
        if isinstance(one, Drawing):
            parts += [f"![{one.alt}]({folder}/{one.name}.svg)\n\n{one.caption}"] if folder else []
        elif isinstance(one, Numbers):
            parts.append(one.to_markdown().rstrip())
        elif parts and one.startswith(("- ", "    ")) and parts[-1].rpartition("\n")[2][:2] == one[:2]:
            parts[-1] += f"\n{one}"
        else:
            parts.append(one)
    return "\n\n".join(part for part in parts if part) + "\n"


STYLE = """
:root{--ink:#1f1e1b;--muted:#6b6861;--rule:#dedad1;--card:#fffefb;--page:#f6f3ec;--run-0:#0072B2;--run-1:#D55E00;
--run-2:#009E73;--run-3:#CC79A7;--run-4:#E69F00;--run-5:#56B4E9;--run-6:#b8ac1e}
@media(prefers-color-scheme:dark){:root{--ink:#eceae4;--muted:#a5a198;--rule:#45423c;--card:#24221f;--page:#1a1917}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);margin:0 auto;padding:1.5rem;
max-width:80rem}p,ul{max-width:52rem}a{color:inherit}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}.wide{overflow-x:auto}
table{border-collapse:collapse;background:var(--card);font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
td.words{white-space:normal;text-align:left;min-width:9rem}
.note,figcaption{color:var(--muted);font-size:.85rem;max-width:52rem}figure{margin:1.5rem 0}
figure svg{max-width:100%;height:auto;background:var(--card)}pre{overflow-x:auto;background:var(--card);padding:.6rem}
"""


def to_html(made: Sequence[Block], title: str) -> str:
    """Return a page as one HTML file that loads nothing."""
    parts: list[str] = []
    for one in made:
        if isinstance(one, Drawing):
            told = html.escape(one.caption)
            drawn = theme.inline(one.svg, one.name)
            parts.append(
                f'<figure role="group" aria-label="{html.escape(one.alt)}"><div class="wide">{drawn}</div>'
                f"<figcaption>{told}</figcaption></figure>"
            )
        elif isinstance(one, Numbers):
            head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in one.head)
            rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in one.lines)
            parts.append(
                f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
                f'<p class="note">{_text(one.note)}</p>'
            )
        elif one.startswith("#"):
            level = len(one) - len(one.lstrip("#"))
            parts.append(f"<h{level}>{_text(one.lstrip('# '))}</h{level}>")
        elif one.startswith("    "):
            parts.append(f"<pre>{html.escape(one.strip())}</pre>")
        elif found := re.fullmatch(r"\[(.+)\]\((.+)\)", one):
            parts.append(f'<p><a href="{html.escape(found[2])}">{html.escape(found[1])}</a></p>')
        elif one.startswith("- "):
            parts.append(f"<ul><li>{_text(one[2:])}</li></ul>")
        else:
            parts.append(f"<p>{_text(one)}</p>")
    body = "\n".join(parts).replace("</ul>\n<ul>", "\n")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _cell(text: str) -> str:
    """Return a cell; one that holds a sentence may break its lines."""
    return f"<td{' class=words' if len(text) > 24 else ''}>{_text(text)}</td>"


def _text(text: str) -> str:
    """Return text for a page, **bold** parts set so."""
    pieces = html.escape(text).split("**")
    return "".join(f"<strong>{piece}</strong>" if i % 2 else piece for i, piece in enumerate(pieces))


__all__ = ["Asked", "Number", "Sheet", "Shown", "apart", "blocks", "number", "table", "to_html", "to_markdown"]
