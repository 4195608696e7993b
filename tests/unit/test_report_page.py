"""What the page is made of: values that know their place, seeds, example images, labels, provenance, its size."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from demilune.report import build, gallery, html, seeds, theme
from demilune.report.figures import accuracy, drawn, tradeoff, training, validation
from demilune.report.read import Run, read
from demilune.report.values import Mark, along
from report_runs import RAT, SAT, STANDARD, curve_files, evaluation, example_images, write_curves, write_run
from report_runs import write_evaluation as written


def entries_of(*runs: Path) -> list[Any]:
    return [entry for run in read(runs) for entry in run.entries]


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_value_knows_where_it_is_drawn() -> None:
    places: list[tuple[float, float]] = [(0.0, 1.0), (2.0, 10.0), (5.0, 100.0)]

    def draw(figure: Figure) -> list[Mark]:
        axes = figure.add_subplot()
        axes.plot(*zip(*places, strict=True), "o", color="#123456")
        axes.set_yscale("log")
        return along(axes, "y", "one", places, ["a", "b", "c"])

    found = drawn("x", "", "", (4.0, 3.0), draw, "x")
    (table,) = found.values
    assert (table.title, table.corner, table.columns) == ("y", "x", ("one",))
    assert [(name, cells[0].text) for name, cells in table.lines] == [("0", "a"), ("2", "b"), ("5", "c")]
    box = [float(value) for value in re.findall(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', found.svg)[0]]
    drawn_at = [
        (float(x), float(y))
        for x, y in re.findall(r'<use xlink:href="#[^"]+" x="([0-9.]+)" y="([0-9.]+)" style="fill: #123456', found.svg)
    ]
    assert len(drawn_at) == 3
    for (_, (cell,)), (x, y) in zip(table.lines, drawn_at, strict=True):
        assert cell.at is not None
        assert cell.at == pytest.approx((100 * x / box[0], 100 * y / box[1]), abs=0.02)


def test_rows_that_are_numbers_are_in_order_and_gaps_stay_empty() -> None:
    def draw(figure: Figure) -> list[Mark]:
        axes = figure.add_subplot()
        first = along(axes, "t", "a", [(1.0, 0.0), (10.0, 0.0)], ["a1", "a10"])
        return first + along(axes, "t", "b", [(2.0, 0.0), (1.0, 0.0)], ["b2", "b1"])

    (table,) = drawn("x", "", "", (4.0, 3.0), draw).values
    assert [(name, *(cell.text for cell in cells)) for name, cells in table.lines] == [
        ("1", "a1", "b1"),
        ("2", theme.NONE, "b2"),
        ("10", "a10", theme.NONE),
    ]
    assert table.lines[1][1][0].at is None


def test_every_figure_of_a_page_has_its_values(tmp_path: Path) -> None:
    run = write_curves(write_run(tmp_path / "a", "rat", "rat", RAT), curve_files())
    source = build([run], tmp_path / "report").read_text(encoding="utf-8")
    figures = re.findall(r'<figure class="drawing" id="figure-([a-z-]+)">(.*?)</figure>', source, flags=re.DOTALL)
    assert {name for name, _ in figures} == {
        "accuracy", "tradeoff", "loss", "rate", "validation", "region", "iterations", "budgets", "corruptions", "gaps",
        "direction", "landscape-input", "profile-weights",
    }  # fmt: skip
    for name, inside in figures:
        places = re.findall(r'data-at="([0-9.]+) ([0-9.]+)"', inside)
        assert places and all(0 <= float(value) <= 100 for place in places for value in place), name
        assert "demilune report " in inside and f"figures/{name}.svg" in inside, f"{name} says how it is made"


def test_the_values_are_the_evaluations(tmp_path: Path) -> None:
    entries = entries_of(write_run(tmp_path / "a", "sat", "sat", SAT), write_run(tmp_path / "b", "rat", "rat", RAT))
    (table,) = accuracy(entries, "accuracy").values
    assert table.columns == ("sat", "rat")
    cells = {name: tuple(cell.text for cell in line) for name, line in table.lines}
    assert cells["PGD-10"] == ("55.0 ± 3.5", "70.0 ± 3.2") and next(iter(cells)) == "Clean"
    (points,) = tradeoff(entries, [], "tradeoff").values
    assert points.lines[1][0] == "rat" and [cell.text for cell in points.lines[1][1]] == ["94.0 ± 1.7", "55.0 ± 3.5"]
    assert points.lines[1][1][0].at == points.lines[1][1][1].at


def test_best_and_last_are_told_in_the_training_curves(tmp_path: Path) -> None:
    run = read([write_run(tmp_path / "a", "sat", "sat", None)])[0]
    robust, clean = validation([(0, run)]).values
    assert [cells[0].text for _, cells in robust.lines] == ["42.0", "44.0", "46.0 best", "48.0 last"]
    assert clean.lines[0][1][0].text == "82.0"
    assert {drawing.name for drawing in training([run])} == {"loss", "rate", "validation"}


# --- looks -----------------------------------------------------------------------------------------------------------


def test_runs_are_told_apart_without_colour() -> None:
    looks = [(theme.dashes(run), theme.marker(run)) for run in range(8)]
    assert len(set(looks)) == 8 and len({theme.dashes(run) for run in range(4)}) == 4
    assert len({(theme.colour(run), theme.dashes(run)) for run in range(28)}) == 28
    assert theme.DOTTED not in theme.DASHES
    assert len({theme.marker(0, place) for place in range(8)}) == 8, "evaluations of one run too"
    keys = {theme.key(run) for run in range(28)}
    assert len(keys) == 28 and all("NaN" not in one and 'd=""' not in one for one in keys)


def test_what_tells_a_label_apart_is_not_cut_off() -> None:
    found = [theme.shorten(f"a long name of a run ({which})", 20) for which in ("best", "last")]
    assert found == ["a long name … (best)", "a long name … (last)"] and {len(one) for one in found} == {20}
    assert theme.shorten("short (best)", 20) == "short (best)"
    assert theme.shorten("a (name that is all in brackets)", 20) == "a (name that is all…"


# --- labels and evaluations that say nothing new ---------------------------------------------------------------------


def partly(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return value | {"rows": [row for row in value["rows"] if row["name"] in names]}


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def add_part(run: Path, **change: Any) -> Path:
    """Write a second evaluation beside best.json, with some of its rows."""
    value = json.loads((run / "evaluations" / "best.json").read_text())
    part = run / "evaluations" / "best_part.json"
    part.write_text(json.dumps(partly(value, "clean", "pgd10", "worst") | change))
    shutil.copy(run / "evaluations" / "best.images.npz", part.with_name("best_part.images.npz"))
    return part


def test_an_evaluation_that_another_repeats_is_no_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "sat", "sat", SAT)
    part = add_part(run)
    (found,) = read([run])
    assert [entry.label for entry in found.entries] == ["sat"] and found.repeated == (part,)
    assert "best_part.json says nothing that is not above" in text_of(build([run], tmp_path / "report"))
    # other images right in a row of both: it says something of its own
    images = arrays_of(part.with_name("best_part.images.npz"))
    np.savez(part.with_name("best_part.images.npz"), **(images | {"right.pgd10": images["right.pgd10"][::-1]}))
    (found,) = read([run])
    assert [entry.label for entry in found.entries] == ["sat", "sat (best_part)"] and found.repeated == ()
    assert [entry.place for entry in found.entries] == [0, 1]


@pytest.mark.parametrize(
    "change", [{"eps": 0.2}, {"split": "validation"}, {"checkpoint": "last"}, {"randomised": True}]
)
def test_an_evaluation_of_something_else_is_a_line(change: Mapping[str, Any], tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "sat", "sat", SAT)
    add_part(run, **change)
    (found,) = read([run])
    assert len(found.entries) == 2 and not found.repeated
    labels = [entry.label for entry in found.entries]
    assert labels == (["sat (best)", "sat (last)"] if "checkpoint" in change else ["sat", "sat (best_part)"])


def test_evaluations_on_other_numbers_of_images_are_named_by_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "sat", "sat", SAT)
    written(run / "evaluations" / "best_more.json", evaluation("sat", "sat", SAT, n=1200), 1)
    assert [entry.label for entry in read([run])[0].entries] == ["sat (n 200)", "sat"]
    written(run / "evaluations" / "last.json", evaluation("sat", "sat", SAT, checkpoint="last"), 1)
    labels = [entry.label for entry in read([run])[0].entries]
    assert labels == ["sat (best, n 200)", "sat (best)", "sat (last)"]
    build([run], tmp_path / "report")
    names = {path.name for path in (tmp_path / "report" / "robustbench").iterdir()}
    assert names == {"sat-best-n-200_best.json", "sat_best-more.json", "sat_last.json"}


def test_without_per_image_results_nothing_is_taken_for_repeated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "sat", "sat", SAT)
    add_part(run).with_name("best_part.images.npz").unlink()
    assert len(read([run])[0].entries) == 2


def test_few_images_win_nothing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "sat", "sat", SAT), write_run(tmp_path / "b", "few", "sat", STANDARD, n=10)]
    said = html.summary(entries_of(*runs))
    assert said[0] == "On clean images, sat is right on 90.0 ± 2.1 % of 200 images."
    more = [write_run(tmp_path / str(i), f"more {i}", "sat", SAT | {"clean": 0.5 + 0.1 * i}, n=100) for i in range(2)]
    said = html.summary(entries_of(*runs, *more))
    assert said[0] == (
        "Best on clean images: more 1, right on 60.0 ± 4.9 % of 100 images (of the 2 evaluations on so many images)."
    ), "what most runs were asked"


# --- seeds -----------------------------------------------------------------------------------------------------------


def seeded(folder: Path, seed: int, rates: Mapping[str, float] | None, name: str = "sat", **change: Any) -> Path:
    run = write_run(folder, name, "sat", rates, **change)
    experiment = json.loads((run / "experiment.json").read_text())
    experiment["data"]["root"] = str(folder)
    (run / "experiment.json").write_text(json.dumps(experiment | {"seed": seed, "runtime": {"threads": seed}}))
    return run


def test_seeds_are_a_mean_and_a_deviation(tmp_path: Path) -> None:
    rates = [0.50, 0.53, 0.56]
    runs = [seeded(tmp_path / str(seed), seed, SAT | {"worst": rate}) for seed, rate in enumerate(rates)]
    runs.append(seeded(tmp_path / "again", 2, SAT | {"worst": 0.1}))  # the same seed once more is no other training
    runs.append(write_run(tmp_path / "rat", "rat", "rat", RAT))
    (group,) = seeds.groups(read(runs))
    assert group.seeds == (0, 1, 2) and group.label == "sat" and group.rates("worst") == rates
    numbers, drawing = seeds.numbers([group]), seeds.drawing([group])
    assert numbers is not None and drawing is not None
    assert numbers.lines[0][:3] == ("sat", "3", "0, 1, 2")
    assert numbers.lines[0][-1] == f"{100 * fmean(rates):.1f} ± {100 * stdev(rates):.1f}" == "53.0 ± 3.0"
    assert "Worst case 53.0 ± 3.0" in drawing.alt and drawing.values[0].lines[-1][1][0].text == "53.0 ± 3.0"
    out = tmp_path / "report"
    text = text_of(build(runs, out))
    assert "Trainings that differ in nothing but their seed" in text and "53.0 ± 3.0" in text
    assert "| sat | 3 | 0, 1, 2 |" in (out / "seeds.md").read_text() and (out / "figures" / "seeds.svg").exists()
    build(runs[:1], out)
    assert not (out / "seeds.md").exists() and not (out / "figures" / "seeds.svg").exists()


def test_what_differs_in_more_than_its_seed_is_no_group(tmp_path: Path) -> None:
    runs = [seeded(tmp_path / "a", 0, SAT), seeded(tmp_path / "b", 1, SAT, model={"name": "small", "width": 32})]
    assert seeds.groups(read(runs)) == []
    assert seeds.numbers([]) is None and seeds.drawing([]) is None
    assert "Seeds" not in text_of(build(runs, tmp_path / "report"))


def test_an_attack_that_not_all_seeds_have_says_how_many(tmp_path: Path) -> None:
    fewer = {row: rate for row, rate in SAT.items() if row != "cw10"}
    runs = [seeded(tmp_path / str(seed), seed, fewer if seed == 2 else SAT) for seed in range(3)]
    numbers = seeds.numbers(seeds.groups(read(runs)))
    assert numbers is not None
    assert numbers.lines[0][numbers.head.index("CW-10")] == "54.0 ± 0.0 (2)"


def test_a_worst_case_over_seeds_is_of_the_same_attacks(tmp_path: Path) -> None:
    fewer = {row: rate for row, rate in SAT.items() if row not in ("cw10", "multi9x30")} | {"worst": 0.9}
    runs = [seeded(tmp_path / str(seed), seed, SAT if seed else fewer) for seed in range(3)]
    runs.append(seeded(tmp_path / "3", 3, SAT | {"worst": 0.1}, n=1000))
    runs.append(seeded(tmp_path / "4", 4, SAT | {"worst": 0.2}, randomised=True))
    (group,) = seeds.groups(read(runs))
    assert group.rates("worst") == [0.53, 0.53] and group.left("worst") == [0, 3, 4]
    assert group.rates("pgd10") == [0.55] * 4 and group.left("pgd10") == [3], "on the images that most had"
    assert group.rates("cw10") == [0.54] * 3 and group.left("cw10") == [3], "seed 0 has none to leave out"
    numbers = seeds.numbers([group])
    assert numbers is not None and numbers.lines[0][-1] == "53.0 ± 0.0 (2)"
    assert "than most: sat, Clean: seed 3; " in numbers.note and "sat, Worst case: seeds 0, 3, 4." in numbers.note
    # an evaluation like the others', beside a fuller one, is the one that counts
    written(runs[0] / "evaluations" / "best_more.json", evaluation("sat", "sat", SAT | {"worst": 0.5}), 5)
    (group,) = seeds.groups(read(runs))
    assert group.rates("worst") == [0.5, 0.53, 0.53] and group.left("worst") == [3, 4]


def test_both_checkpoints_are_two_groups(tmp_path: Path) -> None:
    runs = [seeded(tmp_path / str(seed), seed, SAT) for seed in range(2)]
    for run in runs:
        written(run / "evaluations" / "last.json", evaluation("sat", "sat", SAT, checkpoint="last"), 0)
    assert [group.label for group in seeds.groups(read(runs))] == ["sat (best)", "sat (last)"]


# --- example images --------------------------------------------------------------------------------------------------


def with_gallery(folder: Path, shape: tuple[int, int, int], count: int = 4) -> Run:
    run = write_run(folder, "sat", "sat", SAT)
    shown = example_images(shape, 0.1, ("pgd10", "multi9x30"))
    more = {k: np.concatenate([v] * (count // 4)) for k, v in shown.items()} | {"ids": np.arange(count)}
    np.savez(run / "evaluations" / "best.gallery.npz", **more)
    return read([run])[0]


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        return np.asarray(image)


def test_an_example_shows_what_the_gallery_holds(tmp_path: Path) -> None:
    run = with_gallery(tmp_path / "a", (3, 8, 8))
    (made,) = gallery.galleries(run.entries)
    arrays = run.entries[0].gallery
    assert arrays is not None
    one = made.specimens[2]
    assert (one.number, one.label, one.said, one.confidence) == (2, "2", "2", pytest.approx(0.9))
    assert made.pixelated and not made.lossy and made.left == 0 and made.lacking == ("FGSM", "CW-10")
    assert made.factor == pytest.approx(5.0, rel=1e-3)
    view = one.views[0]
    assert view.attack == "PGD-10" and view.broken
    assert [(guess.name, guess.true) for guess in view.guesses][:2] == [("2", True), ("3", False)]
    assert view.guesses[1].before == 0.0 and view.guesses[1].after == pytest.approx(0.6)
    attacked = np.rint(arrays["image.pgd10"][2] * 255).transpose(1, 2, 0)
    assert np.array_equal(decoded(view.picture), attacked)
    added = 0.5 + made.factor * (arrays["image.pgd10"][2] - arrays["clean"][2])
    assert np.abs(decoded(view.added) - np.clip(added, 0, 1).transpose(1, 2, 0) * 255).max() <= 0.51
    images = run.entries[0].images
    assert images is not None
    assert [(found.attack, found.right) for found in one.judged] == [
        (title, bool(images[f"right.{row}"][2]))
        for row, title in (
            ("fgsm", "FGSM"),
            ("pgd10", "PGD-10"),
            ("cw10", "CW-10"),
            ("multi9x30", "Multi-targeted 9x30"),
        )
    ]


def test_what_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "sat", "sat", SAT)
    (run / "evaluations" / "best.images.npz").unlink()
    text = text_of(build([run], tmp_path / "report"))
    assert "No picture was kept of: FGSM; CW-10." in text
    assert "Which attacks broke it in the evaluation itself is missing: no per-image results." in text
    (run / "evaluations" / "best.gallery.npz").unlink()
    text = text_of(build([run], tmp_path / "report"))
    assert "sat: no example images, best.gallery.npz is missing or holds none." in text and "Broken by" not in text


def test_large_pictures_are_compressed_and_too_many_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_gallery(tmp_path / "a", (3, 112, 112))
    (made,) = gallery.galleries(run.entries)
    assert made.lossy and not made.pixelated and decoded(made.specimens[0].clean).shape == (112, 112, 3)
    assert made.specimens[0].clean.startswith("data:image/jpeg")
    assert with_gallery(tmp_path / "b", (1, 112, 112)).entries, "grey too"
    monkeypatch.setattr(gallery, "BUDGET", 2 * made.specimens[0].size + 10_000)
    (fewer,) = gallery.galleries(run.entries)
    assert len(fewer.specimens) == 2 and fewer.left == 2
    monkeypatch.setattr(gallery, "BUDGET", 0)
    (one,) = gallery.galleries(run.entries)
    assert len(one.specimens) == 1 and one.left == 3, "one is always there"
    assert "3 more in best.gallery.npz, left out to keep this page small." in text_of(
        build([tmp_path / "a"], tmp_path / "report")
    )


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 160, 160)])
def test_four_runs_stay_below_three_megabytes(shape: tuple[int, int, int], tmp_path: Path) -> None:
    runs = []
    for place in range(4):
        run = write_curves(write_run(tmp_path / str(place), f"run {place}", "rat", RAT), curve_files())
        shown = example_images(shape, 0.1, ("fgsm", "pgd10", "cw10", "multi9x30"))
        np.savez(run / "evaluations" / "best.gallery.npz", **shown)
        runs.append(run)
    assert build(runs, tmp_path / "report").stat().st_size < 3_000_000


# --- provenance ------------------------------------------------------------------------------------------------------


def test_provenance_says_what_is_known_and_what_is_not() -> None:
    whole = {
        "python": "3.11.7", "versions": {"demilune": "0.1.0", "torch": "2.13.0"}, "platform": "Linux", "cores": 2,
        "processor": "EPYC", "device": "cpu, 1 threads", "git": {"commit": "abc", "changed": True},
    }  # fmt: skip
    assert html.versions(whole) == "demilune 0.1.0, torch 2.13.0, Python 3.11.7"
    assert html.hardware(whole) == "EPYC; 2 cores; cpu, 1 threads; Linux"
    assert html.commit(whole) == "abc, with changes that were not committed"
    assert html.commit({"git": {"commit": "abc", "changed": False}}) == "abc"
    assert html.versions({}) == html.hardware({}) == "not recorded"
    assert html.commit({"git": None}).startswith("not known") and html.commit({"git": 3}).startswith("not known")


def test_the_page_says_how_it_and_its_figures_are_made(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", "sat", "sat", SAT)
    text = text_of(build([run], tmp_path / "report"))
    assert f"This page and its figures: demilune report '{run}' --out report" in text
    assert text.count("demilune evaluate sat demilune report") == 2, "of accuracy and of clean against worst"
    assert "evaluated with Python 3.12" in text.replace("evaluated withPython", "evaluated with Python")
    assert "seed0" in text


@pytest.mark.parametrize(
    ("cell", "value"),
    [("53.0 ± 3.0 (2)", "53.0"), ("≥ 2.5e-03 (1 to 2)", "2.5e-03"), ("1,234", "1234"), ("−0.4", "-0.4"), ("–", None)],
)
def test_cells_are_sorted_by_the_number_they_begin_with(cell: str, value: str | None) -> None:
    assert html.valued(cell) == ("" if value is None else f' data-value="{value}"')


def test_settings_of_the_same_title_are_told_apart(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "a", "sat", SAT),
        write_run(tmp_path / "b", "b", "sat", SAT, data_sha256={"x": "1"}),
    ]
    titles = [section.title for section in html.sections(read(runs))]
    assert len(set(titles)) == 2 and titles[1] == "digits (test), L∞ ball, ε = 0.1, setting 2"


def text_of(index: Path) -> str:
    source = index.read_text(encoding="utf-8")
    source = re.sub(r"<(style|script).*?</\1>", "", source, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", source)).replace("&#39;", "'")
