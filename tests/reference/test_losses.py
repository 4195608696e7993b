"""Losses and gradients agree with the straightforward implementations of losses.py to 1e-10 in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from demilune.attacks import KLPGD, PGD, frozen
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
    Batch,
    Examples,
    Local,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from reference import losses

ATTACK = PGD(steps=4, step_ratio=0.4)
KL = KLPGD(steps=3, step_ratio=0.4)
TOLERANCE = 1e-10
seeds = pytest.mark.parametrize("seed", [0, 1, 2])
networks = pytest.mark.parametrize(("seed", "classes"), [(0, 4), (1, 2), (2, 10)])


def network(seed: int, classes: int = 4) -> nn.Module:
    """A network in train mode whose predictions are right for some images and wrong for others."""
    return tiny(classes, seed=seed, dtype=torch.float64).train()


def images(seed: int, n: int = 7, classes: int = 4) -> Batch:
    return batch_of(n, classes, seed=seed, dtype=torch.float64)


def made_by(method: Method, model: nn.Module, batch: Batch) -> Examples:
    with frozen(model, method.bn):
        return method.examples(model, batch, BALL, stream(batch))


def path_of(attack: PGD, model: nn.Module, batch: Batch) -> list[Tensor]:
    """The attack's iterates x'_0 … x'_K."""
    with frozen(model, "eval"):
        return [iterate.point for iterate in attack.path(model, batch.x, batch.y, BALL, stream(batch))]


def assert_close(ours: Tensor, theirs: Tensor, what: str = "") -> None:
    difference, size = float((ours - theirs).norm()), float(theirs.norm())
    assert difference <= TOLERANCE * size, f"{what}: {difference:.3g} of {size:.3g}"


def assert_agree(method: Method, model: nn.Module, made: Examples, reference: Callable[[nn.Module], Tensor]) -> None:
    """Compare loss, gradients, and what the passes did to batch norm."""
    other = copy.deepcopy(model)
    model.zero_grad(set_to_none=True)
    ours, theirs = method.objective(model, made).mean(), reference(other)
    assert_close(ours.detach(), theirs.detach(), "loss")
    ours.backward()
    theirs.backward()
    for (name, mine), his in zip(model.named_parameters(), other.parameters(), strict=True):
        assert float(his.grad.norm()) > 0
        assert_close(mine.grad, his.grad, name)
    for (name, mine), his in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.allclose(mine, his, rtol=1e-12, atol=1e-14), name


@seeds
def test_standard(seed: int) -> None:
    model, batch = network(seed), images(seed)
    method = Standard()
    assert_agree(method, model, made_by(method, model, batch), lambda net: losses.standard(net, batch.x, batch.y))


@networks
def test_sat(seed: int, classes: int) -> None:
    model, batch = network(seed, classes), images(seed, 7, classes)
    method = SAT(ATTACK)
    made = made_by(method, model, batch)
    assert_agree(method, model, made, lambda net: losses.sat(net, made.points, batch.y))


def test_sat_with_soft_labels() -> None:
    model, batch = network(0), images(0)
    method = SAT(ATTACK, mass=0.55)
    made = made_by(method, model, batch)
    target = losses.smoothed(batch.y, torch.full((7,), 0.55, dtype=torch.float64), 4)
    assert_agree(method, model, made, lambda net: losses.soft_cross_entropy(net(made.points), target))


@networks
@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades(seed: int, beta: float, classes: int) -> None:
    model, batch = network(seed, classes), images(seed, 7, classes)
    method = TRADES(KL, beta=beta)
    made = made_by(method, model, batch)
    assert_agree(method, model, made, lambda net: losses.trades(net, batch.x, made.points, batch.y, beta))


