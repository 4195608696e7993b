"""``demilune stationary`` as a user meets it: every file, stopped and repeated, and what bad input gets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from conftest import files, refused
from demilune.__main__ import main
from demilune.checkpoint import Checkpoint, load, save
from demilune.runs import RunFolder

TINY = [
    "--model.width=4", "--training.epochs=2", "--training.batch=512", "--training.monitor=40", "--runtime.threads=1",
    "--method.attack.steps=2", "--method.attack.step_ratio=0.5", "--training.validation.steps=2",
]  # fmt: skip
SETTINGS = [*TINY, "--move.steps=2", "--ranges", "0:1.7,2:inf"]
RUNS = ["0_1.7", "2_inf", "none"]
MONITORED = {"train_clean", "train_robust", "test_clean", "test_robust", "monitor_n"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies") / "tiny"
    assert main(["stationary", "digits-sat", *SETTINGS, "--out", str(out)]) == 0
    return out


def metrics(study: Path) -> dict[str, bytes]:
    return {name: RunFolder(study / name).metrics.read_bytes() for name in RUNS}


def test_every_range_has_a_run_and_the_study_its_files(study: Path) -> None:
    assert sorted(path.name for path in study.iterdir()) == [
        *RUNS[:2], "none", "stationary.json", "stationary.md", "stationary.png", "stationary.svg",
    ]  # fmt: skip
    moves = {name: json.loads(RunFolder(study / name).experiment.read_text())["move"] for name in RUNS}
    assert moves["none"] == {"name": "none"}
    assert (moves["0_1.7"]["low"], moves["0_1.7"]["c_min"], moves["0_1.7"]["steps"]) == (0.0, 1.7, 2)
    assert (moves["2_inf"]["low"], moves["2_inf"]["c_min"]) == (2.0, float("inf"))
    assert (study / "stationary.png").read_bytes().startswith(b"\x89PNG")
    assert (study / "stationary.svg").read_text().startswith("<?xml")


def test_the_study_s_numbers_are_those_of_the_metrics(study: Path) -> None:
    found = json.loads((study / "stationary.json").read_text())
    assert [one["range"] for one in found["ranges"]] == ["none", "0:1.7", "2:inf"]
    for one in found["ranges"]:
        lines = RunFolder(study / one["folder"]).read_metrics()
        for key in ("epoch", *sorted(MONITORED - {"monitor_n"})):
            assert one["curves"][key] == [line[key] for line in lines]
        assert one["curves"]["validation_robust"] == [line["robust"] for line in lines]
        assert {line["monitor_n"] for line in lines} == {one["last"]["n"]} == {40}
        assert one["best"]["test_robust"] == max(line["test_robust"] for line in lines)
        last = {key: lines[-1][key] for key in ("epoch", "test_robust", "test_clean", "train_robust")}
        assert last.items() <= one["last"].items()
        assert one["chosen"]["epoch"] == [line["epoch"] for line in lines if line["best"]][-1]


def test_a_finished_study_is_drawn_anew_and_nothing_is_trained(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(study)
    (study / "stationary.png").unlink()
    assert main(["stationary", "digits-sat", *SETTINGS, "--out", str(study)]) == 0
    assert files(study) == before
    printed = capsys.readouterr().out
    assert "hence optimistic" in printed
    assert "epoch   1" not in printed


def test_a_study_stopped_again_and_again_ends_with_the_same_bits(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def after_two_steps() -> Iterator[object]:
        answers = iter([False, False])
        yield lambda: next(answers, True)

    monkeypatch.setattr("demilune.cli.interruptible", after_two_steps)
    out, codes = tmp_path / "torn", list[int]()
    while not codes or codes[-1] != 0:
        codes.append(main(["stationary", "digits-sat", *SETTINGS, "--out", str(out)]))
        assert len(codes) < 20
        assert (out / "stationary.json").exists() == (codes[-1] == 0)
    assert codes == [130, 130, 130, 0]  # each run has four steps
    assert "the same command goes on" in capsys.readouterr().out
    assert metrics(out) == metrics(study)
    for kind in ("json", "md", "png", "svg"):
        assert (out / f"stationary.{kind}").read_bytes() == (study / f"stationary.{kind}").read_bytes()


def train(out: Path, *more: str) -> list[dict[str, object]]:
    assert main(["train", "digits-sat", *TINY, "--out", str(out), *more]) == 0
    return RunFolder(out).read_metrics()


def test_watching_changes_nothing_else(study: Path, tmp_path: Path) -> None:
    watched = RunFolder(study / "none").read_metrics()
    alone = train(tmp_path / "alone", "--training.monitor=0")
    assert all(line.keys() >= MONITORED for line in watched)
    assert [{k: v for k, v in line.items() if k not in MONITORED} for line in watched] == alone
    one, two = (load(folder / "last.safetensors").tensors for folder in (study / "none", tmp_path / "alone"))
    assert all(bool((tensor == two[name]).all()) for name, tensor in one.items())


def test_only_validated_epochs_are_monitored(tmp_path: Path) -> None:
    first, last = train(tmp_path / "run", "--training.validate_every=2", "--data.validation=0")
    assert {first[key] for key in MONITORED - {"monitor_n"}} == {None}
    assert first["monitor_n"] == 0
    assert last["monitor_n"] == 40
    assert last["robust"] is None


def without_monitor(folder: RunFolder) -> None:
    """Make a run one of a version that knew nothing of monitoring."""
    tree = json.loads(folder.experiment.read_text())
    del tree["training"]["monitor"]
    folder.experiment.write_text(json.dumps(tree, indent=2) + "\n")
    for name in ("best", "last"):
        found = load(folder.checkpoint(name)) if folder.checkpoint(name).exists() else None
        if found is not None:
            save(folder.checkpoint(name), Checkpoint({**found.about, "experiment": tree}, found.tensors))


def test_a_run_of_an_older_version_goes_on_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, old = tmp_path / "alone", RunFolder(tmp_path / "old")
    train(alone, "--training.monitor=0")

    @contextlib.contextmanager
    def at_once() -> Iterator[object]:
        yield lambda: True

    with monkeypatch.context() as patch:
        patch.setattr("demilune.cli.interruptible", at_once)
        assert main(["train", "digits-sat", *TINY, "--training.monitor=0", "--out", str(old.path)]) == 130
    without_monitor(old)
    tree = json.loads(old.experiment.read_text())
    assert main(["train", "--resume", "--out", str(old.path)]) == 0
    assert old.metrics.read_bytes() == RunFolder(alone).metrics.read_bytes()
    assert json.loads(old.experiment.read_text()) == tree
    assert {json.dumps(load(old.checkpoint(name)).about["experiment"]) for name in ("best", "last")} == {
        json.dumps(tree)
    }
    assert main(["evaluate", str(old.path), "--attacks", "fgsm", "--limit", "20"]) == 0


def test_an_older_run_is_not_gone_on_with_under_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    train(folder.path, "--training.monitor=0")
    without_monitor(folder)
    argv = ["train", "--resume", "--out", str(folder.path), "--training.monitor=5"]
    refused(argv, capsys, "training.monitor is 0 there and 5 here")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["digits-sat"], ["--out is missing"]),
        (["--out", "x"], ["no preset was named"]),
        (["digits-satt", "--out", "x"], ["unknown preset", "digits-sat"]),
        (["digits-sat", "--out", "x", "--ranges", "2:1"], ["'2:1' holds no loss"]),
        (["digits-sat", "--out", "x", "--ranges", "low"], ["'low' is no range"]),
        (["digits-sat", "--out", "x", "--ranges", ","], ["--ranges is empty"]),
        (["digits-sat", "--out", "x", "--ranges", "0:1,0:1"], ["twice"]),
        (["digits-sat", "--out", "x", "--range", "0:1"], ["did you mean --ranges?"]),
        (["digits-sat", "--out", "x", "--move", "awp"], ["the move is awp", "leave out --move"]),
        (["digits-sat", "--out", "x", "--move.c_min", "1"], ["--move.c_min is one end of a range", "--ranges"]),
        (["digits-sat", "--out", "x", "--move.gamma", "2"], ["gamma = 2"]),
        (["digits-sat", "--out", "x", "--training.parts", "2"], ["parts = 2", "the move rwp"]),
        (["digits-sat", "--out", "x", "--training.monitor", "-5"], ["training.monitor = -5"]),
    ],
)
def test_bad_words_get_one_line(
    argv: Sequence[str],
    words: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(["stationary", *argv], capsys, *words)
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_something_else_are_refused_and_left_alone(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    argv = ["stationary", "digits-sat", *SETTINGS, "--out"]
    refused([*argv, str(tmp_path)], capsys, "holds thesis.tex, which is no part of a study")
    refused([*argv, str(tmp_path / "thesis.tex")], capsys, "is a file")
    before = files(study)
    refused([*argv, str(study / "none")], capsys, "no part of a study")
    refused([*argv, str(study), "--seed", "1"], capsys, "none holds another experiment: seed is 0 there and 1 here")
    refused([*argv, str(study), "--move.gamma", "0.02"], capsys, "0_1.7 holds another experiment: move.gamma")
    assert files(study) == before


def test_a_file_can_name_the_move_and_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "digits-sat", "--move", "rwp", "--move.gamma", "0.5", *TINY]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**shown, "training": {**shown["training"], "epochs": 1, "monitor": 10}}))
    out = tmp_path / "study"
    assert main(["stationary", "--config", str(file), "--ranges", "0:1", "--out", str(out)]) == 0
    assert json.loads((out / "0_1" / "experiment.json").read_text())["move"]["gamma"] == 0.5


def test_help_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["stationary", "digits-sat", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--move.gamma" in text
    assert "--training.monitor" in text
    assert "no checkpoint is ever chosen on them" in " ".join(text.split())
    assert main(["completion", "bash"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("stationary)"))
    assert all(word in line for word in ("digits-sat", "--ranges", "--out", "--move.steps"))
