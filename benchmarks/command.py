"""The command: which sub-benchmarks, under which conditions, and where the results go.

A file of results holds one record for every sub-benchmark and setting; a later one of the same takes its place, and the
others stay. It is written after each sub-benchmark, so that stopping loses nothing that was finished.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, ours, table
from benchmarks.rounds import Found, Say
from benchmarks.setting import Setting
from demilune.console import duration
from demilune.errors import DemiluneError, unknown
from demilune.models import MODELS
from demilune.options import Parser, add_fields, place, whole
from demilune.runs import read_json, write_json
from demilune.runtime import Runtime

Runner = Callable[[Setting, Say], Found]


def _rat(setting: Setting, say: Say, step: Found | None = None) -> Found:
    from benchmarks import steps

    return steps.rat(setting, say, step and {row.name: row.seconds for row in step.rows})


def _of(name: str) -> Runner:
    def run(setting: Setting, say: Say) -> Found:
        found: Found = importlib.import_module(f"benchmarks.{name}").run(setting, say)
        return found

    return run


RUNNERS: Mapping[str, tuple[Runner, str]] = {
    "pgd": (_of("pgd"), "PGD-10 images per second, beside torchattacks, foolbox and ART"),
    "step": (_of("steps"), "training steps of SAT and RAT, beside the loop of the released scripts"),
    "rat": (_rat, "what a RAT step is of a SAT step, levers off and on, and the gradients each takes"),
    "data": (_of("data"), "augmentation and batching alone, beside a DataLoader"),
    "curve": (_of("curve"), "the curve over 100 iterations, from one trajectory and from 101 attacks"),
    "startup": (_of("startup"), "seconds of --help and of a report"),
    "memory": (_of("memory"), "peak memory of a training step"),
    "autoattack": (_of("autoattack"), "AutoAttack, beside pyautoattack, on the models named"),
    "ceiling": (
        _of("ceiling"),
        "matrix product and the net's convolutions alone, and the share of them that is reached",
    ),
}
"""The sub-benchmarks, in the order in which ``all`` runs them."""


def parser() -> Parser:
    """Return the command's options."""
    own = Setting()
    about = "; ".join(f"{name}: {told}" for name, (_, told) in RUNNERS.items())
    made = Parser(prog="python -m benchmarks", description=f"Measure speed, as ratios within one run. {about}.")
    made.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNNERS)}, or all")
    made.add_argument("--quick", action="store_true", help="less of everything that can be had with less; to try it")
    made.add_argument("--net", default=own.net, help=f"of {', '.join(MODELS)} (now {own.net})")
    told = {
        "width": "width of the net, a wide_resnet's widening; 0 for its own",
        "depth": "layers of a wide_resnet; 0 for its own",
        "side": "height and width of the images",
        "batch": "images at a time",
        "threads": "processor threads; 0 for torch's own choice",
        "workers": "processes of the reference loop's loader",
        "rounds": "rounds that are counted; a figure that is published takes 5 or more",
        "limit": "images that AutoAttack is run on",
        "images": "images of the iteration curve",
    }
    for name, text in told.items():
        now = 0 if name == "threads" else getattr(own, name)
        made.add_argument(f"--{name}", type=whole, default=now, help=f"{text} (now {now})")
    made.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (now cpu)")
    made.add_argument("--robust", type=place, metavar="MODEL", help="for autoattack: one that withstands")
    made.add_argument("--weak", type=place, metavar="MODEL", help="for autoattack: one that does not")
    made.add_argument("--out", type=place, metavar="FILE.json", help="the results; those already in it stay")
    made.add_argument("--markdown", type=place, metavar="FILE.md", help="the results of --out as tables")
    fields = {field.name for field in dataclasses.fields(Runtime)} - {"device", "threads"}
    # What is not given is what the hardware is worth; the parser shows the plain runtime's fields.
    add_fields(made, "runtime", Runtime(), fields)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code: 0, 2 for bad input (one line on stderr), 130 when stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    records: list[dict[str, Any]] = []
    try:
        return _run(words, records)
    except DemiluneError as error:
        print(f"benchmarks: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        done = ", ".join(record["bench"] for record in records) or "nothing"
        print(f"benchmarks: stopped; finished and kept where --out said so: {done}", file=sys.stderr)
        return 130


def _run(words: list[str], finished: list[dict[str, Any]]) -> int:
    options = parser().parse_args(words)
    names = chosen(options.names)
    out = Path(options.out) if options.out else None
    page = Path(options.markdown) if options.markdown else None
    records = read(out) if out else []
    if page is not None:
        table.check(page)
    if not names:
        if page is None or not records:
            raise DemiluneError(
                f"no sub-benchmark was named: give some of {', '.join(RUNNERS)}, or all; or a file of results with "
                "--out and --markdown to draw its tables"
            )
        table.write(page, records)
        return 0
    setting = conditions(options)
    names = [name for name in names if able(name, setting, options.names)]
    everywhere, done = setting, dict[str, Found]()
    for number, name in enumerate(names):
        setting = small(everywhere) if name == "curve" else everywhere
        title = titled(name, setting)
        print(f"{name}: {title} ({number + 1} of {len(names)})", flush=True)
        about = machine.about(setting.place, words)
        begun, worked = time.perf_counter(), time.process_time()
        runner = RUNNERS[name][0]
        if name == "rat" and "step" in done:  # its steps were among those, in the same rounds
            runner = functools.partial(_rat, step=done["step"])
        found = done[name] = runner(setting, lambda text: print(text, flush=True))
        took = time.perf_counter() - begun
        busy = (time.process_time() - worked) / took / setting.threads
        plain = found.to_json()
        record = {
            "bench": name,
            "title": title,
            "setting": setting.to_json(),
            "environment": about | {"took": took, "busy": busy},
            **plain,
            "notes": [*plain["notes"], *crowded(name, setting, busy)],
        }
        finished.append(record)
        records = [old for old in records if key(old) != key(record)] + [record]
        print("\n".join(table.lines(record)), flush=True)
        print(f"  {name} took {duration(record['environment']['took'])}", flush=True)
        if out is not None:
            write_json(out, {"records": records})
        if page is not None:
            table.write(page, records)
    return 0


def chosen(given: Sequence[str]) -> list[str]:
    """Return the sub-benchmarks named, each once, in their order."""
    for name in given:
        if name not in (*RUNNERS, "all"):
            raise unknown("sub-benchmark", name, (*RUNNERS, "all"))
    return [name for name in RUNNERS if name in given or "all" in given]


def conditions(options: Any) -> Setting:
    """Return the setting, with the process set up for it."""
    names = [field.name for field in dataclasses.fields(Setting)]
    given = {name: getattr(options, name) for name in names if name not in ("levers", "threads")}
    for name in ("robust", "weak"):
        given[name] = given[name] or ""
        if given[name] and not (Path(given[name]).exists() or ":" in given[name]):
            raise DemiluneError(f"--{name} {given[name]}: there is no such model; name a run folder, or a declared one")
    if not 0 <= options.threads <= 1024:
        raise DemiluneError(f"--threads {options.threads}: it must be 0 (torch's own choice) or more, up to 1024")
    try:
        device = Runtime(device=options.device).start()  # refuses one that is not there
    except DemiluneError as error:
        raise DemiluneError(str(error).replace("--runtime.device", "--device")) from None
    torch.use_deterministic_algorithms(False)  # each contestant says so for itself
    if options.threads:
        torch.set_num_threads(options.threads)
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for processes of their own
    asked = {
        name.removeprefix("runtime."): value for name, value in vars(options).items() if name.startswith("runtime.")
    }
    levers = {**ours.levers(device), **asked}
    setting = Setting(**given | {"device": str(device), "threads": torch.get_num_threads(), "levers": levers})
    ours.check(setting)
    return setting


def small(setting: Setting) -> Setting:
    """Return the setting of the curve: where no net was chosen, one whose 5,050 gradients an image can be paid."""
    chosen = setting.width or setting.net != Setting().net
    return setting if chosen else dataclasses.replace(setting, width=8)


def titled(name: str, setting: Setting) -> str:
    """Say under which conditions a sub-benchmark is run."""
    where = f"{setting.device}, {setting.threads} thread{'' if setting.threads == 1 else 's'}"
    models = " and ".join(Path(path).name for path in (setting.robust, setting.weak) if path)
    special = {
        "curve": f"{setting.architecture()}, {setting.side}×{setting.side}, {setting.images} images, {where}",
        "autoattack": f"{models}, {setting.limit} images, batch {setting.batch}, {where}",
        "startup": "the digits",
    }
    return special.get(name, setting.title())


def crowded(name: str, setting: Setting, busy: float) -> list[str]:
    """Return the note that other work shared the cores, where this process had less of them than its threads.

    With several threads some waiting is its own, for parts of a pass that one thread does alone.
    """
    least = 0.9 if setting.threads == 1 else 0.7
    if name in ("startup", "memory", "data") or setting.device != "cpu" or busy >= least:
        return []
    return [
        f"this process had {100 * busy:.0f} % of the time of its {setting.threads} threads: other work shared the "
        "cores, or they waited for each other; unless it was run alone, its seconds are no result"
    ]


def able(name: str, setting: Setting, given: Sequence[str]) -> bool:
    """Say whether a sub-benchmark has what it needs; refuses where it was asked for by name."""
    if name != "autoattack" or setting.robust or setting.weak:
        return True
    if name in given:
        raise DemiluneError("autoattack needs a model: name one with --robust MODEL, --weak MODEL, or both")
    print("autoattack: left out, no model was named (--robust MODEL, --weak MODEL)")
    return False


def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes a record the same measurement: the sub-benchmark, the setting, and the hardware."""
    about = record["environment"]
    told = {name: value for name, value in record["setting"].items() if name != "rounds"}
    return record["bench"], repr(sorted(told.items())), about["processor"], about["device"]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of an earlier file; none where there is none. Refuses what is no such file, and no place."""
    if not path.exists():
        if not path.absolute().parent.is_dir():
            raise DemiluneError(f"{path} cannot be written: there is no folder {path.absolute().parent}")
        return []
    records = read_json(path, "results of benchmarks").get("records")
    needed = {"bench", "title", "setting", "environment", "rows", "figures", "notes"}
    if not isinstance(records, list) or not all(isinstance(one, dict) and needed <= one.keys() for one in records):
        raise DemiluneError(f"{path} holds no results of benchmarks: name another file, nothing was written")
    return records
