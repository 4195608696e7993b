"""The commands that run the papers' tables and figures and keep what came out: reproduce, ledger."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demilune.errors import DemiluneError, unknown
from demilune.options import Parser, add_fields, nested, number, place, scan, whole

if TYPE_CHECKING:
    from demilune.experiment import Experiment
    from demilune.runs import RunFolder
    from demilune.suites import Cell, Choice, Suite
    from demilune.suites.record import Shelf

FLAGS = ("-h", "--help", "--list", "--dry-run", "--run", "--replace")
SECTIONS = ("model", "schedule", "training", "data", "runtime")
OUT, LEDGER = "reproduced", "experiments"
MARKER = "demilune-reproduced.json"


# --- reproduce -------------------------------------------------------------------------------------------------------


def reproduce(argv: Sequence[str]) -> int:
    """``demilune reproduce SUITE``."""
    from demilune.cli import command_parser

    parser = command_parser(
        "reproduce",
        "SUITE [--data digits --schedule quick --seeds 3 --out DIR] | --list [WORD]",
        "Run a published table or figure: train and evaluate every cell that is missing, and set what comes out beside "
        "what was published. Stop it whenever you like: the same command goes on.",
    )
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="rat/table1, rwp/at, …: --list shows them")
    parser.add_argument("--list", action="store_true", help="show the suites, their cells done and missing, and times")
    parser.add_argument("--dry-run", action="store_true", help="show the cells, and run nothing")
    _choosing(parser)
    parser.add_argument("--image", type=whole, metavar="ID", help="the test image of a plane (default: one that fits)")
    parser.add_argument("--frost", type=place, metavar="DIR", help="photographs of frost, for that corruption")
    parser.add_argument("--corrupted", type=place, metavar="DIR", help="the official CIFAR-C files, if not our own")
    loose, _ = scan(argv, FLAGS)
    base = None
    if loose and "--list" not in argv:
        base = _base(loose[0], argv)
        for section in SECTIONS:
            add_fields(parser, section, getattr(base, section))
    options = parser.parse_args(argv)
    if "list" in options:
        return _show_suites(options)
    if "suite" not in options or base is None:
        raise DemiluneError("no suite was named: demilune reproduce --list shows them")
    from demilune.suites import named, settled

    suite = named(options.suite)
    choice = settled(suite, _choice(options))
    return _reproduce(suite, choice, options, argv)


def _choosing(parser: Parser) -> None:
    """Add the options that say how a suite is run here."""
    from demilune.suites import SCHEDULES

    parser.add_argument("--data", metavar="NAME", help="which data set (default: the suite's first); digits always")
    parser.add_argument("--schedule", metavar="NAME", help=f"how long: {', '.join(SCHEDULES)} (default: the longest)")
    parser.add_argument("--net", metavar="NAME", help="a network in place of the preset's")
    parser.add_argument(
        "--norm", choices=("linf", "l2"), metavar="NORM", help="linf (default) or l2, where the suite has it"
    )
    parser.add_argument("--seeds", type=whole, metavar="N", help="how many seeds, from 0 on (default 1)")
    parser.add_argument("--limit", type=whole, metavar="N", help="test images at most")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="which of a run's is asked (default best)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=("float32", "bf16"), help="of training (default float32)")
    parser.add_argument("--out", type=place, metavar="DIR", help=f"folder of runs and pages (default {OUT})")
    parser.add_argument("--ledger", type=place, metavar="DIR", help=f"the ledger (default {LEDGER} in --out)")


def _base(name: str, argv: Sequence[str]) -> Experiment:
    """Return the experiment of a suite's first line, whose fields become options."""
    from demilune.suites import Choice, cells, named

    _, given = scan(argv, FLAGS)
    suite = named(name)
    norm: Any = "l2" if given.get("norm") == "l2" else "linf"
    data, schedule, net = (given.get(key, "") for key in ("data", "schedule", "net"))
    found = cells(suite, Choice(data=data, schedule=schedule, net=net, norm=norm))
    return found[0].experiment


