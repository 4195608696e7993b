"""The commands between demilune and other libraries: export, hub; and models that lie on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demilune.errors import DemiluneError
from demilune.options import place, scan

HUB = "hf:"
"""What the name of a model on the Hugging Face hub begins with."""


def downloaded(argv: Sequence[str]) -> list[str]:
    """Return a command's words with a model of the hub, hf:OWNER/NAME[@REVISION], as the folder it was fetched to.

    --home names that folder, and is taken out; nothing is fetched for --help.
    """
    from demilune.cli import FLAGS

    words = list(argv)
    loose, given = scan(words, FLAGS)
    if not loose or not loose[0].startswith(HUB) or "-h" in words or "--help" in words:
        return words
    from demilune.hub import fetch

    home = given.get("home", "")
    folder = fetch(loose[0].removeprefix(HUB), Path(home) if home else None)
    print(f"{loose[0]}: fetched to {folder}", flush=True)
    words[words.index(loose[0])] = str(folder)
    kept, skipping = list[str](), False
    for word in words:
        if not skipping and word != "--home" and not word.startswith("--home="):
            kept.append(word)
        skipping = word == "--home"
    return kept


def export(argv: Sequence[str]) -> int:
    """``demilune export MODEL FILE --to FORM``."""
    from demilune.cli import command_parser, joined, model_options, subjects

    parser = command_parser(
        "export",
        "MODEL FILE --to onnx|torch-export|torchscript [--overwrite]",
        "Write a network as one file that runs without demilune, its normalisation inside: images [N,C,H,W] in [0,1] "
        "in, logits out, any N. The file is run on random images and compared with the network before it is kept.",
    )
    argv = downloaded(argv)
    model_options(parser, argv, ("best", "last"))
    parser.add_argument("file", type=place, metavar="FILE", help="the file to write: .onnx, .pt2, or .ts (.jit, .pt)")
    parser.add_argument("--to", metavar="FORM", help="onnx, torch-export or torchscript")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")
    options = parser.parse_args(joined(argv))
    if "to" not in options:
        raise DemiluneError("--to is missing: name the form to write, as --to onnx, torch-export or torchscript")
    from demilune import __version__
    from demilune.evaluate.subject import network
    from demilune.export import check_place
    from demilune.export import export as written
    from demilune.runtime import enough_memory

    path, overwrite = Path(options.file), "overwrite" in options
    check_place(path, options.to, overwrite)
    (file,) = subjects(options)
    with enough_memory():
        found = network(file)
        about = {
            "demilune": __version__,
            "name": found.name,
            "network": found.described,
            "classes": list(found.classes),
            "shape": list(found.shape),
            "images": "[N,C,H,W] in [0,1]; normalisation lies inside",
        }
        done = written(found.model, found.shape, path, options.to, about, overwrite)
    told = done.note or (
        f"on {done.images} random images its logits differ from the network's by at most {done.difference:.1e}"
    )
    print(f"written: {path} ({done.form}, {done.size / 1e6:.1f} MB); {told}")
    return 0


def hub(argv: Sequence[str]) -> int:
    """``demilune hub push RUN REPO`` and ``demilune hub pull REPO``."""
    from demilune.cli import command_parser

    kinds = {"push": _push, "pull": _pull}
    if argv and argv[0] in kinds:
        return kinds[argv[0]](argv[1:])
    parser = command_parser(
        "hub",
        "push RUN OWNER/NAME --licence NAME [--dry-run DIR] | pull OWNER/NAME[@REVISION] [--home DIR]",
        "Give a run to the Hugging Face hub, with a model card made of its evaluations, or fetch one. "
        "'demilune hub push --help' and 'demilune hub pull --help' say more.",
    )
    parser.add_argument("what", choices=tuple(kinds), metavar="push|pull", help="push or pull")
    parser.parse_args(argv)
    return 0


def _push(argv: Sequence[str]) -> int:
    from demilune.cli import command_parser

    parser = command_parser(
        "hub push",
        "RUN OWNER/NAME --licence NAME [--dry-run DIR]",
        "Put a run's weights, its experiment, its evaluations and a model card made of these on the Hugging Face hub. "
        "Look at what would be there first: --dry-run.",
    )
    parser.add_argument("run", type=place, metavar="RUN", help="a run folder")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository on the hub; it is made where there is none")
    parser.add_argument("--licence", "--license", metavar="NAME", help="of the weights, as the hub calls it: mit, …")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="which of the run's (default best)")
    parser.add_argument("--dry-run", dest="dry_run", type=place, metavar="DIR", help="only write the folder there")
    parser.add_argument("--private", action="store_true", help="make a repository that only you see")
    options = parser.parse_args(argv)
    if "licence" not in options:
        raise DemiluneError(
            "--licence is missing: say under which licence others may use the weights, as --licence mit, cc-by-4.0, "
            "or other; what you trained on may leave no choice"
        )
    from demilune.hub import dressed, places, push

    def remark(line: str) -> None:
        print(f"look: {line}", flush=True)

    folder = Path(options.run)
    checkpoint = getattr(options, "checkpoint", "best")
    if "dry_run" in options:
        out = Path(options.dry_run)
        for name in dressed(folder, options.repo, options.licence, checkpoint, out):
            print(f"written: {out / name}")
        for line in places(out):
            remark(line)
        print("nothing was uploaded")
        return 0
    done = push(folder, options.repo, options.licence, checkpoint, "private" in options, remark)
    print(f"uploaded: {done}; `demilune hub pull {done}` fetches it")
    return 0


def _pull(argv: Sequence[str]) -> int:
    from demilune.cli import command_parser

    parser = command_parser(
        "hub pull", "OWNER/NAME[@REVISION] [--home DIR]", "Fetch a run that was put on the Hugging Face hub."
    )
    parser.add_argument("repo", metavar="OWNER/NAME[@REVISION]", help="the repository; a branch, a tag or a commit")
    parser.add_argument("--home", type=place, metavar="DIR", help="the folder to write (default: NAME-REVISION)")
    options = parser.parse_args(argv)
    from demilune.hub import fetch

    home = Path(options.home) if "home" in options else None
    print(f"fetched: {fetch(options.repo.removeprefix(HUB), home)}")
    return 0
