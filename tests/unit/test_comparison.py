"""Paired comparisons: McNemar's test and Holm's correction against scipy's, what is compared, and what is refused."""

from __future__ import annotations

import csv
import html
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from conftest import files, refused
from demilune.__main__ import main
from demilune.comparison import FIELDS, compare
from demilune.errors import DemiluneError
from demilune.paired import discordant, holm, mcnemar, paired
from demilune.report import build, figures, theme
from demilune.report import html as html_page
from demilune.report.compare import corrected, pairs, probability
from demilune.report.read import read
from report_runs import RAT, SAT, doctored, evaluation, write_evaluation


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(("b", "c"), [*itertools.product(range(12), range(12)), (0, 60), (300, 341), (1200, 900)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_images(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-10)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_has_the_ends_it_must() -> None:
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == 2 / 64
    assert mcnemar(0, 5000) == 0.0  # 2^-4999 is no double
    assert 0.0 < mcnemar(4800, 5200) < 1e-4


def test_holm_multiplies_the_kth_smallest_and_never_falls() -> None:
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust(…, "holm")
    assert holm([0.5, 0.9, 0.4]) == [1.0, 1.0, 1.0]


def test_no_difference_is_rarely_called_one() -> None:
    """With equal accuracies the corrected test errs in at most 5 % of the families (here of three pairs)."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        right = rng.random((3, 150)) < 0.5
        found = [mcnemar(*discordant(a, b)) for a, b in itertools.combinations(right, 2)]
        wrong += min(holm(found)) < 0.05
    assert wrong <= 0.05 * 400 + 2.33 * math.sqrt(400 * 0.05 * 0.95)


def test_pairs_are_what_the_per_image_results_say(three: list[Path]) -> None:
    found = compare(three)
    assert found.row == "worst" and [(p.first.label, p.second.label) for p in found.pairs] == [
        ("rat", "sat"),
        ("rat", "standard"),
        ("sat", "standard"),
    ]
    right = {p.name: arrays(p / "evaluations" / "best.images.npz")["right.worst"] for p in three}
    for pair, (one, other) in zip(found.pairs, ("cb", "ca", "ba"), strict=True):
        assert pair.difference == paired(right[one], right[other])
        b, c = int((right[one] & ~right[other]).sum()), int((right[other] & ~right[one]).sum())
        assert (pair.wins, pair.losses, pair.p) == (b, c, pytest.approx(binomtest(b, b + c).pvalue))
        assert pair.accuracies == (right[one].mean(), right[other].mean())
    assert [p.corrected for p in found.pairs] == holm([p.p for p in found.pairs])
    assert [p.clear for p in found.pairs] == [False, True, True]


def test_a_baseline_is_the_second_of_every_pair(three: list[Path]) -> None:
    for paths in (three, three[1:]):
        found = compare(paths, baseline=three[0])
        assert {(p.first.label, p.second.label) for p in found.pairs} == {("sat", "standard"), ("rat", "standard")}
        assert all(p.difference is not None and p.difference.value > 0 for p in found.pairs)
    worse = compare(three, "pgd10", three[2])
    assert [p.reading for p in worse.pairs] == ["rat beats standard", "rat beats sat"]


def test_only_images_that_both_attacked_count(three: list[Path], tmp_path: Path) -> None:
    path = three[1] / "evaluations" / "best.images.npz"
    whole = arrays(path)
    shifted = whole["ids"] + 150
    np.savez(path, **(whole | {"ids": shifted}))
    (pair,) = compare(three[1:]).pairs
    rat = arrays(three[2] / "evaluations" / "best.images.npz")["right.worst"]
    assert pair.difference == paired(rat[150:], whole["right.worst"][:50])
    np.savez(path, **(whole | {"ids": whole["ids"][::-1]}))  # another order is no other image
    (pair,) = compare(three[1:]).pairs
    assert pair.difference == paired(rat, whole["right.worst"][::-1])
    np.savez(path, **(whole | {"ids": whole["ids"] + 1000}))
    with pytest.raises(DemiluneError, match="share no image"):
        compare(three[1:])
    assert compare(three).pairs[0].difference is None, "the others are compared all the same"
    assert any("share no image" in note for note in compare(three).notes)


def test_rows_on_fewer_images_are_compared_on_those(tmp_path: Path) -> None:
    fewer = {"odi": ("attack", 0.5, 50)}
    here = write_evaluation(tmp_path / "a.json", doctored("a", "sat", fewer), 0)
    there = write_evaluation(tmp_path / "b.json", doctored("b", "sat", {"odi": ("attack", 0.4, 50)}), 0)
    (pair,) = compare([here, there], "odi").pairs
    assert pair.difference == paired(np.arange(50) < 25, np.arange(50) < 20)


def test_the_row_is_the_strongest_that_all_ran(three: list[Path], tmp_path: Path) -> None:
    whole = [write_evaluation(tmp_path / f"{n}.json", doctored(n, "sat", {}), i) for i, n in enumerate("xy")]
    assert compare(whole).row == "worst"
    more = doctored("z", "sat", {"odi": ("attack", 0.5, 200)})
    other = write_evaluation(tmp_path / "z.json", more, 3)
    found = compare([whole[0], other])
    assert found.row == "autoattack", "worst cases of other attacks are not alike"
    assert found.notes == ("Verdicts: believable: x, z.",)
    assert compare([whole[0], other], "worst").notes[1:] == ("other attacks: x lacks odi",)
    said = compare([whole[0], other], "worst").readings()
    assert said[0] == "Not attacked alike, so that none is called better: x and z." and len(said) == 3
    some = doctored("some", "sat", {"odi": ("attack", 0.5, 50)})
    assert compare([other, write_evaluation(tmp_path / "some.json", some, 3)]).row == "autoattack", "odi on 50 is less"
    few = evaluation("few", "sat", {"clean": 0.9, "fgsm": 0.6, "pgd10": 0.5, "worst": 0.5})
    found = compare([three[1], write_evaluation(tmp_path / "few.json", few, 5)])
    assert found.row == "pgd10" and found.title == "PGD-10"


def test_a_run_is_represented_by_the_evaluation_that_others_have_too(three: list[Path], tmp_path: Path) -> None:
    doctors = [
        write_evaluation(path / "evaluations" / "best_doctor.json", doctored(path.name, "sat", {}, n=100), i)
        for i, path in enumerate(three[1:])
    ]
    last = evaluation("rat", "rat", {**RAT, "worst": 0.1}, checkpoint="last (step 9)")
    write_evaluation(three[2] / "evaluations" / "last.json", last, 9)
    (pair,) = compare(three[1:]).pairs
    assert pair.difference is not None and pair.difference.n == 200 and pair.first.path.name == "best.json"
    (pair,) = compare([three[1], doctors[1]]).pairs
    assert pair.difference is not None and pair.difference.n == 100
    assert {pair.first.path.name, pair.second.path.name} == {"best_doctor.json"}
    (pair,) = compare(three[1:], "autoattack").pairs
    assert pair.difference is not None and pair.difference.n == 100


def test_whoever_was_attacked_with_less_beats_nobody(three: list[Path], tmp_path: Path) -> None:
    easy = evaluation("easy", "sat", {"clean": 0.9, "fgsm": 0.8, "pgd10": 0.8, "worst": 0.8})
    weak = write_evaluation(tmp_path / "easy.json", easy, 5)
    found = compare([*three, weak], "worst")
    assert len(found.pairs) == 6 and [pair.first.label for pair in found.pairs[:3]] == ["easy"] * 3
    for pair in found.pairs[:3]:
        assert pair.p < 1e-4 and math.isnan(pair.corrected) and not pair.clear and pair.better == ""
        assert pair.reading == "not attacked alike" and "easy lacks cw10, multi9x30" in pair.note
    fair = compare(three).pairs
    assert [pair.corrected for pair in found.pairs[3:]] == [pair.corrected for pair in fair], "corrected for three"
    said = found.readings()
    assert said[:3] == [
        "More than chance at 5 %: rat beats standard; sat beats standard.",
        "No difference at 5 % in the other pair attacked alike: n is too small to tell, or there is none.",
        "Not attacked alike, so that none is called better: easy and rat; easy and sat; easy and standard.",
    ]
    assert "corrected for 3 pairs" in found.numbers().note and found.numbers().lines[0][-1] == theme.NONE
    assert found.to_json()["pairs"][0]["p_corrected"] is None and "nan" not in found.to_csv().lower()
    assert "NaN" not in json.dumps(found.to_json())
    entries = [entry for run in read([*three, weak]) for entry in run.entries]
    shown = pairs(entries)
    assert [pair.corrected for pair in shown if not pair.note] == [pair.corrected for pair in fair]
    drawing = figures.differences(shown, "differences")
    assert drawing is not None and "easy" not in drawing.alt and "rat minus sat" in drawing.alt
    assert drawing.caption.endswith("Left out, as not attacked alike: 3 pairs.")
    assert figures.differences(shown[:1], "differences") is None
    point = figures.tradeoff(entries, [], "tradeoff")
    assert "Not attacked like the others, and so not to be compared in height: easy." in point.caption
    assert [name for name, _ in point.values[0].lines] == ["standard", "sat", "rat", "easy (other attacks)"]
    text = html_page.summary(entries)
    assert not any("Best in the worst case" in line for line in text) and "Best on clean images: standard" in text[0]
    assert text[1] == "In the worst case, not all were attacked alike: none is called best."
    assert text[2].startswith(
        "In the worst case, easy and rat were not attacked alike, and neither is called better (+"
    )
    page = build([*three, weak], tmp_path / "report").read_text(encoding="utf-8")
    assert page.count('<td class="text">not attacked alike</td>') == 3 and 'data-value="nan"' not in page


def test_a_network_attacked_more_beside_is_summed_up_by_what_all_underwent(three: list[Path]) -> None:
    more = doctored("rat", "rat", {"odi": ("attack", 0.1, 200)})
    write_evaluation(three[2] / "evaluations" / "best_doctor.json", more, 3)
    said = html_page.summary([entry for run in read(three) for entry in run.entries])
    assert said[1] == (
        "Best in the worst case: rat (best), right on 55.0 ± 3.5 % of 200 images (of the 3 evaluations by the same "
        "attacks on so many images)."
    )


def test_the_figure_of_differences_is_filled_where_the_table_calls_one_better(tmp_path: Path) -> None:
    """Two networks more than two standard errors apart, but not when p is corrected for three pairs."""
    files = []
    for name, right in (("a", range(100)), ("b", range(6, 100)), ("c", range(100, 200))):
        rate = len(right) / 200
        value = evaluation(name, "sat", {"clean": 1.0, "pgd10": rate, "worst": rate})
        files.append(write_evaluation(tmp_path / f"{name}.json", value, 0))
        beside = files[-1].with_name(f"{name}.images.npz")
        known = np.isin(np.arange(200), list(right))
        np.savez(beside, **(arrays(beside) | {"right.pgd10": known, "right.worst": known}))
    made = pairs([entry for run in read(files) for entry in run.entries])
    (close,) = [one for one in made if {one.first.label, one.second.label} == {"a", "b"}]
    assert close.difference is not None and close.difference.clear and not close.clear
    (alone,) = corrected([close])
    assert alone.clear
    hollow, full = figures.differences([close], "d"), figures.differences([alone], "d")
    assert hollow is not None and full is not None
    assert hollow.svg.count(f"fill: {theme.INK}") < full.svg.count(f"fill: {theme.INK}")
    assert hollow.alt == full.alt and "below 5 %" in full.caption


def test_attacks_of_one_name_set_otherwise_are_said(tmp_path: Path) -> None:
    value = evaluation("b", "sat", SAT)
    next(row for row in value["rows"] if row["name"] == "pgd10")["attack"] = "pgd10(step_ratio=1)"
    here = write_evaluation(tmp_path / "a.json", evaluation("a", "sat", SAT), 0)
    there = write_evaluation(tmp_path / "b.json", value, 1)
    assert compare([here, there], "pgd10").notes[1:] == ("other attacks: pgd10 not set alike",)
    assert compare([here, there]).row == "multi9x30", "the worst cases are of other attacks"


def test_the_command_prints_and_writes_the_same_numbers(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in three]
    for ending in ("json", "csv", "md"):
        assert main(["compare", *names, "--out", str(tmp_path / f"x.{ending}")]) == 0
    said = capsys.readouterr().out
    (pair, *_) = compare(three).pairs
    assert pair.difference is not None
    gap = f"+{100 * pair.difference.value:.1f} ± {100 * pair.difference.error:.1f}"
    assert gap in said and f"{pair.wins} : {pair.losses}" in said
    assert "More than chance at 5 %: rat beats standard; sat beats standard." in said
    assert "No difference at 5 % in the other pair" in said and "another training seed" in said
    value = json.loads((tmp_path / "x.json").read_text())
    assert (value["row"], value["eps"], value["level"]) == ("worst", 0.1, 0.05)
    assert value["pairs"][0]["p_corrected"] == pair.corrected and value["pairs"][0]["first_only"] == pair.wins
    with (tmp_path / "x.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == FIELDS and float(lines[0]["standard_error"]) == pair.difference.error
    text = (tmp_path / "x.md").read_text()
    assert gap in text and text.startswith("**Compared: Worst case")
    for ending in ("json", "csv", "md"):  # a comparison may be replaced
        assert main(["compare", *names[1:], "--out", str(tmp_path / f"x.{ending}")]) == 0


def test_the_report_says_the_same(three: list[Path], tmp_path: Path) -> None:
    page = build(three, tmp_path / "report").read_text(encoding="utf-8")
    for pair in compare(three).pairs:
        shown = html.escape(probability(pair.corrected))
        assert f'<td data-value="{pair.corrected}">{shown}</td><td class="text">{pair.better}</td>' in page
        assert f'<td data-value="{pair.wins}">{pair.wins} : {pair.losses}</td><td data-value="200">200</td>' in page


def test_the_report_compares_networks_by_evaluations_of_the_same_attacks(three: list[Path], tmp_path: Path) -> None:
    for i, path in enumerate(three[1:]):
        write_evaluation(path / "evaluations" / "best_doctor.json", doctored(path.name, "sat", {}, n=100), i)
    entries = [entry for run in read(three) for entry in run.entries]
    assert len(entries) == 5
    shown, found = pairs(entries), compare(three)
    assert [one.p for one in shown] == [one.p for one in found.pairs], "each network once, as in the terminal"
    assert [one.corrected for one in shown] == [one.corrected for one in found.pairs]
    (three[2] / "evaluations" / "best.json").unlink()
    (pair,) = pairs([entry for run in read(three[1:]) for entry in run.entries])
    assert pair.difference is not None and pair.difference.n == 100 and not pair.note
    (pair,) = pairs([entry for run in read([three[0], three[2]]) for entry in run.entries])
    assert pair.note.startswith("other attacks: ") and "lacks autoattack" in pair.note
    page = build([three[0], three[2]], tmp_path / "report").read_text(encoding="utf-8")
    assert html.escape(pair.note) in page


@pytest.mark.parametrize(
    ("change", "argv", "words"),
    [
        ("", ["b"], ["two runs"]),
        ("", ["b", "b"], ["two runs"]),
        ("", ["b", "nowhere"], ["does not exist"]),
        ("", ["b", "c", "--row", "pgd1"], ["unknown row 'pgd1'", "did you mean 'pgd10'"]),
        ("", ["b", "c", "--out", "x.txt"], ["x.txt", ".json, .csv, .md"]),
        ("", ["b", "c", "--out", "mine.json"], ["mine.json is there, and no comparison"]),
        ("", ["b", "c", "--out", "mine.csv"], ["mine.csv is there, and no comparison"]),
        ("", ["b", "c", "--baseline", "nowhere"], ["does not exist"]),
        ("eps", ["b", "c"], ["none of all", "sat: digits (test), L∞ ball, ε = 0.1;", "L∞ ball, ε = 0.15)"]),
        ("norm", ["b", "c"], ["rat: digits (test), L2 ball"]),
        ("data", ["b", "c"], ["rat: mnist (test)"]),
        ("sums", ["b", "c"], ["sha256 test_images abababababab", "sha256 test_images cdcdcdcdcdcd"]),
        ("images", ["b", "c"], ["rat has no per-image results", "best.images.npz", "evaluate it again"]),
        ("none", ["b", "c"], ["was not evaluated: demilune evaluate"]),
        ("row", ["b", "c", "--row", "cw10"], ["rat has no row 'cw10'", "all have clean, fgsm"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    three: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    argv: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    (tmp_path / "mine.csv").write_text("mine\n")
    room = three[2] / "evaluations"
    changes: dict[str, dict[str, Any]] = {
        "eps": {"eps": 0.15}, "norm": {"norm": "l2"}, "data": {"data": "mnist"},
        "sums": {"data_sha256": {"test_images": "cd" * 32}},
    }  # fmt: skip
    if change in changes:
        write_evaluation(room / "best.json", evaluation("rat", "rat", RAT, **changes[change]), 3)
    if change == "row":
        less = {name: rate for name, rate in RAT.items() if name != "cw10"}
        write_evaluation(room / "best.json", evaluation("rat", "rat", less), 3)
    if change == "images":
        (room / "best.images.npz").unlink()
    if change == "none":
        for file in room.iterdir():
            file.unlink()
    before = files(tmp_path)
    refused(["compare", *argv], capsys, *words)
    assert files(tmp_path) == before, "nothing was written or changed"


def test_comparing_needs_no_torch(three: list[Path]) -> None:
    code = (
        "import sys; from demilune.__main__ import main; "
        f"main(['compare', {str(three[1])!r}, {str(three[2])!r}]); "
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
