"""How a report looks and words things: colours safe for the colour-blind, numbers, balls."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, TypeAlias

# Okabe and Ito's colours, the pale ones last. Each run has dashes and a marker besides, so that colour is never needed;
# as there are seven colours, four dashes and eight markers, 28 runs look different, and 56 points.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
Dashes: TypeAlias = Literal["-", "--", "-."] | tuple[float, tuple[float, ...]]
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", (0, (6, 1.2, 1, 1.2, 1, 1.2)))
DOTTED: Dashes = (0, (1, 1.6))  # no run's: a second reading of the same run
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# What figures are drawn with outside a page; inside one, each colour is replaced by the page's own.
INK, MUTED, RULE, PAPER = "#1f1e1b", "#6b6861", "#dedad1", "#fffefb"
_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)"}

NONE, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

WIDTH = 4.4  # inches: a figure is as wide as a phone, so that its text is never scaled down much

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a run's name may hold a dollar sign
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.4,
    "figure.facecolor": PAPER,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own type
    "svg.hashsalt": "demilune",
}


def colour(run: int) -> str:
    """Return the colour of the run at that position."""
    return COLOURS[run % len(COLOURS)]


def dashes(run: int) -> Dashes:
    """Return the line style of the run at that position."""
    return DASHES[run % len(DASHES)]


def marker(run: int, place: int = 0) -> str:
    """Return the marker of a run's evaluation at that place."""
    return MARKERS[(run + 3 * place) % len(MARKERS)]


def key(run: int, place: int = 0) -> str:
    """Return the line and the marker of a run's evaluation as a small SVG, as legends have them, for use in text."""
    dash = {"-": "", "--": "6 3", "-.": "7 2 1.5 2"}.get(str(dashes(run)), "6 1.5 1.5 1.5 1.5 1.5")
    hue = f"var(--run-{run % len(COLOURS)})"
    return (
        f'<svg class="key" viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26" stroke="{hue}" stroke-width="1.6" '
        f'stroke-dasharray="{dash}" fill="none"/><path d="{_SHAPES[marker(run, place)]}" fill="{hue}"/></svg>'
    )


# The markers as paths around (13, 5).
_SHAPES = {
    "o": "M16.8 5A3.8 3.8 0 1 1 9.2 5A3.8 3.8 0 1 1 16.8 5Z",
    "s": "M9.5 1.5H16.5V8.5H9.5Z",
    "^": "M13 .8L17 8.6H9Z",
    "D": "M13 .2L17.8 5L13 9.8L8.2 5Z",
    "v": "M13 9.2L17 1.4H9Z",
    "P": "M11.6 1H14.4V3.6H17V6.4H14.4V9H11.6V6.4H9V3.6H11.6Z",
    "X": "M9.4 3.1L11.1 1.4L13 3.3L14.9 1.4L16.6 3.1L14.7 5L16.6 6.9L14.9 8.6L13 6.7L11.1 8.6L9.4 6.9L11.3 5Z",
    "*": "M13 0L14.2 3.5H17.9L14.9 5.7L16.1 9.3L13 7.1L9.9 9.3L11.1 5.7L8.1 3.5H11.8Z",
}


def inline(svg: str, name: str) -> str:
    """Return a drawing for use inside a page: its colours and type are the page's, its ids are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:xmlns|xmlns:xlink)="[^"]*"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", svg)
    for drawn, page in (_PAGE | {hue: f"var(--run-{i})" for i, hue in enumerate(COLOURS)}).items():
        svg = svg.replace(drawn.lower(), page)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def percent(rate: float, digits: int = 1) -> str:
    """Return a rate in percent, without the sign."""
    return NONE if math.isnan(rate) else f"{100.0 * rate:.{digits}f}"


def points(rate: float) -> str:
    """Return a rate in points, with a digit more where it is below one."""
    return percent(rate, 1 if abs(rate) >= 0.01 or rate == 0 else 2).replace("-", MINUS)


def signed(rate: float) -> str:
    """Return a difference of rates in points, with a typographic sign."""
    return f"{100.0 * rate:+.1f}".replace("-", MINUS)


def tight(text: str) -> str:
    """Return the text with its numbers, errors and percent signs kept on one line."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def budget(eps: float) -> str:
    """Return ε as people write it: in 255ths where it is a whole number of them."""
    steps = eps * 255.0
    return f"{round(steps)}/255" if round(steps) and abs(steps - round(steps)) < 1e-3 else f"{eps:g}"


def ball(norm: str, eps: float) -> str:
    """Return the threat model in words."""
    return f"{ {'linf': 'L∞', 'l2': 'L2'}.get(norm, norm) } ball, ε = {budget(eps)}"


def count(value: float) -> str:
    """Return a number with thousands separated."""
    return f"{value:,.0f}"


def shorten(text: str, width: int) -> str:
    """Return the text on one line, cut where it is too long for a figure; what tells it apart, in brackets, stays."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    name, bracket, rest = text.rpartition(" (")
    room = width - len(bracket + rest) - 1
    return f"{name[:room]}…{bracket}{rest}" if room >= 4 and rest.endswith(")") else text[: width - 1] + "…"
