"""Invariants that the specification sheets list, as far as no other test holds them; no step waits for the device."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import BALL, batch_of, stream, tiny
from contract.tables import METHOD_TABLE, MOVE_TABLE, VARIANTS
from demilune.attacks import CW, KLPGD, PGD, frozen
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.core.weights import movable, moved
from demilune.methods import (
    ADT,
    AVM,
    GAIRAT,
    LRAT,
    LRATTRADES,
    SAT,
    TRADES,
    Batch,
    Examples,
    Local,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
    adt,
    taylor,
)
from demilune.moves import AWP, RWP, Gaussian, NoMove, WeightMove
from demilune.train import step
from reference import losses

ATTACK, KL = PGD(steps=4, step_ratio=0.4), KLPGD(steps=3, step_ratio=0.4)
NOWHERE = Ball("linf", 0.0)
RNG = Stream.of(0, "test")


def network(seed: int = 0, classes: int = 4) -> nn.Module:
    return tiny(classes, seed=seed, dtype=torch.float64).train()


def images(n: int = 9, seed: int = 0, classes: int = 4) -> Batch:
    return batch_of(n, classes, seed=seed, dtype=torch.float64)


def made_by(method: Method, model: nn.Module, batch: Batch, ball: Ball = BALL) -> Examples:
    with frozen(model, method.bn):
        return method.examples(model, batch, ball, stream(batch))


class Taken(SimpleNamespace):
    """The loss, the gradients and the buffers after a pass of the objective on a fresh network."""

    loss: Tensor
    gradients: list[Tensor]
    buffers: list[Tensor]


def taken(method: Method, made: Examples, model: nn.Module | None = None) -> Taken:
    model = model or network()
    loss = method.objective(model, made).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return Taken(loss=loss.detach(), gradients=list(gradients), buffers=[b.clone() for b in model.buffers()])


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(mine, his) for mine, his in zip(ours, theirs, strict=True))


def near(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.allclose(mine, his, rtol=1e-10, atol=1e-14) for mine, his in zip(ours, theirs, strict=True))


# baselines.md


def test_the_last_iterate_s_loss_is_above_the_start_s_on_average() -> None:
    model, batch = network().eval(), images(32)
    points = [iterate.point for iterate in ATTACK.path(model, batch.x, batch.y, BALL, stream(batch))]
    first, last = (float(F.cross_entropy(model(point), batch.y).detach()) for point in (points[0], points[-1]))
    assert last > first + 0.01


def test_trades_at_radius_zero_has_no_divergence() -> None:
    """The library refuses an attack without noise; at radius zero its start is projected back all the same."""
    model, batch = network(), images()
    made = made_by(TRADES(KL), model, batch, NOWHERE)
    assert torch.equal(made.points, batch.x)
    rows, plain = (method.objective(network().eval(), made) for method in (TRADES(KL), Standard()))
    assert torch.equal(rows, plain)


class Flat(nn.Module):
    """A network whose logits depend on nothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), -1) + 0.0 * x.flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("classes", "floor"), [(10, 1.5234), (100, 2.6024)])
def test_the_loss_floor_of_avm(classes: int, floor: float) -> None:
    n = 20_000
    y = torch.arange(n) % classes
    batch = Batch(torch.full((n, 1, 1, 1), 0.5, dtype=torch.float64), y, classes, torch.arange(n), 0)
    made = made_by(AVM(PGD(steps=0)), Flat(classes), batch)
    error = float(made.floor.std()) / n**0.5
    assert error < 0.02
    assert abs(float(made.floor.mean()) - floor) < 4 * error


def opened(points: Tensor, x: Tensor) -> Tensor:
    """u of x + ε tanh u."""
    return torch.atanh((points - x) / BALL.eps)


def grey(n: int = 64) -> Batch:
    x = torch.full((n, 1, 8, 8), 0.5, dtype=torch.float64)
    return Batch(x, torch.arange(n) % 4, 4, torch.arange(n), 0)


