"""A ledger's records survive their file to the bit, refuse what was changed, and are compared where they may be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demilune.diagnosis import diagnose
from demilune.errors import DemiluneError
from demilune.ledger import (
    Record,
    bits_of,
    cells_in,
    fits,
    images_of,
    key_of,
    line,
    matching,
    packed,
    read,
    read_one,
    short,
    unpacked,
    without_paths,
    write,
    written,
)
from demilune.pages import (
    Asked,
    Sheet,
    Shown,
    apart,
    blocks,
    claimed,
    number,
    student,
    table,
    to_html,
    to_markdown,
    verdict,
)
from demilune.paired import paired
from demilune.results import Evaluation, Row, standard_error
from demilune.suites.record import asked_of, held, key_held
from demilune.suites.results import page

N = 200


def rates(n: int, **shares: float) -> dict[str, np.ndarray[Any, Any]]:
    """Return per-image results: the first images are right, so that rows are nested."""
    return {f"right.{name}": np.arange(n) < round(share * n) for name, share in shares.items()}


def evaluation(images: dict[str, np.ndarray[Any, Any]], after: int = 0, **change: Any) -> Evaluation:
    """Return an evaluation with these per-image results; ``after`` more are right after attacks alone."""
    rows = []
    for name, right in images.items():
        if not name.startswith("right."):
            continue
        row = name.removeprefix("right.")
        count = int(right.sum())
        more = None if row in ("clean", "worst", "autoattack") else count + after
        rows.append(Row(row, row.upper(), f"PGD(step_ratio=0.25) {row}", len(right), count, more, 10.0, 10.0))
    fields: dict[str, Any] = {
        "subject": "sat", "checkpoint": "best (step 3)", "architecture": "Small(width=4)", "parameters": 100,
        "method": "sat", "data": "digits", "split": "test", "classes": tuple("0123456789"),
        "data_sha256": {"test_images": "ab"}, "data_official": True, "norm": "linf", "eps": 0.15, "randomised": False,
        "search_precision": "float32", "rows": tuple(rows), "checks": (), "seed": 0, "seconds": 1.5,
        "environment": {}, "command": "",
    }  # fmt: skip
    found = Evaluation(**(fields | change))
    findings, verdict = diagnose(found.rows, images, found.checks, found.eps)
    return replace(found, findings=findings, verdict=verdict)


def record(label: str = "sat", seed: int = 0, n: int = N, ids: int = 0, ours: bool = True, **shares: float) -> Record:
    """Return a record; the data, the images from ``ids`` on, the training's seed."""
    images = rates(n, **(shares or {"clean": 0.9, "pgd10": 0.5, "worst": 0.5}))
    images["ids"] = np.arange(ids, ids + n)
    found = evaluation(images)
    data = {"name": "digits", "official": ours, "sha256": {"test_images": "ab"}}
    kept = {k: v for k, v in found.to_json().items() if k not in ("rows", "environment", "command")}
    return Record(
        key=key_of({"label": label, "seed": seed}, data, {"n": n, "rows": sorted(shares)}),
        label=label,
        kind="evaluation",
        what="",
        checkpoint="best (step 3)",
        experiment={"name": label, "model": {"name": "small", "width": 4}, "training": {"epochs": 2}, "seed": seed},
        data=data,
        trained={"seconds": 36.0, "environment": {"processor": "a processor"}},
        measured={"seconds": 1.5, "step_ratio": 0.25},
        commit="0123456789" * 4 + "+",
        found=kept,
        rows=found.rows,
        bits=bits_of(found.rows, images),
    )


# --- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_packed_bits_are_unpacked_to_the_same(n: int) -> None:
    right = np.random.default_rng(n).random(n) < 0.5
    text = packed(right)
    assert np.array_equal(unpacked(text, n), right)
    assert len(text) <= 4 * math.ceil(math.ceil(n / 8) / 3)
    for wrong in (n + 8, max(0, n - 8)):
        with pytest.raises(DemiluneError, match="bits of"):
            unpacked(text, wrong)
    with pytest.raises(DemiluneError, match="no base64"):
        unpacked("no base64!", n)


