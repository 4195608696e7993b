"""Whether to believe a robust accuracy: the checks G1 to G11 for masked and flattering robustness, and one verdict.

Pure functions of an evaluation's rows and per-image results (evaluation.md 6; Athalye et al. 2018, Carlini et al.
2019, Tramèr et al. 2020, Croce and Hein 2020; thresholds marked there as our own are ours). Needs no torch, so that a
report gives the same verdict as the evaluation did.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from demilune.paired import Difference, paired
from demilune.results import Check, Evaluation, Finding, Row, Verdict

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

MASKING = ("G1", "G2", "G3", "G4", "G9")
"""The checks whose failure says that gradients mislead; that of the others, that the reported attack flatters."""

BLACK_BOX = ("nattack", "square", "transfer", "uniform")
"""How the names of rows begin whose attacks use no gradient of the model; the last does not search."""

PARTS = re.compile(r"autoattack_plus\.(apgd_ce5|apgd_dlr5|fab5)")
"""Rows of AutoAttack plus before its Square, on which those after it build."""

AUTOATTACK = ("autoattack_plus", "autoattack", "autoattack_rand", "autoattack.apgd_t")
"""Rows that settle the question, the strongest first; the last is its first half, an upper bound on it."""

FEW = 20
"""Fewer images than this fail nothing: one or two of them may be chance, whatever their standard error."""

USUAL = 0.04
"""By how much PGD-10 lies above the worst case on plainly trained models, that G6 alone does not say anything."""

ENOUGH = 100
"""With fewer images than this nothing is called believable."""


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """An evaluation's rows and, per row, which images are right (None: not recorded)."""

    rows: Mapping[str, Row]
    images: Arrays
    checks: tuple[Check, ...]
    eps: float

    def raised(self, *names: str) -> list[Check]:
        """Return the checks of these names that did not pass."""
        return [check for check in self.checks if check.name in names and check.level != "pass"]

    def named(self, *starts: str) -> list[Row]:
        """Return the rows in the ball whose names begin so, without modifiers."""
        found = [row for name, row in self.rows.items() if "@" not in name and row.role == "attack"]
        return [row for row in found if any(re.match(rf"{start}(?![a-z])", row.name) for start in starts)]

    def right(self, row: Row) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        """Return which places a row's images have, and which of them are right."""
        known = self.images.get(f"right.{row.name}")
        if known is None or len(known) != row.n:
            return None
        place = self.images.get(f"place.{row.name}", np.arange(row.n))
        return place.astype(np.int64), known.astype(bool)

    def difference(self, first: Row, second: Row) -> Difference:
        """Return first - second in accuracy: paired on the images both have, or as if independent.

        With b and c images right in one only the error is √(b + c + 1)/n: one image more than McNemar's, whose error
        is zero where b + c is.
        """
        a, b = self.right(first), self.right(second)
        if a is None or b is None:
            return Difference(first.accuracy - second.accuracy, math.hypot(first.error, second.error), second.n)
        _, here, there = np.intersect1d(a[0], b[0], return_indices=True)
        one, other = a[1][here], b[1][there]
        n = max(len(one), 1)
        return Difference(paired(one, other).value if len(one) else 0.0, math.sqrt(np.sum(one != other) + 1) / n, n)

    def union(self, rows: Sequence[Row], name: str, title: str) -> tuple[Evidence, Row | None]:
        """Return the evidence with one more row: the images that none of ``rows`` broke, of those that all have.

        Of a random model it is that of the least accurate: by a union over single draws images fall by chance.
        """
        if self.raised("randomised"):
            rows = sorted((row for row in rows if self.right(row)), key=lambda row: row.accuracy)[:1]
        known = [found for row in rows if (found := self.right(row))]
        if not known:
            return self, None
        place, standing = known[0]
        for there, right in known[1:]:
            place, one, other = np.intersect1d(place, there, return_indices=True)
            standing = standing[one] & right[other]
        row = replace(rows[0], name=name, title=title, n=len(place), right=int(standing.sum()), right_after=None)
        images = {**self.images, f"right.{name}": standing, f"place.{name}": place}
        return replace(self, rows={**self.rows, name: row}, images=images), row if len(place) else None

    def everywhere(self, rows: Sequence[Row]) -> list[Row]:
        """Return those rows that are about all images."""
        return [row for row in rows if row.n == self.rows["clean"].n]

    def attacks(self) -> list[Row]:
        """Return the attacks in the ball, those that stand in a table."""
        return [row for row in self.rows.values() if row.role == "attack" and row.name not in ("clean", "worst")]


