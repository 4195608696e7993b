"""NATTACK against its formulas, a one-image reference, the released code's slip, and the queries it may spend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from demilune.attacks.base import Model, breach
from demilune.attacks.nattack import NATTACK, NattackLoss, advantages
from demilune.core.geometry import Ball
from demilune.core.losses import margin, others
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

SMALL = NATTACK(steps=3, population=6)
every_loss = pytest.mark.parametrize("loss", ["margin", "official_scalar"])


class Recorded:
    """A model that keeps every image it was shown."""

    def __init__(self, model: Model) -> None:
        self.model, self.seen = model, list[Tensor]()

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.model(x)

    @property
    def queries(self) -> int:
        return sum(len(x) for x in self.seen)


def softmax_model(classes: int = 4, favoured: float = 0.0) -> Model:
    """Return a linear softmax model of 8×8 images in float64; ``favoured`` is added to class 0's logit."""
    weight = Stream.of(5, "weight").normal("w", (64, classes), dtype=torch.float64) / 4
    bias = torch.zeros(classes, dtype=torch.float64)
    bias[0] = favoured
    return lambda x: x.flatten(1) @ weight + bias


def favoured_batch(n: int = 5, classes: int = 4) -> Batch:
    """Return images of class 0, away from the ends of [0,1]."""
    batch = batch_of(n, classes, dtype=torch.float64)
    return batch._replace(x=0.3 + 0.4 * batch.x, y=torch.zeros(n, dtype=torch.int64))


def run(attack: NATTACK, model: Model, batch: Batch, ball: Ball = BALL, rng: Stream | None = None) -> Tensor:
    return attack(model, batch.x, batch.y, ball, rng or stream(batch))


# the formulas


def reference(x: Tensor, y: int, model: Model, ball: Ball, attack: NATTACK, mu: Tensor, noises: list[Tensor]) -> Tensor:
    """Return μ of one image, written from attacks.md 5 line by line, one query at a time."""
    w = torch.atanh((1 - 1e-6) * (2 * x - 1))
    centre = 0.5 * (torch.tanh(w) + 1)
    for noise in noises:
        scores, first = list[float](), None
        for sample in noise:
            g = 0.5 * (torch.tanh(w + mu + attack.sigma * sample) + 1)
            query = centre + torch.clip(g - centre, -ball.eps, ball.eps)
            p = torch.softmax(model(query[None])[0], dim=0).tolist()
            wrong = max(p[c] for c in range(len(p)) if c != y)
            first = wrong if first is None else first
            against = wrong if attack.loss == "margin" else first
            scores.append(-0.5 * min(max(np.log(p[y]) - np.log(against), 0.0), 1000.0))
        mean, std = np.mean(scores), np.std(scores)
        update = torch.zeros_like(mu)
        for score, sample in zip(scores, noise, strict=True):
            update += (score - mean) / (std + 1e-7) * sample
        mu = mu + attack.rate / (attack.population * attack.sigma) * update
    return mu


@every_loss
@pytest.mark.parametrize("eps", [0.05, 1.0])
def test_five_steps_are_those_of_a_straightforward_reference(loss: NattackLoss, eps: float) -> None:
    batch, model, ball = favoured_batch(), softmax_model(favoured=6.0), Ball("linf", eps)
    attack, rng = NATTACK(loss, steps=5, population=7), stream(batch)
    found = run(attack, model, batch, ball)
    begun = 0.001 * rng.sub("mean").normal("gaussian", batch.x.shape, dtype=torch.float64)
    shape = (7, *batch.x.shape[1:])
    noises = [rng.images(None).sub("step", t).normal("noise", shape, dtype=torch.float64) for t in range(5)]
    w = torch.atanh((1 - 1e-6) * (2 * batch.x - 1))
    for row in range(len(batch.x)):
        mu = reference(batch.x[row], 0, model, ball, attack, begun[row], noises)
        assert (mu - begun[row]).abs().max() > 0.1
        change = 0.5 * (torch.tanh(w[row] + mu) + 1) - batch.x[row]
        assert torch.allclose(found[row], batch.x[row] + change.clamp(-eps, eps), atol=1e-6)
        seen = change.abs() < eps - 1e-3  # where nothing is clipped, μ can be read off the image
        assert seen.double().mean() > 0.5
        assert torch.allclose((torch.atanh(2 * found[row] - 1) - w[row])[seen], mu[seen], atol=1e-6)


