"""Whole steps as the released scripts write them, with proxies and torch.optim, against ``demilune.train.step``.

Attacks are written out too; only their random starts (and the Taylor script's weight noise) are the library's own
draws. The released code subtracts the perturbation after the step where the library restores the bits: 1e-12 apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import BALL, batch_of, tiny
from demilune.attacks import KLPGD, PGD
from demilune.core.random import Stream
from demilune.methods import ADT, AVM, GAIRAT, LRAT, LRATTRADES, MART, RAT, SAT, TRADES, Batch, Method, TaylorCode
from demilune.moves import AWP, RWP, Gaussian, NoMove, WeightMove
from demilune.train import step
from reference import losses

EPS, SIZE, STEPS = BALL.eps, 0.03, 3
ATTACK, KL = PGD(STEPS, SIZE), KLPGD(STEPS, SIZE)
TINY = 1e-20
Perturbation = dict[str, Tensor]
RNG = Stream.of(7, "steps")


# attacks


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rng: Stream,
    counted: list[Tensor] | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """baselines.md 1, in whatever mode the network stands; ``counted`` collects the iterates."""
    noise = rng.sub("start").uniform("ball", x.shape, -EPS, EPS, dtype=x.dtype)
    x_adv = torch.clamp(x + noise, 0.0, 1.0) if start is None else start
    for _ in range(STEPS):
        if counted is not None:
            counted.append(x_adv.detach())
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        gradient = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = x_adv.detach() + SIZE * torch.sign(gradient)
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    if counted is not None:
        counted.append(x_adv)
    return x_adv


def kl_pgd(model: nn.Module, x: Tensor, rng: Stream) -> Tensor:
    """baselines.md 2: p(x) is computed anew at every step, as in the released code."""
    model.eval()
    x_adv = x + 0.001 * rng.sub("start").normal("gaussian", x.shape, dtype=x.dtype)
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        criterion = nn.KLDivLoss(reduction="sum")
        loss = criterion(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1))
        gradient = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = x_adv.detach() + SIZE * torch.sign(gradient.detach())
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    return x_adv.detach()


def adt_attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    """baselines.md 4: two inner steps of two draws by torch's Adam, whose gradients are never zeroed."""
    model.eval()
    draws = rng.sub("adt")
    mean, spread = (torch.zeros_like(x).requires_grad_() for _ in range(2))
    adam = torch.optim.Adam([mean, spread], lr=0.3, betas=(0.0, 0.0))

    def point(noise: Tensor) -> tuple[Tensor, Tensor]:
        u = mean + F.softplus(spread) * noise
        h = noise**2 / 2 + torch.log(F.softplus(spread) + 1e-8) + torch.log(1 - torch.tanh(u) ** 2 + 1e-8)
        return torch.clamp(x + EPS * torch.tanh(u), 0.0, 1.0), h

    for t in range(2):
        for j in range(2):
            x_adv, h = point(draws.sub(t).normal(j, x.shape, dtype=x.dtype))
            loss = -F.cross_entropy(model(x_adv), y) - 0.01 * h.mean()
            loss.backward()
        adam.step()
    model.zero_grad()
    return point(draws.normal("last", x.shape, dtype=x.dtype))[0].detach()


# weight perturbations


def perturbed_names(model: nn.Module) -> list[str]:
    """Names that contain "weight", of two dimensions or more (rwp.md 2)."""
    return [name for name, w in model.state_dict().items() if len(w.size()) > 1 and "weight" in name]


def add_into_weights(model: nn.Module, diff: Perturbation, coefficient: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in diff:
                parameter.add_(coefficient * diff[name])


def awp(model: nn.Module, loss_of: Callable[[nn.Module], Tensor], rate: float) -> Perturbation:
    """rwp.md 4: one SGD step of a proxy up the loss; the difference of each tensor at the length of the tensor."""
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=rate)
    proxy.load_state_dict(model.state_dict())
    proxy.train()
    loss = -loss_of(proxy)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    diff, old, new = {}, model.state_dict(), proxy.state_dict()
    for name in perturbed_names(model):
        change = new[name] - old[name]
        diff[name] = old[name].norm() / (change.norm() + TINY) * change
    return diff