def diagnose(
    rows: Sequence[Row], images: Arrays | None, checks: Sequence[Check], eps: float
) -> tuple[tuple[Finding, ...], Verdict]:
    """Return the findings G1 to G11 and the verdict of an evaluation in a ball of radius ``eps``."""
    evidence = Evidence({row.name: row for row in rows}, images or {}, tuple(checks), eps)
    found = tuple(
        check(evidence)
        for check in (
            iterating,
            black_box,
            unbounded,
            sampling,
            budget,
            losses,
            converged,
            rescaling,
            flags,
            adaptive,
            headline,
        )
    )
    return found, verdict(evidence, found)


def anew(found: Evaluation, images: Arrays | None) -> Evaluation:
    """Return an evaluation with findings and verdict by the present rules, whatever it was written with."""
    findings, verdict = diagnose(found.rows, images, found.checks, found.eps)
    return replace(found, findings=findings, verdict=verdict)


def outcome(found: Difference, threshold: float, width: float = 2.0) -> Literal["pass", "fail", "inconclusive"]:
    """Return the outcome of a check that wants a value at most at ``threshold``, give or take ``width`` errors."""
    if found.value <= threshold:
        return "pass"
    return "fail" if found.value - threshold > width * found.error and found.n >= FEW else "inconclusive"


def missing(name: str, title: str, needs: str) -> Finding:
    """Return the finding of a check whose attacks were not run."""
    return Finding(name, title, "not examined", f"needs {needs}")


def judged(
    name: str, title: str, found: Difference, threshold: float, text: str, attack: str, width: float = 2.0
) -> Finding:
    """Return the finding of a difference that should be at most ``threshold``."""
    how = outcome(found, threshold, width)
    told = f"{text}: {points(found.value)} ± {points(found.error)} points, at most {points(threshold)} (n = {found.n})"
    return Finding(name, title, how, told, found.value, threshold, found.error, attack, found.n)


def points(rate: float) -> str:
    """Return a rate in points of accuracy."""
    return f"{100 * rate:.1f}" if abs(rate) >= 0.01 or rate == 0 else f"{100 * rate:.2f}"


def reported(evidence: Evidence) -> Row | None:
    """Return the row that the field would report: PGD-10, or the PGD of fewest steps that there is."""
    plain = [row for row in evidence.named("pgd") if re.fullmatch(r"pgd\d+", row.name)]
    return evidence.rows.get("pgd10") or min(plain, key=lambda row: int(row.name[3:]), default=None)


def settled(evidence: Evidence) -> Row | None:
    """Return the strongest of AutoAttack's rows that there is; the random version counts for random models alone."""
    names = [name for name in AUTOATTACK if name != "autoattack_rand" or evidence.raised("randomised")]
    return next((evidence.rows[name] for name in names if name in evidence.rows), None)


def iterating(evidence: Evidence) -> Finding:
    """G1: an attack of several steps is stronger than one of a single step."""
    title, one, many = "iterating beats one step", evidence.rows.get("fgsm"), reported(evidence)
    if one is None or many is None:
        return missing("G1", title, "fgsm and pgd10")
    text = f"{many.title} above {one.title}"
    return judged("G1", title, evidence.difference(many, one), 0.0, text, one.name)


