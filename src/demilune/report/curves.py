"""Figures of single results: accuracy over an attack's iterations and budgets, gaps, corruptions, surveys of the loss.

Every drawing function takes what there is to show in the order of its colours and returns None where nothing is. Rows
that an evaluation lacks are left out, never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

from demilune.report import theme
from demilune.report.figures import Drawing, drawn, worded
from demilune.report.values import Mark, along
from demilune.results import Evaluation, Row
from demilune.surveys import Curvature, Direction, Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWELVE = (
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
    "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The types that the papers average over; the noises, on which adversarial training is strong, are not among them."""

FIFTEEN = (*TWELVE, "gaussian_noise", "shot_noise", "impulse_noise")
SEVERITIES = (1, 2, 3, 4, 5)

BUDGETS = {"pgd10": "PGD-10", "margin50": "PGD-50 on the margin", "apgd_ce": "APGD-CE"}
GAPS = {"clean": "clean", "pgd10": "PGD-10"}
BAND = 0.18  # opacity: several bands one above the other can still be told apart


class Curve(NamedTuple):
    """An evaluation under the name it is shown by."""

    label: str
    evaluation: Evaluation


class Gap(NamedTuple):
    """Two evaluations of the same checkpoint: on training images without augmentation, and on test images."""

    label: str
    train: Evaluation
    test: Evaluation


