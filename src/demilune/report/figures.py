"""The drawings of a report: values in, an SVG and a PNG out. Never pyplot, which keeps global figures."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from demilune.paired import LEVEL
from demilune.report import theme, verdicts
from demilune.report.compare import Pair, aside, tested
from demilune.report.read import Entry, Run, number
from demilune.report.tables import Published, columns
from demilune.report.values import Mark, Values, along, values
from demilune.results import Row

MOST = 15  # pairs in one figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: its file's stem, what it shows, the same in short for who cannot see it, its bytes, and its values."""

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes
    values: tuple[Values, ...] = ()


def training(runs: Sequence[Run]) -> list[Drawing]:
    """Draw how the runs were trained; runs without metrics are left out."""
    shown = [(position, run) for position, run in enumerate(runs) if run.metrics]
    if not shown:
        return []
    drawings = [loss(shown), rate(shown), validation(shown)]
    notes = [(position, run) for position, run in shown if any(_notes(line) for line in run.metrics)]
    return [*drawings, region(notes)] if notes else drawings


def loss(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw loss - floor over epochs."""

    title = f"loss {theme.MINUS} label entropy, nats"

    def draw(figure: Figure) -> list[Mark]:
        axes = figure.add_subplot()
        marks = [mark for position, run in runs for mark in _line(axes, position, run, "excess", title, "{:.3f}")]
        axes.set_ylabel(title)
        epoch_axis(axes)
        _legend(figure, runs)
        return marks

    last = "; ".join(f"{run.label} {number(run.metrics[-1].get('excess')):.3f}" for _, run in runs)
    return drawn(
        "loss",
        "Training loss above its floor, the entropy of the labels: methods with soft labels cannot go below "
        "it, so only the excess can be compared.",
        f"Loss minus label entropy over epochs. At the end: {last}.",
        (theme.WIDTH, _height(2.5, len(runs))),
        draw,
        "epoch",
    )


def rate(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw the learning rate over epochs."""
    schedules = {tuple(zip(*_series(run, "rate"), strict=True)) for _, run in runs}
    shared = len(runs) > 1 and len(schedules) == 1
    levels = [{value for _, value in schedule} for schedule in schedules]
    values = set().union(*levels)
    # in steps a rate drops by factors, in ramps it goes down to nothing
    most = max(len(run.metrics) for _, run in runs) // 4
    stepped = min(values, default=0.0) > 0 and max(map(len, levels)) <= most and len(values) > 1

    def draw(figure: Figure) -> list[Mark]:
        axes, marks = figure.add_subplot(), list[Mark]()
        for position, run in runs[:1] if shared else runs:
            marks += _line(axes, position, run, "rate", "learning rate", "{:.4g}", "all runs" if shared else run.label)
        if shared:  # no run's colour: the lines would hide each other
            axes.lines[0].set(color=theme.INK, linestyle="-")
        if stepped:
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_ylabel("learning rate" + (" (log)" if stepped else ""))
        epoch_axis(axes)
        if not shared:
            _legend(figure, runs)
        return marks

    spans = "; ".join(
        f"{run.label} from {number(run.metrics[0].get('rate')):g} to {number(run.metrics[-1].get('rate')):g}"
        for _, run in runs
    )
    return drawn(
        "rate",
        "Learning rate at the end of each epoch" + (", the same for all runs." if shared else "."),
        f"Learning rate over epochs: {spans}.",
        (theme.WIDTH, _height(2.5, 0 if shared else len(runs))),
        draw,
        "epoch",
    )


def validation(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw validation accuracy, clean and robust, over epochs, the best and the last checkpoint marked."""

    def draw(figure: Figure) -> list[Mark]:
        axes, clean_marks, robust_marks = figure.add_subplot(), list[Mark](), list[Mark]()
        for position, run in runs:
            hue, best = theme.colour(position), best_epoch(run)
            chosen = best["epoch"] if best is not None else None
            epochs, clean = _series(run, "clean")
            clean = _percent(clean)
            axes.plot(epochs, clean, color=hue, linewidth=1.0, linestyle=theme.DOTTED)
            said = [f"{value:.1f}" for value in clean]
            clean_marks += along(axes, "clean, %", run.label, zip(epochs, clean, strict=True), said)
            epochs, robust = _series(run, "robust")
            robust = _percent(robust)
            axes.plot(epochs, robust, color=hue, linestyle=theme.dashes(position))
            axes.plot(epochs[-1:], robust[-1:], "o", color=hue, markersize=4)
            last = epochs[-1] if epochs else None
            said = [
                f"{value:.1f}{' best' if epoch == chosen else ''}{' last' if epoch == last else ''}"
                for epoch, value in zip(epochs, robust, strict=True)
            ]
            robust_marks += along(axes, "under PGD, %", run.label, zip(epochs, robust, strict=True), said)
            if best is not None:
                axes.plot(
                    [best["epoch"]], [100 * number(best.get("robust"))], "D",
                    color=hue, markerfacecolor=theme.PAPER, markersize=6, markeredgewidth=1.4,
                )  # fmt: skip
        axes.set_ylabel("validation accuracy, %")
        axes.set_ylim(0, _top(mark.y for mark in robust_marks + clean_marks))
        epoch_axis(axes)
        _legend(figure, runs)
        return robust_marks + clean_marks

    def end(run: Run) -> str:
        line = validated(run)
        if line is None:
            return f"{run.label} not validated"
        clean, robust = theme.percent(number(line.get("clean"))), theme.percent(number(line.get("robust")))
        return f"{run.label} {clean} clean and {robust} under PGD at epoch {line['epoch']}"

    return drawn(
        "validation",
        "Accuracy on held-out training images: thin and dotted clean, thick under PGD. A diamond marks the best "
        "checkpoint, a dot the last.",
        "Validation accuracy over epochs, in percent: " + "; ".join(end(run) for _, run in runs) + ".",
        (theme.WIDTH, _height(3.1, len(runs))),
        draw,
        "epoch",
    )


def region(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw what RAT's region was like: found rate, τ, and the distance from x_f to x_e."""
    panels = (
        ("found", "share found"),
        ("tau", "mean τ, steps"),
        ("first_to_end", f"‖x_f {theme.MINUS} x_e‖ / ε"),
    )

    def draw(figure: Figure) -> list[Mark]:
        marks = list[Mark]()
        for row, (key, title) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, row + 1)
            for position, run in runs:
                found = [(line["epoch"], number(_notes(line).get(key))) for line in run.metrics]
                axes.plot(
                    *zip(*found, strict=True), marker="o", markersize=2.5,
                    color=theme.colour(position), linestyle=theme.dashes(position),
                )  # fmt: skip
                found = [(epoch, value) for epoch, value in found if not math.isnan(value)]
                marks += along(axes, title, run.label, found, [f"{value:.2f}" for _, value in found])
            axes.set_ylabel(title)
            axes.margins(y=0.2)
            epoch_axis(axes)
            axes.label_outer()
        _legend(figure, runs)
        return marks

    def end(run: Run) -> str:
        notes = _notes(run.metrics[-1])
        return f"{run.label}: " + ", ".join(f"{title} {number(notes.get(key)):.2f}" for key, title in panels)

    return drawn(
        "region",
        "RAT's region per epoch: the share of images for which some iterate of the attack fools the network; "
        "the first step τ at which it does; and how far that first adversarial point lies from the last. "
        "Where none is found the region is a segment.",
        "Three curves over epochs; at the end " + "; ".join(end(run) for _, run in runs) + ".",
        (theme.WIDTH, _height(3.9, len(runs))),
        draw,
        "epoch",
    )


def accuracy(entries: Sequence[Entry], name: str) -> Drawing:
    """Draw accuracy by attack, a dot with its standard error for each evaluation."""
    rows = columns(entries)
    step = 1.0 / (len(entries) + 1.2)
    titles = [title for _, title in rows]
    scored = [row for entry in entries for name, _ in rows if (row := entry.evaluation.row(name))]
    unique = [title if titles.count(title) == 1 else f"{title} ({name})" for name, title in rows]

    def draw(figure: Figure) -> list[Mark]:
        axes, marks = figure.add_subplot(), list[Mark]()
        for place, entry in enumerate(entries):
            found = [(i, row) for i, (name, _) in enumerate(rows) if (row := entry.evaluation.row(name))]
            at = [i + (place - (len(entries) - 1) / 2) * step for i, _ in found]
            axes.errorbar(
                [100 * row.accuracy for _, row in found], at,
                xerr=[100 * row.error for _, row in found],
                linestyle="none", color=theme.colour(entry.run), marker=theme.marker(entry.run, entry.place),
                markersize=4.5, elinewidth=1.3, capsize=0,
            )  # fmt: skip
            marks += [
                Mark("accuracy, %", unique[i], entry.label, worded(row), axes, 100 * row.accuracy, y)
                for (i, row), y in zip(found, at, strict=True)
            ]
        classes = len(entries[0].evaluation.classes)
        if classes > 1:
            axes.axvline(100 / classes, color=theme.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), [theme.shorten(title, 24) for _, title in rows], color=theme.INK)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(-2, _top((row.accuracy + row.error) * 100 for row in scored))
        axes.grid(visible=False, axis="y")
        for boundary in range(1, len(rows)):
            axes.axhline(boundary - 0.5, color=theme.RULE, linewidth=0.6)
        axes.set_xlabel("accuracy, %")
        _legend(figure, [(entry.run, entry) for entry in entries])
        return sorted(marks, key=lambda mark: unique.index(mark.row))

    def told(entry: Entry) -> str:
        found = [row for name, _ in rows if (row := entry.evaluation.row(name))]
        return f"{entry.label} " + ", ".join(f"{row.title} {theme.percent(row.accuracy)}" for row in found)

    height = 0.55 + len(rows) * (0.085 * len(entries) + 0.14)
    return drawn(
        name,
        "Accuracy by attack, with one standard error to either side. The dashed line is chance. "
        + verdicts.told(entries),
        f"Accuracy in percent: {'; '.join(told(entry) for entry in entries)}.",
        (theme.WIDTH, _height(height, len(entries))),
        draw,
        "attack",
    )


