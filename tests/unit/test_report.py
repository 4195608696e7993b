"""The report, built from run folders that the tests write: what it says must be what they hold."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demilune import papers
from demilune.diagnosis import diagnose
from demilune.errors import DemiluneError
from demilune.experiment import plain
from demilune.options import flat
from demilune.paired import Difference, paired
from demilune.presets import PRESETS
from demilune.report import MARKER, build, compare, html, reference, robustbench, tables, verdicts
from demilune.report.files import kind_of, measured
from demilune.report.gallery import png
from demilune.report.panels import panels
from demilune.report.read import Entry, read
from demilune.results import Finding, Verdict
from report_runs import (
    ASIDE,
    RAT,
    SAT,
    STANDARD,
    SUMS,
    TITLES,
    WHOLE,
    curve_files,
    doctored,
    evaluation,
    paper_run,
    write_curves,
    write_evaluation,
    write_run,
)  # fmt: skip


class Loads(HTMLParser):
    """Collects everything a browser would fetch, and what a reader would read."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value for key, value in attrs if key == "id" and value]
        assert not any(key.startswith("on") for key in found)

    def handle_data(self, data: str) -> None:
        self.text += "" if set(self.tags[-1:]) & {"style", "script"} else data


def parsed(index: Path) -> Loads:
    page = Loads()
    page.feed(index.read_text(encoding="utf-8"))
    page.text = re.sub(r"\s+", " ", page.text)
    return page


def test_one_page_holds_all_it_shows(three: list[Path], tmp_path: Path) -> None:
    index = build(three, tmp_path / "report")
    page, source = parsed(index), index.read_text(encoding="utf-8")
    assert index == tmp_path / "report" / "index.html"
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"https?:", source) and "@import" not in source
    assert not re.findall(r"url\((?!#)", source)
    assert len(page.ids) == len(set(page.ids)), "drawings share a page and must not share ids"
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    names = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    assert names == {
        f"{stem}.{kind}"
        for stem in ("loss", "rate", "validation", "region", "accuracy", "tradeoff", "differences")
        for kind in ("svg", "png")
    }
    assert 'lang="en"' in source and source.count("<h1>") == 1


def test_no_script_runs_but_the_pages_own(three: list[Path], tmp_path: Path) -> None:
    source = build(three, tmp_path / "report").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|eval\(|innerHTML", script)


def test_the_page_says_what_was_found(three: list[Path], tmp_path: Path) -> None:
    text = parsed(build(three, tmp_path / "report")).text
    assert "Best on clean images: standard, right on 97.0 ± 1.2 % of 200 images." in text
    assert "Best in the worst case: rat, right on 55.0 ± 3.5 % of 200 images." in text
    assert "no difference at 5 % between rat and sat (+2.0 ±" in text
    assert "upper bound on robust accuracy" in text and "AutoAttack was not run" in text
    assert text.index("rat: ▲ overestimated by at least 15 points under PGD-10") < text.index("Best on clean images")
    assert "sat: ? not examined: the strongest attack run is Multi-targeted 9x30" in text
    assert "epoch 4: sudden fall" in text
    assert "FGSM is stronger on 2 images" in text
    assert "demilune train rat demilune evaluate rat" in text
    assert "Beside the paper" not in text and "not the official files" not in text


def test_csv_holds_the_evaluations_numbers(three: list[Path], tmp_path: Path) -> None:
    build(three, tmp_path / "report")
    with (tmp_path / "report" / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(TITLES)
    for line in lines:
        rates = {"standard": STANDARD, "sat": SAT, "rat": RAT}[line["run"]]
        rate = round(rates[line["attack"]] * 200) / 200
        assert float(line["accuracy"]) == rate
        assert float(line["standard_error"]) == math.sqrt(rate * (1 - rate) / 200)
        assert int(line["n"]) == 200 and float(line["gradients"]) == 10.0


def test_best_and_tied_cells_are_marked(three: list[Path]) -> None:
    entries = [entry for run in read(three) for entry in run.entries]
    marks = marks_of(three)
    assert marks["standard", "clean"] == "best" and marks["rat", "worst"] == "best"
    assert marks["sat", "worst"] == "tied" and marks["standard", "worst"] == ""
    assert "**55.0** ± 3.5 ★" in tables.to_markdown([entries])
    assert "\\textbf{55.0} $\\pm$ 3.5$^\\star$" in tables.to_latex([entries])


def marks_of(folders: list[Path]) -> dict[tuple[str, str], str]:
    table = tables.main([entry for run in read(folders) for entry in run.entries])
    return {
        (line.entry.label, name): cell.mark
        for line in table.lines
        for (name, _), cell in zip(table.columns, line.cells, strict=True)
        if cell
    }


def test_whoever_was_attacked_on_fewer_images_or_with_less_gets_no_mark(three: list[Path]) -> None:
    full = marks_of(three)
    few = three[0] / "evaluations" / "best.json"  # the best when clean, on half the images
    write_evaluation(few, evaluation("standard", "standard", STANDARD, n=100), 1)
    some = marks_of(three)
    assert {mark for (label, _), mark in some.items() if label == "standard"} == {""}
    assert some["rat", "clean"] == "best"
    file = three[2] / "evaluations" / "best.json"
    less = json.loads(file.read_text())
    less["rows"] = [row for row in less["rows"] if row["name"] != "cw10"]
    file.write_text(json.dumps(less))
    some = marks_of(three)
    assert {mark for (_, name), mark in some.items() if name == "worst"} == {""}
    assert some["rat", "fgsm"] == full["rat", "fgsm"]


def test_an_attack_only_some_ran_keeps_its_place(tmp_path: Path) -> None:
    fewer = {row: rate for row, rate in SAT.items() if row != "cw10"}
    runs = [write_run(tmp_path / "a", "a", "sat", fewer), write_run(tmp_path / "b", "b", "sat", SAT)]
    entries = [entry for run in read(runs) for entry in run.entries]
    assert [name for name, _ in tables.columns(entries)] == list(TITLES)
    assert tables.main(entries).lines[0].cells[list(TITLES).index("cw10")] is None
    build(runs, tmp_path / "report")


def test_paired_difference_is_mcnemars() -> None:
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 3 + [False] * 6 + [True])
    found = paired(first, second)  # b = 3, c = 1, n = 10
    assert found.value == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt(4 - 4 / 10) / 10)
    assert not found.clear
    assert paired(first, first) == Difference(0.0, 0.0, 10)


