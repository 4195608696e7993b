"""How long a command takes to begin: ``demilune --help``, and ``demilune report`` on a small run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.rounds import Contestant, Found, Say, figure, rows, timed
from benchmarks.setting import Setting
from demilune.errors import DemiluneError

COMMAND = (sys.executable, "-m", "demilune")


def run(setting: Setting, say: Say) -> Found:
    """Make a small run and measure processes of their own, from their start to their end."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        made = room / "run"
        say("  a small run to report on")
        tiny = ["--training.steps", "2", "--model.width", "4", "--runtime.threads", str(setting.threads)]
        _call(*COMMAND, "train", "digits-sat", "--out", str(made), *tiny)
        _call(*COMMAND, "evaluate", str(made), "--attacks", "fgsm", "--limit", "20")
        contestants = [
            Contestant("demilune --help", _caller(*COMMAND, "--help")),
            Contestant("demilune report", _caller(*COMMAND, "report", str(made), "--out", str(room / "report"))),
            Contestant("python alone", _caller(sys.executable, "-c", "pass")),
        ]
        found = timed(contestants, setting.rounds, torch.device("cpu"), say)
    labels = {"demilune --help": "startup.help", "demilune report": "startup.report", "python alone": "startup.python"}
    figures = [figure(key, name, found.seconds[name], "s", setting.device) for name, key in labels.items()]
    notes = ("wall seconds of a process of its own, its files read before (the round that is not counted)",)
    return Found(tuple(rows(found.seconds, 1, "")), tuple(figures), notes)


def _caller(*words: str) -> Callable[[], None]:
    return lambda: _call(*words)


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["it said nothing"]
        raise DemiluneError(f"{' '.join(words)} ended with code {done.returncode}: {told[-1]}")
