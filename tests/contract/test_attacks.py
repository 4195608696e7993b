"""What every attack keeps, one table over all of them (docs/design.md, rule 1)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from conftest import tiny
from demilune.attacks import (
    APGD,
    ATTACKS,
    CW,
    FAB,
    FABT,
    FGSM,
    KLPGD,
    NATTACK,
    ODI,
    PGD,
    Attack,
    BestOf,
    MarginDecomposition,
    MultiTargeted,
    Rescaled,
    Square,
    TargetedAPGD,
    TargetedPGD,
    Uniform,
)
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.errors import DemiluneError

TABLE: dict[str, Attack] = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=3, step_ratio=0.5),
    "cw": CW(steps=3, step_ratio=0.5),
    "kl_pgd": KLPGD(steps=3, step_ratio=0.5, noise=0.05),  # so near x as 0.001 the KL's gradient is rounding in float32
    "targeted_pgd": TargetedPGD(steps=3, step_ratio=0.5),
    "multi_targeted": MultiTargeted(targets=2, steps=2, step_ratio=0.5),
    "best_of": BestOf(PGD(steps=2, step_ratio=0.5), restarts=2),
    "apgd": APGD(steps=4, restarts=2),
    "apgd_t": TargetedAPGD(targets=2, steps=4),
    "fab": FAB(steps=3, restarts=2),
    "fab_t": FABT(targets=2, steps=3),
    "square": Square(queries=6),
    "nattack": NATTACK(steps=2, population=6),
    "md": MarginDecomposition(steps=4, change=2),
    "odi": ODI(restarts=2, odi_steps=1, steps=2, step_ratio=0.5),
    "uniform": Uniform(samples=4),
    "rescaled": Rescaled(10.0, PGD(steps=2, step_ratio=0.5)),
}
LINF_ONLY = ("nattack", "md")
# What finds nothing may give the image back.
MOVING = ("fgsm", "pgd", "cw", "kl_pgd", "targeted_pgd", "multi_targeted", "best_of", "rescaled", "odi")
BALLS = {"linf": Ball("linf", 0.06), "l2": Ball("l2", 0.6)}


class Case(NamedTuple):
    """An attack, what it is given, and a network."""

    attack: Attack
    ball: Ball
    model: nn.Module
    x: Tensor
    y: Tensor
    rng: Stream

    def run(self, model: nn.Module | None = None) -> Tensor:
        return self.attack(model or self.model, self.x, self.y, self.ball, self.rng)


def case_of(attack: str, norm: str, n: int = 3, dtype: torch.dtype = torch.float32, classes: int = 3) -> Case:
    draws, ids = Stream.of(classes, "images"), torch.arange(10, 10 + n)
    x = draws.images(ids).uniform("x", (n, 1, 8, 8), -0.1, 1.1, dtype=dtype).clamp(0, 1)
    y = draws.images(ids).integers("y", (n, 1), 0, classes).squeeze(1)
    return Case(TABLE[attack], BALLS[norm], tiny(classes, dtype=dtype), x, y, Stream.of(0, "test").images(ids))


PAIRS = [(attack, norm) for attack, norm in product(TABLE, BALLS) if norm == "linf" or attack not in LINF_ONLY]
SHAPES = product((1, 3), (torch.float32, torch.float64), (2, 3, 10))
CASES = [(*pair, *shape) for pair, shape in product(PAIRS, SHAPES)]
every_case = pytest.mark.parametrize(("attack", "norm", "n", "dtype", "classes"), CASES)
every_attack = pytest.mark.parametrize(("attack", "norm"), PAIRS)


def half_trained(model: nn.Module) -> nn.Module:
    """Return a network in train mode but for one batch norm, with one weight held still and one gradient."""
    model.train()
    model.net.features[4].eval()
    model.net.features[0].weight.requires_grad_(False)
    model.net.linear.weight.grad = torch.full_like(model.net.linear.weight, 0.5)
    return model


def everything(model: nn.Module) -> dict[str, object]:
    """Return all that an attack might disturb."""
    kept: dict[str, object] = {f"tensor {name}": t.detach().clone() for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        kept[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
        kept[f"flag {name}"] = parameter.requires_grad
    for name, module in model.named_modules():
        kept[f"mode {name}"] = module.training
        kept[f"statistics {name}"] = getattr(module, "track_running_stats", None)
        kept[f"hooks {name}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return kept | {"generator": torch.get_rng_state(), "grad mode": torch.is_grad_enabled()}


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        now = other[name]
        same = torch.equal(value, now) if isinstance(value, Tensor) and isinstance(now, Tensor) else value == now
        assert same, name


def test_the_table_holds_every_attack() -> None:
    assert {name: type(attack) for name, attack in TABLE.items()} == dict(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_defaults_and_is_a_frozen_value(name: str) -> None:
    assert ATTACKS[name]() == ATTACKS[name]()
    assert hash(ATTACKS[name]()) == hash(ATTACKS[name]())
    with pytest.raises((AttributeError, TypeError)):
        ATTACKS[name]().steps = 1


@every_case
def test_the_result_is_allowed(attack: str, norm: str, n: int, dtype: torch.dtype, classes: int) -> None:
    case = case_of(attack, norm, n, dtype, classes)
    for mode in (True, False):
        found = case.run(case.model.train(mode))
        assert found.shape == case.x.shape
        assert found.dtype == dtype
        assert found.min() >= 0
        assert found.max() <= 1
        tolerance = 1e-7 if norm == "linf" else 1e-6
        assert (case.ball.distance(found.double(), case.x.double()) <= case.ball.eps + tolerance).all()
        assert attack not in MOVING or not torch.equal(found, case.x)


@pytest.mark.parametrize("attack", LINF_ONLY)
def test_a_norm_that_an_attack_lacks_is_refused_by_name(attack: str) -> None:
    with pytest.raises(DemiluneError, match="linf"):
        case_of(attack, "l2").run()


@every_case
def test_nothing_else_changes(attack: str, norm: str, n: int, dtype: torch.dtype, classes: int) -> None:
    case = case_of(attack, norm, n, dtype, classes)
    x, y = case.x.clone(), case.y.clone()
    for model in (half_trained(case.model), case.model.eval()):
        before = everything(model)
        case.run()
        assert_same(before, everything(model))
        assert torch.equal(case.x, x)
        assert torch.equal(case.y, y)
        assert not case.x.requires_grad
        assert case.x.grad is None


@every_case
def test_the_same_stream_gives_the_same_bits(attack: str, norm: str, n: int, dtype: torch.dtype, classes: int) -> None:
    case = case_of(attack, norm, n, dtype, classes)
    for mode in (True, False):
        case.model.train(mode)
        first = case.run()
        torch.rand(3)
        again = case.run()
        assert torch.equal(first, again)
        assert not first.requires_grad
        assert first.grad_fn is None


@every_case
def test_in_eval_mode_no_image_feels_its_batch_mates(
    attack: str, norm: str, n: int, dtype: torch.dtype, classes: int
) -> None:
    case = case_of(attack, norm, n, dtype, classes)
    case.model.eval()
    together = case.run()
    for row in range(n):
        rows = torch.tensor([row])
        alone = case._replace(x=case.x[rows], y=case.y[rows], rng=case.rng.take(rows)).run()
        assert torch.allclose(alone, together[rows], atol=1e-6)


@every_attack
def test_images_that_require_gradients_get_none(attack: str, norm: str) -> None:
    case = case_of(attack, norm)
    leaf = case.x.clone().requires_grad_()
    found = case._replace(x=leaf).run()
    assert torch.equal(found, case.run())
    assert not found.requires_grad
    assert leaf.grad is None
    assert leaf.requires_grad


@every_attack
def test_it_works_without_gradients_around_it(attack: str, norm: str) -> None:
    case = case_of(attack, norm)
    with torch.no_grad():
        found = case.run()
        assert not torch.is_grad_enabled()
    assert torch.equal(found, case.run())


@every_attack
def test_any_callable_is_a_model(attack: str, norm: str) -> None:
    case = case_of(attack, norm)
    model = case.model.eval()
    assert torch.equal(case.run(lambda images: model(images)), case.run())
    weight = Stream.of(0).normal("weight", (64, 3))
    assert case.run(lambda images: images.flatten(1) @ weight).shape == case.x.shape


@every_attack
def test_dropout_is_drawn_at_the_address_too(attack: str, norm: str) -> None:
    case = case_of(attack, norm)
    with torch.random.fork_rng(devices=[]):
        layers = (nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
        model = nn.Sequential(*layers).train()
    generator = torch.get_rng_state()
    first = case.run(model)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.rand(7)
    assert torch.equal(case.run(model), first)
    if attack in MOVING:
        assert not torch.equal(case._replace(rng=Stream.of(1, "test").images(case.rng.ids)).run(model), first)


@every_attack
def test_radius_zero_gives_the_image_back(attack: str, norm: str) -> None:
    case = case_of(attack, norm)
    for mode in (True, False):
        case.model.train(mode)
        assert torch.equal(case._replace(ball=replace(case.ball, eps=0.0)).run(), case.x)


def broken(x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    def pixel(value: float) -> Tensor:
        image = x.clone()
        image[1, 0, 2, 3] = value
        return image

    return {
        "above one": (pixel(1.001), y),
        "below zero": (pixel(-0.001), y),
        "NaN": (pixel(float("nan")), y),
        "infinite": (pixel(float("inf")), y),
        "8-bit": ((x * 255).to(torch.uint8), y),
        "integers": (torch.ones_like(x, dtype=torch.int64), y),
        "none": (x[:0], y[:0]),
        "a vector": (x[:, 0, 0, 0], y),
        "labels of another length": (x, y[:2]),
        "one-hot labels": (x, nn.functional.one_hot(y, 3)),
        "labels in floating point": (x, y.float()),
        "labels of 32 bits": (x, y.int()),
        "a negative label": (x, torch.tensor([0, -100, 1])),
    }


@pytest.mark.parametrize("attack", TABLE)
@pytest.mark.parametrize("what", broken(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)))
def test_what_is_no_batch_of_images_is_refused(attack: str, what: str) -> None:
    case = case_of(attack, "linf")
    x, y = broken(case.x, case.y)[what]
    before = everything(case.model)
    with pytest.raises(DemiluneError):
        case._replace(x=x, y=y).run()
    assert_same(before, everything(case.model))
