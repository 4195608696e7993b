"""Runs by name, with the hyper-parameters of the paper or the released code they are of.

What a source leaves open, and where we leave it, stands in ``about`` and in docs/methods.md. Names are
``data-method``, with the source in front where several sources train the same: ``cifar10-rat`` is the RAT paper's,
``rwp-cifar10-sat`` is the plain training of RWP's released code, ``s30-cifar10-rat`` our own short schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import final

from demilune.attacks import KLPGD, PGD
from demilune.core.geometry import Ball
from demilune.data import CIFAR10, CIFAR100, MNIST, SVHN, Data, Digits, Extra, ImageNette
from demilune.experiment import Experiment, Training, name_of
from demilune.methods import (
    ADT,
    AVM,
    GAIRAT,
    LRAT,
    LRATRAT,
    LRATTRADES,
    MART,
    RAT,
    SAT,
    TRADES,
    Local,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from demilune.models import VGG16, Architecture, MobileNetV2, PreActResNet18, ResNet18, Small, WideResNet
from demilune.moves import AWP, RWP, Gaussian, NoMove, WeightMove
from demilune.runtime import Runtime
from demilune.schedules import Cosine, Piecewise, Schedule, Triangular


@final
@dataclass(frozen=True, slots=True)
class Preset:
    """An experiment with the paper it is of and where its numbers come from."""

    experiment: Experiment
    paper: str
    about: str


Row = tuple[str, Method, WeightMove]
"""A row of a comparison: its name, the method, the move."""

HALF = Piecewise(first=0.5, second=0.75)
# Scripts that count epochs from 1 (TRADES, RST, Taylor) drop the rate, and begin to move weights, one epoch sooner.
EARLY, WARM = Piecewise(first=0.495, second=0.745), 9
LINF, L2 = Ball("linf", 8 / 255), Ball("l2", 128 / 255)
EXTRA = Extra("ti_500K_pseudo_labeled.npz")
FAST = Runtime(channels_last=True)
OURS = "–"
"""What stands for the paper of a preset that is of none; only such a one's precision may be chosen by the device."""


def _rows(attack: PGD, kl: KLPGD, epochs: int) -> Iterator[Row]:
    """Yield every method, and the compositions of the papers, with these attacks.

    GAIRAT begins after 30 % of the epochs, as its released ResNet-18 run; Taylor-code is the released ResNet-18 script
    without its AWP.
    """
    yield "standard", Standard(), NoMove()
    yield "sat", SAT(attack), NoMove()
    yield "sat-awp", SAT(attack), AWP()
    yield "sat-rwp", SAT(attack), RWP()
    yield "trades", TRADES(kl), NoMove()
    yield "trades-awp", TRADES(kl), AWP(gamma=0.005)
    yield "trades-rwp", TRADES(kl), RWP(gamma=0.005)
    yield "mart", MART(replace(attack, noise=0.001)), NoMove()
    yield "avm", AVM(attack), NoMove()
    yield "adt", ADT(), NoMove()
    yield "gairat", GAIRAT(attack, begin=round(0.3 * epochs)), NoMove()
    yield "lrat", LRAT(attack), NoMove()
    yield "lrat_trades", LRATTRADES(kl), NoMove()
    yield "lrat_rat", LRATRAT(RAT(attack)), NoMove()
    yield "taylor_code", TaylorCode(kl, second=0.2, wrong_mass=0.8, noise=0.0), NoMove()
    yield "taylor_exact", TaylorExact(kl), NoMove()
    yield "taylor_mc", TRADES(kl), Gaussian()
    yield "rat", RAT(attack), NoMove()
    yield "rat-awp", RAT(attack), AWP()
    yield "rat-rwp", RAT(attack), RWP()


