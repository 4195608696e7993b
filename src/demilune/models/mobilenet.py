"""MobileNetV2 in its CIFAR form (Sandler et al. 2018; one of Taylor's networks, recipes.md 1.2b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from demilune.errors import DemiluneError, check_types
from demilune.models.base import Architecture, conv1x1, conv3x3, pool

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and first stride of each stage; the paper's second stage has stride 2."""


@final
class InvertedBlock(nn.Module):
    """1×1 conv that widens, 3×3 conv of each channel alone, 1×1 conv that narrows, each with BN, two with ReLU.

    At stride 1 the input is added, by a 1×1 convolution and BN where the channels change: so the code has it that is
    common for CIFAR, while the paper adds it only where they do not.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.conv1 = conv1x1(inputs, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Sequential()
            if inputs != outputs:
                self.shortcut = nn.Sequential(conv1x1(inputs, outputs), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.bn3(self.conv3(inner))
        return out if self.shortcut is None else out + self.shortcut(x)


@final
class MobileNet(nn.Module):
    """conv-BN-ReLU, seven stages of inverted blocks, 1×1 conv-BN-ReLU, average pool, linear."""

    def __init__(self, width: float, channels: int, classes: int) -> None:
        super().__init__()
        inputs = _scaled(32, width)
        self.conv1 = conv3x3(channels, inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        blocks: list[nn.Module] = []
        for expansion, base, count, stride in STAGES:
            outputs = _scaled(base, width)
            for number in range(count):
                blocks.append(InvertedBlock(inputs, outputs, expansion, stride if number == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        last = _scaled(1280, max(1.0, width))
        self.conv2 = conv1x1(inputs, last)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(pool(F.relu(self.bn2(self.conv2(out)))))
        return logits


@final
@dataclass(frozen=True, slots=True)
class MobileNetV2(Architecture):
    """MobileNetV2 for small images (stem and second stage of stride 1); 2,296,922 parameters at 10 classes.

    width: factor of all channels, which are rounded to multiples of 8; the last 1280 never become fewer
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 < self.width <= 16.0:
            raise DemiluneError(f"width = {self.width:g}: the factor of the channels must be above 0 and at most 16")

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return MobileNet(self.width, channels, classes)


def _scaled(channels: int, width: float) -> int:
    """Return the nearest multiple of 8, at least 8; one more where rounding would take away a tenth or more."""
    wanted = channels * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found if found >= 0.9 * wanted else found + 8
