"""Every command of the documentation is run, or at least read by the real parser; the site builds without a warning.

The blocks of commands go through bash, with programs in the place of `demilune`, `python`, `make` and `pip` that only
note what they were given: loops, braces, redirections and comments are the shell's own. What was noted is then

- run, where it is quick: listings, help, training on the digits (two steps of a net of width 4 are appended),
  evaluations of a run on two images; and the tutorial's, in order and in one folder (SHORT is appended);
- else read: the real command is called with its work taken out (WORK), and must come as far as that. Until there it has
  judged every option and looked up preset, method, network, data, curve and suite; names of attacks are looked up here;
- or excepted, with a reason (EXCEPTED).

Anything else in a block of commands fails. So do commands in running text, `demilune …` in backquotes, that no parser
takes; there capitals and dots stand for what the reader knows.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from demilune.__main__ import main
from demilune.cli import COMMANDS, FLAGS, run
from demilune.errors import DemiluneError
from demilune.options import scan

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
GENERATED = ("docs/results/*/*/*.md",)
PAGES = [
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if not any(path.relative_to(ROOT).match(pattern) for pattern in GENERATED)
]
PROGRAMS = ("demilune", "python", "python3", "make", "pip", "tensorboard", "docs/results/cifar10-methods.sh")
FIRST = re.compile(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:" + "|".join(map(re.escape, PROGRAMS)) + r"|for \w+ in)\b")

EXCEPTED: Mapping[tuple[str, ...], str] = {
    ("pip", "install"): "needs a network; that the extras exist is looked up",
    ("make",): "installs, trains or tests for minutes; that the target exists is looked up",
    ("python", "-m", "venv"): "makes a virtual environment; it is the standard library's",
    ("python", "-m", "http.server"): "serves until it is stopped; it is the standard library's",
    ("python3", "-m", "venv"): "makes a virtual environment; it is the standard library's",
    ("docs/results/cifar10-methods.sh",): "trains for hours; that the script exists is looked up",
    ("tensorboard",): "another program",
}
"""What is neither run nor parsed, and why."""

TINY = ("--training.steps", "2", "--training.epochs", "3", "--training.batch", "32", "--runtime.threads", "1")
SHORT: Mapping[str, tuple[str, ...]] = {
    "train": ("--training.epochs", "2", "--model.width", "4", "--runtime.threads", "1"),
    "evaluate": ("--limit", "4", "--runtime.threads", "1"),
    "doctor": ("--limit", "4", "--runtime.threads", "1"),
}
"""What is appended to the tutorial's commands, so that they take seconds."""

WORK = (
    "demilune.track.tracker_of",
    "demilune.data.base.Data.mixed",
    "demilune.watch.follow",
    "demilune.evaluate.subject.opened",
    "demilune.evaluate.subject.declare",
    "demilune.evaluate.subject.network",
    "demilune.evaluate.label.label",
    "demilune.report.build",
    "demilune.cli_reproduce._reproduce",
    "demilune.cli_reproduce._show_suites",
    "demilune.ledger.read",
    "demilune.suites.record.held",
    "demilune.suites.worth.plan",
    "demilune.hub.fetch",
    "demilune.hub.dressed",
    "demilune.hub.push",
    "demilune.comparison.compare",
)
"""Where the commands begin to work. One that is missing here would run for long."""

MODELLED = ("evaluate", "doctor", "curves", "crosscheck", "label", "export", "report", "compare", "watch")
"""Commands whose first words are runs."""


class Reached(BaseException):
    """The work began: all that was given has been read."""


class Block(NamedTuple):
    line: int
    language: str
    text: str


class Command(NamedTuple):
    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


# --- reading the pages -----------------------------------------------------------------------------------------------


def blocks_of(text: str) -> list[Block]:
    """Return the fenced and the indented blocks of a page, indentation taken off; the latter end at an empty line."""
    found, lines = list[Block](), text.splitlines()
    number = 0
    while number < len(lines):
        fence = re.match(r"( *)(```+)(\w*)", lines[number])
        begin = number
        if fence:
            number += 1
            while number < len(lines) and not lines[number].strip().startswith(fence[2]):
                number += 1
            inner = [line.removeprefix(fence[1]) for line in lines[begin + 1 : number]]
            found.append(Block(begin + 2, fence[3], "\n".join(inner)))
            number += 1
        elif lines[number].startswith("    "):
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            found.append(Block(begin + 1, "indented", "\n".join(line.strip("\n") for line in lines[begin:number])))
        else:
            number += 1
    return found