def _choice(options: argparse.Namespace) -> Choice:
    """Return what the options choose."""
    from demilune.suites import Choice

    fields = nested({name: value for name, value in vars(options).items() if "." in name})
    for name in ("device", "precision"):
        if name in options:
            fields.setdefault("runtime", {})[name] = getattr(options, name)
    names = ("data", "schedule", "net", "norm", "seeds", "limit", "checkpoint", "image")
    return Choice(**{name: getattr(options, name) for name in names if name in options}, fields=fields)


def _folders(options: argparse.Namespace) -> tuple[Path, Path]:
    out = Path(getattr(options, "out", OUT))
    return out, Path(options.ledger) if "ledger" in options else out / LEDGER


def _reproduce(suite: Suite, choice: Choice, options: argparse.Namespace, argv: Sequence[str]) -> int:
    from demilune.console import console
    from demilune.suites import cells
    from demilune.suites.record import Shelf

    out, ledger = _folders(options)
    found = cells(suite, choice)
    say = _saying()
    shelf = Shelf.of_folder(ledger)
    missing = [cell for cell in found if not shelf.answers(cell)]
    if "dry_run" in options:
        _show_cells(found, shelf, console().print)
        return 0
    _check_out(out / "pages")
    say(f"{suite.name}: {len(found) - len(missing)} of {len(found)} cells are done")
    stopped = not _run_cells(missing, out, ledger, options, say, found[0])
    shelf = Shelf.of_folder(ledger)
    command = shlex.join(["demilune", "reproduce", *argv])
    runs = [folder for cell in found if (folder := _run_of(out, cell)) is not None]
    page = _draw(suite, choice, found, shelf, out, command, "report/index.html" if runs else "")
    say(f"written: {page}")
    if runs:
        from demilune.report import build

        say(f"written: {build(list(dict.fromkeys(runs)), page.parent / 'report')}")
    if stopped:
        say("stopped and saved: the same command goes on")
        return 130
    return 0


def _saying() -> Callable[[str], None]:
    from demilune.console import console

    out = console()
    return lambda text: out.print(text, soft_wrap=True, highlight=False)


def _run_cells(
    missing: Sequence[Cell],
    out: Path,
    ledger: Path,
    options: argparse.Namespace,
    say: Callable[[str], None],
    first: Cell,
) -> bool:
    """Run cells one after the other, each into the ledger as it ends; return False where somebody stopped it."""
    from demilune.ledger import write
    from demilune.suites.record import Shelf, answers

    for position, cell in enumerate(missing, 1):
        if Shelf.of_folder(ledger).answers(cell):  # another cell of the same network brought it along
            continue
        say(f"cell {position} of {len(missing)}: {cell.line.label}, seed {cell.seed}: {cell.ask.told()}")
        made = _perform(cell, out, options, first)
        if made is None:
            return False
        for one in made:
            # What another network of the same training left is not replaced, unless it is what was asked for.
            mine = bool(answers(cell, [one.record])) or one.record.what.startswith("gaps")
            if mine or not any(ledger.glob(f"*-{one.record.key}.json")):
                write(ledger, one.record, one.stem, replaced=True)
    return True


def _run_of(out: Path, cell: Cell) -> Path | None:
    """Return the run folder of a cell's network, None where there is none yet."""
    return next((path for path in sorted((out / "runs").glob(f"*-{cell.trained}")) if path.is_dir()), None)


def _perform(cell: Cell, out: Path, options: argparse.Namespace, first: Cell) -> list[Any] | None:
    """Train a cell's network as far as it is not, ask what is asked, and return the records; None if stopped."""
    from demilune.suites.perform import asked, paced, trained
    from demilune.suites.record import records_of

    if cell.ask.kind == "pace":
        return [paced(cell, first)]
    folder = trained(cell, out / "runs", _train)
    if folder is None:
        return None
    if not _answered(cell, folder):
        given = {name: getattr(options, name, "") for name in ("frost", "corrupted")}
        if not asked(cell, folder, given, _stopping):
            return None
    return list(records_of(folder.path))


