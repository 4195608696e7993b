"""AutoAttack standard, ours against the authors' package: the same images, verdicts, passes and seconds.

    python -m benchmarks.autoattack MODEL… [--limit 200] [--seeds 3] [--batch 200] [--out FILE]

MODEL is what `demilune evaluate` takes, declared before. Their package is run once per seed, ours as often, in turns;
the accuracies of its seeds are the spread that ours must lie in. Verdicts on both sides are float32 forward passes on
the images returned. Seconds are this machine's: run nothing else beside.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack

from demilune.attacks import correct, frozen
from demilune.cli import checkpoint_files
from demilune.core.random import Stream
from demilune.evaluate.counted import Counted
from demilune.evaluate.subject import Subject, is_foreign, opened
from demilune.evaluate.suite import Setting, suite
from demilune.evaluate.table import evaluate
from demilune.runs import environment


class Counting(torch.nn.Module):
    """A network that counts, as a module, which the package wants."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.counted = net, Counted(net)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.counted(x)


def theirs(subject: Subject, x: torch.Tensor, y: torch.Tensor, seed: int, batch: int) -> dict[str, Any]:
    model = Counting(subject.model).eval()
    norm = {"linf": "Linf", "l2": "L2"}[subject.ball.norm]
    logging.getLogger().setLevel(logging.CRITICAL)
    begun = time.perf_counter()
    with torch.random.fork_rng(), frozen(model, "eval"):
        attack = AutoAttack(model, norm=norm, eps=subject.ball.eps, seed=seed, device="cpu", version="standard")
        found = attack.run_standard_evaluation(x, y, batch_size=batch)
        points = found[0] if isinstance(found, tuple) else found
    seconds = time.perf_counter() - begun
    right = correct(subject.model, x, y) & correct(subject.model, points, y)
    return _row("theirs", seed, right, seconds, model.counted.forwards, model.counted.gradients)


def ours(subject: Subject, split: Any, seed: int, batch: int) -> dict[str, Any]:
    setting = Setting(norm=subject.ball.norm, classes=len(subject.dataset.classes))
    begun = time.perf_counter()
    rng, layout = Stream.of(seed, "evaluation"), subject.runtime.layout
    found = evaluate(
        subject.model, split, subject.ball, suite(["autoattack"], setting), rng, layout=layout, batch=batch
    )
    seconds, n = time.perf_counter() - begun, len(split)
    forwards, gradients = found.rows[-1].forwards * n, found.rows[-1].gradients * n
    return _row("ours", seed, torch.from_numpy(found.images["right.autoattack"]), seconds, forwards, gradients)


def _row(who: str, seed: int, right: torch.Tensor, seconds: float, forwards: float, gradients: float) -> dict[str, Any]:
    accuracy = float(right.float().mean())
    print(
        f"  {who} seed {seed}: {100 * accuracy:.2f} %, {forwards:.0f} forwards, {gradients:.0f} gradients, "
        f"{seconds:.1f} s"
    )
    told = {"who": who, "seed": seed, "accuracy": accuracy, "forwards": forwards, "gradients": gradients}
    return told | {"seconds": seconds, "right": right.nonzero().flatten().tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
        subject = opened(path if is_foreign(path) else checkpoint_files(path, "best")[0], {})
        split = subject.dataset.sample("test", options.limit)
        x = subject.runtime.layout(split.pixels(slice(None)))
        print(f"{subject.name}: {len(split)} images, {subject.ball.norm} {subject.ball.eps:g}")
        rows = []
        for seed in range(options.seeds):
            rows += [ours(subject, split, seed, options.batch), theirs(subject, x, split.labels, seed, options.batch)]
        found.append(
            {"model": subject.name, "n": len(split), "eps": subject.ball.eps, "norm": subject.ball.norm, "rows": rows}
        )
    about = environment() | {"threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d")}
    if options.out:
        options.out.write_text(json.dumps({"found": found, "environment": about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