@seeds
@pytest.mark.parametrize("beta", [5.0, 6.0])
def test_mart(seed: int, beta: float) -> None:
    model, batch = network(seed), images(seed)
    method = MART(replace(ATTACK, noise=0.001), beta=beta)
    made = made_by(method, model, batch)
    assert_agree(method, model, made, lambda net: losses.mart(net, batch.x, made.points, batch.y, beta))


@seeds
@pytest.mark.parametrize(
    ("gamma", "clean", "vertex"), [(2.0, 1.0, 0.1), (1.5, 0.9, 0.3), (9.0, 1.0, 0.1)], ids=["paper", "other", "far"]
)
def test_avm(seed: int, gamma: float, clean: float, vertex: float) -> None:
    model, batch = network(seed), images(seed)
    method = AVM(ATTACK, gamma, clean, vertex)
    made, end = made_by(method, model, batch), path_of(ATTACK, model, batch)[-1]
    weight = stream(batch).sub("avm").uniform("weight", (7, 1), dtype=torch.float64)[:, 0]
    assert_agree(
        method,
        model,
        made,
        lambda net: losses.avm(net, batch.x, end, batch.y, weight, 4, gamma, clean, vertex),
    )


@seeds
def test_adt(seed: int) -> None:
    model, batch = network(seed), images(seed)
    method = ADT(steps=2, draws=2)
    made = made_by(method, model, batch)
    assert_agree(method, model, made, lambda net: losses.sat(net, made.points, batch.y))


@seeds
@pytest.mark.parametrize("shift", [-1.0, 0.5])
@pytest.mark.parametrize("steps", [4, 5])
def test_gairat(seed: int, shift: float, steps: int) -> None:
    model, batch = network(seed), images(seed, 12)
    attack = replace(ATTACK, steps=steps, step_ratio=0.2)
    method = GAIRAT(attack, shift=shift)
    made, path = made_by(method, model, batch), path_of(attack, model, batch)
    assert len(losses.gairat_weights(model, path, batch.y, shift).unique()) > 1
    assert_agree(method, model, made, lambda net: losses.gairat(net, path, batch.y, shift))


@seeds
@pytest.mark.parametrize(
    ("samples", "largest", "high", "low"), [(2, 2.0, 1.0, 0.1), (1, 3.0, 1.0, 0.3), (3, 2.0, 0.8, 0.1)]
)
def test_rat(seed: int, samples: int, largest: float, high: float, low: float) -> None:
    model, batch = network(seed), images(seed, 9)
    method = RAT(ATTACK, samples=samples, scale=largest, mass_high=high, mass_low=low)
    made, path = made_by(method, model, batch), path_of(ATTACK, model, batch)
    draws = stream(batch).sub("rat")
    position = draws.uniform("position", (9, samples), dtype=torch.float64).T
    scale = draws.integers("scale", (9, samples), 0, round(largest * 10) + 1).T.double() / 10
    assert_agree(
        method,
        model,
        made,
        lambda net: losses.rat(net, batch.x, path, batch.y, position, scale, 4, largest, high, low),
    )


def test_gairat_may_be_averaged_with_sat() -> None:
    """lrat.md 4.3 (a)."""
    model, batch = network(0), images(0, 12)
    attack = replace(ATTACK, step_ratio=0.2)
    method = GAIRAT(attack, share=0.5)
    made, path = made_by(method, model, batch), path_of(attack, model, batch)

    def average(net: nn.Module) -> Tensor:
        other = copy.deepcopy(net)  # so that the network itself sees the images once, as the library's does
        other.load_state_dict(net.state_dict())
        logits = net(path[-1])
        rows = nn.functional.cross_entropy(logits, batch.y, reduction="none")
        return (rows.mean() + (losses.gairat_weights(other, path, batch.y, -1.0) * rows).mean()) / 2

    assert_agree(method, model, made, average)


