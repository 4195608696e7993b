"""What all tests share: tiny networks and images, and nothing outside the repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from demilune.__main__ import main
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.methods import Batch
from demilune.models import Normalized, Small, create


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
