"""APGD agrees with a released implementation (package pyautoattack), given the same draws: iterates and verdicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from demilune.attacks import Attack, Model, correct
from demilune.attacks.apgd import APGD, Loss, TargetedAPGD, apgd_path
from demilune.attacks.pgd import wrong_classes
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy, dlr, margin, targeted_dlr
from demilune.core.random import Stream

released = pytest.importorskip(
    "pyautoattack.autopgd_base", reason="the reference package pyautoattack is not installed"
)

# The released DLR warns of images whose gradient is zero.
pytestmark = pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")

NORMS = {"linf": "Linf", "l2": "L2"}
LOSSES = ("ce", "dlr", "targeted")


class Setting(NamedTuple):
    """A network in eval mode, images that it classifies (most of them rightly), labels, and radii that matter."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: dict[str, float]


@cache
def random_net() -> Setting:
    """32 images of 3x16x16 and an untrained convolutional network; their labels are what it says."""
    model = convolutional(3, 1024)
    x = Stream.of(1).uniform("x", (32, 3, 16, 16))
    return Setting(model, x, model(x).argmax(dim=1), {"linf": 0.002, "l2": 0.03})


@cache
def digits() -> Setting:
    """200 digits that a network trained for 40 steps on noisy others has not seen.

    Labels are smoothed: where p_y is nearly one, float32 rounds the cross-entropy's gradient p - 1, and nothing agrees.
    """
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    model = convolutional(1, 256).requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    draws = Stream.of(3)
    for step in range(40):
        rows = draws.integers(step, (128,), 0, 1500)
        noisy = (x[rows] + draws.uniform(f"noise {step}", (128, 1, 8, 8), -0.1, 0.1)).clamp(0, 1)
        optimiser.zero_grad()
        smooth = 0.7 * nn.functional.one_hot(y[rows], 10) + 0.03
        cross_entropy(model(noisy), smooth).mean().backward()
        optimiser.step()
    return Setting(model.requires_grad_(False), x[1500:1700], y[1500:1700], {"linf": 0.08, "l2": 0.5})


def convolutional(channels: int, features: int) -> nn.Module:
    """Return a network of two convolutions, without gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(features, 10))
    return net.eval().requires_grad_(False)


def drawn(rng: Stream, x: Tensor, norm: str) -> Tensor:
    """Return what our attack draws for its start, as the released one's ``torch.rand`` or ``torch.randn`` gives it."""
    draws = rng.sub("start")
    return (draws.uniform if norm == "linf" else draws.normal)("ball", x.shape, dtype=x.dtype)


@contextmanager
def dealing(noise: Tensor) -> Iterator[None]:
    """Give the released attack its draw."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rand", "randn"):
            patch.setattr(torch, name, lambda shape: noise.reshape(shape))
        yield


def theirs(model: Model, loss: str, ball: Ball, steps: int, targets: int = 9) -> Any:
    """Return the released attack."""
    if loss == "targeted":
        return released.APGDAttack_targeted(
            model, steps, NORMS[ball.norm], eps=ball.eps, n_target_classes=targets, device="cpu"
        )
    return released.APGDAttack(model, steps, NORMS[ball.norm], eps=ball.eps, loss=loss, device="cpu")


def iterates(
    model: Model, x: Tensor, y: Tensor, wrong: Tensor, ball: Ball, loss: str, noise: Tensor, steps: int
) -> list[Tensor]:
    """Return the released attack's x_0 … x_N."""
    seen = list[Tensor]()

    def noting(images: Tensor) -> Tensor:
        seen.append(images.detach().clone())
        return model(images)

    attack = theirs(noting, loss, ball, steps)
    attack.init_hyperparam(x)
    attack.y_target = wrong
    with dealing(noise):
        attack.attack_single_run(x, y)
    return seen