G = {
    "tanh": losses.by_tanh,
    "sigmoid": losses.by_sigmoid,
    "step": losses.by_step,
    "one": losses.always_one,
}
LOCALS = {
    "default": Local(),
    "natural floor": Local(floor=0.25),
    "small mass": Local(mass=0.3),
    "large mass": Local(mass=2.5),
    "shifted": Local(shift=-0.4, slope=3.0),
    "logit": Local(vulnerability="logit", slope=1.5),
    "sigmoid": Local(curve="sigmoid", shift=0.2),
    "step": Local(curve="step"),
    "one": Local(curve="one", floor=0.1),
    "mean": Local(reduction="mean"),
    "eval": Local(measured="eval"),
    "eval, logit": Local(measured="eval", vulnerability="logit", floor=0.1),
}
every_local = pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS)


def weigher(local: Local) -> Callable[[nn.Module, list[Tensor], Tensor], tuple[Tensor, list[Tensor]]]:
    """The reference's weights under the library's configuration."""
    g = G[local.curve]
    if local.curve in ("tanh", "sigmoid"):
        g = partial(g, shift=local.shift, slope=local.slope)
    return partial(
        losses.lrat_weights,
        g=g,
        mass=local.mass,
        least=local.floor,
        mean=local.reduction == "mean",
        measure=local.vulnerability,
        mode=local.measured,
    )


@every_local
@pytest.mark.parametrize(("seed", "attacks"), [(0, "pgd"), (1, "both")])
def test_lrat(seed: int, local: Local, attacks: str) -> None:
    model, batch = network(seed), images(seed, 9)
    method = LRAT(ATTACK, attacks, local)
    made = made_by(method, model, batch)
    variants = list(made.points.split(9))
    assert len(variants) == (2 if attacks == "both" else 1)
    weights = weigher(local)(model, variants, batch.y)
    assert_agree(method, model, made, lambda net: losses.lrat(net, batch.x, variants, batch.y, *weights))


def test_lrat_of_a_sure_network_whose_groups_have_all_kinds_of_weights() -> None:
    model, batch = network(5, 10), images(5, 24, 10)
    with torch.no_grad():
        model.net.linear.weight.mul_(8.0)
    method = LRAT(ATTACK, "cw")
    made = made_by(method, model, batch)
    natural, weights = losses.lrat_weights(model, [made.points], batch.y)
    assert float(natural.min()) < 0.1 < float(natural.max())
    assert_agree(method, model, made, lambda net: losses.lrat(net, batch.x, [made.points], batch.y, natural, weights))


@seeds
def test_lrat_with_global_weights_on_top(seed: int) -> None:
    """lrat.md 4.3 (b)."""
    model, batch = network(seed), images(seed, 12)
    attack = replace(ATTACK, step_ratio=0.2)
    method = LRAT(attack, "both", across=-1.0)
    made, path = made_by(method, model, batch), path_of(attack, model, batch)
    variants = list(made.points.split(12))
    assert torch.equal(variants[0], path[-1])
    across = losses.gairat_weights(model, path, batch.y, -1.0)
    assert len(across.unique()) > 1
    weights = losses.lrat_weights(model, variants, batch.y)
    assert_agree(
        method,
        model,
        made,
        lambda net: losses.lrat(net, batch.x, variants, batch.y, *weights, globally=across),
    )


@every_local
@pytest.mark.parametrize("seed", [0, 1])
def test_lrat_trades(seed: int, local: Local) -> None:
    model, batch = network(seed), images(seed, 9)
    method = LRATTRADES(KL, 4.0, local)
    made = made_by(method, model, batch)
    weights = weigher(local)(model, [made.points], batch.y)
    assert_agree(
        method, model, made, lambda net: losses.lrat_trades(net, batch.x, [made.points], batch.y, *weights, 4.0)
    )


def above_entropy(loss: Tensor, weights: list[Tensor], labels: list[Tensor]) -> Tensor:
    """The library reports LRAT over RAT's points above the labels' entropy, which is a constant."""
    for weight, label in zip(weights, labels, strict=True):
        loss = loss - (weight * torch.special.entr(label).sum(dim=1)).mean()
    return loss