def last_noise(batch: Batch) -> Tensor:
    return stream(batch).sub("adt").normal("last", batch.x.shape, dtype=torch.float64)


def test_adt_begins_with_a_deviation_of_log_2() -> None:
    batch = grey()
    u, noise = opened(made_by(ADT(steps=0), Flat(4), batch).points, batch.x), last_noise(batch)
    assert torch.allclose(u, math.log(2) * noise, rtol=1e-9, atol=1e-12)


def test_adt_without_spread_or_entropy_is_sign_ascent_under_the_tanh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adt, "F", SimpleNamespace(softplus=lambda spread: 0.0 * spread + 1e-30))
    monkeypatch.setattr(adt, "SMALL", 1e-30)  # Adam's 1e-8 damps gradients of that size
    model, batch = network().eval(), images()
    points = made_by(ADT(steps=4, draws=1, entropy_weight=0.0, zero_grad=True), model, batch).points
    u = torch.zeros_like(batch.x)
    for _ in range(4):
        leaf = u.requires_grad_()
        loss = F.cross_entropy(model(torch.clamp(batch.x + BALL.eps * torch.tanh(leaf), 0, 1)), batch.y)
        u = leaf.detach() + 0.3 * torch.sign(torch.autograd.grad(loss, leaf)[0])
    expected = torch.clamp(batch.x + BALL.eps * torch.tanh(u), 0, 1)
    assert torch.allclose(points, expected, rtol=1e-12, atol=1e-14)
    assert float((points - batch.x).abs().mean()) > 0.3 * BALL.eps


def test_on_a_constant_network_adt_keeps_its_mean_and_widens_with_the_weight_of_the_entropy() -> None:
    batch = grey()
    noise, deviation = last_noise(batch), {}
    for weight in (0.0, 0.01, 1.0):
        method = ADT(steps=3, draws=5, entropy_weight=weight, zero_grad=True)
        u = opened(made_by(method, Flat(4), batch).points, batch.x)
        assert abs(float(u.mean())) < 4 * float(u.std()) / u.numel() ** 0.5
        deviation[weight] = float((u * noise).mean() / (noise * noise).mean())
    assert deviation[0.0] == pytest.approx(math.log(2), rel=1e-6)
    assert deviation[0.0] < deviation[0.01] <= deviation[1.0] + 1e-9
    entropy = [float((torch.log(1 - torch.tanh(d * noise) ** 2)).mean()) + math.log(d) for d in deviation.values()]
    assert entropy[0] + 0.01 < entropy[1]
    assert entropy[0] + 0.01 < entropy[2]


@pytest.mark.parametrize("place", [-0.8, 0.8])
def test_the_entropy_of_adt_pushes_the_mean_towards_zero(place: float) -> None:
    batch = grey()
    leaf = torch.full_like(batch.x, place).requires_grad_()
    loss = ADT(entropy_weight=1.0).inner(
        Flat(4), batch.x, batch.y, BALL, last_noise(batch), leaf, torch.zeros_like(batch.x)
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(gradient.mean()) * place > 0  # what is descended


# rwp.md 13


def climber(method: Method, model: nn.Module, made: Examples) -> Callable[[], Tensor]:
    return lambda: method.climbed(model, made)


def length(offset: Mapping[str, Tensor]) -> float:
    return float(torch.cat([v.flatten() for v in offset.values()]).norm())


def test_2_a_threshold_of_zero_gives_exactly_no_offset() -> None:
    model, method = network(), SAT(ATTACK)
    offset = RWP(c_min=0.0).offset(model, climber(method, model, made_by(method, model, images())), RNG).by
    assert offset
    assert all(torch.equal(v, torch.zeros_like(v)) for v in offset.values())


@pytest.mark.parametrize("steps", [1, 3])
def test_3_the_threshold_never_shrinks_the_offset(steps: int) -> None:
    model, method = network(), SAT(ATTACK)
    climb = climber(method, model, made_by(method, model, images()))
    chosen = climb().detach() < 1.3
    assert 0 < int(chosen.sum()) < 9
    offset = RWP(gamma=0.02, steps=steps, c_min=1.3).offset(model, climb, RNG).by
    whole = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "weight" in n and p.dim() > 1])
    assert abs(length(offset) / (0.02 * float(whole.norm())) - 1) < 1e-12


