"""Figures of single results, drawn from values that are made up: whole, repeatable, and tolerant of what is missing."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from demilune.report import curves, theme
from demilune.report.curves import FIFTEEN, TWELVE, Curve, Gap
from demilune.report.figures import Drawing
from demilune.results import Evaluation, Row
from demilune.surveys import Curvature, Direction, Landscape

SCALES = tuple(k / 4 for k in range(9))
PLACES = (-1.0, -0.5, 0.0, 0.5, 1.0)


def evaluation(rates: Mapping[str, float], n: int = 1000, eps: float = 8 / 255, norm: str = "linf") -> Evaluation:
    rows = tuple(Row(name, name, name, n, round(rate * n), None, 1.0, 1.0) for name, rate in rates.items())
    classes = tuple(str(k) for k in range(10))
    return Evaluation(
        "sat", "best", "small", 1, "sat", "cifar10", "test", classes, {}, True, norm, eps, False, "float32", rows, (),
        0, 1.0, {}, "demilune evaluate",
    )  # fmt: skip


def whole(clean: float = 0.9, fall: float = 0.05) -> dict[str, float]:
    rates = {"clean": clean, "pgd10": clean - 8 * fall, "iterations.start": clean - 0.02}
    for k in range(1, 21):
        rates |= {f"iterations.{k}": clean - 0.4 * k / (k + 2), f"iterations.{k}_any": clean - 0.42 * k / (k + 2)}
    for attack in ("pgd10", "margin50", "apgd_ce"):
        for step in range(17):
            value = clean * math.exp(-fall * step)
            rates |= {f"budget.{attack}.{step}": value, f"budget.{attack}.{step}_nested": value * 0.99}
    for place, kind in enumerate(FIFTEEN):
        rates |= {f"corruption.{kind}.{level}": clean - 0.01 * level - 0.02 * (place > 11) for level in range(1, 6)}
    return rates


def way(bend: float = 1.0, n: int = 90) -> Direction:
    loss = tuple(0.1 + bend * s * s for s in SCALES)
    return Direction(
        SCALES, loss, (0.2,) * 9, (0.25, 0.5, 0.75), tuple((v / 2, v, 2 * v) for v in loss),
        tuple(round(n * math.exp(-s)) for s in SCALES), tuple(math.exp(-v) for v in loss), (0.1,) * 9, n, 100,
        "RAT(attack=PGD(steps=10))", "linf", 0.1,
    )  # fmt: skip


def plane(bend: float = 1.0, second: tuple[float, ...] = PLACES, examples: str = "PGD(steps=10)") -> Landscape:
    loss = tuple(tuple(0.2 + bend * (a * a + a * b + b * b) for b in second) for a in PLACES)
    right = tuple(tuple(round(100 * math.exp(-value)) for value in line) for line in loss)
    axes = ("first random direction, filter norms", "second random direction, filter norms")
    return Landscape("weights", axes, PLACES, second, loss, right, 100, examples, 0.01, "linf", 0.1)


BOTH = [Curve("sat", evaluation(whole())), Curve("rat, $2", evaluation(whole(0.93, 0.03)))]
PAIRS = [Gap(one.label, evaluation({"clean": 1.0, "pgd10": 0.9}), one.evaluation) for one in BOTH]
WAYS = [("sat", way()), ("_rat", way(0.4, 95))]
PLANES = [("sat", plane()), ("rat", plane(40.0)), ("clean", replace(plane(0.5, examples="clean"), space="input"))]
LINES = [("sat", plane(second=(0.0,))), ("rat", plane(0.3, second=(0.0,)))]

DRAWN: dict[str, Callable[[], Drawing | None]] = {
    "iterations": lambda: curves.iterations(BOTH),
    "budgets": lambda: curves.budgets(BOTH),
    "gaps": lambda: curves.gaps(PAIRS),
    "corruptions": lambda: curves.corruptions(BOTH),
    "direction": lambda: curves.direction(WAYS),
    "landscape": lambda: curves.landscape(PLANES),
    "profile": lambda: curves.profile(LINES),
}


@cache
def drawing(name: str) -> Drawing:
    found = DRAWN[name]()
    assert found is not None
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_whole_and_the_same_every_time(name: str) -> None:
    first = drawing(name)
    assert DRAWN[name]() == first
    assert first.name == name and first.alt.endswith(".") and "nan" not in first.alt + first.caption
    assert ET.fromstring(first.svg).tag.endswith("svg")
    assert first.png.startswith(b"\x89PNG\r\n") and first.png.endswith(b"IEND\xaeB`\x82")
    inside = ET.fromstring(theme.inline(first.svg, name).replace("xlink:href", "href"))
    assert inside.tag == "svg" and "http" not in theme.inline(first.svg, name)


def test_figures_say_what_was_found() -> None:
    told = {name: drawing(name).alt for name in DRAWN}
    assert "sat 90.0 at 0, 56.7 at 10, 53.6 at 20" in told["iterations"]
    assert "sat under PGD-10 73.7 at 4/255, 60.3 at 8/255, 40.4 at 16/255" in told["budgets"]
    assert "sat PGD-10 90.0 on training and 50.0 on test images" in told["gaps"]
    assert "sat mean of 12: 87.0 %, mean of 15: 86.6 %" in told["corruptions"]
    assert "sat from 0.10 to 4.10 nats at s = 2, which never falls, and 86.7 % misclassified" in told["direction"]
    assert "sat from 0.20 to 3.20 nats" in told["landscape"]
    assert "sat from 1.20 over 0.20 to 1.20 nats" in told["profile"]


@pytest.mark.parametrize(
    "rates",
    [
        {"clean": 0.9, "iterations.10": 0.5},
        {"iterations.0": 0.9, "iterations.3_any": 0.5, "iterations.start": 0.8},
        {"clean": 0.9, "budget.margin50.8": 0.4, "budget.pgd10.4_nested": 0.5},
        {"budget.apgd_ce.16": 0.0},
        {"clean": 0.9, "corruption.snow.1": 0.8, "corruption.fog.3": 0.7, "corruption.unheard.1": 0.1},
        {"clean": 0.0, "corruption.frost.1": 0.0},
    ],
)
def test_rows_that_are_missing_are_left_out(rates: Mapping[str, float]) -> None:
    entries = [Curve("little", evaluation(rates, n=10)), Curve("nothing", evaluation({"clean": 0.5}))]
    found = [draw(entries) for draw in (curves.iterations, curves.budgets, curves.corruptions)]
    assert sum(one is not None for one in found) == 1
    assert all("nothing" not in one.alt for one in found if one is not None)


def test_where_there_is_nothing_no_figure_is_drawn() -> None:
    empty = evaluation({"worst": 0.1})
    for draw in (curves.iterations, curves.budgets, curves.corruptions, curves.corruption_numbers):
        assert draw([Curve("none", empty)]) is None and draw([]) is None
    assert curves.gaps([Gap("none", empty, empty)]) is None and curves.gaps([]) is None
    assert curves.direction([]) is None and curves.curvature([]) is None
    assert curves.landscape(LINES) is None and curves.profile(PLANES) is None


def test_a_gap_of_one_side_is_no_gap() -> None:
    found = curves.gaps([Gap("sat", evaluation({"clean": 0.9}), evaluation({"clean": 0.8, "pgd10": 0.5}))])
    assert found is not None and "not measured on both" in found.svg
    assert "PGD-10 – on training and 50.0 on test" in found.alt
    assert curves.difference(*(evaluation({"clean": rate}, n=400).row("clean") for rate in (0.9, 0.5))) == "+40.0 ± 2.9"


def test_a_mean_over_types_needs_every_type_and_severity() -> None:
    rates = whole()
    found = evaluation(rates)
    assert curves.mean(found, TWELVE) == pytest.approx(0.87) and not curves.missing(found, FIFTEEN)
    rows = tuple(replace(row, right_after=row.right + 10) for row in found.rows)
    assert curves.mean(replace(found, rows=rows), TWELVE) == pytest.approx(0.88), "as the papers count"
    del rates["corruption.shot_noise.2"]
    del rates["corruption.snow.1"]
    found = evaluation(rates)
    assert curves.missing(found, FIFTEEN) == ["snow", "shot_noise"]
    assert math.isnan(curves.mean(found, TWELVE))
    shown = curves.corruptions([Curve("sat", found)])
    assert shown is not None and "sat lacks snow, shot_noise" in shown.caption
    assert "mean of 12: –, 1 missing" in shown.svg and "mean of 15: –, 2 missing" in shown.svg
    numbers = curves.corruption_numbers([Curve("sat", found), BOTH[1]])
    assert numbers is not None
    assert numbers.lines[0][:4] == ("sat", "–", "–", "87.00") and numbers.lines[1][:3] == ("rat, $2", "90.00", "89.60")
    assert numbers.lines[0][1 + 2 + TWELVE.index("snow")] == "–"
    text = numbers.to_markdown()
    assert "n = 1,000 images" in text and "not measured (sat lacks snow, shot_noise)" in text
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1


def test_budgets_are_in_255ths_only_where_people_count_so() -> None:
    found = curves.budgets([Curve("digits", evaluation(whole(), eps=0.1))])
    assert found is not None and "at 0.05, " in found.alt and "255ths" not in found.svg
    assert "255ths" in drawing("budgets").svg


def test_levels_cover_the_values() -> None:
    for values, wide in (([0.2, 7.0], False), ([0.001, 55.0], True), ([3.0, 3.0], False), ([0.0, 40.0], True)):
        levels = curves.contours(values, wide)
        assert levels[0] <= min(values) and max(values) <= levels[-1] and 2 <= len(levels) <= 20
        assert all(a < b for a, b in pairwise(levels))
    assert curves.contours([0.3, 21.0], wide=True) == [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]


def test_a_flat_landscape_can_be_drawn() -> None:
    flat = replace(plane(0.0), right=((0,) * 5,) * 5)
    assert curves.landscape([("flat", flat)]) is not None


def test_curvature_says_what_has_not_converged() -> None:
    sharp = Curvature("weights", "PGD(steps=10)", (123.4,), 1000, 500, 12, 1e-4, 1e-3, 1e-6, "linf", 0.1)
    each = Curvature("input", "clean", (1.0, 2.0, 3.0), 64, 3, 50, 1e-2, 1e-3, 1e-6, "linf", 0.1)
    found = curves.curvature([("sat", sharp), ("a|b", each)])
    assert found is not None
    assert found.lines[0] == ("sat", "weights, PGD-10", "123.4", "1.0e-04", "12", "500")
    assert found.lines[1] == ("a|b", "input, clean", "≥ 2 (1.5 to 2.5)", "1.0e-02", "50", "3")
    assert "a\\|b" in found.to_markdown()


def test_examples_are_named_in_short() -> None:
    assert [curves.examples(made) for made in ("clean", "PGD(steps=10, step_size=0.01)", "FGSM()")] == [
        "clean",
        "PGD-10",
        "FGSM",
    ]


def test_without_quartiles_the_band_is_a_standard_deviation() -> None:
    one = replace(way(), levels=(0.5,), quantiles=tuple((value,) for value in way().loss))
    low, high = curves.middle(one)
    assert low[0] == 0.0 and high[0] == pytest.approx(0.3)