@seeds
@pytest.mark.parametrize(
    "local", [Local(), Local(mass=2.5), Local(reduction="mean", floor=0.2), Local(measured="eval")]
)
def test_lrat_over_rat_s_points(seed: int, local: Local) -> None:
    """lrat.md 12, RAT's m points in m passes, so that batch norm sees one variant at a time (8)."""
    model, batch = network(seed), images(seed, 9)
    method = LRATRAT(RAT(ATTACK, passes="many"), local)
    made, path = made_by(method, model, batch), path_of(ATTACK, model, batch)
    draws = stream(batch).sub("rat")
    position = draws.uniform("position", (9, 2), dtype=torch.float64).T
    scale = draws.integers("scale", (9, 2), 0, 21).T.double() / 10
    points, targets = losses.rat_samples(model, batch.x, path, batch.y, position, scale, 4, 2.0, 1.0, 0.1)
    variants, labels = list(points.split(9)), list(targets.split(9))
    natural, weights = weigher(local)(model, variants, batch.y)

    def reference(net: nn.Module) -> Tensor:
        whole = losses.lrat(net, batch.x, variants, batch.y, natural, weights, labels)
        return above_entropy(whole, weights, labels)

    assert_agree(method, model, made, reference)


@networks
@pytest.mark.parametrize(
    ("alpha", "second", "cc", "symmetric"),
    [
        (0.2, 0.5, 0.8, False),
        (0.2, 0.2, 0.8, False),
        (0.4, 0.5, 0.98, True),
        (0.3, 0.0, 0.5, False),
        (1.0, 1.0, 0.0, True),
    ],
)
def test_taylor_code(seed: int, classes: int, alpha: float, second: float, cc: float, symmetric: bool) -> None:
    model, batch = network(seed, classes), images(seed, 9, classes)
    method = TaylorCode(KL, 6.0, alpha, second, cc, symmetric)
    made = made_by(method, model, batch)
    assert_agree(
        method,
        model,
        made,
        lambda net: losses.taylor_code(net, batch.x, made.points, batch.y, 6.0, alpha, cc, second, symmetric),
    )


@seeds
def test_taylor_code_in_the_released_script_s_eight_passes(seed: int) -> None:
    model, batch = network(seed), images(seed, 9)
    method = TaylorCode(KL, replay=True)
    made = made_by(method, model, batch)
    assert_agree(method, model, made, lambda net: losses.taylor_code_released(net, batch.x, made.points, batch.y))


@networks
@pytest.mark.parametrize(("first", "second"), [(0.1, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_taylor_exact(seed: int, classes: int, first: float, second: float) -> None:
    model, batch = network(seed, classes), images(seed, 9, classes)
    method = TaylorExact(KL, 6.0, first, second)
    made = made_by(method, model, batch)
    assert_agree(
        method, model, made, lambda net: losses.taylor_exact(net, batch.x, made.points, batch.y, 6.0, first, second)
    )


@seeds
@pytest.mark.parametrize("method", [TaylorCode(KL), TaylorCode(KL, alpha=0.0, beta=2.0)], ids=["default", "plain"])
def test_what_a_move_climbs_on_taylor_is_the_trades_loss(seed: int, method: TaylorCode) -> None:
    """taylor.md 3.5: the AWP objective holds neither first nor second term."""
    model, batch = network(seed), images(seed, 9)
    made = made_by(method, model, batch)
    other = copy.deepcopy(model)
    ours = method.climbed(model, made).mean()
    theirs = losses.trades(other, batch.x, made.points, batch.y, method.beta)
    assert_close(ours.detach(), theirs.detach(), "loss")
    for mine, his in zip(
        torch.autograd.grad(ours, list(model.parameters())),
        torch.autograd.grad(theirs, list(other.parameters())),
        strict=True,
    ):
        assert_close(mine, his)