@pytest.mark.parametrize("move", [AWP(), RWP(steps=2), Gaussian()], ids=lambda move: type(move).__name__)
def test_4_an_offset_has_matrices_and_kernels_alone(move: WeightMove) -> None:
    model, method = network(), SAT(ATTACK)
    offset = move.offset(model, climber(method, model, made_by(method, model, images())), RNG).by
    weights = {name: p for name, p in model.named_parameters() if p.dim() >= 2}
    expected = weights if not isinstance(move, Gaussian) else {n: p for n, p in weights.items() if p.dim() == 4}
    assert offset.keys() == expected.keys()
    assert all(offset[name].shape == p.shape for name, p in expected.items())


def test_9_once_no_example_is_left_the_offset_stays() -> None:
    model, method = network(), SAT(ATTACK)
    made = made_by(method, model, images())
    climb = climber(method, model, made)
    threshold = float(climb().detach().sort().values[2]) + 1e-9  # three examples at first
    found, left = [], None
    for steps in range(1, 9):
        found.append(RWP(gamma=0.2, steps=steps, c_min=threshold).offset(model, climb, RNG).by)
        with moved(model, found[-1]):
            chosen = int((climb().detach() < threshold).sum())
        if chosen == 0:
            left = left or steps
        assert left is None or chosen == 0
    assert left is not None and left < 8
    for later in found[left:]:
        assert equal(list(later.values()), list(found[left - 1].values()))
    assert left == 1 or not equal(list(found[0].values()), list(found[left - 1].values()))


@pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
def test_10_at_rate_zero_a_step_leaves_the_weights_bits(move: WeightMove) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    step(model, optimizer, SAT(ATTACK), images(), BALL, RNG, move=move)
    assert equal(before, [p.detach() for p in model.parameters()])


def test_12_the_offset_climbs_the_loss_of_the_selected() -> None:
    model, method = network(), SAT(ATTACK)
    climb = climber(method, model, made_by(method, model, images(16)))
    before = climb().detach()
    chosen = before < float(before.median())
    offset = RWP(gamma=1e-3, steps=1, c_min=float(before.median())).offset(model, climb, RNG).by
    with moved(model, offset):
        after = climb().detach()
    assert float(after[chosen].mean()) > float(before[chosen].mean())


def test_13_trades_rows_are_one_an_image_and_their_mean_is_the_loss() -> None:
    model, method, batch = network(), TRADES(KL), images()
    made = made_by(method, model, batch)
    rows = method.climbed(model, made)
    assert rows.shape == (9,)
    reference = losses.trades(network(), batch.x, made.points, batch.y, 6.0)
    assert torch.allclose(rows.mean(), reference, rtol=1e-12)


def test_14_without_the_divergence_the_condition_is_that_of_clean_images() -> None:
    model, method, move = network(), TRADES(KL, beta=0.0), RWP(steps=3, c_min=1.3)
    made = made_by(method, model, images())
    rows = method.climbed(model, made).detach()
    assert 0 < int((rows < 1.3).sum()) < 9
    ours = move.offset(model, climber(method, model, made), RNG).by
    theirs = move.offset(model, lambda: F.cross_entropy(model(made.batch.x), made.batch.y, reduction="none"), RNG).by
    assert all(torch.allclose(v, theirs[name], rtol=1e-10, atol=1e-15) for name, v in ours.items())


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_16_no_graph_is_kept_from_step_to_step() -> None:
    model, method = network(), TRADES(KL)
    made = made_by(method, model, images())
    seen: weakref.WeakSet[Saved] = weakref.WeakSet()
    alive: list[int] = []

    def pack(tensor: Tensor) -> Saved:
        kept = Saved(tensor)
        seen.add(kept)
        return kept

    def climb() -> Tensor:
        alive.append(len(seen))
        rows = method.climbed(model, made)
        assert len(seen) > 20
        return rows

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        offset = RWP(steps=6).offset(model, climb, RNG).by
    assert alive == [0] * 6
    assert len(seen) == 0
    assert not any(v.requires_grad for v in offset.values())


