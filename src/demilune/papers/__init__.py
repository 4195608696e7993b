"""Published figures as data: what a paper's tables say, as printed, and where it contradicts itself.

Beside each paper's file stand its sources: ``page`` is null where the page is not known. A paper whose tables could not
be read has none, and others' figures for orientation instead, under the name of where they stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from demilune.errors import unknown


def published(paper: str) -> dict[str, Any]:
    """Return a paper's tables, claims and notes, e.g. of ``"rat"``; accuracies are in percent.

    ``tables`` is a list of {"number", "page", "title", "parts"}; ``number`` is the paper's own, or the name of where
    others' figures stand, which then says so in ``of``. A part is {"data", "model", "columns", "rows"}, with "norm"
    where it is not linf, and a row's ``values`` stand in the order of the part's ``columns``, which are named as the
    rows of a :class:`demilune.results.Evaluation`; null is a figure that is not given. ``figures`` are the paper's
    figures, of which no numbers were published, with their claims; ``notes`` name its contradictions by table.
    """
    shelf = {file.name.removesuffix(".json"): file for file in resources.files(__name__).iterdir()}
    names = [name for name, file in shelf.items() if file.name.endswith(".json")]
    if paper not in names:
        raise unknown("paper", paper, names)
    value: dict[str, Any] = json.loads(shelf[paper].read_text(encoding="utf-8"))
    return value


def table(paper: str, number: int | str) -> dict[str, Any]:
    """Return one table of a paper by the number it has there."""
    tables = {found["number"]: found for found in published(paper)["tables"]}
    if number not in tables:
        raise unknown(f"table of {paper}", str(number), map(str, tables))
    value: dict[str, Any] = tables[number]
    return value


def part(
    paper: str, number: int | str, data: str, norm: str = "linf", lines: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """Return the part of a table that is about these data and this norm; corrupted data count as theirs.

    Of several (other networks) the first that has one of ``lines``, by the fields of their rows.
    """
    fitting: list[dict[str, Any]] = [
        found
        for found in table(paper, number)["parts"]
        if found["data"] in (data, f"{data}_c") and found.get("norm", "linf") == norm
    ]
    wanted = list(lines)
    return next((one for one in fitting if any(values(one, line) for line in wanted)), next(iter(fitting), None))


def values(found: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures, in percent by column, of the line of a part whose fields are these; none where there is none.

    A column ``mean`` or a type, of corrupted images, is called ``corruption.mean`` and so on.
    """
    if not theirs:
        return {}
    row = next((row for row in found["rows"] if all(row.get(k) == v for k, v in theirs.items())), None)
    if row is None:
        return {}
    start = "corruption." if found["data"].endswith("_c") else ""
    pairs = zip(found["columns"], row["values"], strict=True)
    return {f"{start}{name}": value for name, value in pairs if value is not None}


def told(paper: str, number: int | str, found: Mapping[str, Any]) -> str:
    """Return where a part's figures stand, in one phrase."""
    about, one = published(paper), table(paper, number)
    where = f"Table {number}" if isinstance(number, int) else str(number)
    page = f", page {one['page']}" if one.get("page") else ""
    if one.get("of"):
        return f"{one['of']} ({where}){page}: {found.get('model_title', 'net not told')}; not figures of this paper"
    version = f"v{about['version']}" if about.get("version") else ""
    title = f": {found['model_title']}" if found.get("model_title") else ""
    return f"{about['title']}, arXiv {about['arxiv']}{version}, {where}{page}{title}"


def notes(paper: str, number: int | str) -> tuple[str, ...]:
    """Return what has to be said of a table: the paper's contradictions."""
    return tuple(note["text"] for note in published(paper)["notes"] if number in note["tables"])