def _answered(cell: Cell, folder: RunFolder) -> bool:
    from demilune.suites.record import answers, records_of

    return bool(answers(cell, [one.record for one in records_of(folder.path)]))


def _train(experiment: Experiment, folder: RunFolder) -> bool:
    """Train under a progress line."""
    from demilune.cli import announce, fitted

    dataset = experiment.data.mixed()
    say = _saying()
    announce(experiment, dataset, say)
    return fitted(experiment, dataset, folder, resume=folder.experiment.exists())


def _stopping() -> Any:
    from demilune.cli import interruptible

    return interruptible()


# --- pages -----------------------------------------------------------------------------------------------------------


def _check_out(folder: Path) -> None:
    """Refuse to write pages into a folder that is something else's."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).exists())):
        raise DemiluneError(f"{folder} is there, and holds no pages of ours: name another folder with --out")


def _draw(
    suite: Suite, choice: Choice, found: Sequence[Cell], shelf: Shelf, out: Path, command: str, report: str
) -> Path:
    """Write a suite's page as HTML and Markdown, with its figures; return the HTML."""
    from demilune.pages import blocks, to_html, to_markdown
    from demilune.report.figures import Drawing
    from demilune.runs import replacing, write_json
    from demilune.suites.sheet import sheet

    _check_out(out / "pages")
    write_json(out / "pages" / MARKER, {"made by": "demilune reproduce"})
    words = [suite.name.replace("/", "-"), choice.data, choice.schedule, choice.net]
    words += [choice.norm] if choice.norm != "linf" else []
    words += [choice.checkpoint] if choice.checkpoint != "best" else []
    words += [f"image{choice.image}"] if choice.image is not None else []
    words += [found[0].trained[:6]] if set(choice.fields) - {"runtime"} else []
    folder = out / "pages" / "-".join(word for word in words if word)
    page = sheet(suite, choice, found, shelf, command)
    made = blocks(page)
    link = [f"[the report of the runs]({report})"] if report else []
    files: dict[str, bytes] = {
        "index.html": to_html([*made, *link], page.title).encode(),
        "index.md": to_markdown(made).encode(),
    }
    for one in made:
        if isinstance(one, Drawing):
            files[f"figures/{one.name}.svg"] = one.svg.encode()
            files[f"figures/{one.name}.png"] = one.png
    for name, content in files.items():
        with replacing(folder / name) as beside:
            beside.write_bytes(content)
    return folder / "index.html"


def _show_cells(found: Sequence[Cell], shelf: Shelf, out: Callable[..., None]) -> None:
    from demilune.suites.cost import estimate, kept

    paces, trained = kept(), set[str]()
    total = 0.0
    for cell in found:
        done = bool(shelf.answers(cell))
        one = estimate(cell, paces)
        training = 0.0 if cell.trained in trained or shelf.of(cell) else one.training
        trained.add(cell.trained)
        seconds = 0.0 if done else training + one.measuring
        total += seconds
        told = "done" if done else f"about {long(seconds)}"
        out(f"{cell.line.label}, seed {cell.seed}: {cell.ask.told()}: {told}", soft_wrap=True, highlight=False)
    out(f"all that is missing: about {long(total)} here, an estimate", soft_wrap=True, highlight=False)


