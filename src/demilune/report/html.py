"""The page: what it says, in the order it says it. How it looks is template.html."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from statistics import median
from typing import Any, final

import jinja2
from markupsafe import Markup, escape

from demilune.paired import LEVEL
from demilune.report import compare, figures, seeds, tables, theme, verdicts
from demilune.report.compare import Pair
from demilune.report.gallery import galleries
from demilune.report.panels import Panel, Plate
from demilune.report.read import Entry, Run, number


@final
@dataclass(frozen=True, slots=True)
class Section:
    """Everything the page says about the evaluations of one setting (data, split, ball).

    ``tradeoff`` is None where clean or worst-case accuracy is missing, ``differences`` where no two evaluations have
    results of the same images under the same attacks.
    """

    title: str
    entries: tuple[Entry, ...]
    summary: tuple[str, ...]
    bound: str
    table: tables.Table
    remarks: tuple[str, ...]
    pairs: tuple[Pair, ...]
    beside: tables.Beside | None
    accuracy: Plate
    tradeoff: Plate | None
    differences: Plate | None

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The figures."""
        return tuple(one for one in (self.accuracy, self.tradeoff, self.differences) if one is not None)


def sections(runs: Sequence[Run]) -> list[Section]:
    """Return what there is to say about each setting."""
    groups = compare.settings([entry for run in runs for entry in run.entries])
    made = []
    for position, entries in enumerate(groups, 1):
        suffix = f"-{position}" if len(groups) > 1 else ""
        measured = tuple(dict.fromkeys(entry.evaluation.command for entry in entries if entry.evaluation.command))
        accuracy = Plate(figures.accuracy(entries, f"accuracy{suffix}"), None, (), measured)
        tradeoff = None
        if all(any(entry.evaluation.row(name) for entry in entries) for name in ("clean", "worst")):
            drawing = figures.tradeoff(entries, tables.published(entries), f"tradeoff{suffix}")
            tradeoff = Plate(drawing, None, (), measured)
        pairs = compare.pairs(entries)
        apart = figures.differences(pairs, f"differences{suffix}")
        title = _title(entries[0])
        same = [_title(others[0]) for others in groups].count(title) > 1
        made.append(
            Section(
                f"{title}, setting {position}" if same else title,
                tuple(entries),
                tuple(summary(entries)),
                tables.bound(entries),
                tables.main(entries),
                tuple(tables.remarks(entries)),
                tuple(pairs),
                tables.beside(entries, runs),
                accuracy,
                tradeoff,
                None if apart is None else Plate(apart, None, (), measured),
            )
        )
    return made


def _title(entry: Entry) -> str:
    found = entry.evaluation
    return f"{found.data} ({found.split}), {theme.ball(found.norm, found.eps)}"


def training(runs: Sequence[Run]) -> list[Plate]:
    """Return the figures of how the runs were trained."""
    trained = [run.environment.get("command") for run in runs if run.metrics and run.environment]
    commands = tuple(dict.fromkeys(str(command) for command in trained if command))
    return [Plate(drawing, None, (), commands) for drawing in figures.training(runs)]


def repeated(runs: Sequence[Run]) -> Plate | None:
    """Return what the seeds of the same experiment say together; None where each has but one."""
    made = seeds.groups(runs)
    commands = dict.fromkeys(
        command
        for group in made
        for found in group.evaluations
        for entry in found
        if (command := entry.evaluation.command)
    )
    drawing = seeds.drawing(made)
    return None if drawing is None else Plate(drawing, seeds.numbers(made), (), tuple(commands))


def summary(entries: Sequence[Entry]) -> list[str]:
    """Say in plain words who came out best, and whether by more than chance."""
    said = []
    for name, words in (("clean", "on clean images"), ("worst", "in the worst case")):
        scored = [(entry, row) for entry in entries if (row := entry.evaluation.row(name))]
        if not scored:
            continue
        n = usual([(entry.run, row.n) for entry, row in scored])
        others = sum(row.n != n for _, row in scored)
        scored = [(entry, row) for entry, row in scored if row.n == n]
        of = f" (of the {len(scored)} evaluations on so many images)" if others else ""
        unfair = compare.aside([entry for entry, _ in scored], name)
        fair = [(entry, row) for entry, row in scored if entry not in unfair]
        runs, alike = ({entry.run for entry, _ in some} for some in (scored, fair))
        if unfair and runs == alike:  # what is attacked otherwise is so besides
            scored, unfair, of = fair, [], f" (of the {len(fair)} evaluations by the same attacks on so many images)"
        top = max(row.accuracy for _, row in scored)
        leaders = [(entry, row) for entry, row in scored if row.accuracy == top]
        row = leaders[0][1]
        figure = f"{theme.percent(row.accuracy)} ± {theme.percent(row.error)} % of {row.n:,} images"
        if len(scored) == 1:
            said.append(f"{words[0].upper()}{words[1:]}, {leaders[0][0].label} is right on {figure}.")
        elif unfair:
            said.append(f"{words[0].upper()}{words[1:]}, not all were attacked alike{of}: none is called best.")
        elif len(leaders) == len(scored):
            said.append(f"{words[0].upper()}{words[1:]}, all are equal: {figure}{of}.")
        else:
            names = " and ".join(entry.label for entry, _ in leaders)
            said.append(f"Best {words}: {names}, right on {figure}{of}.")
    pairs = compare.pairs(entries)
    known = [(pair, pair.difference.n) for pair in pairs if pair.difference is not None]
    n = usual([(pair.first.run, n) for pair, n in known])
    ahead = [pair for pair, size in known if size == n] or pairs
    if ahead:
        said.append(f"In the worst case, {comparison(ahead[0])}.")
    return said


