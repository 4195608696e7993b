"""Learning rates at their boundaries, and averages of weights against the sums they stand for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conftest import tiny
from demilune.core.random import Stream
from demilune.data import Dataset, Split
from demilune.errors import DemiluneError
from demilune.schedules import AVERAGES, EMA, SCHEDULES, SWA, Average, Cosine, NoAverage, Piecewise, Triangular
from demilune.train import State, follow, reestimate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.1), (29_999, 0.1), (30_000, 0.01), (44_999, 0.01), (45_000, 0.001), (79_999, 0.001)],
)
def test_the_papers_rates_at_their_boundaries(step: int, rate: float) -> None:
    assert Piecewise().at(step, 80_000) == pytest.approx(rate, rel=1e-12)


def test_shorter_runs_keep_the_fractions() -> None:
    schedule = Piecewise(rate=0.4, first=0.6, second=0.85, factor=0.5)
    rates = [schedule.at(step, 40) for step in range(40)]
    assert rates == pytest.approx([0.4] * 24 + [0.2] * 10 + [0.1] * 6)
    assert [Piecewise(first=0.5, second=0.5).at(step, 4) for step in range(4)] == pytest.approx(
        [0.1, 0.1, 0.001, 0.001]
    )


@pytest.mark.parametrize(("peak", "steps"), [(0.4, 1000), (0.5, 7), (0.9, 30), (0.4, 1)])
def test_triangular_rises_to_its_peak_and_falls_in_straight_lines(peak: float, steps: int) -> None:
    schedule = Triangular(rate=0.2, peak=peak)
    rates = [schedule.at(step, steps) for step in range(steps)]
    middle = [(step + 0.5) / steps for step in range(steps)]
    assert rates == pytest.approx([0.2 * min(at / peak, (1 - at) / (1 - peak)) for at in middle])
    assert min(rates) > 0
    assert max(rates) <= 0.2
    top = rates.index(max(rates))
    assert abs(middle[top] - peak) <= 0.5 / steps + 1e-12 or steps == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert sum(rates) / steps == pytest.approx(0.1, rel=0.06) or steps == 1


def test_cosine_falls_from_its_rate_to_nothing() -> None:
    rates = [Cosine(0.3).at(step, 100) for step in range(100)]
    assert rates[0] == 0.3
    assert rates[50] == pytest.approx(0.15)
    assert rates[25] == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert all(a + b == pytest.approx(0.3) for a, b in zip(rates[1:], reversed(rates[1:]), strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_a_positive_rate_and_a_pure_function_of_the_step(name: str) -> None:
    rates = [SCHEDULES[name]().at(step, 57) for step in range(57)]
    assert all(0 < rate <= 0.2 for rate in rates)
    assert [SCHEDULES[name]().at(step, 57) for step in reversed(range(57))] == rates[::-1]


# averages


def recorded(average: Average, steps: int, per_epoch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights after each step of a made-up run (the initial ones first), and their copy."""
    draw, model = Stream.of(0, "weights"), nn.Linear(3, 2, bias=False, dtype=torch.float64)
    weights, copies = list[Tensor](), list[Tensor]()
    state = State(model, copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1))
    for number in range(-1, steps):
        with torch.no_grad():
            model.weight.copy_(draw.uniform(number, (2, 3), dtype=torch.float64))
            if number < 0:
                state.average.weight.copy_(model.weight)
        if number >= 0:
            follow(state, average.pull(number, steps, per_epoch))
        weights.append(model.weight.detach().clone())
        copies.append(state.average.weight.detach().clone())
    return weights, copies


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_ema_is_the_weighted_sum_it_stands_for(decay: float) -> None:
    weights, copies = recorded(EMA(decay), 60, 10)
    for step in range(60):
        keeps = [min(decay, (1 + t) / (10 + t)) for t in range(step + 1)]
        shares = [math.prod(keeps)] + [(1 - keeps[t]) * math.prod(keeps[t + 1 :]) for t in range(step + 1)]
        assert sum(shares) == pytest.approx(1.0)
        expected = sum(share * weight for share, weight in zip(shares, weights, strict=False))
        assert torch.allclose(copies[step + 1], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("start", "steps", "per_epoch", "first"),
    [
        (0.5, 60, 10, 3),
        (0.0, 60, 10, 1),
        (0.75, 40, 10, 3),
        (0.6, 40, 10, 3),
        (0.5, 57, 10, 3),
        (0.5, 5, 5, 1),
        (0.9, 7, 1, 7),
        (0.55, 100, 1, 55),
        (0.07, 200, 2, 7),
        (0.28, 75, 3, 7),
    ],
)
def test_swa_is_the_mean_of_the_ends_of_epochs_from_its_start_on(
    start: float, steps: int, per_epoch: int, first: int
) -> None:
    weights, copies = recorded(SWA(start), steps, per_epoch)
    ends = list[Tensor]()
    for step in range(1, steps + 1):
        epoch = (step - 1) // per_epoch + 1
        if step % per_epoch == 0 or step == steps:
            ends = [*ends, weights[step]] if epoch > first else [weights[step]]
        if epoch <= first:
            assert torch.equal(copies[step], weights[step])
        else:
            assert torch.allclose(copies[step], torch.stack(ends).mean(dim=0), atol=1e-12)


