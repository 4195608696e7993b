"""What the machine is, as far as it decides a measurement."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from demilune.runs import environment
from demilune.runtime import hardware

FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_fp16", "asimd", "bf16", "sve",
)  # fmt: skip
"""Of a processor's instruction sets, those that matrix products are made of."""

PACKAGES = ("demilune", "torch", "numpy", "torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack")


def command(module: str, argv: Sequence[str]) -> str:
    """Return the command line that measured: this is no command of the program's own."""
    return f"python -m {module} {shlex.join(argv)}".rstrip()


def about(device: torch.device, argv: Sequence[str], module: str = "benchmarks") -> dict[str, Any]:
    """Describe hardware, versions, load, date and the command: ``python -m module argv``."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return environment() | {
        "versions": versions,
        "flags": flags(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory": memory(),
        "device": hardware(device),
        "threads": torch.get_num_threads(),
        "load": load,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": command(module, argv),
    }


def flags() -> list[str]:
    """Return the instruction sets of :data:`FLAGS` that the processor has; none where nobody says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return [flag for flag in FLAGS if flag in value.split()]
    return []


def memory() -> int | None:
    """Return the machine's memory in bytes; None where nobody says."""
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def resident(what: str) -> int:
    """Return this process's memory in bytes: ``VmRSS`` now, or ``VmHWM`` at its highest.

    On Linux from /proc, because what getrusage says of the highest counts the parent's pages from before exec too.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
