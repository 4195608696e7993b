"""Runs by name. Those called after a paper have its hyper-parameters; what it leaves open is as rat.md 5 and 6 say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

from demilune.attacks import PGD
from demilune.core.geometry import Ball
from demilune.data import CIFAR10, CIFAR100, Digits
from demilune.experiment import Experiment, Training, name_of
from demilune.methods import AVM, RAT, SAT, Method, Standard
from demilune.models import PreActResNet18, Small, WideResNet
from demilune.runtime import Runtime
from demilune.schedules import Piecewise, Triangular


@final
@dataclass(frozen=True, slots=True)
class Preset:
    """An experiment with where it comes from."""

    experiment: Experiment
    about: str


_DIGITS_ATTACK = PGD(steps=10, step_ratio=0.25)


def _digits(method: Method) -> Preset:
    """Return a run of a minute or less on the embedded data."""
    experiment = Experiment(
        name=f"digits-{name_of(method)}",
        data=Digits(),
        model=Small(),
        method=method,
        ball=Ball("linf", 0.15),
        schedule=Triangular(rate=0.2),
        training=Training(epochs=40, batch=64, weight_decay=5e-4, validation=_DIGITS_ATTACK),
        runtime=Runtime(channels_last=True),
    )
    return Preset(experiment, "embedded 8×8 digits, ε = 0.15, α = ε/4: the demonstration")


def _paper(data: CIFAR10 | CIFAR100, method: Method, about: str) -> Preset:
    """Return a run with the RAT paper's common setting: WRN-34-10, 80k steps, rate 0.1 dropped at 30k and 45k."""
    experiment = Experiment(
        name=f"{name_of(data)}-{name_of(method)}",
        data=data,
        model=WideResNet(34, 10),
        method=method,
        ball=Ball("linf", 8 / 255),
        schedule=Piecewise(rate=0.1, first=0.375, second=0.5625),
        training=Training(steps=80_000, batch=128, weight_decay=2e-4, validate_every=5),
        runtime=Runtime(channels_last=True),
    )
    return Preset(experiment, about)


def _all() -> dict[str, Preset]:
    rat = "RAT paper (2109.00678), Table 1; 80k steps of 128"
    found = [_digits(m) for m in (Standard(), SAT(_DIGITS_ATTACK), AVM(_DIGITS_ATTACK), RAT(_DIGITS_ATTACK))]
    for data in (CIFAR10(), CIFAR100()):
        found += [_paper(data, method, rat) for method in (Standard(), SAT(), AVM(), RAT())]
    fast = Experiment(
        name="fast",
        data=CIFAR10(),
        model=PreActResNet18(),
        method=SAT(PGD(steps=1, step_size=10 / 255)),
        ball=Ball("linf", 8 / 255),
        schedule=Triangular(rate=0.2, peak=0.5),
        training=Training(epochs=15, batch=128, weight_decay=5e-4, stop_on_alarm=True),
        runtime=Runtime(precision="bf16", channels_last=True),
    )
    about = "one step of 10/255 (Wong, Rice, Kolter 2020), alarm on: for one small GPU"
    named = {preset.experiment.name: preset for preset in found}
    return named | {"fast": Preset(fast, about)}


PRESETS: Mapping[str, Preset] = MappingProxyType(_all())

__all__ = ["PRESETS", "Preset"]
