"""AutoAttack standard, ours against the authors' package: the same images, verdicts, passes and seconds.

    python -m benchmarks.autoattack MODEL… [--limit 200] [--seeds 3] [--batch 200] [--out FILE]

MODEL is what `demilune evaluate` takes, declared before. Their package is run once per seed, ours as often, in turns;
the accuracies of its seeds are the spread that ours must lie in. Verdicts on both sides are float32 forward passes on
the images returned. Seconds are this machine's: run nothing else beside. `python -m benchmarks autoattack` measures
the same with levers off and on, as ratios.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import machine, ours
from benchmarks.peers import quiet
from benchmarks.rounds import Figure, Found, Row, Say, figure, wait
from benchmarks.setting import Setting
from demilune.attacks import correct, frozen
from demilune.console import duration
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate.subject import Subject
from demilune.runs import write_json

ARMS: dict[str, ours.Arm] = {"demilune, levers off": "off", "demilune, levers on": "on"}
THEIRS = "pyautoattack"


class Once(NamedTuple):
    """One run: which images are right after it, bool [n], seconds, and images run forward and back."""

    right: torch.Tensor
    seconds: float
    forwards: float
    gradients: float


def theirs(subject: Subject, split: Split, seed: int, batch: int) -> Once:
    """Run the authors' package on a network kept as NCHW."""
    from pyautoattack import AutoAttack  # type: ignore[import-untyped]

    x, y = split.pixels(slice(None)), split.labels
    model, norm = ours.counting(subject.model), {"linf": "Linf", "l2": "L2"}[subject.ball.norm]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        with quiet(), torch.random.fork_rng(), frozen(model, "eval"):
            begun = time.perf_counter()
            attack = AutoAttack(
                model, norm=norm, eps=subject.ball.eps, seed=seed, device=str(subject.device), version="standard"
            )
            found = attack.run_standard_evaluation(x, y, batch_size=batch)
            points = found[0] if isinstance(found, tuple) else found
            wait(subject.device)
            seconds = time.perf_counter() - begun
    finally:
        logging.getLogger().setLevel(level)
    parts = zip(x.split(batch), points.to(x).split(batch), y.split(batch), strict=True)
    right = torch.cat([correct(subject.model, a, c) & correct(subject.model, b, c) for a, b, c in parts])
    return Once(right, seconds, model.forwards, model.gradients)


def mine(subject: Subject, split: Split, seed: int, batch: int, names: Sequence[str] = ("autoattack",)) -> Once:
    """Run ours, as the subject's runtime says."""
    begun, classes = time.perf_counter(), len(subject.dataset.classes)
    found = ours.judge(subject.model, split, names, subject.runtime, batch, subject.ball, seed, classes)
    wait(subject.device)
    seconds, n = time.perf_counter() - begun, len(split)
    right = torch.from_numpy(found.images[f"right.{names[0]}"]).to(subject.device)
    return Once(right, seconds, found.rows[-1].forwards * n, found.rows[-1].gradients * n)


def run(setting: Setting, say: Say) -> Found:
    """Measure on the models of the setting, one seed a round."""
    try:
        with quiet():
            import pyautoattack  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        raise DemiluneError(f"pyautoattack does not import ({error}): pip install 'demilune[bench]'") from None
    rows, figures, notes, details = list[Row](), list[Figure](), list[str](), dict[str, Any]()
    for kind in ("robust", "weak"):
        path = getattr(setting, kind)
        if not path:
            notes.append(f"no {kind} model was named")
            continue
        got = _model(kind, Path(path), setting, say)
        rows, figures, notes = [*rows, *got.rows], [*figures, *got.figures], [*notes, *got.notes]
        details[kind] = got.details
    return Found(tuple(rows), tuple(figures), tuple(notes), details)


