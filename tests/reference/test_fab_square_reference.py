"""FAB and Square against the reference package, image by image, with the library's own draws handed to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import harden
from demilune.attacks.base import breach
from demilune.attacks.fab import FAB, FABT, project
from demilune.attacks.judge import correct
from demilune.attacks.square import Square, _blocks
from demilune.core.geometry import Ball, Norm
from demilune.core.random import Stream

pytest.importorskip("pyautoattack")
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

NAMES = {"linf": "Linf", "l2": "L2"}
every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


class Case(NamedTuple):
    """A network, images it has right (with a few it has not), and a ball that breaks some of them."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball

    def rng(self) -> Stream:
        return Stream.of(5, "reference").images(torch.arange(100, 100 + len(self.x)))


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    return F.pad(images, (1, 1, 1, 1)), torch.tensor(bunch.target)


def layers(channels: int, classes: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(400, classes))


@cache
def trained() -> nn.Module:
    """Return a small network after 150 steps of FGSM training on the digits."""
    (x, y), model = digits(), layers(1, 10)
    harden(model, x, y, steps=150, rate=3e-3)
    return model.eval()


def case_of(name: str, norm: Norm) -> Case:
    """Return 200 digits on a trained network, or 200 random colour images on a random one, a few labelled wrongly."""
    if name == "digits":
        x, y = digits()
        return Case(trained(), x[1500:1700], y[1500:1700], Ball(norm, {"linf": 0.15, "l2": 0.9}[norm]))
    model, x = layers(3, 5).eval(), Stream.of(3).uniform("x", (200, 3, 10, 10))
    with torch.no_grad():
        model[-1].bias -= model(x).mean(dim=0)  # else all images are of one class
        y = model(x).argmax(dim=1)
    y[-3:] = (y[-3:] + 1) % 5
    return Case(model, x, y, Ball(norm, {"linf": 0.01, "l2": 0.12}[norm]))


every_case = pytest.mark.parametrize("name", ["digits", "colour"])


def assert_verdicts_agree(case: Case, ours: Tensor, theirs: Tensor) -> None:
    """Assert that at least 99.5 % of images are judged alike, and that some break and some do not."""
    one, other = correct(case.model, ours, case.y), correct(case.model, theirs, case.y)
    with torch.no_grad():
        margins = [breach(case.model(points), case.y) for points in (ours, theirs)]
    rows = (one != other).nonzero().squeeze(1).tolist()
    told = [(row, *(float(margin[row]) for margin in margins)) for row in rows]
    assert len(rows) <= 0.005 * len(case.x), told
    assert 0 < int(one.sum()) < int(correct(case.model, case.x, case.y).sum())


def rows_of(images: Tensor, batch: Tensor) -> Tensor:
    """Return where each image stands in the batch."""
    return torch.stack([(batch == image).flatten(1).all(dim=1).nonzero()[0, 0] for image in images])


# FAB


