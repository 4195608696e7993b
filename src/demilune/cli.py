"""The commands. torch, and whatever needs it, is imported inside the command that does."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from demilune import __version__
from demilune.cli_interop import downloaded, export, hub
from demilune.cli_reproduce import ledger, reproduce
from demilune.errors import DemiluneError, unknown
from demilune.options import (
    Parser,
    add_fields,
    flat,
    levels,
    names,
    nested,
    number,
    numbers,
    overlaid,
    place,
    scan,
    whole,
    words,
)

if TYPE_CHECKING:
    from demilune.data import Dataset
    from demilune.evaluate.assess import Request
    from demilune.evaluate.subject import Subject
    from demilune.experiment import Experiment
    from demilune.results import Evaluation
    from demilune.runs import RunFolder
    from demilune.track import Tracker

ELSEWHERE = {
    "irat": "it is gairat here",
    "madry": "it is sat here",
    "at": "it is sat here",
    "rst": "it is trades on mixed data here, --method trades --data.extra.file FILE (preset cifar10-rst)",
    "taylor": "there are taylor_code (as released) and taylor_exact",
    "taylor_mc": "it is trades with noise on the weights here, --method trades --move gaussian",
    "awp": "it is a weight move, --move awp",
    "rwp": "it is a weight move, --move rwp",
}
"""Names that a paper may have for a method."""

FLAGS = ("-h", "--help", "--resume", "--download", "--trust", "--pretrained", "--overwrite", "--private")


def run(argv: Sequence[str]) -> int:
    """Run the command and return the exit code; raises DemiluneError for bad input."""
    parser = root_parser()
    if not argv or argv[0].startswith("-"):
        parser.parse_args(argv)
        parser.print_help()
        return 0
    if argv[0] not in COMMANDS:
        raise unknown("command", argv[0], COMMANDS)
    return COMMANDS[argv[0]][0](argv[1:])


def root_parser() -> argparse.ArgumentParser:
    """Return the parser of the first word."""
    lines = "\n".join(f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items())
    parser = Parser(
        prog="demilune",
        usage="demilune COMMAND …",
        description="Train image classifiers that withstand adversarial examples, and tell honestly whether they do.",
        epilog=f"commands:\n{lines}\n\n'demilune COMMAND --help' says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"demilune {__version__}")
    return parser


def command_parser(command: str, usage: str, description: str) -> Parser:
    """Return an empty parser of one command; options that were not given stay out of its result."""
    return Parser(
        prog=f"demilune {command}",
        usage=f"demilune {command} {usage}",
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )


# --- experiments -----------------------------------------------------------------------------------------------------


def experiment_options(parser: Parser, now: Experiment | None) -> None:
    """Add the options that make up an experiment, with one for every field of ``now``."""
    from demilune.experiment import VARIANTS

    parser.add_argument("preset", nargs="?", metavar="PRESET", help="a run by name: demilune list presets")
    parser.add_argument(
        "--config", type=place, metavar="FILE", help="YAML or JSON of fields to set, as `demilune show` prints it"
    )
    parser.add_argument("--name", metavar="NAME", help="what reports call the run")
    parser.add_argument("--seed", metavar="VALUE", type=whole, help="seed of everything random")
    for section, table in VARIANTS.items():
        parser.add_argument(f"--{section}", metavar="NAME", help=f"which {section}: {', '.join(table)}")
    if now is not None:
        for section in (*VARIANTS, "ball", "training", "runtime"):
            add_fields(parser, section, getattr(now, section))


def read_experiment(
    parser: Parser, argv: Sequence[str], held: Experiment | None = None
) -> tuple[argparse.Namespace, Experiment | None]:
    """Return the parsed options and the experiment: preset (or ``held``, a run's own), then file, then options.

    None where none is named.
    """
    from demilune.experiment import VARIANTS, Experiment, build, plain
    from demilune.presets import PRESETS

    loose, given = scan(argv, FLAGS)
    if loose and loose[0] not in PRESETS:
        raise unknown("preset", loose[0], PRESETS)
    file = read_config(Path(given["config"])) if given.get("config") else {}
    check_config(file, given.get("config", ""))
    helping = "-h" in argv or "--help" in argv
    if not loose and not file and not helping and held is None:
        experiment_options(parser, None)
        return parsed(parser, argv), None
    if not loose and not helping and held is None:
        for needed in ("data", "model", "method", "ball"):
            there = file.get(needed)
            unnamed = isinstance(there, Mapping) and "name" not in there and needed in VARIANTS
            if needed not in given and (needed not in file or unnamed):
                raise DemiluneError(f"{given['config']} names no {needed}: add it, or start from a preset")
    tree: dict[str, Any] = {"name": Path(given.get("config", "run")).stem, "ball": {}}
    tree |= {section: {"name": next(iter(table))} for section, table in VARIANTS.items()}
    if loose:
        tree = plain(PRESETS[loose[0]].experiment)
    elif held is not None:
        tree = plain(held)
    naming = ("data", "method", "move", "average")
    before = [tree.get(section) for section in naming]
    for section, table in VARIANTS.items():
        there = file.get(section)
        name = given.get(section, there.get("name") if isinstance(there, Mapping) else there)
        if name is None or name == tree[section]["name"]:
            continue
        if name not in table:
            if section == "method" and str(name) in ELSEWHERE:
                raise DemiluneError(f"unknown method {name!r}: {ELSEWHERE[str(name)]}")
            raise unknown(section, str(name), table)
        fresh, old = plain(build(table[name], {})), tree[section]
        tree[section] = keeping(fresh, old) if section == "method" else fresh
    mixed = "data.extra.file" in given and not tree["data"]["extra"]["file"]
    if loose and (mixed or before != [tree.get(section) for section in naming]):
        parts = [tree[section]["name"] for section in naming] + ["extra"] * mixed
        tree["name"] = "-".join(part for part in parts if part != "none")  # the preset's would say another thing
    base = build(Experiment, tree)
    experiment_options(parser, base)
    settings = {
        section: {k: v for k, v in value.items() if k != "name"} if section in VARIANTS else value
        for section, value in file.items()
        if isinstance(value, Mapping) or section not in VARIANTS
    }
    options = parsed(parser, [*words(settings), *argv])
    fields = {k: v for k, v in vars(options).items() if k in ("name", "seed") or "." in k}
    return options, build(Experiment, overlaid(plain(base), nested(fields)))


def keeping(fresh: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's fields with the budget of another's attack, which belongs to the preset's data."""
    attack = old.get("attack", old.get("rat", {}).get("attack", {}))  # no preset, nothing kept
    kept = {k: v for k, v in attack.items() if k in ("steps", "step_size", "step_ratio")}
    found = {k: keeping(v, old) if isinstance(v, Mapping) and k == "rat" else v for k, v in fresh.items()}
    return found | ({"attack": overlaid(found["attack"], kept)} if "attack" in found else {})


def parsed(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse; an unknown option with a space in it, which argparse takes for a word, is refused as any other."""
    options = parser.parse_args(argv)
    preset = getattr(options, "preset", None) or ""
    if preset.startswith("-"):
        parser.error(f"unrecognized arguments: {preset}")
    return options


def check_config(file: Mapping[str, Any], path: str) -> None:
    """Refuse a configuration whose shape is not that of an experiment; its values are judged as options are."""
    from demilune.experiment import VARIANTS

    sections = (*VARIANTS, "ball", "training", "runtime")
    for key, value in file.items():
        if key.split(".")[0] not in (*sections, "name", "seed"):
            raise unknown(f"field of {path}", key, (*sections, "name", "seed"))
        name = value.get("name", "") if isinstance(value, Mapping) else value
        if key in VARIANTS and not isinstance(name, str):
            raise DemiluneError(f"{path}: {key} is {name!r}: a name was expected, as `demilune show` prints it")
        if key in sections[len(VARIANTS) :] and not isinstance(value, Mapping):
            raise DemiluneError(f"{path}: {key} is {value!r}: fields were expected, as `demilune show` prints them")
        leaves = {key: value} if key in ("name", "seed") else flat({key: value})
        for field, leaf in leaves.items():
            if isinstance(leaf, Mapping | list | set | bytes) or not re.fullmatch(r"[\w.]+", field):
                raise DemiluneError(f"{path}: {field} is {leaf!r}: one field with one value was expected")


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration file (YAML, of which JSON is a part)."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        twice, value = repeated(yaml.compose(text, yaml.SafeLoader)), yaml.safe_load(text)
        json.dumps(value, default=str, skipkeys=True)  # an anchor inside itself has no end
    except FileNotFoundError:
        raise DemiluneError(
            f"{path} does not exist: --config needs a YAML file, as `demilune show` prints it"
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DemiluneError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if twice:
        raise DemiluneError(f"{path} gives {twice} twice: leave one out")
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise DemiluneError(f"{path} holds no fields: a mapping as `method: rat` was expected")
    return value


def repeated(root: Any) -> str | None:
    """Return a key that a mapping of a YAML document gives twice, of which YAML takes the last in silence."""
    import yaml

    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an anchor
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                return str(twice)
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return None


# --- train -----------------------------------------------------------------------------------------------------------


def train(argv: Sequence[str]) -> int:
    """``demilune train PRESET --out DIR``."""
    parser = command_parser(
        "train", "PRESET --out DIR [--resume] [--method.attack.steps 7 …]", "Train a network, or go on training it."
    )
    parser.add_argument("--out", type=place, metavar="DIR", help="the run folder to write")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR, if it holds one")
    parser.add_argument(
        "--track",
        metavar="TRACKER",
        help="where an epoch's numbers also go: tensorboard (to DIR/tensorboard), or package.module:callback",
    )
    parser.add_argument(
        "--runtime",
        choices=("auto", "plain"),
        help="auto (default): precision, layout and compiling as suits device and network, except what is given as "
        "--runtime.FIELD or is the paper's own; plain: none of these",
    )
    loose, given = scan(argv, FLAGS)
    held = None
    if "--resume" in argv and given.get("out") and not loose and "config" not in given:
        held = checkpoint_experiment(Path(given["out"]))
    options, experiment = read_experiment(parser, argv, held)

    from demilune.console import console
    from demilune.runs import RunFolder

    if "out" not in options:
        raise DemiluneError("--out is missing: name the folder to write the run to, as --out runs/mine")
    folder = RunFolder(Path(options.out))
    resume = "resume" in options
    if experiment is None:
        raise DemiluneError("no preset was named: demilune list presets shows them (or give --config FILE)")
    track = None
    if "track" in options:
        from demilune.track import tracker_of

        track = tracker_of(options.track)
    out = console()
    dataset = experiment.data.mixed()
    announce(experiment, dataset, lambda text: out.print(text, soft_wrap=True))
    experiment, reasons = arranged(experiment, dataset, options, folder)
    if reasons:
        chosen = (f"{name} {str(getattr(experiment.runtime, name)).lower()} ({why})" for name, why in reasons.items())
        out.print(f"runtime: {', '.join(chosen)}", soft_wrap=True)
    if not fitted(experiment, dataset, folder, resume, track, reasons):
        out.print(f"stopped and saved: go on with `demilune train --resume --out {folder.path}`", soft_wrap=True)
        return 130
    out.print(f"done: `demilune evaluate {folder.path}` attacks it", soft_wrap=True)
    return 0


def arranged(
    experiment: Experiment, dataset: Dataset, options: argparse.Namespace, folder: RunFolder
) -> tuple[Experiment, Mapping[str, str]]:
    """Return the experiment with the runtime that suits this device, and for each field chosen here, why.

    A run that is there already keeps its own, and so does what was asked for by name; a paper's preset its precision.
    """
    from demilune.automatic import choose
    from demilune.presets import OURS, PRESETS
    from demilune.runtime import Runtime, enough_memory

    mine = experiment.runtime
    said = {name.removeprefix("runtime.") for name in vars(options) if name.startswith("runtime.")}
    if "resume" in options and folder.experiment.exists():
        held = checkpoint_experiment(folder.path).runtime
        kept = dataclasses.replace(held, **{name: getattr(mine, name) for name in said})
        return dataclasses.replace(experiment, runtime=kept), {}
    if getattr(options, "runtime", "auto") == "plain":
        plain = Runtime(device=mine.device, threads=mine.threads, deterministic=mine.deterministic)
        plain = dataclasses.replace(plain, **{name: getattr(mine, name) for name in said})
        return dataclasses.replace(experiment, runtime=plain), {}
    if "preset" in options and options.preset and PRESETS[options.preset].paper != OURS:
        said.add("precision")
    steps, _ = experiment.training.lengths(len(dataset.train), dataset.extra_share)
    with enough_memory():
        runtime, reasons = choose(experiment, dataset.shape, len(dataset.classes), said, steps)
    return dataclasses.replace(experiment, runtime=runtime), reasons


def fitted(
    experiment: Experiment,
    dataset: Dataset,
    folder: RunFolder,
    resume: bool,
    track: Tracker | None = None,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Train under a live view until the end or Ctrl-C; return whether the run came to its end.

    In a log it is plain lines. When the terminal goes away, training goes on.
    """
    from demilune.console import console, outliving
    from demilune.train import Progress, fit
    from demilune.watch import Watcher

    training = experiment.training
    steps, per_epoch = training.lengths(len(dataset.train), dataset.extra_share)

    def rate(step: int) -> float:
        return experiment.schedule.at(step, steps)

    view = Watcher(console(), folder, experiment.name, steps, per_epoch, training.batch, rate)
    gone = (
        f"the terminal went away, training goes on: `demilune watch {folder.path}` shows it, "
        f"`kill {os.getpid()}` stops and saves it"
    )
    with interruptible() as stopping, outliving(gone), view:

        def watch(event: Progress) -> None:
            if event.kind == "start":
                view.begin(event.step, event.data["seconds"], event.data["bytes"])
            elif event.kind == "step":
                view.move(event.step, event.seconds)
            elif event.kind == "epoch":
                view.close_epoch(event.data)

        return fit(experiment, dataset, folder, resume, watch, stopping, track, reasons)


def announce(experiment: Experiment, dataset: Dataset, say: Callable[[str], None]) -> None:
    """Say what is about to be trained, and on what."""
    ball, training = experiment.ball, experiment.training
    count = f"{len(dataset.train)} training, {len(dataset.validation)} validation, {len(dataset.test)} test images"
    say(f"{experiment.name}: {dataset.name}, {count}; {ball.norm} ball of {levels(ball.eps)}")
    if dataset.extra is not None:
        say(f"{dataset.extra_share:g} of each batch from {len(dataset.extra)} extra images")
    if not dataset.official:
        say(f"data are not the official files: {dataset.source}")
    method = getattr(experiment.method, "rat", experiment.method)  # LRAT over RAT takes RAT's
    for name, attack in (("training", getattr(method, "attack", None)), ("validation", training.validation)):
        if attack is None:
            continue
        size = attack.step_size if attack.step_ratio is None else attack.step_ratio * ball.eps
        if attack.steps * size < ball.eps * (1 - 1e-9):
            say(
                f"warning: the {name} attack takes {attack.steps} steps of {size:.4g}, which cannot reach "
                f"eps = {ball.eps:g}; more steps would, or a larger step_ratio (the step size by eps: 0.25, say)"
            )


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish to stop; the second one stops at once."""
    wished = False

    def wish(number: int, frame: object) -> None:
        nonlocal wished
        if wished:
            raise KeyboardInterrupt
        wished = True

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(argv: Sequence[str]) -> int:
    """``demilune watch RUN``."""
    parser = command_parser(
        "watch",
        "RUN [--once]",
        "Show how far a run is, from its folder: what it costs, what it reaches, when it ends. Waits for a folder that "
        "is not there yet; ends with the run, or with Ctrl-C, which the run does not notice.",
    )
    parser.add_argument("run", type=place, metavar="RUN", help="the folder given to `demilune train --out`")
    parser.add_argument("--once", action="store_true", help="show how it stands, and end")
    options = parser.parse_args(argv)

    from demilune.console import console
    from demilune.runs import RunFolder
    from demilune.watch import follow

    follow(RunFolder(Path(options.run)), console(), once="once" in options)
    return 0


# --- stationary ------------------------------------------------------------------------------------------------------


def stationary(argv: Sequence[str]) -> int:
    """``demilune stationary PRESET --out DIR``."""
    from demilune.study import RANGES, check_study, finished, loss_ranges, runs_of

    parser = command_parser(
        "stationary",
        f"PRESET --out DIR [--ranges {RANGES[:20]},…] [--training.epochs 30 …]",
        "Train once per range of losses, the examples of which alone perturb the weights (RWP's loss stationary "
        "condition), and once without; then lay robust overfitting side by side. The same command goes on with what "
        "was stopped, and draws anew what is done.",
    )
    parser.add_argument("--out", type=place, metavar="DIR", help="the folder to write the runs and the study to")
    parser.add_argument(
        "--ranges", metavar="LIST", help=f"comma-separated low:high, which hold low ≤ loss < high (default {RANGES})"
    )
    _, given = scan(argv, FLAGS)
    for field in ("move.low", "move.c_min"):
        if field in given:
            raise DemiluneError(f"--{field} is one end of a range: name ranges, as --ranges 0:1.7")
    options, experiment = read_experiment(parser, with_rwp(argv))
    if "out" not in options:
        raise DemiluneError("--out is missing: name the folder to write the study to, as --out studies/mine")
    if experiment is None:
        raise DemiluneError("no preset was named: demilune list presets shows them (or give --config FILE)")
    runs = runs_of(experiment, loss_ranges(getattr(options, "ranges", RANGES)))
    folder = Path(options.out)
    check_study(folder, runs)

    from demilune.console import console
    from demilune.report.stationary import build
    from demilune.runs import RunFolder

    out = console()
    dataset = experiment.data.mixed()
    announce(runs["none"], dataset, lambda text: out.print(text, soft_wrap=True))
    for position, (name, one) in enumerate(runs.items(), 1):
        out.print(f"run {position} of {len(runs)}: {one.name}", soft_wrap=True, highlight=False)
        mine = RunFolder(folder / name)
        if not fitted(one, dataset, mine, resume=mine.experiment.exists()):
            out.print("stopped and saved: the same command goes on", soft_wrap=True)
            return 130
    # What was trained under other ranges stays part of the study.
    steps, _ = experiment.training.lengths(len(dataset.train), dataset.extra_share)
    table = build([folder / name for name in [*runs, *finished(folder, runs, steps)]], folder)
    out.print(table, soft_wrap=True, highlight=False)
    out.print(f"written: {folder / 'stationary.png'}, and .svg, .md and .json beside it", soft_wrap=True)
    return 0


def with_rwp(argv: Sequence[str]) -> Sequence[str]:
    """Return the words with RWP as the move where none is named, so that its fields are options."""
    _, given = scan(argv, FLAGS)
    there = read_config(Path(given["config"])).get("move") if given.get("config") else None
    named = there.get("name") if isinstance(there, Mapping) else there
    return argv if "move" in given or named not in (None, "none") else ["--move=rwp", *argv]


# --- evaluate --------------------------------------------------------------------------------------------------------


def examined(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command that looks at a trained network, with the fields that fit it.

    The network is a run's, or a foreign one: a folder that one was declared in, or what is declared now.
    """
    argv = downloaded(argv)
    parser.add_argument("--limit", type=whole, metavar="N", help="only N random images, the same for every model")
    parser.add_argument("--split", choices=("test", "validation", "train"), help="which images (default test)")
    parser.add_argument("--batch", type=whole, metavar="N", help="images at once (default 250); changes no result")
    parser.add_argument("--seed", type=whole, metavar="VALUE", help="seed of the attacks' draws (default 0)")
    model_options(parser, argv, ("best", "last", "both"))
    options = parser.parse_args(joined(argv))
    if getattr(options, "checkpoint", "best") == "both" and "out" in options:
        raise DemiluneError("--checkpoint both writes two files: leave out --out, or examine one after the other")
    if getattr(options, "batch", 250) < 1 or getattr(options, "limit", 0) < 0:
        raise DemiluneError("--batch and --limit are numbers of images: at least 1 and 0 (0: as many as there are)")
    return options


def model_options(parser: Parser, argv: Sequence[str], checkpoints: Sequence[str]) -> None:
    """Add what names a trained network, a run's or a foreign one, and the fields of what it is judged by."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run folder, a .safetensors file of a run, a folder made for a foreign model, package.module:factory, "
        "timm:NAME, torchvision:NAME, hf:OWNER/NAME[@REVISION], or a torch.export or TorchScript file",
    )
    parser.add_argument("--checkpoint", choices=checkpoints, help="which of a run's (default best)")
    foreign = parser.add_argument_group("a foreign model, declared once and kept in its folder")
    foreign.add_argument("--weights", type=place, metavar="FILE", help="its state dict: .safetensors, .pt, .pth, …")
    foreign.add_argument("--pretrained", action="store_true", help="fetch the weights that timm or torchvision publish")
    foreign.add_argument("--part", metavar="NAME", help="which of the file's state dicts, where several fit")
    foreign.add_argument("--data", metavar="NAME", help="the images to judge it by")
    foreign.add_argument("--classes", type=whole, metavar="N", help="number of classes (default: the data's)")
    foreign.add_argument("--mean", type=numbers, metavar="LIST", help="mean per channel to normalise by in front of it")
    foreign.add_argument("--std", type=numbers, metavar="LIST", help="standard deviation per channel, likewise")
    foreign.add_argument("--bounds", type=numbers, metavar="LOW,HIGH", help="the pixel range it takes (default 0,1)")
    foreign.add_argument("--trust", action="store_true", help="run the code that a torch.export or TorchScript file is")
    foreign.add_argument("--home", type=place, metavar="DIR", help="its folder (default: named as the factory)")
    target = argv_model(argv)
    if target is not None:
        fields_of(parser, argv, target)


def joined(argv: Sequence[str]) -> list[str]:
    """Return the words with a list that begins with a minus joined to its option, as argparse wants --bounds=-1,1."""
    found = list[str]()
    for word in argv:
        bare = found and found[-1] in ("--bounds", "--mean", "--std") and re.match(r"-[\d.]", word)
        found[len(found) - bool(bare) :] = [f"{found[-1]}={word}" if bare else word]
    return found


def fields_of(parser: Parser, argv: Sequence[str], target: Path) -> None:
    """Add an option for every field of what a network is judged by."""
    from demilune.evaluate.subject import is_foreign, trial_of
    from demilune.runs import RunFolder

    if not is_foreign(target):
        empty = target.is_dir() and not RunFolder(target).experiment.exists()
        if empty or not target.exists():
            told = "holds neither a run (experiment.json) nor a declared model" if empty else "does not exist"
            raise DemiluneError(
                f"{target} {told}: name a run folder, a .safetensors file of a run, the folder of a declared model, "
                "package.module:factory, or a torch.export or TorchScript file"
            )
        base = checkpoint_experiment(target)
        # Where the images lie may differ; which of them are test images is the run's, or training images get in.
        add_fields(parser, "data", base.data, only=("root", "unverified"))
        add_fields(parser, "ball", base.ball)
        add_fields(
            parser,
            "runtime",
            dataclasses.replace(base.runtime, precision="float32", convolution="plain", compile=False),
        )
        return
    _, given = scan(argv, FLAGS)
    trial = trial_of(target, given.get("data"))
    if trial is not None:
        add_fields(parser, "data", trial.data)
        add_fields(parser, "ball", trial.ball)
        add_fields(parser, "runtime", trial.runtime)


def subjects(options: argparse.Namespace) -> list[Path]:
    """Return the files to examine: a run's checkpoints, or the folder of a foreign model, declared if it is new."""
    from demilune.evaluate.subject import declare, is_foreign

    path = Path(options.model)
    own = ("weights", "pretrained", "part", "data", "classes", "mean", "std", "bounds", "trust", "home")
    given = {name: getattr(options, name) for name in own if name in options}
    if not is_foreign(path):
        if given:
            raise DemiluneError(f"--{next(iter(given))} belongs to a foreign model, and {path} was trained here")
        return checkpoint_files(path, getattr(options, "checkpoint", "best"))
    if "checkpoint" in options:
        raise DemiluneError(f"--checkpoint is of a run trained here, and {path} is a foreign model: leave it out")
    return [declare(path, given, nested({k: v for k, v in vars(options).items() if "." in k}))]


def evaluate(argv: Sequence[str]) -> int:
    """``demilune evaluate MODEL``."""
    parser = command_parser(
        "evaluate",
        "MODEL [--attacks fgsm,pgd10,autoattack,…] [--checkpoint best|last|both]",
        "Attack a trained network on its test images and write who survived. `demilune list attacks` names them.",
    )
    parser.add_argument("--attacks", metavar="NAMES", help="comma-separated: fgsm, pgdK, pgdKxR, cwK, autoattack, …")
    parser.add_argument("--step_ratio", type=number, metavar="VALUE", help="step size as a ratio of ε (default 0.25)")
    parser.add_argument("--sources", metavar="LIST", help="comma-separated models that the attack `transfer` uses")
    parser.add_argument("--out", type=place, metavar="FILE", help="the JSON to write (default: in the run folder)")
    options = examined(parser, argv)
    from demilune.evaluate.assess import Request

    named = tuple(names(options.attacks)) if "attacks" in options else None
    if "sources" in options and not any(name.split("@")[0] == "transfer" for name in named or ()):
        raise DemiluneError("--sources is for the attack transfer: name that too, as --attacks fgsm,pgd10,transfer")
    request = Request(attacks=named, step_ratio=getattr(options, "step_ratio", 0.25), **common(options))
    return run_all(options, lambda _: request, getattr(options, "out", None))


def doctor(argv: Sequence[str]) -> int:
    """``demilune doctor MODEL``."""
    parser = command_parser(
        "doctor",
        "MODEL [--budget quick|full]",
        "Say whether to believe a network's robust accuracy: the checks G1 to G11 with their numbers, and one verdict.",
    )
    parser.add_argument("--budget", choices=("quick", "full"), help="how much to spend (default quick)")
    parser.add_argument("--sources", metavar="LIST", help="comma-separated models to transfer from")
    parser.add_argument("--out", type=place, metavar="FILE", help="the JSON to write (default: in the run folder)")
    options = examined(parser, argv)
    budget: Budget = getattr(options, "budget", "quick")
    from demilune.evaluate.assess import Request
    from demilune.evaluate.doctor import IMAGES, Budget, attacks, omitted
    from demilune.evaluate.interview import raised

    def request(subject: Subject) -> Request:
        given = common(options)
        named = attacks(budget, subject.ball, bool(given["sources"]), raised(subject.asked, "randomised"))
        left = omitted(budget, subject.ball)
        return Request(attacks=named, usual=IMAGES[budget], kind=f"doctor-{budget}", omitted=left, **given)

    return run_all(options, request, getattr(options, "out", None))


def curves(argv: Sequence[str]) -> int:
    """``demilune curves MODEL``."""
    from demilune.evaluate.curves import KINDS, corruptions, measure

    parser = command_parser(
        "curves",
        f"MODEL [--only {','.join(KINDS)[:40]}…]",
        "Measure what the papers' figures show: accuracy over PGD's iterations and over budgets, generalisation gaps, "
        "natural corruptions, loss along a direction, landscape, curvature. `demilune report` draws them.",
    )
    parser.add_argument("--only", metavar="LIST", help=f"comma-separated, of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--frost", type=place, metavar="DIR", help="photographs of frost, for that corruption")
    parser.add_argument("--corrupted", type=place, metavar="DIR", help="the official CIFAR-C files, instead of our own")
    options = examined(parser, argv)
    only = tuple(dict.fromkeys(names(options.only))) if "only" in options else tuple(KINDS)
    for kind in only or ("",):
        if kind not in KINDS:
            raise unknown("curve", kind, KINDS)
    for name in ("frost", "corrupted"):
        if name in options and "corruptions" not in only:
            raise DemiluneError(f"--{name} is for the curve corruptions: name that too, as --only corruptions")
    from demilune.evaluate.assess import Request
    from demilune.evaluate.subject import opened
    from demilune.runtime import enough_memory

    request = Request(**common(options))
    frost, corrupted = getattr(options, "frost", ""), getattr(options, "corrupted", "")
    for file in subjects(options):
        with interruptible() as stopping, enough_memory():
            subject = opened(file, request.settings).interviewed(request.limit)
            if "corruptions" in only:  # before hours of other kinds
                corruptions(subject, request, frost, corrupted)
            for kind in only:
                written = measure(kind, subject, request, frost, corrupted, stopping)
                if written is None:
                    print("stopped and saved: the same command goes on")
                    return 130
                print(f"written: {', '.join(map(str, written))}", flush=True)
    return 0


def crosscheck(argv: Sequence[str]) -> int:
    """``demilune crosscheck MODEL``."""
    from demilune.evaluate.crosscheck import LIBRARIES, TITLES, lines
    from demilune.evaluate.crosscheck import crosscheck as compared

    parser = command_parser(
        "crosscheck",
        "MODEL [--libraries foolbox,pyautoattack,torchattacks] [--attacks pgd,apgd_ce,…]",
        "Run our attacks and other libraries' from equal budgets, and compare who survived, image by image.",
    )
    parser.add_argument("--libraries", metavar="LIST", help=f"of {', '.join(LIBRARIES)} (default: those installed)")
    parser.add_argument("--attacks", metavar="LIST", help=f"of {', '.join(TITLES)} (default: all)")
    parser.add_argument("--steps", type=whole, metavar="N", help="steps of each (default 100)")
    parser.add_argument("--queries", type=whole, metavar="N", help="queries of Square (default 5000)")
    parser.add_argument("--targets", type=whole, metavar="N", help="targets of APGD-T and FAB-T (default 9)")
    parser.add_argument("--out", type=place, metavar="FILE", help="the JSON to write (default: in the run folder)")
    options = examined(parser, argv)
    from demilune.console import Line, console
    from demilune.core.random import Stream
    from demilune.evaluate.assess import (
        Request,
        Stopped,
        check_target,
        check_writable,
        chosen_images,
        default_target,
        watching,
    )
    from demilune.evaluate.subject import opened
    from demilune.runs import write_json
    from demilune.runtime import enough_memory

    budget = {name: getattr(options, name) for name in ("steps", "queries", "targets") if name in options}
    libraries, attacks = (tuple(names(getattr(options, name, ""))) for name in ("libraries", "attacks"))
    told = "-".join(["crosscheck", *libraries, *attacks, *(f"{name}{value}" for name, value in budget.items())])
    request = Request(kind=told, folder="crosschecks", usual=100, **common(options))
    if "out" in options:
        check_target(Path(options.out), "crosscheck", ("rows", "absent"))
    for file in subjects(options):
        # Libraries are silenced by turning sys.stdout aside, which must not freeze the line.
        with interruptible() as stopping, enough_memory(), Line(console(sys.stdout), 0) as line:
            subject = opened(file, request.settings)
            split = chosen_images(subject.dataset, request).to(subject.device)
            where = Path(options.out) if "out" in options else default_target(subject, request)
            check_writable(where)
            try:
                found = compared(
                    subject.model,
                    subject.runtime.layout(split.pixels(slice(None))),
                    split.labels,
                    subject.ball,
                    Stream.of(request.seed, "evaluation", device=subject.device).images(split.ids),
                    libraries,
                    attacks or tuple(TITLES),
                    len(subject.dataset.classes),
                    watching(line, stopping),
                    batch=request.batch,
                    **budget,
                )
            except Stopped:
                print("stopped: nothing was written")
                return 130
        for text in lines(found):
            print(text)
        write_json(where, found.to_json())
        print(f"written: {where}")
    return 0


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all commands that examine a network ask for."""
    return {
        "limit": getattr(options, "limit", 0),
        "split": getattr(options, "split", "test"),
        "batch": getattr(options, "batch", 250),
        "seed": getattr(options, "seed", 0),
        "sources": tuple(source_file(Path(name)) for name in names(getattr(options, "sources", ""))),
        "settings": nested({k: v for k, v in vars(options).items() if "." in k}),
    }


def source_file(path: Path) -> Path:
    """Return the checkpoint, or the folder of a foreign model, that a name among the sources means."""
    from demilune.evaluate.subject import DECLARED, is_foreign

    (name,) = downloaded([str(path)])
    path = Path(name)
    if not is_foreign(path):
        return checkpoint_files(path, "best")[0]
    if path.name != DECLARED and not path.is_dir():
        raise DemiluneError(
            f"--sources {path}: a foreign model is declared first: demilune evaluate {path} --data … --home DIR; then "
            "name DIR as the source"
        )
    return path


def run_all(options: argparse.Namespace, request: Callable[[Subject], Request], out: str | None) -> int:
    """Evaluate every checkpoint asked for, with an estimate of the time first, and print what was found."""
    from demilune.console import console, duration
    from demilune.evaluate.assess import assess, chosen_images, entries_of
    from demilune.evaluate.doctor import estimate
    from demilune.evaluate.subject import opened
    from demilune.runtime import enough_memory

    for file in subjects(options):
        with interruptible() as stopping, enough_memory():
            given = common(options)
            subject = opened(file, given["settings"]).interviewed(given["limit"])
            asked = request(subject)
            entries = entries_of(subject, asked)
            count = len(chosen_images(subject.dataset, asked))
            cost = estimate(subject, entries, count)
            console().print(
                f"{subject.name}: {len(entries)} attack{'s' * (len(entries) > 1)} on {count} images, at most "
                f"{cost.forwards} forward passes and {cost.gradients} gradients an image: if none falls about "
                f"{duration(cost.seconds)}",
                soft_wrap=True,
                highlight=False,
            )
            found, where = assess(subject, Path(out) if out else None, asked, stopping, entries)
        if found is None:
            print(f"stopped and saved: the same command goes on with {where}")
            return 130
        show_evaluation(found)
        print(f"written: {where}")
    return 0


def label(argv: Sequence[str]) -> int:
    """``demilune label RUN --images FILE --out FILE``."""
    parser = command_parser(
        "label",
        "RUN|CHECKPOINT --images FILE.npz --out FILE.npz [--checkpoint best|last]",
        "Give images pseudo-labels with a trained network (a standard one, for RST), to train on besides: "
        "--data.extra.file.",
    )
    parser.add_argument("model", metavar="RUN|CHECKPOINT", help="a run folder, or a .safetensors file of a run")
    parser.add_argument("--images", type=place, metavar="FILE", help="an .npz of uint8 images [N,H,W,C] or [N,C,H,W]")
    parser.add_argument("--out", type=place, metavar="FILE", help="the .npz to write")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="which of a run's (default best)")
    parser.add_argument("--batch", type=whole, metavar="N", help="images at once (default 500)")
    target = argv_model(argv)
    if target:
        base = checkpoint_experiment(target)
        add_fields(parser, "data", base.data, only=("root", "unverified"))
        add_fields(parser, "runtime", base.runtime, only=("device", "threads"))
    options = parser.parse_args(argv)
    settings = nested({k: v for k, v in vars(options).items() if "." in k})
    for needed in ("images", "out"):
        if needed not in options:
            raise DemiluneError(f"--{needed} is missing: name the .npz of images, and the one to write with labels")
    if getattr(options, "batch", 500) < 1:
        raise DemiluneError(f"batch {options.batch}: it must be at least 1")
    from demilune.console import Line, console
    from demilune.evaluate.label import label as labelled
    from demilune.runtime import enough_memory

    (file,) = checkpoint_files(Path(options.model), getattr(options, "checkpoint", "best"))
    out = console()
    with Line(out, 0) as line, enough_memory():

        def watch(done: int, total: int) -> None:
            line.total = total
            line.move(done, "labelling")

        out_file, batch = Path(options.out), getattr(options, "batch", 500)
        try:
            found = labelled(file, Path(options.images), out_file, settings, batch, watch)
        except KeyboardInterrupt:
            line.say("stopped: nothing was written")
            return 130
    told = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    out.print(f"{found.images} images labelled: {told}", soft_wrap=True, highlight=False)
    out.print(f"written: {options.out}; train on it with --data.extra.file {options.out}", soft_wrap=True)
    return 0


def argv_model(argv: Sequence[str]) -> Path | None:
    """Return the model named on the command line, if one is."""
    loose, _ = scan(argv, FLAGS)
    if loose and not loose[0].strip():
        raise DemiluneError("the model's name is empty: name a run folder, a file, or package.module:factory")
    return Path(loose[0]) if loose else None


def checkpoint_files(path: Path, which: str) -> list[Path]:
    """Return the checkpoints meant by a path and ``best``, ``last`` or ``both``."""
    if not path.is_dir():
        return [path]
    from demilune.runs import RunFolder

    files = [RunFolder(path).checkpoint(name) for name in (("best", "last") if which == "both" else (which,))]
    for file in files:
        if not file.exists():
            raise DemiluneError(
                f"{path} has no checkpoint {file.name} yet: `demilune train --resume --out {path}` goes on"
            )
    return files


def checkpoint_experiment(path: Path) -> Experiment:
    """Return the experiment a checkpoint or a run folder is of."""
    from demilune.checkpoint import load_run
    from demilune.experiment import stored
    from demilune.runs import RunFolder, read_json

    if path.is_dir():
        file = RunFolder(path).experiment
        return stored(file, read_json(file, "the experiment of a run"))
    return stored(path, load_run(path).about["experiment"])


def show_evaluation(found: Evaluation) -> None:
    """Print the table."""
    from rich.table import Table

    from demilune.console import console

    table = Table(title=f"{found.subject}, {found.checkpoint} checkpoint", title_justify="left")
    table.add_column("attack")
    for column in ("accuracy", "± SE", "right after", "passes/image"):
        table.add_column(column, justify="right")
    for row in found.rows:
        after = "" if row.accuracy_after is None else f"{100 * row.accuracy_after:.2f}"
        cost = f"{row.forwards:.0f} + {row.gradients:.0f}"
        if row.n != found.rows[-1].n:
            cost += f" (n {row.n})"
        table.add_row(row.title, f"{100 * row.accuracy:.2f}", f"{100 * row.error:.2f}", after, cost)
    out = console(width=64)  # narrower, the numbers themselves would be cut
    out.print(table)
    worst = found.rows[-1]
    out.print(
        f"n = {worst.n} {found.split} images of {found.data}, {found.norm} ε = {found.eps:g}. The worst case is an "
        "upper bound on robust accuracy: a stronger attack may break more.",
        soft_wrap=True,
    )
    for row in found.rows:
        if row.note:
            out.print(f"{row.title}: {row.note}", soft_wrap=True)
    if not found.data_official:
        sums = ", ".join(f"{k} {v[:12]}…" for k, v in found.data_sha256.items())
        out.print(f"The data are not the official files (sha256 {sums}).", soft_wrap=True)
    for check in found.checks:
        if check.level != "pass" or check.name == "weights":
            level = "weights" if check.level == "pass" else check.level
            out.print(f"{level}: {check.text}", soft_wrap=True)
    examined = [finding for finding in found.findings if finding.outcome != "not examined"]
    if len(examined) > 4:
        for finding in found.findings:
            out.print(
                f"{finding.name:<4}{finding.outcome:<13} {finding.title}: {finding.text}",
                soft_wrap=True,
                highlight=False,
            )
    if found.verdict is not None:
        out.print(f"Verdict: {found.verdict.text}", soft_wrap=True, highlight=False)


# --- the small commands ----------------------------------------------------------------------------------------------


def report(argv: Sequence[str]) -> int:
    """``demilune report RUN… --out DIR``."""
    parser = command_parser("report", "RUN… --out DIR", "Draw runs and their evaluations into one HTML file.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or evaluation files")
    parser.add_argument("--out", type=place, metavar="DIR", help="the folder to write")
    options = parser.parse_args(argv)
    if "out" not in options:
        raise DemiluneError("--out is missing: name the folder to write the report to, as --out report")
    from demilune.report import build

    print(f"written: {build([Path(path) for path in options.runs], Path(options.out))}")
    return 0


def compare(argv: Sequence[str]) -> int:
    """``demilune compare RUN…``."""
    parser = command_parser(
        "compare",
        "RUN RUN… [--row NAME] [--baseline RUN] [--out FILE.json|.csv|.md]",
        "Say which of several evaluated networks is better, by the images on which they disagree: differences with "
        "McNemar's paired error, and the exact test, corrected for the number of pairs (Holm).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or evaluation files")
    parser.add_argument(
        "--row", metavar="NAME", help="the attack, as an evaluation names it (default: the strongest that all ran)"
    )
    parser.add_argument("--baseline", type=place, metavar="RUN", help="compare each with this one (default: all pairs)")
    parser.add_argument("--out", type=place, metavar="FILE", help="a .json, .csv or .md to write besides")
    options = parser.parse_args(argv)
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from demilune.comparison import check, write
    from demilune.comparison import compare as compared
    from demilune.console import console

    target = Path(options.out) if "out" in options else None
    if target is not None:
        check(target)
    baseline = Path(options.baseline) if "baseline" in options else None
    found = compared([Path(path) for path in options.runs], getattr(options, "row", ""), baseline)
    numbers = found.numbers()
    table = Table(title=found.caption, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, head in enumerate(numbers.head):
        table.add_column(head, justify="left" if i < 2 else "right", no_wrap=i >= 2, overflow="fold")
    for line in numbers.lines:
        table.add_row(*line)
    out = console(width=80)  # narrower, the numbers themselves would be cut
    out.print(table)
    out.print(numbers.note, *found.readings(), sep="\n", soft_wrap=True, highlight=False)
    if target is not None:
        write(found, target)
        print(f"written: {target}")
    return 0


def list_(argv: Sequence[str]) -> int:
    """``demilune list KIND``."""
    parser = command_parser(
        "list", "methods|moves|attacks|models|data|schedules|averages|presets [WORD …]", "List what there is."
    )
    parser.add_argument(
        "kind", metavar="KIND", help="methods, moves, attacks, models, data, schedules, averages or presets"
    )
    parser.add_argument(
        "words", nargs="*", default=[], metavar="WORD", help="only lines that hold all of these: s30 trades"
    )
    options = parser.parse_args(argv)
    kind, words = options.kind, options.words
    from demilune.attacks import ATTACKS
    from demilune.experiment import VARIANTS
    from demilune.methods import ORIGIN

    tables: dict[str, Mapping[str, Any]] = {"attacks": ATTACKS, "data": VARIANTS["data"]}
    tables |= {f"{section}s": table for section, table in VARIANTS.items() if section != "data"}
    if kind == "presets":
        return list_presets(words)
    if kind not in tables:
        raise unknown("list", kind, [*tables, "presets"])
    width = max(len(name) for name in tables[kind])
    lines = [f"{name:<{width}}  {(cls.__doc__ or '').strip().splitlines()[0]}" for name, cls in tables[kind].items()]
    if kind == "methods":
        lines = [f"{line}  [{ORIGIN.get(name, 'of your own')}]" for line, name in zip(lines, tables[kind], strict=True)]
    if kind == "attacks" and not words:
        print("classes, for the library and for fields:")
    show_lines(kind, [line for line in lines if holds(line, words)], words)
    if kind == "attacks" and not words:
        from demilune.evaluate.suite import FORMS

        print("for `demilune evaluate --attacks`, comma-separated:", *FORMS, sep="\n")
    return 0


def list_presets(words: Sequence[str]) -> int:
    """Print the presets as a table."""
    from demilune.experiment import name_of, plain
    from demilune.presets import PRESETS

    lines = []
    for name, preset in PRESETS.items():
        run = preset.experiment
        length = f"{run.training.steps} steps" if run.training.steps else f"{run.training.epochs} epochs"
        usual = plain(type(run.model)())
        shape = [f"{k} {v}" for k, v in plain(run.model).items() if v != usual[k] or k in ("depth", "factor")]
        net = " ".join([name_of(run.model), *shape])
        move = "" if name_of(run.move) == "none" else f" + {name_of(run.move)}"
        ball = f"{run.ball.norm} {levels(run.ball.eps)}"
        line = (name, preset.paper, name_of(run.data), net, name_of(run.method) + move, ball)
        lines.append((*line, f"{name_of(run.schedule)}, {length}", preset.about))
    # Neither paper nor remark: they would make trades match what is compared with it.
    lines = [line for line in lines if holds(" ".join([line[0], *line[2:7]]), words)]
    head = ("preset", "paper", "data", "net", "method", "ball", "schedule", "from")
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)]
    show_lines("presets", rows if lines else [], words)
    return 0


def holds(line: str, words: Sequence[str]) -> bool:
    """Say whether a line holds every word as a whole: cifar10 is no part of cifar100, rat one of rat-rwp."""
    return all(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", line, re.IGNORECASE) for word in words)


def show_lines(kind: str, lines: Sequence[str], words: Sequence[str]) -> None:
    """Print lines; refuse where the words leave none."""
    if not lines:
        raise DemiluneError(f"no {kind} with {' '.join(words)}: demilune list {kind} shows all")
    print(*lines, sep="\n")


def show(argv: Sequence[str]) -> int:
    """``demilune show PRESET``."""
    parser = command_parser("show", "PRESET [--method.samples 4 …]", "Print an experiment as YAML, for --config.")
    _, experiment = read_experiment(parser, argv)
    if experiment is None:
        raise DemiluneError("no preset was named: demilune list presets shows them")
    import yaml

    from demilune.experiment import plain

    print(yaml.safe_dump(plain(experiment), sort_keys=False), end="")
    return 0


def data(argv: Sequence[str]) -> int:
    """``demilune data NAME``."""
    from demilune.data import CORRUPTED, DATA, SUPPLIES

    kinds: dict[str, Any] = {**DATA, **{f"{name}-c": kind for name, kind in CORRUPTED.items()}}
    parser = command_parser("data", "NAME [--download] [--root DIR]", "Say what there is of a data set, or fetch it.")
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(kinds)}")
    parser.add_argument("--download", action="store_true", help="fetch the official files, verify and unpack them")
    parser.add_argument("--url", metavar="URL", help="another place that serves the official files")
    parser.add_argument("--root", metavar="DIR", help="where it lies (default: DEMILUNE_DATA or ~/.cache/demilune)")
    options = parser.parse_args(argv)
    if options.name not in kinds:
        raise unknown("data set", options.name, kinds)
    if options.name not in SUPPLIES:
        if "download" in options:
            raise DemiluneError(f"{options.name} cannot be downloaded: {_origin(options.name)}")
        print(f"{options.name}: {_origin(options.name)}")
        return 0
    supply = SUPPLIES[options.name]
    source = kinds[options.name](**({"root": options.root} if "root" in options else {}))
    if "download" in options:
        from demilune.console import Line, console, size

        out = console()
        with Line(out, 0) as line:

            def progress(done: int, total: int) -> None:
                line.total = total
                if line.bar is not None and line.task is not None:
                    line.bar.update(line.task, total=total)
                line.move(done, f"{options.name}: {size(done)} of {size(total)}")

            where = supply.download(source, getattr(options, "url", ""), progress)
        out.print(f"verified and unpacked: {where}", soft_wrap=True)
    print(supply.status(source))
    return 0


def _origin(name: str) -> str:
    return "it comes with scikit-learn" if name == "digits" else "it is a folder of your own (--data.root DIR)"


def completion(argv: Sequence[str]) -> int:
    """``demilune completion SHELL``."""
    parser = command_parser("completion", "bash|zsh|fish", "Print a completion script for a shell to source.")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    shell = parser.parse_args(argv).shell
    from demilune.completion import script

    print(script(shell, list(COMMANDS)), end="")
    return 0


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a network, or go on training it"),
    "watch": (watch, "show how far a run is, from another terminal"),
    "stationary": (stationary, "train once per range of losses that perturb the weights, and compare (RWP)"),
    "evaluate": (evaluate, "attack a trained network, ours or anyone's, and tell who survived"),
    "doctor": (doctor, "say whether to believe a network's robust accuracy, and why"),
    "curves": (curves, "measure what the papers' figures show of a network"),
    "crosscheck": (crosscheck, "compare our attacks with those of other libraries, image by image"),
    "export": (export, "write a network as ONNX, torch.export or TorchScript, and check the file"),
    "hub": (hub, "give a run to the Hugging Face hub with a model card, or fetch one"),
    "label": (label, "give images pseudo-labels with a trained network, to train on besides (RST)"),
    "reproduce": (reproduce, "run a paper's table or figure, and set what comes out beside it"),
    "ledger": (ledger, "keep what was measured: list, record, run what is worth most, write the results"),
    "compare": (compare, "say which networks are better than others, by the same images"),
    "report": (report, "draw runs into one HTML file, with tables and figures"),
    "list": (list_, "list methods, moves, attacks, models, data, schedules, averages, presets"),
    "show": (show, "print a preset with all its fields"),
    "data": (data, "look at a data set, or download it"),
    "completion": (completion, "print a completion script for bash, zsh or fish"),
}
