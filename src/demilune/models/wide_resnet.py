"""WideResNet-d-k for 32×32 images, as the code of TRADES, of Rice et al. and of ADT has it (recipes.md 1.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from demilune.errors import DemiluneError, check_types
from demilune.models.base import Architecture, conv1x1, conv3x3, pool


@final
class WideBlock(nn.Module):
    """BN-ReLU-conv(stride)-BN-ReLU-conv, added to the input.

    Where the channels change, the first BN-ReLU is shared: residual branch and 1×1 shortcut take the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = conv1x1(inputs, outputs, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + kept
        return out


@final
class WideResNetwork(nn.Module):
    """conv(16), three stages of (d - 4)/6 blocks of widths 16k, 32k, 64k and strides 1, 2, 2, BN-ReLU, pool, linear."""

    def __init__(self, depth: int, factor: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, 16)
        blocks: list[nn.Module] = []
        inputs = 16
        for stage, stride in enumerate((1, 2, 2)):
            outputs = 16 * factor * 2**stage
            for number in range((depth - 4) // 6):
                blocks.append(WideBlock(inputs, outputs, stride if number == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He, fan-out: N(0, √(2/(k² C_out)))
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(pool(F.relu(self.bn(self.blocks(self.conv1(x))))))
        return logits


@final
@dataclass(frozen=True, slots=True)
class WideResNet(Architecture):
    """WideResNet-depth-factor; WRN-34-10 has 46,160,474 parameters at 10 classes.

    depth: number of layers d, 6n + 4
    factor: widening k
    """

    depth: int = 34
    factor: int = 10

    def __post_init__(self) -> None:
        check_types(self)
        if self.depth < 10 or (self.depth - 4) % 6 != 0:
            raise DemiluneError(f"depth = {self.depth}: a WideResNet has 6n + 4 layers: 10, 16, 22, 28, 34, 40, …")
        if self.factor < 1:
            raise DemiluneError(f"factor = {self.factor}: the widening must be 1 or more")

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return WideResNetwork(self.depth, self.factor, channels, classes)
