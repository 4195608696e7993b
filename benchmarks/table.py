"""Results as text: on the terminal, and as Markdown between two marks of a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.targets import Target
from demilune.console import duration, size
from demilune.errors import DemiluneError
from demilune.runs import replacing

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
ROUNDS = 5
"""Rounds whose median is a result; fewer are a trial."""

Record = Mapping[str, Any]


def lines(record: Record) -> list[str]:
    """Return a record as lines for a terminal."""
    rows = [[row["name"], _seconds(row), _spread(row), _rate(row)] for row in record["rows"]]
    figures = [[figure["label"], *_figure(figure), " ".join(_target(figure)).strip()] for figure in record["figures"]]
    told = [f"  {line}" for line in (*_columns(rows), *_columns(figures))]
    return told + [f"  · {note}" for note in record["notes"]]


def markdown(records: Sequence[Record]) -> str:
    """Return the tables of all records: what has a target first, then each sub-benchmark."""
    told = ["| figure | measured | least … most | target | met | conditions |", "|---|---|---|---|---|---|"]
    for record in records:
        for figure in record["figures"]:
            if figure["target"] is not None:
                told += [_line([figure["label"], *_figure(figure), *_target(figure), _conditions(record)])]
    for record in records:
        told += ["", f"### {record['bench']}: {record['title']}", ""]
        told += ["| contestant | median | least … most | rate |", "|---|---|---|---|"]
        told += [_line([row["name"], _seconds(row), _spread(row), _rate(row)]) for row in record["rows"]]
        told += ["", "| figure | measured | least … most | target | met |", "|---|---|---|---|---|"]
        told += [_line([figure["label"], *_figure(figure), *_target(figure)]) for figure in record["figures"]]
        told += ["", *(f"- {note}" for note in record["notes"]), "", _machine(record)]
    return "\n".join(told) + "\n"


def check(page: Path) -> None:
    """Refuse a page that is there and has no place for the tables."""
    _around(page)


def write(page: Path, records: Sequence[Record]) -> None:
    """Put the tables between the marks of a page, or make a page of them; the rest of it stays."""
    before, after = _around(page)
    with replacing(page) as beside:
        beside.write_text(f"{before}{BEGIN}\n\n{markdown(records)}\n{END}{after}", encoding="utf-8")


def _around(page: Path) -> tuple[str, str]:
    """Return what stands before and after the tables."""
    if not page.exists():
        if not page.absolute().parent.is_dir():
            raise DemiluneError(f"{page} cannot be written: there is no folder {page.absolute().parent}")
        return "", "\n"
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DemiluneError(f"{page} cannot be read as a page ({error}): name another file") from None
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise DemiluneError(
            f"{page} has no place for tables: put the lines {BEGIN} and {END} there, or name a new file"
        )
    return before, after


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figure(figure: Mapping[str, Any]) -> list[str]:
    value, *ends = (_value(figure[name], figure["unit"]) for name in ("value", "low", "high"))
    return [value, " … ".join(ends)]


def _value(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.2f}{'' if unit == '×' else ' '}{unit}"


def _target(figure: Mapping[str, Any]) -> list[str]:
    if figure["target"] is None:
        return ["–", ""]
    target = Target(**figure["target"])
    return [f"{target.sense} {_value(target.value, figure['unit'])}", "yes" if target.met(figure["value"]) else "no"]


def _seconds(row: Mapping[str, Any]) -> str:
    return _time(statistics.median(row["seconds"])) if row["seconds"] else "–"


def _spread(row: Mapping[str, Any]) -> str:
    return " … ".join(map(_time, (min(row["seconds"]), max(row["seconds"])))) if row["seconds"] else "–"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{seconds:.3f} s" if seconds < 100 else duration(seconds)


def _rate(row: Mapping[str, Any]) -> str:
    if row["unit"] == "bytes":
        return size(row["rate"])
    note = f" ({row['note']})" if row["note"] else ""
    return (f"{row['rate']:.4g} {row['unit']}" if row["unit"] else "") + note


def _conditions(record: Record) -> str:
    return f"{record['title']}, {record['environment']['processor']}"


def _machine(record: Record) -> str:
    about, setting = record["environment"], record["setting"]
    memory = f", {size(about['memory'])} of memory" if about["memory"] else ""
    load = f", load {about['load']:.1f} at the start" if about["load"] is not None else ""
    git = about["git"]
    commit = f", commit {git['commit'][:12]}{' with changes' if git['changed'] else ''}" if git else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    levers = ", ".join(f"{name} {value}" for name, value in setting["levers"].items())
    device = f"{about['device']}; " if setting["device"] != "cpu" else ""
    trial = " (a trial, no result)" if setting["quick"] or setting["rounds"] < ROUNDS else ""
    rounds = f"{setting['rounds']} rounds{', quick' if setting['quick'] else ''}{trial}"
    return (
        f"{device}{about['processor']} ({' '.join(about['flags'])}; torch uses {about['capability']}), "
        f"{about['cores']} cores{memory}, {setting['threads']} threads{load}; {rounds}; levers on: {levers}; "
        f"Python {about['python']}, {versions}{commit}; {about['date']}; `{about['command']}`"
    )
