"""The checks G1 to G11 and the verdict, on per-image results made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from demilune.diagnosis import MASKING, diagnose, outcome
from demilune.paired import Difference
from demilune.results import Check, Finding, Row, Verdict

N = 1000


def found(
    standing: Mapping[str, int], checks: Sequence[Check] = (), n: int = N, images: bool = True
) -> tuple[dict[str, Finding], Verdict]:
    """Return the findings of attacks that leave so many of the first images standing: each nested in the others."""
    worst = min(count for name, count in standing.items() if role(name) == "attack")
    rows, arrays = [], {"ids": np.arange(n)}
    for name, count in {"clean": 900, **standing, "worst": worst}.items():
        gradients = 0.0 if name.startswith(("square", "nattack", "uniform", "transfer")) else 10.0
        rows.append(Row(name, name.upper(), name, n, count, None, 10.0, gradients, role=role(name)))
        arrays[f"right.{name}"] = np.arange(n) < count
    findings, verdict = diagnose(rows, arrays if images else None, checks, 8 / 255)
    return {one.name: one for one in findings}, verdict


def role(name: str) -> str:
    return "probe" if "eps" in name or name.startswith(("unbounded", "budget")) else "part" if "@" in name else "attack"


SAT = {
    "fgsm": 560, "pgd10": 500, "cw10": 495, "multi9x30": 470, "pgd50_any": 492, "pgd50x5_any": 488, "pgd100": 495,
    "pgd1000": 494, "autoattack.apgd_ce": 490, "autoattack.apgd_t": 466, "autoattack.fab_t": 466, "autoattack": 466,
    "md": 475, "odi": 470, "nattack": 600, "square": 550, "uniform1000": 880, "unbounded": 0, "pgd10@scale=10": 498,
    "pgd10@eps=4/255": 700, "pgd10@eps=16/255": 200,
}  # fmt: skip


def test_a_plainly_trained_model_is_believed_and_the_strongest_attack_named() -> None:
    findings, verdict = found(SAT)
    assert {name: one.outcome for name, one in findings.items()} == {f"G{i}": "pass" for i in range(1, 12)}
    assert verdict.kind == "believable"
    assert "AUTOATTACK" in verdict.text
    assert verdict.strongest == "AUTOATTACK"
    assert verdict.points == pytest.approx(0.034)


def test_a_label_smoothing_model_is_overestimated_and_told_by_what() -> None:
    findings, verdict = found(SAT | {"pgd10": 700, "cw10": 600, "multi9x30": 500, "fgsm": 750})
    assert findings["G6"].outcome == findings["G11"].outcome == "fail"
    assert verdict.kind == "overestimated"
    assert "about 23 points" in verdict.text
    assert "AUTOATTACK" in verdict.text


def test_an_overestimate_from_a_part_of_the_attacks_is_at_least() -> None:
    _, verdict = found({"fgsm": 750, "pgd10": 700, "multi9x30": 500})
    assert verdict.kind == "overestimated"
    assert "at least 20 points" in verdict.text
    assert verdict.strongest == "MULTI9X30"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("G1", {"fgsm": 400}),
        ("G2", {"square": 380}),
        ("G2", {"nattack": 300}),
        ("G3", {"unbounded": 60}),
        ("G4", {"uniform1000": 450}),
        ("G9", {"autoattack": 440}),
    ],
)
def test_each_sign_of_masking_is_masked_and_told(name: str, changed: Mapping[str, int]) -> None:
    findings, verdict = found(SAT | changed)
    assert findings[name].outcome == "fail"
    assert name in MASKING
    assert verdict.kind == "masked"
    assert f"{name}: " in verdict.text


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("G5", {"pgd10@eps=16/255": 730}),
        ("G7", {"pgd1000": 470, "multi9x30": 470}),
        ("G7", {"pgd50x5_any": 466}),
        ("G8", {"pgd10@scale=10": 470}),
        ("G10", {"md": 430}),
    ],
)
def test_each_other_sign_is_an_overestimate(name: str, changed: Mapping[str, int]) -> None:
    findings, verdict = found(SAT | changed)
    assert findings[name].outcome == "fail"
    assert verdict.kind == "overestimated"


def test_what_was_not_run_is_not_examined_and_no_verdict_is_made_up() -> None:
    findings, verdict = found({"fgsm": 560, "pgd10": 500})
    assert {one.outcome for name, one in findings.items() if name != "G1"} == {"not examined"}
    assert verdict.kind == "not examined"
    assert "PGD10" in verdict.text
    _, verdict = found({"cw10": 500})
    assert verdict.kind == "not examined"
    assert math.isnan(verdict.points)


def test_few_images_are_inconclusive_not_a_failure() -> None:
    small = {"fgsm": 25, "pgd10": 22, "multi9x30": 20, "autoattack.apgd_t": 20}
    findings, verdict = found(small, n=40)
    assert findings["G6"].outcome == "inconclusive"
    assert verdict.kind == "not examined"
    assert "100 are the least" in verdict.text
    _, verdict = found({"fgsm": 14, "pgd10": 12, "autoattack.apgd_t": 8}, n=40)
    assert verdict.kind == "not examined"
    assert "10.0 ± 5.6 points" in verdict.text


def test_where_nothing_is_left_no_other_attack_could_break_more() -> None:
    _, verdict = found({"fgsm": 100, "pgd10": 20, "multi9x30": 0})
    assert verdict.kind == "believable"
    assert "nothing survives" in verdict.text


def test_a_failed_check_needs_two_standard_errors() -> None:
    assert outcome(Difference(0.05, 0.01, N), 0.05) == "pass"
    assert outcome(Difference(0.069, 0.01, N), 0.05) == "inconclusive"
    assert outcome(Difference(0.071, 0.01, N), 0.05) == "fail"
    assert outcome(Difference(1.0, 0.0, 3), 0.05) == "inconclusive"


def test_a_weaker_attack_by_rescaling_says_nothing() -> None:
    findings, _ = found(SAT | {"pgd10@scale=100": 700})
    assert findings["G8"].outcome == "pass"


def test_flags_of_the_model_fail_g9() -> None:
    raised = Check("probabilities", "warning", "the outputs are probabilities")
    findings, verdict = found(SAT, [raised])
    assert findings["G9"].outcome == "fail"
    assert verdict.kind == "not examined", "nothing shows that a gradient misleads"
    assert "give the network without its softmax" in verdict.text
    for name in ("no gradient", "batch", "dynamic"):
        assert found(SAT, [Check(name, "error", "")])[1].kind == "masked"
    findings, verdict = found(SAT | {"autoattack": 440}, [raised])
    assert (verdict.kind, findings["G9"].attack) == ("masked", "autoattack"), "what Square gains is more than a flag"


def test_a_few_gradients_of_zero_are_answered_by_an_attack_that_needs_none() -> None:
    raised = Check("zero gradient", "warning", "zero for 0.4 % of 256 images")
    assert found(SAT, [raised])[1].kind == "believable"
    half = {name: count for name, count in SAT.items() if name not in ("autoattack", "square")}
    findings, verdict = found(half, [raised])
    assert (findings["G9"].outcome, verdict.kind) == ("fail", "not examined")
    assert "square, nattack, transfer" in verdict.text


def test_nothing_is_believed_that_only_gradients_attacked() -> None:
    blind = {name: n for name, n in SAT.items() if not name.startswith(("square", "nattack", "autoattack"))}
    half = blind | {"autoattack.apgd_ce": 490, "autoattack.apgd_t": 466}
    _, verdict = found(half)
    assert verdict.kind == "not examined"
    assert "no attack without gradients was run" in verdict.text
    for name in ("square", "nattack", "transfer"):
        assert found(half | {name: 600})[1].kind == "believable"
    assert found(half | {"uniform1000": 880})[1].kind == "not examined", "what does not search finds little"


def test_signs_of_masking_that_so_few_images_leave_open_are_not_believed_away() -> None:
    standing = {"fgsm": 115, "pgd10": 110, "autoattack.apgd_t": 106, "square": 112, "unbounded": 0}
    assert found(standing, n=200)[1].kind == "believable"
    results = ((2, "pass", "believable"), (3, "inconclusive", "believable"), (5, "inconclusive", "not examined"))
    for left, outcome_of, kind in results:
        findings, verdict = found(standing | {"unbounded": left}, n=200)
        assert (findings["G3"].outcome, verdict.kind) == (outcome_of, kind)
    findings, verdict = found(standing | {"fgsm": 109}, n=200)
    assert (findings["G1"].outcome, verdict.kind) == ("inconclusive", "believable"), "one image is chance"
    _, verdict = found(standing | {"fgsm": 107}, n=200)
    assert verdict.kind == "not examined" and "PGD10 above FGSM" in verdict.text


def test_the_square_of_autoattack_plus_counts_too() -> None:
    standing = {
        "fgsm": 560, "pgd10": 500, "autoattack_plus.apgd_ce5": 490, "autoattack_plus.apgd_dlr5": 480,
        "autoattack_plus.fab5": 480, "autoattack_plus.square": 300, "autoattack_plus.apgd_t": 300,
        "autoattack_plus": 300,
    }  # fmt: skip
    findings, verdict = found(standing)
    assert findings["G9"].outcome == "fail" and "SQUARE" in verdict.text
    assert verdict.kind == "masked"
    fine = standing | {name: 470 for name in standing if name not in ("fgsm", "pgd10")}
    assert found(fine)[1].kind == "believable"


def test_a_random_model_is_not_excused_by_another_flag() -> None:
    zero, random = (Check(name, "warning", name) for name in ("zero gradient", "randomised"))
    for raised in ([random], [random, zero], [zero, random]):
        findings, verdict = found(SAT, raised)
        assert (findings["G9"].attack, verdict.kind) == ("randomised", "not examined")
    findings, verdict = found(SAT | {"autoattack": 463}, [zero])
    assert findings["G9"].outcome == "inconclusive"
    assert "add attacks without gradients" not in verdict.text, "Square was run"


def test_the_released_slip_of_cw_is_no_reading_of_g6() -> None:
    plain, slip = found(SAT), found(SAT | {"cw10_rlfat": 700})
    assert slip[0]["G6"] == plain[0]["G6"]
    assert slip[1].kind == "believable"


def test_what_settles_the_question_is_named_also_on_fewer_images() -> None:
    rows, arrays = [], {"ids": np.arange(N), "place.autoattack": np.arange(100)}
    right = {"clean": np.arange(N) < 900, "fgsm": np.arange(N) % 100 < 58, "pgd10": np.arange(N) % 100 < 54}
    right |= {"cw10": np.arange(N) % 100 < 53, "worst": np.arange(N) % 100 < 53, "autoattack": np.arange(100) < 51}
    for name, which in right.items():
        rows.append(Row(name, name.upper(), name, len(which), int(which.sum()), None, 10.0, 10.0))
        arrays[f"right.{name}"] = which
    _, verdict = diagnose(rows, arrays, (), 8 / 255)
    assert (verdict.kind, verdict.strongest) == ("believable", "AUTOATTACK")
    assert "AUTOATTACK leaves 51.0 % of 100 images" in verdict.text


def test_the_worst_case_of_a_random_model_counts_readings_that_are_no_columns() -> None:
    random = Check("randomised", "warning", "")
    standing = {"fgsm": 560, "pgd10": 540, "autoattack_rand": 520, "nattack": 600, "pgd10@scale=10": 400}
    _, verdict = found(standing, [random])
    assert verdict.points == pytest.approx(0.14)
    assert "worst case 40.0 %" in verdict.text


def test_the_strongest_attack_is_the_one_that_left_least() -> None:
    _, verdict = found(SAT | {"md": 460})
    assert (verdict.kind, verdict.strongest) == ("believable", "MD")
    assert "MD leaves 46.0 %" in verdict.text
    _, verdict = found(SAT | {"md": 466})
    assert verdict.strongest == "AUTOATTACK", "of equals"


def test_a_random_model_is_judged_by_its_attacks_and_not_by_what_any_of_them_broke() -> None:
    draw, rows, arrays = np.random.default_rng(0), [], {}
    names = ("fgsm", "pgd10", "cw10", "multi9x30", "md", "odi", "autoattack_rand.apgd_ce", "autoattack_rand", "square")
    arrays["right.clean"], arrays["right.uniform1000"] = np.arange(N) < 900, (np.arange(N) < 900)
    base = np.arange(N) < 500
    for name in names:  # attacks of equal strength, and a tenth of the answers is chance
        arrays[f"right.{name}"] = base & (draw.random(N) > 0.1) | (np.arange(N) < 900) & (draw.random(N) < 0.03)
    arrays["right.uniform1000"] = (np.arange(N) < 900) & (draw.random(N) > 0.05)
    arrays["right.worst"] = np.logical_and.reduce([arrays[f"right.{name}"] for name in names])
    for key, right in arrays.items():
        name = key.removeprefix("right.")
        gradients = 0.0 if name in ("square", "uniform1000") else 10.0
        rows.append(Row(name, name.upper(), name, N, int(right.sum()), None, 10.0, gradients))
    random = Check("randomised", "warning", "the model answers differently")
    findings, verdict = diagnose(rows, arrays, [random], 8 / 255)
    assert {one.name for one in findings if one.outcome == "fail"} == set()
    assert verdict.kind == "believable"
    assert verdict.points < 0.05
    assert diagnose(rows, arrays, [], 8 / 255)[1].kind != "believable", "of a model that is not random it would be much"


def test_a_check_that_was_half_examined_says_so() -> None:
    findings, _ = found({"fgsm": 560, "pgd10": 500, "pgd50_any": 492, "pgd50x5_any": 488, "cw10": 495})
    assert findings["G7"].outcome == findings["G6"].outcome == "pass"
    assert "the rest not examined: needs pgd100x10 and pgd1000" in findings["G7"].text
    assert "the rest not examined: needs multi9x30" in findings["G6"].text
    assert findings["G5"].outcome == "not examined"


def test_the_error_that_is_told_is_a_standard_error() -> None:
    findings, _ = found(SAT | {"pgd10@eps=16/255": 724, "pgd10@eps=4/255": 700})
    assert findings["G5"].error == pytest.approx(math.sqrt(224 + 1) / N)
    assert findings["G5"].outcome == "fail" and findings["G5"].n == N


def test_without_per_image_results_errors_are_those_of_independent_ones() -> None:
    findings, verdict = found(SAT, images=False)
    assert findings["G11"].error == pytest.approx(math.hypot(*[math.sqrt(p * (1 - p) / N) for p in (0.5, 0.466)]))
    assert findings["G2"].outcome == "not examined"
    assert verdict.kind == "believable"


def test_an_attack_on_fewer_images_is_compared_on_those() -> None:
    place = np.array([3, 495, 480, 10])
    rows = [
        Row("clean", "clean", "", N, 900, None, 1, 0),
        Row("pgd10", "PGD", "", N, 500, None, 10, 10),
        Row("nattack", "NATTACK", "", 4, 2, None, 10, 0),
        Row("worst", "worst", "", N, 490, None, 10, 0),
    ]
    arrays = {f"right.{name}": np.arange(N) < n for name, n in (("clean", 900), ("pgd10", 500), ("worst", 490))}
    arrays |= {"right.nattack": np.array([True, False, False, True]), "place.nattack": place}
    g2 = next(one for one in diagnose(rows, arrays, (), 8 / 255)[0] if one.name == "G2")
    assert g2.value == pytest.approx(0.5)
    assert "n = 4" in g2.text


def with_some(
    standing: Mapping[str, int], name: str, right: Sequence[bool], place: Sequence[int]
) -> dict[str, Finding]:
    """Return the findings where one black-box row is about some of the images only."""
    rows, arrays = [], {"ids": np.arange(N), f"right.{name}": np.array(right), f"place.{name}": np.array(place)}
    for one, count in {"clean": 900, **standing, "worst": min(standing.values())}.items():
        rows.append(Row(one, one.upper(), one, N, count, None, 10.0, 10.0))
        arrays[f"right.{one}"] = np.arange(N) < count
    rows.insert(-1, Row(name, name.upper(), name, len(place), sum(right), None, 10.0, 0.0))
    return {one.name: one for one in diagnose(rows, arrays, (), 8 / 255)[0]}


def test_square_on_some_of_the_images_still_counts() -> None:
    standing = {"fgsm": 560, "pgd10": 500, "multi9x30": 470, "autoattack.apgd_t": 470}
    findings = with_some(standing, "square", [i >= 40 for i in range(100)], list(range(100)))
    assert findings["G9"].outcome == "fail"
    assert findings["G9"].value == pytest.approx(0.4)
    assert "n = 100" in findings["G9"].text


def test_what_a_black_box_attack_breaks_beyond_autoattack_counts_whatever_its_own_accuracy() -> None:
    rows, arrays = [], {"ids": np.arange(N)}
    right = {"clean": np.arange(N) < 900, "pgd10": np.arange(N) < 510, "autoattack": np.arange(N) < 500}
    right["transfer"] = (np.arange(N) < 900) & (np.arange(N) >= 100)  # 80 %, but a fifth of AutoAttack's survivors
    right["worst"] = right["autoattack"] & right["transfer"]
    for name, which in right.items():
        rows.append(Row(name, name, name, N, int(which.sum()), None, 10.0, 0.0 if name == "transfer" else 10.0))
        arrays[f"right.{name}"] = which
    findings, verdict = diagnose(rows, arrays, (), 8 / 255)
    g10 = next(one for one in findings if one.name == "G10")
    assert (g10.outcome, g10.attack) == ("fail", "transfer")
    assert verdict.kind == "overestimated"
    assert "11 points" in verdict.text


def test_the_random_version_settles_random_models_alone() -> None:
    standing = {"fgsm": 560, "pgd10": 500, "autoattack_rand": 490, "nattack": 600}
    assert found(standing)[1].kind == "not examined"
    random = Check("randomised", "warning", "the model answers differently")
    findings, verdict = found(standing, [random])
    assert verdict.kind == "believable"
    assert findings["G9"].outcome == "not examined"
    assert found({**standing, "autoattack": 490}, [random])[0]["G9"].outcome == "not examined"
    _, verdict = found({"fgsm": 560, "pgd10": 500, "autoattack": 490}, [random])
    assert verdict.kind == "not examined" and "add autoattack_rand" in verdict.text


def test_radii_of_a_curve_and_of_modifiers_are_the_same_units() -> None:
    curve = {f"budget.pgd10.{k}": 900 - 50 * k for k in range(17)}
    findings, _ = found({"fgsm": 560, "pgd10": 500, "pgd10@eps=12/255": 250, **curve})
    assert findings["G5"].outcome == "pass"


def test_a_model_no_better_than_chance_gets_no_verdict() -> None:
    _, verdict = found(SAT, [Check("accuracy", "warning", "no better than chance")])
    assert verdict.kind == "not examined"
    assert "no better than chance" in verdict.text


def test_losses_apart_within_what_is_usual_are_no_overestimate() -> None:
    findings, verdict = found({"fgsm": 5700, "pgd10": 5420, "cw10": 5180, "autoattack": 5060}, n=10_000)
    assert findings["G6"].outcome == "fail"
    assert verdict.kind == "believable"
    assert "1 fail" in verdict.text
    assert found({"fgsm": 5700, "pgd10": 5420, "cw10": 5180}, n=10_000)[1].kind == "not examined"