@every_loss
def test_advantages_are_those_of_the_released_numpy_lines(loss: NattackLoss) -> None:
    """``max(1)[0]`` of an array is the first sample's maximum, a scalar; of the margin it should be every sample's."""
    logits = Stream.of(3).normal("z", (9, 5), dtype=torch.float64)
    logits[:, 2] += 1.0
    outputs, onehot = torch.softmax(logits, dim=1).numpy(), np.eye(5)[[2] * 9]
    real = np.log((onehot * outputs).sum(1) + 1e-30)
    most = ((1 - onehot) * outputs - onehot * 10000).max(1)
    reward = -0.5 * np.clip(real - np.log((most if loss == "margin" else most[0]) + 1e-30), 0.0, 1000)
    expected = (reward - np.mean(reward)) / (np.std(reward) + 1e-7)
    assert 0 < (reward == 0).sum() < 8
    logs, y = torch.log_softmax(logits, dim=1), torch.full((9,), 2)
    given = advantages(logs[None, :, 2], others(logs, y)[None], loss)
    assert torch.allclose(given, torch.from_numpy(expected)[None])
    other = advantages(logs[None, :, 2], others(logs, y)[None], "margin" if loss != "margin" else "official_scalar")
    assert not torch.allclose(given, other, atol=0.1)


def test_nan_probabilities_score_highest_and_equal_scores_move_nothing() -> None:
    true, other = torch.tensor([[-0.1, -0.2, float("nan"), -0.1]]).double(), torch.full((1, 4), -3.0).double()
    given = advantages(true, other, "margin")
    assert given.isfinite().all()
    assert int(given.argmax()) == 2
    equal = advantages(true[:, :1].expand(1, 300), other[:, :1].expand(1, 300), "margin")
    assert torch.equal(equal, torch.zeros(1, 300).double())


def test_constant_scores_leave_mu_where_it_began() -> None:
    batch = batch_of(4, 3)
    constant = nn.functional.one_hot(batch.y, 3).float() / 3

    def model(x: Tensor) -> Tensor:
        return constant[: len(x)] if len(x) == 4 else constant.repeat_interleave(300, dim=0)

    attack = NATTACK(steps=4, chunk=1200)
    assert torch.equal(run(attack, model, batch), run(replace(attack, steps=0), model, batch))


@every_loss
def test_on_a_linear_softmax_model_the_margin_of_mus_image_falls(loss: NattackLoss) -> None:
    batch, model = favoured_batch(16), softmax_model(favoured=7.0)
    attack = NATTACK(loss, population=40)
    gaps = [-margin(model(run(replace(attack, steps=t), model, batch)), batch.y).mean() for t in (0, 15, 30)]
    assert gaps[0] > gaps[1] + 0.1 > gaps[2] + 0.2
    assert gaps[2] > 1  # no image was done with


