"""ResNet-18 and PreActResNet-18 in their CIFAR form (3×3 stem, four stages of two blocks)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from demilune.errors import DemiluneError, check_types
from demilune.models.base import Architecture, conv1x1, conv3x3, pool
from demilune.models.small import check_width

STRIDES = (1, 2, 2, 2)


@final
class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the input (by a 1×1 convolution and BN where the shape changes), ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


@final
class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, added to the input; where the shape changes, a 1×1 convolution of the *activated*
    input takes its place (the variant of Rice et al.'s and kuangliu's code; recipes.md 1.2).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + kept
        return out


def _stages(block: type[BasicBlock] | type[PreActBlock], width: int) -> nn.Sequential:
    blocks: list[nn.Module] = []
    inputs = width
    for stage, stride in enumerate(STRIDES):
        outputs = width * 2**stage
        blocks += [block(inputs, outputs, stride), block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*blocks)


@final
class ResNet(nn.Module):
    """conv-BN-ReLU, eight basic blocks, average pool, linear."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = _stages(BasicBlock, width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(pool(self.blocks(F.relu(self.bn1(self.conv1(x))))))
        return logits


@final
class PreActResNet(nn.Module):
    """conv, eight pre-activation blocks, BN-ReLU, average pool, linear."""

    def __init__(self, width: int, stem: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, width, stem)
        self.blocks = _stages(PreActBlock, width)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(pool(F.relu(self.bn(self.blocks(self.conv1(x))))))
        return logits


@final
@dataclass(frozen=True, slots=True)
class ResNet18(Architecture):
    """ResNet-18 for small images; 11,173,962 parameters at width 64 and 10 classes.

    width: channels of the first stage; the four stages have width times 1, 2, 4, 8
    """

    width: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        check_width(self.width)

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return ResNet(self.width, channels, classes)


@final
@dataclass(frozen=True, slots=True)
class PreActResNet18(Architecture):
    """PreActResNet-18 for small images; 11,172,170 parameters at width 64 and 10 classes.

    width: channels of the first stage; the four stages have width times 1, 2, 4, 8
    stem: stride of the first convolution: 1, or 2 for images of 128 pixels and more, at a quarter of the cost
    """

    width: int = 64
    stem: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_width(self.width)
        if self.stem not in (1, 2):
            raise DemiluneError(f"stem = {self.stem}: the stride of the first convolution is 1 or 2")

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return PreActResNet(self.width, self.stem, channels, classes)