def _digits() -> Iterator[tuple[str, Preset]]:
    """Yield runs of a minute or so on the embedded data."""
    attack, kl = PGD(step_ratio=0.25), KLPGD(step_ratio=0.25)
    training = Training(epochs=40, batch=64, weight_decay=5e-4, validation=attack)
    for name, method, move in _rows(attack, kl, training.epochs):
        experiment = Experiment(
            f"digits-{name}", Digits(), Small(), method, Ball("linf", 0.15), move, Triangular(), training=training,
            runtime=FAST,
        )  # fmt: skip
        yield experiment.name, Preset(experiment, OURS, "embedded 8×8 digits, ε = 0.15, α = ε/4: the demonstration")


def _mnist() -> Iterator[tuple[str, Preset]]:
    """Yield the threat model that Madry et al. and TRADES have on MNIST, on a small net."""
    attack = PGD(steps=40, step_size=0.01)
    training = Training(epochs=30, weight_decay=2e-4, validation=attack)
    for name, method in (("sat", SAT(attack)), ("trades", TRADES(KLPGD(steps=40, step_size=0.01), beta=1.0))):
        experiment = Experiment(
            f"mnist-{name}", MNIST(), Small(), method, Ball("linf", 0.3), schedule=Triangular(), training=training,
            runtime=FAST,
        )  # fmt: skip
        about = "ε = 0.3, 40 steps of 0.01 as released; net and schedule are ours"
        yield experiment.name, Preset(experiment, "Madry 2018, TRADES 2019", about)


def _rat() -> Iterator[tuple[str, Preset]]:
    """Yield RAT's tables: every method of its comparison alike, on its three data sets."""
    wide = WideResNet(34, 10)
    net, told = PreActResNet18(stem=2), "size, crop and length not found: 128 of 160 pixels is ours"
    cases: tuple[tuple[str, Data, Architecture, Training, float, str], ...] = (
        ("cifar10", CIFAR10(), wide, Training(steps=80_000, validate_every=5), 2.0, "Table 1; 80k steps of 128"),
        ("cifar100", CIFAR100(), wide, Training(steps=80_000, validate_every=5), 2.0, "Table 1; 80k steps of 128"),
        ("imagenette", ImageNette(), net, Training(epochs=150), 3.0, f"Table 1; {told}, so are 150 epochs"),
        ("s60-imagenette", ImageNette(), net, Training(epochs=60), 3.0, f"Table 1, our short run; {told}"),
    )
    for data_name, data, model, training, scale, about in cases:
        for method in (Standard(), SAT(), TRADES(), MART(), AVM(), ADT(), RAT(scale=scale)):
            experiment = Experiment(
                f"{data_name}-{name_of(method)}", data, model, method, LINF, schedule=Piecewise(),
                training=training, runtime=FAST,
            )  # fmt: skip
            said = f"{about}; MART is not in its table" if isinstance(method, MART) else about
            yield experiment.name, Preset(experiment, "RAT 2109.00678", said)