def test_rows_with_fewer_images_keep_their_places() -> None:
    images = rates(N, clean=0.9, pgd10=0.5)
    place = np.array([3, 50, 150])
    images |= {"right.nattack": np.array([True, False, True]), "place.nattack": place, "ids": np.arange(N)}
    found = evaluation(images)
    made = replace(record(), rows=found.rows, bits=bits_of(found.rows, images))
    back = images_of(made)
    assert np.array_equal(back["place.nattack"], place)
    assert np.array_equal(back["right.nattack"], images["right.nattack"])
    assert np.array_equal(back["right.pgd10"], images["right.pgd10"])
    assert "place.pgd10" not in back
    assert made.right("pgd10") is not None
    assert made.right("nattack") is None, "not of all images"


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_record_survives_its_file_and_becomes_the_same_evaluation(tmp_path: Path) -> None:
    made = record()
    path, new = write(tmp_path, made, "digits-small-sat-evaluation")
    assert new
    assert path.name == f"digits-small-sat-evaluation-{made.key}.json"
    (back,) = read(tmp_path).values()
    assert json.dumps(back.to_json()) == json.dumps(made.to_json())
    found = back.evaluation
    assert found is not None
    assert [(row.name, row.right, row.n) for row in found.rows] == [(r.name, r.right, r.n) for r in made.rows]
    assert found.verdict is not None
    before = path.read_bytes()
    assert write(tmp_path, made, "another-name") == (path, False), (
        "the same cell is the same file, whatever it is called"
    )
    assert path.read_bytes() == before
    assert len(path.read_text().splitlines()) > len(made.rows) + 10, "a line for each row"


def test_other_numbers_for_the_same_cell_are_refused_unless_they_are_to_replace(tmp_path: Path) -> None:
    made = record()
    path, _ = write(tmp_path, made, "x")
    other = replace(record(clean=0.9, pgd10=0.495, worst=0.495), key=made.key)
    before = path.read_bytes()
    with pytest.raises(DemiluneError, match=r"PGD10 100 of 200 there, 99 of 200 here.*--replace"):
        write(tmp_path, other, "x")
    assert path.read_bytes() == before
    assert write(tmp_path, other, "x", replaced=True) == (path, True)
    (back,) = read(tmp_path).values()
    row = back.row("pgd10")
    assert row is not None and row.right == 99


def test_a_published_figure_of_other_images_brings_its_own_error() -> None:
    made = record(clean=0.93, pgd10=0.5)
    line_ = shown("RAT", made, theirs={"clean": 93.17, "pgd10": 54.0})
    alike, apart_ = (table(sheet(line_, images={"": N, **more})) for more in ({}, {"pgd10": N}))
    assert alike is not None and apart_ is not None
    error = math.hypot(standard_error(0.5, N), standard_error(0.54, N))
    assert f"(−{0.04 / standard_error(0.5, N):.1f} SE)" in alike.lines[-1][3]
    assert f"(−{0.04 / error:.1f} SE)" in apart_.lines[-1][3]