def black_box(evidence: Evidence) -> Finding:
    """G2: what the gradient finds is not weaker than what is found without it."""
    title, blind = "white-box beats black-box", evidence.named(*BLACK_BOX)
    aimed = evidence.everywhere([row for row in evidence.rows.values() if gradient(row)])
    evidence, white = evidence.union(aimed, "white-box", "all gradient attacks")
    blind = [row for row in blind if not re.match(r"uniform|nattack_0", row.name)]
    if white is None or not blind:
        return missing("G2", title, "square, nattack or transfer, and per-image results")
    gaps = {row.name: evidence.difference(white, row) for row in blind}
    worst = max(blind, key=lambda row: gaps[row.name].value - 2 * gaps[row.name].error)
    text = f"all gradient attacks together above {worst.title}"
    return judged("G2", title, gaps[worst.name], 0.0, text, worst.name)


def gradient(row: Row) -> bool:
    """Say whether a row is of an attack that follows gradients, in the ball."""
    mixed = row.name in ("clean", "worst", "autoattack")
    mixed = mixed or (row.name.startswith("autoattack_plus") and not PARTS.fullmatch(row.name))
    return not mixed and row.role != "probe" and not row.name.startswith(BLACK_BOX) and row.gradients > 0


def unbounded(evidence: Evidence) -> Finding:
    """G3: where every image is allowed, none survives."""
    title, row = "an unbounded attack breaks everything", evidence.rows.get("unbounded")
    if row is None:
        return missing("G3", title, "unbounded")
    found = Difference(row.accuracy, row.error, row.n)
    return judged("G3", title, found, 0.01, "accuracy where any image is allowed", row.name)


def sampling(evidence: Evidence) -> Finding:
    """G4: random images of the ball do not fool the model where PGD did not."""
    title = "random images find nothing that PGD missed"
    drawn, pgd = evidence.named(r"uniform\d+"), evidence.named("pgd")
    strongest = min(pgd, key=lambda row: row.accuracy, default=None)
    if not drawn or strongest is None:
        return missing("G4", title, "pgd10 and uniform1000")
    standing, sampled = evidence.right(strongest), evidence.right(drawn[-1])
    if standing is None or sampled is None:
        return missing("G4", title, "per-image results")
    if evidence.raised("randomised"):  # whose images fall by chance to another draw
        found = evidence.difference(strongest, drawn[-1])
        text = f"{strongest.title} above {drawn[-1].title}"
        return judged("G4", title, found, 0.001, text, drawn[-1].name)
    _, here, there = np.intersect1d(standing[0], sampled[0], return_indices=True)
    survivors = standing[1][here]
    n, broken = int(survivors.sum()), int((survivors & ~sampled[1][there]).sum())
    if n == 0:
        return Finding("G4", title, "pass", f"{strongest.title} left nothing standing", 0.0, 0.001, 0.0, strongest.name)
    rate = broken / n
    found = Difference(rate, math.sqrt(rate * (1 - rate) / n), n)
    text = f"{broken} of {n} that survive {strongest.title} fall to {drawn[-1].title}"
    return judged("G4", title, found, 0.001, text, drawn[-1].name)


def budget(evidence: Evidence) -> Finding:
    """G5: accuracy falls as ε grows."""
    title, found = "accuracy falls with the radius", dict[float, Row]()
    for row in evidence.rows.values():
        curve, other = re.fullmatch(r"budget\.pgd10\.(\d+)", row.name), re.fullmatch(r"pgd10@eps=(.+)", row.name)
        if curve:
            found[int(curve[1]) / 8 * evidence.eps] = row
        elif other:
            over, _, under = other[1].partition("/")
            found[float(over) / float(under or 1)] = row
    if len(found) > 1 and "pgd10" in evidence.rows:
        found.setdefault(evidence.eps, evidence.rows["pgd10"])
    if len(found) < 2:
        return missing("G5", title, "pgd10@eps=E for some radii, or budget_pgd10")
    ordered = [row for _, row in sorted(found.items())]
    steps = [(evidence.difference(more, less), more) for less, more in itertools.pairwise(ordered)]
    largest, row = max(steps, key=lambda step: step[0].value - 2 * step[0].error)
    # The largest of many differences is large by chance alone.
    return judged("G5", title, largest, 0.0, f"largest rise, {row.title}", row.name, width=3.0)