def usual(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the number of images that most runs were asked, of (run, number of images); the larger of equals.

    What other numbers of images say is no rival: few are right by chance, and not all runs were asked many.
    """
    runs: dict[int, set[int]] = {}
    for run, n in sizes:
        runs.setdefault(n, set()).add(run)
    return max(runs, key=lambda n: (len(runs[n]), n), default=0)


def comparison(pair: Pair) -> str:
    """Say which of two evaluations is better, with the error of the difference."""
    found, first, second = pair.difference, pair.first.label, pair.second.label
    if found is None:
        return f"{first} and {second} cannot be compared: no per-image results of the same images"
    figure = f"{theme.signed(found.value)} ± {theme.percent(found.error)} points, paired on {found.n:,} images"
    if pair.note:
        return f"{first} and {second} were not attacked alike, and neither is called better ({figure}; {pair.note})"
    figure += f", p {'' if pair.corrected < 1e-4 else '= '}{compare.probability(pair.corrected)}"
    if not pair.clear:
        return f"there is no difference at {100 * LEVEL:g} % between {first} and {second} ({figure})"
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


def versions(environment: Mapping[str, Any]) -> str:
    """Return the versions that an environment names."""
    given = environment.get("versions")
    found = [f"{name} {value}" for name, value in given.items()] if isinstance(given, dict) else []
    if environment.get("python"):
        found.append(f"Python {environment['python']}")
    return ", ".join(found) or "not recorded"


def hardware(environment: Mapping[str, Any]) -> str:
    """Return the machine that an environment names."""
    cores = environment.get("cores")
    found = [environment.get("processor"), f"{cores} cores" if cores else None, environment.get("device")]
    return "; ".join(str(one) for one in [*found, environment.get("platform")] if one) or "not recorded"


def commit(environment: Mapping[str, Any]) -> str:
    """Return the commit that an environment names."""
    git = environment.get("git")
    if not isinstance(git, dict) or not git.get("commit"):
        return "not known: the package did not lie in a git checkout of its own"
    return f"{git['commit']}{', with changes that were not committed' if git.get('changed') else ''}"


def pictureless(entries: Sequence[Entry]) -> list[str]:
    """Say of which evaluations there are no example images, and why."""
    return [
        f"{entry.label}: no example images, {entry.path.stem}.gallery.npz is missing or holds none."
        for entry in entries
        if entry.gallery is None
    ]


def valued(cell: str) -> Markup:
    """Return the attribute by which a cell is sorted: the number that it begins with, after the mark of a bound."""
    found = re.match(r"(?:≥ )?([-+\N{MINUS SIGN}]?[0-9][0-9,]*\.?[0-9]*(?:e[-+]?[0-9]+)?)", cell)
    if found is None:
        return Markup("")
    return Markup(f' data-value="{found[1].replace(",", "").replace(theme.MINUS, "-")}"')


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def page(
    runs: Sequence[Run],
    shown: Sequence[Section],
    trained: Sequence[Plate],
    panels: Sequence[Panel],
    together: Plate | None,
) -> str:
    """Return the whole report as one HTML file, which may load nothing and run no script but its own."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": theme.percent,
        "signed": theme.signed,
        "inline": lambda drawing: theme.inline(drawing.svg, drawing.name),
        "probability": compare.probability,
        "soft": lambda text: Markup(str(escape(text)).replace("_", "_<wbr>")),
        "key": lambda entry: theme.key(entry.run, entry.place),
        "valued": valued,
        "versions": versions,
        "hardware": hardware,
        "commit": commit,
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
        "best": tables.BEST,
        "training": trained,
        "seeds": together,
        "panels": panels,
        "progress": [progress(run) for run in runs if run.metrics],
        "galleries": galleries(entries),
        "pictureless": pictureless(entries),
        "own_command": shlex.join(["demilune", "report", *(str(run.path) for run in runs), "--out", "report"]),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "style": _file("page.css"),
        "commands": {run.label: commands(run) for run in runs},
        "colours": theme.COLOURS,
    }
    return environment.from_string(_file("template.html")).render(context)
