"""Where a run's numbers also go: what a tracker is told, and that nothing it does changes or ends the run."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import RUN as TINY
from conftest import refused
from demilune.data import Dataset, Digits
from demilune.errors import DemiluneError
from demilune.runs import RunFolder
from demilune.schedules import Triangular
from demilune.track import Event, numbers_of, tensorboard, tracker_of
from demilune.train import fit

RUN = replace(TINY, training=replace(TINY.training, validate_every=2))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Digits().load()


@pytest.fixture(scope="module")
def plain(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return the run of which nobody was told."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "plain")
    assert fit(RUN, digits, folder)
    return folder


def same(one: RunFolder, other: RunFolder) -> bool:
    names = ("last.safetensors", "best.safetensors", "metrics.jsonl")
    return all((one.path / name).read_bytes() == (other.path / name).read_bytes() for name in names)


def test_a_tracker_is_told_every_epoch_and_the_end(digits: Dataset, plain: RunFolder, tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path / "run"), list[Event]()
    assert fit(RUN, digits, folder, track=told.append)
    assert [(event.kind, event.epoch, event.step, event.outcome) for event in told] == [
        ("epoch", 1, 4, ""),
        ("epoch", 2, 8, ""),
        ("epoch", 3, 12, ""),
        ("end", 3, 12, "finished"),
    ]
    for event, line, timing in zip(told, folder.read_metrics(), folder.read_timing(), strict=False):
        expected = {name: line[name] for name in ("loss", "excess", "rate", "clean", "robust")}
        expected |= {f"notes/{name}": value for name, value in line["notes"].items()}
        expected |= {name: timing[name] for name in ("seconds", "images_per_second")}
        assert dict(event.numbers) == {name: value for name, value in expected.items() if value is not None}
        assert (event.best, event.alarm) == (line["best"], line["alarm"])
    assert "clean" not in told[0].numbers  # it was not validated
    assert "clean" in told[1].numbers
    assert any(name.startswith("notes/") for name in told[0].numbers)
    assert {(event.run, event.folder, event.steps) for event in told} == {("tiny", folder.path, 12)}
    assert told[0].experiment["training.batch"] == 256
    assert told[0].experiment["method.attack.steps"] == 2
    assert same(folder, plain)


def test_a_run_that_is_resumed_tells_from_there_on(digits: Dataset, plain: RunFolder, tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path / "run"), list[Event]()
    asked = iter([False] * 5)
    assert not fit(RUN, digits, folder, track=told.append, stopping=lambda: next(asked, True))
    assert [(event.kind, event.epoch, event.step, event.outcome) for event in told] == [
        ("epoch", 1, 4, ""),
        ("end", 1, 6, "stopped"),
    ]
    told.clear()
    assert fit(RUN, digits, folder, resume=True, track=told.append)
    assert [event.epoch for event in told] == [2, 3, 3]
    told.clear()
    assert fit(RUN, digits, folder, resume=True, track=told.append)  # it had ended
    assert told == []
    assert same(folder, plain)


@pytest.mark.parametrize("error", [ValueError("no network\nat all"), SystemExit(3)], ids=["error", "exit"])
def test_a_tracker_that_raises_is_told_no_more_and_the_run_goes_on(
    error: BaseException, digits: Dataset, plain: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, told = RunFolder(tmp_path / "run"), list[int]()

    def track(event: Event) -> None:
        told.append(event.epoch)
        if event.epoch == 2:
            raise error

    assert fit(RUN, digits, folder, track=track)
    assert told == [1, 2]
    assert same(folder, plain)
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1
    assert warned.startswith(f"warning: the tracker failed ({type(error).__name__}")
    assert "training goes on" in warned


def test_a_run_that_fails_tells_so_and_one_that_is_refused_tells_nothing(digits: Dataset, tmp_path: Path) -> None:
    told = list[Event]()
    wild = replace(RUN, schedule=Triangular(rate=1e30))
    with pytest.raises(DemiluneError, match="diverged"):
        fit(wild, digits, RunFolder(tmp_path / "run"), track=told.append)
    assert [(event.kind, event.outcome) for event in told][-1] == ("end", "failed")
    told.clear()
    with pytest.raises(DemiluneError, match="already holds a run"):
        fit(wild, digits, RunFolder(tmp_path / "run"), track=told.append)
    assert told == []


def test_only_numbers_are_sent() -> None:
    line = {"epoch": 1, "step": 4, "loss": 2.0, "clean": None, "best": True, "alarm": "fell", "validation_n": 5}
    assert dict(numbers_of(line | {"notes": {"gap": 0.5, "none": None}})) == {"loss": 2.0, "notes/gap": 0.5}


# --- by name ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a module of trackers."""
    (tmp_path / "mytrackers.py").write_text(
        "import sys\n"
        "seen = []\n"
        "def good(event): seen.append(event)\n"
        "def none(): pass\n"
        "def two(one, other): pass\n"
        "number = 3\n"
        "class Kind:\n"
        "    def __call__(self, event): seen.append(event)\n"
        "made = Kind()\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["good", "made"])
def test_a_callback_is_found_by_name_in_the_working_folder(name: str, mine: Path) -> None:
    path = list(sys.path)
    tracker = tracker_of(f"mytrackers:{name}")
    tracker(Event("end", "run", mine, 0, 0, 1))
    assert sys.modules["mytrackers"].seen.pop().run == "run"
    assert sys.path == path


def test_the_tracker_of_the_documentation_works(mine: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
    (mine / "documented.py").write_text(page.split("```python\n")[1].split("```")[0])
    tracker_of("documented:log")(Event("epoch", "tiny", mine, 2, 8, 12, {"loss": 1.5}))
    assert json.loads((mine / "log.jsonl").read_text()) == {"run": "tiny", "kind": "epoch", "epoch": 2, "loss": 1.5}
    fields = set(
        re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in page.split("\n") if row.startswith("| `")))
    )
    assert fields == {field.name for field in dataclasses.fields(Event)}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("tensorbord", ["'tensorbord'", "possible are tensorboard, and package.module:callback"]),
        ("", ["possible are tensorboard"]),
        ("mytrackers.py:good", ["no module 'mytrackers.py'"]),
        ("a b:c", ["possible are"]),
        ("nowhere_at_all:good", ["no module 'nowhere_at_all'", "start in the folder"]),
        ("mytrackers:absent", ["mytrackers has no 'absent'"]),
        ("mytrackers:none", ["no function of one event"]),
        ("mytrackers:two", ["no function of one event"]),
        ("mytrackers:number", ["no function of one event"]),
        ("mytrackers:Kind", ["no function of one event", "a class will not"]),
        ("broken:good", ["importing broken fails (ZeroDivisionError"]),
        ("lacking:good", ["importing lacking fails (ModuleNotFoundError", "nowhere_to_be_found"]),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_begins(
    spec: str, words: list[str], mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = mine / "run"
    refused(["train", "digits-sat", "--out", str(out), "--track", spec], capsys, *words)
    assert not out.exists()


def test_without_the_package_tensorboard_the_remedy_is_named(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    argv = ["train", "digits-sat", "--out", str(mine / "run"), "--track", "tensorboard"]
    refused(argv, capsys, "pip install 'demilune[tensorboard]'")
    assert not (mine / "run").exists()


def test_tensorboard_shows_what_the_folder_holds_through_a_stop(
    digits: Dataset, plain: RunFolder, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(tmp_path / "run")
    asked = iter([False] * 9)
    assert not fit(RUN, digits, folder, track=tensorboard(), stopping=lambda: next(asked, True))
    assert fit(RUN, digits, folder, resume=True, track=tensorboard())
    assert same(folder, plain)
    shown = EventAccumulator(str(folder.path / "tensorboard"))
    shown.Reload()
    for name in ("loss", "rate", "clean", "robust"):
        expected = [(line["epoch"], line[name]) for line in folder.read_metrics() if line[name] is not None]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        assert [epoch for epoch, _ in found] == [epoch for epoch, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert "images_per_second" in shown.Tags()["scalars"]
    assert any(name.startswith("notes/") for name in shown.Tags()["scalars"])