def rwp(
    model: nn.Module, rows_of: Callable[[nn.Module], Tensor], rate: float, gamma: float, c_min: float, steps: int
) -> tuple[Perturbation, list[int]]:
    """rwp.md 5: the proxy's steps add up, the sum is put at the length of all weights; a break when none is selected.

    Returns the perturbation in units of gamma and the number selected at each step.
    """
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=rate)
    start = {name: w.clone() for name, w in model.state_dict().items()}
    names, selected = perturbed_names(model), []
    length = torch.cat([start[name].flatten() for name in names]).norm()
    total = {name: torch.zeros_like(start[name]) for name in names}
    diff = {name: torch.zeros_like(start[name]) for name in names}
    for _ in range(steps):
        proxy.load_state_dict(start)
        add_into_weights(proxy, diff, gamma)
        before = {name: w.clone() for name, w in proxy.state_dict().items()}
        proxy.train()
        rows = rows_of(proxy)
        mask = (rows < c_min).to(rows.dtype).detach()
        selected.append(int(mask.sum()))
        if selected[-1] == 0:
            break
        loss = -(mask * rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after = proxy.state_dict()
        for name in names:
            total[name] = total[name] + (after[name] - before[name])
        whole = torch.cat([total[name].flatten() for name in names]).norm()
        diff = {name: length / (whole + TINY) * total[name] for name in names}
    return diff, selected


# the comparison


class Script(NamedTuple):
    """What one released script does between a batch and its SGD step.

    Both are given the network, images, labels and the step's stream: ``attack`` returns the adversarial images, found
    at w, and ``perturb`` the perturbation with its coefficient; ``loss`` is taken at w + v.
    """

    attack: Callable[[nn.Module, Tensor, Tensor, Stream], Tensor]
    perturb: Callable[[nn.Module, Tensor, Tensor, Tensor, Stream], tuple[Perturbation, float]]
    loss: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def still(*_: object) -> tuple[Perturbation, float]:
    return {}, 0.0


def released(script: Script, batches: list[Batch], seed: int, nesterov: bool) -> nn.Module:
    """Train as the script does."""
    model = network(seed)
    optimizer = optimiser(model, nesterov)
    for number, batch in enumerate(batches):
        rng = RNG.sub(number)
        x_adv = script.attack(model, batch.x, batch.y, rng.images(batch.ids))
        model.train()
        diff, coefficient = script.perturb(model, batch.x, x_adv, batch.y, rng)
        add_into_weights(model, diff, coefficient)
        loss = script.loss(model, batch.x, x_adv, batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        add_into_weights(model, diff, -coefficient)
    return model


def network(seed: int) -> nn.Module:
    return tiny(seed=seed, dtype=torch.float64).train()


def optimiser(model: nn.Module, nesterov: bool) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3, nesterov=nesterov)


def batches_of(seed: int, count: int = 3) -> list[Batch]:
    return [batch_of(8, seed=10 * seed + k, dtype=torch.float64) for k in range(count)]


def assert_agree(method: Method, move: WeightMove, script: Script, seed: int, nesterov: bool = False) -> None:
    """Three steps of both end at the same weights, velocities and batch-norm buffers, and draw nothing globally."""
    batches = batches_of(seed)
    theirs = released(script, batches, seed, nesterov)
    model = network(seed)
    optimizer = optimiser(model, nesterov)
    generator = torch.get_rng_state()
    for number, batch in enumerate(batches):
        step(model, optimizer, method, batch, BALL, RNG.sub(number), move=move)
    assert torch.equal(generator, torch.get_rng_state())
    begun, expected = network(seed).state_dict(), theirs.state_dict()
    for name, tensor in model.state_dict().items():
        difference, size = (tensor - expected[name]).double().norm(), expected[name].double().norm()
        assert float(difference) <= 1e-10 * float(size) + 1e-12, f"{name}: {difference:.3g} of {size:.3g}"
        if name.startswith("net."):
            moved = (tensor - begun[name]).double().norm()
            assert float(moved) > 1e-3 * float(size), f"{name} did not move"


seeds = pytest.mark.parametrize("seed", [0, 1])


# the scripts


def in_eval(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    model.eval()
    return pgd(model, x, y, rng)


def in_train(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    """Madry's, Rice's and the AT-AWP scripts attack in train mode, which moves the running statistics."""
    model.train()
    return pgd(model, x, y, rng)


def kl_attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    return kl_pgd(model, x, rng)


def sat_loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return losses.sat(model, x_adv, y)


def trades_loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return losses.trades(model, x, x_adv, y, 6.0)


def trades_rows(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """rwp.md 6, step 4, with the KL summed over classes (10, conflict 1)."""
    clean = model(x)
    return F.cross_entropy(clean, y, reduction="none") + 6.0 * losses.kl_of(clean, model(x_adv))


@seeds
@pytest.mark.parametrize("nesterov", [False, True])
def test_sat(seed: int, nesterov: bool) -> None:
    assert_agree(SAT(ATTACK), NoMove(), Script(in_eval, still, sat_loss), seed, nesterov)


@seeds
def test_sat_attacked_in_train_mode(seed: int) -> None:
    assert_agree(SAT(ATTACK, bn="train"), NoMove(), Script(in_train, still, sat_loss), seed)


@seeds
def test_trades(seed: int) -> None:
    assert_agree(TRADES(KL), NoMove(), Script(kl_attack, still, trades_loss), seed)


@seeds
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_awp(seed: int, bn: str) -> None:
    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        return awp(model, lambda proxy: sat_loss(proxy, x, x_adv, y), rate=0.01), 0.05

    attack = in_train if bn == "train" else in_eval
    assert_agree(SAT(ATTACK, bn=bn), AWP(gamma=0.05), Script(attack, perturb, sat_loss), seed)


@seeds
def test_trades_awp(seed: int) -> None:
    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        return awp(model, lambda proxy: trades_loss(proxy, x, x_adv, y), rate=0.1), 0.005

    assert_agree(TRADES(KL), AWP(gamma=0.005), Script(kl_attack, perturb, trades_loss), seed)


@seeds
@pytest.mark.parametrize("c_min", [1.2, 1.5, 100.0])
def test_rwp(seed: int, c_min: float) -> None:
    counts: list[list[int]] = []

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        def rows(proxy: nn.Module) -> Tensor:
            return F.cross_entropy(proxy(x_adv), y, reduction="none")

        diff, selected = rwp(model, rows, 0.01, 0.05, c_min, steps=6)
        counts.append(selected)
        return diff, 0.05

    assert_agree(SAT(ATTACK), RWP(gamma=0.05, steps=6, c_min=c_min), Script(in_eval, perturb, sat_loss), seed)
    assert all(selected[0] > 0 for selected in counts)
    if c_min == 100.0:
        assert all(selected == [8] * 6 for selected in counts)
    else:  # some are left out, and their number changes from step to step
        assert all(selected[0] < 8 for selected in counts)
        assert any(len(set(selected)) > 1 for selected in counts)


def test_rwp_breaks_when_no_example_is_left() -> None:
    """The released loop ends there; the library goes on and must end at the same weights."""
    counts: list[list[int]] = []

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        def rows(proxy: nn.Module) -> Tensor:
            return F.cross_entropy(proxy(x_adv), y, reduction="none")

        diff, selected = rwp(model, rows, 0.01, 0.4, 1.0, steps=10)
        counts.append(selected)
        return diff, 0.4

    assert_agree(SAT(ATTACK), RWP(gamma=0.4, steps=10, c_min=1.0), Script(in_eval, perturb, sat_loss), 0)
    assert any(selected[-1] == 0 and len(selected) > 1 for selected in counts), counts


@seeds
def test_trades_rwp(seed: int) -> None:
    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        return rwp(model, lambda proxy: trades_rows(proxy, x, x_adv, y), 0.1, 0.02, 1.7, steps=4)[0], 0.02

    move = RWP(gamma=0.02, steps=4, c_min=1.7)
    assert_agree(TRADES(KL), move, Script(kl_attack, perturb, trades_loss), seed)


def noisy_attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
    """taylor.md 3.1: a deep copy in eval mode whose convolutions carry noise, one draw for the whole batch."""
    proxy, shared = copy.deepcopy(model).eval(), rng.images(None).sub("taylor")
    with torch.no_grad():
        for name, module in proxy.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.add_(0.05 * shared.normal(f"{name}.weight", module.weight.shape, dtype=x.dtype))
    return kl_pgd(proxy, x, rng)


def taylor_loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    return losses.taylor_code(model, x, x_adv, y)


@seeds
def test_taylor(seed: int) -> None:
    """The TRADES script; a noise of 0.05, of which the library's and the reference's attacks would show the absence."""
    assert_agree(TaylorCode(KL, noise=0.05), NoMove(), Script(noisy_attack, still, taylor_loss), seed)


@seeds
def test_taylor_in_eight_passes(seed: int) -> None:
    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return losses.taylor_code_released(model, x, x_adv, y)

    assert_agree(TaylorCode(KL, noise=0.0, replay=True), NoMove(), Script(kl_attack, still, loss), seed)


@seeds
def test_taylor_awp(seed: int) -> None:
    """taylor.md 3.5: the AWP objective is TRADES' own, statistics and loss are taken at w + v, in two passes."""

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        return awp(model, lambda proxy: trades_loss(proxy, x, x_adv, y), rate=0.1), 0.005

    assert_agree(TaylorCode(KL, noise=0.0), AWP(gamma=0.005), Script(kl_attack, perturb, taylor_loss), seed)


@seeds
@pytest.mark.parametrize("relative", [True, False])
def test_taylor_mc(seed: int, relative: bool) -> None:
    """taylor.md 4: u on the weights of convolutions, TRADES' loss at w + u, the step, u removed."""

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        shared, noise = rng.sub("move", "gaussian"), {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach()
                size = weight.norm() / weight.numel() ** 0.5 if relative else 1.0
                noise[f"{name}.weight"] = size * shared.normal(f"{name}.weight", weight.shape, dtype=x.dtype)
        return noise, 0.05

    move = Gaussian(sigma=0.05, relative=relative)
    assert_agree(TRADES(KL), move, Script(kl_attack, perturb, trades_loss), seed)


@seeds
@pytest.mark.parametrize("gamma", [0.0, 0.02])
def test_lrat(seed: int, gamma: float) -> None:
    """lrat.md 6, and the same with AWP, which ascends the very loss, weights included."""

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        weights = losses.lrat_weights(model, [x_adv], y)
        return losses.lrat(model, x, [x_adv], y, *weights)

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        return awp(model, lambda proxy: loss(proxy, x, x_adv, y), rate=0.01), gamma

    script = Script(in_eval, perturb if gamma else still, loss)
    assert_agree(LRAT(ATTACK), AWP(gamma=gamma) if gamma else NoMove(), script, seed)


@seeds
@pytest.mark.parametrize("c_min", [None, 0.4])
def test_rat(seed: int, c_min: float | None) -> None:
    """rat.md 4, and the same with RWP on the loss above each row's label entropy (rwp.md 1)."""
    kept: dict[str, list[Tensor]] = {}
    counts: list[list[int]] = []

    def attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
        model.eval()
        path: list[Tensor] = []
        pgd(model, x, y, rng, path)
        draws = rng.sub("rat")
        position = draws.uniform("position", (8, 2), dtype=x.dtype).T
        scale = draws.integers("scale", (8, 2), 0, 21).T.to(x.dtype) / 10
        points, targets = losses.rat_samples(model, x, path, y, position, scale, 4, 2.0, 1.0, 0.1)
        kept["targets"] = [targets]
        return points

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return losses.soft_cross_entropy(model(x_adv), kept["targets"][0])

    def rows(model: nn.Module, points: Tensor) -> Tensor:
        (targets,) = kept["targets"]
        values = -(targets * torch.log(F.softmax(model(points), dim=1))).sum(dim=1)
        floors = [-sum(t * torch.log(t) for t in target if t > 0) for target in targets]
        return values - torch.stack([torch.as_tensor(f, dtype=values.dtype) for f in floors])

    def perturb(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, rng: Stream) -> tuple[Perturbation, float]:
        diff, selected = rwp(model, lambda proxy: rows(proxy, x_adv), 0.01, 0.05, float(c_min or 0), steps=4)
        counts.append(selected)
        return diff, 0.05

    move = NoMove() if c_min is None else RWP(gamma=0.05, steps=4, c_min=c_min)
    assert_agree(RAT(ATTACK), move, Script(attack, still if c_min is None else perturb, loss), seed)
    assert all(0 < selected[0] < 16 for selected in counts)


# the other methods, without a move


@seeds
def test_adt(seed: int) -> None:
    assert_agree(ADT(steps=2, draws=2), NoMove(), Script(adt_attack, still, sat_loss), seed)


@seeds
def test_mart(seed: int) -> None:
    """Its attack starts at x + 0.001 N(0, I) (the library projects that start, which is inside the ball anyway)."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
        model.eval()
        start = x + 0.001 * rng.sub("start").normal("gaussian", x.shape, dtype=x.dtype)
        return pgd(model, x, y, rng, start=torch.clamp(start, 0.0, 1.0))

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return losses.mart(model, x, x_adv, y, 5.0)

    assert_agree(MART(PGD(STEPS, SIZE, noise=0.001)), NoMove(), Script(attack, still, loss), seed)


@seeds
def test_avm_attacked_with_the_batch_s_statistics(seed: int) -> None:
    """AVM's released code: batch statistics in the attack, running ones untouched by it; weights drawn per image."""
    kept: list[Tensor] = []

    def attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
        kept[:] = [rng.sub("avm").uniform("weight", (8, 1), dtype=x.dtype)[:, 0]]
        return pgd(copy.deepcopy(model).train(), x, y, rng)

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return losses.avm(model, x, x_adv, y, kept[0], 4)

    assert_agree(AVM(ATTACK, bn="train_frozen"), NoMove(), Script(attack, still, loss), seed)


@seeds
@pytest.mark.parametrize("begin", [0, 1])
def test_gairat_from_its_first_epoch_on(seed: int, begin: int) -> None:
    """Plain SAT before ``begin_epoch`` (lrat.md 4.2); the batches are of epoch 0."""
    kept: list[Tensor] = []

    def attack(model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> Tensor:
        model.eval()
        path: list[Tensor] = []
        x_adv = pgd(model, x, y, rng, path)
        kept[:] = [losses.gairat_weights(model, path, y, -1.0) if begin == 0 else torch.ones(8, dtype=x.dtype)]
        return x_adv

    def loss(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        return (kept[0] * F.cross_entropy(model(x_adv), y, reduction="none")).mean()

    assert_agree(GAIRAT(ATTACK, begin=begin), NoMove(), Script(attack, still, loss), seed)


def test_lrat_before_its_first_epoch_is_sat() -> None:
    """lrat.md 6, step 1: the first attack alone, and no pass of the image itself."""
    assert_agree(LRAT(ATTACK, "both", begin=1), NoMove(), Script(in_eval, still, sat_loss), 0)
    assert_agree(LRATTRADES(KL, begin=1), NoMove(), Script(kl_attack, still, trades_loss), 0)
