"""Presets have the hyper-parameters of their papers (rat.md, rwp.md 7, lrat.md 7, taylor.md 5, recipes.md 5.5)."""

from __future__ import annotations

import pytest

from conftest import refused
from demilune.__main__ import main
from demilune.attacks import KLPGD, PGD
from demilune.core.geometry import Ball
from demilune.experiment import Experiment, build, name_of, plain
from demilune.methods import GAIRAT, LRAT, METHODS, RAT, SAT, TRADES, TaylorCode
from demilune.models import PreActResNet18, ResNet18, WideResNet
from demilune.moves import AWP, RWP, Gaussian, NoMove
from demilune.presets import PRESETS, SHORT
from demilune.schedules import Cosine, Piecewise


def run(name: str) -> Experiment:
    return PRESETS[name].experiment


def test_names_agree_and_every_preset_survives_being_written_down() -> None:
    for name, preset in PRESETS.items():
        assert preset.experiment.name == name
        assert preset.about
        assert build(Experiment, plain(preset.experiment)) == preset.experiment


@pytest.mark.parametrize("data", ["digits", "cifar10", "cifar100"])
def test_there_is_one_of_every_method(data: str) -> None:
    there = {name_of(p.experiment.method) for p in PRESETS.values() if name_of(p.experiment.data) == data}
    assert there == set(METHODS)


def test_rats_tables() -> None:
    for data in ("cifar10", "cifar100"):
        for method in ("standard", "sat", "trades", "avm", "adt", "rat"):
            one = run(f"{data}-{method}")
            assert one.model == WideResNet(34, 10)
            assert one.ball == Ball("linf", 8 / 255)
            training = one.training
            assert (training.steps, training.batch, training.weight_decay, training.momentum) == (
                80_000,
                128,
                2e-4,
                0.9,
            )
            rates = [one.schedule.at(step, 80_000) for step in (0, 29_999, 30_000, 44_999, 45_000, 79_999)]
            assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    rat = run("imagenette-rat")
    assert isinstance(rat.method, RAT)
    assert (rat.training.epochs, run("s60-imagenette-rat").training.epochs) == (150, 60)
    assert rat.method.scale == 3.0
    assert rat.model == PreActResNet18(stem=2)
    assert run("cifar10-trades").method == TRADES(KLPGD(10, 2 / 255), 6.0)


@pytest.mark.parametrize(
    ("name", "c_min", "ball", "size", "rate", "warmup"),
    [
        ("rwp-cifar10-sat-rwp", 1.7, Ball("linf", 8 / 255), 2 / 255, 0.1, 0),
        ("rwp-cifar100-sat-rwp", 4.0, Ball("linf", 8 / 255), 2 / 255, 0.1, 0),
        ("rwp-svhn-sat-rwp", 1.7, Ball("linf", 8 / 255), 1 / 255, 0.01, 5),
        ("rwp-cifar10-l2-sat-rwp", 1.7, Ball("l2", 128 / 255), 15 / 255, 0.1, 0),
        ("rwp-svhn-l2-sat-rwp", 1.7, Ball("l2", 128 / 255), 15 / 255, 0.01, 0),
    ],
)
def test_rwps_trainings(name: str, c_min: float, ball: Ball, size: float, rate: float, warmup: int) -> None:
    one = run(name)
    assert one.move == RWP(gamma=0.01, steps=10, c_min=c_min, warmup=warmup)
    assert one.ball == ball
    assert one.method == SAT(PGD(10, size), bn="train")
    assert one.schedule == Piecewise(rate, 0.5, 0.75)
    assert one.model == PreActResNet18()
    assert (one.training.epochs, one.training.batch, one.training.weight_decay) == (200, 128, 5e-4)
    assert run(name.replace("-rwp", "-awp").replace("awp-", "rwp-")).move == AWP(0.01, warmup)
    assert run(name.removesuffix("-rwp")).move == NoMove()