def entry_of(value: Mapping[str, Any], folder: Path) -> Entry:
    return read([write_evaluation(folder / "one.json", value, 0)])[0].entries[0]


def test_an_old_evaluation_gets_the_verdict_that_it_would_get_now(three: list[Path], tmp_path: Path) -> None:
    for run, kind in zip(read(three), ("believable", "not examined", "overestimated"), strict=True):
        (entry,) = run.entries
        found = entry.evaluation
        assert (found.findings, entry.verdict) == diagnose(found.rows, entry.images, found.checks, found.eps)
        assert entry.verdict.kind == kind and len(found.findings) == 11
    assert entry.verdict.points == pytest.approx(0.15) and "G6" not in entry.verdict.text
    bare = write_evaluation(tmp_path / "bare.json", evaluation("bare", "rat", RAT), 0)
    bare.with_name("bare.images.npz").unlink()
    assert read([bare])[0].entries[0].verdict.kind == "overestimated"


def test_a_verdict_of_former_rules_is_made_anew_where_the_images_are_known(tmp_path: Path) -> None:
    finding = Finding("G3", "an unbounded attack breaks everything", "fail", "accuracy 50 %", 0.5, 0.01, 0.03, "pgd10")
    written = Verdict("masked", "masked, shown by Unbounded", "PGD-10", "PGD-10", 0.02, 0.01)
    value = evaluation("a", "sat", SAT, verdict=asdict(written), findings=[asdict(finding)])
    entry = entry_of(value, tmp_path)
    found = entry.evaluation
    assert (found.findings, entry.verdict) == diagnose(found.rows, entry.images, found.checks, found.eps)
    assert entry.verdict.kind == "not examined"
    images = entry.path.with_name("one.images.npz")
    with np.load(images) as opened:
        some = {name: opened[name] for name in opened.files if name != "right.pgd10"}
    np.savez(images, **some)
    for _ in range(2):  # with some of the images, and with none
        (entry,) = read([entry.path])[0].entries
        assert entry.verdict == written and entry.evaluation.findings == (finding,)
        images.unlink(missing_ok=True)


def test_pgd_alone_is_a_gap_only_among_the_curves(tmp_path: Path) -> None:
    found = entry_of(evaluation("a", "sat", {"clean": 0.9, "pgd10": 0.5, "worst": 0.5}), tmp_path).evaluation
    assert kind_of(found, tmp_path / "curves" / "best_gaps.json") == "gaps"
    assert kind_of(found, tmp_path / "evaluations" / "best.json") == ""
    file = write_evaluation(tmp_path / "evaluations" / "best.json", found.to_json(), 0)
    with pytest.raises(DemiluneError, match="no figure is made"):
        measured(file)


def test_a_note_names_the_runs_it_is_of_unless_it_is_all(tmp_path: Path) -> None:
    values = [evaluation(name, "sat", SAT) for name in "ab"]
    values[1]["rows"][2]["note"] = "half of it"
    entries = [
        entry
        for i, value in enumerate(values)
        for entry in read([write_evaluation(tmp_path / f"{i}.json", value, i)])[0].entries
    ]
    assert tables.remarks(entries) == ["b: PGD-10: half of it"]
    assert tables.remarks(entries[1:]) == ["PGD-10: half of it"]


