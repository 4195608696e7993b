"""What every sub-benchmark is told: the net, the images, the machine's part in it, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch

from demilune.core.geometry import Ball
from demilune.errors import DemiluneError, unknown
from demilune.models import MODELS, Architecture, PreActResNet18, ResNet18, Small, WideResNet

CLASSES = 10
CHANNELS = 3
BALL = Ball("linf", 8 / 255)
STEP = 2 / 255
STEPS = 10
"""PGD's steps, K, in attacks and in training."""


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """One set of conditions; plain values, so that a process of its own can be told them.

    net: the network, a name of demilune's
    width: its width (a wide_resnet's widening), 0 for its own
    depth: layers of a wide_resnet, 0 for its own
    side: height and width of the images, which have three channels
    batch: images at a time
    device: cpu or cuda
    threads: processor threads
    workers: processes of the reference loop's loader
    rounds: rounds that are counted
    quick: less of everything that can be had with less
    levers: what the runtime with levers on differs in from the one without, by field
    robust: a model for AutoAttack that withstands, weak: one that does not; "" for none
    limit: images AutoAttack is run on
    images: images of the iteration curve
    """

    net: str = "preact_resnet18"
    width: int = 0
    depth: int = 0
    side: int = 32
    batch: int = 128
    device: str = "cpu"
    threads: int = 1
    workers: int = 1
    rounds: int = 5
    quick: bool = False
    levers: Mapping[str, Any] = field(default_factory=dict)
    robust: str = ""
    weak: str = ""
    limit: int = 200
    images: int = 16

    def __post_init__(self) -> None:
        known = {name.replace("_", ""): name for name in MODELS}
        if self.net.replace("_", "").replace("-", "").lower() not in known:
            raise unknown("net", self.net, MODELS)
        object.__setattr__(self, "net", known[self.net.replace("_", "").replace("-", "").lower()])
        least = {"batch": 1, "rounds": 1, "threads": 1, "side": 1, "limit": 1, "images": 1}
        for name in (*least, "width", "depth", "workers"):
            if getattr(self, name) < least.get(name, 0):
                raise DemiluneError(f"--{name} {getattr(self, name)}: it must be {least.get(name, 0)} or more")
        if self.depth and self.net != "wide_resnet":
            raise DemiluneError(f"--depth {self.depth}: {self.net} has one depth; leave it out, or --net wide_resnet")
        self.architecture()

    def architecture(self) -> Architecture:
        """Return the network's shape."""
        if self.net == "wide_resnet":
            own = WideResNet()
            return WideResNet(self.depth or own.depth, self.width or own.factor)
        kinds: Mapping[str, type[PreActResNet18] | type[ResNet18] | type[Small]] = {
            "preact_resnet18": PreActResNet18,
            "resnet18": ResNet18,
            "small": Small,
        }
        if self.net in kinds:
            return kinds[self.net](self.width) if self.width else kinds[self.net]()
        if self.width:
            raise DemiluneError(f"--width {self.width}: {self.net} has one width; leave it out")
        return MODELS[self.net]()

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def least(self) -> float:
        """Seconds that a round of the fastest contestant takes at least, by repeating its call."""
        return 0.02 if self.quick else 0.2

    def title(self) -> str:
        """Say which conditions these are, in a few words."""
        return f"{self.architecture()}, {self.side}×{self.side}, batch {self.batch}, {self.device}, " + (
            f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Setting:
        """Return the setting of :meth:`to_json`."""
        return cls(**value)
