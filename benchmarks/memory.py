"""Peak memory of a training step, each contestant in a process of its own.

On a CPU the peak of the process's resident memory less what it held after all imports; on a GPU the most that torch
had allocated. Workers of a loader are processes of their own and are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.rounds import Found, Row, Say, figure
from benchmarks.setting import Setting
from benchmarks.steps import MAKERS
from demilune.errors import DemiluneError

TAKEN = 2
"""Steps that are taken: the momentum exists from the second on."""


def run(setting: Setting, say: Say) -> Found:
    """Measure everybody, in turns, in as many processes as there are rounds."""
    peaks: dict[str, list[int]] = {name: [] for name in MAKERS}
    for number in range(setting.rounds):
        turn = number % len(MAKERS)
        for name in (*list(MAKERS)[turn:], *list(MAKERS)[:turn]):
            peaks[name].append(_asked(name, setting))
        say(f"  round {number + 1} of {setting.rounds}")
    figures = []
    for name in ("SAT", "RAT"):
        for arm in ("on", "off"):
            taken = zip(peaks[f"{name}, demilune, levers {arm}"], peaks[f"{name}, reference"], strict=True)
            key = f"memory.{name.lower()}" + ("" if arm == "on" else ".off")
            text = f"peak memory of a {name} step, levers {arm}, against the reference loop's"
            figures.append(figure(key, text, [ours / theirs for ours, theirs in taken], "×", setting.device))
    rows = tuple(Row(name, (), sorted(taken)[len(taken) // 2], "bytes") for name, taken in peaks.items())
    what = "allocated by torch on the GPU" if setting.device != "cpu" else "resident, less what was so after imports"
    notes = (f"bytes {what}; {TAKEN} steps of {setting.batch} images in a fresh process for each contestant and round",)
    return Found(rows, tuple(figures), notes, {"bytes": peaks})


def _asked(name: str, setting: Setting) -> int:
    """Return a contestant's peak in bytes, from a process of its own."""
    words = [sys.executable, "-m", "benchmarks.memory", name, json.dumps(setting.to_json())]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=dict(os.environ))
    try:
        return int(json.loads(done.stdout.strip().splitlines()[-1])["peak"])
    except (ValueError, LookupError):
        told = (done.stderr.strip() or f"code {done.returncode}").splitlines()
        raise DemiluneError(f"the process that measures the memory of {name} failed: {told[-1]}") from None


def main() -> None:
    """Measure one contestant; everything is imported by now."""
    name, setting = sys.argv[1], Setting.from_json(json.loads(sys.argv[2]))
    torch.set_num_threads(setting.threads)
    cuda = setting.place.type == "cuda"
    before = 0 if cuda else machine.resident("VmRSS")
    step = MAKERS[name](setting)
    for _ in range(TAKEN):
        step()
    peak = torch.cuda.max_memory_allocated(setting.place) if cuda else machine.resident("VmHWM")
    print(json.dumps({"peak": peak - before, "before": before}))


if __name__ == "__main__":
    main()
