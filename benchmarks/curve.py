"""The accuracy-over-iterations curve of 101 points: from one trajectory, and from an attack of its own for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks import ours
from benchmarks.rounds import Contestant, Found, Say, figure, rows, timed
from benchmarks.setting import Setting
from demilune.evaluate.table import Findings

LAST = 100
"""Steps of the longest attack; the curve has a point for each K from 0."""

QUICK = (1, 10, 20)
"""The attacks from which the others' time is extrapolated where it is to be quick."""


def run(setting: Setting, say: Say) -> Found:
    """Measure both with all levers that keep float32, since verdicts and hence curves are float32."""
    how = ours.runtime(setting, "float32")
    net, split = ours.network(setting), ours.dataset(setting, setting.images).train
    # Labelled as the net sees them: the curve leaves out images that are wrong when clean, the attacks do not.
    with torch.no_grad():
        split = replace(split, labels=net(split.pixels(slice(None))).argmax(dim=1))
    chosen = QUICK if setting.quick else tuple(range(1, LAST + 1))

    def judged(*names: str) -> Callable[[], Any]:
        return lambda: ours.judge(net, split, names, how, setting.images)

    contestants = [Contestant("one trajectory", judged(f"iterations{LAST}"))]
    if setting.quick:
        contestants += [Contestant(f"PGD-{steps}", judged(f"pgd{steps}")) for steps in chosen]
    else:
        contestants.append(Contestant("101 attacks", judged(*(f"pgd{steps}" for steps in chosen))))
    found = timed(contestants, setting.rounds, setting.place, say)

    curve, apart = found.first["one trajectory"].images, 0
    for steps in chosen:
        theirs = found.first[f"PGD-{steps}" if setting.quick else "101 attacks"].images
        apart += int((theirs[f"right.pgd{steps}"] != curve[f"right.iterations.{steps}"]).sum())
    notes = [
        f"{setting.images} images, levers on but in float32, each K's attack and verdict run by the evaluation itself; "
        f"point K = 0 is the clean images on both sides",
        f"{apart} of {len(chosen) * setting.images} verdicts differ between the curve and the attacks of their own",
    ]
    seconds, whole, label = found.seconds, found.seconds.get("101 attacks", []), "101 attacks / one trajectory"
    if setting.quick:
        whole = [extrapolated(taken) for taken in zip(*(seconds[f"PGD-{steps}"] for steps in chosen), strict=True)]
        label += ", EXTRAPOLATED"
        notes.append(
            f"EXTRAPOLATED from PGD of {', '.join(map(str, chosen))} steps, by a line through their seconds: the 101 "
            "attacks were not run"
        )
    passes = {name: _passes(one) for name, one in found.first.items()}
    due = {"one trajectory": LAST, "101 attacks": sum(chosen), **{f"PGD-{steps}": steps for steps in chosen}}
    for name, (_, gradients) in passes.items():
        if gradients != due[name]:
            raise AssertionError(f"{name} took {gradients:g} gradients of each image, and not {due[name]}")
    cost = {name: f"{f:g} forward, {g:g} backward" for name, (f, g) in passes.items()}
    made = rows(seconds, setting.images, "images/s", cost)
    ratios = [a / b for a, b in zip(whole, seconds["one trajectory"], strict=True)]
    key = "curve.extrapolated" if setting.quick else "curve"
    figures = (figure(key, label, ratios, "×", setting.device),)
    return Found(tuple(made), figures, tuple(notes), {"apart": apart, "attacks": list(chosen), "whole": whole})


def extrapolated(taken: tuple[float, ...]) -> float:
    """Return the seconds of the attacks of 0 … 100 steps, from those of ``QUICK`` steps, each an evaluation of its own.

    What does not grow with the steps is counted once, as one evaluation of all has it: the verdicts' own passes, one
    for each attack, are left out, which is to our disadvantage.
    """
    slope, base = statistics.linear_regression(QUICK, taken)
    return max(0.0, base) + slope * LAST * (LAST + 1) / 2


def _passes(found: Findings) -> tuple[float, float]:
    """Return how many passes forward and back an evaluation's attacks took of each image."""
    costs = {row.attack: (row.forwards, row.gradients) for row in found.rows if row.name not in ("clean", "worst")}
    forwards, gradients = (sum(column) for column in zip(*costs.values(), strict=True))
    return forwards, gradients