def impossible() -> dict[str, tuple[Record, str]]:
    made = record()
    first, *rest = made.rows
    return {
        "more right than images": (replace(made, rows=(replace(first, right=N + 1), *rest)), "counts 201 right"),
        "more right after": (replace(made, rows=(replace(first, right_after=N + 1), *rest)), "after: 201"),
        "fewer than none": (replace(made, rows=(replace(first, right=-1), *rest)), "counts -1 right"),
        "images of another count": (replace(made, rows=(replace(first, right=first.right - 1), *rest)), "otherwise"),
        "images of no row": (replace(made, bits={**made.bits, "cw10": made.bits["pgd10"]}), "no such row"),
        "places of another count": (
            replace(made, bits={**made.bits, "place.pgd10": made.bits["pgd10"]}), "otherwise",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(impossible()))
def test_counts_that_cannot_be_or_are_not_those_of_the_images_are_refused(tmp_path: Path, kind: str) -> None:
    made, words = impossible()[kind]
    path = tmp_path / f"x-{made.key}.json"
    path.write_text(written(made))  # its checksum is right
    with pytest.raises(DemiluneError) as refused:
        read(tmp_path)
    assert str(path) in str(refused.value) and words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_conflicts_are_found_before_anything_is_written(tmp_path: Path) -> None:
    made = record()
    other = replace(record(clean=0.9, pgd10=0.495, worst=0.495), key=made.key)
    with pytest.raises(DemiluneError, match="two of the runs hold other numbers"):
        fits(tmp_path, [made, other], replaced=True)
    write(tmp_path, made, "x")
    fresh = record("rat", 1)
    with pytest.raises(DemiluneError, match="--replace"):
        fits(tmp_path, [fresh, other])
    fits(tmp_path, [fresh, other], replaced=True)
    fits(tmp_path, [fresh, made, made])


def tampered(text: str) -> dict[str, str]:
    value = json.loads(text)
    return {
        "cut short": text[: len(text) // 2],
        "no object": "[]",
        "not utf-8 json": "\x00",
        "foreign": json.dumps({"rows": []}),
        "another format": json.dumps(value | {"format": 99}),
        "a number changed": text.replace('"pgd10", "PGD10", ', '"pgd10", "PGD11", '),
        "a bit changed": text.replace(value["bits"]["pgd10"], "AAAA" + value["bits"]["pgd10"][4:]),
        "no checksum": json.dumps({k: v for k, v in value.items() if k != "sha256"}),
    }


@pytest.mark.parametrize("kind", list(tampered(written(record()))))
def test_a_damaged_or_foreign_file_is_refused_in_one_line_with_the_remedy(tmp_path: Path, kind: str) -> None:
    path, _ = write(tmp_path, record(), "x")
    text = tampered(path.read_text())[kind]
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(DemiluneError) as refused:
        read(tmp_path)
    told = str(refused.value)
    assert str(path) in told
    assert "demilune ledger add RUN" in told
    assert "\n" not in told


def test_a_record_of_wrong_types_is_refused() -> None:
    with pytest.raises(DemiluneError, match="16 hexadecimal digits"):
        replace(record(), key="xyz")
    with pytest.raises(DemiluneError, match=r"data\.official"):
        replace(record(), data={"name": "digits", "sha256": {}})
    with pytest.raises(DemiluneError, match="kind"):
        replace(record(), kind="guess")  # type: ignore[arg-type]


def test_a_ledger_that_is_a_file_is_refused_and_one_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(DemiluneError, match="a ledger is a folder"):
        read(tmp_path / "file")
    (tmp_path / "README.md").write_text("no cell")
    assert read(tmp_path) == {}


def test_paths_are_stripped_and_nothing_else() -> None:
    told = {
        "a": "/home/somebody/runs/sat/best.safetensors is of other images", "b": "ε = 8/255, n/a, 3 / 4",
        "c": ["transfer from sat (best), /data/x/y.npz"], "d": 0.5, "e": "see https://example.org/a/b",
    }  # fmt: skip
    assert without_paths(told) == {
        "a": "best.safetensors is of other images", "b": "ε = 8/255, n/a, 3 / 4",
        "c": ["transfer from sat (best), y.npz"], "d": 0.5, "e": "see https://example.org/a/b",
    }  # fmt: skip
    assert short({"a": [0.123456789, 3, "x"], "b": math.inf}) == {"a": [0.123457, 3, "x"], "b": math.inf}


def test_cells_are_listed_and_found_by_words(tmp_path: Path) -> None:
    for seed, label in enumerate(("sat", "rat")):
        write(tmp_path, record(label, seed), label)
    records = read(tmp_path)
    assert cells_in(records) == "2 cells: 2 evaluation"
    assert [one.label for one in matching(records, ["RAT", "digits"]).values()] == ["rat"]
    assert "PGD10 50.0" in line(next(iter(records.values())))
    with pytest.raises(DemiluneError, match="unknown cell 'nobody'"):
        matching(records, ["nobody"])


# --- pages -----------------------------------------------------------------------------------------------------------


def shown(
    label: str, *seeds: Record, theirs: dict[str, float] | None = None, apart_: tuple[str, ...] | None = ()
) -> Shown:
    return Shown(label, theirs or {}, tuple((one,) for one in seeds), apart_)


def test_one_seed_has_the_binomial_error_and_several_their_spread_besides() -> None:
    one = shown("SAT", record(clean=0.9, pgd10=0.5))
    found = number(one, "pgd10")
    assert found is not None
    assert (found.value, found.n, found.seeds) == (0.5, N, 1)
    assert found.error == pytest.approx(standard_error(0.5, N))
    alike = number(shown("SAT", *(record(clean=0.9, pgd10=0.5) for _ in range(3))), "pgd10")
    assert alike is not None
    assert alike.error == pytest.approx(standard_error(0.5, N)), "more seeds on the same images do not make it smaller"
    wide = number(shown("SAT", *(record(clean=0.9, pgd10=share) for share in (0.2, 0.5, 0.8))), "pgd10")
    assert wide is not None
    assert wide.value == pytest.approx(0.5)
    binomial = sum(standard_error(share, N) for share in (0.2, 0.5, 0.8)) / 3
    assert wide.error == pytest.approx(math.hypot(0.3 / math.sqrt(3), binomial)), "in quadrature"
    assert wide.margin == pytest.approx(math.hypot(4.303 * 0.3 / math.sqrt(3), 2 * binomial), rel=1e-3)
    assert found.margin == pytest.approx(2 * found.error)
    assert number(one, "autoattack") is None


def test_papers_reading_counts_what_is_right_after_the_attack_whatever_it_was_before() -> None:
    images = rates(N, clean=0.9, pgd10=0.5)
    rows = evaluation(images, after=10).rows
    found = number(shown("SAT", replace(record(), rows=rows)), "pgd10")
    assert found is not None
    assert found.value == pytest.approx(0.55)


def test_differences_are_paired_on_the_same_images_only() -> None:
    better, worse = record("a", clean=0.9, pgd10=0.6), record("b", clean=0.9, pgd10=0.5)
    found = apart(shown("A", better), shown("B", worse), "pgd10")
    assert found is not None
    one, by_image = found
    assert by_image
    assert one.value == pytest.approx(0.1)
    exact = paired(np.arange(N) < 120, np.arange(N) < 100)
    assert one.error == pytest.approx(math.hypot(exact.error, 1 / N))
    elsewhere = record("b", ids=1000, clean=0.9, pgd10=0.5)
    found = apart(shown("A", better), shown("B", elsewhere), "pgd10")
    assert found is not None
    assert not found[1]
    assert found[0].error == pytest.approx(math.hypot(standard_error(0.6, N), standard_error(0.5, N)))
    assert apart(shown("A", better), shown("B", worse), "cw10") is None


def test_claims_hold_fail_or_stay_open() -> None:
    lines = [
        shown("RAT", record("rat", clean=0.9, pgd10=0.60, cw10=0.41)),
        shown("SAT", record("sat", clean=0.9, pgd10=0.50, cw10=0.60)),
        shown("AVM", record("avm", clean=0.9, pgd10=0.55, cw10=0.42)),
    ]
    best = claimed(Asked("RAT is best", "RAT", "", "pgd10", None), lines)
    assert best[2].startswith("+5.0")
    assert "against AVM" in best[2], "the best of the others"
    assert best[3:] == ("1", "holds for this one seed")
    assert claimed(Asked("", "RAT", "SAT", "cw10", 3.0), lines)[4] == "does not hold for this one seed"
    assert claimed(Asked("", "AVM", "RAT", "cw10", None), lines)[4].startswith("not decided")
    assert claimed(Asked("", "RAT", "SAT", "autoattack", None), lines)[4] == "not measured"
    worst = claimed(Asked("all others are above RAT", "", "RAT", "cw10", None), lines)
    assert "against AVM" in worst[2], "the lowest of the others"


def test_the_best_of_all_is_so_only_where_all_were_measured_and_one_is_enough_to_refute_it() -> None:
    lines = [
        shown("RAT", record("rat", clean=0.9, pgd10=0.60, cw10=0.41)),
        shown("SAT", record("sat", clean=0.9, pgd10=0.50, cw10=0.60)),
        shown("AVM"),
    ]
    everybody = ("RAT", "SAT", "AVM", "TRADES")
    best = claimed(Asked("RAT is best", "RAT", "", "pgd10", None, everybody), lines)
    assert best[2].startswith("+10.0") and "against SAT" in best[2]
    assert best[4] == "not decided: AVM, TRADES missing"
    assert claimed(Asked("RAT is best", "RAT", "", "cw10", None, everybody), lines)[4].startswith("does not hold")
    pair = claimed(Asked("RAT gains", "RAT", "SAT", "pgd10", None, everybody), lines)
    assert pair[4] == "holds for this one seed", "of two lines the others are none of its business"


def test_few_seeds_settle_less_than_their_spread_seems_to() -> None:
    assert [round(student(k - 1), 2) for k in (2, 3, 10)] == [12.71, 4.30, 2.26]
    a = shown("A", *(record("a", k, 2000, clean=0.9, pgd10=0.5 + x) for k, x in enumerate((0.02, 0.06, 0.10))))
    b = shown("B", *(record("b", k, 2000, clean=0.9, pgd10=0.5) for k in range(3)))
    found = apart(a, b, "pgd10")
    assert found is not None
    one = found[0]
    assert (one.value, one.seeds, one.sizes) == (pytest.approx(0.06), 3, (2000,))
    assert 2 * one.error < one.value < one.margin, "2 sd/√k would have called it clear"
    told = claimed(Asked("", "A", "B", "pgd10", None), [a, b])
    assert told[3] == "3"
    assert told[4].startswith("not decided: within ± ") and "3 seeds" in told[4]
    wide = shown("A", *(record("a", k, 2000, clean=0.9, pgd10=0.6 + x) for k, x in enumerate((0.02, 0.03, 0.04))))
    assert claimed(Asked("", "A", "B", "pgd10", None), [wide, b])[4] == "holds here"


def test_seeds_are_compared_with_the_same_seeds_of_the_other_line() -> None:
    a = shown("A", *(record("a", k, clean=0.9, pgd10=share) for k, share in ((1, 0.5), (2, 0.7))))
    b = shown("B", *(record("b", k, clean=0.9, pgd10=share) for k, share in ((0, 0.1), (2, 0.6))))
    found = apart(a, b, "pgd10")
    assert found is not None
    assert (found[0].seeds, found[0].value) == (1, pytest.approx(0.1)), "seed 2 alone is in both"
    c = shown("C", record("c", 7, clean=0.9, pgd10=0.1))
    assert apart(a, c, "pgd10") is None
    assert claimed(Asked("", "A", "C", "pgd10", None), [a, c])[4] == "not compared: no seed in common"


def test_seeds_of_different_numbers_of_images_are_all_told_and_not_compared() -> None:
    theirs = {"pgd10": 70.57}
    few = shown(
        "RAT", record("rat", 0, clean=0.9, pgd10=0.6), record("rat", 1, 1000, clean=0.9, pgd10=0.6), theirs=theirs
    )
    sat = shown("SAT", *(record("sat", k, n, clean=0.9, pgd10=0.2) for k, n in ((0, N), (1, 1000))))
    for images in ({"": N}, {}):
        made = table(replace(sheet(few, sat), images=images))
        assert made is not None
        (ours,) = (line for line in made.lines if line[:2] == ("RAT", "ours, 2 seeds"))
        assert "(n 200, 1,000)" in ours[3]
        assert not any("SE)" in cell for line in made.lines for cell in line)
    told = claimed(Asked("", "RAT", "SAT", "pgd10", None), [few, sat])
    assert told[4] == "not compared: seeds of different numbers of images (200, 1,000)"


def test_a_line_shows_the_verdicts_of_all_its_seeds_the_worst_first() -> None:
    shares = {"clean": 0.9, "fgsm": 0.5, "pgd10": 0.4, "autoattack": 0.4, "worst": 0.4}
    good = [record("rat", seed, 1000, **shares) for seed in (1, 2)]
    bad = record("rat", 0, 1000, **{**shares, "autoattack": 0.2, "worst": 0.2})
    kinds = [one.evaluation.verdict.kind for one in (*good, bad) if one.evaluation and one.evaluation.verdict]
    assert kinds == ["believable", "believable", "overestimated"]
    told = verdict(shown("RAT", bad, *good))
    assert told == "overestimated by ≈ 20 points (1 of 3 seeds); believable (2 of 3 seeds)"
    assert verdict(shown("RAT", *good)) == "believable"
    assert verdict(Shown("RAT", {}, ((*good[:1], bad),), ())) == "overestimated by ≈ 20 points", "the worst of a seed"


def test_a_verdict_of_other_rules_is_made_anew_from_the_images() -> None:
    made = record("rat", 0, 1000, clean=0.9, fgsm=0.5, pgd10=0.4, autoattack=0.2, worst=0.2)
    old = dict(made.found["verdict"]) | {"kind": "believable", "text": "believable: so it was called once"}
    stored = replace(made, found={**made.found, "verdict": old})
    assert stored.evaluation is not None and stored.evaluation.verdict is not None
    assert stored.evaluation.verdict.kind == "overestimated"
    assert verdict(shown("RAT", stored)).startswith("overestimated")
    without = replace(stored, bits={}).evaluation
    assert without is not None and without.verdict is not None and without.verdict.text == old["text"]


def test_provenance_is_of_what_is_shown_alone() -> None:
    used, unused = record("sat", clean=0.9, pgd10=0.5), record("sat", clean=0.9, cw100=0.5)
    unused = replace(unused, key="f" * 16, commit="f" * 40, measured={"seconds": 7200.0})
    other = replace(record("rat", clean=0.9, pgd10=0.5), commit="", measured={"seconds": 3600.0})
    page_ = Sheet("a: b", "c", "", (Shown("SAT", {}, ((used, unused),), ()), shown("RAT", other)), ("pgd10",))
    text = to_markdown(blocks(page_))
    assert "2 networks, 0.02 hours; commit not recorded." in text
    assert "2 cells, 1.00 hours; commit 0123456+ (+: with changes), not recorded for 1 of 2." in text
    assert "fffffff" not in text


def sheet(*lines: Shown, images: dict[str, int] | None = None) -> Sheet:
    claims = (Asked("RAT gains", "RAT", "SAT", "pgd10", 22.83),)
    return Sheet(
        "rat/table1: a table", "digits; small.", "a paper, Table 1", lines, ("clean", "pgd10"), claims=claims,
        notes=("A | note.",), left=("AVM: missing",), images=images or {},
    )  # fmt: skip


def test_a_difference_is_drawn_in_the_paper_s_setting_in_units_of_the_error() -> None:
    theirs = {"clean": 93.17, "pgd10": 70.57}
    page = sheet(shown("RAT", record(clean=0.93, pgd10=0.5), theirs=theirs), images={"": N})
    found = table(page)
    assert found is not None
    differing = found.lines[-1]
    error = standard_error(0.5, N)
    assert differing[1] == "ours − published, in standard errors, one seed"
    assert differing[2] == f"−0.17 (−{100 * 0.0017 / (100 * standard_error(0.93, N)):.1f} SE), agrees"
    assert differing[3] == f"−20.57 (−{0.2057 / error:.1f} SE), lower"
    assert "the published setting as far as it is known" in to_markdown(blocks(page))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"apart_": ("net: small, not wide_resnet",)}, "net: small, not wide_resnet"),
        ({"apart_": None}, "no paper has this setting"),
        ({"official": False}, "data: not the official files"),
        ({"images": 10_000}, "test images: 200, not 10,000"),
    ],
)
def test_what_is_not_the_paper_s_setting_is_said_and_never_compared(change: dict[str, Any], said: str) -> None:
    made = record(clean=0.93, pgd10=0.5, ours=change.get("official", True))
    line_ = shown("RAT", made, theirs={"pgd10": 70.57}, apart_=change.get("apart_", ()))
    page = sheet(line_, images={"": change.get("images", N)})
    found = table(page)
    assert found is not None
    assert [row[1] for row in found.lines] == ["published", "ours"], "no line of differences"
    text = to_markdown(blocks(page))
    assert "not the paper's setting, and not compared with it" in text
    assert said in text
    assert "SE)" not in text


