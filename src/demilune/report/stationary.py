"""RWP's loss stationary condition: runs that perturb the weights on the examples of one range of losses, side by side.

Reads the run folders that ``demilune stationary`` trained, whose metrics hold what ``training.monitor`` recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from demilune.errors import DemiluneError
from demilune.report import theme
from demilune.report.figures import Drawing, best_epoch, drawn, epoch_axis
from demilune.report.read import Run, number, read
from demilune.results import standard_error
from demilune.runs import replacing, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "stationary"
SERIES = ("train_clean", "train_robust", "test_clean", "test_robust")
SIZE = (9.0, 4.5)  # inches: two columns, wider than a phone


@final
@dataclass(frozen=True, slots=True)
class Moment:
    """The accuracies of one epoch, on ``n`` training and ``n`` test images."""

    epoch: int
    n: int
    test_clean: float
    test_robust: float
    train_robust: float

    @property
    def gap(self) -> float:
        """How much more robust the network is on training images: the measure of robust overfitting."""
        return self.train_robust - self.test_robust

    @property
    def error(self) -> float:
        """Binomial standard error of ``test_robust``."""
        return standard_error(self.test_robust, self.n)

    @property
    def gap_error(self) -> float:
        """Standard error of ``gap``, of two independent sets of images."""
        return math.hypot(standard_error(self.train_robust, self.n), self.error)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "epoch": self.epoch,
            "n": self.n,
            "test_robust": self.test_robust,
            "test_robust_error": self.error,
            "test_clean": self.test_clean,
            "train_robust": self.train_robust,
            "train_robust_error": standard_error(self.train_robust, self.n),
            "gap": self.gap,
            "gap_error": self.gap_error,
        }


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """A range's run: its monitored epochs, and the three that count.

    ``best`` has the highest robust accuracy on the test images, ``chosen`` is the epoch of the best checkpoint, which
    the validation images chose; ``low`` and ``high`` are None for the run without a move.
    """

    label: str
    low: float | None
    high: float | None
    run: Run
    lines: tuple[Mapping[str, Any], ...]
    best: Moment
    chosen: Moment
    last: Moment

    def series(self, key: str) -> list[Any]:
        """Return one quantity of all monitored epochs."""
        return [line.get(key) for line in self.lines]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a range without an upper end has high null, which JSON has and infinity is not."""
        ends = {"low": self.low, "high": self.high}
        return {
            "range": self.label,
            **{name: end if end is not None and math.isfinite(end) else None for name, end in ends.items()},
            "folder": self.run.path.name,
            "best": self.best.to_json(),
            "chosen": self.chosen.to_json(),
            "last": self.last.to_json(),
            "fall": self.best.test_robust - self.last.test_robust,
            "curves": {
                "epoch": self.series("epoch"),
                **{key: self.series(key) for key in SERIES},
                "validation_robust": self.series("robust"),
            },
        }


def label(low: float, high: float) -> str:
    """Return a range as it is written on the command line: 0:0.5."""
    return ":".join(f"{end:g}" if float(f"{end:g}") == end else repr(end) for end in (low, high))


def build(folders: Sequence[Path], out: Path) -> str:
    """Write ``stationary.json``, ``.md``, ``.png`` and ``.svg`` of run folders into ``out``; return the table.

    The same input gives the same bytes.
    """
    curves = [curve(run) for run in read(folders)]
    text, drawing = to_markdown(curves), draw(curves)
    files = {"md": text.encode(), "png": drawing.png, "svg": drawing.svg.encode()}
    for kind, content in files.items():
        with replacing(out / f"{NAME}.{kind}") as beside:
            beside.write_bytes(content)
    write_json(out / f"{NAME}.json", to_json(curves))
    return text


def curve(run: Run) -> Curve:
    """Return a run's curve; refuses one that was not monitored."""
    lines = tuple(line for line in run.metrics if all(not math.isnan(number(line.get(key))) for key in SERIES))
    marked = best_epoch(run)
    if not lines or run.experiment is None or marked is None:
        raise DemiluneError(
            f"{run.path} has no accuracies of training and test images: train it with `demilune stationary`, or with "
            "training.monitor above 0"
        )
    move = run.experiment.get("move", {})
    moved = move.get("name") == "rwp"
    low, high = (number(move.get(end)) if moved else None for end in ("low", "c_min"))
    name = "none" if low is None or high is None else label(low, high)
    best = max(lines, key=lambda line: number(line["test_robust"]))  # the first of equals
    chosen = next((line for line in lines if line["epoch"] == marked["epoch"]), lines[-1])
    return Curve(name, low, high, run, lines, moment(best), moment(chosen), moment(lines[-1]))


