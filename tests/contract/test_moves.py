"""What every weight move keeps, with every method; the limits of RWP and AWP; the cost of a step (baselines.md 6)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from contract.tables import ATTACK, METHOD_TABLE, MOVE_TABLE
from demilune.attacks import KLPGD, PGD, frozen
from demilune.core.losses import kl
from demilune.core.random import Stream
from demilune.core.weights import movable, moved
from demilune.errors import DemiluneError
from demilune.experiment import name_of
from demilune.methods import (
    ADT,
    AVM,
    GAIRAT,
    LRAT,
    LRATRAT,
    LRATTRADES,
    MART,
    METHODS,
    RAT,
    SAT,
    TRADES,
    Examples,
    Method,
    Standard,
    TaylorCode,
    TaylorExact,
)
from demilune.methods.gairat import balanced
from demilune.moves import AWP, MOVES, RWP, Gaussian, NoMove, WeightMove
from demilune.train import step

every_method = pytest.mark.parametrize("method", METHOD_TABLE.values(), ids=METHOD_TABLE)
every_move = pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
RNG = Stream.of(0, "test")


def test_the_tables_hold_everything() -> None:
    assert {name: type(method) for name, method in METHOD_TABLE.items()} == dict(METHODS)
    assert {name: type(move) for name, move in MOVE_TABLE.items()} == dict(MOVES)


def made_for(method: Method, model: nn.Module, dtype: torch.dtype = torch.float64) -> Examples:
    batch = batch_of(8, dtype=dtype)
    with frozen(model, method.bn):
        return method.examples(model, batch, BALL, stream(batch))


def climbed(method: Method, model: nn.Module, made: Examples) -> Callable[[], Tensor]:
    return lambda: method.climbed(model, made)


def after_a_step(method: Method, move: WeightMove, epoch: int = 0) -> dict[str, Tensor]:
    model = tiny(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(2):
        batch = batch_of(8, dtype=torch.float64)._replace(epoch=epoch)
        step(model, optimizer, method, batch, BALL, RNG.sub(number), move=move)
    return model.state_dict()


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@every_method
@every_move
def test_an_offset_disturbs_nothing_and_moves_only_what_is_movable(method: Method, move: WeightMove) -> None:
    model = tiny(dtype=torch.float64)
    made = made_for(method, model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    offset = move.offset(model, climbed(method, model, made), RNG).by
    assert_same(before, model.state_dict())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert offset.keys() <= movable(model).keys()
    assert all(tensor.isfinite().all() and not tensor.requires_grad for tensor in offset.values())
    with moved(model, offset):
        assert not offset or any(not torch.equal(before[name], model.state_dict()[name]) for name in offset)
    assert_same(before, model.state_dict())


@every_method
@pytest.mark.parametrize("move", [AWP(gamma=0.0), RWP(gamma=0.0), RWP(c_min=0.0), AWP(warmup=1), RWP(warmup=1)])
def test_a_move_of_no_size_is_the_method_itself_bit_for_bit(method: Method, move: WeightMove) -> None:
    if isinstance(move, RWP) and move.c_min == 0.0:  # nothing lies below a loss of 0 but excess by rounding
        move = replace(move, c_min=-1.0)
    assert_same(after_a_step(method, NoMove()), after_a_step(method, move))


@every_method
def test_a_move_changes_the_step_once_warm_up_is_over(method: Method) -> None:
    plain = after_a_step(method, NoMove(), epoch=1)["net.linear.weight"]
    assert not torch.equal(plain, after_a_step(method, AWP(gamma=0.05, warmup=1), epoch=1)["net.linear.weight"])


def lengths(offset: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in offset.values()])


def test_awp_has_gamma_times_the_norm_of_every_tensor() -> None:
    model, method = tiny(dtype=torch.float64), SAT(ATTACK)
    offset = AWP(gamma=0.02).offset(model, climbed(method, model, made_for(method, model)), RNG).by
    expected = torch.stack([movable(model)[name].detach().norm() for name in offset]) * 0.02
    assert torch.allclose(lengths(offset), expected, rtol=1e-12)


def test_rwp_has_gamma_times_the_norm_of_all_weights() -> None:
    model, method = tiny(dtype=torch.float64), SAT(ATTACK)
    offset = RWP(gamma=0.02, c_min=math.inf).offset(model, climbed(method, model, made_for(method, model)), RNG).by
    whole = torch.stack([weight.detach().norm() for weight in movable(model).values()]).norm()
    assert torch.allclose(lengths(offset).norm(), 0.02 * whole, rtol=1e-6)


def test_rwp_without_a_threshold_tensor_by_tensor_in_one_step_is_awp() -> None:
    model, method = tiny(dtype=torch.float64), TRADES(KLPGD(steps=2, step_ratio=0.5))
    made = made_for(method, model)
    awp = AWP(gamma=0.01).offset(model, climbed(method, model, made), RNG).by
    one = RWP(gamma=0.01, steps=1, c_min=math.inf, norm="tensor").offset(model, climbed(method, model, made), RNG).by
    assert all(torch.allclose(tensor, one[name], rtol=1e-12) for name, tensor in awp.items())
    whole = RWP(gamma=0.01, steps=1, c_min=math.inf).offset(model, climbed(method, model, made), RNG).by
    for name, tensor in awp.items():
        assert float(nn.functional.cosine_similarity(tensor.flatten(), whole[name].flatten(), dim=0)) > 1 - 1e-12


def test_scaling_loss_and_threshold_leaves_rwp_s_offset_unchanged() -> None:
    method, model = SAT(ATTACK), tiny(dtype=torch.float64)
    made = made_for(method, model)
    one = RWP(c_min=1.4, steps=3).offset(model, climbed(method, model, made), RNG).by
    two = RWP(c_min=2.8, steps=3).offset(model, lambda: 2 * method.climbed(model, made), RNG).by
    assert all(torch.allclose(tensor, two[name], rtol=1e-9) for name, tensor in one.items())


def test_an_offset_climbs_the_selected_examples_loss() -> None:
    method, model = SAT(ATTACK), tiny(dtype=torch.float64)
    made = made_for(method, model)
    offset = RWP(gamma=1e-3, steps=1, c_min=math.inf).offset(model, climbed(method, model, made), RNG).by
    before = float(method.climbed(model, made).detach().mean())
    with moved(model, offset):
        assert float(method.climbed(model, made).detach().mean()) > before


def test_soft_labels_are_judged_above_their_entropy() -> None:
    """On the raw loss no sample of RAT with s > 1 could lie below 1.7 (rwp.md 1)."""
    method, model = RAT(ATTACK, samples=8), tiny(dtype=torch.float64)
    made = made_for(method, model)
    raw, above = method.objective(model, made).detach(), method.climbed(model, made).detach()
    assert torch.allclose(raw - made.floor, above)
    assert (above >= -1e-9).all()


def test_weight_decay_acts_at_the_moved_weights() -> None:
    method, move = Standard(), AWP(gamma=0.1)
    batch = batch_of(8, dtype=torch.float64)
    model, other = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    step(model, optimizer, method, batch, BALL, RNG, move=move)
    with frozen(other, "eval"):
        made = method.examples(other, batch, BALL, RNG.images(batch.ids))
    offset = move.offset(other.train(), climbed(method, other, made), RNG).by
    with moved(other, offset):
        method.objective(other, made).mean().backward()
    with torch.no_grad():
        for name, weight in other.named_parameters():
            there = weight + offset.get(name, 0.0)
            expected = there - 0.1 * (weight.grad + 0.01 * there) - offset.get(name, 0.0)
            assert torch.allclose(dict(model.named_parameters())[name], expected, rtol=1e-12, atol=1e-14)


def test_a_move_and_portions_of_a_batch_do_not_go_together() -> None:
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DemiluneError, match="the whole batch's"):
        step(model, optimizer, SAT(ATTACK), batch_of(8), BALL, RNG, parts=2, move=AWP())


@pytest.mark.parametrize(
    "make",
    [
        lambda: AWP(gamma=-0.1),
        lambda: AWP(gamma=float("nan")),
        lambda: AWP(warmup=-1),
        lambda: RWP(gamma=2.0),
        lambda: RWP(steps=0),
        lambda: RWP(c_min=float("nan")),
        lambda: RWP(low=2.0, c_min=1.0),
        lambda: TRADES(beta=-1.0),
        lambda: KLPGD(noise=0.0),
        lambda: GAIRAT(PGD(steps=1)),
        lambda: ADT(draws=0),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DemiluneError):
        make()


def test_trades_is_its_equation_and_its_limit_is_standard_training() -> None:
    method, model = TRADES(KLPGD(steps=2, step_ratio=0.5)), tiny(dtype=torch.float64).eval()
    made = made_for(method, model)
    p, q = (model(x).softmax(dim=1) for x in (made.batch.x, made.points))
    expected = -p[torch.arange(8), made.batch.y].log() + 6 * (p * (p.log() - q.log())).sum(dim=1)
    assert torch.allclose(method.objective(model, made), expected, rtol=1e-10)
    assert_same(after_a_step(Standard(), NoMove()), after_a_step(replace(method, beta=0.0), NoMove()))


def test_trades_does_not_look_at_labels() -> None:
    method, model, batch = METHOD_TABLE["trades"], tiny().eval(), batch_of(8)
    one = method.examples(model, batch, BALL, stream(batch)).points
    two = method.examples(model, batch._replace(y=batch.y.flip(0)), BALL, stream(batch)).points
    assert torch.equal(one, two)
    assert (kl(model(batch.x), model(one)) >= -1e-6).all()


def test_mart_is_its_equation() -> None:
    method, model = METHOD_TABLE["mart"], tiny(dtype=torch.float64).eval()
    made = made_for(method, model)
    y, rows = made.batch.y, torch.arange(8)
    p, q = (model(x).softmax(dim=1) for x in (made.batch.x, made.points))
    wrong = q.scatter(1, y[:, None], 0.0).amax(dim=1)
    pair = (p * (p.log() - q.log())).sum(dim=1)
    expected = -q[rows, y].log() - (1.0001 - wrong).log() + 5 * pair * (1 - p[rows, y])
    assert torch.allclose(method.objective(model, made), expected, rtol=1e-10)


def test_gairat_weights_fall_with_the_steps_withstood_and_have_mean_one() -> None:
    weight = balanced(torch.arange(11), 10, -1.0, torch.float64)
    raw = [(1 + math.tanh(-1 + 5 * (1 - 2 * kept / 10))) / 2 for kept in range(11)]
    assert torch.allclose(weight, torch.tensor(raw, dtype=torch.float64) * 11 / sum(raw), rtol=1e-12)
    assert (weight.diff() < 0).all()
    assert torch.equal(balanced(torch.arange(11), 10, 1e3, torch.float64), torch.ones(11, dtype=torch.float64))


def test_gairat_before_it_begins_is_sat() -> None:
    assert_same(after_a_step(SAT(ATTACK), NoMove()), after_a_step(GAIRAT(ATTACK, begin=5), NoMove()))


def by_adam(model: nn.Module, method: ADT, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    """ADT's inner loop as the released code has it: torch's Adam with betas (0, 0), gradients zeroed or not."""
    mean, spread = (torch.zeros_like(x, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([mean, spread], lr=method.rate, betas=(0.0, 0.0))
    adam.zero_grad()
    for number in range(method.steps):
        for draw in range(method.draws):
            noise = rng.sub(number).normal(draw, x.shape, dtype=x.dtype)
            method.inner(model, x, y, BALL, noise, mean, spread).backward()
        adam.step()
        if method.zero_grad:
            adam.zero_grad()
    noise = rng.normal("last", x.shape, dtype=x.dtype)
    delta = BALL.eps * torch.tanh(mean + nn.functional.softplus(spread) * noise)
    return (x + delta).clamp(0, 1).detach()


@pytest.mark.parametrize("zero_grad", [False, True])
def test_adt_agrees_with_torch_s_adam(zero_grad: bool) -> None:
    method, model = ADT(steps=3, draws=2, zero_grad=zero_grad), tiny(dtype=torch.float64).eval()
    made, batch = made_for(method, model), batch_of(8, dtype=torch.float64)
    theirs = by_adam(model, method, batch.x, batch.y, stream(batch).sub("adt"))
    assert torch.allclose(made.points, theirs, rtol=1e-10, atol=1e-12)
    assert float((made.points - batch.x).abs().max()) < BALL.eps


def test_adt_is_linf_only() -> None:
    model, batch = tiny(), batch_of()
    with pytest.raises(DemiluneError, match="linf"):
        ADT().examples(model, batch, type(BALL)("l2", 0.5), stream(batch))


TEN, KL = PGD(steps=10), KLPGD(steps=10)
COST = {
    "ST": (Standard(), NoMove(), 3),
    "SAT": (SAT(TEN), NoMove(), 23),
    "AVM": (AVM(TEN), NoMove(), 23),
    "IRAT": (GAIRAT(TEN), NoMove(), 23),
    "RAT": (RAT(TEN), NoMove(), 26),
    "SAT + AWP": (SAT(TEN), AWP(), 26),
    "LRAT (m = 1)": (LRAT(TEN), NoMove(), 26),
    "MART": (MART(), NoMove(), 26),
    "TRADES": (TRADES(KL), NoMove(), 27),
    "LRAT-TRADES": (LRATTRADES(KL), NoMove(), 27),
    "Taylor-code": (TaylorCode(KL), NoMove(), 27),
    "Taylor-code, replayed": (TaylorCode(KL, replay=True), NoMove(), 33),
    "Taylor-exact": (TaylorExact(KL), NoMove(), 27),
    "Taylor-MC": (TRADES(KL), Gaussian(), 27),
    "LRAT over RAT": (LRATRAT(RAT(TEN)), NoMove(), 29),
    "TRADES + AWP": (TRADES(KL), AWP(), 33),
    "Taylor-code + AWP": (TaylorCode(KL), AWP(), 33),
    "LRAT (PGD and CW)": (LRAT(TEN, attacks="both"), NoMove(), 49),
    "SAT + RWP": (SAT(TEN), RWP(), 53),
    "ADT": (ADT(), NoMove(), 73),
    "RAT + RWP": (RAT(TEN), RWP(), 86),
    "TRADES + RWP": (TRADES(KL), RWP(), 87),
}


def spent(method: Method, move: WeightMove) -> float:
    """Return what a step costs per image, in forward passes, as a wrapper round the model counts it.

    A forward pass is 1. Every time a gradient comes back to an output is 1 more, on its way to the images, and 2 where
    weights learn too.
    """
    model, batch, count = tiny(), batch_of(4), [0]

    def passed(module: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        learns = any(parameter.requires_grad for parameter in module.parameters())
        count[0] += len(out)
        if out.requires_grad:
            out.register_hook(lambda gradient: count.__setitem__(0, count[0] + len(gradient) * (2 if learns else 1)))

    model.register_forward_hook(passed)
    step(model, torch.optim.SGD(model.parameters(), lr=0.1), method, batch, BALL, RNG, move=move)
    return count[0] / len(batch.x)


@pytest.mark.parametrize(("method", "move", "cost"), COST.values(), ids=COST)
def test_a_step_costs_what_the_table_says(method: Method, move: WeightMove, cost: int) -> None:
    assert spent(method, move) == cost


def test_a_wasted_gradient_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    once = torch.autograd.grad

    def twice(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
        once(outputs, inputs, retain_graph=True)
        return once(outputs, inputs)

    monkeypatch.setattr(torch.autograd, "grad", twice)
    assert spent(SAT(TEN), NoMove()) == 33


def test_the_docs_have_the_same_costs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    lines = re.sub(r"\n## Equation.*?(?=\n## )", "", docs, flags=re.DOTALL).splitlines()
    rows = {line.split("`")[1]: line.split("|")[-2] for line in lines if line.startswith("| `")}
    alone = [(name_of(method), cost) for method, move, cost in COST.values() if isinstance(move, NoMove)]
    first = {name: int(re.search(r"\d+", rows[name])[0]) for name in METHODS}
    assert first == {name: min(cost for one, cost in alone if one == name) for name in METHODS}
    for label, (_, move, cost) in COST.items():
        if isinstance(move, AWP | RWP):
            base = label.split(" + ")[0]
            told = rows[name_of(move)].split(",")
            assert any(base in text and str(cost) in text for text in told), label
