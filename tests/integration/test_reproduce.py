"""``demilune reproduce`` and ``demilune ledger`` as a user meets them: whole, stopped, repeated, and with bad input."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import files, refused
from demilune import suites
from demilune.__main__ import main
from demilune.ledger import Record, read, written
from demilune.suites import Ask, Claim, Line, Suite, base

TINY = ["--data", "digits", "--schedule", "quick", "--limit", "40"]
SMALL = ["--model.width", "4", "--training.epochs", "2", "--training.batch", "256"]

SUITE = Suite(
    "rat/tiny",
    "A table of two",
    (Line("RAT", "rat", {"method.attack.steps": 2}), Line("SAT", "sat", {"method.attack.steps": 2})),
    (Ask("evaluation", ("fgsm", "pgd2")), Ask("training")),
    ("cifar10",),
    ("clean", "fgsm", "pgd2"),
    figures=("region",),
    claims=(Claim("RAT is above SAT", "RAT", "SAT", "pgd2"),),
    notes=("Two lines.",),
)


@pytest.fixture(autouse=True)
def a_tiny_suite(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, SUITE.name: SUITE})
    monkeypatch.setenv("DEMILUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "reproduced"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "SUITES", {**suites.SUITES, SUITE.name: SUITE})
        patch.setenv("DEMILUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--out", str(out)]) == 0
    return out


def page(out: Path) -> Path:
    (found,) = out.glob("pages/rat-tiny-*/index.md")
    return found


def numbers(out: Path) -> dict[str, list[object]]:
    """Return what was found, by cell, without the time it took."""
    return {
        f"{one.key}": [one.label, [(row.name, row.right, row.right_after, row.n) for row in one.rows], dict(one.bits)]
        for one in read(out / "experiments").values()
    }


def test_every_cell_is_trained_asked_recorded_and_drawn(reproduced: Path) -> None:
    kinds = sorted((one.label, one.kind) for one in read(reproduced / "experiments").values())
    names = ["rat steps=2", "sat steps=2"]
    assert kinds == [(name, kind) for name in names for kind in ("evaluation", "training")]
    text = page(reproduced).read_text()
    assert "| RAT | ours |" in text and "| SAT | ours |" in text
    assert "no paper has this setting" in text
    assert "RAT is above SAT" in text
    assert '<a href="report/index.html">' in page(reproduced).with_suffix(".html").read_text()
    assert "share found" in text, "the table of the region"
    assert "## Missing" not in text
    assert "demilune reproduce rat/tiny" in text
    html = page(reproduced).with_suffix(".html").read_text()
    assert "<table>" in html and "http" not in html.replace("http://www.w3.org", "")
    report = page(reproduced).parent / "report" / "index.html"
    assert "rat steps=2" in report.read_text()
    runs = sorted(path.name for path in (reproduced / "runs").iterdir())
    assert [name.rpartition("-")[0] for name in runs] == ["digits-small-rat-steps=2", "digits-small-sat-steps=2"]


def test_a_record_holds_no_path_and_all_that_was_found(reproduced: Path, tmp_path: Path) -> None:
    for path, one in read(reproduced / "experiments").items():
        assert str(reproduced.parent) not in path.read_text()
        if one.kind == "training":
            assert [line["epoch"] for line in one.found["epochs"]] == [1, 2]
            continue
        (file,) = (reproduced / "runs").glob(f"*-{one.label.replace(' ', '-')}-*/evaluations/*.json")
        found = json.loads(file.read_text())
        assert [(row.name, row.right) for row in one.rows] == [(row["name"], row["right"]) for row in found["rows"]]
        for row in one.rows:
            right = one.right(row.name)
            assert right is not None and int(right.sum()) == row.right
        assert one.evaluation is not None and one.evaluation.verdict is not None
        assert one.measured["environment"]["versions"]["torch"]


def test_what_is_done_is_not_done_again_and_the_page_has_the_same_bytes(
    reproduced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(reproduced)
    assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--out", str(reproduced)]) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 cells are done" in printed
    assert "epoch " not in printed
    assert files(reproduced) == before


def test_a_page_is_drawn_from_the_ledger_alone(reproduced: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    shutil.copytree(reproduced / "experiments", out / "experiments")
    assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--out", str(out)]) == 0
    assert not (out / "runs").exists(), "nothing was trained"
    there, here = (page(one).read_text().replace(str(one), "") for one in (out, reproduced))
    assert there == here


def test_seeds_are_cells_of_their_own_and_give_a_spread(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two"
    shutil.copytree(reproduced, out)
    shutil.rmtree(out / "pages")
    assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--seeds", "2", "--out", str(out)]) == 0
    assert "4 of 8 cells are done" in capsys.readouterr().out
    assert "ours, 2 seeds" in page(out).read_text()
    assert len(list((out / "runs").iterdir())) == 4


def test_stopped_again_and_again_it_ends_with_the_same_numbers(
    reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def soon() -> Iterator[object]:
        answers = iter([False, False, False])
        yield lambda: next(answers, True)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("demilune.cli.interruptible", soon)
        codes = []
        for _ in range(30):
            codes.append(main(["reproduce", "rat/tiny", *TINY, *SMALL, "--out", str(out)]))
            if codes[-1] == 0:
                break
        assert codes[0] == 130
        assert codes[-1] == 0
        assert 130 in codes[1:]
    assert "stopped and saved" in capsys.readouterr().out
    assert numbers(out) == numbers(reproduced)
    assert page(out).read_text().count("| ours |") == 2


def test_dry_run_and_list_train_nothing(reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dry"
    assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--dry-run", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("evaluation fgsm,pgd2") == 2
    assert "an estimate" in printed
    assert not out.exists()
    ledger = str(reproduced / "experiments")
    assert main(["reproduce", "rat/tiny", *TINY, *SMALL, "--dry-run", "--ledger", ledger]) == 0
    assert capsys.readouterr().out.count(": done") == 4
    assert main(["reproduce", "--list", "rat/t", "--data", "digits", "--schedule", "quick", "--ledger", ledger]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["suite", "data", "schedule", "cells", "done", "missing"]
    assert any(one.startswith("rat/table1") and "12" in one for one in lines)
    assert "estimates" in lines[-1]


def test_what_reproduce_cannot_do_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    refused(["reproduce"], capsys, "no suite was named", "--list")
    refused(["reproduce", "rat/tabel1", *out], capsys, "did you mean 'rat/table1'")
    refused(["reproduce", "rat/tiny", "--data", "mnist", *out], capsys, "unknown data of rat/tiny 'mnist'", "digits")
    refused(["reproduce", "rat/tiny", "--data", "digits", "--schedule", "paper", *out], capsys, "no paper has them")
    refused(["reproduce", "rat/tiny", *TINY, "--net", "resnet19", *out], capsys, "unknown net 'resnet19'")
    refused(["reproduce", "rat/tiny", *TINY, "--modle.width", "4", *out], capsys, "did you mean")
    refused(["reproduce", "rat/tiny", *TINY, "--seeds", "0", *out], capsys, "1 or more")
    refused(["reproduce", "rwp/rst", *TINY, *out], capsys, "rst cannot be had on digits", "--data")
    refused(["reproduce", "rat/tiny", *TINY[:4], "--limit", "-4", *out], capsys, "--limit -4")
    refused(["reproduce", "rat/tiny", *TINY, "--image", "3", *out], capsys, "--image 3", "rat/fig1")
    refused(["reproduce", "--list", "--data", "mnist"], capsys, "unknown data 'mnist'", "svhn")
    refused(["reproduce", "--list", "nothing-such"], capsys, "unknown suite 'nothing-such'")
    assert not (tmp_path / "out").exists()
    busy = tmp_path / "busy"
    (busy / "pages").mkdir(parents=True)
    (busy / "pages" / "thesis.txt").write_text("mine")
    refused(["reproduce", "rat/tiny", *TINY, *SMALL, "--out", str(busy)], capsys, "holds no pages of ours", "--out")
    assert files(busy) == {busy / "pages" / "thesis.txt": b"mine"}


# --- ledger ----------------------------------------------------------------------------------------------------------


def test_finished_runs_are_recorded_listed_and_made_into_results(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, runs = tmp_path / "experiments", sorted(map(str, (reproduced / "runs").iterdir()))
    assert main(["ledger", "add", *runs, "--ledger", str(ledger)]) == 0
    assert "4 new of 4 cells" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in ledger.iterdir()}.keys() == {
        path.name for path in (reproduced / "experiments").iterdir()
    }
    before = files(ledger)
    assert main(["ledger", "add", *runs, "--ledger", str(ledger)]) == 0
    assert "0 new of 4 cells" in capsys.readouterr().out
    assert files(ledger) == before
    assert main(["ledger", "--ledger", str(ledger)]) == 0
    assert "4 cells: 2 evaluation, 2 training" in capsys.readouterr().out
    assert main(["ledger", "list", "RAT", "evaluation", "--ledger", str(ledger)]) == 0
    assert "FGSM" in capsys.readouterr().out
    out = tmp_path / "results.md"
    assert main(["ledger", "results", "--ledger", str(ledger), "--out", str(out)]) == 0
    text = out.read_text()
    assert "from the 4 cells of the folder `experiments`" in text
    assert "rat steps=2" in text
    assert "compared with nothing" in text
    assert str(tmp_path) not in text
    assert main(["ledger", "results", "--ledger", str(ledger), "--out", str(out)]) == 0
    assert out.read_text() == text


def test_what_a_ledger_refuses_leaves_everything_as_it_was(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "experiments"
    option = ["--ledger", str(ledger)]
    refused(["ledger", "forget", *option], capsys, "unknown action of ledger 'forget'", "results")
    refused(["ledger", "add", *option], capsys, "no run was named")
    refused(["ledger", "add", str(tmp_path / "none"), *option], capsys, "holds no run")
    refused(["ledger", "results", *option, "--out", str(tmp_path / "r.md")], capsys, "holds no cells")
    refused(["ledger", "next", *option], capsys, "--hours is missing")
    refused(["ledger", "next", "--hours", "-1", *option], capsys, "--hours")
    refused(["ledger", "next", "--hours", "1", "--suite", "rat/tabel", *option], capsys, "unknown suite")
    refused(["ledger", "next", "--hours", "1", "--data", "mnist", *option], capsys, "unknown data 'mnist'")
    refused(["ledger", "next", "--hours", "1", "--device", "quantum", *option], capsys, "device 'quantum'", "cpu")
    assert not ledger.exists()
    run = next((reproduced / "runs").iterdir())
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "metrics.jsonl").write_text((half / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    refused(["ledger", "add", str(half), *option], capsys, "is not finished", "--resume")
    assert not ledger.exists()
    mine = tmp_path / "mine.md"
    mine.write_text("# My thesis\n")
    shutil.copytree(reproduced / "experiments", ledger)
    refused(["ledger", "results", *option, "--out", str(mine)], capsys, "no page of ours")
    assert mine.read_text() == "# My thesis\n"
    broken = next(ledger.glob("*evaluation*.json"))
    broken.write_text(broken.read_text().replace('"best (', '"last (', 1))
    for command in (
        ["list"],
        ["results", "--out", str(tmp_path / "r.md")],
        ["next", "--hours", "1"],
        ["add", str(run)],
    ):
        refused(["ledger", *command, *option], capsys, str(broken), "checksum", "demilune ledger add RUN")
    refused(["reproduce", "rat/tiny", *TINY, *SMALL, *option, "--out", str(tmp_path / "out")], capsys, str(broken))
    assert not (tmp_path / "out").exists()


def test_an_evaluation_without_its_images_and_a_conflict_leave_the_ledger_as_it_was(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "experiments"
    option = ["--ledger", str(ledger)]
    first, second = sorted((reproduced / "runs").iterdir())
    gone = tmp_path / "gone"
    shutil.copytree(second, gone)
    (images,) = (gone / "evaluations").glob("*.images.npz")
    images.unlink()
    refused(["ledger", "add", str(first), str(gone), *option], capsys, images.name, "is gone", "evaluate")
    assert not ledger.exists()
    # a conflict in the second run is found before the first is written
    assert main(["ledger", "add", str(second), *option]) == 0
    (record,) = (one for one in read(ledger).values() if one.kind == "evaluation")
    (file,) = ledger.glob("*evaluation*")
    rows = tuple(replace(row, right_after=None) for row in record.rows)
    file.write_text(written(replace(record, rows=rows)))
    before = files(ledger)
    refused(["ledger", "add", str(first), str(second), *option], capsys, "other numbers for the same cell", "--replace")
    assert files(ledger) == before
    file.write_text(written(replace(record, experiment={**record.experiment, "seed": 7})))
    for words in (["results", "--out", str(tmp_path / "r.md")], ["add", str(first)], ["next", "--hours", "1"]):
        refused(["ledger", *words, *option], capsys, str(file), "its key is", "demilune ledger add RUN")


def test_evaluations_with_other_step_sizes_are_cells_of_their_own(
    reproduced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, ledger = tmp_path / "run", tmp_path / "experiments"
    shutil.copytree(next((reproduced / "runs").iterdir()), run)
    for ratio in ("0.25", "0.5"):
        words = ["--attacks", "pgd2", "--limit", "30", "--step_ratio", ratio]
        assert main(["evaluate", str(run), *words]) == 0
    assert main(["ledger", "add", str(run), "--ledger", str(ledger)]) == 0
    assert "4 new of 4 cells" in capsys.readouterr().out
    ratios = [one.measured["step_ratio"] for one in read(ledger).values() if one.kind == "evaluation" and one.n == 30]
    assert sorted(ratios) == [0.25, 0.5]


def test_next_names_what_fits_and_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "QUICK_WIDTH", 2)
    monkeypatch.setattr(base, "QUICK_EPOCHS", 1)
    ledger, out = tmp_path / "experiments", tmp_path / "out"
    words = [
        "ledger",
        "next",
        "--data",
        "digits",
        "--schedule",
        "quick",
        "--suite",
        "rat/diag",
        "--ledger",
        str(ledger),
    ]
    words += ["--out", str(out)]
    assert main([*words, "--hours", "0.000001"]) == 0
    assert "nothing that is unfinished fits" in capsys.readouterr().out
    assert main([*words, "--hours", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rat/diag: RAT") == 6, "two cells of three seeds"
    assert printed.index("seed 0") < printed.index("seed 1") < printed.index("seed 2")
    assert not out.exists() and not ledger.exists()
    assert main([*words, "--hours", "1", "--seeds", "2", "--run"]) == 0
    made = sorted((one.experiment["seed"], one.kind) for one in read(ledger).values())
    assert made == [(0, "probe"), (0, "training"), (1, "probe"), (1, "training")]
    capsys.readouterr()
    assert main([*words, "--hours", "1"]) == 0
    assert "seed 2" in capsys.readouterr().out, "what is done is not named again"


def test_the_pace_of_steps_and_a_plane_are_cells_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [*TINY, "--model.width", "4", "--training.epochs", "3", "--out", str(out)]
    for name in ("rat/time", "rat/fig1"):
        assert main(["reproduce", name, *words]) == 0
    kinds: dict[str, list[Record]] = {}
    for one in read(out / "experiments").values():
        kinds.setdefault(one.kind, []).append(one)
    assert {kind: len(found) for kind, found in kinds.items()} == {"pace": 2, "plane": 2, "training": 2}
    relative = {one.label: one.found["relative"] for one in kinds["pace"]}
    assert relative["sat"] == 1.0
    assert relative["rat"] > 0
    text = next(out.glob("pages/rat-time-*/index.md")).read_text()
    assert "| SAT | published | 41.88 | 1.00 |" in text
    assert "| RAT | published | 47.95 | 1.1" in text
    drawn = sorted(path.name for path in out.glob("pages/rat-fig1-*/figures/*.svg"))
    assert drawn == ["plane-0.svg", "plane-1.svg"]
    assert main(["reproduce", "rat/fig1", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(": done") == 2
    # another image is another cell, with a page of its own
    (first, _) = (one.found["id"] for one in kinds["plane"])
    assert main(["reproduce", "rat/fig1", *words, "--dry-run", "--image", str(first)]) == 0
    assert capsys.readouterr().out.count(": done") == 0
    assert main(["reproduce", "rat/fig1", *words, "--image", str(first)]) == 0
    assert next(one for one in read(out / "experiments").values() if one.what == str(first)).found["id"] == first


def test_what_no_evaluation_holds_is_a_cell_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*TINY, *SMALL, "--limit", "20", "--out", str(out)]
    assert main(["reproduce", "rat/diag", *words]) == 0
    (probe,) = (one for one in read(out / "experiments").values() if one.kind == "probe")
    assert (probe.what, probe.n, probe.checkpoint.split(" ")[0]) == ("region", 20, "best")
    assert sum(probe.found["tau"]) == probe.found["found"] <= 20
    text = next(out.glob("pages/rat-diag-*/index.md")).read_text()
    assert "τ = 9" in text and "cosine" in text
    assert main(["reproduce", "rat/diag", *words, "--dry-run"]) == 0
