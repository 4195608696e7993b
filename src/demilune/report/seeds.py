"""Seeds of the same experiment: mean and standard deviation over trainings, which the error of the images is not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, final

from demilune.report import tables, theme
from demilune.report.compare import attacks
from demilune.report.curves import Numbers
from demilune.report.figures import Drawing, drawn
from demilune.report.files import Setting, setting
from demilune.report.read import Entry, Run
from demilune.report.values import Mark
from demilune.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ASIDE = ("name", "seed", "runtime")
"""Fields in which two trainings may differ and still be seeds of the same experiment; and where the data lie."""


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Evaluations in one setting of trainings that differ in nothing but their seed.

    ``evaluations`` are those of each seed, the fullest first.
    """

    label: str
    seeds: tuple[int, ...]
    evaluations: tuple[tuple[Entry, ...], ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The fullest evaluation of each seed."""
        return tuple(found[0] for found in self.evaluations)

    def alike(self, row: str) -> dict[int, Row]:
        """Return a row by seed, of those seeds alone that were attacked alike and on as many images in it.

        Of several ways to be alike that which most seeds share counts, of equals that on the most images, by the most
        attacks: a mean over other attacks would be of the attacks too.
        """
        ways: dict[tuple[Any, ...], dict[int, Row]] = {}
        for seed, found in zip(self.seeds, self.evaluations, strict=True):
            for entry in found:
                one, behind = entry.evaluation.row(row), attacks(entry.evaluation, row)
                if one is None:
                    continue
                random = row == "worst" and entry.evaluation.randomised  # the worst case of one attack, not of all
                ways.setdefault((one.n, len(behind), random, *sorted(behind.items())), {}).setdefault(seed, one)
        return ways[max(ways, key=lambda way: (len(ways[way]), *way[:2]))] if ways else {}

    def rates(self, row: str) -> list[float]:
        """Return the accuracies of a row, one for each seed of :meth:`alike`."""
        return [one.accuracy for one in self.alike(row).values()]

    def left(self, row: str) -> list[int]:
        """Return the seeds that have the row, but by other attacks or on another number of images than the rest."""
        having = [
            seed
            for seed, found in zip(self.seeds, self.evaluations, strict=True)
            if any(entry.evaluation.row(row) for entry in found)
        ]
        return [seed for seed in having if seed not in self.alike(row)]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Return the experiments that were trained with two seeds or more; of a seed trained twice the first run counts."""
    found: dict[tuple[str, Setting, str], dict[int, list[Entry]]] = {}
    for run in runs:
        seed = (run.experiment or {}).get("seed")
        if run.experiment is None or not isinstance(seed, int):
            continue
        entries = sorted(run.entries, key=lambda one: (-one.evaluation.rows[0].n, -len(one.evaluation.rows)))
        for entry in entries:
            checkpoint = entry.evaluation.checkpoint.split(" (")[0]
            of = found.setdefault((_same(run.experiment), setting(entry.evaluation), checkpoint), {})
            mine = of.setdefault(seed, [])
            if not mine or mine[0].run == entry.run:
                mine.append(entry)
    made = [(given, checkpoint, by_seed) for (_, given, checkpoint), by_seed in found.items() if len(by_seed) > 1]
    several = [len({part[i] for part in made}) > 1 for i in (0, 1)]
    names = [
        _method(by_seed)
        + (f" on {given[0]} ({given[1]}), {theme.ball(given[2], given[3])}" if several[0] else "")
        + (f" ({checkpoint})" if several[1] else "")
        for given, checkpoint, by_seed in made
    ]
    return [
        Group(
            name if names.count(name) == 1 else f"{name}: {', '.join(one[0].label for one in by_seed.values())}",
            tuple(by_seed),
            tuple(map(tuple, by_seed.values())),
        )
        for name, (_, _, by_seed) in zip(names, made, strict=True)
    ]


def numbers(made: Sequence[Group]) -> Numbers | None:
    """Return mean ± standard deviation over seeds by attack."""
    if not made:
        return None
    columns = tables.columns([entry for group in made for entry in group.entries])
    lines = []
    for group in made:
        rates = [group.rates(name) for name, _ in columns]
        cells = [_spread(found, len(group.seeds)) for found in rates]
        lines.append((group.label, str(len(group.seeds)), ", ".join(map(str, group.seeds)), *cells))
    note = (
        "Accuracy in %, the mean over trainings that differ in their seed alone ± their standard deviation (of one "
        "training, with k - 1 in the denominator), which holds the chance of the images too. In brackets the number of "
        "seeds where not all have the attack on as many images."
    )
    left = [
        f"{group.label}, {title}: seed{'s' * (len(out) > 1)} {', '.join(map(str, out))}"
        for group in made
        for name, title in columns
        if (out := group.left(name))
    ]
    if left:
        note += f" Left out, as by other attacks or on another number of images than most: {'; '.join(left)}."
    heads = ("", "k", "seeds", *(title for _, title in columns))
    return Numbers(heads, tuple(lines), note.replace(" - ", f" {theme.MINUS} "))


def drawing(made: Sequence[Group]) -> Drawing | None:
    """Draw mean and standard deviation by attack, every seed a dot."""
    if not made:
        return None
    rows = [
        (name, title)
        for name, title in tables.columns([entry for group in made for entry in group.entries])
        if any(len(group.rates(name)) > 1 for group in made)
    ]
    step = 1.0 / (len(made) + 1.2)

    def draw(figure: Figure) -> list[Mark]:
        from matplotlib.lines import Line2D

        axes, marks = figure.add_subplot(), list[Mark]()
        for i, (name, title) in enumerate(rows):
            for place, group in enumerate(made):
                rates, at = [100 * rate for rate in group.rates(name)], i + (place - (len(made) - 1) / 2) * step
                if len(rates) < 2:
                    continue
                hue = theme.colour(group.entries[0].run)
                axes.plot(rates, [at] * len(rates), "o", color=hue, markersize=2.5, alpha=0.7)
                axes.errorbar(
                    [fmean(rates)], [at], xerr=[stdev(rates)], color=hue, marker=theme.marker(group.entries[0].run),
                    markersize=6, elinewidth=1.3, markerfacecolor=theme.PAPER, markeredgewidth=1.2,
                )  # fmt: skip
                said = _spread(group.rates(name), len(group.seeds))
                marks.append(Mark("mean ± standard deviation, %", title, group.label, said, axes, fmean(rates), at))
        axes.set_yticks(range(len(rows)), [theme.shorten(title, 24) for _, title in rows], color=theme.INK)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        axes.set_xlim(-2, 102)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("accuracy, %")
        handles = [
            Line2D(
                [], [], color=theme.colour(group.entries[0].run), linestyle="none",
                marker=theme.marker(group.entries[0].run), markerfacecolor=theme.PAPER,
            )
            for group in made
        ]  # fmt: skip
        names = [f" {theme.shorten(group.label, 26)}" for group in made]
        figure.legend(handles, names, loc="outside upper left", ncols=2, borderpad=0.1, columnspacing=1.4)
        return marks

    told = "; ".join(
        f"{group.label} " + ", ".join(f"{title} {_spread(group.rates(name), len(group.seeds))}" for name, title in rows)
        for group in made
    )
    return drawn(
        "seeds",
        "Accuracy over seeds of the same experiment: mean (hollow) with one standard deviation to either side, and "
        "each training (dots).",
        f"In percent, mean and standard deviation: {told}.",
        (theme.WIDTH, 0.75 + len(rows) * (0.13 * len(made) + 0.14)),
        draw,
        "attack",
    )


def _same(experiment: Mapping[str, Any]) -> str:
    """Return what trainings of the same experiment share, as text."""
    rest = {name: value for name, value in experiment.items() if name not in ASIDE}
    if isinstance(data := rest.get("data"), dict):
        rest["data"] = {name: value for name, value in data.items() if name != "root"}
    return json.dumps(rest, sort_keys=True)


def _method(by_seed: Mapping[int, Sequence[Entry]]) -> str:
    return next(iter(by_seed.values()))[0].evaluation.method


def _spread(rates: Sequence[float], seeds: int) -> str:
    if not rates:
        return theme.NONE
    error = theme.percent(stdev(rates) if len(rates) > 1 else math.nan)
    return f"{theme.percent(fmean(rates))} ± {error}{'' if len(rates) == seeds else f' ({len(rates)})'}"


__all__ = ["Group", "drawing", "groups", "numbers"]
