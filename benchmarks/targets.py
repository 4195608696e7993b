"""What the results are set against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final


@final
@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a figure."""

    sense: Literal["≥", "≤"]
    value: float

    def met(self, value: float) -> bool:
        """Say whether a figure keeps to it."""
        return value >= self.value if self.sense == "≥" else value <= self.value


TARGETS: Mapping[str, tuple[Target | None, Target | None]] = MappingProxyType(
    {
        "pgd": (Target("≥", 3.0), Target("≥", 4.0)),
        "pgd.float32": (Target("≥", 1.3), None),
        "step.sat": (Target("≥", 3.0), Target("≥", 5.0)),
        "rat.off": (Target("≤", 1.15), Target("≤", 1.15)),
        "rat.on": (Target("≤", 1.25), Target("≤", 1.25)),
        "autoattack.robust": (Target("≥", 2.5), Target("≥", 4.0)),
        "autoattack.weak": (Target("≥", 5.0), Target("≥", 8.0)),
        "curve": (Target("≥", 30.0), Target("≥", 30.0)),
        "ceiling.share": (Target("≥", 0.60), Target("≥", 0.50)),
        "startup.help": (Target("≤", 0.3), None),
        "memory.sat": (Target("≤", 1.0), Target("≤", 1.0)),
    }
)
"""By figure: the target on a CPU and on a GPU."""


def target_of(key: str, device: str) -> Target | None:
    """Return a figure's target on a device, where it has one."""
    cpu, gpu = TARGETS.get(key, (None, None))
    return gpu if device.startswith("cuda") else cpu
