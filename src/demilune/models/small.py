"""A small network for 8×8 to 32×32 images: what the embedded data and the tests train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from demilune.errors import DemiluneError, check_types
from demilune.models.base import Architecture, conv3x3, pool


@final
class SmallNet(nn.Module):
    """conv-BN-ReLU (w), conv-BN-ReLU (2w, stride 2), conv-BN-ReLU (2w), average pool, linear."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv3x3(channels, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv3x3(width, 2 * width, 2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            conv3x3(2 * width, 2 * width),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(pool(self.features(x)))
        return logits


@final
@dataclass(frozen=True, slots=True)
class Small(Architecture):
    """Three convolutions for 8×8 images.

    width: channels of the first convolution
    """

    width: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        check_width(self.width)

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return SmallNet(self.width, channels, classes)


def check_width(width: int) -> None:
    """Refuse a network without channels."""
    if width < 1:
        raise DemiluneError(f"width = {width}: a network needs 1 channel or more")