def losses(evidence: Evidence) -> Finding:
    """G6: the choice of loss matters little: |PGD - CW| ≤ 1.5 points, PGD - multi-targeted ≤ 4 points."""
    title, pgd = "the choice of loss matters little", reported(evidence)
    cw = [row for row in evidence.named("cw") if re.fullmatch(r"cw\d+", row.name)]  # not RLFAT's weaker form
    multi = evidence.named(r"multi\d+x\d+")
    if pgd is None or not (cw or multi):
        return missing("G6", title, "pgd10, and cw10 or multi9x30")
    made = []
    if cw:
        gap = evidence.difference(pgd, cw[0])
        wide = Difference(abs(gap.value), gap.error, gap.n)
        made.append(judged("G6", title, wide, 0.015, f"{pgd.title} and {cw[0].title} apart", cw[0].name))
    if multi:
        gap = evidence.difference(pgd, multi[0])
        made.append(judged("G6", title, gap, 0.04, f"{pgd.title} above {multi[0].title}", multi[0].name))
    for title_of, rows in ((r"cw10", cw), ("multi9x30", multi)):
        made += [] if rows else [missing("G6", title, title_of)]
    return together(made)


def together(made: Sequence[Finding]) -> Finding:
    """Return several findings of one check as one: the worst of them, with what all say."""
    order = ("fail", "inconclusive", "pass", "not examined")
    worst = min(made, key=lambda one: (order.index(one.outcome), one.threshold - one.value))
    told = [one.text if one.outcome != "not examined" else f"the rest not examined: {one.text}" for one in made]
    return replace(worst, text="; ".join(told))


def converged(evidence: Evidence) -> Finding:
    """G7: more steps (ten times as many) change less than 0.3 points, restarts less than 1 point."""
    title = "more steps and restarts change nothing"
    plain = {int(row.name[3:]): row for row in evidence.named("pgd") if re.fullmatch(r"pgd\d+", row.name)}
    made = []
    longest = max(plain, default=0)
    shorter = max((steps for steps in plain if 5 * steps <= longest and steps >= 50), default=0)
    if shorter:
        gap = evidence.difference(plain[shorter], plain[longest])
        text = f"{plain[shorter].title} above {plain[longest].title}"
        made.append(judged("G7", title, gap, 0.003, text, plain[longest].name))
    for row in evidence.named("pgd"):
        again = re.fullmatch(r"(pgd\d+)x(\d+)_any", row.name)
        first = evidence.rows.get(f"{again[1]}_any") if again else None
        if first is not None:
            text = f"{first.title} above {row.title}"
            made.append(judged("G7", title, evidence.difference(first, row), 0.01, text, row.name))
    if not made:
        return missing("G7", title, "pgd100x10 and pgd1000")
    return together(made if shorter else [*made, missing("G7", title, "pgd100x10 and pgd1000 for more steps")])


def rescaling(evidence: Evidence) -> Finding:
    """G8: logits times a factor make PGD no stronger by 1 point.

    A factor that makes it weaker says nothing: at 100 the gradient of cross-entropy underflows on any model.
    """
    title, made = "rescaled logits make PGD no stronger", list[Finding]()
    for row in evidence.rows.values():
        scaled = "@scale=" in row.name and row.role == "part"
        base = evidence.rows.get(row.name.partition("@scale=")[0]) if scaled else None
        if base is not None:
            text = f"{base.title} above the same with {row.title.rpartition(', ')[2]}"
            made.append(judged("G8", title, evidence.difference(base, row), 0.01, text, row.name))
    return together(made) if made else missing("G8", title, "pgd10@scale=0.1, pgd10@scale=10, …")


