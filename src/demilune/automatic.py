"""How the arithmetic of a run is done where nobody said: read off the device and the network.

Rules, not races: the same network on the same machine is given the same arithmetic, so that a run can be made again.
Only whether compiling pays is found out by trying, where it can pay at all. docs/performance.md has what was measured.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from demilune.core.random import Stream
from demilune.experiment import Experiment
from demilune.kernels import load
from demilune.methods import Batch
from demilune.models import create
from demilune.runtime import Runtime, compiles, hazard, low_precision
from demilune.train import LATE, step

PAYS = 4_000_000
"""Operations of a forward pass per image from which on bf16 pays: below, its conversions cost what it saves."""

LONG = 7200.0
"""Seconds a run must take for compiling to be tried: trying it takes minutes."""

WORTH = 1.1
"""How much faster compiled steps must be to be kept."""


class Choice(NamedTuple):
    """How the arithmetic is done, and for each field that was chosen, why."""

    runtime: Runtime
    reasons: Mapping[str, str]


def choose(
    experiment: Experiment, shape: tuple[int, int, int], classes: int, said: Collection[str], steps: int
) -> Choice:
    """Return an experiment's runtime with precision, layout and compiling chosen for this device.

    shape: channels, height and width of its images; classes: how many there are; said: the fields that stay as they
    are, being asked for or the paper's own; steps: how many the run has. Raises DemiluneError where the device is not
    there.
    """
    asked = experiment.runtime
    device = asked.start()
    found, reasons = dict[str, Any](), dict[str, str]()
    with torch.device("meta"):
        net = experiment.model.build(shape[0], classes).eval()
    size = operations(net, shape)
    if "precision" not in said:
        how = low_precision(device)
        if how is None:
            found["precision"], reasons["precision"] = "float32", "this device would emulate bf16"
        elif size < PAYS:
            found["precision"] = "float32"
            reasons["precision"] = f"{size / 1e6:.1f} million operations an image are too few for bf16 to pay"
        else:
            found["precision"], reasons["precision"] = "bf16", f"in hardware ({how}); verdicts are float32"
    if "channels_last" not in said:
        narrow = hazard(net, device)
        found["channels_last"] = narrow is None
        reasons["channels_last"] = narrow or "convolutions are faster, or as fast"
    if "convolution" not in said and found.get("precision", asked.precision) == "float32" and device.type == "cpu":
        why = winning(net, size)
        found["convolution"] = "plain" if why else "winograd"
        reasons["convolution"] = why or "a quarter of the multiplications, still in float32"
    chosen = replace(asked, **found)
    if "compile" not in said:
        gain, why = 0.0, "a CPU gains too little for the minutes it takes"
        if device.type == "cuda":
            gain, why = compiling(replace(experiment, runtime=chosen), shape, classes, steps, device)
        chosen, reasons["compile"] = replace(chosen, compile=gain > WORTH), why
    return Choice(chosen, reasons)


def winning(net: nn.Module, size: int) -> str | None:
    """Return why our own convolution gains a network of ``size`` operations nothing here; None where it does."""
    if size < PAYS:
        return f"{size / 1e6:.1f} million operations an image are too few to gain by another"
    kernels = load()
    if isinstance(kernels, str):
        return kernels
    if not any(isinstance(layer, nn.Conv2d) and fits(layer, kernels.lanes) for layer in net.modules()):
        return f"no 3×3 convolution of stride 1 and of multiples of {kernels.lanes} channels"
    return None


def fits(layer: nn.Conv2d, lanes: int) -> bool:
    """Say whether our own convolution, of vectors of so many channels, can take a layer's place."""
    form = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    channels = (layer.in_channels, layer.out_channels)
    return form == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and all(n % lanes == 0 and n >= 16 for n in channels)


def operations(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the operations of one image's forward pass, two per multiplication, of a network without storage."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops())


def compiling(
    experiment: Experiment, shape: tuple[int, int, int], classes: int, steps: int, device: torch.device
) -> tuple[float, str]:
    """Return how much faster a compiled training step is, and in words; 0.0 where it cannot be, or is not tried."""
    if not compiles():
        return 0.0, "no C++ compiler is found"
    plain = stepping(experiment, shape, classes, device)
    plain()
    seconds = plain()
    if seconds * steps < LONG:
        return 0.0, f"a run of {seconds * steps / 60:.0f} minutes is too short to try it"
    begun = time.monotonic()
    fused = replace(experiment, runtime=replace(experiment.runtime, compile=True))
    try:
        quick = stepping(fused, shape, classes, device)
        quick()
    except Exception as error:  # whatever a compiler may raise: the run goes on without it
        return 0.0, f"the network cannot be compiled ({type(error).__name__})"
    spent = time.monotonic() - begun
    gain = statistics.median([plain() / quick() for _ in range(5)])
    return gain, f"a step is {gain:.2f} times as fast, after {spent:.0f} s of compiling"


def stepping(
    experiment: Experiment, shape: tuple[int, int, int], classes: int, device: torch.device
) -> Callable[[], float]:
    """Return what takes one training step on random images with a network of its own, and returns its seconds."""
    runtime, training = experiment.runtime, experiment.training
    draw = Stream.of(0, "stepping", device=device)
    half, quarter = [0.5] * shape[0], [0.25] * shape[0]
    net = create(experiment.model, shape[0], classes, half, quarter, Stream.of(0, "net"))
    model = runtime.compiled(runtime.place(net, device)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=training.momentum)
    x = runtime.layout(draw.uniform("x", (training.batch, *shape)))
    y = draw.integers("y", (training.batch,), 0, classes)
    batch = Batch(x, y, classes, torch.arange(training.batch, device=device), LATE)
    rng = draw.images(batch.ids)
    autocast = functools.partial(runtime.autocast, device)

    def once() -> float:
        begun = time.perf_counter()
        step(
            model, optimizer, experiment.method, batch, experiment.ball, rng, training.parts, autocast, experiment.move
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    return once