def test_the_worst_case_of_a_random_model_wins_no_star(three: list[Path]) -> None:
    file = three[2] / "evaluations" / "best.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"randomised": True}))
    sat, rat = (run.entries[0] for run in read(three[1:]))
    assert compare.unlike(rat, sat, "worst") == "one answers at random: its worst case is that of one attack"
    assert compare.unlike(rat, sat, "pgd10") == compare.unlike(rat, rat, "worst") == ""
    marks = marks_of(three)
    assert {mark for (_, name), mark in marks.items() if name == "worst"} == {""}
    assert marks["rat", "pgd10"] == "best"
    (pair,) = compare.pairs([rat, sat])
    assert pair.note and not pair.clear and pair.reading == "not attacked alike"


def test_no_robust_accuracy_without_its_verdict(three: list[Path], tmp_path: Path) -> None:
    masked = write_run(tmp_path / "d", "masked <i>", "sat", None)
    aside = ASIDE | {"unbounded": ("probe", 0.5, 50)}
    write_evaluation(masked / "evaluations" / "best.json", doctored("masked <i>", "sat", aside), 4)
    believed = write_run(tmp_path / "e", "believed", "sat", None)
    write_evaluation(believed / "evaluations" / "best.json", doctored("believed", "sat", ASIDE), 5)
    runs = [*three, masked, believed]
    out = tmp_path / "report"
    build(runs, out)
    words = {
        "standard": "believable", "sat": "not examined", "rat": "overestimated by ≥ 15 points",
        "masked <i>": "masked", "believed": "believable",
    }  # fmt: skip
    entries = [entry for run in read(runs) for entry in run.entries]
    assert {entry.label: verdicts.short(entry.verdict) for entry in entries} == words
    page = (out / "index.html").read_text(encoding="utf-8")
    table = page[page.index('<section id="accuracy"') : page.index('<section id="compared"')]
    cells = re.findall(
        r'<td class="text verdict"><a class="badge [a-z-]+" href="#(doctor-[0-9-]+)"[^>]*>(. [^<]*)</a>', table
    )
    marks = {"not examined": "?", "overestimated": "▲", "masked": "✗", "believable": "✓"}
    assert [said for _, said in cells] == [f"{marks[one.verdict.kind]} {words[one.label]}" for one in entries]
    assert {name for name, _ in cells} <= set(parsed(out / "index.html").ids)
    markdown, latex = (out / "table.md").read_text(), (out / "table.tex").read_text()
    for entry in entries:
        label = entry.label.replace("<", "&lt;").replace(">", "&gt;")
        assert f"| {label} | {words[entry.label]} | 200 |" in markdown
        assert f"- {label}: {entry.verdict.kind}" in markdown
        line = next(line for line in latex.splitlines() if line.startswith(entry.label.split(" ")[0] + " "))
        said = words[entry.label].replace("≥", "$\\ge$")
        assert f" & {said} & 200 &" in line
    with (out / "table.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            (verdict,) = (one.verdict for one in entries if one.label == line["run"])
            told = (line["verdict"], line["verdict_text"], line["strongest_attack"])
            assert told == (verdict.kind, verdict.text, verdict.strongest)
    caption = (out / "index.html").read_text(encoding="utf-8").split("The dashed line is chance. ")[1].split("<")[0]
    assert caption.startswith(
        "Verdicts: believable: standard, believed; not examined: sat; overestimated by ≥ 15 points: rat; masked: masked"
    )


def test_a_verdict_after_the_strongest_attacks_is_no_bound() -> None:
    said = "overestimated by about 9 points under PGD-10"
    assert verdicts.short(Verdict("overestimated", said, "PGD-10", "AutoAttack", 0.09, 0.01)).endswith("by ≈ 9 points")
    odd = Verdict("masked", "gradients vanish", "PGD-10", "AutoAttack", 0.09, 0.01)
    assert verdicts.short(odd) + verdicts.rest(odd) == "masked: gradients vanish"


def test_parts_and_probes_are_no_columns(tmp_path: Path) -> None:
    file = write_evaluation(tmp_path / "one.json", doctored("one", "sat", ASIDE), 0)
    (entry,) = read([file])[0].entries
    names = [name for name, _ in tables.main([entry]).columns]
    assert names == [*(row for row in SAT if row != "worst"), *SUMS, "worst"]
    out = tmp_path / "report"
    text = parsed(build([file], out)).text
    for name in ("table.md", "table.csv", "table.tex"):
        assert "UNBOUNDED" not in (out / name).read_text() and "unbounded" not in (out / name).read_text()
    cost = text[text.index("Attacks and their cost") :]
    assert "UNBOUNDEDprobeone()" in cost and "PGD10@SCALE=10partone()" in cost


def test_partial_sums_say_what_they_add_and_are_not_autoattack(tmp_path: Path) -> None:
    entry = entry_of(doctored("one", "sat", {}), tmp_path)
    heads = dict(tables.main([entry]).columns)
    assert [heads[name] for name in SUMS] == ["APGD-CE", "+ APGD-T", "+ FAB-T", "AutoAttack"]
    assert tables.bound([entry]) == tables.UPPER_BOUND
    rates = {row: rate for row, rate in WHOLE.items() if row not in ("autoattack", "autoattack.fab_t")}
    half = entry_of(evaluation("half", "sat", rates), tmp_path / "half")
    assert tables.bound([half]).endswith("AutoAttack was not run.")
    assert tables.bound([entry, half]).endswith("AutoAttack was not run on half.")


def test_what_is_not_quite_what_it_is_called_says_so(tmp_path: Path) -> None:
    value = doctored("one", "sat", ASIDE)
    row = next(row for row in value["rows"] if row["name"] == "autoattack.apgd_t")
    row["note"] = "the margin instead of DLR"
    file = write_evaluation(tmp_path / "one.json", value, 0)
    out = tmp_path / "report"
    assert parsed(build([file], out)).text.count("APGD-CE + APGD-T: the margin instead of DLR") == 1
    assert "- APGD-CE + APGD-T: the margin instead of DLR" in (out / "table.md").read_text()


def test_the_doctors_checks_are_shown_with_value_and_threshold(three: list[Path], tmp_path: Path) -> None:
    alone = write_evaluation(tmp_path / "one.json", doctored("one", "sat", ASIDE), 0)
    index = build([three[2], alone], tmp_path / "report")
    source = index.read_text(encoding="utf-8")
    assert '<details id="doctor-0-0"><summary>' in source, "a plain evaluation answers one or two checks: folded"
    assert '<details id="doctor-1-0" open><summary>' in source
    text = parsed(index).text
    text = text[text.index("Doctor", 200) :]
    assert "G6 the choice of loss matters little✗ fail 15.0 ± 2.84.0PGD-10 and CW-10 apart: 8.0 ±" in text
    assert "G3 an unbounded attack breaks everything✓ pass 0.0 ± 0.01.0" in text
    assert "? not examined ––needs square, nattack or transfer" in text
    assert "PGD-10 lies 15.0 ± 2.8 points above the worst case." in text


def test_an_attack_on_fewer_images_belongs_to_those_it_names(tmp_path: Path) -> None:
    fewer = {"odi": ("attack", 0.5, 50)}
    here = entry_of(doctored("a", "sat", fewer), tmp_path / "a")
    there = entry_of(doctored("b", "sat", {"odi": ("attack", 0.4, 50)}), tmp_path / "b")
    assert compare.difference(here, there, "odi") == paired(np.arange(50) < 25, np.arange(50) < 20)
    assert compare.tied(here, here, "odi")
    assert "(n 50)" in tables.to_markdown([[here]])
    file = here.path.with_name("one.images.npz")
    with np.load(file) as opened:
        arrays = {name: opened[name] for name in opened.files}
    place = arrays.pop("place.odi")
    wrongs: list[np.ndarray | None] = [
        None,
        place[:-1],
        place[::-1],
        place + 10,
        place - 1,
        place.astype(float),
        place[:, None],
    ]
    for wrong in wrongs:
        np.savez(file, **arrays, **({} if wrong is None else {"place.odi": wrong}))
        with pytest.raises(DemiluneError, match=r"do not belong together \(row 'odi'\)"):
            read([here.path])


def test_pairs_are_aligned_by_id_and_need_the_same_images(three: list[Path]) -> None:
    path = three[1] / "evaluations" / "best.images.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    sat, rat = (read([run])[0].entries[0] for run in three[1:])
    expected = compare.difference(rat, sat, "worst")
    assert expected is not None and expected.value == pytest.approx(0.02)
    np.savez(path, **{name: array[::-1] for name, array in arrays.items()})
    assert compare.difference(rat, read([three[1]])[0].entries[0], "worst") == expected
    np.savez(path, **(arrays | {"ids": arrays["ids"] + 1}))
    assert compare.difference(rat, read([three[1]])[0].entries[0], "worst") is None
    path.unlink()
    assert compare.difference(rat, read([three[1]])[0].entries[0], "worst") is None


def test_different_settings_are_never_compared(three: list[Path], tmp_path: Path) -> None:
    runs = [*three, paper_run(tmp_path / "d")]
    entries = [entry for run in read(runs) for entry in run.entries]
    assert [len(group) for group in compare.settings(entries)] == [3, 1]
    text = parsed(build(runs, tmp_path / "report")).text
    assert "cifar10 (test), L∞ ball, ε = 8/255" in text and "digits (test), L∞ ball, ε = 0.1" in text
    assert (tmp_path / "report" / "figures" / "accuracy-2.svg").exists()


def test_the_papers_figures_stand_beside_ours_only_in_the_papers_setting(tmp_path: Path) -> None:
    text = parsed(build([paper_run(tmp_path / "same")], tmp_path / "one")).text
    assert "Beside the paper" in text and "70.57" in text and "ADT_EXP, published" in text
    assert "70.10" in text, "ours, in the papers' reading"
    assert "this is no reproduction of the paper" in text
    assert "net: the paper's is WRN-34-10; ours is small, width 16" in text
    assert "training: the paper's is 80,000 steps of 128 images; ours 32 of 128 (4 epochs)" in text
    assert "training images: the paper's are 50,000; ours about 1,024" in text
    assert "test images: the paper's are 10,000; ours are 1,000" in text
    assert "learning rate: the paper's is 0.1 from step 0, 0.01 from step 30,000" in text
    assert "93.17 in Tables 1 and 3 and 90.94 in Table 4" in text
    others = [
        paper_run(tmp_path / "eps", eps=0.031),
        paper_run(tmp_path / "l2", norm="l2"),
        paper_run(tmp_path / "data", data="svhn"),
        paper_run(tmp_path / "split", split="validation"),
    ]
    for run in others:
        text = parsed(build([run], tmp_path / f"report-{run.name}")).text
        assert "70.57" not in text and "published" not in text


def test_the_papers_own_setting_has_no_differences(tmp_path: Path) -> None:
    folder = paper_run(tmp_path / "run", n=10000, model={"name": "wide_resnet", "depth": 34, "factor": 10})
    rates = [0.1] * 76 + [0.01] * 39 + [0.001] * 91
    metrics = [{"epoch": k, "step": min(80_000, 390 * k), "rate": rate} for k, rate in enumerate(rates, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    run = read([folder])[0]
    found = tables.beside(run.entries, [run])
    assert found is not None
    assert found.differences == ((("rat on cifar",), ()),)


def test_every_field_that_is_not_the_papers_is_listed(tmp_path: Path) -> None:
    folder = paper_run(tmp_path / "run")
    file = folder / "experiment.json"
    value = json.loads(file.read_text())
    value["method"] |= {"mass_high": 0.9, "samples": 4}
    value["method"]["attack"] |= {"step_ratio": 0.5, "steps": 7}
    value["ball"]["eps"] = 4 / 255
    value |= {"move": {"name": "awp", "gamma": 0.01}, "average": {"name": "ema"}}
    value["training"] |= {"weight_decay": 5e-4, "momentum": 0.95}
    file.write_text(json.dumps(value))
    (entry,) = (run := read([folder])[0]).entries
    found = tables.beside([entry], [run])
    assert found is not None
    lines = found.differences[0][1]
    for line in (
        "ball.eps: the paper's preset has 8/255; ours 4/255",
        "move.name: the paper's preset has none; ours awp",
        "average.name: the paper's preset has none; ours ema",
        "training.momentum: the paper's preset has 0.9; ours 0.95",
        "training.weight_decay: the paper's preset has 0.0002; ours 0.0005",
        "method.attack.steps: the paper's preset has 10; ours 7",
        "method.samples: the paper's preset has 2; ours 4",
        "method.mass_high: the paper's preset has 1; ours 0.9",
    ):
        assert line in lines
    assert not any("step_size" in line for line in lines), "half of 4/255 is the paper's 2/255"
    value["method"] = {"name": "lrat"}
    assert reference.fields(value, "cifar10")[0] == "method: the paper has no lrat"


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "imagenette"])
@pytest.mark.parametrize("method", ["standard", "sat", "trades", "mart", "avm", "adt", "rat"])
def test_the_papers_presets_have_the_fields_that_are_compared(data: str, method: str) -> None:
    experiment = plain(PRESETS[f"{data}-{method}"].experiment)
    fields = flat(experiment)
    known = reference.preset(data, method)
    assert {name: fields[name] for name in known} == known and reference.fields(experiment, data) == []
    assert {name for name in fields if name.startswith("method.")} - set(known) <= {
        "method.name", "method.attack.step_ratio",
    }  # fmt: skip


def test_unofficial_data_are_named_beside_the_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "a", "sat", SAT, data_official=False)
    build([run], tmp_path / "report")
    line = "data: not the official files, sha256 test_images " + "ab" * 8
    assert line in parsed(tmp_path / "report" / "index.html").text
    assert line.replace("_", "\\_") in (tmp_path / "report" / "table.md").read_text()
    assert line.replace("_", "\\_") in (tmp_path / "report" / "table.tex").read_text()


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    name = '<script>alert("x")</script> & 50% $a_b$ [x] | y'
    run = write_run(tmp_path / "a", name, "sat", SAT, classes=[f"<b>{k}</b>" for k in range(10)])
    text = (build([run], tmp_path / "report")).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<b>" not in text
    assert "&lt;script&gt;alert" in text and "&lt;b&gt;" in text
    assert parsed(tmp_path / "report" / "index.html").tags.count("script") == 1, "the page's own"
    latex = (tmp_path / "report" / "table.tex").read_text()
    assert "\\& 50\\% \\$a\\_b\\$ {[}x] \\textbar{} y" in latex
    assert re.search(r"(?<!\\)[&] 50|(?<!\\)%(?! needs)|(?<!\\)_", latex) is None
    markdown = (tmp_path / "report" / "table.md").read_text()
    assert "<script" not in markdown and "\\| y" in markdown