def flags(evidence: Evidence) -> Finding:
    """G9: AutoAttack's own flags: random answers, softmax outputs, zero gradients, Square helping by 0.2 points."""
    gain, names = helped(evidence), list(FLAGS)
    if "autoattack_rand" in evidence.rows:  # the flag of a random model asks for that version
        names.remove("randomised")
    if gain.outcome != "not examined":  # Square has looked where a few gradients are zero
        names.remove("zero gradient")
    raised = [check for name in names for check in evidence.raised(name)]
    if not raised:
        return gain
    told = "; ".join([check.text for check in raised] + ([] if gain.outcome == "not examined" else [gain.text]))
    return replace(gain, outcome="fail", text=told, attack=gain.attack if gain.outcome == "fail" else raised[0].name)


def helped(evidence: Evidence) -> Finding:
    """G9's measured part: by how much Square, which uses no gradient, adds to the attacks that do."""
    title = "AutoAttack's flags are silent"
    before, after = evidence.rows.get("autoattack.fab_t"), evidence.rows.get("autoattack")
    if after is None:
        before, after = evidence.rows.get("autoattack_plus.fab5"), evidence.rows.get("autoattack_plus.square")
    square = evidence.rows.get("square")
    if after is None and square is not None:
        aimed = evidence.everywhere([row for row in evidence.rows.values() if gradient(row)])
        evidence, before = evidence.union(aimed, "white-box", "all gradient attacks")
        evidence, after = evidence.union([*aimed, square], "white-box and square", "with Square")
    if before is None or after is None:
        return missing("G9", title, "autoattack, or square")
    gain = evidence.difference(before, after)
    return judged("G9", title, gain, 0.002, f"Square breaks more than {before.title}", after.name)


OUTCOMES = ("pass", "fail", "inconclusive", "not examined")

FLAGS = ("no gradient", "batch", "dynamic", "probabilities", "randomised", "zero gradient")
"""Names of an evaluation's checks that make gradients, or verdicts, say little of a model."""

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "probabilities": "give the network without its softmax",
        "zero gradient": "add attacks without gradients: square, nattack, transfer",
        "randomised": "add autoattack_rand",
    }
)
"""Flags that ask for more, and show nothing masked by themselves."""


def adaptive(evidence: Evidence) -> Finding:
    """G10: no other attack, adaptive or black-box, finds more than 1 point beyond AutoAttack."""
    title, whole = "no other attack adds much to AutoAttack", settled(evidence)
    others = [row for row in evidence.attacks() if not row.name.startswith("autoattack")]
    others = [row for row in others if row.name not in ("fgsm", "pgd10")]
    if whole is None or not others or evidence.right(whole) is None:
        return missing("G10", title, "autoattack (or apgd), multi9x30, md or odi, and per-image results")
    made = []
    all_of_them = evidence.everywhere(others)
    for rows in ([all_of_them] if all_of_them else []) + [[row] for row in others if row not in all_of_them]:
        more, joined = evidence.union([whole, *rows], "joined", "")
        if joined is not None:
            told = ", ".join(row.title for row in rows)
            best = min(rows, key=lambda row: more.difference(row, whole).value)
            gain = more.difference(whole, joined)
            made.append(judged("G10", title, gain, 0.01, f"{whole.title} above its union with {told}", best.name))
    return together(made)


def headline(evidence: Evidence) -> Finding:
    """G11: PGD-10 lies above AutoAttack by no more than plain adversarial training's 5 points."""
    title, pgd, whole = "PGD-10 is near AutoAttack", reported(evidence), settled(evidence)
    if pgd is None or whole is None:
        return missing("G11", title, "pgd10, and autoattack or apgd")
    return judged("G11", title, evidence.difference(pgd, whole), 0.05, f"{pgd.title} above {whole.title}", whole.name)