def test_an_image_larger_than_32_pixels_is_moved_by_an_enlarged_field() -> None:
    rng, ball = Stream.of(0, "large").images(torch.arange(2)), Ball("linf", 1.0)
    x = rng.uniform("x", (2, 3, 48, 40), 0.3, 0.7, dtype=torch.float64)
    y = torch.zeros(2, dtype=torch.int64)

    def model(images: Tensor) -> Tensor:
        return torch.stack([9.0 + images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)

    begun = 0.001 * rng.sub("mean").normal("gaussian", (2, 3, 32, 32), dtype=torch.float64)
    field = nn.functional.interpolate(begun, size=(48, 40), mode="bilinear", align_corners=False)
    start = NATTACK(steps=0)(model, x, y, ball, rng)
    w = torch.atanh((1 - 1e-6) * (2 * x - 1))
    assert torch.allclose(torch.atanh(2 * start - 1) - w, field, atol=1e-9)
    assert not torch.equal(NATTACK(steps=2, population=4)(model, x, y, ball, rng), start)
    exact = x[:, :, :32, :32]
    field = torch.atanh(2 * NATTACK(steps=0)(model, exact, y, ball, rng) - 1) - w[:, :, :32, :32]
    assert torch.allclose(field, begun, atol=1e-9)


# queries


def test_every_query_lies_in_the_ball_and_the_box() -> None:
    batch, model = batch_of(4), Recorded(tiny().eval())
    batch = batch._replace(x=(1.4 * batch.x - 0.2).clamp(0, 1), y=model(batch.x).argmax(dim=1))
    model.seen.clear()
    run(NATTACK(steps=5, population=10, rate=0.5, every=50), model, batch, Ball("linf", 0.03))
    rows = torch.arange(4).repeat_interleave(10)
    looked, *asked = model.seen
    for x, there in [(looked, batch.x), *((x, batch.x[rows[: len(x)]]) for x in asked)]:
        assert x.min() >= 0
        assert x.max() <= 1
        assert ((x - there).abs() <= 0.03 + 1e-7).all()
    assert bool((asked[-1] - batch.x[rows[:40]]).abs().gt(0.0299).any())


@pytest.mark.parametrize("chunk", [1, 4, 7, 1024])
def test_one_step_costs_one_look_and_the_population(chunk: int) -> None:
    """The look after the last step is the judge's, at the image returned."""
    batch, attack = favoured_batch(3), NATTACK(steps=1, population=11, chunk=chunk)
    model = Recorded(softmax_model(favoured=50.0))
    found = run(attack, model, batch)
    assert model.queries == 3 * (11 + 1)
    assert max(len(x) for x in model.seen) <= chunk
    assert torch.allclose(found, run(replace(attack, chunk=1024), model, batch), atol=1e-12)


def test_a_robust_image_costs_the_whole_budget_and_no_more() -> None:
    batch, model = favoured_batch(2), Recorded(softmax_model(favoured=50.0))
    run(NATTACK(steps=23, population=5, every=10), model, batch)
    assert model.queries == 2 * (23 * 5 + 3)


def test_finished_images_are_asked_about_no_more() -> None:
    batch, near = favoured_batch(6), Recorded(softmax_model(favoured=3.0))
    attack = NATTACK(steps=16, population=10, every=4, rate=0.05)
    found = run(attack, near, batch)
    looks = [len(x) for x in near.seen[::5]]
    asked = [len(x) for x in near.seen[1::5]]
    assert len(looks) == len(asked) == 4
    assert looks[0] == 6 > looks[2] > looks[3] > asked[3] / 10 >= 1
    assert asked[:3] == [10 * n for n in looks[1:]]
    for place in (2, 3, 4):
        assert [len(x) for x in near.seen[place::5]] == asked
    assert int((breach(near(found), batch.y) > 0).sum()) >= 6 - asked[3] / 10
    for row in range(6):  # neither mates nor dropping change an image's result
        one = batch._replace(x=batch.x[[row]], y=batch.y[[row]], ids=batch.ids[[row]])
        assert torch.allclose(run(attack, near, one), found[[row]], atol=1e-9)


def test_an_image_that_is_wrong_to_begin_with_costs_one_query() -> None:
    batch, model = favoured_batch(3), Recorded(softmax_model(favoured=-50.0))
    run(SMALL, model, batch)
    assert model.queries == 3


def test_nan_logits_are_broken_and_stop_the_search() -> None:
    batch, model = favoured_batch(3), Recorded(lambda x: torch.full((len(x), 2), float("nan")))
    assert run(SMALL, model, batch).isfinite().all()
    assert model.queries == 3


def test_no_gradient_is_taken() -> None:
    batch, grads = favoured_batch(2), list[bool]()

    def model(x: Tensor) -> Tensor:
        grads.append(torch.is_grad_enabled())
        return softmax_model(favoured=50.0)(x)

    run(SMALL, model, batch)
    assert grads
    assert not any(grads)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_loss
def test_the_result_is_allowed_and_repeatable(classes: int, dtype: torch.dtype, loss: NattackLoss) -> None:
    batch, model = batch_of(4, classes, dtype=dtype), tiny(classes, dtype=dtype).eval()
    attack = replace(SMALL, loss=loss)
    found = run(attack, model, batch)
    assert found.dtype == dtype
    assert (BALL.distance(found, batch.x) <= BALL.eps + 1e-7).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, run(attack, model, batch))
    assert not torch.equal(found, run(attack, model, batch, rng=stream(batch, 1)))
    assert torch.equal(run(attack, model, batch, Ball("linf", 0.0)), batch.x)


def test_the_l2_ball_is_refused_by_name() -> None:
    batch = favoured_batch(2)
    with pytest.raises(DemiluneError, match=r"l2.*only linf is possible.*use pgd"):
        run(SMALL, softmax_model(), batch, Ball("l2", 0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: NATTACK(loss="logit"),
        lambda: NATTACK(steps=-1),
        lambda: NATTACK(steps=1.5),
        lambda: NATTACK(population=1),
        lambda: NATTACK(rate=0.0),
        lambda: NATTACK(rate=float("inf")),
        lambda: NATTACK(sigma=float("nan")),
        lambda: NATTACK(every=0),
        lambda: NATTACK(chunk=0),
    ],
)
def test_fields_that_mean_nothing_are_refused(make: Callable[[], NATTACK]) -> None:
    with pytest.raises(DemiluneError) as refusal:
        make()
    assert "\n" not in str(refusal.value)
