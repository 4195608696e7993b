"""The tables of a report as values, and as Markdown, CSV and LaTeX: no robust accuracy without its verdict."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

from demilune import papers
from demilune.report import reference, theme, verdicts
from demilune.report.compare import tied, unlike
from demilune.report.read import Entry, Run, number

UPPER_BOUND = (
    "The worst case counts an image as right only if no attack of the table broke it: an upper bound on "
    "robust accuracy, because a stronger attack may break more."
)

BEST = "best of the column, on the most images and where all were attacked alike"
"""What a mark says."""

AUTOATTACK = ("autoattack", "autoattack_plus", "autoattack_rand")
"""The rows of AutoAttack as a whole; its partial sums are not AutoAttack."""


@final
@dataclass(frozen=True, slots=True)
class Cell:
    """A strict accuracy; ``mark`` is "best" in its column, "tied" within two paired errors of that, or empty."""

    accuracy: float
    error: float
    n: int
    mark: str


@final
@dataclass(frozen=True, slots=True)
class Line:
    """An evaluation's cells in the order of the table's columns, None where an attack was not run."""

    entry: Entry
    cells: tuple[Cell | None, ...]

    @property
    def n(self) -> int:
        """Number of images of the first attack, clean."""
        return self.entry.evaluation.rows[0].n


@final
@dataclass(frozen=True, slots=True)
class Table:
    """The evaluations of one setting; a column is an attack's name and title."""

    columns: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]


@final
@dataclass(frozen=True, slots=True)
class Published:
    """A line of a published table: percent by attack."""

    method: str
    label: str
    values: Mapping[str, float]

    @property
    def weakest(self) -> float:
        """The lowest of the published accuracies under attack."""
        return min(value for name, value in self.values.items() if name != "clean")


@final
@dataclass(frozen=True, slots=True)
class BesideLine:
    """A published line, or one of ours (``entry`` set), in percent in the papers' reading."""

    label: str
    entry: Entry | None
    cells: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Beside:
    """A paper's table with ours below each method, and the paper's own contradictions.

    ``differences`` says how our settings differ: (labels of the evaluations, one line per difference).
    """

    source: str
    columns: tuple[str, ...]
    lines: tuple[BesideLine, ...]
    differences: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    notes: tuple[str, ...]


