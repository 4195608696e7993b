"""The report in a real browser: quiet, usable by mouse and by key, light and dark, on a phone, and without script."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demilune.report import build
from report_runs import RAT, SAT, STANDARD, curve_files, evaluation, write_curves, write_evaluation, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine to look at the page with"),
]

Page = Any  # playwright's own types are there only where it is installed


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report with all its parts: curves, seeds, the paper's figures, two settings, and what is missing."""
    folder = tmp_path_factory.mktemp("browser")
    runs = [
        write_run(folder / "a", "standard", "standard", STANDARD, draw=1),
        write_run(folder / "b", "sat", "sat", SAT, draw=2),
        write_run(folder / "c", "rat_with_a_rather_long_name_that_has_to_be_broken", "rat", RAT, draw=3),
        write_run(folder / "e", "sat", "sat", SAT | {"worst": 0.5}, draw=4),
        write_run(folder / "f", "on cifar", "rat", RAT, data="cifar10", eps=8 / 255, shape=(3, 32, 32), n=1000),
    ]
    second = json.loads((runs[3] / "experiment.json").read_text())
    (runs[3] / "experiment.json").write_text(json.dumps(second | {"seed": 1}))
    write_curves(runs[2], curve_files())
    fewer = {row: rate for row, rate in RAT.items() if row != "fgsm"} | {"nattack": 0.6}
    alone = write_evaluation(folder / "fewer.json", evaluation("fewer", "rat", fewer), 5)
    alone.with_name("fewer.gallery.npz").unlink()
    return build([*runs, alone], folder / "report")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # chromium has none for root
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--disable-gpu", *sandbox])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, index: Path) -> Iterator[Page]:
    """Return the page, opened; that it was quiet is asserted after whatever a test did with it."""
    yield from opened(browser, index)


@pytest.fixture
def phone(browser: Any, index: Path) -> Iterator[Page]:
    yield from opened(browser, index, viewport={"width": 400, "height": 800}, color_scheme="dark")


def opened(browser: Any, index: Path, **kind: Any) -> Iterator[Page]:
    context = browser.new_context(**kind)
    page, noise = context.new_page(), list[str]()
    page.on("console", lambda message: noise.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noise.append(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith(("data:", "file:")) or noise.append(request.url))
    page.goto(index.as_uri())
    yield page
    files = page.evaluate("performance.getEntriesByType('resource').map(one => one.name)")
    assert noise + [name for name in files if not name.startswith("data:")] == []
    context.close()


def column(page: Page, table: str, place: int) -> list[str]:
    cells = f"#{table} tbody tr:not([hidden]) > :nth-child({place + 1})"
    texts: list[str] = page.eval_on_selector_all(cells, "cells => cells.map(one => one.innerText.trim())")
    return texts


def open_all(page: Page) -> None:
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")


def test_a_table_is_sorted_by_click_and_by_key(page: Page) -> None:
    heads = page.locator("#table-1 thead th")
    names = [text.split("\n")[0] for text in heads.all_inner_texts()]
    place = names.index("FGSM")
    before = column(page, "table-1", place)
    assert len(before) == 5 and before[-1] == "–", "the last run has no FGSM"
    button = heads.nth(place).get_by_role("button")
    button.click()
    assert heads.nth(place).get_attribute("aria-sort") == "descending"
    falling = [float(text.split("\n")[0].rstrip("★≈")) for text in column(page, "table-1", place)[:-1]]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) > 2
    button.press("Enter")
    assert heads.nth(place).get_attribute("aria-sort") == "ascending"
    rising = column(page, "table-1", place)
    assert [float(text.split("\n")[0].rstrip("★≈")) for text in rising[:-1]] == falling[::-1]
    assert rising[-1] == "–", "what is missing is last either way"
    assert "sorted by FGSM, ascending" in page.locator("#live").inner_text()
    heads.nth(0).get_by_role("button").press("Space")
    assert [one.get_attribute("aria-sort") for one in heads.all()][:2] == ["ascending", "none"]
    labels = [text.split("\n")[0] for text in column(page, "table-1", 0)]
    assert labels == sorted(labels) and len(labels) == 5


