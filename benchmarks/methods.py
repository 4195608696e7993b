"""Seconds per training step of every method and composition, relative to SAT, all measured in turn in one run.

    python -m benchmarks.methods --config docs/results/cifar10-w8.yaml --out docs/results/cifar10-w8/steps.json

The net, the batch and the runtime are the configuration's; images are random, since a step's cost does not depend on
them. Each round takes one step of every row; the first round is not counted; a row's time is the median of the others,
its ratio the median of its ratios to SAT's step of the same round.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import machine
from demilune.cli import command_parser, read_experiment
from demilune.core.random import Stream
from demilune.methods import Batch
from demilune.models import create
from demilune.presets import PRESETS
from demilune.runs import environment, write_json
from demilune.runtime import hardware
from demilune.train import step

SET = "s30-cifar10-"
ROWS = [name.removeprefix(SET) for name in PRESETS if name.startswith(SET)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a configuration of net, batch and runtime")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"comma-separated, of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are counted for each row (default 5)")
    parser.add_argument("--out", help="the JSON to write")
    options = parser.parse_args()
    rows = ["sat", *(row for row in options.rows.split(",") if row != "sat")]

    words = ["--config", options.config, "--method", "sat"]
    _, run = read_experiment(command_parser("train", "", ""), words)
    assert run is not None
    device = run.runtime.start()
    channels, side = (1, 8) if run.data.__class__.__name__ == "Digits" else (3, 32)
    draw = Stream.of(0, "benchmark", device=device)
    count = run.training.batch
    x = run.runtime.layout(draw.uniform("x", (count, channels, side, side)))
    batch = Batch(x, draw.integers("y", (count,), 0, 10), 10, torch.arange(count, device=device), 100)
    autocast = functools.partial(run.runtime.autocast, device)

    setups = {}
    for row in rows:
        net = create(run.model, channels, 10, [0.5] * channels, [0.25] * channels, Stream.of(0, "net"))
        model = run.runtime.place(net, device).train()
        setups[row] = model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), PRESETS[SET + row].experiment
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for number in range(options.rounds + 1):
        for row, (model, optimizer, preset) in setups.items():
            begun = time.perf_counter()
            step(model, optimizer, preset.method, batch, run.ball, draw.sub(number), 1, autocast, preset.move)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[row].append(time.perf_counter() - begun)
        print(f"round {number} of {options.rounds}", flush=True)

    ratios = {row: [t / sat for t, sat in zip(taken, seconds["sat"], strict=True)] for row, taken in seconds.items()}
    print(f"{'row':<14}{'s/step':>8}{'/ SAT':>8}   from … to, {hardware(device)}, n = {options.rounds}")
    for row in rows:
        median = statistics.median(ratios[row])
        spread = f"{min(ratios[row]):.2f} … {max(ratios[row]):.2f}"
        print(f"{row:<14}{statistics.median(seconds[row]):>8.3f}{median:>8.2f}   {spread}")
    if options.out:
        found = {row: {"seconds": seconds[row], "ratio": statistics.median(ratios[row])} for row in rows}
        about = environment() | {"device": hardware(device), "config": Path(options.config).read_text()}
        about |= {"command": machine.command("benchmarks.methods", sys.argv[1:])}
        write_json(Path(options.out), {"environment": about, "rounds": options.rounds, "rows": found})


if __name__ == "__main__":
    main()