def _rwp() -> Iterator[tuple[str, Preset]]:
    """Yield the trainings of RWP's and AWP's released code: SAT, TRADES and RST, plain and with either move."""
    paper = "RWP 2205.14826"
    for data, rate, c_min, but in (
        (CIFAR10(), 0.1, 1.7, " (its padding reflects, ours is black)"),
        (CIFAR100(), 0.1, 4.0, " (it also rotates by up to 15 degrees)"),
        (SVHN(), 0.01, 1.7, ""),
    ):
        for ball in (LINF, L2):
            size = 15 / 255 if ball.norm == "l2" else 1 / 255 if isinstance(data, SVHN) else 2 / 255
            warmup = 5 if isinstance(data, SVHN) and ball.norm == "linf" else 0
            attack = PGD(step_size=size)
            training = Training(epochs=200, weight_decay=5e-4, validation=attack)
            for move in (NoMove(), AWP(warmup=warmup), RWP(c_min=c_min, warmup=warmup)):
                name = "-".join(["rwp", name_of(data), *(["l2"] if ball.norm == "l2" else []), "sat", *_suffix(move)])
                experiment = Experiment(
                    name, data, PreActResNet18(), SAT(attack, bn="train"), ball, move, replace(HALF, rate=rate),
                    training=training, runtime=FAST,
                )  # fmt: skip
                yield name, Preset(experiment, paper, f"released code{but}")
                if ball.norm == "linf" and not isinstance(data, SVHN):
                    wide = replace(experiment, name=f"{name}-wrn", model=WideResNet(34, 10))
                    yield wide.name, Preset(wide, paper, f"released code{but}, its other net")
    plain = Training(epochs=200, weight_decay=5e-4, normalize=False)
    for data in (CIFAR10(), CIFAR100()):
        for move in (NoMove(), AWP(gamma=0.005, warmup=WARM), RWP(gamma=0.005, warmup=WARM)):
            name = "-".join(["rwp", name_of(data), "trades", *_suffix(move)])
            experiment = Experiment(
                name, data, WideResNet(34, 10), TRADES(), LINF, move, EARLY, training=plain, runtime=FAST
            )  # fmt: skip
            yield name, Preset(experiment, paper, "released code; c_min 1.7 on CIFAR-100 too, where it is uncertain")
    for move in (NoMove(), AWP(gamma=0.005, warmup=WARM), RWP(gamma=0.005, warmup=WARM)):
        name = "-".join(["cifar10", "rst", *_suffix(move)])
        experiment = Experiment(
            name, CIFAR10(extra=EXTRA), WideResNet(28, 10), TRADES(KLPGD(step_size=0.007)), Ball("linf", 0.031), move,
            Cosine(), training=replace(plain, batch=256, nesterov=True), runtime=FAST,
        )  # fmt: skip
        about = "TRADES, half of each batch pseudo-labelled (data.extra): released code of RST and RWP"
        yield name, Preset(experiment, "RST 1905.13736", about)


def _lrat() -> Iterator[tuple[str, Preset]]:
    """Yield LRAT's comparison in GAIRAT's released setting, since LRAT's own was not found."""
    attack, kl = PGD(step_size=0.007), KLPGD(step_size=0.007)
    rows: tuple[tuple[str, Method], ...] = (
        ("sat", SAT(attack)),
        ("gairat", GAIRAT(attack, begin=30)),
        ("gairat-sat", GAIRAT(attack, share=0.5, begin=30)),
        ("lrat", LRAT(attack)),
        ("lrat-floor", LRAT(attack, local=Local(floor=0.25))),
        ("lrat-cw", LRAT(attack, attacks="cw")),
        ("lrat-both", LRAT(attack, attacks="both")),
        ("lrat-gairat", LRAT(attack, across=-1.0)),
        ("lrat_trades", LRATTRADES(kl)),
        ("lrat_rat", LRATRAT(RAT(attack))),
    )
    training = Training(epochs=100, validation=attack, normalize=False)
    for data, rate in ((CIFAR10(), 0.1), (SVHN(), 0.01)):
        for row, method in rows:
            experiment = Experiment(
                f"lrat-{name_of(data)}-{row}", data, ResNet18(), method, Ball("linf", 0.031),
                schedule=Piecewise(rate, 0.29, 0.59), training=training, runtime=FAST,
            )  # fmt: skip
            about = "reconstructed, " if isinstance(method, LRAT | LRATTRADES | LRATRAT) else ""
            about += "GAIRAT's released setting" + ("; the rate on SVHN is ours" if isinstance(data, SVHN) else "")
            yield experiment.name, Preset(experiment, "LRAT 2106.15776", about)