# lrat.md 9

ONE = Local(curve="one", mass=0.0)


def test_1_with_weight_one_and_no_mass_lrat_is_sat_bit_for_bit() -> None:
    model, batch = network(), images()
    ours, theirs = (made_by(method, model, batch) for method in (LRAT(ATTACK), SAT(ATTACK)))
    assert torch.equal(ours.points, theirs.points)
    skipped, sat = taken(LRAT(ATTACK, local=ONE), ours), taken(SAT(ATTACK), theirs)
    assert torch.equal(skipped.loss, sat.loss)
    assert equal(skipped.gradients, sat.gradients)
    assert equal(skipped.buffers, sat.buffers)
    kept = taken(LRAT(ATTACK, local=replace(ONE, mass=1.0)), ours)
    assert torch.allclose(kept.loss, sat.loss, rtol=1e-12)
    assert near(kept.gradients, sat.gradients)
    assert not equal(kept.buffers, sat.buffers)


@pytest.mark.parametrize("attacks", ["pgd", "cw", "both"])
def test_2_with_weight_zero_lrat_is_standard_training(attacks: str) -> None:
    model, batch, method = network(), images(), LRAT(ATTACK, attacks, Local(shift=-1e3))
    ours, theirs = taken(method, made_by(method, model, batch)), taken(Standard(), made_by(Standard(), model, batch))
    assert torch.allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert near(ours.gradients, theirs.gradients)


CURVES = [Local(), Local(mass=2.0), Local(curve="sigmoid"), Local(curve="step"), Local(reduction="mean", shift=0.3)]