def _model(kind: str, path: Path, setting: Setting, say: Say) -> Found:
    subjects = {name: ours.subject(path, ours.runtime(setting, arm)) for name, arm in ARMS.items()}
    plain = subjects["demilune, levers off"]
    split = plain.dataset.sample("test", setting.limit).to(plain.device)
    # Not all of it, which would take as long again: the kernels are chosen, and whatever is compiled has been.
    for subject in subjects.values():
        mine(subject, split, 0, setting.batch, ("pgd1",))
    parts = zip(split.pixels(slice(None)).split(setting.batch), split.labels.split(setting.batch), strict=True)
    if not any(bool(correct(plain.model, *part).any()) for part in parts):
        raise DemiluneError(f"{path}: none of {len(split)} images is classified correctly: there is nothing to attack")
    names, runs = [THEIRS, *ARMS], dict[str, list[Once]]()
    begun = time.perf_counter()
    for seed in range(setting.rounds):
        turn = seed % len(names)
        for name in (*names[turn:], *names[:turn]):
            one = (
                theirs(plain, split, seed, setting.batch)
                if name == THEIRS
                else mine(subjects[name], split, seed, setting.batch)
            )
            runs.setdefault(name, []).append(one)
            say(f"  {kind}, seed {seed}, {name}: {_told(one)}")
        left = (time.perf_counter() - begun) / (seed + 1) * (setting.rounds - seed - 1)
        say(f"  {kind}: seed {seed + 1} of {setting.rounds}" + (f", {duration(left)} left" if left else ""))
    rows, figures, notes = list[Row](), list[Figure](), list[str]()
    for name in names:
        seconds = tuple(one.seconds for one in runs[name])
        rows.append(Row(f"{kind}: {name}", seconds, len(split) / statistics.median(seconds), "images/s"))
    for name, arm in ARMS.items():
        faster = [a.seconds / b.seconds for a, b in zip(runs[THEIRS], runs[name], strict=True)]
        fewer = [a.forwards / b.forwards for a, b in zip(runs[THEIRS], runs[name], strict=True)]
        key = f"autoattack.{kind}" + ("" if arm == "on" else ".off")
        text = f"AutoAttack on {plain.name} ({kind}), {name}, against {THEIRS}"
        figures.append(figure(key, text, faster, "×", setting.device))
        if arm == "on":
            figures.append(figure(f"{key}.passes", f"{text}: the search's forward passes", fewer, "×", setting.device))
        apart = [int((a.right != b.right).sum()) for a, b in zip(runs[THEIRS], runs[name], strict=True)]
        notes.append(f"{plain.name}, {name}: verdicts that differ from {THEIRS}'s, by seed: {_list(apart)}")
    notes += [
        f"{plain.name}, {name}: robust accuracy by seed {_list(f'{100 * _accuracy(one):.2f}' for one in taken)} %"
        for name, taken in runs.items()
    ]
    notes.append(
        f"{plain.name}: {len(split)} images, {plain.ball.norm} {plain.ball.eps:g}; a round is a seed; the round that "
        "is not counted was PGD-1 of ours alone"
    )
    details = {
        name: [one._asdict() | {"right": one.right.nonzero().flatten().tolist()} for one in taken]
        for name, taken in runs.items()
    }
    return Found(tuple(rows), tuple(figures), tuple(notes), details)


def _list(values: Any) -> str:
    return ", ".join(map(str, values))


def _accuracy(one: Once) -> float:
    return float(one.right.float().mean())


def _told(one: Once) -> str:
    return (
        f"{100 * _accuracy(one):.2f} %, {one.forwards:.0f} forwards, {one.gradients:.0f} gradients, {one.seconds:.1f} s"
    )


def main() -> None:
    """Run both on models named, each as its own runtime says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = []
    for path in options.models:
        subject = ours.subject(path, None)
        split = subject.dataset.sample("test", options.limit).to(subject.device)
        print(f"{subject.name}: {len(split)} images, {subject.ball.norm} {subject.ball.eps:g}")
        mine(subject, split, 0, options.batch, ("pgd1",))  # the kernels are chosen before anything is timed
        rows = []
        for seed in range(options.seeds):
            for who, runner in (("ours", mine), ("theirs", theirs)):
                one = runner(subject, split, seed, options.batch)
                print(f"  {who} seed {seed}: {_told(one)}")
                rows.append(
                    {"who": who, "seed": seed, "accuracy": _accuracy(one)}
                    | one._asdict()
                    | {"right": one.right.nonzero().flatten().tolist()}
                )
        about = {"model": subject.name, "n": len(split), "eps": subject.ball.eps, "norm": subject.ball.norm}
        found.append(about | {"rows": rows})
    if options.out:
        write_json(
            options.out,
            {"found": found, "environment": machine.about(subject.device, sys.argv[1:], "benchmarks.autoattack")},
        )


if __name__ == "__main__":
    main()