def tradeoff(entries: Sequence[Entry], beside: Sequence[Published], name: str) -> Drawing:
    """Draw worst case against clean accuracy, with the published points of the same methods hollow."""
    scored = [(e, a, b) for e in entries if (a := e.evaluation.row("clean")) and (b := e.evaluation.row("worst"))]

    methods = {entry.evaluation.method for entry in entries}
    theirs = [one for one in beside if one.method in methods]
    unfair = aside([entry for entry, _, _ in scored], "worst")

    def marked(axes: Axes, name: str, place: tuple[float, float], said: tuple[str, str]) -> list[Mark]:
        heads = ("clean", "worst case")
        return [Mark("accuracy, %", name, head, text, axes, *place) for head, text in zip(heads, said, strict=True)]

    def draw(figure: Figure) -> list[Mark]:
        axes, marks = figure.add_subplot(), list[Mark]()
        for one in theirs:
            at = (one.values["clean"], one.weakest)
            marks += marked(axes, f"{one.label}, published", at, (f"{at[0]:.2f}", f"{at[1]:.2f}"))
            axes.plot(*at, "o", color=theme.MUTED, markerfacecolor=theme.PAPER, markersize=5.5)
            axes.annotate(
                f"{one.label}, published", at, xytext=(-6, 5), textcoords="offset points",
                ha="right", color=theme.MUTED, fontsize=7.5,
            )  # fmt: skip
        for entry, clean, worst in scored:
            axes.errorbar(
                [100 * clean.accuracy], [100 * worst.accuracy],
                xerr=[100 * clean.error], yerr=[100 * worst.error],
                linestyle="none", color=theme.colour(entry.run), marker=theme.marker(entry.run, entry.place),
                markersize=6, elinewidth=1.2,
            )  # fmt: skip
            at = (100 * clean.accuracy, 100 * worst.accuracy)
            called = f"{entry.label} (other attacks)" if entry in unfair else entry.label
            marks += marked(axes, called, at, (worded(clean), worded(worst)))
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel("worst-case accuracy, % (upper bound)")
        axes.margins(0.12)
        axes.set_ylim(bottom=min(-2.0, axes.get_ylim()[0]))
        _legend(figure, [(entry.run, entry) for entry, _, _ in scored])
        return marks

    hollow = (
        " Hollow: the paper's figures, with the lowest of its attacks as worst case, a weaker set than ours."
        if theirs
        else ""
    )
    named = ", ".join(entry.label for entry in unfair)
    apart = f" Not attacked like the others, and so not to be compared in height: {named}." if unfair else ""
    told = "; ".join(
        f"{entry.label} {theme.percent(clean.accuracy)} clean, {theme.percent(worst.accuracy)} worst case"
        for entry, clean, worst in scored
    )
    return drawn(
        name,
        f"Worst-case against clean accuracy: up and to the right is better.{apart}{hollow} "
        + verdicts.told([entry for entry, _, _ in scored]),
        f"In percent: {told}.",
        (theme.WIDTH, _height(3.3, len(scored))),
        draw,
        "model",
    )