def _show_suites(options: argparse.Namespace) -> int:
    """Print every suite with its cells done and missing, and an estimate of the time here."""
    from demilune.suites import cells, holding, named, settled
    from demilune.suites.cost import estimate, kept
    from demilune.suites.record import Shelf
    from demilune.suites.worth import nowhere

    _, ledger = _folders(options)
    shelf, paces = Shelf.of_folder(ledger), kept()
    rows = [("suite", "data", "schedule", "cells", "done", "missing", "time here", "what it shows")]
    for name in holding(getattr(options, "suite", "")):
        suite = named(name)
        asked = _choice(options)
        if asked.norm not in suite.norms or (asked.data and asked.data not in (*suite.data, "digits")):
            continue
        try:
            choice = settled(suite, asked)
            found = cells(suite, choice)
        except DemiluneError as error:
            rows.append((name, asked.data, asked.schedule, "–", "–", "–", "–", f"not here: {str(error).split(':')[0]}"))
            continue
        left = [cell for cell in found if not shelf.answers(cell)]
        seconds, trained = 0.0, set[str]()
        for cell in left:
            one = estimate(cell, paces)
            seconds += one.measuring + (0.0 if cell.trained in trained or shelf.of(cell) else one.training)
            trained.add(cell.trained)
        time = long(seconds) if left else "–"
        done = str(len(found) - len(left))
        rows.append((name, choice.data, choice.schedule, str(len(found)), done, str(len(left)), time, suite.title))
    if len(rows) == 1:
        raise nowhere(_choice(options))
    _print_rows(rows)
    print(
        "Times are estimates for this machine: passes counted, times the pace of a pass, measured once and corrected "
        "by what was trained. A training that several suites share is counted in each."
    )
    return 0


def long(seconds: float) -> str:
    """Return a time in words, days where it is several."""
    from demilune.console import duration

    return f"{seconds / 86_400:,.0f} days" if seconds > 3 * 86_400 else duration(seconds)


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# --- ledger ----------------------------------------------------------------------------------------------------------


def ledger(argv: Sequence[str]) -> int:
    """``demilune ledger [list|add|next|results]``."""
    from demilune.cli import command_parser

    actions: Mapping[str, Callable[[Parser, Sequence[str]], int]] = {
        "list": _list, "add": _add, "next": _next, "results": _results,
    }  # fmt: skip
    parser = command_parser(
        "ledger",
        "[list [WORD …] | add RUN … | next --hours H [--run] | results --out FILE]",
        "Keep what was measured, one small JSON per cell: list it, record finished runs, run what is worth most in the "
        "time there is, or write the page of results.",
    )
    loose, _ = scan(argv, FLAGS)
    action = loose[0] if loose else "list"
    if action not in actions:
        raise unknown("action of ledger", action, actions)
    parser.add_argument("action", nargs="?", metavar="ACTION", help=", ".join(actions))
    return actions[action](parser, argv)


def _list(parser: Parser, argv: Sequence[str]) -> int:
    parser.add_argument("words", nargs="*", default=[], metavar="WORD", help="only cells that hold all of these")
    parser.add_argument("--ledger", type=place, metavar="DIR", help=f"the ledger (default {LEDGER})")
    options = parser.parse_intermixed_args(argv)
    from demilune.ledger import cells_in, line, matching, read

    folder = Path(getattr(options, "ledger", LEDGER))
    records = read(folder)
    if not records:
        print(
            f"{folder} holds no cells yet: demilune ledger add RUN records what was run, demilune reproduce runs more"
        )
        return 0
    for path, record in matching(records, options.words).items():
        print(f"{path.name[-21:-5]}  {line(record)}")
    print(cells_in(records))
    return 0