def is_commands(block: Block) -> bool:
    """Say whether a block holds commands: a program of PROGRAMS begins a line of it, and it is no code or output."""
    shell = block.language in ("indented", "", "bash", "sh", "console", "shell")
    return shell and any(FIRST.match(line) for line in block.text.splitlines())


def commands_of(path: Path, folder: Path) -> list[Command]:
    """Return all commands of a page as bash splits them; fails where bash fails."""
    made = list[Command]()
    page = str(path.relative_to(ROOT))
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if is_commands(block):
            script = re.sub(r"^(\s*)\$ ", r"\1", block.text, flags=re.MULTILINE)
            made += [Command(page, block.line, words) for words in noted(script, folder, f"{page}:{block.line}")]
    return made


def noted(script: str, folder: Path, where: str) -> list[tuple[str, ...]]:
    """Run a script in bash with stand-ins for the programs, and return what they were given."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here to read the blocks with")
    here, record = folder / "shell", folder / "record"
    for name in PROGRAMS:
        stand_in = here / name if "/" in name else folder / "bin" / name
        if not stand_in.exists():
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            # one printf, so that commands that run side by side do not write into each other
            stand_in.write_text(f'#!/bin/sh\nprintf \'%s\\0\' {name} "$@" "$(printf \'\\001\')" >>"$RECORD"\n')
            stand_in.chmod(0o755)
    (here / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (here / ".venv/bin/activate").touch()
    record.write_bytes(b"")
    surroundings = {"PATH": str(folder / "bin"), "RECORD": str(record)}
    done = subprocess.run(
        [bash, "--norc", "-eu", "-c", script], cwd=here, env=surroundings, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and not done.stderr, f"{where}: bash cannot run this block: {done.stderr}"
    return [tuple(part.split("\0")[:-1]) for part in record.read_text().split("\001\0") if part]


def inline_of(path: Path) -> list[str]:
    """Return the commands that stand in the running text of a page."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(found.split()) for found in re.findall(r"`(demilune [^`]+)`", text)]


# --- what the pages write --------------------------------------------------------------------------------------------


def page_code(path: Path) -> list[str]:
    return [block.text for block in blocks_of(path.read_text(encoding="utf-8")) if block.language == "python"]


def executed(code: str, name: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a block of Python as a module of that name: a dataclass looks its module up."""
    module = sys.modules[name] = ModuleType(name)
    vars(module).update({key: value for key, value in (namespace or {}).items() if not key.startswith("__")})
    exec(compile(code, name, "exec"), vars(module))
    return vars(module)


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, type]]:
    """The classes that the pages tell a reader to write, by the names they are to have."""
    docs = ROOT / "docs"
    found = {
        "alp": executed(page_code(docs / "extending.md")[0], "page_alp")["ALP"],
        "plain": executed(page_code(docs / "howto" / "model.md")[1], "page_plain")["Plain"],
        "arrays": executed(page_code(docs / "howto" / "data.md")[0], "page_arrays")["Arrays"],
    }
    yield found
    for name in found:
        del sys.modules[f"page_{name}"]


@pytest.fixture
def registered(written: Mapping[str, type], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them where the pages say."""
    from demilune import experiment

    variants = dict(experiment.VARIANTS)
    for section, name in (("method", "alp"), ("model", "plain"), ("data", "arrays")):
        variants[section] = MappingProxyType({**variants[section], name: written[name]})
    monkeypatch.setattr(experiment, "VARIANTS", MappingProxyType(variants))
    tables = dict(zip(experiment.TABLES, variants.values(), strict=True))
    monkeypatch.setattr(experiment, "TABLES", MappingProxyType(tables))


# --- the workplace ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained and evaluated, for a moment, and a model that was declared."""
    folder = tmp_path_factory.mktemp("trained")
    sample = folder / "run"
    assert main(["train", "digits-sat", *TINY, "--model.width", "4", "--out", str(sample)]) == 0
    assert main(["evaluate", str(sample), "--attacks", "fgsm", "--limit", "4"]) == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run commands in: the repository's docs, and what the pages take for granted."""
    torch.save({}, tmp_path / "net.pt")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "mine.yaml").write_text("data: digits\nmodel: small\nmethod: avm\nball: {eps: 0.15}\n")
    with redirect_stdout(io.StringIO()) as shown:
        assert main(["show", "digits-rat", "--method", "avm"]) == 0
    (tmp_path / "mine.yaml").write_text(shown.getvalue())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def provided(words: Sequence[str], trained: Path, place: Path) -> None:
    """Put a trained run where a command expects one."""
    loose, given = scan(words[1:], FLAGS)
    wanted = list(loose) if words[0] in MODELLED else loose[1:] if words[:2] == ("ledger", "add") else []
    wanted += given.get("sources", "").split(",")
    wanted += [given["out"]] if "--resume" in words and "out" in given else []
    for name in wanted:
        path = place / name
        if name and ":" not in name and not path.exists() and path.suffix in ("", ".5"):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(trained / "run", path)


def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the work out of every command."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    for dotted in WORK:
        home, name = dotted.rsplit(".", 1)
        try:
            owner: Any = importlib.import_module(home)
        except ModuleNotFoundError:
            outer, _, kind = home.rpartition(".")
            try:
                owner = getattr(importlib.import_module(outer), kind, None)
            except ModuleNotFoundError:
                continue
        if owner is not None and getattr(owner, name, None) is not None:
            monkeypatch.setattr(owner, name, reached)
    from demilune import data

    gone = {name: data.Supply(reached, reached) for name in data.SUPPLIES}
    monkeypatch.setattr(data, "SUPPLIES", gone)


# --- judging one command ---------------------------------------------------------------------------------------------


def is_quick(words: Sequence[str]) -> bool:
    """Say whether a command of demilune is really run, by what it is."""
    name = words[0]
    if name in ("list", "show", "completion", "--help", "--version") or "--help" in words:
        return True
    if name == "train":
        preset = next((word for word in words[1:] if not word.startswith("-")), "")
        there = "tensorboard" not in words or importlib.util.find_spec("tensorboard") is not None
        return there and preset.startswith("digits-") and "arrays" not in words
    return name == "evaluate" and "--help" not in words and words[1].startswith("runs/") and "bf16" not in words


def really_run(words: Sequence[str], place: Path) -> None:
    """Run a quick command, made short."""
    more: tuple[str, ...] = ()
    if words[0] == "train":
        width = () if "plain" in words else ("--model.width", "4")
        more = (*TINY, *width)
        shutil.rmtree(place / words[words.index("--out") + 1], ignore_errors=True)
    elif words[0] == "evaluate":
        more = ("--limit", "2", "--runtime.device", "cpu", "--runtime.threads", "1")
    assert run([*words, *more]) == 0


def judge(words: Sequence[str], trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run or read a command of demilune; return which, and raise where it is not what demilune takes."""
    provided(words, trained, place)
    device = [word for word in words if word.startswith("cuda")]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if is_quick(words) and not device:
            try:
                really_run(words, place)
            except SystemExit as ended:  # --help
                assert ended.code in (0, None)
            return "run"
        with monkeypatch.context() as patch:
            stubbed(patch)
            try:
                run(list(words))
            except Reached:
                check_attacks(words)
                return "read"
    raise AssertionError("it ended without coming to its work: run it (is_quick), or name its work in WORK")


def check_attacks(words: Sequence[str]) -> None:
    """Refuse names of attacks that do not exist."""
    from demilune.evaluate.crosscheck import LIBRARIES, TITLES
    from demilune.evaluate.suite import Setting, suite

    _, given = scan(words[1:], FLAGS)
    named = [name for name in given.get("attacks", "").split(",") if name]
    if words[0] == "crosscheck":
        assert set(named) <= set(TITLES)
        assert {name for name in given.get("libraries", "").split(",") if name} <= set(LIBRARIES)
    elif words[0] == "evaluate" and named:
        suite(named, Setting(sources={"other": lambda x: x}))


def check_python(words: Sequence[str]) -> str:
    """Read `python …`: a module of the benchmarks by its own parser, a file of the repository by its existence."""
    if words[0] == "-m" and words[1].split(".")[0] == "benchmarks":
        sys.path.insert(0, str(ROOT))
        try:
            return read_benchmark(words[1], list(words[2:]))
        finally:
            sys.path.remove(str(ROOT))
    path = ROOT / words[0]
    assert path.suffix == ".py" and path.is_file(), f"there is no {words[0]}"
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
    return "read"


def read_benchmark(module: str, words: list[str]) -> str:
    """Parse a command of the benchmarks."""
    if module == "benchmarks":
        from benchmarks.command import chosen, parser

        chosen(parser().parse_args(words).names)
        return "read"
    # The others parse in main(): their own parser reads the words, and is stopped behind them.
    import argparse

    with pytest.MonkeyPatch.context() as patch:
        parse = argparse.ArgumentParser.parse_args

        def read(parser: argparse.ArgumentParser, *_: object) -> None:
            parse(parser, words)
            raise Reached

        patch.setattr(argparse.ArgumentParser, "parse_args", read)
        with pytest.raises(Reached):
            importlib.import_module(module).main()
    return "read"


def check_excepted(words: Sequence[str]) -> bool:
    """Say whether a command is excepted, after looking up what can be."""
    if not any(tuple(words[: len(start)]) == start for start in EXCEPTED):
        return False
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        for extra in re.findall(r"\[([\w,-]+)\]", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"no extra {extra}"
        if words[0] == "make" and "=" not in word:
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert word in targets, f"make has no target {word}"
    assert "/" not in words[0] or (ROOT / words[0]).is_file()
    return True


# --- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in PAGES if p != TUTORIAL], ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("registered")
def test_every_command_is_run_or_read(
    path: Path, trained: Path, place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = list[str]()
    for code in page_code(path):
        if name := re.match(r"# (\w+\.py)\n", code):  # a file of the reader's
            (place / name[1]).write_text(code)
    for command in commands_of(path, tmp_path_factory.mktemp("shell")):
        program, *words = command.words
        try:
            if check_excepted(command.words):
                continue
            assert program in ("demilune", "python"), "neither run nor read: say in EXCEPTED why"
            check_python(words) if program == "python" else judge(tuple(words), trained, place, monkeypatch)
        except (DemiluneError, AssertionError, SystemExit) as error:
            wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("registered")
def test_commands_in_running_text_are_known(path: Path, trained: Path) -> None:
    """The command exists, and each of its options; values and runs are whatever the reader's are."""
    wrong = list[str]()
    for text in inline_of(path):
        _, name, *words = text.split()
        if name in ("COMMAND", "…") or name.startswith("--"):
            continue
        if name not in COMMANDS:
            wrong.append(f"{text}: there is no command {name}")
            continue
        known = options_of(name, words, trained / "run")
        given = re.findall(r"(?<!\S)(--[a-z][\w.-]*\w)", text)
        wrong += [f"{text}: there is no {option}" for option in given if option not in known]
    assert not wrong, "\n".join(wrong)


def options_of(name: str, words: Sequence[str], sample: Path) -> set[str]:
    """Return the options of a command, with the fields of what is named in the words (else of SAT on the digits)."""
    from demilune.presets import PRESETS

    chosen = list[str]()
    if name in ("train", "show", "stationary"):
        chosen = [next((word for word in words if word in PRESETS), "digits-sat")]
        for option, value in pairwise(words):
            named = option in ("--method", "--model", "--data", "--move", "--average", "--schedule")
            chosen += [option, value] if named and re.fullmatch(r"[a-z0-9_]+", value) else []
    elif name in ("hub", "ledger"):
        chosen = [word for word in words if word in ("push", "pull", "add", "next", "results", "list")][:1]
    elif name == "reproduce":
        chosen = ["rat/table1"]
    elif name in MODELLED:
        chosen = [str(sample)]
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        run([name, *chosen, "--help"])
    return set(re.findall(r"--[a-z][\w.-]*\w", shown.getvalue()))


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Command, str]]]:
    """The tutorial's commands, run in order in one folder and made short, with what each printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    commands = commands_of(TUTORIAL, tmp_path_factory.mktemp("shell"))
    done, before = list[tuple[Command, str]](), Path.cwd()
    os.chdir(folder)
    try:
        for command in commands:
            program, *words = command.words
            if check_excepted(command.words):
                continue
            assert program == "demilune", f"{command}: not run"
            with redirect_stdout(io.StringIO()) as out:
                assert run([*words, *SHORT.get(words[0], ())]) == 0, str(command)
            done.append((command, out.getvalue()))
        yield done
    finally:
        os.chdir(before)


def test_every_command_of_the_tutorial_runs(tutorial: Sequence[tuple[Command, str]]) -> None:
    ran = [command.words[1] for command, _ in tutorial]
    assert {"train", "evaluate", "doctor", "compare", "report"} <= set(ran)


def test_the_tutorial_shows_the_tables_that_are_printed(tutorial: Sequence[tuple[Command, str]]) -> None:
    """What a reader is shown has the rows, and ends with the lines, of what the commands print today."""
    shown = [block.text for block in blocks_of(TUTORIAL.read_text(encoding="utf-8")) if block.language == "text"]
    tables = {
        tuple(rows)
        for text in shown
        if (rows := re.findall(r"^│ (\S.*?) +│", text, re.MULTILINE)) and "written" in text
    }
    printed = {tuple(re.findall(r"^│ (\S.*?) +│", out, re.MULTILINE)) for _, out in tutorial}
    assert tables and tables <= printed
    files = {line for text in shown for line in text.splitlines() if line.startswith(("written: ", "done: "))}
    short = re.compile(r"_n\d+(?=\.json)")  # fewer images, another file
    assert files
    assert {short.sub("", f) for f in files} <= {
        short.sub("", line) for _, out in tutorial for line in out.splitlines()
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_compiles_and_imports_what_there_is(path: Path) -> None:
    for code in page_code(path):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "demilune":
                module = importlib.import_module(node.module or "")
                missing = [alias.name for alias in node.names if getattr(module, alias.name, None) is None]
                assert not missing, f"{node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("name", ["model", "data", "attack"])
def test_the_code_of_a_how_to_page_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page one after the other, each seeing what the ones before made; one epoch instead of five."""
    namespace: dict[str, Any] = {}
    for number, code in enumerate(page_code(ROOT / "docs" / "howto" / f"{name}.md")):
        module = f"page_{name}_{number}"
        namespace |= executed(code.replace("range(5)", "range(1)"), module, namespace)
        del sys.modules[module]
    if name == "model":
        assert re.search(r"clean \d+\.\d%, robust \d+\.\d% of 500", capsys.readouterr().out)
        assert namespace["Plain"](8, 2).build(1, 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_attack_of_its_page_keeps_the_contract() -> None:
    from conftest import batch_of, stream, tiny
    from demilune.attacks import Attack
    from demilune.core.geometry import Ball
    from demilune.core.losses import cross_entropy

    namespace = executed(page_code(ROOT / "docs" / "howto" / "attack.md")[0], "page_attack")
    attack: Attack = namespace["Momentum"]()
    model, batch = tiny().eval(), batch_of(12)
    for ball in (Ball("linf", 0.1), Ball("l2", 0.5)):
        found = attack(model, batch.x, batch.y, ball, stream(batch))
        assert float(ball.distance(found, batch.x).max()) <= ball.eps + 1e-6
        before, after = (cross_entropy(model(x), batch.y).mean().detach() for x in (batch.x, found))
        assert float(after) > float(before) + 0.01
        alone = attack(model, batch.x[3:5], batch.y[3:5], ball, stream(batch).take(torch.tensor([3, 4])))
        torch.testing.assert_close(alone, found[3:5], atol=1e-6, rtol=0)
    del sys.modules["page_attack"]


def test_the_arrays_of_their_page_are_data(written: Mapping[str, Any], tmp_path: Path) -> None:
    import numpy as np

    labels = np.arange(60) % 3
    np.savez(tmp_path / "mine.npz", images=np.zeros((60, 1, 8, 8), np.uint8) + 40, labels=labels)
    dataset = written["arrays"](file=str(tmp_path / "mine.npz")).load()
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [42, 6, 12]
    assert sorted(torch.cat([dataset.train.ids, dataset.validation.ids, dataset.test.ids]).tolist()) == list(range(60))
    with pytest.raises(DemiluneError, match="no file"):
        written["arrays"](file=str(tmp_path / "other.npz")).load()


def test_methods_are_listed_with_equation_file_and_tests() -> None:
    from demilune.methods import METHODS
    from demilune.moves import MOVES

    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text[text.index("## Equation, file, test") : text.index("## Weight moves")]
    rows = {cells[1].strip().strip("`"): cells for line in section.splitlines() if len(cells := line.split("|")) > 5}
    assert {*METHODS, *MOVES} - {"none"} <= rows.keys()
    known = "\n".join(path.read_text() for path in (ROOT / "tests" / "reference").glob("test_*.py"))
    for name in {*METHODS, *MOVES} - {"none"}:
        for file in re.findall(r"\]\(\.\./(src[^)]+)\)", rows[name][-3]):
            assert (ROOT / file).is_file(), file
        tests = re.findall(r"test_\w+(?=`)", rows[name][-2])
        assert tests and all(re.search(rf"def {test}\(", known) for test in tests), (name, tests)