def verdict(evidence: Evidence, found: Sequence[Finding]) -> Verdict:
    """Return the one verdict.

    masked: a check of :data:`MASKING` failed. overestimated: another one failed. believable: AutoAttack, or its first
    half, was run, and an attack without gradients; none failed, G11 passed, and no sign of masking was left open; or
    nothing is left to break. Else not examined.
    """
    pgd, whole, worst = reported(evidence), settled(evidence), evidence.rows.get("worst")
    full = evidence.everywhere(evidence.attacks())
    strong = min(full, key=lambda row: (row.accuracy, row is not whole), default=None)
    # What settles the question is named, also where it was run on fewer images than others that left less of them.
    strongest = whole if whole is not None and strong is not None and whole.n < strong.n else strong or whole
    told = strongest.title if strongest else "none"
    if pgd is None or worst is None or strong is None or strongest is None:
        text = f"not examined: no PGD was run to compare with (strongest attack run: {told})"
        return Verdict("not examined", text, "", told, math.nan, math.nan)
    if evidence.raised("randomised"):  # whose worst case over single draws says nothing, see Evidence.union
        every = [row for row in evidence.rows.values() if row.role != "probe" and row.name not in ("clean", "worst")]
        worst = min(evidence.everywhere(every), key=lambda row: row.accuracy)
    gap = evidence.difference(pgd, worst)
    figure = f"{pgd.title} {100 * pgd.accuracy:.1f} %, worst case {100 * worst.accuracy:.1f} %"
    # PGD and CW some two points apart, and all attacks within four, is what plain adversarial training shows.
    failed = [one for one in found if one.outcome == "fail" and (one.name != "G6" or gap.value > USUAL)]
    flagged = [one for one in failed if one.attack in REMEDIES]
    failed = [one for one in failed if one not in flagged]
    masked = [one for one in failed if one.name in MASKING]
    doubts = [one for one in found if one.outcome == "inconclusive" and (one.name == "G11" or sign(one))]
    wrong = evidence.raised("accuracy", "normalisation")

    def made(kind: Literal["believable", "overestimated", "masked", "not examined"], text: str) -> Verdict:
        return Verdict(kind, text, pgd.title, told, gap.value, gap.error)

    if wrong:
        return made("not examined", f"not examined, the model or its images are probably wrong: {wrong[0].text}")
    if masked:
        shown = evidence.rows.get(masked[0].attack)
        by = f", shown by {shown.title}" if shown else ""
        return made("masked", f"masked{by} ({masked[0].name}: {masked[0].text}); {figure}")
    if failed and gap.value > 2.0 * gap.error:
        size = "about" if whole is not None and whole.name != "autoattack.apgd_t" else "at least"
        text = f"overestimated by {size} {100 * gap.value:.0f} points under {pgd.title} ({figure}, shown by {told})"
        return made("overestimated", text)
    if worst.right == 0:
        return made("believable", f"believable: nothing survives all attacks, and no other could break more ({figure})")
    if whole is None:
        text = f"not examined: the strongest attack run is {told} ({figure}), which settles nothing"
        return made("not examined", text)
    open_questions = [
        *(f"{one.name}, {one.text}, though no attack that was run breaks more" for one in failed),
        *(f"{one.text}, which so few images do not settle" for one in doubts),
        *(f"{one.text}; {REMEDIES[one.attack]}" for one in flagged),
        *([f"{whole.title} was run on {whole.n} images, and {ENOUGH} are the least"] if whole.n < ENOUGH else []),
        *(["no attack without gradients was run: add square, nattack or transfer"] if not blind(evidence) else []),
    ]
    if open_questions:
        return made("not examined", f"not examined well enough: {open_questions[0]} ({figure})")
    counts = [f"{n} {how}" for how in OUTCOMES if (n := sum(one.outcome == how for one in found)) or how != "fail"]
    text = f"believable: {told} leaves {100 * strongest.accuracy:.1f} % of {strongest.n} images"
    return made("believable", f"{text} ({figure}; checks: {', '.join(counts)})")


def sign(one: Finding) -> bool:
    """Say whether what a check left open may well be a sign of masking: two images, and beyond one standard error."""
    return one.name in MASKING and round(one.value * one.n) >= 2 and one.value - one.threshold > one.error


def blind(evidence: Evidence) -> bool:
    """Say whether an attack was run that searches without gradients."""
    whole = settled(evidence)
    return bool(evidence.named(*BLACK_BOX[:3])) or (whole is not None and whole.name in AUTOATTACK[:2])


__all__ = ["Evidence", "anew", "diagnose"]