class DealtFAB(FABAttack_PT):
    """The reference with random starts from our stream."""

    def deal(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> DealtFAB:
        self.case, self.monkeypatch, self.runs = case, monkeypatch, dict[str | int, int]()
        return self

    def attack_single_run(
        self, x: Tensor, y: Tensor, use_rand_start: bool = False, is_targeted: bool = False
    ) -> Tensor:
        target = self.target_class - 2 if is_targeted else "any"
        restart = self.runs[target] = self.runs.get(target, -1) + 1
        assert use_rand_start == (restart > 0)
        rng = self.case.rng().take(rows_of(x, self.case.x)).sub("target", target, restart)
        with self.monkeypatch.context() as patch:
            patch.setattr(torch, "rand", lambda shape: (rng.uniform("start", shape, -1.0, 1.0) + 1) / 2)
            patch.setattr(torch, "randn", lambda shape: rng.normal("start", shape))
            return super().attack_single_run(x, y, use_rand_start, is_targeted)


def reference_fab(
    case: Case, monkeypatch: pytest.MonkeyPatch, steps: int, restarts: int, targets: int | None
) -> DealtFAB:
    settings = {"n_restarts": restarts, "n_iter": steps, "eps": case.ball.eps, "n_target_classes": targets or 9}
    attack = DealtFAB(case.model, NAMES[case.ball.norm], targeted=targets is not None, **settings)
    return attack.deal(case, monkeypatch)


@every_norm
@every_case
def test_fab_t_breaks_the_images_that_the_reference_breaks(
    name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(name, norm)
    theirs = reference_fab(case, monkeypatch, 20, 2, 3).perturb(case.x, case.y)
    ours = FABT(3, 20, restarts=2)(case.model, case.x, case.y, case.ball, case.rng())
    assert_verdicts_agree(case, ours, theirs)


@every_norm
@every_case
def test_fab_breaks_the_images_that_the_reference_breaks(
    name: str, norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(name, norm)
    theirs = reference_fab(case, monkeypatch, 15, 2, None).perturb(case.x, case.y)
    ours = FAB(15, 2)(case.model, case.x, case.y, case.ball, case.rng())
    assert_verdicts_agree(case, ours, theirs)


@every_norm
@every_case
@pytest.mark.parametrize("targeted", [True, False])
def test_fab_finds_the_same_distances(name: str, norm: Norm, targeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(name, norm)
    right = correct(case.model, case.x, case.y)
    reference = reference_fab(case, monkeypatch, 30, 1, 1 if targeted else None)
    reference.target_class = 2
    point = reference.attack_single_run(case.x, case.y, is_targeted=targeted)
    theirs = case.ball.distance(point, case.x)
    attack = FABT(1, 30) if targeted else FAB(30, 1)
    found = attack.nearest(case.model, case.x, case.y, case.ball, case.rng())
    ours = torch.where(found.distance.isfinite(), found.distance, 0.0)
    assert torch.equal(ours > 0, theirs > 0)
    assert torch.equal(case.ball.distance(found.point, case.x), ours)
    alike = (ours - theirs).abs() <= 1e-4 * theirs
    assert alike[right].float().mean() >= 0.9, (ours / theirs)[right & ~alike]
    assert int((ours > 0).sum()) >= 0.9 * int(right.sum())


@pytest.mark.parametrize(("norm", "theirs"), [("linf", projection_linf), ("l2", projection_l2)])
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.95, 2.0])
def test_projections_are_the_references(
    norm: Norm, theirs: Callable[[Tensor, Tensor, Tensor], Tensor], share: float
) -> None:
    rng = Stream.of(0, "projection")
    point = rng.uniform("point", (20, 75), -0.3, 1.3, dtype=torch.float64).clamp(0, 1)
    slope = rng.normal("slope", (20, 75), dtype=torch.float64)
    slope[:, ::9] = 0.0
    signs = 2.0 * rng.integers("signs", (20,), 0, 2) - 1
    room = torch.where(slope * signs[:, None] < 0, 1 - point, point)
    gap = signs * share * (slope.abs() * room).sum(dim=1)
    found = project(point, slope, gap, norm)
    assert torch.allclose(found, theirs(point, slope, (slope * point).sum(dim=1) - gap), atol=1e-12)


# Square


class DealtSquare(SquareAttack):
    """The reference with the draws of our stream; it has no ids, so who still stands is kept count of here."""

    def deal(self, case: Case, p: float) -> DealtSquare:
        self.case, self.share, self.restart, self.standing = case, p, -1, torch.arange(0)
        self.integers: Iterator[Tensor] = iter(())
        self.signs: Iterator[Callable[[Tensor], Tensor]] = iter(())
        self.coins: Iterator[int] = iter(())
        return self

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        self.restart += 1
        rows = rows_of(x, self.case.x)
        self.standing = torch.arange(len(x))
        rng = self.case.rng().take(rows).sub("restart", self.restart)
        self.integers, self.signs, self.coins = self.draws(rng, x)
        return super().attack_single_run(x, y)

    def draws(self, rng: Stream, x: Tensor) -> tuple[Iterator[Tensor], Iterator[Tensor], Iterator[int]]:
        n, channels, height, width = x.shape
        start, l2 = rng.sub("start"), self.norm == "L2"
        integers, signs, coins = list[int](), list[Tensor](), list[int]()
        if l2:
            assert height % 5 == width % 5 == 0  # otherwise the reference may begin bumps outside the image
            signs += start.integers("signs", (n, 25, channels, 1, 1), 0, 2).unbind(dim=1)
            coins += start.images(None).integers("turned", (25,), 0, 2).tolist()
        else:
            signs.append(start.integers("stripes", (n, channels, 1, width), 0, 2))
        for first, count, share in _blocks(self.n_queries, self.share):
            side = round((share * height * width) ** 0.5)
            side = min(max(side, 3) | 1 if l2 else max(side, 1), height, width)
            own = rng.sub("queries", first)
            shared = own.images(None)
            names = ("window top", "window left", "second top", "second left")[: 4 if l2 else 2]
            places = [shared.integers(name, (count,), 0, height - side) for name in names]
            integers += torch.stack(places, dim=1).flatten().tolist()
            if l2:
                coins += shared.integers("turned", (count,), 0, 2).tolist()
                signs += own.integers("signs", (n, count, channels, 1, 1), 0, 2).unbind(dim=1)
            else:
                signs += shared.integers("signs", (count, channels, 1, 1), 0, 2).unbind()
        return iter([torch.tensor([value]) for value in integers]), iter(signs), iter(coins)

    def random_int(self, low: int = 0, high: int = 1, shape: tuple[int, ...] = (1,)) -> Tensor:
        drawn = next(self.integers)
        assert low <= int(drawn) < max(high, 1)
        return drawn

    def random_choice(self, shape: list[int]) -> Tensor:
        drawn = 2.0 * next(self.signs) - 1
        drawn = drawn[self.standing] if len(shape) == 4 else drawn
        assert list(drawn.shape) == list(shape)
        return drawn

    def eta(self, s: int) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda shape: torch.tensor([0.25 + 0.5 * next(self.coins)]))
            return super().eta(s)

    def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        margin, loss = super().margin_and_loss(x, y)
        self.standing = self.standing[margin > 0]
        return margin, loss


def reference_square(case: Case, model: Callable[[Tensor], Tensor], queries: int, restarts: int) -> Tensor:
    attack = DealtSquare(model, NAMES[case.ball.norm], queries, case.ball.eps, 0.8, restarts, resc_schedule=False).deal(
        case, 0.8
    )
    with torch.no_grad():
        return attack.perturb(case.x, case.y)


@every_norm
@every_case
def test_square_breaks_the_images_that_the_reference_breaks(name: str, norm: Norm) -> None:
    case = case_of(name, norm)
    theirs = reference_square(case, case.model, 250, 2)
    ours = Square(250, restarts=2)(case.model, case.x, case.y, case.ball, case.rng())
    assert_verdicts_agree(case, ours, theirs)


class Recorded:
    """A model that keeps what it was asked, and the margins."""

    def __init__(self, case: Case) -> None:
        self.case, self.asked = case, list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return self.case.model(x)


@every_norm
@every_case
def test_square_asks_what_the_reference_asks(name: str, norm: Norm) -> None:
    """Equal queries on equal images: the points taken before are the same, and so are the images that dropped out."""
    case = case_of(name, norm)
    right = correct(case.model, case.x, case.y)
    case = case._replace(x=case.x[right], y=case.y[right])
    ours, theirs = Recorded(case), Recorded(case)
    reference_square(case, theirs, 120, 1)
    Square(120)(ours, case.x, case.y, case.ball, case.rng())
    queries = theirs.asked[1:-1]  # the clean images before, and the verdict after
    assert len(ours.asked) == len(queries) == 121
    for number, (one, other) in enumerate(zip(ours.asked, queries, strict=True)):
        assert one.shape == other.shape, number
        assert torch.allclose(one, other, atol=1e-6), (number, float((one - other).abs().max()))