def test_latex_is_a_whole_booktabs_table(three: list[Path], tmp_path: Path) -> None:
    build(three, tmp_path / "report")
    latex = (tmp_path / "report" / "table.tex").read_text()
    body = latex[latex.index("\\toprule") : latex.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    spec = re.search(r"\\begin\{tabular\}\{(llr+)\}", latex)
    assert spec is not None
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(spec[1])}
    assert latex.count("{") == latex.count("}") and latex.isascii()


def test_a_run_without_evaluation_shows_its_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", "rat", "rat", None)
    text = parsed(build([run], tmp_path / "report")).text
    assert f"not evaluated yet: demilune evaluate '{run}'" in text
    assert (tmp_path / "report" / "figures" / "region.svg").exists()
    assert not (tmp_path / "report" / "figures" / "accuracy.svg").exists()


def test_a_foreign_evaluation_needs_no_run(tmp_path: Path) -> None:
    value = evaluation("their model.pt", "unknown", SAT, data="cifar10", eps=8 / 255)
    alone = write_evaluation(tmp_path / "theirs.json", value, 0, (3, 32, 32))
    text = parsed(build([alone], tmp_path / "report")).text
    assert "their model.pt" in text and "data:image/png" in (tmp_path / "report" / "index.html").read_text()
    assert "training: not known, the model was evaluated without its run" in text


