"""What a drawing shows, in numbers: tables for who cannot see it, whose cells know where they are drawn.

The page reads the same cells to whoever points at the drawing, so that what is said can be no other than what is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

from demilune.report import theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Place: TypeAlias = tuple[float, float]


class Mark(NamedTuple):
    """A value that is drawn: the table, row and column where it stands, its words, and its place in ``axes``."""

    table: str
    row: str
    column: str
    text: str
    axes: Axes
    x: float
    y: float


class Cell(NamedTuple):
    """A value's words, and where it is drawn: percent of the drawing from its left and upper edge; None for nowhere."""

    text: str
    at: Place | None


@final
@dataclass(frozen=True, slots=True)
class Values:
    """The values of a drawing, or of one of its panels: ``lines`` are a row's name and its cells, a column each.

    ``whole`` says that the cells of a row belong together, as those of several curves at one place do.
    """

    title: str
    corner: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    whole: bool


def values(marks: Iterable[Mark], figure: Figure, corner: str, whole: bool) -> tuple[Values, ...]:
    """Return the tables of marks, in their order, once the figure was laid out; cells that no mark fills are empty."""
    tables: dict[str, dict[tuple[str, str], Cell]] = {}
    for mark in marks:
        tables.setdefault(mark.table, {})[mark.row, mark.column] = Cell(mark.text, _place(mark, figure))
    made = []
    for title, cells in tables.items():
        rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
        if all(re.fullmatch(r"-?[0-9.]+(e[-+][0-9]+)?", row) for row in rows):  # curves need not share their places
            rows.sort(key=float)
        lines = ((row, tuple(cells.get((row, column), Cell(theme.NONE, None)) for column in columns)) for row in rows)
        made.append(Values(title, corner, tuple(columns), tuple(lines), whole))
    return tuple(made)


def _place(mark: Mark, figure: Figure) -> Place:
    """Return where a mark lies, in hundredths of a percent, which is less than a pixel."""
    there = mark.axes.transData.transform((mark.x, mark.y))
    x, y = figure.transFigure.inverted().transform(there)
    return (round(100.0 * float(x), 2), round(100.0 * (1.0 - float(y)), 2))


def along(
    axes: Axes,
    table: str,
    column: str,
    points: Iterable[tuple[float, float]],
    say: Sequence[str],
    name: str = "{:g}",
) -> list[Mark]:
    """Return the marks of a curve: a row for each x, called by ``name``, and the words of each y."""
    return [Mark(table, name.format(x), column, text, axes, x, y) for (x, y), text in zip(points, say, strict=True)]


__all__ = ["Cell", "Mark", "Values", "along", "values"]
