"""How long a cell takes here: passes counted, and the pace at which this machine makes them, measured once per network.

An estimate, and an upper one for attacks: images that fall early cost less. Training updates the pace with what it
really took.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from demilune.attacks import KLPGD, PGD, frozen
from demilune.core.random import Stream
from demilune.evaluate.curves import IMAGES as CURVE_IMAGES
from demilune.evaluate.suite import Setting, suite
from demilune.experiment import Experiment, name_of, plain
from demilune.methods import ADT, LRAT, LRATRAT, RAT, Standard
from demilune.models import create
from demilune.moves import AWP, RWP
from demilune.runs import write_json
from demilune.runtime import Runtime, hardware
from demilune.suites.base import TRAIN_IMAGES, Cell
from demilune.suites.probe import ATTACKS
from demilune.suites.record import classes_of, images_asked

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "imagenette": (3, 128, 128)}
"""Shapes of images that are not 3×32×32."""

STANDING = 0.6
"""The share of images that an attack still works on, of those it begins with: a rule of thumb."""

SURVEYS = {
    "direction": 31, "landscape": 141, "landscape-weights": 121 * 21, "curvature": 400, "curvature-weights": 200,
}  # fmt: skip
"""Passes per image of surveys, about."""


class Estimate(NamedTuple):
    """Seconds that training and measuring take, about."""

    training: float
    measuring: float


def passes_per_step(experiment: Experiment) -> float:
    """Return the passes per image of a training step, in forward passes (docs/methods.md).

    A gradient to the input counts 2 in all, a full backward pass 2 more than its forward pass.
    """
    method, move = experiment.method, experiment.move
    inner = method.rat if isinstance(method, LRATRAT) else method
    attack = getattr(inner, "attack", None)
    steps = attack.steps if isinstance(attack, PGD | KLPGD) else 10
    walked = 2.0 * steps + (1.0 if isinstance(attack, KLPGD) else 0.0)
    rows = {"trades": 2, "mart": 2, "lrat": 2, "lrat_trades": 2, "taylor_code": 2, "taylor_exact": 2}
    count = float(rows.get(name_of(method), 1))
    if isinstance(method, RAT):
        count = method.samples
    elif isinstance(method, LRATRAT):
        count = method.rat.samples + 1
    elif isinstance(method, LRAT) and method.attacks == "both":
        walked, count = 2 * walked, 3.0
    elif isinstance(method, ADT):
        walked = 70.0
    elif isinstance(method, Standard):
        walked = 0.0
    again = 1 if isinstance(move, AWP) else move.steps if isinstance(move, RWP) else 0
    return walked + 3.0 * count * (1 + again)


def training_passes(experiment: Experiment) -> float:
    """Return the passes of a whole training, validations and monitored images included."""
    training, data = experiment.training, name_of(experiment.data)
    held = getattr(experiment.data, "validation", 1000)
    images = getattr(experiment.data, "limit", 0) or TRAIN_IMAGES[data] - held
    steps, per_epoch = training.lengths(images, experiment.data.extra.share if experiment.data.extra.file else 0.0)
    validations = max(1, steps // (per_epoch * training.validate_every))
    watched = held + 2 * training.monitor
    checked = validations * watched * (2 * training.validation.steps + 2)
    return steps * training.batch * passes_per_step(experiment) + checked


def measuring_passes(cell: Cell) -> float:
    """Return the passes of what a cell asks, at most for what is no attack, about for attacks."""
    ask, experiment = cell.ask, cell.experiment
    if ask.kind == "training":
        return 0.0
    if ask.kind == "pace":
        return 12.0 * experiment.training.batch * (passes_per_step(experiment) + 23.0)
    if ask.kind == "plane":
        return 3_000.0
    count = images_asked(cell)
    kind = ask.names[0]
    if ask.kind == "probe" and kind != "margins":
        return 60.0 * count
    if ask.kind == "curve" and kind in SURVEYS:
        return float(SURVEYS[kind] * count)
    if kind == "corruptions":
        return 75.0 * count
    if kind == "gaps":
        return 22.0 * (count + min(TRAIN_IMAGES[name_of(experiment.data)], CURVE_IMAGES["gaps"]))
    setting = Setting(0.25, experiment.ball.norm, classes_of(cell))
    budget = ("budget_pgd10", "budget_margin50", "budget_apgd_ce")
    names = (
        ask.names
        if ask.kind == "evaluation"
        else ATTACKS
        if ask.kind == "probe"
        else budget
        if kind == "budgets"
        else ("iterations100",)
    )
    return sum(
        sum(one.cost) * min(one.most or count, count) * (1.0 if one.everywhere else STANDING)
        for one in suite(names, setting)
    )


# --- the pace of this machine ----------------------------------------------------------------------------------------


def store() -> Path:
    """Return the file that keeps this machine's paces: in $DEMILUNE_CACHE, else in ~/.cache/demilune."""
    return Path(os.environ.get("DEMILUNE_CACHE", "") or "~/.cache/demilune").expanduser() / "pace.json"


