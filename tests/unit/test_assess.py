"""What one command asks of a network once, and what an evaluation keeps of another suite and says of a part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import refused, tiny
from demilune.__main__ import main
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.evaluate import Findings, evaluate, suite
from demilune.evaluate import subject as subjects
from demilune.evaluate.table import Progress
from demilune.report.tables import remarks
from demilune.results import Row

BALL, RNG = Ball("linf", 0.1), Stream.of(0, "evaluation")

NETS = """
from torch import nn
from demilune.models.small import SmallNet


def ten():
    return SmallNet(4, 1, 10)


def five():
    return SmallNet(4, 1, 5)
"""
FOREIGN = ["--data=digits", "--runtime.threads=1", "--home=home", "--limit=30"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "assessed_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def interviews(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the interviews; each entry is the number of images."""
    asked, whole = list[int](), subjects.interview

    def counting(model: Any, x: Tensor, y: Tensor, classes: int) -> Any:
        asked.append(len(x))
        return whole(model, x, y, classes)

    monkeypatch.setattr(subjects, "interview", counting)
    return asked


def images(n: int = 24) -> tuple[nn.Module, Split]:
    """Return a network, and images that it is right on."""
    model, x = tiny().eval(), Stream.of(1).integers("x", (n, 1, 8, 8), 0, 256).to(torch.uint8)
    with torch.no_grad():
        return model, Split(x, model(x / 255.0).argmax(dim=1), torch.arange(100, 100 + n))


def rows(found: Findings) -> dict[str, Row]:
    return {row.name: row for row in found.rows}


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--attacks=fgsm"],
        ["doctor"],
        ["curves", "--only=gaps,budgets"],
    ],
)
def test_a_foreign_model_is_interviewed_once_in_a_command(
    desk: Path, interviews: list[int], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("fgsm", "pgd2")
    monkeypatch.setattr("demilune.evaluate.doctor.BUDGETS", {"quick": few})
    monkeypatch.setattr("demilune.evaluate.curves.ROWS", {"gaps": ("fgsm",), "budgets": few})
    argv = [words[0], "assessed_nets:ten", *FOREIGN, *words[1:]]
    assert main(argv) == 0
    assert interviews == [30], "the first command declares it too"
    assert main([words[0], "home", "--limit=20", *words[1:]]) == 0
    assert interviews == [30, 20]


def test_another_number_of_classes_names_the_remedy(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["[8, 5] for 8 images and 10 classes", "data of its 5 classes (--data NAME)", "as num_classes=10"]
    refused(["evaluate", "assessed_nets:five", *FOREIGN], capsys, *words)
    refused(["evaluate", "assessed_nets:five", *FOREIGN, "--classes=5"], capsys, "--data NAME", "leave --classes out")
    assert not (desk / "home").exists()


def test_curves_print_what_must_stand_beside_their_rows(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("demilune.evaluate.curves.find_frost", lambda folder: None)
    assert main(["curves", "assessed_nets:ten", *FOREIGN, "--limit=3", "--only=corruptions"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    remedy = "needs photographs: pip install 'demilune[corruptions]', or --frost DIR"
    assert said.count(f"corruptions: missing: frost ({remedy})") == 1


def test_an_attack_on_some_of_the_images_lowers_the_worst_case_on_these_alone_and_says_so() -> None:
    model, split = images()
    found = evaluate(model, split, Ball("linf", 0.05), suite(["fgsm", "pgd9@n=8"]), RNG)
    place, kept = found.images["place.pgd9"], found.images["right.pgd9"]
    assert len(place) == 8 and not kept.all()
    expected = found.images["right.fgsm"].copy()
    expected[place] &= kept
    assert (found.images["right.worst"] == expected).all()
    assert kept.sum() < expected.sum() < found.images["right.fgsm"].sum()
    note = rows(found)["worst"].note
    assert "not all attacks were run on all 24 images (PGD-9 on 8)" in note and "counts as standing" in note
    assert not rows(evaluate(model, split, BALL, suite(["fgsm", "pgd2"]), RNG))["worst"].note
    probe = rows(evaluate(model, split, BALL, suite(["fgsm", "pgd2@eps=0.2@n=8"]), RNG))
    assert not probe["worst"].note, "a probe is no part of the worst case"
    sums = rows(evaluate(model, split, Ball("linf", 1e-3), suite(["fgsm", "apgd@n=4"]), RNG))["worst"].note
    assert sums.count(" on 4") == 1 and "APGD-CE + APGD-T on 4" in sums


def test_the_report_says_what_the_worst_case_is_of(tmp_path: Path) -> None:
    from demilune.report.read import read
    from report_runs import SAT, evaluation, write_evaluation

    value = evaluation("a", "sat", SAT)
    value["rows"][-1]["note"] = "not all attacks were run"
    (run,) = read([write_evaluation(tmp_path / "a.json", value, 0)])
    assert "Worst case: not all attacks were run" in remarks(run.entries)


class EnoughError(Exception):
    pass


def begun(partial: Path, names: Sequence[str], stop: str, **change: Any) -> list[tuple[str, int]]:
    """Evaluate until an attack begins, and return what was done: title and number of images, once a batch."""
    done = list[tuple[str, int]]()

    def watch(event: Progress) -> None:
        if event.title == stop:
            raise EnoughError
        done.append((event.title, event.done))

    model, split = images()
    with pytest.raises(EnoughError):
        evaluate(model, split, BALL, suite(names), RNG, batch=8, partial=partial, identity={}, watch=watch, **change)
    return done


def test_what_an_interrupted_evaluation_of_another_suite_did_is_kept(tmp_path: Path) -> None:
    partial = tmp_path / "x.partial.npz"
    before = begun(partial, ["fgsm", "pgd2", "cw3", "apgd"], "APGD-CE")
    assert dict(before) == {"clean": 24, "FGSM": 24, "PGD-2": 24, "CW∞-3": 24}
    seen = list[Progress]()
    model, split = images()
    # cw3 is dropped, pgd3 is new, fgsm stays, pgd2 is in another place
    names = ["pgd3", "pgd2", "fgsm"]
    found = evaluate(model, split, BALL, suite(names), RNG, batch=8, partial=partial, identity={}, watch=seen.append)
    assert {event.title for event in seen} - {"example images"} == {"PGD-3"}
    whole = evaluate(model, split, BALL, suite(names), RNG, batch=8)
    assert found.rows == whole.rows
    assert all(np.array_equal(found.images[name], whole.images[name]) for name in whole.images)


def test_only_rows_that_were_made_alike_are_kept(tmp_path: Path) -> None:
    partial = tmp_path / "x.partial.npz"
    begun(partial, ["fgsm", "pgd2@n=10", "apgd", "cw3"], "CW∞-3")
    seen = list[str]()
    model, split = images()
    one, two = suite(["apgd"])
    weaker = dataclasses.replace(one, told="another APGD")
    for entries, new in (
        (suite(["pgd2"]), {"PGD-2"}),  # on all images
        ((weaker, two), {"APGD-CE", "APGD-CE + APGD-T"}),  # the second goes on where the first left off
    ):
        seen.clear()
        evaluate(
            model,
            split,
            BALL,
            entries,
            RNG,
            batch=8,
            partial=partial,
            identity={},
            watch=lambda e: seen.append(e.title),
        )
        assert set(seen) - {"example images"} == new
    seen.clear()
    evaluate(
        model, split, BALL, suite(["pgd2"]), RNG, batch=8, partial=partial, identity={"seed": 1},
        watch=lambda event: seen.append(event.title),
    )  # fmt: skip
    assert "clean" in seen, "of another seed nothing is kept"
