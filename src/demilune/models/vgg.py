"""VGG-16 with batch norm in its CIFAR form (Simonyan and Zisserman 2015; one of Taylor's networks, recipes.md 1.2b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from demilune.errors import check_types
from demilune.models.base import Architecture, pool
from demilune.models.small import check_width

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""The convolutions between two poolings; each by the factor of its channels."""


@final
class VGG(nn.Module):
    """Five stages of conv-BN-ReLU, each followed by a 2×2 max-pool; average pool, linear."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage in STAGES:
            for factor in stage:
                outputs = factor * width
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            # Rounding up changes nothing where 32 divides the side, and leaves a place of a smaller image.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(pool(self.features(x)))
        return logits


@final
@dataclass(frozen=True, slots=True)
class VGG16(Architecture):
    """VGG-16 with batch norm and one linear layer; 14,728,266 parameters at width 64 and 10 classes.

    Its five poolings halve the side, rounded up: any image size fits, and 32 pixels end as one place.

    width: channels of the first stage; the five stages have width times 1, 2, 4, 8, 8
    """

    width: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        check_width(self.width)

    def build(self, channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return VGG(self.width, channels, classes)