@pytest.mark.parametrize("local", CURVES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_3_and_4_the_mass_is_reserved_and_weights_are_monotone(local: Local, count: int) -> None:
    frailty = Stream.of(0, "frailty").uniform("v", (count, 40), -1.0, 1.0, dtype=torch.float64)
    natural, weight = local.weights(frailty)
    whole = weight.sum(dim=0)
    assert torch.allclose(natural + whole, whole.clamp_min(local.mass), rtol=1e-14)
    assert (natural + whole >= local.mass - 1e-14).all()
    assert (natural >= 0).all() and (weight >= 0).all()
    raised = frailty.clone()
    raised[0] += 0.3
    again, higher = local.weights(raised)
    assert (higher[0] >= weight[0]).all()
    assert (again <= natural).all()
    assert (higher[0] > weight[0]).any()
    floor = replace(local, floor=0.25).weights(frailty)[0]
    assert (floor >= 0.25).all()


def rows_of(method: Method, model: nn.Module, batch: Batch) -> Tensor:
    """Per-image losses with batch norm held still, so that images are coupled through weights alone."""
    return method.objective(model.eval(), made_by(method, model.eval(), batch)).detach()


def test_5_measured_in_eval_mode_no_image_weighs_on_another_but_gairat_s_do() -> None:
    model, batch = network(), images(12)
    part = batch._replace(x=batch.x[:5], y=batch.y[:5], ids=batch.ids[:5])
    weak = replace(ATTACK, step_ratio=0.2)
    for method in (LRAT(weak, "both", Local(measured="eval")), LRATTRADES(KL, local=Local(measured="eval"))):
        whole, some = rows_of(method, model, batch), rows_of(method, model, part)
        assert torch.allclose(whole[:5], some, rtol=1e-9)
    for method in (GAIRAT(weak), LRAT(weak, across=-1.0)):
        assert not torch.allclose(rows_of(method, model, batch)[:5], rows_of(method, model, part), rtol=1e-3)


def test_5_measured_in_train_mode_weights_feel_the_batch() -> None:
    """The counterpart, so that the test above is known to tell."""
    model, batch = network(), images(12)
    method = LRAT(ATTACK)
    made, model = made_by(method, model, batch), model.train()
    part = made._replace(batch=batch._replace(x=batch.x[:5], y=batch.y[:5]), points=made.points[:5])
    part = part._replace(targets=made.targets[:5], floor=made.floor[:5])
    assert not torch.allclose(method.objective(model, made)[:5], method.objective(model, part), rtol=1e-3)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_6_attacks_may_be_permuted_and_doubled(reduction: str) -> None:
    model, batch = network(), images()
    method = LRAT(ATTACK, "both", Local(reduction=reduction))
    made = made_by(method, model, batch)
    one, two = made.points.split(9)
    assert not torch.equal(one, two)
    other = made._replace(points=torch.cat([two, one]))
    assert torch.allclose(taken(method, made).loss, taken(method, other).loss, rtol=1e-12)
    frailty = Stream.of(1, "frailty").uniform("v", (1, 40), -1.0, 1.0, dtype=torch.float64)
    single, double = (method.local.weights(v)[0] for v in (frailty, frailty.repeat(2, 1)))
    assert torch.allclose(single, double, rtol=1e-14) == (reduction == "mean")


def test_8_vulnerability_is_a_margin_of_probabilities_and_half_weight_is_the_decision_boundary() -> None:
    draw = Stream.of(2, "logits")
    logits = 3 * draw.normal("z", (200, 5), dtype=torch.float64)
    y = draw.integers("y", (200,), 0, 5)
    frailty = Local().frailty(logits, y)
    assert float(frailty.min()) >= -1 and float(frailty.max()) <= 1
    assert torch.equal(frailty > 0, logits.argmax(dim=1) != y)
    assert torch.equal(Local().frailty(logits + 7, y) > 0, frailty > 0)
    at_boundary = Local().weights(torch.zeros(1, 1, dtype=torch.float64))
    assert float(at_boundary[0]) == float(at_boundary[1]) == 0.5


def test_9_lrat_trades_with_weight_one_is_trades() -> None:
    model, batch = network(), images()
    method = LRATTRADES(KL, local=Local(curve="one"))
    ours, theirs = made_by(method, model, batch), made_by(TRADES(KL), model, batch)
    assert torch.equal(ours.points, theirs.points)
    one, two = taken(method, ours), taken(TRADES(KL), theirs)
    assert torch.allclose(one.loss, two.loss, rtol=1e-12)
    assert near(one.gradients, two.gradients)
    assert equal(one.buffers, two.buffers)


@pytest.mark.parametrize("attacks", ["pgd", "both"])
@pytest.mark.parametrize("local", [Local(), Local(mass=0.4), Local(mass=2.0)])
def test_10_at_radius_zero_the_group_is_its_image_with_the_whole_weight(local: Local, attacks: str) -> None:
    model, batch = network().eval(), images()
    method = LRAT(ATTACK, attacks, local)
    made = made_by(method, model, batch, NOWHERE)
    rows, logits = method.objective(model.eval(), made), model(batch.x)
    _, weight = local.weights(local.frailty(logits, batch.y)[None].repeat(made.points.shape[0] // 9, 1))
    expected = weight.sum(dim=0).clamp_min(local.mass) * F.cross_entropy(logits, batch.y, reduction="none")
    assert torch.allclose(rows, expected, rtol=1e-12)


def test_the_second_attack_draws_a_start_of_its_own() -> None:
    """lrat.md 8."""
    model, batch = network(), images()
    still = replace(ATTACK, steps=0)
    one, two = made_by(LRAT(still, "both"), model, batch).points.split(9)
    assert not torch.equal(one, two)
    assert torch.equal(one, made_by(SAT(still), model, batch).points)
    assert torch.equal(
        made_by(LRAT(still, "cw"), model, batch).points, CW(0).perturb(model, *batch[:2], BALL, stream(batch))
    )


# taylor.md 9


def test_taylor_1_without_terms_and_noise_it_is_trades_bit_for_bit() -> None:
    model, batch = network(), images()
    method = TaylorCode(KL, alpha=0.0, noise=0.0)
    ours, theirs = made_by(method, model, batch), made_by(TRADES(KL), model, batch)
    assert torch.equal(ours.points, theirs.points)
    one, two = taken(method, ours), taken(TRADES(KL), theirs)
    assert torch.equal(one.loss, two.loss)
    assert equal(one.gradients, two.gradients)
    assert equal(one.buffers, two.buffers)


@pytest.mark.parametrize("names", ["conv2d", "conv"])
def test_taylor_2_noise_changes_the_attack_and_never_the_network(names: str) -> None:
    batch, model = images(), network()
    if names == "conv":
        model.net.conv = model.net.features  # the same layers by a name that the released code looks for
        model.net.features = nn.Sequential()
        model.net.forward = lambda x: model.net.linear(model.net.conv(x).mean(dim=(2, 3)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quiet, loud = (made_by(TaylorCode(KL, noise=n, noise_names=names), model, batch).points for n in (0.0, 0.1))
    assert torch.equal(quiet, made_by(TRADES(KL), model, batch).points)
    assert not torch.equal(quiet, loud)
    other = made_by(TaylorCode(KL, noise=0.1, noise_names=names), model, batch).points
    assert torch.equal(loud, other)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_taylor_3_the_closed_form_is_the_gradient_of_the_last_layer(dtype: torch.dtype, tolerance: float) -> None:
    model, batch = tiny(6, dtype=dtype).train(), batch_of(9, 6, dtype=dtype)
    kept: list[Tensor] = []
    hook = model.net.linear.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    logits = model(batch.x)
    hook.remove()
    r = taylor.pull(logits, kept[0], batch.y)
    assert torch.allclose(r, losses.row_sums(model, logits, batch.y), atol=tolerance)
    assert abs(float(r.sum())) < 10 * tolerance
    assert float(r.abs().max()) > 1e-3


def matrix(a: Tensor, wrong_mass: float = 0.8) -> Tensor:
    return taylor.soft_labels(a, torch.arange(len(a)), wrong_mass)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("wrong_mass", [0.0, 0.8, 0.98])
def test_taylor_4_soft_labels_are_distributions_and_see_no_scale_or_shift(classes: int, wrong_mass: float) -> None:
    for seed in range(5):
        a = Stream.of(seed, "a").normal("a", (classes,), dtype=torch.float64)
        q = matrix(a, wrong_mass)
        assert torch.allclose(q, losses.soft_label_matrix(a, wrong_mass), rtol=1e-12, atol=1e-15)
        assert torch.allclose(q.sum(dim=1), torch.ones(classes, dtype=torch.float64), rtol=1e-14)
        assert torch.allclose(q.diagonal(), torch.full((classes,), 1 - wrong_mass, dtype=torch.float64), rtol=1e-14)
        assert (q >= 0).all()
        assert torch.allclose(q, matrix(3.7 * a - 2.0, wrong_mass), rtol=1e-12, atol=1e-14)
        if classes > 2:
            least = int(a.argmin())
            assert all(float(q[k, least]) == 0 for k in range(classes) if k != least)


@pytest.mark.parametrize(
    "a", [[0.3] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0], [-1e-14, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0]]
)
def test_taylor_4_soft_labels_are_uniform_where_the_released_code_divides_by_zero(a: list[float]) -> None:
    values = torch.tensor(a, dtype=torch.float64)
    q = matrix(values)
    assert q.isfinite().all()
    assert torch.allclose(q, losses.soft_label_matrix(values, 0.8), rtol=1e-12, atol=1e-15)
    assert torch.allclose(q.sum(dim=1), torch.ones(4, dtype=torch.float64), rtol=1e-14)
    alike = torch.full((3,), 0.8 / 3, dtype=torch.float64)
    k = int(values.argmax())
    assert torch.allclose(torch.cat([q[k, :k], q[k, k + 1 :]]), alike, rtol=1e-12)


def test_taylor_5_at_radius_zero_labels_are_uniform_off_the_class_and_terms_coincide() -> None:
    model, batch = network(), images()
    made = made_by(TaylorCode(KL), model, batch, NOWHERE)
    assert torch.equal(made.points, batch.x)
    label = losses.smoothed(batch.y, torch.full((9,), 0.2, dtype=torch.float64), 4)
    logits = network()(batch.x)
    term, loss = losses.kl_to(label, logits), F.cross_entropy(logits, batch.y)
    for second in (0.0, 0.5):
        found = TaylorCode(KL, alpha=0.3, second=second).objective(network(), made).mean()
        assert torch.allclose(found, 0.7 * loss + 0.3 * (1 + second) * term, rtol=1e-10)


def first_order(x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y1 and y2 of the library's own pieces."""
    r = []
    for pictures in (x, x_adv):
        model, kept = network(), []
        model.net.linear.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
        r.append(taylor.pull(model(pictures), kept[0], y).abs())
    return taylor.soft_labels(r[0] - r[1], y, 0.8), taylor.soft_labels(r[1] - r[0], y, 0.8)


def test_taylor_6_swapping_the_images_swaps_the_labels() -> None:
    batch = images()
    points = made_by(TaylorCode(KL), network(), batch).points
    one, two = first_order(batch.x, points, batch.y)
    other, another = first_order(points, batch.x, batch.y)
    assert torch.equal(one, another)
    assert torch.equal(two, other)
    assert not torch.allclose(one, two)


def test_taylor_8_terms_are_divergences() -> None:
    draw = Stream.of(3, "terms")
    logits, other = (draw.normal(name, (9, 4), dtype=torch.float64) for name in ("p", "q"))
    assert torch.allclose(
        taylor.divergence(logits.softmax(dim=1), logits), torch.zeros(9, dtype=torch.float64), atol=1e-14
    )
    for seed in range(3):
        label = matrix(Stream.of(seed, "a").normal("a", (4,), dtype=torch.float64))[torch.arange(9) % 4]
        assert (taylor.divergence(label, other) > 0).all()


def test_taylor_9_neither_the_order_of_images_nor_of_classes_matters() -> None:
    model, batch, method = network(), images(), TaylorCode(KL, alpha=0.5)
    made = made_by(method, model, batch)
    expected = taken(method, made).loss
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 5, 3])
    shuffled = batch._replace(x=batch.x[order], y=batch.y[order])
    mixed = made._replace(batch=shuffled, points=made.points[order], targets=made.targets[order])
    assert torch.allclose(taken(method, mixed).loss, expected, rtol=1e-12)
    classes = torch.tensor([2, 0, 3, 1])  # what class k is called now stands at place classes[k]
    renamed = network()
    with torch.no_grad():
        for p in renamed.net.linear.parameters():
            p[classes] = p.clone()
    targets = torch.empty_like(made.targets)
    targets[:, classes] = made.targets
    called = made._replace(batch=batch._replace(y=classes[batch.y]), targets=targets)
    assert torch.allclose(taken(method, called, renamed).loss, expected, rtol=1e-12)


@pytest.mark.parametrize(("gamma", "epoch"), [(0.0, 20), (0.005, 9)])
def test_taylor_10_without_a_move_the_awp_variant_is_the_other_without_noise(gamma: float, epoch: int) -> None:
    found = []
    for move in (NoMove(), AWP(gamma=gamma, warmup=10)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        batch = images()._replace(epoch=epoch)
        step(model, optimizer, TaylorCode(KL, noise=0.0), batch, BALL, RNG, move=move)
        found.append([p.detach() for p in model.parameters()] + list(model.buffers()))
    assert equal(*found)


@pytest.mark.parametrize(
    ("replay", "alpha", "passes"), [(False, 0.2, 2), (True, 0.2, 8), (True, 0.0, 8), (False, 0.0, 2)]
)
def test_taylor_11_the_loss_takes_two_passes_or_the_released_eight(replay: bool, alpha: float, passes: int) -> None:
    model, method = network(), TaylorCode(KL, alpha=alpha, replay=replay)
    made = made_by(method, model, images())
    counter = dict(model.named_buffers())["net.features.1.num_batches_tracked"]
    before = int(counter)
    method.objective(model, made)
    assert int(counter) - before == passes


def test_taylor_12_without_mass_off_the_class_the_terms_are_cross_entropies() -> None:
    batch = images()
    for second, factor in ((0.5, 1.5), (0.0, 1.0)):
        method = TaylorCode(KL, alpha=0.3, second=second, wrong_mass=0.0)
        made = made_by(method, network(), batch)
        model = network()
        clean, attacked = model(batch.x), model(made.points)
        one, two = F.cross_entropy(clean, batch.y), F.cross_entropy(attacked, batch.y)
        expected = 0.7 * one + 6.0 * losses.kl_of(clean, attacked).mean() + factor * 0.3 * 0.5 * (one + two)
        assert torch.allclose(taken(method, made).loss, expected, rtol=1e-10)


def test_taylor_exact_has_finite_gradients_where_both_gradients_are_one() -> None:
    """At radius zero both penalties sit at their kink."""
    made = made_by(TaylorExact(KL), network(), images(), NOWHERE)
    ours, theirs = taken(TaylorExact(KL), made), taken(Standard(), made)
    assert torch.allclose(ours.loss, theirs.loss, rtol=1e-12)
    assert near(ours.gradients, theirs.gradients)


# a step that never waits for the device

WAITING = {
    "aten::_local_scalar_dense",  # item, float, bool, int, if
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
    "aten::bincount",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}


class Waits(TorchDispatchMode):
    """Record every operation whose result the host must wait for on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        name = func._schema.name
        if name in WAITING or f"{name}.{func._overloadname}" in WAITING:
            self.found.append(name)
        if name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.max().item(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: (x > 0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: torch.full((2,), x.sum()),
        lambda x: x.clone().__setitem__(x > 0, x[:1]),
        lambda x: x.add(x, alpha=x.sum()),
    ],
)
def test_the_watch_sees_what_waits(wait: Callable[[Tensor], object]) -> None:
    with Waits() as watch:
        wait(torch.linspace(-1, 1, 5))
    assert watch.found


def test_the_watch_lets_pass_what_does_not_wait() -> None:
    x = torch.linspace(-1, 1, 5)
    with Waits() as watch:
        torch.where(x > 0, x, 0.0).gather(0, torch.arange(2))[torch.tensor([1, 0])].clamp_min(x.min())
    assert watch.operations > 3
    assert not watch.found


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_a_method_never_waits_for_the_device(method: Method) -> None:
    model, batch = tiny().train(), batch_of()
    with frozen(model, method.bn), Waits() as watch:
        made = method.examples(model, batch, BALL, stream(batch))
    assert watch.operations > 0
    assert not watch.found
    with Waits() as watch:
        method.objective(model, made).mean().backward()
        method.climbed(model, made)
    assert watch.operations > 50
    assert not watch.found


@pytest.mark.parametrize("method", METHOD_TABLE.values(), ids=METHOD_TABLE)
@pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
def test_a_move_never_waits_for_the_device(method: Method, move: WeightMove) -> None:
    model, batch = tiny().train(), batch_of()
    made = made_by(method, model, batch)
    with Waits() as watch:
        offset = move.offset(model, climber(method, model, made), RNG).by
        with moved(model, offset):
            pass
    assert not watch.found
    assert bool(offset) == (not isinstance(move, NoMove))
    assert bool(watch.operations) == bool(offset)
    assert offset.keys() <= movable(model).keys()


@pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
def test_a_whole_step_never_waits_for_the_device(move: WeightMove) -> None:
    model, batch = tiny().train(), batch_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    with Waits() as watch:
        step(model, optimizer, METHOD_TABLE["rat"], batch, BALL, RNG, move=move)
        step(model, optimizer, METHOD_TABLE["trades"], batch, BALL, RNG, move=move)
    assert watch.operations > 500
    assert not watch.found