def _taylor() -> Iterator[tuple[str, Preset]]:
    """Yield Taylor's trainings: the released TRADES and AWP-TRADES scripts, the other nets, the ablations."""
    training = Training(epochs=200, weight_decay=5e-4, normalize=False)
    wide, awp = WideResNet(34, 10), AWP(gamma=0.005, warmup=WARM)
    for data in (CIFAR10(), CIFAR100(), SVHN()):
        code = TaylorCode()
        quiet, open_ = replace(code, noise=0.0), "; settings for this data or net were not found"
        cases: tuple[tuple[str, Architecture, Method, WeightMove, str], ...] = (
            ("trades", wide, TRADES(), NoMove(), "the zeroth order"),
            ("trades-awp", wide, TRADES(), awp, "the zeroth order"),
            ("code", wide, code, NoMove(), "released TRADES script"),
            ("code-awp", wide, quiet, awp, "released AWP-TRADES script"),
            ("code-awp-resnet", PreActResNet18(), replace(quiet, second=0.2, wrong_mass=0.8), awp, "ResNet-18 script"),
            ("code-vgg", VGG16(), code, NoMove(), "released TRADES script" + open_),
            ("code-mobilenet", MobileNetV2(), code, NoMove(), "released TRADES script" + open_),
            ("exact", wide, TaylorExact(), NoMove(), "our literal reading, an ablation"),
            ("mc", wide, TRADES(), Gaussian(), "our own ablation: TRADES under weight noise"),
        )
        for row, model, method, move, about in cases:
            name = f"taylor-{name_of(data)}-{row}"
            told = about + open_ if isinstance(data, SVHN) and open_ not in about else about
            experiment = Experiment(
                name, data, model, method, LINF, move, EARLY, training=training, runtime=FAST
            )  # fmt: skip
            yield name, Preset(experiment, "Taylor 2303.10653", told)


SHORT: Mapping[str, tuple[int, Schedule]] = MappingProxyType(
    {
        "s15": (15, Triangular(0.2, 0.4)),
        "s30": (30, Triangular(0.2, 0.4)),
        "p40": (40, Piecewise(0.1, 0.6, 0.85)),
        "p75": (75, Piecewise(0.1, 0.375, 0.5625)),
    }
)
"""Our short schedules (recipes.md 5.5): their epochs and rates, with weight decay 5e-4."""


def _short() -> Iterator[tuple[str, Preset]]:
    """Yield every method and composition on PreActResNet-18 in the short schedules, all else alike."""
    for data in (CIFAR10(), CIFAR100()):
        for short, (epochs, schedule) in SHORT.items():
            for row, method, move in _rows(PGD(), KLPGD(), epochs):
                if isinstance(data, CIFAR100) and isinstance(move, RWP) and isinstance(method, SAT | RAT):
                    move = replace(move, c_min=4.0)
                name = f"{short}-{name_of(data)}-{row}"
                experiment = Experiment(
                    name, data, PreActResNet18(), method, LINF, move, schedule,
                    training=Training(epochs=epochs, weight_decay=5e-4), runtime=FAST,
                )  # fmt: skip
                yield name, Preset(experiment, OURS, f"our short schedule {short.upper()}")
                if isinstance(data, CIFAR10) and isinstance(method, TRADES) and not isinstance(move, Gaussian):
                    rst = name.replace("trades", "rst")
                    mixed = replace(experiment, name=rst, data=CIFAR10(extra=EXTRA))
                    yield rst, Preset(mixed, OURS, f"TRADES on mixed data; our short schedule {short.upper()}")


def _fast() -> Iterator[tuple[str, Preset]]:
    experiment = Experiment(
        "fast", CIFAR10(), PreActResNet18(), SAT(PGD(steps=1, step_size=10 / 255)), LINF,
        schedule=Triangular(rate=0.2, peak=0.5),
        training=Training(epochs=15, weight_decay=5e-4, stop_on_alarm=True),
        runtime=Runtime(precision="bf16", channels_last=True),
    )  # fmt: skip
    about = "one step of 10/255, alarm on: for one small GPU"
    yield "fast", Preset(experiment, "Wong, Rice, Kolter 2020", about)


def _suffix(move: WeightMove) -> list[str]:
    return [] if isinstance(move, NoMove) else [name_of(move)]


def _all() -> dict[str, Preset]:
    named: dict[str, Preset] = {}
    for part in (_digits(), _fast(), _mnist(), _rat(), _rwp(), _lrat(), _taylor(), _short()):
        for name, preset in part:
            assert name not in named, name
            named[name] = preset
    return named


PRESETS: Mapping[str, Preset] = MappingProxyType(_all())

__all__ = ["OURS", "PRESETS", "SHORT", "Preset"]