# --- the reader of commands itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train digits-sta --out r", "unknown preset"),
        ("train digits-sat --methd rat --out r", "unrecognized"),
        ("train cifar10-rat --method.sample 3 --out r", "did you mean"),
        ("train cifar10-rat --ball.eps eight --out r", "no number"),
        ("evaluate runs/w8/x --attacks fgsm,pgd10,autoatack", "unknown attack"),
        ("curves runs/x --only iterations,budget", "unknown curve"),
        ("reproduce rat/table9", "unknown"),
        ("reproduce rat/table1 --data cifar11", "cifar11"),
        ("stationary digits-sat --out s --ranges 0:x", "0:x"),
        ("data cifar11 --download", "unknown data set"),
        ("ledger nxt --hours 1", "unknown action"),
    ],
)
def test_wrong_commands_are_found(
    words: str, said: str, trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DemiluneError, match=re.escape(said)):
        judge(tuple(words.split()), trained, place, monkeypatch)


@pytest.mark.parametrize("words", ["train cifar10-rat --out r", "data cifar10 --download", "ledger next --hours 1"])
def test_right_commands_are_read_without_their_work(
    words: str, trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(place.iterdir())
    assert judge(tuple(words.split()), trained, place, monkeypatch) == "read"
    assert sorted(place.iterdir()) == before


def test_the_shell_splits_the_blocks(tmp_path: Path) -> None:
    text = """Words.

    for m in a b; do  # a loop
        demilune train {x,y} --method $m > out.txt
    done

```text
demilune no
```
"""
    (block, output) = blocks_of(text)
    assert is_commands(block) and not is_commands(output) and block.line == 3
    assert noted(block.text, tmp_path, "here") == [
        ("demilune", "train", "x", "y", "--method", "a"),
        ("demilune", "train", "x", "y", "--method", "b"),
    ]
    with pytest.raises(AssertionError, match="here: bash"):
        noted("demilune list methods\nsomething else", tmp_path, "here")


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_loads_nothing(site: Path) -> None:
    """No page asks a network for anything: every script, style, font and image is the site's own."""
    pages = [path for path in site.rglob("*.html") if "report" not in path.parts]
    assert len(pages) > 15
    for path in pages:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\bsrc=[\"']?([^\"'\s>]+)", text)
        loaded += re.findall(r"<link(?![^>]*rel=[\"']?canonical)[^>]*\bhref=[\"']?([^\"'\s>]+)", text)
        outside = [url for url in loaded if re.match(r"(https?:)?//", url)]
        assert not outside, (path, outside)
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_the_reference_has_every_public_name(site: Path) -> None:
    import demilune

    text = (site / "api.html").read_text(encoding="utf-8")
    headings = set(re.findall(r'id="demilune\.[\w.]*?\.?(\w+)"', text))
    missing = set(demilune.__all__) - headings - {"__version__"}
    assert not missing, missing