@final
@dataclass(frozen=True, slots=True)
class Numbers:
    """A small table: its columns, a line of cells for each thing shown, and how it is to be read."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str

    def to_markdown(self) -> str:
        """Return it as Markdown, the note below."""
        rows = [self.head, tuple("---" if i == 0 else "---:" for i in range(len(self.head))), *self.lines]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        return f"{table}\n\n{self.note}\n"


def iterations(entries: Sequence[Curve], name: str = "iterations") -> Drawing | None:
    """Draw accuracy over the iterations of PGD (RAT's Figs. 4 and 7).

    Rows: ``iterations.K`` at x'_K, ``iterations.K_any`` over x'_1 … x'_K, ``iterations.start`` at x'_0. K = 0 is clean.
    """
    shown = [one for one in entries if series(one.evaluation, "iterations")]
    if not shown:
        return None

    def draw(figure: Figure) -> list[Mark]:
        axes, last, ever = figure.add_subplot(), list[Mark](), list[Mark]()
        for position, one in enumerate(shown):
            hue = theme.colour(position)
            found = series(one.evaluation, "iterations")
            _band(axes, position, found)
            last += _marks(axes, "at the last iterate, %", one.label, found)
            found = series(one.evaluation, "iterations", "_any")
            axes.plot([k for k, _ in found], _percents(found), color=hue, linewidth=1.1, linestyle=theme.DOTTED)
            ever += _marks(axes, "where every iterate so far counts, %", one.label, found)
            start = one.evaluation.row("iterations.start")
            if start is not None:
                axes.plot(
                    [0], [100 * start.accuracy], "o",
                    color=hue, markerfacecolor=theme.PAPER, markersize=4.5, markeredgewidth=1.2, clip_on=False,
                )  # fmt: skip
        axes.set_xlabel("iterations of PGD")
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(left=0)
        _rates(axes, shown)
        _legend(figure, [one.label for one in shown])
        return last + ever

    def told(one: Curve) -> str:
        found = series(one.evaluation, "iterations")
        some = {k: row for k, row in found if k in (0, 10, 20, found[-1][0])}
        return f"{one.label} " + ", ".join(f"{theme.percent(row.accuracy)} at {k}" for k, row in some.items())

    return drawn(
        name,
        "Accuracy over iterations of PGD, with one standard error; 0 iterations is the clean image, a ring the random "
        "start. Thick: at the last iterate, which may rise again. Thin and dotted: where every iterate so far counts, "
        "which cannot.",
        "Accuracy in percent over iterations: " + "; ".join(told(one) for one in shown) + ".",
        _size(3.1, len(shown)),
        draw,
        "iterations",
    )


def budgets(entries: Sequence[Curve], name: str = "budgets") -> Drawing | None:
    """Draw accuracy over ε, a panel for each attack (RAT's Figs. 5 and 8, and the attacks that hold there).

    Rows: ``budget.ATTACK.E`` at ε = E/8 of the evaluation's, ``budget.ATTACK.E_nested`` where what a smaller ε broke
    stays broken. ε = 0 is clean.
    """
    panels = [attack for attack in BUDGETS if any(series(one.evaluation, f"budget.{attack}") for one in entries)]
    shown = [one for one in entries if any(series(one.evaluation, f"budget.{attack}") for attack in panels)]
    if not shown:
        return None
    # in 255ths as people count them, where every ε is so many of them
    levels = all(one.evaluation.norm == "linf" and "/" in theme.budget(one.evaluation.eps) for one in shown)

    def radius(one: Curve, step: int) -> float:
        return step / 8 * one.evaluation.eps * (255 if levels else 1)

    def draw(figure: Figure) -> list[Mark]:
        marks, nesting, first = list[Mark](), list[Mark](), None
        for place, attack in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, place + 1, sharex=first)
            first = first or axes
            for position, one in enumerate(shown):
                found = series(one.evaluation, f"budget.{attack}")
                _band(axes, position, found, [radius(one, step) for step, _ in found])
                marks += _marks(
                    axes, f"{BUDGETS[attack]}, %", one.label, found, [radius(one, step) for step, _ in found]
                )
                nested = series(one.evaluation, f"budget.{attack}", "_nested")
                there = [radius(one, step) for step, _ in nested]
                nesting += _marks(
                    axes, f"{BUDGETS[attack]}, what a smaller ε broke stays broken, %", one.label, nested, there
                )
                axes.plot(
                    [radius(one, step) for step, _ in nested], _percents(nested),
                    color=theme.colour(position), linewidth=1.1, linestyle=theme.DOTTED,
                )  # fmt: skip
            for eps in sorted({radius(one, 8) for one in shown}):
                axes.axvline(eps, color=theme.MUTED, linewidth=0.8)
            axes.set_ylabel("accuracy, %")
            axes.set_title(BUDGETS[attack], loc="left", fontsize=8.5)
            axes.set_xlim(left=0)
            _rates(axes, shown)
            axes.label_outer()
        figure.axes[-1].set_xlabel("ε, in 255ths" if levels else "ε")
        _legend(figure, [one.label for one in shown])
        return marks + nesting

    def told(one: Curve, attack: str) -> str:
        found = {step: row for step, row in series(one.evaluation, f"budget.{attack}") if step in (4, 8, 16)}
        return f"{one.label} under {BUDGETS[attack]} " + ", ".join(
            f"{theme.percent(row.accuracy)} at {theme.budget(step / 8 * one.evaluation.eps)}"
            for step, row in found.items()
        )

    return drawn(
        name,
        "Accuracy over the budget ε, with one standard error. Dotted: an image that a smaller ε broke stays broken. "
        "The line marks the budget of the table. Ten steps of a fixed size cannot cross a large ball, so PGD-10 "
        "flatters every model at the right; the other attacks step in proportion.",
        "Accuracy in percent over ε: " + "; ".join(told(one, attack) for attack in panels for one in shown) + ".",
        _size(0.55 + 1.75 * len(panels), len(shown)),
        draw,
        "ε, in 255ths" if levels else "ε",
    )


def gaps(pairs: Sequence[Gap], name: str = "gaps") -> Drawing | None:
    """Draw standard and robust accuracy on training and on test images, both bars (RAT's Figs. 3 and 6)."""
    panels = [row for row in GAPS if any(one.train.row(row) or one.test.row(row) for one in pairs)]
    if not panels:
        return None
    ends = [[(one.train.row(row), one.test.row(row)) for one in pairs] for row in panels]

    def draw(figure: Figure) -> list[Mark]:
        marks = list[Mark]()
        for place, (row, found) in enumerate(zip(panels, ends, strict=True)):
            axes, what = figure.add_subplot(len(panels), 1, place + 1), f"{GAPS[row]}, %"
            for position, both in enumerate(found):
                hue = theme.colour(position)
                for shift, one, inside, hatch in ((-0.19, both[0], theme.PAPER, "/////"), (0.19, both[1], hue, "")):
                    if one is not None:
                        axes.barh(
                            position + shift, 100 * one.accuracy, 0.34, xerr=100 * one.error, facecolor=inside,
                            edgecolor=hue, hatch=hatch, error_kw={"elinewidth": 1.0, "ecolor": theme.INK},
                        )  # fmt: skip
                        side, rate = "training" if hatch else "test", 100 * one.accuracy
                        marks.append(Mark(what, pairs[position].label, side, worded(one), axes, rate, position + shift))
                longest = max((100 * (one.accuracy + one.error) for one in both if one is not None), default=0.0)
                said = difference(*both) or "not measured on both"
                axes.annotate(
                    said, (longest, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5
                )
                marks.append(Mark(what, pairs[position].label, "difference", said, axes, longest, position))
            axes.set_yticks(range(len(pairs)), [theme.shorten(one.label, 22) for one in pairs], color=theme.INK)
            axes.set_ylim(len(pairs) - 0.45, -0.55)
            axes.set_xlim(0, 130)
            axes.set_xticks(range(0, 101, 20))
            axes.grid(visible=False, axis="y")
            axes.set_title(f"{'standard' if row == 'clean' else 'robust'} ({GAPS[row]})", loc="left", fontsize=8.5)
        figure.axes[-1].set_xlabel("accuracy, %")
        return marks

    told = "; ".join(
        f"{one.label} {GAPS[row]} {_rate(both[0])} on training and {_rate(both[1])} on test images"
        for row, found in zip(panels, ends, strict=True)
        for one, both in zip(pairs, found, strict=True)
    )
    return drawn(
        name,
        "Generalisation gaps: accuracy on training images without augmentation (hatched) and on test images (full), "
        "with one standard error; beside them the difference. A small gap is no virtue by itself: labels that keep "
        "the training loss up lower the upper bar.",
        f"In percent: {told}.",
        (theme.WIDTH, 0.5 + len(panels) * (0.45 + 0.36 * len(pairs))),
        draw,
        "run",
    )


def corruptions(entries: Sequence[Curve], name: str = "corruptions") -> Drawing | None:
    """Draw accuracy by type and severity of corruption, a map each (rows ``corruption.TYPE.SEVERITY``)."""
    shown = [one for one in entries if corrupted(one.evaluation)]
    if not shown:
        return None
    kinds = [kind for kind in FIFTEEN if any(kind in corrupted(one.evaluation) for one in shown)]
    values = [plain(row) for one in shown for rows in corrupted(one.evaluation).values() for row in rows.values()]
    low, high = 10 * math.floor(10 * min(values)), 10 * math.ceil(10 * max(values))
    high = max(high, low + 10)
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> list[Mark]:
        from matplotlib import colormaps

        hues, marks = colormaps["cividis"], list[Mark]()
        for place, one in enumerate(shown):
            axes = figure.add_subplot(lines, columns, place + 1)
            found = corrupted(one.evaluation)
            table = [[_value(found.get(kind, {}).get(level)) for level in SEVERITIES] for kind in kinds]
            axes.pcolormesh(table, cmap=hues, vmin=low, vmax=high, edgecolor=theme.PAPER, linewidth=0.8)
            for i, line in enumerate(table):
                for j, value in enumerate(line):
                    if math.isnan(value):
                        ink, text = theme.MUTED, theme.NONE
                    else:  # black and white, not the page's own colours: in the dark the map stays as it is
                        ink = "#ffffff" if sum(hues((value - low) / (high - low))[:3]) < 1.35 else "#000000"
                        text = f"{value:.{2 - columns}f}"
                    axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink)
                    row, column = kinds[i].replace("_", " "), f"severity {j + 1}"
                    said = theme.percent(value / 100)
                    marks.append(Mark(f"{one.label}, %", row, column, said, axes, j + 0.5, i + 0.5))
            axes.set_xticks([level - 0.5 for level in SEVERITIES], [str(level) for level in SEVERITIES])
            named = [kind.replace("_", " ") for kind in kinds]
            axes.set_yticks([i + 0.5 for i in range(len(kinds))], named if place % columns == 0 else [""] * len(kinds))
            axes.set_ylim(len(kinds), 0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xlabel("severity")
            axes.set_title(f"{theme.shorten(one.label, 28)}\n{_means(one.evaluation)}", loc="left", fontsize=7.5)
        return marks

    told = "; ".join(f"{one.label} {_means(one.evaluation)}".replace("\n", ", ") for one in shown)
    lacking = {one.label: missing(one.evaluation, FIFTEEN) for one in shown}
    without = "; ".join(f"{label} lacks {', '.join(kinds)}" for label, kinds in lacking.items() if kinds)
    gone = f" Not all was measured, and no mean stands for it: {without}." if without else ""
    return drawn(
        name,
        "Accuracy in percent under natural corruptions, by type and severity, whatever the clean verdict was. The "
        f"papers' mean leaves the three noises out.{gone}",
        f"In percent: {told}.",
        (theme.WIDTH, lines * (1.0 + 0.19 * len(kinds))),
        draw,
        "corruption",
        whole=False,
    )


def corruption_numbers(entries: Sequence[Curve]) -> Numbers | None:
    """Return mean accuracies over severities by type, and over types, as in RAT's Table 2."""
    shown = [one for one in entries if corrupted(one.evaluation)]
    if not shown:
        return None
    lines = []
    for one in shown:
        over = [mean(one.evaluation, kinds) for kinds in (TWELVE, FIFTEEN)]
        each = [mean(one.evaluation, (kind,)) for kind in FIFTEEN]
        lines.append((one.label, *(theme.percent(value, 2) for value in (*over, *each))))
    sizes = sorted({row.n for one in shown for rows in corrupted(one.evaluation).values() for row in rows.values()})
    missed = "; ".join(
        f"{one.label} lacks {', '.join(kinds)}" for one in shown if (kinds := missing(one.evaluation, FIFTEEN))
    )
    note = (
        "Accuracy in %, the mean of severities 1 to 5, then of the types; the 12 are those of the papers, the 15 count "
        f"the three noises too. n = {' to '.join(f'{n:,}' for n in (sizes[0], sizes[-1])[: len(sizes)])} images of "
        f"each type and severity. {theme.NONE}: not measured" + (f" ({missed})." if missed else ".")
    )
    return Numbers(("", "mean of 12", "mean of 15", *(kind.replace("_", " ") for kind in FIFTEEN)), tuple(lines), note)


def direction(surveys: Sequence[tuple[str, Direction]], name: str = "direction") -> Drawing | None:
    """Draw loss, success and probabilities on the way along a direction of RAT's region (RAT's Fig. 2)."""
    if not surveys:
        return None

    def draw(figure: Figure) -> list[Mark]:
        loss, fooled, mass = (figure.add_subplot(3, 1, place) for place in (1, 2, 3))
        panels: list[tuple[str, Axes, Callable[[Direction], Sequence[float]], str]] = [
            ("cross-entropy, nats", loss, lambda one: one.loss, "{:.3f}"),
            ("misclassified, %", fooled, lambda one: [100 * rate for rate in one.fooled], "{:.1f}"),
            ("probability of the true class", mass, lambda one: one.mass, "{:.3f}"),
            ("probability of the likeliest other", mass, lambda one: one.other, "{:.3f}"),
        ]
        for position, (_, one) in enumerate(surveys):
            hue, dashes = theme.colour(position), theme.dashes(position)
            loss.plot(one.scales, one.loss, color=hue, linestyle=dashes)
            loss.fill_between(one.scales, *middle(one), color=hue, alpha=BAND, linewidth=0)
            rates = [100 * rate for rate in one.fooled]
            fooled.plot(one.scales, rates, color=hue, linestyle=dashes)
            errors = [100 * error for error in one.errors]
            _fill(fooled, one.scales, rates, errors, hue)
            mass.plot(one.scales, one.mass, color=hue, linestyle=dashes)
            mass.plot(one.scales, one.other, color=hue, linewidth=1.1, linestyle=theme.DOTTED)
        loss.set_ylabel("cross-entropy, nats")
        loss.set_ylim(bottom=0)
        fooled.set_ylabel("misclassified, %")
        fooled.set_ylim(0, 101)
        mass.set_ylabel("probability")
        mass.set_ylim(0, 1.01)
        mass.set_xlabel("s, in units of the way to the adversarial segment")
        for axes in (loss, fooled, mass):
            axes.axvline(1.0, color=theme.MUTED, linewidth=0.8)
            axes.set_xlim(min(one.scales[0] for _, one in surveys), max(one.scales[-1] for _, one in surveys))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.label_outer()
        _legend(figure, [label for label, _ in surveys])
        return [
            mark
            for title, axes, values, form in panels
            for label, one in surveys
            for mark in along(
                axes, title, label, zip(one.scales, values(one), strict=True), [form.format(y) for y in values(one)]
            )
        ]

    def told(label: str, one: Direction) -> str:
        falls = f"falls at {one.falls} of {len(one.scales) - 1} steps" if one.falls else "never falls"
        return (
            f"{label} from {one.loss[0]:.2f} to {one.loss[-1]:.2f} nats at s = {one.scales[-1]:g}, which {falls}, and "
            f"{theme.percent(one.fooled[-1])} % misclassified ({one.n} images)"
        )

    counts = sorted({one.n for _, one in surveys})
    return drawn(
        name,
        "On the way from an image along a random direction between its first and its last adversarial point: mean "
        "cross-entropy against the true class, with the middle half of the images; the share misclassified, with one "
        "standard error; and the mean probability of the true class and (dotted) of the likeliest other. Only images "
        f"right at s = 0 are walked: {' to '.join(f'{n:,}' for n in (counts[0], counts[-1])[: len(counts)])} each. The "
        "line marks the adversarial points; beyond it the way leaves the ball.",
        "Mean cross-entropy: " + "; ".join(told(label, one) for label, one in surveys) + ".",
        _size(5.0, len(surveys)),
        draw,
        "s",
    )


def landscape(surveys: Sequence[tuple[str, Landscape]], name: str = "landscape") -> Drawing | None:
    """Draw loss and accuracy over planes of two directions, on shared scales; curves are left to ``profile``."""
    shown = [(label, one) for label, one in surveys if len(one.a) > 1 and len(one.b) > 1]
    if not shown:
        return None
    losses = contours([value for _, one in shown for line in one.loss for value in line], wide=True)
    rates = contours([100 * value for _, one in shown for line in one.accuracy for value in line])

    def draw(figure: Figure) -> list[Mark]:
        grid, marks = figure.subplots(len(shown), 2, squeeze=False), list[Mark]()
        for line, (label, one) in zip(grid, shown, strict=True):
            accuracy = [[100 * rate for rate in row] for row in one.accuracy]
            maps = []
            for axes, table, levels in ((line[0], one.loss, losses), (line[1], accuracy, rates)):
                across = list(zip(*table, strict=True))  # rows are places along b
                what, form = ("cross-entropy, nats", "{:.3g}") if table is one.loss else ("accuracy, %", "{:.1f}")
                for b, values in zip(one.b, across, strict=True):
                    for a, value in zip(one.a, values, strict=True):
                        place, said = (f"b = {b:.3g}", f"a = {a:.3g}"), form.format(value)
                        marks.append(Mark(f"{label}: {what}", *place, said, axes, a, b))
                maps.append(axes.contourf(one.a, one.b, across, levels, cmap="cividis", norm=_norm(levels)))
                axes.contour(one.a, one.b, across, levels, colors="#000000", linewidths=0.35)
                for at, mark in ((0, "+"), (1, "x")) if one.space == "input" else ((0, "+"),):
                    for hue, width in (("#000000", 3.0), ("#ffffff", 1.4)):  # seen on light and on dark
                        axes.plot([at], [0], mark, color=hue, markersize=6.5, markeredgewidth=width)
                axes.locator_params(nbins=4)
                axes.tick_params(labelsize=7.5)
                axes.set_xlim(one.a[0], one.a[-1])
                axes.set_ylim(one.b[0], one.b[-1])
                axes.set_xlabel(theme.shorten(one.axes[0].split(",")[0], 40), fontsize=7)
                axes.grid(visible=False)
            line[0].set_ylabel(theme.shorten(one.axes[1].split(",")[0], 40), fontsize=7)
            line[1].tick_params(labelleft=False)
            line[0].set_title(theme.shorten(label, 34), loc="left", fontsize=8.5)
        for column, (levels, title) in enumerate(((losses, "cross-entropy, nats"), (rates, "accuracy, %"))):
            bar = figure.colorbar(maps[column], ax=list(grid[:, column]), location="bottom", aspect=28, pad=0.02)
            some = levels[:: math.ceil(len(levels) / 6)]
            bar.set_ticks(some, labels=[f"{level:g}" for level in some], fontsize=7.5)
            bar.set_label(title)
            bar.outline.set_visible(False)
        return marks

    def told(label: str, one: Landscape) -> str:
        flat = [value for line in one.loss for value in line]
        return f"{label} from {min(flat):.2f} to {max(flat):.2f} nats"

    units = "; ".join(dict.fromkeys(f"{one.axes[0]} and {one.axes[1]}" for _, one in shown))
    points = ". The cross marks the attack's point" if any(one.space == "input" for _, one in shown) else ""
    return drawn(
        name,
        f"Mean cross-entropy (left) and accuracy (right) over a plane: {units}. The plus marks the origin{points}. "
        f"{_made([one for _, one in shown])} All maps share their scales.",
        "Mean cross-entropy: " + "; ".join(told(label, one) for label, one in shown) + ".",
        (theme.WIDTH, 0.75 + 2.05 * len(shown)),
        draw,
        "place",
        whole=False,
    )


def profile(surveys: Sequence[tuple[str, Landscape]], name: str = "profile") -> Drawing | None:
    """Draw loss and accuracy over one direction: landscapes that have a single place along the second."""
    shown = [(label, one) for label, one in surveys if len(one.b) == 1]
    if not shown:
        return None

    def draw(figure: Figure) -> list[Mark]:
        (loss, accuracy), losses, right = figure.subplots(2, 1, sharex=True), list[Mark](), list[Mark]()
        for position, (label, one) in enumerate(shown):
            hue, dashes = theme.colour(position), theme.dashes(position)
            mark = "o" if len(one.a) == 1 else ""
            nats, rates = [line[0] for line in one.loss], [100 * line[0] for line in one.accuracy]
            loss.plot(one.a, nats, color=hue, linestyle=dashes, marker=mark)
            accuracy.plot(one.a, rates, color=hue, linestyle=dashes, marker=mark)
            points = zip(one.a, nats, strict=True), zip(one.a, rates, strict=True)
            losses += along(loss, "cross-entropy, nats", label, points[0], [f"{value:.3g}" for value in nats])
            right += along(accuracy, "accuracy, %", label, points[1], [f"{value:.1f}" for value in rates])
        loss.set_ylabel("cross-entropy, nats")
        loss.set_ylim(bottom=0)
        accuracy.set_ylabel("accuracy, %")
        accuracy.set_ylim(0, 101)
        accuracy.set_xlabel("; ".join(dict.fromkeys(one.axes[0] for _, one in shown)))
        _legend(figure, [label for label, _ in shown])
        return losses + right

    def told(label: str, one: Landscape) -> str:
        values = [line[0] for line in one.loss]
        return f"{label} from {values[0]:.2f} over {min(values):.2f} to {values[-1]:.2f} nats"

    return drawn(
        name,
        "Mean cross-entropy and accuracy along one direction; 0 is the network or the image itself. "
        + _made([one for _, one in shown]),
        "Mean cross-entropy: " + "; ".join(told(label, one) for label, one in shown) + ".",
        _size(3.6, len(shown)),
        draw,
        "place",
    )


def curvature(surveys: Sequence[tuple[str, Curvature]]) -> Numbers | None:
    """Return the largest eigenvalues of the Hessian as a table; what has not converged is said to be a lower bound."""
    if not surveys:
        return None
    lines = []
    for label, one in surveys:
        low, median, high = one.quartiles
        value = f"{one.mean:.4g}" if one.space == "weights" else f"{median:.4g} ({low:.4g} to {high:.4g})"
        bound = "" if one.converged else "≥ "
        where = "weights" if one.space == "weights" else "input"
        lines.append(
            (label, f"{where}, {examples(one.examples)}", bound + value, f"{one.residual:.1e}", str(one.iterations),
             f"{one.n:,}")
        )  # fmt: skip
    note = (
        "The largest eigenvalue of the Hessian of the cross-entropy: of the mean loss in the weights, or of each "
        "image's own loss in the input, of which the median and the quartiles stand here. Residual: the greatest "
        "‖Hv \N{MINUS SIGN} θv‖/|θ|. ≥: the iteration ended before the tolerance, and the value is a lower bound."
    )
    return Numbers(("", "in, at", "largest eigenvalue", "residual", "iterations", "n"), tuple(lines), note)


def series(found: Evaluation, prefix: str, ending: str = "") -> list[tuple[int, Row]]:
    """Return the rows ``prefix.NUMBER`` + ``ending`` by number; the clean row stands for a 0 that is missing."""
    form = re.compile(rf"{re.escape(prefix)}\.(\d+){re.escape(ending)}")
    rows = {int(match[1]): row for row in found.rows if (match := form.fullmatch(row.name))}
    clean = found.row("clean")
    if rows and clean is not None:
        rows.setdefault(0, clean)
    return sorted(rows.items(), key=lambda item: item[0])


def corrupted(found: Evaluation) -> Mapping[str, Mapping[int, Row]]:
    """Return the rows of corruptions by type and severity."""
    rows: dict[str, dict[int, Row]] = {}
    for row in found.rows:
        match = re.fullmatch(r"corruption\.([a-z_]+)\.([1-5])", row.name)
        if match and match[1] in FIFTEEN:
            rows.setdefault(match[1], {})[int(match[2])] = row
    return rows


def plain(row: Row) -> float:
    """Return the accuracy whatever the clean verdict was, which is what the papers average; the strict one for want."""
    return row.accuracy if row.accuracy_after is None else row.accuracy_after


def missing(found: Evaluation, kinds: Sequence[str]) -> list[str]:
    """Return the types of which not every severity was measured."""
    rows = corrupted(found)
    return [kind for kind in kinds if len(rows.get(kind, {})) < len(SEVERITIES)]


def mean(found: Evaluation, kinds: Sequence[str]) -> float:
    """Return the mean accuracy over types of the mean over severities, NaN where one is missing."""
    rows = corrupted(found)
    if missing(found, kinds):
        return math.nan
    each = [sum(plain(row) for row in rows[kind].values()) / len(SEVERITIES) for kind in kinds]
    return sum(each) / len(each)


def difference(train: Row | None, test: Row | None) -> str:
    """Return the gap with the standard error of two independent sets of images; empty where one is missing."""
    if train is None or test is None:
        return ""
    error = math.hypot(train.error, test.error)
    return f"{theme.signed(train.accuracy - test.accuracy)} ± {theme.percent(error)}"


def middle(one: Direction) -> tuple[list[float], list[float]]:
    """Return the quartiles of the loss at each s; a standard deviation to either side where they were not taken."""
    if 0.25 in one.levels and 0.75 in one.levels:
        low, high = (one.levels.index(level) for level in (0.25, 0.75))
        return [line[low] for line in one.quantiles], [line[high] for line in one.quantiles]
    both = list(zip(one.loss, one.spread, strict=True))
    return [max(0.0, loss - spread) for loss, spread in both], [loss + spread for loss, spread in both]


def contours(values: Sequence[float], wide: bool = False) -> list[float]:
    """Return round levels that cover the values: even ones, or 1, 2, 5, 10, … where they span orders (``wide``)."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    if wide and low > 0.0 and high > 30.0 * low:
        tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        levels = [float(f"{digit}e{ten}") for ten in tens for digit in (1, 2, 5)]
    else:
        ticks = MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(low, max(high, low + 1e-6))
        levels = [float(level) for level in ticks]
    first = max((i for i, level in enumerate(levels) if level <= low), default=0)
    last = next((i for i, level in enumerate(levels) if level >= high), len(levels) - 1)
    return levels[first : max(last, first + 1) + 1]


def examples(made: str) -> str:
    """Return in short what images a survey was taken on."""
    steps = re.search(r"steps=(\d+)", made)
    return made if made == "clean" else f"{made.split('(')[0]}-{steps[1]}" if steps else made.split("(")[0]


def _made(shown: Sequence[Landscape]) -> str:
    kinds = ", ".join(dict.fromkeys(examples(one.examples) for one in shown))
    sizes = ", ".join(f"{n:,}" for n in dict.fromkeys(one.n for one in shown))
    return f"Examples: {kinds}; n = {sizes} images."


def _norm(levels: Sequence[float]) -> Any:
    """Return the scale on which each band between two levels has a colour of its own."""
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(levels, 256)


def _means(found: Evaluation) -> str:
    """Return both means, a line each; a type that is missing leaves no mean."""
    said = []
    for kinds in (TWELVE, FIFTEEN):
        gone = len(missing(found, kinds))
        value = f"{theme.percent(mean(found, kinds))} %" if not gone else f"{theme.NONE}, {gone} missing"
        said.append(f"mean of {len(kinds)}: {value}")
    return "\n".join(said)


def _value(row: Row | None) -> float:
    return math.nan if row is None else 100 * plain(row)


def _rate(row: Row | None) -> str:
    return theme.NONE if row is None else theme.percent(row.accuracy)


def _percents(found: Sequence[tuple[int, Row]]) -> list[float]:
    return [100 * row.accuracy for _, row in found]


def _band(axes: Axes, position: int, found: Sequence[tuple[int, Row]], places: Sequence[float] | None = None) -> None:
    """Draw accuracies as a line within one standard error; a single one as a dot."""
    hue, at = theme.colour(position), [float(k) for k, _ in found] if places is None else list(places)
    marker = "o" if len(found) == 1 else ""
    axes.plot(at, _percents(found), color=hue, linestyle=theme.dashes(position), marker=marker, markersize=3.5)
    _fill(axes, at, _percents(found), [100 * row.error for _, row in found], hue)


def _marks(
    axes: Axes, table: str, column: str, found: Sequence[tuple[int, Row]], places: Sequence[float] | None = None
) -> list[Mark]:
    at = [float(k) for k, _ in found] if places is None else places
    return along(axes, table, column, zip(at, _percents(found), strict=True), [worded(row) for _, row in found])


def _fill(axes: Axes, at: Sequence[float], values: Sequence[float], errors: Sequence[float], hue: str) -> None:
    pairs = list(zip(values, errors, strict=True))
    low, high = [value - error for value, error in pairs], [value + error for value, error in pairs]
    axes.fill_between(at, low, high, color=hue, alpha=BAND, linewidth=0)


def _rates(axes: Axes, shown: Sequence[Curve]) -> None:
    """Give an axis of accuracies its range, and draw chance."""
    axes.set_ylim(0, 101)
    for classes in sorted({len(one.evaluation.classes) for one in shown}):
        if classes > 1:
            axes.axhline(100 / classes, color=theme.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=theme.colour(i), linestyle=theme.dashes(i)) for i in range(len(labels))]
    told = [" " + theme.shorten(label, 26) for label in labels]  # one that begins with _ would be left out
    figure.legend(lines, told, loc="outside upper left", ncols=2, borderpad=0.1, columnspacing=1.4)


def _size(body: float, labels: int) -> tuple[float, float]:
    return (theme.WIDTH, body + 0.17 * math.ceil(labels / 2))


__all__ = [
    "FIFTEEN",
    "TWELVE",
    "Curve",
    "Gap",
    "Numbers",
    "budgets",
    "corruption_numbers",
    "corruptions",
    "curvature",
    "direction",
    "gaps",
    "iterations",
    "landscape",
    "profile",
]