@pytest.mark.parametrize(
    ("norm", "dtype"), [("linf", torch.float32), ("l2", torch.float32), ("l2", torch.float64)], ids=str
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("setting", [random_net, digits], ids=["random", "digits"])
def test_iterates_agree(setting: Callable[[], Setting], loss: str, norm: str, dtype: torch.dtype) -> None:
    given = setting()
    right = correct(given.model, given.x, given.y).nonzero().squeeze(1)[:64]
    model = copy.deepcopy(given.model).to(dtype)
    x, y, rng = given.x[right].to(dtype), given.y[right], Stream.of(0, "reference").images(right)
    ball, wrong = Ball(norm, given.eps[norm]), wrong_classes(model(x), y)[:, 0]
    ours: dict[str, Loss] = {
        "ce": lambda logits, rows: cross_entropy(logits, y[rows]),
        "dlr": lambda logits, rows: dlr(logits, y[rows]),
        "targeted": lambda logits, rows: targeted_dlr(logits, y[rows], wrong[rows]),
    }
    expected = iterates(model, x, y, wrong, ball, loss, drawn(rng, x, norm), 100)
    path = list(apgd_path(model, x, y, torch.arange(len(x)), ball, rng, ours[loss], 100, 0.75))
    assert len(path) == len(expected) == 101
    clear, compared = torch.ones(len(x), dtype=torch.bool), 0
    for number, visit in enumerate(path[:11]):
        rows = clear[visit.rows]
        apart = (visit.point - expected[number][visit.rows]).flatten(1).abs().amax(dim=1)[rows]
        assert (apart <= 1e-6).all(), (number, apart.max())
        compared = int(rows.sum())
        leaf = visit.point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(ours[loss](model(leaf), visit.rows).sum(), leaf)
        clear[visit.rows[blurred(gradient, norm)]] = False
    assert compared > len(x) / 3  # few leave, and few are left out


def blurred(gradient: Tensor, norm: str) -> Tensor:
    """Return the images where a direction is rounding, so that nothing can agree, bool [n].

    linf: a pixel's sign is. l2: the released direction is g/(‖g‖ + 1e-12), ours g/‖g‖, 1e-12/‖g‖ apart.
    """
    size = gradient.flatten(1).abs()
    return ((size > 0) & (size < 1e-10)).any(dim=1) if norm == "linf" else size.norm(dim=1) < 1e-6


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [7, 30, 100])
def test_every_checkpoint_is_passed_alike_whatever_the_losses(steps: int, norm: str) -> None:
    """On a model whose losses and gradients are given, not computed, nothing magnifies rounding: all iterates agree."""
    rng = Stream.of(steps, "script").images(torch.arange(64))
    # Losses that climb in most steps, more or less often, and now and then fall far: η is kept, halved because the
    # loss rose too seldom, and halved because the best is out of reach.
    often = torch.linspace(0.55, 1.0, 64)[:, None]
    climbs = rng.uniform("climbs", (64, steps + 1)) < often
    falls = rng.uniform("falls", (64, steps + 1)) < 0.04
    height = (torch.where(climbs, 0.02, -0.01) - 1.0 * falls).cumsum(dim=1).clamp(-3, 3).T
    slope = rng.normal("slope", (64, steps + 1, 1, 6, 6)).transpose(0, 1)
    x, y = rng.uniform("x", (64, 1, 6, 6)), torch.zeros(64, dtype=torch.int64)

    def scripted() -> Model:
        calls = count()

        def model(images: Tensor) -> Tensor:
            call = next(calls)
            along = (images * slope[call]).flatten(1).sum(dim=1)
            right = 4.0 - height[call] - (along - along.detach())
            return torch.stack([right, 0 * right], dim=1)

        return model

    ball = Ball(norm, {"linf": 0.2, "l2": 1.0}[norm])
    expected = iterates(scripted(), x, y, y, ball, "ce", drawn(rng, x, norm), steps)
    path = apgd_path(
        scripted(), x, y, torch.arange(64), ball, rng, lambda logits, rows: cross_entropy(logits, y[rows]), steps, 0.75
    )
    for number, (visit, point) in enumerate(zip(path, expected, strict=True)):
        assert len(visit.rows) == 64
        assert torch.allclose(visit.point, point, rtol=0, atol=2e-6), number


class Dealt:
    """A released attack that is dealt the draws of the images each run has."""

    def __init__(self, attack: Any, x: Tensor, key: Callable[[int], tuple[str | int, ...]], norm: str) -> None:
        self.attack, self.x, self.key, self.norm, self.runs = attack, x, key, norm, 0
        self.run, attack.attack_single_run = attack.attack_single_run, self

    def __call__(self, x: Tensor, y: Tensor) -> object:
        rows = (x[:, None] == self.x[None]).flatten(2).all(dim=2).int().argmax(dim=1)
        rng = Stream.of(0, "reference").images(rows).sub(*self.key(self.runs))
        self.runs += 1
        with dealing(drawn(rng, x, self.norm)):
            return self.run(x, y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_verdicts_agree(loss: str, norm: str) -> None:
    model, x, y, radii = digits()
    ball, rng = Ball(norm, radii[norm]), Stream.of(0, "reference").images(torch.arange(len(x)))
    attacks: dict[str, Attack] = {
        "ce": APGD(steps=50, restarts=2),
        "dlr": APGD("dlr", steps=50, restarts=2),
        "targeted": TargetedAPGD(targets=3, steps=50),
    }
    found = attacks[loss](model, x, y, ball, rng)
    attack = theirs(model, loss, ball, attacks[loss].steps, 3)
    attack.n_restarts = attacks[loss].restarts
    Dealt(attack, x, lambda run: ("target", run, "restart", 0) if loss == "targeted" else ("restart", run), norm)
    expected = attack.perturb(x, y)
    stands, expected_stands = correct(model, found, y), correct(model, expected, y)
    assert len(x) / 10 < int(stands.sum()) < len(x) * 9 / 10
    differ = (stands != expected_stands).nonzero().squeeze(1)
    margins = [
        (int(i), float(margin(model(a[i : i + 1]), y[i : i + 1]).detach())) for i in differ for a in (found, expected)
    ]
    assert len(differ) <= 0.005 * len(x), f"image and margin, ours then theirs: {margins}"