def _add(parser: Parser, argv: Sequence[str]) -> int:
    parser.add_argument("runs", nargs="*", default=[], metavar="RUN", help="folders of finished runs")
    parser.add_argument("--ledger", type=place, metavar="DIR", help=f"the ledger (default {LEDGER})")
    parser.add_argument(
        "--replace", action="store_true", help="put new numbers in the place of others of the same cell"
    )
    options = parser.parse_intermixed_args(argv)
    if not options.runs:
        raise DemiluneError("no run was named: demilune ledger add RUN …")
    from demilune.ledger import fits, write
    from demilune.suites.record import held, records_of

    folder = Path(getattr(options, "ledger", LEDGER))
    held(folder)  # a damaged ledger is mended first
    made = [one for run in options.runs for one in records_of(Path(run))]  # all are read before any is written
    fits(folder, [one.record for one in made], "replace" in options)
    new = 0
    for one in made:
        path, fresh = write(folder, one.record, one.stem, "replace" in options)
        new += fresh
        print(f"{'written' if fresh else 'there already'}: {path}")
    print(f"{new} new of {len(made)} cells")
    return 0


def _next(parser: Parser, argv: Sequence[str]) -> int:
    parser.add_argument("--hours", type=number, metavar="H", help="how much time there is")
    parser.add_argument("--run", action="store_true", help="run the cells that are named")
    parser.add_argument("--suite", metavar="WORD", help="only suites whose names hold this")
    _choosing(parser)
    from demilune.data import CIFAR10
    from demilune.runtime import Runtime

    add_fields(parser, "data", CIFAR10(), only=("root", "unverified"))
    add_fields(parser, "runtime", Runtime(), only=("threads", "channels_last", "deterministic"))
    options = parser.parse_args(argv)
    options.action = "next"
    hours = getattr(options, "hours", None)
    if hours is None or not hours > 0:
        raise DemiluneError("--hours is missing, or not above 0: say how much time there is, as --hours 0.4")
    from demilune.suites.worth import plan

    out, folder = Path(getattr(options, "out", OUT)), Path(getattr(options, "ledger", LEDGER))
    from demilune.suites.record import Shelf

    picked, skipped = plan(
        Shelf.of_folder(folder), _choice(options), 3600.0 * hours, getattr(options, "suite", ""),
        lambda cell: _run_of(out, cell) is not None,
    )  # fmt: skip
    for text in skipped:
        print(text)
    if not picked:
        print(f"nothing that is unfinished fits into {long(3600 * hours)}")
        return 0
    for cell, seconds in picked:
        experiment = cell.experiment
        print(
            f"{cell.suite}: {cell.line.label}, seed {cell.seed}, {type(experiment.data).__name__}, "
            f"{type(experiment.model).__name__}, {experiment.training.epochs} epochs: {cell.ask.told()}: about "
            f"{long(seconds)}"
        )
    print(f"together about {long(sum(seconds for _, seconds in picked))}, an estimate")
    if "run" not in options:
        return 0
    chosen = [cell for cell, _ in picked]
    if not _run_cells(chosen, out, folder, options, _saying(), chosen[0]):
        print("stopped and saved: the same command goes on")
        return 130
    return 0


def _results(parser: Parser, argv: Sequence[str]) -> int:
    parser.add_argument("--ledger", type=place, metavar="DIR", help=f"the ledger (default {LEDGER})")
    parser.add_argument("--out", type=place, metavar="FILE", help="the Markdown to write (default docs/results.md)")
    options = parser.parse_args(argv)
    from demilune.runs import replacing
    from demilune.suites.record import held
    from demilune.suites.results import HEAD, page

    folder, out = Path(getattr(options, "ledger", LEDGER)), Path(getattr(options, "out", "docs/results.md"))
    records = held(folder)
    if not records:
        raise DemiluneError(
            f"{folder} holds no cells: record finished runs with demilune ledger add RUN --ledger {folder}"
        )
    if out.is_dir():
        raise DemiluneError(f"{out} is a folder: name the Markdown file to write, as --out {out / 'results.md'}")
    if out.exists() and not out.read_text(encoding="utf-8", errors="replace").startswith(HEAD):
        raise DemiluneError(f"{out} is there, and no page of ours: name a new file, so that nothing is lost")
    with replacing(out) as beside:
        beside.write_text(page(list(records.values()), folder.name), encoding="utf-8")
    print(f"written: {out}")
    return 0
