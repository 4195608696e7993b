"""What all tests share: tiny networks and images, and nothing outside the repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.__main__ import main
from demilune.attacks import PGD
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Digits
from demilune.experiment import Experiment, Training
from demilune.methods import RAT, Batch
from demilune.models import Normalized, Small, create
from demilune.runtime import Runtime
from demilune.schedules import Triangular
from report_runs import RAT as RAT_RESULTS
from report_runs import SAT, STANDARD, write_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny(classes: int = 4, channels: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Normalized:
    """Return a small batch-norm network whose running statistics are not the initial ones."""
    net = create(Small(4), channels, classes, [0.5] * channels, [0.25] * channels, Stream.of(seed)).to(dtype)
    net.train()
    with torch.no_grad():
        net(Stream.of(seed).uniform("warm", (32, channels, 8, 8), dtype=dtype))
    return net


def batch_of(
    n: int = 6, classes: int = 4, channels: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    """Return images in the open box with labels."""
    rng = Stream.of(seed, "images")
    x = rng.uniform("x", (n, channels, 8, 8), dtype=dtype)
    return Batch(x, rng.integers("y", (n,), 0, classes), classes, torch.arange(n), 0)


def stream(batch: Batch, seed: int = 0) -> Stream:
    return Stream.of(seed, "test").images(batch.ids)


class Scripted(nn.Module):
    """A model whose prediction at its t-th call is given: right or wrong, whatever the image."""

    def __init__(self, y: Tensor, wrong: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        self.y, self.wrong, self.calls = y, wrong, 0

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.tensor([row[self.calls] for row in self.wrong])
        self.calls += 1
        logits = torch.zeros(len(x), 3, dtype=x.dtype)
        chosen = torch.where(wrong, (self.y + 1) % 3, self.y)
        return logits.scatter(1, chosen[:, None], 1.0) + 0.0 * x.flatten(1).sum(dim=1, keepdim=True)


BALL = Ball("linf", 0.1)


ATTACK = PGD(steps=2, step_ratio=0.5)
RUN = Experiment(
    name="tiny",
    data=Digits(),
    model=Small(4),
    method=RAT(ATTACK),
    ball=Ball("linf", 0.15),
    schedule=Triangular(),
    training=Training(epochs=3, batch=256, validation=ATTACK, checkpoint_every=1e9),
    runtime=Runtime(threads=1),
)


def harden(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    """Train a network by FGSM, linf 0.1, on 128 of the images a step."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        rows = Stream.of(0, "batch", step).integers("rows", (128,), 0, len(x))
        leaf = x[rows].requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), y[rows]), leaf)
        optimiser.zero_grad()
        F.cross_entropy(model((leaf.detach() + 0.1 * slope.sign()).clamp(0, 1)), y[rows]).backward()
        optimiser.step()
    optimiser.zero_grad()


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Return the folders of three runs that nobody trained, with results."""
    return [
        write_run(tmp_path / "a", "standard", "standard", STANDARD, draw=1),
        write_run(tmp_path / "b", "sat", "sat", SAT, draw=2),
        write_run(tmp_path / "c", "rat", "rat", RAT_RESULTS, draw=3),
    ]


def files(folder: Path) -> dict[Path, bytes]:
    """Return everything in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Assert that a command gets one line that says so, and exit code 2."""
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("demilune: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error, error
