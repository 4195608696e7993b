"""Published figures as data: what a paper's tables say, as printed, and where it contradicts itself."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from demilune.errors import unknown


def published(paper: str) -> dict[str, Any]:
    """Return a paper's tables, claims and notes, e.g. of ``"rat"``; accuracies are in percent.

    ``tables`` is a list of {"number", "title", "parts"}; a part is {"data", "model", "columns", "rows"} and a
    row's ``values`` stand in the order of the part's ``columns``, which are named as the rows of a
    :class:`demilune.results.Evaluation`.
    """
    shelf = {file.name.removesuffix(".json"): file for file in resources.files(__name__).iterdir()}
    names = [name for name, file in shelf.items() if file.name.endswith(".json")]
    if paper not in names:
        raise unknown("paper", paper, names)
    value: dict[str, Any] = json.loads(shelf[paper].read_text(encoding="utf-8"))
    return value


def table(paper: str, number: int) -> dict[str, Any]:
    """Return one table of a paper by the number it has there."""
    tables = {found["number"]: found for found in published(paper)["tables"]}
    if number not in tables:
        raise unknown(f"table of {paper}", str(number), map(str, tables))
    value: dict[str, Any] = tables[number]
    return value
