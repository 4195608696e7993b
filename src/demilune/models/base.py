"""What an architecture is: a frozen value that builds a network, and the normalisation in front of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


class Architecture(ABC):
    """A network's shape as a value; its fields are its configuration."""

    __slots__ = ()

    @abstractmethod
    def build(self, channels: int, classes: int) -> nn.Module:
        """Return a network with fresh weights, from normalised images [N,channels,H,W] to logits [N,classes].

        Weights are drawn from torch's global generator; :func:`demilune.models.create` addresses it.
        """


@final
class Normalized(nn.Module):
    """(x - mean)/std per channel, then the network: attacks act before it, so ε is in pixel units of [0,1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N,K] of images in [0,1]."""
        logits: Tensor = self.net((x - self.mean) / self.std)
        return logits


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution without bias that keeps the size (at stride 1)."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


def pool(x: Tensor) -> Tensor:
    """Average over all places, [N,C,H,W] to [N,C]: any image size fits."""
    return x.mean(dim=(2, 3))
