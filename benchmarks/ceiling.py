"""How near the machine's ceiling it is: a large matrix product, and the net's own convolutions alone, back to back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import flops, ours
from benchmarks.rounds import Contestant, Figure, Found, Row, Say, figure, ratio, timed
from benchmarks.setting import CHANNELS, STEPS, Setting

GIGA = 1e9


def run(setting: Setting, say: Say) -> Found:
    """Measure matrix product, convolutions, PGD-10 and SAT step in turns, with levers off and on."""
    net = ours.network(setting)
    layers = flops.layers(net, CHANNELS, setting.side)
    forward = sum(layer.flops for layer in layers)
    formula = flops.by_hand(setting.architecture(), CHANNELS, setting.side)
    if formula is not None and formula != forward:
        raise AssertionError(f"the formula says {formula} operations, the network's own layers {forward}")
    attack = setting.batch * flops.attack(forward, STEPS)
    whole = setting.batch * flops.sat(forward, layers[0].flops, STEPS)
    size = (1024 if setting.quick else 2048) if setting.device == "cpu" else 8192
    x, y = ours.images(setting, setting.batch)

    contestants, work = list[Contestant](), dict[str, float]()

    def enter(name: str, call: Callable[[], object], operations: float) -> None:
        contestants.append(Contestant(name, call))
        work[name] = operations

    arms: list[ours.Arm] = [arm for arm in ours.arms(setting) if arm != "float32"]
    types = {arm: torch.bfloat16 if ours.runtime(setting, arm).precision == "bf16" else torch.float32 for arm in arms}
    for kind in dict.fromkeys(types.values()):
        enter(f"matrix product, {_name(kind)}", product(setting, size, kind), 2 * size**3)
    for arm in arms:
        enter(f"convolutions of a SAT step, levers {arm}", convolutions(setting, arm, layers, types[arm]), whole)
        enter(f"SAT step, levers {arm}", ours.Trainer(setting, arm, "sat"), whole)
        enter(f"PGD-10, levers {arm}", ours.pgd(setting, arm, x, y), attack)
    found = timed(contestants, setting.rounds, setting.place, say, least=setting.least)

    seconds, figures = found.seconds, list[Figure]()
    for arm in reversed(arms):
        step, alone = seconds[f"SAT step, levers {arm}"], seconds[f"convolutions of a SAT step, levers {arm}"]
        key = "ceiling.share" if arm == "on" else f"ceiling.share.{arm}"
        text = f"convolutions alone / SAT step, levers {arm}"
        figures.append(figure(key, text, ratio(alone, step), "share", setting.device))
        top = seconds[f"matrix product, {_name(types[arm])}"]
        for name, told in (
            ("convolutions of a SAT step", "convolutions alone"), ("SAT step", "SAT step"), ("PGD-10", "PGD-10")
        ):  # fmt: skip
            taken = seconds[f"{name}, levers {arm}"]
            reached = [work[f"{name}, levers {arm}"] / a / (2 * size**3 / b) for a, b in zip(taken, top, strict=True)]
            text = f"{told}, levers {arm}, of the {_name(types[arm])} matrix product's operations per second"
            figures.append(figure(f"ceiling.{name}.{arm}", text, reached, "share", setting.device))
    made = [
        Row(name, tuple(taken), work[name] / GIGA / sorted(taken)[len(taken) // 2], "GFLOP/s")
        for name, taken in seconds.items()
    ]
    counted = "by the closed formula, and the same layer by layer" if formula is not None else "layer by layer"
    notes = (
        f"{len(layers)} convolutions, {forward / GIGA:.4f} GFLOP per image and forward pass, counted {counted}",
        f"a SAT step is {STEPS} × (forward + gradient in the input) + forward + gradient in the input but the first "
        f"layer's + gradient in the weights = {whole / GIGA:.1f} GFLOP of convolutions for a batch of {setting.batch}",
        f"the matrix product is {size}×{size}; convolutions alone have tensors of their own, laid out as the net's",
    )
    return Found(tuple(made), tuple(figures), notes, {"forward_flops": forward, "layers": [*map(tuple, layers)]})


def _name(kind: torch.dtype) -> str:
    return "bf16" if kind == torch.bfloat16 else "float32"


def product(setting: Setting, size: int, kind: torch.dtype) -> Callable[[], Tensor]:
    """Return the product of two square matrices."""
    how = ours.runtime(setting, "off")
    one, other = (torch.randn(size, size, device=setting.place).to(kind) for _ in range(2))
    out = torch.empty_like(one)

    def run() -> Tensor:
        with ours.running(how), torch.no_grad():
            return torch.mm(one, other, out=out)

    return run


def convolutions(
    setting: Setting, arm: ours.Arm, layers: Sequence[flops.Layer], kind: torch.dtype
) -> Callable[[], None]:
    """Return all convolutions of a SAT step, back to back: the attack's K passes, and the outer one."""
    how, device = ours.runtime(setting, arm), setting.place
    laid = torch.channels_last if how.channels_last else torch.contiguous_format
    tensors = []
    with torch.no_grad():
        for layer in layers:
            x = torch.randn(setting.batch, *layer.given, device=device).to(kind).contiguous(memory_format=laid)
            w = torch.randn(layer.out, layer.given[0] // layer.groups, *layer.kernel, device=device).to(kind)
            w = w.contiguous(memory_format=laid)
            tensors.append((layer, x, w, torch.randn_like(_forward(layer, x, w))))

    def run() -> None:
        with ours.running(how), torch.no_grad():
            for _ in range(STEPS):
                for layer, x, w, _ in tensors:
                    _forward(layer, x, w)
                for layer, x, w, g in reversed(tensors):
                    _back(layer, g, x, w, True, False)
            for layer, x, w, _ in tensors:
                _forward(layer, x, w)
            for number, (layer, x, w, g) in reversed(list(enumerate(tensors))):
                _back(layer, g, x, w, number > 0, True)

    return run


def _forward(layer: flops.Layer, x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _back(layer: flops.Layer, g: Tensor, x: Tensor, w: Tensor, data: bool, weights: bool) -> None:
    """Take the gradient in the input, in the weights, or both: the very operator that autograd calls."""
    torch.ops.aten.convolution_backward(
        g, x, w, None, layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups, (data, weights, False)
    )