def columns(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """Return the attacks of all entries, (name, title); one that only some ran follows its predecessor.

    Readings that count for the worst case alone, and probes, which do not even that, are no columns.
    """
    found: dict[str, str] = {}
    order: list[str] = []
    for entry in entries:
        before = 0
        for row in entry.evaluation.rows:
            if row.role != "attack":
                continue
            if row.name not in found:
                found[row.name] = row.title
                order.insert(before, row.name)
            before = order.index(row.name) + 1
    return [(name, found[name]) for name in order]


def main(entries: Sequence[Entry]) -> Table:
    """Return the table of one setting, the best of each column marked."""
    heads = columns(entries)
    marked = [_column(entries, name) for name, _ in heads]
    return Table(
        tuple(_heads(heads)),
        tuple(Line(entry, tuple(column[i] for column in marked)) for i, entry in enumerate(entries)),
    )


def _heads(columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the columns with the titles of partial sums cut to what they add to the one before: "+ FAB-T"."""
    before = [""] + [title for _, title in columns]
    return [
        (name, title.removeprefix(f"{last} ") if last and title.startswith(f"{last} + ") else title)
        for (name, title), last in zip(columns, before, strict=False)
    ]


def _column(entries: Sequence[Entry], name: str) -> list[Cell | None]:
    """Return a column's cells: the best is one of those on the most images, and of none where attacks differ."""
    rows = [entry.evaluation.row(name) for entry in entries]
    most = max((row.n for row in rows if row is not None), default=0)
    fair = [(entry, row) for entry, row in zip(entries, rows, strict=True) if row is not None and row.n == most]
    alike = all(not unlike(fair[0][0], entry, name) for entry, _ in fair[1:])
    values = {row.accuracy for _, row in fair} if alike else set()
    best = max(values) if len(values) > 1 else None
    leader = next((entry for entry, row in fair if row.accuracy == best), None)
    cells: list[Cell | None] = []
    for entry, row in zip(entries, rows, strict=True):
        if row is None:
            cells.append(None)
            continue
        mark = ""
        if leader is not None and row.n == most:
            mark = "best" if row.accuracy == best else "tied" if tied(entry, leader, name) else ""
        cells.append(Cell(row.accuracy, row.error, row.n, mark))
    return cells


def published(entries: Sequence[Entry]) -> list[Published]:
    """Return the lines of RAT's Table 1 for the entries' data, none unless data and ball are the paper's."""
    part = _part(entries[0])
    if part is None:
        return []
    return [
        Published(row["method"], row["label"], dict(zip(part["columns"], row["values"], strict=True)))
        for row in part["rows"]
    ]


def beside(entries: Sequence[Entry], runs: Sequence[Run]) -> Beside | None:
    """Return RAT's Table 1 with our numbers; None unless data and ball are the paper's."""
    part, paper = _part(entries[0]), papers.published("rat")
    if part is None:
        return None
    titles = dict(columns(entries))
    lines, left = [], list(entries)
    for row in part["rows"]:
        lines.append(BesideLine(f"{row['label']}, published", None, tuple(f"{v:.2f}" for v in row["values"])))
        ours = [entry for entry in left if entry.evaluation.method == row["method"]]
        lines += [_ours(entry, part["columns"]) for entry in ours]
        left = [entry for entry in left if entry not in ours]
    lines += [_ours(entry, part["columns"]) for entry in left]
    different: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        found = tuple(differences(entry, runs[entry.run], part, paper["setting"]))
        different.setdefault(found, []).append(entry.label)
    named = {"clean": "Clean", "fgsm": "FGSM", "pgd10": "PGD-10", "cw10": "CW∞-10", "nattack": "NATTACK"}
    return Beside(
        f"{paper['title']}, arXiv {paper['arxiv']}v{paper['version']}, Table 1: {part['model_title']}",
        tuple(titles.get(name, named.get(name, name)) for name in part["columns"]),
        tuple(lines),
        tuple((tuple(labels), lines) for lines, labels in different.items()),
        tuple(note["text"] for note in paper["notes"] if 1 in note["tables"]),
    )


def _part(entry: Entry) -> dict[str, Any] | None:
    """Return the part of Table 1 with the entry's data, if the ball is the paper's too."""
    found, setting = entry.evaluation, papers.published("rat")["setting"]
    if (
        found.split != "test"
        or found.norm != setting["norm"]
        or abs(found.eps - float(Fraction(setting["eps"]))) > 1e-6
    ):
        return None
    parts: list[dict[str, Any]] = papers.table("rat", 1)["parts"]
    return next((part for part in parts if part["data"] == found.data.lower()), None)


def _ours(entry: Entry, names: Sequence[str]) -> BesideLine:
    cells = []
    for name in names:
        row = entry.evaluation.row(name)
        # clean, the two readings are one
        after = row.accuracy if row and name == "clean" else row.accuracy_after if row else None
        cells.append(theme.NONE if after is None else theme.percent(after, 2))
    return BesideLine(entry.label, entry, tuple(cells))


def differences(entry: Entry, run: Run, part: Mapping[str, Any], paper: Mapping[str, Any]) -> list[str]:
    """Say in which respects an evaluation's setting is not the paper's, one line each."""
    found, said = entry.evaluation, []
    if not found.data_official:
        said.append("data: the paper's are the official files; ours are not")
    if run.experiment is None:
        said.append(f"net: the paper's is {part['model_title']}; ours is {found.architecture}")
        said.append("training: not known, the model was evaluated without its run")
    else:
        said += _training(run, run.experiment, found.architecture, part, paper)
    n = found.rows[0].n
    if n != part["test_images"]:
        said.append(f"test images: the paper's are {part['test_images']:,}; ours are {n:,}")
    return said


def _training(
    run: Run,
    experiment: Mapping[str, Any],
    architecture: str,
    part: Mapping[str, Any],
    paper: Mapping[str, Any],
) -> list[str]:
    said = []
    model, plan = _section(experiment, "model"), _section(experiment, "training")
    if any(model.get(key) != value for key, value in part["model"].items()):
        said.append(f"net: the paper's is {part['model_title']}; ours is {architecture}")
    said += reference.fields(experiment, part["data"])
    batch = number(plan.get("batch"))
    steps = number(run.metrics[-1].get("step")) if run.metrics else math.nan
    if not steps > 0:
        return [*said, "training: not known, the run has no metrics"]
    if steps != paper["steps"] or batch != paper["batch"]:
        said.append(
            f"training: the paper's is {paper['steps']:,} steps of {paper['batch']} images; "
            f"ours {theme.count(steps)} of {theme.count(batch)} ({run.metrics[-1]['epoch']} epochs)"
        )
    images = batch * number(run.metrics[0].get("step")) / run.metrics[0]["epoch"]
    if abs(images - part["train_images"]) >= batch:
        said.append(f"training images: the paper's are {part['train_images']:,}; ours about {theme.count(images)}")
    said += _schedule(run, paper)
    return said


def _schedule(run: Run, paper: Mapping[str, Any]) -> list[str]:
    """Compare the learning rates, drops as fractions of the run; an epoch logs the rate of its last step."""
    total, before = number(run.metrics[-1].get("step")), 0.0
    levels: list[tuple[int, float]] = []
    drops: list[tuple[float, float]] = []
    for line in run.metrics:
        value, done = number(line.get("rate")), number(line.get("step"))
        if not levels or abs(value - levels[-1][1]) > 1e-9:
            levels.append((line["epoch"], value))
            drops.append((before, done))
        before = done
    wanted = [(step * total / paper["steps"], value) for step, value in paper["rates"]]
    if len(levels) == len(wanted) and all(
        abs(value - target) < 1e-6 and first <= step < last
        for (_, value), (first, last), (step, target) in zip(levels, drops, wanted, strict=True)
    ):
        return []
    if len(levels) <= 4:
        ours = ", ".join(f"{value:g} from epoch {epoch}" for epoch, value in levels)
    else:
        values = [value for _, value in levels]
        ours = f"between {min(values):.2g} and {max(values):.2g}, ending at {values[-1]:.2g}"
    theirs = ", ".join(f"{value:g} from step {step:,}" for step, value in paper["rates"])
    return [f"learning rate: the paper's is {theirs}; ours {ours}"]


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


_CSV = (
    "run", "checkpoint", "method", "data", "split", "official", "norm", "eps", "attack", "n", "right", "accuracy",
    "standard_error", "accuracy_after", "forwards", "gradients", "verdict", "verdict_text", "strongest_attack",
)  # fmt: skip


def to_csv(entries: Sequence[Entry]) -> str:
    """Return one line per evaluation and attack, in full precision: accuracies in [0,1], passes per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for entry in entries:
        found, verdict = entry.evaluation, entry.verdict
        head = [entry.label, found.checkpoint, found.method, found.data, found.split, found.data_official]
        head += [found.norm, found.eps]
        told = [verdict.kind, verdict.text, verdict.strongest]
        for row in found.rows:
            if row.role != "attack":
                continue
            after = "" if row.accuracy_after is None else row.accuracy_after
            counts = [row.name, row.n, row.right, row.accuracy, row.error, after, row.forwards, row.gradients]
            writer.writerow((*head, *counts, *told))
    return text.getvalue()


def to_markdown(groups: Sequence[Sequence[Entry]]) -> str:
    """Return the tables of all settings as Markdown, the whole verdicts below each."""
    parts = []
    for entries in groups:
        table = main(entries)
        lines = [
            [_md(said) for said in _named(line)] + [_marked(cell, line, _md_cell) for cell in line.cells]
            for line in table.lines
        ]
        head = ["run", "verdict", "n", *(_md(title) for _, title in table.columns)]
        rows = [head, ["---", "---", *["---:"] * (len(head) - 2)], *lines]
        said = [f"**{_md(caption(entries))}**", "\n".join("| " + " | ".join(row) + " |" for row in rows)]
        parts += [*said, f"Bold ★: {BEST}. {bound(entries)}"]
        parts.append("\n".join(f"- {_md(line)}" for line in (*_sentences(entries), *remarks(entries))))
    return "\n\n".join(parts) + "\n"


def to_latex(groups: Sequence[Sequence[Entry]]) -> str:
    """Return the tables of all settings as LaTeX, for the package booktabs, the whole verdicts below each."""
    parts = ["% needs \\usepackage{booktabs}"]
    for entries in groups:
        table = main(entries)
        head = ["run", "verdict", "$n$", *(_tex(title) for _, title in table.columns)]
        lines = [
            [_tex(said) for said in _named(line)] + [_marked(cell, line, _tex_cell) for cell in line.cells]
            for line in table.lines
        ]
        notes = " ".join([bound(entries), *(f"{line}." for line in remarks(entries))])
        parts += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_tex(caption(entries) + '. ' + notes)}}}",
            f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            "\\toprule",
            " & ".join(head) + " \\\\",
            "\\midrule",
            *(" & ".join(line) + " \\\\" for line in lines),
            "\\bottomrule",
            "\\end{tabular}",
            "\\par\\smallskip\\raggedright\\footnotesize",
            *(f"{_tex(said)}.\\par" for said in _sentences(entries)),
            "\\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _named(line: Line) -> list[str]:
    """Return what a line begins with: the run, whether to believe it, and of how many images."""
    return [line.entry.label, verdicts.short(line.entry.verdict), str(line.n)]


def _sentences(entries: Sequence[Entry]) -> list[str]:
    return [f"{entry.label}: {entry.verdict.text}" for entry in entries]


def caption(entries: Sequence[Entry]) -> str:
    """Return what the group's table shows."""
    found = entries[0].evaluation
    return f"{found.data} ({found.split}), {theme.ball(found.norm, found.eps)}: accuracy in % ± standard error"


def bound(entries: Sequence[Entry]) -> str:
    """Return what a worst case is, and whether AutoAttack, the field's measure of it, was run."""
    lacking = [entry.label for entry in entries if not any(entry.evaluation.row(name) for name in AUTOATTACK)]
    if not lacking:
        return UPPER_BOUND
    of = f" on {', '.join(lacking)}" if len(lacking) < len(entries) else ""
    return f"{UPPER_BOUND} AutoAttack was not run{of}."


def remarks(entries: Sequence[Entry]) -> list[str]:
    """Return the lines that must stand beside the numbers.

    Methods nobody published so, attacks that are not quite what they are called (with the runs whose they are, unless
    it is all), data not the official files.
    Sums are cut to 16 digits; the page's provenance has them whole.
    """
    told = [f"{e.label}: {e.evaluation.method}" for e in entries if "(" in e.evaluation.method]
    lines = ["not as published: " + "; ".join(dict.fromkeys(told))] if told else []
    notes: dict[str, list[str]] = {}
    for e in entries:
        for row in e.evaluation.rows:
            if row.role == "attack" and row.note:
                notes.setdefault(f"{row.title}: {row.note}", []).append(e.label)
    whole = {note: len(labels) == len(entries) for note, labels in notes.items()}
    lines += [note if whole[note] else f"{', '.join(labels)}: {note}" for note, labels in notes.items()]
    found = entries[0].evaluation
    if all(entry.evaluation.data_official for entry in entries):
        return lines
    sums = ", ".join(f"{name} {value[:16]}" for name, value in sorted(found.data_sha256.items())) or "not recorded"
    return [*lines, f"data: not the official files, sha256 {sums}"]


def _marked(cell: Cell | None, line: Line, written: Callable[[str, str, str], str]) -> str:
    if cell is None:
        return theme.NONE if written is _md_cell else "--"
    n = f" (n {cell.n})" if cell.n != line.n else ""
    return written(theme.percent(cell.accuracy), f"{theme.percent(cell.error)}{n}", cell.mark)


def _md_cell(value: str, error: str, mark: str) -> str:
    return f"**{value}** ± {error} ★" if mark == "best" else f"{value} ± {error}"


def _tex_cell(value: str, error: str, mark: str) -> str:
    return f"\\textbf{{{value}}} $\\pm$ {error}$^\\star$" if mark == "best" else f"{value} $\\pm$ {error}"


def _md(text: str) -> str:
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + letter if letter in "\\`*_[]|#$~" else letter for letter in text)


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{",
    "}": "\\}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", '"': "''", "±": "$\\pm$", "∞": "$\\infty$",
    "ε": "$\\varepsilon$", "η": "$\\eta$", "≥": "$\\ge$", "≈": "$\\approx$",
    theme.TIMES: "$\\times$", theme.MINUS: "$-$", theme.NONE: "--",
    "[": "{[}", "*": "{*}",
}  # fmt: skip


def _tex(text: str) -> str:
    """Escape for LaTeX.

    A bracket or star would be an argument of the row's end before it; a letter that pdfTeX knows not becomes
    its code point, so that the table compiles.
    """
    return "".join(_TEX.get(one) or _letter(one) for one in " ".join(text.split()))


def _letter(one: str) -> str:
    accented = "À" <= one <= "ÿ" and one.isalpha() and one not in "ÐðÞþ"
    return one if (one.isascii() and one.isprintable()) or accented else f"{{[}}U+{ord(one):04X}]"
