"""The one door through which the measurements reach what is measured: demilune, with its levers off and on.

Nothing else here imports the attacks, the training step or the evaluation. Levers off is the plain runtime: float32,
NCHW. Levers on is that with the fields of ``Setting.levers``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.setting import BALL, CHANNELS, CLASSES, STEP, STEPS, Setting
from demilune.attacks import PGD, frozen
from demilune.cli import checkpoint_files
from demilune.core.geometry import Ball
from demilune.core.notes import Note
from demilune.core.random import Stream
from demilune.data import Dataset, Split
from demilune.data.order import order
from demilune.errors import DemiluneError
from demilune.evaluate.crosscheck import Counting
from demilune.evaluate.subject import Subject, is_foreign, opened
from demilune.evaluate.suite import Setting as Suite
from demilune.evaluate.suite import suite
from demilune.evaluate.table import Findings, evaluate
from demilune.experiment import build, plain
from demilune.kernels import load
from demilune.methods import RAT, SAT, Method
from demilune.models import Normalized, create
from demilune.runtime import Runtime, hazard, low_precision
from demilune.train import added, draw, step

Arm = Literal["off", "float32", "on"]
"""Levers off; all levers that keep float32; all levers."""

METHODS: dict[str, Method] = {"sat": SAT(PGD(STEPS, STEP)), "rat": RAT(PGD(STEPS, STEP), samples=2)}


def levers(device: torch.device) -> dict[str, Any]:
    """Return the levers that are on unless others are asked for: those worth it on this hardware."""
    low = low_precision(device) is not None
    return {"channels_last": True} | ({"precision": "bf16"} if low else precise(device))


def precise(device: torch.device) -> dict[str, Any]:
    """Return the levers of float32 that are on unless others are asked for: our own convolution, where it compiles."""
    own = device.type == "cpu" and not isinstance(load(), str)
    return {"precision": "float32", "convolution": "winograd" if own else "plain"}


def runtime(setting: Setting, arm: Arm) -> Runtime:
    """Return how the arithmetic is done with levers off or on."""
    where = {"device": setting.device, "threads": setting.threads}
    if arm == "off":
        return build(Runtime, where, "runtime")
    exact = arm == "float32" and setting.levers.get("precision") == "bf16"
    return build(Runtime, {**setting.levers, **where, **(precise(setting.place) if exact else {})})


def check(setting: Setting) -> None:
    """Refuse what takes the process down, or makes wrong gradients without a word (oneDNN's issue 6035)."""
    if not runtime(setting, "on").channels_last:
        return
    net = create(setting.architecture(), CHANNELS, CLASSES, [0.5] * CHANNELS, [0.25] * CHANNELS, Stream.of(0))
    danger = hazard(net, setting.place)
    if danger:
        raise DemiluneError(f"{setting.title()}: {danger}: give a larger --width, or --runtime.channels_last false")


def arms(setting: Setting) -> list[Arm]:
    """Return the arms that differ from each other; "on" is always one."""
    found: list[Arm] = []
    one: Arm
    for one in ("on", "float32", "off"):
        if all(runtime(setting, one) != runtime(setting, other) for other in found):
            found.append(one)
    return found[::-1]


@contextlib.contextmanager
def running(how: Runtime) -> Iterator[None]:
    """Let a runtime set the process up, and put back what others are measured with: torch's own choice."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kept = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    try:
        how.start()
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = kept
        torch.use_deterministic_algorithms(strict)


def network(setting: Setting) -> Normalized:
    """Return the network, NCHW in eval mode on the device, always with the same weights and settled statistics."""
    half, quarter = [0.5] * CHANNELS, [0.25] * CHANNELS
    net = create(setting.architecture(), CHANNELS, CLASSES, half, quarter, Stream.of(0, "net"))
    with torch.no_grad():
        net.train()(Stream.of(0, "settle").uniform("x", (8, CHANNELS, setting.side, setting.side)))
    return net.eval().to(setting.place)


def images(setting: Setting, count: int) -> tuple[Tensor, Tensor]:
    """Return so many random images [n,3,side,side] in [0,1] and labels: what a pass costs does not depend on them."""
    rng = Stream.of(0, "images", device=setting.place)
    return rng.uniform("x", (count, CHANNELS, setting.side, setting.side)), rng.integers("y", (count,), 0, CLASSES)


def dataset(setting: Setting, count: int) -> Dataset:
    """Return so many random training images, 8 bits each, with the augmentation of CIFAR: padded by 4, flipped."""
    rng, shape = Stream.of(0, "data"), (CHANNELS, setting.side, setting.side)
    grey = rng.integers("images", (count, *shape), 0, 256).to(torch.uint8)
    train = Split(grey, rng.integers("labels", (count,), 0, CLASSES), torch.arange(count))
    none = train.take(torch.arange(0))
    names = tuple(map(str, range(CLASSES)))
    made = Dataset(
        "random", names, train, none, none, (0.5,) * CHANNELS, (0.25,) * CHANNELS, 4, True, {}, False, "random"
    )
    return made.to(setting.place)


def pgd(setting: Setting, arm: Arm, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return PGD-10 from the images themselves, as an evaluation runs it; it gives the adversarial images."""
    how, device = runtime(setting, arm), setting.place
    with running(how):
        model = how.compiled(how.place(network(setting), device))
    search, given = how.search(model, device), how.layout(x)
    attack, rng = PGD(STEPS, STEP, random_start=False), Stream.of(0, "pgd", device=device)

    def run() -> Tensor:
        with running(how), frozen(model, "eval"):
            return attack(search, given, y, BALL, rng)

    return run


class Trainer:
    """Steps of a training run, as ``demilune.train.fit`` takes them: batch drawn and augmented, step, notes kept."""

    def __init__(self, setting: Setting, arm: Arm, method: str) -> None:
        self.how, self.method, self.device = runtime(setting, arm), METHODS[method], setting.place
        self.data = dataset(setting, loaded(setting))
        self.batch, self.root = setting.batch, Stream.of(0, "train", device=self.device)
        with running(self.how):
            self.model = self.how.compiled(self.how.place(network(setting), self.device)).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
        self.done, self.rows, self.tally = 0, torch.empty(0), dict[str, Note]()

    def __call__(self) -> None:
        """Take one step."""
        epoch, number = divmod(self.done, max(1, len(self.data.train) // self.batch))
        with running(self.how):
            if number == 0:
                self.rows = order(self.root.sub("order"), epoch, len(self.data.train), self.batch)
            here = self.root.sub("train", epoch, number)
            batch = draw(self.data, self.rows[number], epoch, here)
            batch = batch._replace(x=self.how.layout(batch.x))
            self.model.train()
            notes = step(
                self.model, self.optimizer, self.method, batch, BALL, here.sub("method"), 1,
                lambda: self.how.autocast(self.device),
            )  # fmt: skip
        self.tally, self.done = added(self.tally, notes), self.done + 1


def gradients(setting: Setting, arm: Arm, method: str) -> tuple[int, int]:
    """Return (gradients in the images, images the outer pass takes) per image of one step, counted."""
    trainer, counted = Trainer(setting, arm, method), [0, 0]

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        counted[0 if given[0].requires_grad else 1] += len(given[0])

    handle = trainer.model.register_forward_pre_hook(note)
    trainer()
    handle.remove()
    return counted[0] // setting.batch, counted[1] // setting.batch


def loaded(setting: Setting) -> int:
    """Return how many training images there are: sixteen batches, and no fewer than 2,048 unless it is to be quick."""
    return 16 * setting.batch if setting.quick else max(2048, 16 * setting.batch)


def epoch(setting: Setting, arm: Arm, data: Dataset) -> Callable[[], int]:
    """Return one epoch of augmented batches in the layout of the runtime; it gives the number of images."""
    how, root = runtime(setting, arm), Stream.of(0, "train", device=setting.place)

    def run() -> int:
        count = 0
        for number, index in enumerate(order(root.sub("order"), 0, len(data.train), setting.batch)):
            count += len(how.layout(draw(data, index, 0, root.sub("train", 0, number)).x))
        return count

    return run


def judge(
    model: nn.Module, split: Split, names: Sequence[str], how: Runtime, batch: int, ball: Ball = BALL, seed: int = 0,
    classes: int = CLASSES,
) -> Findings:  # fmt: skip
    """Return an evaluation by the attacks named; the network is laid out as the runtime has it."""
    device = split.ids.device
    with running(how):
        return evaluate(
            how.place(model, device), split, ball, suite(names, Suite(norm=ball.norm, classes=classes, room=batch)),
            Stream.of(seed, "evaluation", device=device), search=lambda one: how.search(one, device),
            layout=how.layout, batch=batch, examples=0,
        )  # fmt: skip


def subject(path: Path, how: Runtime | None) -> Subject:
    """Return a model that `demilune evaluate` takes, in this runtime or (None) in its own."""
    file = path if is_foreign(path) else checkpoint_files(path, "best")[0]
    return opened(file, {} if how is None else {"runtime": plain(how)})


def counting(model: nn.Module) -> Counting:
    """Return the network as a module that counts the images run forward and back."""
    return Counting(model).eval()


__all__ = [
    "METHODS", "Arm", "Counting", "Trainer", "arms", "check", "counting", "dataset", "epoch", "gradients", "images",
    "judge", "levers", "loaded", "network", "pgd", "running", "runtime", "subject",
]  # fmt: skip
