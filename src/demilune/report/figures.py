"""The drawings of a report: values in, an SVG and a PNG out. Never pyplot, which keeps global figures."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from demilune.report import theme, verdicts
from demilune.report.read import Entry, Run, number
from demilune.report.tables import Published, columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@final
@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: its file's stem, what it shows, the same in numbers for who cannot see it, and its bytes."""

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes


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

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for position, run in runs:
            _line(axes, position, run, "excess")
        axes.set_ylabel(f"loss {theme.MINUS} label entropy, nats")
        epoch_axis(axes)
        _legend(figure, runs)

    last = "; ".join(f"{run.label} {number(run.metrics[-1].get('excess')):.3f}" for _, run in runs)
    return drawn(
        "loss",
        "Training loss above its floor, the entropy of the labels: methods with soft labels cannot go below "
        "it, so only the excess can be compared.",
        f"Loss minus label entropy over epochs. At the end: {last}.",
        (theme.WIDTH, _height(2.5, len(runs))),
        draw,
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

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for position, run in runs[:1] if shared else runs:
            _line(axes, position, run, "rate")
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
    )


def validation(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw validation accuracy, clean and robust, over epochs, the best and the last checkpoint marked."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for position, run in runs:
            hue = theme.colour(position)
            epochs, clean = _series(run, "clean")
            axes.plot(epochs, _percent(clean), color=hue, linewidth=1.0, linestyle=(0, (1, 1.6)))
            epochs, robust = _series(run, "robust")
            robust = _percent(robust)
            axes.plot(epochs, robust, color=hue, linestyle=theme.dashes(position))
            axes.plot(epochs[-1:], robust[-1:], "o", color=hue, markersize=4)
            best = best_epoch(run)
            if best is not None:
                axes.plot(
                    [best["epoch"]], [100 * number(best.get("robust"))], "D",
                    color=hue, markerfacecolor=theme.PAPER, markersize=6, markeredgewidth=1.4,
                )  # fmt: skip
        axes.set_ylabel("validation accuracy, %")
        axes.set_ylim(0, 101)
        epoch_axis(axes)
        _legend(figure, runs)

    def end(run: Run) -> str:
        line = validated(run)
        if line is None:
            return f"{run.label} not validated"
        clean, robust = theme.percent(number(line.get("clean"))), theme.percent(number(line.get("robust")))
        return f"{run.label} {clean} clean and {robust} under PGD at epoch {line['epoch']}"

    return drawn(
        "validation",
        "Accuracy on held-out training images: dotted clean, solid under PGD. A diamond marks the best "
        "checkpoint, a dot the last.",
        "Validation accuracy over epochs, in percent: " + "; ".join(end(run) for _, run in runs) + ".",
        (theme.WIDTH, _height(3.1, len(runs))),
        draw,
    )


def region(runs: Sequence[tuple[int, Run]]) -> Drawing:
    """Draw what RAT's region was like: found rate, τ, and the distance from x_f to x_e."""
    panels = (
        ("found", "share found"),
        ("tau", "mean τ, steps"),
        ("first_to_end", f"‖x_f {theme.MINUS} x_e‖ / ε"),
    )

    def draw(figure: Figure) -> None:
        for row, (key, title) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, row + 1)
            for position, run in runs:
                values = [number(_notes(line).get(key)) for line in run.metrics]
                axes.plot(
                    [line["epoch"] for line in run.metrics], values, marker="o", markersize=2.5,
                    color=theme.colour(position), linestyle=theme.dashes(position),
                )  # fmt: skip
            axes.set_ylabel(title)
            axes.margins(y=0.2)
            epoch_axis(axes)
            axes.label_outer()
        _legend(figure, runs)

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
    )