def test_an_average_takes_batch_norm_and_its_counter_along() -> None:
    model = tiny()
    state = State(model, copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.net.linear.weight.add_(1)
        model(Stream.of(5).uniform("x", (8, 1, 8, 8)))
    follow(state, 0.0)
    for name, tensor in state.average.state_dict().items():
        assert torch.equal(tensor, before[name])
    follow(state, 0.25)
    for name, tensor in state.average.state_dict().items():
        now = model.state_dict()[name]
        if tensor.is_floating_point():
            assert torch.allclose(tensor, before[name] + 0.25 * (now - before[name]), atol=1e-6)
        else:
            assert torch.equal(tensor, now)
    follow(state, 1.0)
    for name, tensor in state.average.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_without_an_average_nothing_follows() -> None:
    model = tiny()
    assert NoAverage().pull(3, 10, 5) is None
    follow(State(model, None, torch.optim.SGD(model.parameters(), lr=0.1)), None)
    assert [AVERAGES[name]().reestimates() for name in ("none", "ema", "swa")] == [False, False, True]


def dataset(n: int = 70) -> Dataset:
    images = Stream.of(0).integers("images", (n, 1, 8, 8), 0, 256).to(torch.uint8)
    split = Split(images, torch.arange(n) % 4, torch.arange(n))
    return Dataset("made up", ("a", "b", "c", "d"), split, split, split, (0.5,), (0.25,), 1, True, {}, False, "here")


def test_reestimated_statistics_are_the_means_over_the_epochs_batches() -> None:
    model, seen = tiny(), dict[nn.Module, list[tuple[Tensor, Tensor]]]()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        seen.setdefault(module, []).append((x.double().mean(dim=(0, 2, 3)), x.double().var(dim=(0, 2, 3))))

    hooks = [module.register_forward_pre_hook(note) for module in norms]
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    reestimate(model, dataset(), Stream.of(0, "reestimate"), 16)
    for hook in hooks:
        hook.remove()
    for module in norms:
        assert len(seen[module]) == 4  # 70 images in batches of 16, the last partial one dropped
        means, variances = (torch.stack(values).mean(dim=0) for values in zip(*seen[module], strict=True))
        assert torch.allclose(module.running_mean.double(), means, atol=1e-6)
        assert torch.allclose(module.running_var.double(), variances, rtol=1e-5, atol=1e-6)
        assert module.momentum == 0.1
    assert not model.training
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
    first = [module.running_mean.clone() for module in norms]
    reestimate(model, dataset(), Stream.of(0, "reestimate"), 16)
    assert all(torch.equal(old, module.running_mean) for old, module in zip(first, norms, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Piecewise(rate=0.0),
        lambda: Piecewise(rate=-0.1),
        lambda: Piecewise(rate=float("nan")),
        lambda: Piecewise(first=0.7, second=0.5),
        lambda: Piecewise(first=-0.1),
        lambda: Piecewise(second=1.1),
        lambda: Piecewise(first=float("nan")),
        lambda: Piecewise(factor=float("nan")),
        lambda: Piecewise(factor=-1.0),
        lambda: Triangular(rate=float("inf")),
        lambda: Triangular(peak=0.0),
        lambda: Triangular(peak=1.0),
        lambda: Triangular(peak=float("nan")),
        lambda: Cosine(rate=0.0),
        lambda: EMA(decay=1.0),
        lambda: EMA(decay=-0.1),
        lambda: EMA(decay=float("nan")),
        lambda: SWA(start=1.0),
        lambda: SWA(start=-0.5),
        lambda: SWA(start=float("nan")),
    ],
)
def test_values_that_mean_nothing_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DemiluneError):
        make()