def moment(line: Mapping[str, Any]) -> Moment:
    """Return one line of the metrics."""
    return Moment(
        line["epoch"], line["monitor_n"], *(number(line[key]) for key in ("test_clean", "test_robust", "train_robust"))
    )


def to_json(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the study in plain numbers; ``experiment`` is the first range's."""
    return {
        "best": "the epoch of the highest robust accuracy on the test images themselves, hence optimistic",
        "chosen": "the epoch that the validation images chose",
        "attack": attack(curves[0]),
        "move": perturbation(curves),
        "experiment": curves[0].run.experiment,
        "ranges": [one.to_json() for one in curves],
    }


def to_markdown(curves: Sequence[Curve]) -> str:
    """Return the table with all that has to be said of it."""
    head = ("range", "best on test", "epoch", "by validation", "epoch", "last", "fall", "gap at best", "gap at last")
    rows = [
        (
            one.label,
            _rate(one.best.test_robust, one.best.error),
            str(one.best.epoch),
            _rate(one.chosen.test_robust, one.chosen.error),
            str(one.chosen.epoch),
            _rate(one.last.test_robust, one.last.error),
            theme.percent(one.best.test_robust - one.last.test_robust),
            f"{theme.signed(one.best.gap)} ± {theme.percent(one.best.gap_error)}",
            f"{theme.signed(one.last.gap)} ± {theme.percent(one.last.gap_error)}",
        )
        for one in curves
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    for row in padded:
        row[0] = row[0].lstrip().ljust(widths[0])
    table = "\n".join("| " + " | ".join(row) + " |" for row in (padded[0], ruler, *padded[1:]))
    return "\n\n".join((f"**{title(curves)}**", table, *notes(curves))) + "\n"


def title(curves: Sequence[Curve]) -> str:
    """Return what the study is of, in one line."""
    run = curves[0].run.experiment or {}
    ball = run.get("ball", {})
    about = f"{run['method']['name']} on {run['data']['name']}, {theme.ball(ball['norm'], ball['eps'])}"
    return f"Loss stationary condition: {about}; robust accuracy under {attack(curves[0])}, %"


def notes(curves: Sequence[Curve]) -> list[str]:
    """Return how the table is to be read."""
    first, epochs = curves[0], len(curves[0].lines)
    move = ", ".join(["rwp", *(f"{name} {value}" for name, value in perturbation(curves).items())])
    chosen = "the epoch that the held-out training images chose, which is what to compare"
    if not number(first.lines[-1].get("validation_n")) > 0:
        chosen = "the last epoch, because no images were held out to choose by"
    return [
        "A range low:high holds the examples with low ≤ loss < high, the loss above its label's entropy, which alone "
        f"perturb the weights ({move}); none: the same training without it.",
        f"Best on test is the highest of {epochs} epochs on the very test images it is told for, as in the paper's "
        f"protocol: it is chosen on the test images, hence optimistic. By validation is {chosen}. Fall: from best on "
        "test to last. Gap: robust accuracy on training minus test images.",
        f"n = {first.last.n} test and {first.last.n} training images without augmentation, the same for every range; "
        f"± one binomial standard error; one seed ({(first.run.experiment or {}).get('seed')}) per range. Every figure "
        "is an upper bound: a stronger attack may break more.",
    ]


def attack(one: Curve) -> str:
    """Return the name of the attack the images were judged by."""
    return f"PGD-{(one.run.experiment or {})['training']['validation']['steps']}"


def perturbation(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return what the moves of all ranges have in common; empty where there is none."""
    move: Mapping[str, Any] = next(((one.run.experiment or {})["move"] for one in curves if one.low is not None), {})
    return {name: value for name, value in move.items() if name not in ("name", "low", "c_min")}


def hues(curves: Sequence[Curve]) -> list[tuple[str, theme.Dashes]]:
    """Return the look of each curve: a colour for the upper end of its range, dashes for those that share one."""
    ends = sorted({one.high for one in curves if one.high is not None})
    found: list[tuple[str, theme.Dashes]] = []
    seen: list[float] = []
    for one in curves:
        if one.high is None:
            found.append((theme.INK, "-"))
            continue
        found.append((theme.colour(ends.index(one.high)), theme.DASHES[seen.count(one.high) % len(theme.DASHES)]))
        seen.append(one.high)
    return found


def draw(curves: Sequence[Curve]) -> Drawing:
    """Draw robust accuracy on the test images over epochs, and best, last and gap against the range."""
    looks = hues(curves)

    def paint(figure: Figure) -> None:
        grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1.0), height_ratios=(1.35, 1.0))
        left = figure.add_subplot(grid[:, 0])
        for one, (hue, dash) in zip(curves, looks, strict=True):
            values = [100 * number(value) for value in one.series("test_robust")]
            left.plot(one.series("epoch"), values, color=hue, linestyle=dash, linewidth=1.3)
            _mark(left, one.best.epoch, one.best.test_robust, hue, "D")
            _mark(left, one.last.epoch, one.last.test_robust, hue, "o")
        left.set_ylabel(f"robust accuracy on {curves[0].last.n} test images, % ({attack(curves[0])})")
        epoch_axis(left)
        upper = figure.add_subplot(grid[0, 1])
        lower = figure.add_subplot(grid[1, 1], sharex=upper)
        for place, (one, (hue, _)) in enumerate(zip(curves, looks, strict=True)):
            for shift, shape, at in ((-0.22, "D", one.best), (0.0, "s", one.chosen), (0.22, "o", one.last)):
                _mark(upper, place + shift, at.test_robust, hue, shape, at.error)
                _mark(lower, place + shift, at.gap, hue, shape, at.gap_error)
        upper.set_ylabel("robust accuracy, test, %")
        lower.set_ylabel(f"gap, train {theme.MINUS} test, %")
        lower.axhline(0.0, color=theme.MUTED, linewidth=0.7)
        lower.set_xticks(range(len(curves)), [one.label for one in curves], color=theme.INK)
        if len(curves) > 7:  # side by side the names would run into each other
            for text in lower.get_xticklabels():
                text.set(rotation=45, ha="right", rotation_mode="anchor")
        lower.set_xlabel("losses that perturb the weights, low:high")
        upper.tick_params(labelbottom=False)
        for axes in (upper, lower):
            axes.set_xlim(-0.6, len(curves) - 0.4)
            axes.grid(visible=False, axis="x")
            axes.margins(y=0.12)
        _legend(figure, curves, looks)

    told = "; ".join(
        f"{one.label} best {theme.percent(one.best.test_robust)}, last {theme.percent(one.last.test_robust)}, gap "
        f"{theme.signed(one.last.gap)}"
        for one in curves
    )
    return drawn(
        NAME,
        f"{title(curves)}. Left: over epochs. Right: by range, with one standard error. A diamond marks the best epoch "
        "on the test images themselves, hence optimistic; a square the epoch the validation images chose; a dot the "
        "last.",
        f"In percent: {told}.",
        (SIZE[0], SIZE[1] + 0.17 * max(3, math.ceil(len(curves) / _COLUMNS))),
        paint,
    )


_COLUMNS = 4


def _mark(axes: Axes, x: float, rate: float, hue: str, shape: str, error: float | None = None) -> None:
    """Draw one value: filled for the last epoch, hollow for one that was chosen."""
    axes.errorbar(
        [x], [100 * rate], yerr=None if error is None else [100 * error], linestyle="none", color=hue, marker=shape,
        markersize=4.5, markerfacecolor=hue if shape == "o" else theme.PAPER, markeredgewidth=1.2, elinewidth=1.1,
        capsize=0, zorder=3,
    )  # fmt: skip


def _legend(figure: Figure, curves: Sequence[Curve], looks: Sequence[tuple[str, theme.Dashes]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=hue, linestyle=dash, linewidth=1.6) for hue, dash in looks]
    labels = [f" {one.label}" for one in curves]
    figure.legend(lines, labels, loc="outside upper left", ncols=_COLUMNS, borderpad=0.1, columnspacing=1.4)
    marks = {
        "D": "best epoch on the test images themselves (optimistic)",
        "s": "epoch chosen on the validation images",
        "o": "last epoch",
    }
    shapes = [
        Line2D(
            [], [], color=theme.MUTED, linestyle="none", marker=shape, markersize=5,
            markerfacecolor=theme.MUTED if shape == "o" else theme.PAPER,
        )
        for shape in marks
    ]  # fmt: skip
    figure.legend(shapes, list(marks.values()), loc="outside upper right", borderpad=0.1)


def _rate(rate: float, error: float) -> str:
    return f"{theme.percent(rate)} ± {theme.percent(error)}"


__all__ = ["build", "label"]