def accuracy(entries: Sequence[Entry], name: str) -> Drawing:
    """Draw accuracy by attack, a dot with its standard error for each evaluation."""
    rows = columns(entries)
    step = 1.0 / (len(entries) + 1.2)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, entry in enumerate(entries):
            found = [(i, row) for i, (name, _) in enumerate(rows) if (row := entry.evaluation.row(name))]
            axes.errorbar(
                [100 * row.accuracy for _, row in found],
                [i + (place - (len(entries) - 1) / 2) * step for i, _ in found],
                xerr=[100 * row.error for _, row in found],
                linestyle="none", color=theme.colour(entry.run), marker=theme.marker(entry.place),
                markersize=4.5, elinewidth=1.3, capsize=0,
            )  # fmt: skip
        classes = len(entries[0].evaluation.classes)
        if classes > 1:
            axes.axvline(100 / classes, color=theme.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_yticks(range(len(rows)), [theme.shorten(title, 24) for _, title in rows], color=theme.INK)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(-2, 102)
        axes.grid(visible=False, axis="y")
        for boundary in range(1, len(rows)):
            axes.axhline(boundary - 0.5, color=theme.RULE, linewidth=0.6)
        axes.set_xlabel("accuracy, %")
        _legend(figure, [(entry.run, entry) for entry in entries])

    def told(entry: Entry) -> str:
        found = [row for name, _ in rows if (row := entry.evaluation.row(name))]
        return f"{entry.label} " + ", ".join(f"{row.title} {theme.percent(row.accuracy)}" for row in found)

    height = 0.55 + len(rows) * (0.1 * len(entries) + 0.14)
    return drawn(
        name,
        "Accuracy by attack, with one standard error to either side. The dashed line is chance. "
        + verdicts.told(entries),
        f"Accuracy in percent: {'; '.join(told(entry) for entry in entries)}.",
        (theme.WIDTH, _height(height, len(entries))),
        draw,
    )


def tradeoff(entries: Sequence[Entry], beside: Sequence[Published], name: str) -> Drawing:
    """Draw worst case against clean accuracy, with the published points of the same methods hollow."""
    scored = [(e, a, b) for e in entries if (a := e.evaluation.row("clean")) and (b := e.evaluation.row("worst"))]

    methods = {entry.evaluation.method for entry in entries}
    theirs = [one for one in beside if one.method in methods]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for one in theirs:
            at = (one.values["clean"], one.weakest)
            axes.plot(*at, "o", color=theme.MUTED, markerfacecolor=theme.PAPER, markersize=5.5)
            axes.annotate(
                f"{one.label}, published", at, xytext=(-6, 5), textcoords="offset points",
                ha="right", color=theme.MUTED, fontsize=7.5,
            )  # fmt: skip
        for entry, clean, worst in scored:
            axes.errorbar(
                [100 * clean.accuracy], [100 * worst.accuracy],
                xerr=[100 * clean.error], yerr=[100 * worst.error],
                linestyle="none", color=theme.colour(entry.run), marker=theme.marker(entry.place),
                markersize=6, elinewidth=1.2,
            )  # fmt: skip
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel("worst-case accuracy, % (upper bound)")
        axes.margins(0.12)
        axes.set_ylim(bottom=min(-2.0, axes.get_ylim()[0]))
        _legend(figure, [(entry.run, entry) for entry, _, _ in scored])

    hollow = (
        " Hollow: the paper's figures, with the lowest of its attacks as worst case, a weaker set than ours."
        if theirs
        else ""
    )
    told = "; ".join(
        f"{entry.label} {theme.percent(clean.accuracy)} clean, {theme.percent(worst.accuracy)} worst case"
        for entry, clean, worst in scored
    )
    return drawn(
        name,
        f"Worst-case against clean accuracy: up and to the right is better.{hollow} "
        + verdicts.told([entry for entry, _, _ in scored]),
        f"In percent: {told}.",
        (theme.WIDTH, _height(3.3, len(scored))),
        draw,
    )


def best_epoch(run: Run) -> Mapping[str, Any] | None:
    """Return the metrics of the epoch that gave the best checkpoint."""
    return next((line for line in reversed(run.metrics) if line.get("best")), None)


def validated(run: Run) -> Mapping[str, Any] | None:
    """Return the metrics of the last epoch that was validated."""
    return next((line for line in reversed(run.metrics) if not math.isnan(number(line.get("robust")))), None)


def drawn(name: str, caption: str, alt: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Drawing:
    """Return what ``draw`` puts on a figure of so many inches, as PNG and SVG whose bytes depend on it alone."""
    import matplotlib.style
    from matplotlib.figure import Figure

    # after_reset: whatever the user's matplotlibrc says, the same input gives the same bytes
    with warnings.catch_warnings(), matplotlib.style.context(theme.STYLE, after_reset=True):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a run named in another script
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", metadata=nothing)
        figure.savefig(png, format="png", metadata={"Software": None})
    return Drawing(name, caption, alt, svg.getvalue(), png.getvalue())


def _height(body: float, labels: int) -> float:
    return body + 0.17 * math.ceil(labels / 2)


def _legend(figure: Figure, shown: Sequence[tuple[int, Run | Entry]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=theme.colour(position),
            linestyle=theme.dashes(position) if isinstance(one, Run) else "none",
            marker="none" if isinstance(one, Run) else theme.marker(one.place),
        )
        for position, one in shown
    ]  # fmt: skip
    labels = [" " + theme.shorten(one.label, 26) for _, one in shown]  # one that begins with _ would be left out
    figure.legend(handles, labels, loc="outside upper left", ncols=2, borderpad=0.1, columnspacing=1.4)


def epoch_axis(axes: Axes) -> None:
    """Let an axis of epochs have whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("epoch")


def _line(axes: Axes, position: int, run: Run, key: str) -> None:
    epochs, values = _series(run, key)
    marker = "o" if len(epochs) == 1 else ""
    axes.plot(epochs, values, color=theme.colour(position), linestyle=theme.dashes(position), marker=marker)


def _series(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Return epochs and values, without the epochs that have none (not each is validated)."""
    found = [(line["epoch"], value) for line in run.metrics if not math.isnan(value := number(line.get(key)))]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _percent(values: Sequence[float]) -> list[float]:
    return [100.0 * value for value in values]


def _notes(line: Mapping[str, Any]) -> Mapping[str, Any]:
    notes = line.get("notes")
    return notes if isinstance(notes, dict) and "found" in notes else {}