def test_both_checkpoints_of_a_run_are_told_apart(three: list[Path], tmp_path: Path) -> None:
    value = evaluation("rat", "rat", RAT, checkpoint="last")
    write_evaluation(three[2] / "evaluations" / "last.json", value, 5)
    same = write_run(tmp_path / "d", "rat", "rat", RAT)
    labels = [entry.label for run in read([*three, same]) for entry in run.entries]
    assert labels == ["standard", "sat", "c/rat (best)", "c/rat (last)", "d/rat"]
    build([*three, same, three[0]], tmp_path / "report")


def test_two_builds_are_equal_bytes_and_a_former_report_is_replaced(three: list[Path], tmp_path: Path) -> None:
    def content(out: Path) -> dict[str, bytes]:
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    one, two = tmp_path / "one", tmp_path / "two"
    build(three, one)
    build(three, two)
    assert content(one) == content(two)
    (one / "mine.txt").write_text("stays")
    build(three[:2], one)
    build(three[:2], tmp_path / "fresh")
    assert content(one) == content(tmp_path / "fresh") | {"mine.txt": b"stays"}, "RAT's figure is gone with RAT"


def test_what_is_no_report_is_not_touched(three: list[Path], tmp_path: Path) -> None:
    for out in (three[0], three[0] / "experiment.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DemiluneError, match="give"):
            build(three, out)
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    build(three, tmp_path / "empty")
    assert (tmp_path / "empty" / MARKER).exists()


def broken_inputs() -> list[tuple[str, str | bytes]]:
    whole = evaluation("sat", "sat", SAT)
    return [
        ("experiment.json", "{"),
        ("metrics.jsonl", '{"epoch": 1\n'),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("metrics.jsonl", "3\n"),
        ("timing.jsonl", b"\xff\xfe"),
        ("evaluations/best.json", "[]"),
        ("evaluations/best.json", "{}"),
        ("evaluations/best.json", json.dumps(whole | {"rows": []})),
        ("evaluations/best.json", json.dumps(evaluation("sat", "sat", SAT, n=300))),
        ("evaluations/best.json", json.dumps(whole | {"classes": ["0", "1"]})),
        ("evaluations/best.images.npz", b"PK nonsense"),
        ("evaluations/best.images.npz", b""),
        ("evaluations/best.gallery.npz", b"nonsense"),
    ]


@pytest.mark.parametrize(("name", "content"), broken_inputs())
def test_broken_inputs_are_refused_in_one_line(name: str, content: str | bytes, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "sat", "sat", SAT)
    (run / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DemiluneError) as refusal:
        build([run], tmp_path / "report")
    assert str(run / name).split(".")[0] in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "report").exists()


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for paths, words in (
        ([], "at least one"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([tmp_path / "empty"], "no run folder"),
    ):
        with pytest.raises(DemiluneError, match=words):
            build(paths, tmp_path / "report")


def test_a_report_needs_no_torch(three: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "import demilune.report as report; "
        "assert 'matplotlib' not in sys.modules; "
        "report.build([Path(p) for p in sys.argv[2:]], Path(sys.argv[1])); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "report"), *map(str, three)]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr


CURVES = {
    "iterations", "budgets", "corruptions", "gaps", "direction", "landscape-input", "profile-weights",
}  # fmt: skip


def figure_names(out: Path) -> set[str]:
    return {path.stem for path in (out / "figures").iterdir()}


def test_curves_are_drawn_with_what_measured_them(three: list[Path], tmp_path: Path) -> None:
    write_curves(three[2], curve_files())
    out = tmp_path / "report"
    page = parsed(build(three, out))
    assert figure_names(out) >= CURVES
    assert len(page.ids) == len(set(page.ids)) and all(link.startswith(("data:", "#")) for link in page.links)
    text = page.text[page.text.index("Curves", 400) :]
    assert all(
        f"demilune curves rat --only {kind}" in text for kind in ("iterations", "budgets", "corruptions", "gaps")
    )
    assert text.count("demilune curves rat --only surveys") == 4
    assert "rat: missing: frost (needs photographs: --frost DIR)." in text
    assert "n = 400 training images each. n = 200 test images each." in text
    assert text.count("Verdicts: overestimated by ≥ 15 points: rat.") == 4, "of the checkpoint that the curves are of"
    assert "12.5" in text and "rat lacks" in text
    numbers = (out / "curves.md").read_text()
    assert "mean of 12" in numbers and "| rat | weights, clean | 12.5 |" in numbers
    build(three, tmp_path / "again")
    for path in out.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (tmp_path / "again" / path.relative_to(out)).read_bytes()
    build(three[:2], out)
    assert not figure_names(out) & CURVES and not (out / "curves.md").exists(), "gone with the run that had them"


def test_curves_of_other_settings_or_files_share_no_line(three: list[Path], tmp_path: Path) -> None:
    iterations = curve_files()["best_iterations"]
    write_curves(three[1], {"best_iterations": iterations | {"eps": 0.2, "data_official": False}})
    write_curves(three[2], {"best_iterations": iterations, "last_iterations": iterations, "best_gaps": {}})
    (three[2] / "curves" / "best_gaps.json").write_text(json.dumps(curve_files()["best_gaps_n200"]))
    out = tmp_path / "report"
    text = parsed(build(three, out)).text
    assert {name for name in figure_names(out) if name.startswith(("iterations", "gaps"))} == {
        "iterations-1",
        "iterations-2",
    }, "and one side is no gap"
    assert "digits (test), L∞ ball, ε = 51/255" in text and "data: not the official files" in text
    source = (out / "figures" / "iterations-2.svg").read_text()
    assert "rat (best_iterations)" in source and "rat (last_iterations)" in source


def test_curves_say_in_what_they_differ_and_which_have_no_verdict(three: list[Path], tmp_path: Path) -> None:
    one = curve_files()["best_iterations"]
    more = evaluation("sat", "sat", {row["name"]: row["right"] / 200 for row in one["rows"]}, n=1000, seed=3)
    write_curves(three[1], {"last_iterations": more | {"checkpoint": "last (step 9)"}})
    write_curves(three[2], {"best_iterations": one, "other_iterations": one})
    (panel,) = panels(read(three))
    (plate,) = panel.plates
    assert plate.drawing is not None and "sat (last, n 1,000, seed 3) " in plate.drawing.alt
    assert "rat (best_iterations) " in plate.drawing.alt and "rat (other_iterations) " in plate.drawing.alt
    assert plate.notes[-1] == "Not evaluated, and so without a verdict: sat (last, n 1,000, seed 3)."
    assert plate.notes[-2] == "Verdicts: overestimated by ≥ 15 points: rat."
    (three[2] / "curves" / "other_iterations.json").unlink()
    (plate,) = panels(read(three))[0].plates
    assert plate.drawing is not None and "rat (best, n 200, seed 0) " in plate.drawing.alt
    assert plate.notes[0] == "n, the number of images, stands in the name of each."
    write_curves(three[0], {"best_iterations": one})
    (plate,) = panels(read([three[0], three[2]]))[0].plates
    assert plate.drawing is not None and "standard 90.0 at" in plate.drawing.alt, "nothing to tell apart"


def broken_curves() -> list[tuple[str, str]]:
    files = curve_files()
    way = files["best_direction_n25"]
    return [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ("{}", "neither an evaluation nor a survey"),
        (json.dumps(evaluation("a", "sat", SAT)), "no figure is made"),
        (json.dumps(files["best_iterations"] | {"rows": []}), "counts no images"),
        (json.dumps(files["best_iterations"] | {"eps": None}), "broken evaluation"),
        (json.dumps({"surveys": 3}), "broken survey"),
        (json.dumps(way | {"surveys": []}), "broken survey"),
        (json.dumps(way | {"surveys": [3]}), "broken survey"),
        (json.dumps(way | {"data_sha256": {"x": 3}}), "broken survey"),
        (json.dumps(way | {"surveys": [{"kind": "dirction"}]}), "did you mean 'direction'"),
        (json.dumps(way | {"surveys": [way["surveys"][0] | {"right": [1]}]}), "broken direction"),
    ]


@pytest.mark.parametrize(("content", "words"), broken_curves())
def test_broken_curves_are_refused_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    run = write_curves(write_run(tmp_path / "run", "sat", "sat", SAT), {})
    (run / "curves" / "best_iterations.json").write_text(content)
    with pytest.raises(DemiluneError) as refusal:
        build([run], tmp_path / "report")
    told = str(refusal.value)
    assert str(run / "curves" / "best_iterations.json") in told and words in told and "\n" not in told
    assert not (tmp_path / "report").exists()


def test_a_foreign_models_folder_needs_no_experiment(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    write_evaluation(home / "evaluations" / "model.json", evaluation("their net", "foreign", RAT), 0)
    (home / "model.json").write_text(json.dumps({"name": "their net", "model": {}, "trial": {}}))
    write_curves(home, {"model_iterations": curve_files()["best_iterations"]})
    (run,) = read([home])
    assert run.experiment is None and run.label == "their net" and len(run.entries) == len(run.curves) == 1
    build([home], tmp_path / "report")
    found = json.loads((tmp_path / "report" / "robustbench" / "their-net_model.json").read_text())
    assert found["additional_data"] is None


ROBUSTBENCH = (
    "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture", "eps",
    "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable",
)  # fmt: skip


def test_robustbench_is_told_what_is_known_and_no_more(three: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    build(three, out)
    assert {path.name for path in (out / "robustbench").iterdir()} == {
        "standard_best.json", "sat_best.json", "rat_best.json",
    }  # fmt: skip
    found = json.loads((out / "robustbench" / "rat_best.json").read_text())
    assert tuple(found) == ROBUSTBENCH
    assert (found["clean_acc"], found["reported"], found["autoattack_acc"]) == ("94.00", "70.00", "")
    assert (found["eps"], found["dataset"], found["additional_data"]) == ("0.1", "digits", False)
    assert [found[key] for key in ("link", "name", "authors", "venue", "unreliable")] == ["", "", "", "", None]
    assert "overestimated by at least 15 points" in found["footnote"] and "200 test images" in found["footnote"]
    whole = robustbench(entry_of(doctored("one", "rst + extra images", ASIDE, eps=8 / 255), tmp_path / "one"))
    assert (whole["autoattack_acc"], whole["unreliable"], whole["eps"]) == ("53.00", False, "8/255")
    assert whole["additional_data"] is True and "external" not in whole
    value = doctored("one", "sat", {"unbounded": ("probe", 0.5, 50)})
    next(row for row in value["rows"] if row["name"] == "worst")["right"] = 90
    lower = robustbench(entry_of(value, tmp_path / "lower"))
    assert (lower["external"], lower["unreliable"]) == ("45.00", True)
    half = robustbench(entry_of(evaluation("half", "sat", SAT | {"autoattack.apgd_t": 0.5}), tmp_path / "half"))
    assert half["autoattack_acc"] == ""


def test_names_that_files_cannot_have_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, label, "sat", SAT) for name, label in (("a", "../x y"), ("b", "..|X|y"))]
    build(runs, tmp_path / "report")
    names = {path.name for path in (tmp_path / "report" / "robustbench").iterdir()}
    assert names == {"..-x-y_best.json", "..-X-y_best_.json"}


def test_png_is_what_was_put_in() -> None:
    import io

    from PIL import Image

    for shape in ((1, 3, 5), (3, 4, 2)):
        image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32) / 255
        with Image.open(io.BytesIO(png(image))) as read_back:
            values = np.asarray(read_back).reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
        assert np.array_equal(values, np.rint(image * 255).astype(np.uint8))


def test_published_tables_are_the_papers() -> None:
    paper = papers.published("rat")
    assert [one["number"] for one in paper["tables"]] == [1, 2, 3, 4]
    for one in paper["tables"]:
        for part in one["parts"]:
            assert all(len(row["values"]) == len(part["columns"]) for row in part["rows"])
    for part in papers.table("rat", 2)["parts"]:  # the mean is the mean of its columns: a slip of the pen would show
        for row in part["rows"]:
            assert row["values"][0] == pytest.approx(np.mean(row["values"][1:]), abs=0.0051)
    ours = {row["method"]: row["values"] for row in papers.table("rat", 1)["parts"][0]["rows"]}
    assert ours["rat"] == [93.17, 77.51, 70.57, 65.54, 69.70]
    assert ours["rat"][2] - ours["sat"][2] == pytest.approx(22.83)
    minutes = paper["timing"]["minutes"]
    assert 100 * (minutes["rat"] / minutes["sat"] - 1) == pytest.approx(paper["timing"]["overhead_percent"], abs=0.05)
    with pytest.raises(DemiluneError, match="did you mean 'rat'"):
        papers.published("rta")
    with pytest.raises(DemiluneError, match="possible are 1, 2, 3, 4"):
        papers.table("rat", 9)


RESULTS = Path(__file__).parents[2] / "docs" / "results"
W8 = "sat,trades,avm,adt,rat,gairat,lrat,sat-awp,sat-rwp,trades-rwp,taylor,rat-rwp"


@pytest.mark.parametrize(
    ("runs", "names", "report"),
    [
        ("cifar10-w8", W8, "cifar10-w8"),
        ("cifar10-w8", "sat,trades,avm,rat", "autoattack"),
        ("cifar10-w16", "sat-w16,avm-w16,rat-w16", "cifar10-w16"),
    ],
)
def test_published_tables_are_those_that_their_runs_give_now(runs: str, names: str, report: str) -> None:
    """A rule that changes a mark or a verdict asks for the reports to be drawn again."""
    folders = [RESULTS / runs / "runs" / name for name in names.split(",")]
    groups = [section.entries for section in html.sections(read(folders))]
    made = {"table.md": tables.to_markdown(groups), "table.tex": tables.to_latex(groups)}
    for name, text in made.items():
        assert text == (RESULTS / report / "report" / name).read_text(encoding="utf-8"), name