def test_a_table_is_filtered_by_words(page: Page) -> None:
    box = page.get_by_role("searchbox").first
    box.fill("OVERESTIMATED rat")
    assert {text.split("\n")[0][:3] for text in column(page, "table-1", 0)} == {"rat", "few"}
    assert page.locator("#accuracy output").first.inner_text() == "2 of 5 lines"
    box.fill("nothing has this")
    assert column(page, "table-1", 0) == []
    box.fill("")
    assert len(column(page, "table-1", 0)) == 5


def test_values_under_the_pointer_are_the_tables(page: Page) -> None:
    figure = page.locator("#figure-iterations")
    plot, cell = figure.locator(".plot"), figure.locator("td[data-at]").nth(1)
    plot.scroll_into_view_if_needed()
    left, top = (float(share) / 100 for share in cell.get_attribute("data-at").split())
    box = plot.bounding_box()
    page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
    told = figure.locator(".tip").inner_text()
    assert cell.evaluate("one => one.textContent") in told
    assert told.startswith(f"iterations {cell.evaluate('one => one.parentElement.cells[0].textContent')} · at the last")
    ring = figure.locator(".ring").first.bounding_box()
    assert abs(ring["x"] + ring["width"] / 2 - box["x"] - left * box["width"]) < 1.5
    page.mouse.move(2, 2)
    assert figure.locator(".tip").is_hidden()


def test_values_are_where_they_are_drawn(page: Page) -> None:
    """The dots of the first curve's own path, as the drawing has it, are the places its table names."""
    path = page.eval_on_selector(
        "#figure-profile-weights .plot svg",
        """svg => [...svg.querySelectorAll('path')].map(path => path.getAttribute('d').trim())
             .filter(d => (d.match(/[ML]/g) || []).length === 3 && !d.includes('z'))
             .map(d => d.match(/-?[0-9.]+/g).map(Number))
             .map(d => [d[0] / svg.viewBox.baseVal.width, d[1] / svg.viewBox.baseVal.height])""",
    )
    table = page.eval_on_selector_all(
        "#figure-profile-weights table.values",
        "all => all.map(one => one.querySelector('td').dataset.at.split(' ').map(value => Number(value) / 100))",
    )
    assert len(table) == 2
    for x, y in table:
        assert min(abs(x - a) + abs(y - b) for a, b in path) < 0.005


def test_values_are_read_by_key(page: Page) -> None:
    figure = page.locator("#figure-budgets")
    figure.locator("summary").first.evaluate("one => one.scrollIntoView()")
    plot, live = figure.locator(".plot"), page.locator("#live")
    figure.locator(".plot").press("ArrowRight")
    first = live.inner_text()
    plot.press("ArrowRight")
    second = live.inner_text()
    assert first != second and first.startswith("ε ") and "PGD-10" in first
    plot.press("ArrowLeft")
    assert live.inner_text() == first and figure.locator(".tip").is_visible()
    plot.press("Escape")
    assert figure.locator(".tip").is_hidden()
    grid = page.locator("#figure-corruptions .plot")
    grid.press("ArrowDown")
    assert "severity" in live.inner_text()


