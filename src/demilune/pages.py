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
from demilune.paired import paired
from demilune.report import curves, theme, verdicts
from demilune.report.curves import Curve, Gap, Numbers
from demilune.report.figures import Drawing
from demilune.results import Row, standard_error
from demilune.surveys import Curvature, Direction, Landscape, Survey

CLEAR = 2.0
"""So many standard errors make a difference."""

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


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A claim to be looked at: what it says, and that one line is above another in a row; empty for the best other."""

    text: str
    more: str
    less: str
    row: str
    points: float | None


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
    """A rate over seeds: its mean, its standard error, the images of each, and how many seeds."""

    value: float
    error: float
    n: int
    seeds: int


Block: TypeAlias = str | Numbers | Drawing
"""A paragraph (or a heading that begins with #, a list item with -, a [link](file)), a table, or a figure."""


# --- numbers ---------------------------------------------------------------------------------------------------------


def rate(row: Row) -> float:
    """Return an accuracy as the papers count it: right after the attack, whatever the clean verdict was."""
    return row.accuracy if row.accuracy_after is None else row.accuracy_after


def best_row(records: Sequence[Record], name: str) -> tuple[Record, Row] | None:
    """Return the row of that name with the most images."""
    found = [(one, row) for one in records if one.kind in ("evaluation", "curve") and (row := one.row(name))]
    tests = [(one, row) for one, row in found if not one.what.endswith(("-train", "-validation"))]
    return max(tests, key=lambda pair: (pair[1].n, pair[0].kind == "evaluation"), default=None)


def single(records: Sequence[Record], name: str) -> Number | None:
    """Return what one seed's records say of a row, or of what is made of rows: gaps and means under corruptions."""
    if name.startswith("gap:"):
        row = name.removeprefix("gap:")
        sides = [next((one.row(row) for one in records if one.what == what), None) for what in ("gaps-train", "gaps")]
        if sides[0] is None or sides[1] is None:
            return None
        train, test = sides[0], sides[1]
        return Number(train.accuracy - test.accuracy, math.hypot(train.error, test.error), test.n, 1)
    if name.startswith("corruption.") and name.count(".") == 1:
        kind = name.partition(".")[2]
        kinds = curves.TWELVE if kind == "mean" else (kind,)
        for one in records:
            if one.what == "corruptions" and one.evaluation is not None:
                value = curves.mean(one.evaluation, kinds)
                if not math.isnan(value):
                    return Number(value, standard_error(value, one.n), one.n, 1)
        return None
    if name in ("pace", "pace.relative"):
        field_ = "minutes" if name == "pace" else "relative"
        taken = next((float(one.found[field_]) for one in records if one.kind == "pace"), None)
        return None if taken is None else Number(taken, 0.0, 0, 1)
    found = best_row(records, name)
    if found is None:
        return None
    value = rate(found[1])
    return Number(value, standard_error(value, found[1].n), found[1].n, 1)


def number(line: Shown, name: str) -> Number | None:
    """Return a line's number over its seeds.

    The error is the larger of the spread over seeds, sd/√k, and the binomial one of a single seed: the images are the
    same for all seeds, so that more seeds do not make that smaller.
    """
    found = [one for records in line.seeds if (one := single(records, name)) is not None]
    if not found:
        return None
    value, k = statistics.fmean(one.value for one in found), len(found)
    spread = statistics.stdev(one.value for one in found) / math.sqrt(k) if k > 1 else 0.0
    return Number(value, max(spread, statistics.fmean(one.error for one in found)), found[0].n, k)


def apart(first: Shown, second: Shown, name: str) -> tuple[float, float, bool] | None:
    """Return first - second in a row over the seeds both have, its standard error, and whether it is paired by image.

    Paired differences are of the strict accuracies, right clean and after the attack.
    """
    found = []
    for one, other in zip(first.seeds, second.seeds, strict=False):
        pair = _paired(one, other, name)
        a, b = single(one, name), single(other, name)
        if pair is not None:
            found.append((*pair, True))
        elif a is not None and b is not None:
            found.append((a.value - b.value, math.hypot(a.error, b.error), False))
    if not found:
        return None
    value, k = statistics.fmean(one[0] for one in found), len(found)
    spread = statistics.stdev(one[0] for one in found) / math.sqrt(k) if k > 1 else 0.0
    return value, max(spread, statistics.fmean(one[1] for one in found)), all(one[2] for one in found)


def _paired(first: Sequence[Record], second: Sequence[Record], name: str) -> tuple[float, float] | None:
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
    return most.value, math.hypot(most.error, 1.0 / most.n)


def same_setting(line: Shown, name: str, images: Mapping[str, int]) -> list[str]:
    """Return why a line's number is not the published one's equal; empty where it may be compared."""
    if line.departures is None:
        return ["no paper has this setting"]
    said = list(line.departures)
    if any(not one.data["official"] for one in line.records):
        said.append("data: not the official files")
    found = number(line, name)
    wanted = images.get(name, images.get("", 0))
    if found is not None and wanted and found.n != wanted:
        said.append(f"test images: {found.n:,}, not {wanted:,}")
    return said


# --- what is said ----------------------------------------------------------------------------------------------------


def claimed(claim: Asked, lines: Sequence[Shown]) -> tuple[str, str, str, str]:
    """Return a claim's row of the page: what it says, the paper's points, ours, and whether it holds here."""
    named = {line.label: line for line in lines}
    theirs = theme.NONE if claim.points is None else f"{claim.points:+.2f}".replace("-", theme.MINUS)
    ends = [named.get(claim.more), named.get(claim.less)]
    others = [line for line in lines if line.label not in (claim.more, claim.less) and number(line, claim.row)]
    if not claim.more and others and ends[1]:  # everybody is claimed to lie above it
        ends[0] = min(others, key=lambda line: _value(line, claim.row))
    if not claim.less and others and ends[0]:
        ends[1] = max(others, key=lambda line: _value(line, claim.row))
    found = apart(ends[0], ends[1], claim.row) if ends[0] is not None and ends[1] is not None else None
    if found is None or ends[0] is None or ends[1] is None:
        return claim.text, theirs, theme.NONE, "not measured"
    value, error, by_image = found
    against = "" if claim.more and claim.less else f" against {(ends[0] if not claim.more else ends[1]).label}"
    ours = f"{theme.signed(value)} ± {theme.percent(error)}{against}{'' if by_image else ' (not paired)'}"
    if abs(value) <= CLEAR * error:
        return claim.text, theirs, ours, "not decided: within 2 standard errors"
    return claim.text, theirs, ours, "holds here" if value > 0 else "does not hold here"


def _value(line: Shown, row: str) -> float:
    found = number(line, row)
    return math.nan if found is None else found.value


def verdict(line: Shown) -> str:
    """Return the doctor's verdict on a line, from the evaluation that settles most."""
    judged = [one.evaluation for one in line.records if one.kind == "evaluation"]
    found = [one.verdict for one in judged if one is not None and one.verdict is not None]
    settled = [one for one in found if one.kind != "not examined"] or found
    return verdicts.short(settled[-1]) if settled else theme.NONE


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
        n = next((each.n for each in found if each), 0)
        lines.append(
            (one.label, told, *(_ours(name, each, n) for name, each in zip(shown, found, strict=True)), verdict(one))
        )
        differing = [_difference(sheet, one, name, each) for name, each in zip(shown, found, strict=True)]
        if any(differing):
            lines.append((one.label, "ours − published, in standard errors", *differing, ""))
    note = (
        "Accuracy in % ± standard error: the larger of the binomial one and the spread over seeds. As the papers "
        "count, right after the attack whatever the clean verdict was; of multi-targeted attacks and AutoAttack, right "
        "clean too. All are upper bounds on robust accuracy."
    )
    if "pace" in shown:
        note = "1,000 training steps. The relative time is the median over steps taken in turn with the first line's."
    sizes = sorted({each.n for one in sheet.lines for name in shown if (each := number(one, name)) and each.n})
    counted = f" n = {', '.join(f'{n:,}' for n in sizes)}." if sizes else ""
    heads = ("", "", *(TITLES.get(name, name.removeprefix("corruption.").replace("_", " ")) for name in shown))
    return Numbers((*heads, "verdict"), tuple(lines), note + counted)


def _theirs(line: Shown, name: str) -> str:
    return f"{line.theirs[name]:.2f}" if name in line.theirs else theme.NONE


def _ours(name: str, found: Number | None, n: int) -> str:
    if found is None:
        return theme.NONE
    if name.startswith("pace"):
        return f"{found.value:.3g}"
    fewer = f" (n {found.n:,})" if found.n != n else ""
    return f"{theme.percent(found.value, 2)} ± {theme.percent(found.error, 2)}{fewer}"


def _difference(sheet: Sheet, line: Shown, name: str, found: Number | None) -> str:
    if found is None or name not in line.theirs or name.startswith("pace") or same_setting(line, name, sheet.images):
        return ""
    apart_ = 100.0 * found.value - line.theirs[name]
    error = 100.0 * found.error
    told = "agrees" if abs(apart_) <= CLEAR * error else "higher" if apart_ > 0 else "lower"
    size = f"{apart_ / error:+.1f} SE" if error else "no error known"
    return f"{apart_:+.2f} ({size}), {told}".replace("-", theme.MINUS)


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
    """Return the sentence that says where the numbers come from: hardware, hours, the code's commits."""
    trained = {
        (one.experiment.get("seed"), line.label): one.trained
        for line in sheet.lines
        for one in line.records
        if one.trained
    }
    if not trained:
        return []
    names = dict.fromkeys(_hardware(one.get("environment", {})) for one in trained.values())
    spent = sum(float(one.get("seconds", 0.0)) for one in trained.values())
    measured = {one.key: float(one.measured.get("seconds", 0.0)) for line in sheet.lines for one in line.records}
    commits = dict.fromkeys(
        one.commit[:7] + one.commit[40:] for line in sheet.lines for one in line.records if one.commit
    )
    told = f"; code at commit {', '.join(commits)}" if commits else "; commit not recorded"
    told += " (+: with changes)" if any(one.endswith("+") for one in commits) else ""
    hours = f"{spent / 3600:.2f} hours of training, {sum(measured.values()) / 3600:.2f} of measuring"
    return [f"Trained on {'; '.join(names)}: {hours}{told}."]


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
        beside = [theme.NONE if (got := number(line, k)) is None else _ours(k, got, got.n) for k in shown]
        loss = one.found["loss"]
        lines.append((label, f"{loss:.3f}", *(f"{value - loss:+.3f}" for value in one.found["moved"]), *beside))
    note = (
        f"Mean cross-entropy in nats of PGD-10's points of {found[0][1].n} test images, made at w; v is AWP's offset "
        "that ascends it, of relative size γ. The first seed of each line; accuracies over seeds."
    )
    return Numbers(heads, tuple(lines), note)


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
    asked = tuple(one for one in asked if one[3] != "not measured") if deep > 1 else asked
    if asked:
        note = (
            "Points of accuracy ± standard error, paired by image (strict accuracy) where both saw the same images. "
            "What holds here holds in this setting."
        )
        made += [f"{head}# What is claimed", Numbers(("claim", "paper, points", "ours, points", "here"), asked, note)]
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