def test_trades_and_rst_with_rwp() -> None:
    trades, rst = run("rwp-cifar10-trades-rwp"), run("cifar10-rst-rwp")
    assert trades.move == rst.move == RWP(gamma=0.005, warmup=9)  # its epochs count from 1, and 10 is the first
    assert [trades.schedule.at(epoch, 200) for epoch in (98, 99, 148, 149)] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert trades.model == WideResNet(34, 10)
    assert rst.model == WideResNet(28, 10)
    assert rst.method == TRADES(KLPGD(step_size=0.007))
    assert rst.schedule == Cosine(0.1)
    assert (rst.training.batch, rst.training.nesterov, rst.data.extra.share) == (256, True, 0.5)
    assert rst.data.extra.file
    assert rst.ball.eps == 0.031


def test_lrat_trains_as_gairat_was_released() -> None:
    for name in ("lrat-cifar10-lrat", "lrat-svhn-gairat", "lrat-cifar10-lrat_trades"):
        one = run(name)
        assert one.ball.eps == 0.031
        assert one.method.attack.step_size == 0.007
        assert one.model == ResNet18()
        assert (one.training.epochs, one.training.weight_decay) == (100, 2e-4)
        rate = one.schedule.rate
        assert [one.schedule.at(epoch, 100) / rate for epoch in (28, 29, 59)] == pytest.approx([1, 0.1, 0.01])
    gairat, both = run("lrat-cifar10-gairat").method, run("lrat-cifar10-lrat-both").method
    assert isinstance(gairat, GAIRAT)
    assert (gairat.shift, gairat.begin) == (-1.0, 30)
    assert isinstance(both, LRAT)
    assert (both.attacks, both.local.mass, both.local.floor, both.local.slope) == ("both", 1.0, 0.0, 5.0)


def test_taylors_scripts() -> None:
    code, awp, small = (run(f"taylor-cifar10-{row}") for row in ("code", "code-awp", "code-awp-resnet"))
    assert code.method == TaylorCode(alpha=0.2, second=0.5, noise=1e-4, beta=6.0)
    assert not code.training.normalize
    assert awp.method == TaylorCode(noise=0.0)
    assert awp.move == AWP(0.005, 9)
    assert small.method == TaylorCode(noise=0.0, second=0.2, wrong_mass=0.8)
    assert run("taylor-cifar100-code").method == TaylorCode()
    assert isinstance(run("taylor-cifar10-mc").move, Gaussian)
    assert {name_of(run(f"taylor-svhn-{row}").model) for row in ("code", "code-vgg", "code-mobilenet")} == {
        "wide_resnet", "vgg16", "mobilenet_v2"
    }  # fmt: skip


def test_short_schedules_differ_in_nothing_but_their_length_and_rates() -> None:
    assert {name: epochs for name, (epochs, _) in SHORT.items()} == {"s15": 15, "s30": 30, "p40": 40, "p75": 75}
    assert run("s15-cifar10-rat").schedule.at(40, 100) == pytest.approx(0.2, rel=0.01)
    assert [run("p40-cifar10-sat").schedule.at(t, 100) for t in (59, 60, 85)] == pytest.approx([0.1, 0.01, 0.001])
    for short in SHORT:
        one = run(f"{short}-cifar10-rat-rwp")
        assert one.training.weight_decay == 5e-4
        assert one.model == PreActResNet18()
        assert one.move == RWP()


def test_the_list_tells_paper_data_net_and_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "presets", "rwp", "l2", "svhn"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["preset", "paper", "data", "net", "method", "ball", "schedule", "from"]
    assert [line.split()[0] for line in lines] == [f"rwp-svhn-l2-sat{end}" for end in ("", "-awp", "-rwp")]
    assert main(["list", "presets", "trades", "mnist"]) == 0  # its paper compares it with TRADES: no match
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["mnist-trades"]
    for word in ("RWP 2205.14826", "svhn", "preact_resnet18", "l2 128/255", "piecewise, 200 epochs"):
        assert all(word in line for line in lines)
    refused(["list", "presets", "rwpp"], capsys, "no presets with rwpp", "demilune list presets")