def test_examples_are_explored(page: Page) -> None:
    explorer = page.locator("#explorer")
    model, attack = explorer.get_by_label("Model"), explorer.get_by_label("Broken by")
    names = model.locator("option").all_inner_texts()
    assert len(names) == 5 and "fewer" not in names
    assert "fewer: no example images, fewer.gallery.npz is missing" in page.locator("#examples").inner_text()
    assert explorer.locator(".specimen:visible").count() == 1
    model.select_option(names[2])
    shown = explorer.locator(".specimen:visible")
    assert shown.get_attribute("aria-label") == f"{names[2]}, image 0"
    assert [*attack.locator("option").all_inner_texts()] == ["any or none", "none", "PGD-10", "Multi-targeted 9x30"]
    assert shown.locator("li[data-attack]").count() == 2 and "✗ broken" in shown.inner_text()
    assert "No picture was kept of: FGSM; CW-10." in shown.inner_text()
    assert "0 → 60 %" in shown.inner_text().replace("\N{NO-BREAK SPACE}", " ")
    thumbs = explorer.locator(".thumbs:visible button")
    thumbs.nth(2).click()
    assert shown.get_attribute("aria-label") == f"{names[2]}, image 2"
    thumbs.nth(2).press("ArrowRight")
    assert shown.get_attribute("aria-label") == f"{names[2]}, image 3"
    assert [one.get_attribute("aria-pressed") for one in thumbs.all()] == ["false"] * 3 + ["true"]
    attack.select_option("none")
    assert shown.count() == 0 and explorer.locator("output").inner_text() == "none of the images that are shown"
    attack.select_option("PGD-10")
    assert explorer.locator("output").inner_text() == "4 of 4 images"
    sizes = page.eval_on_selector_all("#explorer img", "all => all.map(one => one.naturalWidth)")
    assert sizes and min(sizes) > 0, "every picture can be decoded"


def shade(page: Page) -> int:
    """Return how bright the page's ground is, 0 to 765."""
    found: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in found.removeprefix("rgb(").removesuffix(")").split(","))


def test_light_and_dark(page: Page) -> None:
    button = page.get_by_role("button", name="Dark")
    assert shade(page) > 600 and button.get_attribute("aria-pressed") == "false"
    page.emulate_media(color_scheme="dark")
    assert shade(page) < 150
    axis = "getComputedStyle(document.querySelector('#figure-accuracy-1 svg text')).fill"
    by_system = page.evaluate(axis)
    button.click()
    assert shade(page) > 600 and page.evaluate(axis) != by_system
    page.reload()
    assert shade(page) > 600, "what was chosen is remembered"
    page.emulate_media(color_scheme="light")
    button.press("Enter")
    assert shade(page) < 150 and button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(axis) == by_system
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})  # A4 within its margins
    assert shade(page) == 765 and page.get_by_role("navigation").is_hidden(), "paper is white"
    assert page.evaluate("document.documentElement.scrollWidth") == 720


def test_a_phone_never_scrolls_sideways(phone: Page) -> None:
    open_all(phone)
    width = "[document.documentElement.scrollWidth, document.body.scrollWidth, window.innerWidth]"
    assert phone.evaluate(width) == [400, 400, 400]
    assert shade(phone) < 150
    plot = phone.locator("#figure-iterations .plot")
    plot.press("End")
    tip, box = phone.locator("#figure-iterations .tip").bounding_box(), plot.bounding_box()
    assert box["x"] - 1 <= tip["x"] and tip["x"] + tip["width"] <= box["x"] + box["width"] + 1
    assert phone.evaluate(width) == [400, 400, 400]


@pytest.mark.parametrize("kind", ["page", "phone"])
def test_axe_finds_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = request.getfixturevalue(kind)
    open_all(page)
    page.locator("#figure-iterations .plot").press("ArrowRight")
    found = axe.Axe().run(page)
    assert not found.response["violations"], found.generate_report()


def test_keys_reach_everything(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    open_all(page)
    inert = page.eval_on_selector_all(
        ".scroll, .plot.live, summary, button, select, input, pre",
        "all => all.filter(one => one.checkVisibility() && one.tabIndex < 0).map(one => one.outerHTML.slice(0, 80))",
    )
    assert inert == []
    page.locator("summary").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"


def test_without_script_everything_is_there_to_read(browser: Any, index: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(index.as_uri())
    assert page.locator(".specimen:visible").count() == page.locator(".specimen").count() == 20
    assert page.locator(".tools:visible").count() == 0 and page.locator("th button").count() == 0
    assert page.locator("#theme").is_hidden()
    context.close()