def kept() -> dict[str, float]:
    """Return the paces so far; what cannot be read is measured anew."""
    try:
        value = json.loads(store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: float(v) for k, v in value.items() if isinstance(v, int | float)} if isinstance(value, dict) else {}


def keep(paces: Mapping[str, float]) -> None:
    """Add to the paces; a folder that cannot be written costs nothing but measuring again."""
    with contextlib.suppress(Exception):
        write_json(store(), {**kept(), **paces})


def name_of_pace(experiment: Experiment, device: torch.device) -> str:
    """Return what a pace depends on: network, images, device, number of threads, precision."""
    shape = "x".join(map(str, SHAPES.get(name_of(experiment.data), (3, 32, 32))))
    net = " ".join(f"{k}={v}" for k, v in plain(experiment.model).items())
    runtime = experiment.runtime
    layout = ", channels last" if runtime.channels_last else ""
    return f"{net}, {shape}, {hardware(device)}, {runtime.precision}{layout}"


def pace(experiment: Experiment, paces: dict[str, float]) -> float:
    """Return the seconds of a forward pass of one image; measured in a moment where it is not known."""
    device = experiment.runtime.start()
    name = name_of_pace(experiment, device)
    if name not in paces:
        paces[name] = probe(experiment, device)
        keep({name: paces[name]})
    return paces[name]


def probe(experiment: Experiment, device: torch.device) -> float:
    """Measure a gradient to the input on a small batch, and return half of its seconds per image."""
    shape = SHAPES.get(name_of(experiment.data), (3, 32, 32))
    classes = 100 if name_of(experiment.data) == "cifar100" else 10
    means = [0.5] * shape[0]
    runtime: Runtime = experiment.runtime
    model = runtime.place(create(experiment.model, shape[0], classes, means, means, Stream.of(0)), device).eval()
    count = 128 if device.type == "cuda" or shape[1] < 32 else 4
    x = runtime.layout(Stream.of(0, device=device).uniform("x", (count, *shape)))
    taken = []
    with frozen(model, "eval"), runtime.autocast(device):
        for _ in range(3):
            leaf, begun = x.detach().requires_grad_(), time.perf_counter()
            float(torch.autograd.grad(model(leaf).float().sum(), leaf)[0].sum())  # waits for the device
            taken.append(time.perf_counter() - begun)
            if taken[-1] > 5.0:
                break
    return min(taken) / count / 2.0


def learn(experiment: Experiment, seconds: float) -> None:
    """Keep the pace that a whole training had: it is what the next will have."""
    passes = training_passes(experiment)
    if seconds > 5.0 and passes > 0:
        keep({name_of_pace(experiment, experiment.runtime.start()): seconds / passes})


def estimate(cell: Cell, paces: dict[str, float]) -> Estimate:
    """Return how long a cell takes; training is that of its network, which other cells may share."""
    each = pace(cell.experiment, paces)
    needs = 0.0 if cell.ask.kind == "pace" else training_passes(cell.experiment)
    return Estimate(needs * each, measuring_passes(cell) * each)


__all__ = ["Estimate", "estimate", "learn", "measuring_passes", "pace", "passes_per_step", "training_passes"]
