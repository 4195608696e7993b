"""What is seen of a run: the view fits any terminal and tells the truth of a folder, and changes nothing of the run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from conftest import files, refused
from demilune.__main__ import main
from demilune.console import Line, Pane, is_live, spark
from demilune.errors import DemiluneError
from demilune.runs import RunFolder, alone, read_json
from demilune.watch import PATIENCE, View, Watcher, follow, look, picture

TINY = ["--model.width=4", "--training.epochs=2", "--training.batch=256", "--runtime.threads=1"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="no such terminals")


def line(epoch: int, **other: Any) -> dict[str, Any]:
    """Return a line of metrics; 4 steps make an epoch."""
    numbers = {"epoch": epoch, "step": 4 * epoch, "rate": 0.1, "loss": 2.0 / epoch, "excess": 2.0 / epoch}
    judged = {"clean": 0.5 + epoch / 100, "robust": 0.2 + epoch / 100, "alarm": None, "best": True}
    return numbers | judged | other


class Terminal(io.StringIO):
    """A terminal of the given encoding, which keeps what it was sent, or breaks."""

    def __init__(self, encoding: str = "utf-8", broken: bool = False) -> None:
        super().__init__()
        self.kind, self.broken, self.tries = encoding, broken, 0

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.kind

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.tries += 1
        if self.broken:
            raise OSError(5, "Input/output error")
        return super().write(text)


def screen(file: io.StringIO, width: int = 80, term: str = "xterm") -> Console:
    return Console(file=file, width=width, height=24, markup=False, _environ={"TERM": term})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two epochs of four steps that was trained without a terminal."""
    out = tmp_path_factory.mktemp("runs") / "sat"
    assert main(["train", "digits-sat", *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> RunFolder:
    """Return a run folder as a process leaves it that is killed after its first epoch, but for the checkpoint."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.experiment.write_bytes((trained / "experiment.json").read_bytes())
    made.metrics.write_text(json.dumps(line(1)) + "\n")
    made.timing.write_text(json.dumps({"epoch": 1, "seconds": 10.0, "images_per_second": 100.0}) + "\n")
    return made


# --- the view --------------------------------------------------------------------------------------------------------

VIEWS = [
    View("run", "waiting", remark="runs/a/very/long/name/of/a/folder/that/nobody/would/type does not exist yet"),
    View("run", "training", [], 3, 8, 4, 0.1, 0.2, 300.0, 12.0),
    View("run" * 30, "training", [line(1), line(2, clean=None, robust=None)], 8, 4000, 4, 0.1, 12.0, 0.3, 9e5),
    View("läuft\x1b[31m\n", "running", [line(n) for n in range(1, 300)], 1200, 1200, 4, over=True),
    View("run", "running", [line(1), line(2, alarm="robust validation accuracy fell from 40 % to 0 %")], 8, 80, 4),
    View("run", "running", [line(1, loss=float("nan")), line(2, loss=1e30, excess=1.0)], 8, None, 4),
]


@pytest.mark.parametrize("width", [12, 40, 80, 200])
@pytest.mark.parametrize("view", VIEWS, ids=range(len(VIEWS)))
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_view_fits_the_terminal(view: View, width: int, ascii_only: bool) -> None:
    shown = picture(view, width, ascii_only)
    rows = shown.plain.split("\n")
    assert max(Text(row).cell_len for row in rows) <= width
    assert len(rows) >= 6
    assert all(row.isprintable() for row in rows)
    if ascii_only:
        assert not set(shown.plain) & set("▁▂▃▄▅▆▇█━─…")


def test_the_view_tells_what_was_asked_for() -> None:
    lines = [line(1, robust=0.4), line(2, robust=0.3, excess=0.5)]
    shown = picture(View("run", "training", lines, 9, 16, 4, 0.05, 0.125, 512.0, 75.0), 80).plain
    for words in ("run  training", "epoch 3/4", "step 9/16", "56 %", "1.0000", "above floor 0.5000", "52.00 %"):
        assert words in shown
    for words in ("30.00 %  best 40.00 % (epoch 1)", "1 min 15 s left", "125.0 ms a step", "512 images/s", "rate 0.05"):
        assert words in shown
    assert "larm" not in shown


def test_the_view_says_that_an_alarm_is_over() -> None:
    raised = line(2, alarm="catastrophic overfitting")
    assert "ALARM: catastrophic overfitting" in picture(View("run", "training", [line(1), raised]), 80).plain
    unjudged = line(3, clean=None, robust=None)
    assert "ALARM: " in picture(View("run", "training", [line(1), raised, unjudged]), 80).plain
    over = picture(View("run", "training", [line(1), raised, line(3)]), 80).plain
    assert "ALARM" not in over
    assert "raised in epoch 2, and is over" in over


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([1.0], 0, ""),
        ([1.0, 1.0], 5, "▁▁"),
        ([0.0, None, 1.0], 5, "▁ █"),
        ([0.0, 0.0, 1.0, 1.0], 2, "▁█"),
        ([float("nan"), 0.0, float("inf"), 7.0], 4, " ▁ █"),
        ([None, None], 4, "  "),
    ],
)
def test_a_course_is_drawn_from_least_to_greatest(values: list[float | None], width: int, expected: str) -> None:
    assert spark(values, width) == expected


# --- from the folder -------------------------------------------------------------------------------------------------


def test_a_finished_run_is_said_to_be(trained: Path) -> None:
    view = look(RunFolder(trained), time.time() + 1e6)
    assert (view.state, view.over, view.step, view.steps, view.per_epoch) == ("finished", True, 8, 8, 4)
    assert [entry["epoch"] for entry in view.lines] == [1, 2]


@posix
def test_a_run_is_running_while_its_folder_is_held_however_long_it_is_silent(folder: RunFolder) -> None:
    now = time.time() + 5.0
    with alone(folder.path):
        view = look(folder, now)
        assert view.state.startswith("running, saved 5 s ago")
        assert (view.step, view.steps, view.remark, view.over) == (4, 8, "", False)
        assert view.left == pytest.approx(4 * 256 / 100.0 - 5.0, abs=0.5)  # of which 5 seconds have passed
        assert look(folder, now + 1e5).state.startswith("running")
    view = look(folder, now)
    assert view.state.startswith("not running")
    assert view.left is None
    assert f"demilune train --resume --out {folder.path}" in view.remark


def test_where_there_are_no_locks_silence_decides(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demilune.watch.taken", lambda path: None)
    assert look(folder, time.time()).state.startswith("running")
    silent = look(folder, time.time() + PATIENCE + 1)
    assert silent.state.startswith("not running")
    assert "no sign of life" in silent.remark


@posix
def test_looking_takes_no_lock_from_a_run_and_writes_nothing(folder: RunFolder) -> None:
    before = files(folder.path)
    with alone(folder.path):
        look(folder, time.time())
    look(folder, time.time())
    with alone(folder.path):
        pass
    assert files(folder.path) == before


def test_a_run_that_was_just_begun_is_shown(folder: RunFolder) -> None:
    folder.metrics.write_text("")
    folder.timing.unlink()
    with alone(folder.path):
        view = look(folder, time.time())
    assert (view.step, view.steps, view.lines, view.pace) == (0, None, [], None)
    if sys.platform != "win32":
        assert view.remark == "no epoch is complete yet"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.jsonl", "{}\n", "broken at line 1"),
        ("metrics.jsonl", json.dumps(line(1)) + "\n[1]\n", "broken at line 2"),
        ("metrics.jsonl", json.dumps(line(1, clean="high")) + "\n", "broken at line 1"),
        ("metrics.jsonl", json.dumps(line(-1)) + "\n", "broken at line 1"),
        ("timing.jsonl", '{"epoch": 1}\n', "broken at line 1"),
        ("experiment.json", "{}", "holds no experiment"),
        ("experiment.json", "[", "cannot be read"),
        ("experiment.json", '{"training": {"batch": 0, "epochs": 1, "steps": 0}}', "holds no experiment"),
    ],
)
def test_a_broken_file_is_named(folder: RunFolder, name: str, text: str, words: str) -> None:
    (folder.path / name).write_text(text)
    with pytest.raises(DemiluneError, match=words):
        look(folder, time.time())


def test_a_line_that_is_still_being_copied_and_a_broken_checkpoint_are_passed_over(folder: RunFolder) -> None:
    folder.metrics.write_text(json.dumps(line(1)) + "\n" + json.dumps(line(2))[:30])
    folder.checkpoint("last").write_bytes(b"no checkpoint")
    assert [entry["epoch"] for entry in look(folder, time.time()).lines] == [1]


# --- following -------------------------------------------------------------------------------------------------------


def followed(folder: RunFolder, happens: list[Any], file: io.StringIO | None = None) -> str:
    """Follow a folder in which one thing after another happens; then Ctrl-C."""
    file = io.StringIO() if file is None else file
    coming = iter(happens)

    def sleep(seconds: float) -> None:
        for event in coming:
            event()
            return
        raise KeyboardInterrupt

    follow(folder, screen(file, 100), sleep=sleep)
    return file.getvalue()


def test_in_a_pipe_each_epoch_is_one_line_and_nothing_is_told_twice(folder: RunFolder, trained: Path) -> None:
    def more() -> None:
        folder.metrics.write_text("".join(json.dumps(line(n)) + "\n" for n in (1, 2)))

    def back() -> None:  # resumed from an earlier checkpoint, it writes the same lines again
        folder.metrics.write_text(json.dumps(line(1)) + "\n")

    told = followed(folder, [lambda: None, more, lambda: None, back, more])
    assert "\x1b" not in told
    assert [row[:9] for row in told.splitlines() if row.startswith("epoch")] == ["epoch   1", "epoch   2", "epoch   2"]
    if sys.platform != "win32":
        assert told.count("--resume") == 1


def test_a_folder_is_waited_for_and_followed_to_its_end(trained: Path, tmp_path: Path) -> None:
    mine = RunFolder(tmp_path / "run")

    def begin() -> None:
        mine.path.mkdir()
        (mine.path / ".experiment.json.x1").write_text("{")

    def end() -> None:
        for path, content in files(trained).items():
            (mine.path / path.name).write_bytes(content)

    rows = followed(mine, [lambda: None, begin, end, lambda: None]).splitlines()
    assert rows[0] == f"{mine.path} does not exist yet"
    assert rows[1] == f"{mine.path} holds no run yet"
    assert [row[:9] for row in rows[2:4]] == ["epoch   1", "epoch   2"]
    assert rows[4:] == ["digits-sat: finished"]


def test_on_a_terminal_the_last_view_stays(trained: Path, folder: RunFolder) -> None:
    for run, told in ((RunFolder(trained), "finished"), (folder, "step 4/8")):
        _, cursor, after = followed(run, [lambda: None], Terminal()).rpartition("\x1b[?25h")
        assert cursor  # it is back
        assert told in after


def test_watching_refuses_what_is_no_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    refused(["watch", str(tmp_path / "file")], capsys, "is a file")
    refused(["watch", str(tmp_path)], capsys, f"{tmp_path} holds no run")
    refused(["watch", str(trained.parent)], capsys, f"name one of {trained}")
    refused(["watch", str(tmp_path / "absent"), "--once"], capsys, "does not exist yet", "leave out --once")
    refused(["watch"], capsys, "RUN")
    refused(["watch", ""], capsys, "the name is empty")


def test_once_shows_how_it_stands(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(trained)
    assert main(["watch", str(trained), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "digits-sat  finished" in shown
    assert "step 8/8" in shown
    assert "\x1b" not in shown
    assert files(trained) == before


# --- in the process that trains --------------------------------------------------------------------------------------


def watcher(console: Console, folder: RunFolder) -> Watcher:
    return Watcher(console, folder, "run", 8, 4, 256, lambda step: 0.1)


def feed(view: Watcher) -> None:
    view.begin(4, 20.0, 2**28)
    for step in range(5, 9):
        view.move(step, 0.25)
    view.close_epoch(line(2, alarm="catastrophic overfitting"))


def test_a_log_gets_plain_lines(folder: RunFolder) -> None:
    file = io.StringIO()
    with watcher(screen(file, 40), folder) as view:
        feed(view)
    assert file.getvalue().splitlines() == [
        "4 steps to go: about 20 s, 256 MiB of memory",
        "epoch   2  rate 0.1000  loss 1.0000  clean 52.00 %  robust 22.00 %  best",
        "ALARM: catastrophic overfitting",
    ]


def test_a_dumb_terminal_gets_plain_lines(folder: RunFolder) -> None:
    file = Terminal()
    with watcher(screen(file, 40, "dumb"), folder) as view:
        feed(view)
    assert "\x1b" not in file.getvalue()
    assert len(file.getvalue().splitlines()) == 3


def test_a_terminal_gets_a_view_and_the_lines_stay(folder: RunFolder) -> None:
    file = Terminal()
    with watcher(screen(file), folder) as view:
        feed(view)
    shown = file.getvalue()
    assert "validating" in shown  # drawn before what may take minutes, however short the time since the last
    assert "step 8/8" in shown
    assert "best 21.00 % (epoch 1)" in shown  # of the epoch before it was resumed
    assert shown.count("ALARM: catastrophic overfitting") == 1
    assert shown.index("\x1b[?25l") < shown.rindex("\x1b[?25h")  # the cursor is back


def test_a_view_is_drawn_seldom(folder: RunFolder) -> None:
    drawn = 0

    def draw() -> Text:
        nonlocal drawn
        drawn += 1
        return Text("x")

    with Pane(screen(Terminal()), draw) as pane:
        for _ in range(1000):
            pane.move()
    assert drawn <= 3


def test_a_terminal_that_goes_away_ends_the_view_alone(folder: RunFolder) -> None:
    file = Terminal()
    with watcher(screen(file), folder) as view:
        view.begin(4, 20.0, 2**28)
        file.broken, view.pane.due = True, 0.0  # type: ignore[union-attr]
        view.move(5, 0.25)
        tries = file.tries
        feed(view)
    assert file.tries == tries
    plain = Terminal(broken=True)
    with Line(screen(plain, term="dumb"), 8) as told:
        told.say("one")
        told.say("two")
    assert plain.tries == 1


def test_an_edited_file_shows_nothing_and_stops_nothing(folder: RunFolder) -> None:
    folder.metrics.write_text("{}\n")
    with watcher(screen(Terminal()), folder) as view:
        feed(view)


def test_a_console_that_was_closed_is_not_live() -> None:
    file = io.TextIOWrapper(io.BytesIO())
    console = screen(file)  # type: ignore[arg-type]
    file.close()
    assert not is_live(console)


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Let standard output be a terminal, and give what it was sent, all of it at the end."""
    import pty

    master, slave = pty.openpty()
    sent = list[bytes]()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while data := os.read(master, 65536):
                sent.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
        for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stdout", file)
        yield sent
    reader.join(timeout=10)
    os.close(master)


@posix
def test_watched_and_tracked_a_run_has_the_same_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unruly.py").write_text("import torch\ndef seeds(event):\n    torch.manual_seed(event.step)\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    with terminal(monkeypatch) as sent:
        assert main(["train", "digits-sat", *TINY, "--out", str(out), "--track", "unruly:seeds"]) == 0
    shown = b"".join(sent).decode()
    assert "validating" in shown
    assert "\x1b[?25l" in shown
    for name in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    assert read_json(out / "experiment.json", "") == read_json(trained / "experiment.json", "")


@posix
def test_training_outlives_its_terminal(tmp_path: Path) -> None:
    """A process whose terminal is closed gets SIGHUP, and can write to that terminal no more."""
    import pty

    program = f"""
import sys, time
from pathlib import Path
from demilune.console import console, outliving
here, out = Path({str(tmp_path)!r}), console()
with outliving("it went away"):
    out.print("there")
    while not (here / "gone").exists():
        time.sleep(0.02)
    out.print("nobody")
    sys.stdout.flush()
(here / "end").write_text("reached")
"""
    child, master = pty.fork()
    if child == 0:  # pragma: no cover - the terminal's own process
        os.dup2(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), 2)
        os.execv(sys.executable, [sys.executable, "-c", program])
    assert os.read(master, 5) == b"there"
    os.close(master)
    time.sleep(0.2)
    (tmp_path / "gone").write_text("")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "end").read_text() == "reached"
    assert (tmp_path / "log").read_text() == "warning: it went away\n"


def test_watching_needs_no_torch(trained: Path) -> None:
    program = (
        "import sys\nfrom demilune.__main__ import main\n"
        f"assert main(['watch', {str(trained)!r}, '--once']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