def test_a_line_without_records_is_missing_and_a_page_is_escaped() -> None:
    page = sheet(shown("RAT <b>", record(clean=0.9, pgd10=0.5)), shown("SAT", theirs={"pgd10": 47.74}), images={"": N})
    found = table(page)
    assert found is not None
    assert found.lines[-1][1] == "ours: missing"
    text = to_html(blocks(page), page.title)
    assert "RAT &lt;b&gt;" in text and "<b>" not in text
    assert "http" not in text, "nothing is fetched"
    assert "1 network, 0.01 hours" in text and "0123456+" in text
    markdown = to_markdown(blocks(page))
    assert "- AVM: missing" in markdown


def test_the_page_of_results_is_the_one_that_the_ledger_gives() -> None:
    root = Path(__file__).parents[2]
    records = list(held(root / "experiments").values())
    there = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert page(records, "experiments") == there, "demilune ledger results writes it anew"


def test_keys_are_of_what_is_held_and_of_settings_that_are_not_the_usual(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = min((root / "experiments").glob("*-evaluation-*"))
    made = read_one(path)
    assert key_held(made) == made.key, "all at its default: nothing of it is in the key"
    told = (made.kind, made.what, made.checkpoint, made.rows)
    usual = asked_of(*told, made.found, made.measured)
    settings = [
        asked_of(*told, made.found, {**made.measured, "step_ratio": 0.1}),
        asked_of(*told, {**made.found, "search_precision": "bf16"}, made.measured),
        asked_of(*told[:3], (*made.rows, Row("transfer", "T", "Transfer(a)", 9, 1, None, 1.0, 1.0)), made.found, {}),
        asked_of(*told[:3], (*made.rows, Row("transfer", "T", "Transfer(b)", 9, 1, None, 1.0, 1.0)), made.found, {}),
    ]
    keys = {key_of({}, made.data, one) for one in (usual, *settings)}
    assert len(keys) == 5
    changed = replace(made, experiment={**made.experiment, "seed": 99})
    (tmp_path / path.name).write_text(written(changed))
    assert read(tmp_path), "its checksum is right"
    with pytest.raises(DemiluneError, match=f"its key is {made.key}, and what it says of training") as refused:
        held(tmp_path)
    assert "demilune ledger add RUN" in str(refused.value) and "\n" not in str(refused.value)