def differences(pairs: Sequence[Pair], name: str) -> Drawing | None:
    """Draw paired differences of worst-case accuracy, first minus second, with two standard errors; None for none.

    Pairs that were not attacked alike are left out: their differences are of the attacks too.
    """
    fair = [(one, one.first.label, one.second.label, one.difference) for one in pairs if tested(one)]
    shown = [(one, first, second, found) for one, first, second, found in fair[:MOST] if found is not None]
    unfair = sum(one.difference is not None for one in pairs) - len(fair)
    if not shown:
        return None

    def draw(figure: Figure) -> list[Mark]:
        axes, marks = figure.add_subplot(), list[Mark]()
        axes.axvline(0.0, color=theme.INK, linewidth=0.9)
        for i, (pair, first, second, found) in enumerate(shown):
            axes.errorbar(
                [100 * found.value], [i], xerr=[200 * found.error], color=theme.INK if pair.clear else theme.MUTED,
                marker="o", markerfacecolor=theme.INK if pair.clear else theme.PAPER, markersize=5, elinewidth=1.4,
            )  # fmt: skip
            said = f"{theme.signed(found.value)} ± {theme.percent(found.error)}"
            marks.append(
                Mark("points", f"{first} {theme.MINUS} {second}", "difference", said, axes, 100 * found.value, i)
            )
        labels = [
            f"{theme.shorten(first, 16)} {theme.MINUS} {theme.shorten(second, 16)}" for _, first, second, _ in shown
        ]
        axes.set_yticks(range(len(shown)), labels, color=theme.INK)
        axes.set_ylim(len(shown) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference in worst-case accuracy, points")
        return marks

    told = "; ".join(
        f"{first} minus {second} {theme.signed(found.value)} ± {theme.percent(found.error)}"
        for _, first, second, found in shown
    )
    more = f" The first {MOST} of {len(fair)} pairs." if len(fair) > MOST else ""
    more += f" Left out, as not attacked alike: {unfair} pair{'s' * (unfair > 1)}." if unfair else ""
    return drawn(
        name,
        "Worst-case accuracy on the same images, first minus second, with two standard errors to either side. Full: "
        f"more than chance (McNemar's p, corrected for all pairs, below {100 * LEVEL:g} %); hollow: not.{more}",
        f"In points: {told}.",
        (theme.WIDTH, 0.7 + 0.24 * len(shown)),
        draw,
        "pair",
    )


def best_epoch(run: Run) -> Mapping[str, Any] | None:
    """Return the metrics of the epoch that gave the best checkpoint."""
    return next((line for line in reversed(run.metrics) if line.get("best")), None)


def validated(run: Run) -> Mapping[str, Any] | None:
    """Return the metrics of the last epoch that was validated."""
    return next((line for line in reversed(run.metrics) if not math.isnan(number(line.get("robust")))), None)


def drawn(
    name: str,
    caption: str,
    alt: str,
    size: tuple[float, float],
    draw: Callable[[Figure], Sequence[Mark] | None],
    corner: str = "",
    whole: bool = True,
) -> Drawing:
    """Return what ``draw`` puts on a figure of so many inches, as PNG and SVG whose bytes depend on it alone.

    Of the marks that it returns tables are made; ``corner`` is what their rows are called, and ``whole`` whether the
    cells of a row belong together.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # after_reset: whatever the user's matplotlibrc says, the same input gives the same bytes
    with warnings.catch_warnings(), matplotlib.style.context(theme.STYLE, after_reset=True):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a run named in another script
        figure = Figure(figsize=size, layout="constrained")
        marks = draw(figure) or ()
        svg, png = io.StringIO(), io.BytesIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata=nothing)  # last: the marks lie where this one was laid out
        tables = values(marks, figure, corner, whole)
    return Drawing(name, caption, alt, svg.getvalue(), png.getvalue(), tables)


def _top(values: Iterable[float]) -> float:
    """Return where an axis of accuracies in percent may end: a ten above all of them, but zero where it began."""
    return min(102.0, 10.0 * math.ceil((max(values, default=100.0) + 2.0) / 10.0) + 1.0)


def _height(body: float, labels: int) -> float:
    return body + 0.17 * math.ceil(labels / 2)


def _legend(figure: Figure, shown: Sequence[tuple[int, Run | Entry]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=theme.colour(position),
            linestyle=theme.dashes(position) if isinstance(one, Run) else "none",
            marker="none" if isinstance(one, Run) else theme.marker(one.run, one.place),
        )
        for position, one in shown
    ]  # fmt: skip
    labels = [" " + theme.shorten(one.label, 26) for _, one in shown]  # one that begins with _ would be left out
    figure.legend(handles, labels, loc="outside upper left", ncols=2, borderpad=0.1, columnspacing=1.4)


def worded(row: Row) -> str:
    """Return a row's accuracy in percent with its standard error."""
    return f"{theme.percent(row.accuracy)} ± {theme.percent(row.error)}"


def epoch_axis(axes: Axes) -> None:
    """Let an axis of epochs have whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("epoch")


def _line(
    axes: Axes, position: int, run: Run, key: str, table: str, form: str, column: str | None = None
) -> list[Mark]:
    epochs, found = _series(run, key)
    marker = "o" if len(epochs) == 1 else ""
    axes.plot(epochs, found, color=theme.colour(position), linestyle=theme.dashes(position), marker=marker)
    said = [form.format(value) for value in found]
    return along(axes, table, column or run.label, zip(epochs, found, strict=True), said)


def _series(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Return epochs and values, without the epochs that have none (not each is validated)."""
    found = [(line["epoch"], value) for line in run.metrics if not math.isnan(value := number(line.get(key)))]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _percent(values: Sequence[float]) -> list[float]:
    return [100.0 * value for value in values]


def _notes(line: Mapping[str, Any]) -> Mapping[str, Any]:
    notes = line.get("notes")
    return notes if isinstance(notes, dict) and "found" in notes else {}
