"""The page: what it says, in the order it says it. How it looks is template.html."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import median
from typing import Any, final

import jinja2

from demilune.report import compare, figures, tables, theme, verdicts
from demilune.report.compare import Pair
from demilune.report.figures import Drawing
from demilune.report.gallery import galleries
from demilune.report.panels import Panel
from demilune.report.read import Entry, Run, number


@final
@dataclass(frozen=True, slots=True)
class Section:
    """Everything the page says about the evaluations of one setting (data, split, ball)."""

    title: str
    entries: tuple[Entry, ...]
    summary: tuple[str, ...]
    bound: str
    table: tables.Table
    remarks: tuple[str, ...]
    pairs: tuple[Pair, ...]
    beside: tables.Beside | None
    drawings: tuple[Drawing, ...]


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return what there is to say about each setting."""
    groups = compare.settings([entry for run in runs for entry in run.entries])
    made = []
    for position, entries in enumerate(groups, 1):
        suffix = f"-{position}" if len(groups) > 1 else ""
        found = entries[0].evaluation
        drawings = [figures.accuracy(entries, f"accuracy{suffix}")]
        if all(any(entry.evaluation.row(name) for entry in entries) for name in ("clean", "worst")):
            drawings.append(figures.tradeoff(entries, tables.published(entries), f"tradeoff{suffix}"))
        made.append(
            Section(
                f"{found.data} ({found.split}), {theme.ball(found.norm, found.eps)}",
                tuple(entries),
                tuple(summary(entries)),
                tables.bound(entries),
                tables.main(entries),
                tuple(tables.remarks(entries)),
                tuple(compare.pairs(entries)),
                tables.beside(entries, runs),
                tuple(drawings),
            )
        )
    return made


def summary(entries: Sequence[Entry]) -> list[str]:
    """Say in plain words who came out best, and whether by more than chance."""
    said = []
    for name, words in (("clean", "on clean images"), ("worst", "in the worst case")):
        scored = [(entry, row) for entry in entries if (row := entry.evaluation.row(name))]
        if not scored:
            continue
        top = max(row.accuracy for _, row in scored)
        leaders = [(entry, row) for entry, row in scored if row.accuracy == top]
        row = leaders[0][1]
        figure = f"{theme.percent(row.accuracy)} ± {theme.percent(row.error)} % of {row.n:,} images"
        if len(entries) == 1:
            said.append(f"{words[0].upper()}{words[1:]}, {entries[0].label} is right on {figure}.")
        elif len(leaders) == len(scored):
            said.append(f"{words[0].upper()}{words[1:]}, all are equal: {figure}.")
        else:
            names = " and ".join(entry.label for entry, _ in leaders)
            said.append(f"Best {words}: {names}, right on {figure}.")
    ahead = compare.pairs(entries)
    if ahead:
        said.append(f"In the worst case, {comparison(ahead[0])}.")
    return said


def comparison(pair: Pair) -> str:
    """Say which of two evaluations is better, with the error of the difference."""
    found, first, second = pair.difference, pair.first.label, pair.second.label
    if found is None:
        return f"{first} and {second} cannot be compared: no per-image results of the same images"
    figure = f"{theme.signed(found.value)} ± {theme.percent(found.error)} points, paired on {found.n:,} images"
    if not found.clear:
        return f"there is no difference beyond 2 standard errors between {first} and {second} ({figure})"
    return f"{first} beats {second} ({figure})"


def progress(run: Run) -> dict[str, Any]:
    """Return how a run was trained, in numbers, for the table below the curves."""
    seconds = [number(line.get("seconds")) for line in run.timing]
    speeds = [value for line in run.timing if not math.isnan(value := number(line.get("images_per_second")))]
    plan = (run.experiment or {}).get("training")
    return {
        "label": run.label,
        "epochs": run.metrics[-1]["epoch"],
        "planned": plan.get("epochs") if isinstance(plan, dict) and not plan.get("steps") else None,
        "best": figures.best_epoch(run),
        "last": figures.validated(run),
        "seconds": sum(seconds) if seconds else math.nan,
        "speed": median(speeds) if speeds else math.nan,
        "alarms": [(line["epoch"], line["alarm"]) for line in run.metrics if line.get("alarm")],
    }


def commands(run: Run) -> list[str]:
    """Return the command lines that made a run and its evaluations, as they were recorded."""
    first = [str(run.environment["command"])] if run.environment and run.environment.get("command") else []
    return list(dict.fromkeys(first + [entry.evaluation.command for entry in run.entries if entry.evaluation.command]))


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if math.isnan(seconds):
        return theme.NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def page(runs: Sequence[Run], shown: Sequence[Section], training: Sequence[Drawing], panels: Sequence[Panel]) -> str:
    """Return the whole report as one HTML file."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": theme.percent,
        "signed": theme.signed,
        "inline": lambda drawing: theme.inline(drawing.svg, drawing.name),
        "json": lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        "duration": duration,
        "budget": theme.budget,
        "points": theme.points,
        "short": verdicts.short,
        "rest": verdicts.rest,
        "examined": verdicts.examined,
        "tight": theme.tight,
        "number": number,
    }
    entries = [entry for run in runs for entry in run.entries]
    labels = [run.label for run in runs]
    context: Mapping[str, Any] = {
        "title": "Robustness of " + (", ".join(labels) if len(labels) <= 3 else f"{len(labels)} runs"),
        "runs": runs,
        "entries": entries,
        "sections": shown,
        "waiting": [(run.label, f"demilune evaluate {shlex.quote(str(run.path))}") for run in runs if not run.entries],
        "marks": verdicts.MARKS,
        "training": training,
        "panels": panels,
        "progress": [progress(run) for run in runs if run.metrics],
        "galleries": galleries(entries),
        "commands": {run.label: commands(run) for run in runs},
        "colours": theme.COLOURS,
    }
    template = resources.files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(context)
