"""Networks, as frozen values that build them, with the normalisation as first layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from demilune.core.random import Stream
from demilune.models.base import Architecture, Normalized
from demilune.models.mobilenet import MobileNetV2
from demilune.models.resnet import PreActResNet18, ResNet18
from demilune.models.small import Small
from demilune.models.vgg import VGG16
from demilune.models.wide_resnet import WideResNet

MODELS: Mapping[str, type[Architecture]] = MappingProxyType(
    {
        "small": Small,
        "resnet18": ResNet18,
        "preact_resnet18": PreActResNet18,
        "wide_resnet": WideResNet,
        "vgg16": VGG16,
        "mobilenet_v2": MobileNetV2,
    }
)


def create(
    architecture: Architecture, channels: int, classes: int, mean: Sequence[float], std: Sequence[float], rng: Stream
) -> Normalized:
    """Return a network with weights drawn at the address ``rng``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.seed("weights"))
        return Normalized(architecture.build(channels, classes), mean, std)


__all__ = [
    "MODELS",
    "VGG16",
    "Architecture",
    "MobileNetV2",
    "Normalized",
    "PreActResNet18",
    "ResNet18",
    "Small",
    "WideResNet",
    "create",
]
