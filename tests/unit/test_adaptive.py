"""Attacks for defences that plain PGD overrates: margin decomposition, ODI, sampling, transfer, rescaled logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, stream, tiny
from demilune.attacks import PGD, Attack, Model, MultiTargeted, correct
from demilune.attacks.base import ascend, breach
from demilune.attacks.decomposition import MarginDecomposition
from demilune.attacks.odi import ODI, ODIStart
from demilune.attacks.rescale import Rescaled
from demilune.attacks.sampling import Uniform
from demilune.attacks.transfer import Transfer
from demilune.core.geometry import Ball
from demilune.core.losses import margin
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.methods import Batch

L2 = Ball("l2", 0.5)
PGD3 = PGD(steps=3, step_ratio=0.4)
ALL: dict[str, Attack] = {
    "md": MarginDecomposition(steps=5, change=3),
    "md targeted": MarginDecomposition(steps=3, change=2, targets=2),
    "odi": ODI(restarts=2, steps=3),
    "uniform": Uniform(samples=7, chunk=10),
    "transfer": Transfer((tiny(3, seed=1), tiny(3, seed=2)), PGD3),
    "rescaled": Rescaled(10.0, PGD3),
}
LINF_ONLY = ("md", "md targeted")


class Counted:
    """A model that notes each pass: how many images it had, and whether with gradients."""

    def __init__(self, model: Model) -> None:
        self.model, self.passes = model, list[tuple[int, bool]]()

    def __call__(self, x: Tensor) -> Tensor:
        self.passes.append((len(x), torch.is_grad_enabled()))
        return self.model(x)

    def sizes(self, grad: bool) -> list[int]:
        return [size for size, enabled in self.passes if enabled == grad]


def linear(classes: int, favoured: float = 0.0, scale: float = 1.0) -> tuple[Model, Tensor]:
    """Return a linear model of 8×8 images in float64 whose class 0 is favoured, and its weights [64,K]."""
    weight = Stream.of(7, "weight").normal("w", (64, classes), dtype=torch.float64) / 4
    bias = torch.zeros(classes, dtype=torch.float64)
    bias[0] = favoured
    return lambda x: scale * (x.flatten(1) @ weight + bias), weight


def of_class_0(n: int = 5, classes: int = 4) -> Batch:
    batch = batch_of(n, classes, dtype=torch.float64)
    return batch._replace(x=0.3 + 0.4 * batch.x, y=torch.zeros(n, dtype=torch.int64))


def half_broken() -> tuple[nn.Module, Batch, Ball]:
    """Return a network and images it has right, of which some break."""
    batch, model = batch_of(24), tiny().eval()
    return model, batch._replace(y=model(batch.x).argmax(dim=1)), Ball("linf", 0.04)


def lying(model: Model) -> Model:
    """Return a model that says the opposite while gradients are on, as low precision might now and then."""
    return lambda x: -model(x) if torch.is_grad_enabled() else model(x)


def run(attack: Attack, model: Model, batch: Batch, ball: Ball = BALL) -> Tensor:
    return attack(model, batch.x, batch.y, ball, stream(batch))


# all of them


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ball", [BALL, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("name", ALL)
def test_results_are_allowed_repeatable_and_each_images_own(
    name: str, ball: Ball, dtype: torch.dtype, classes: int
) -> None:
    attack = ALL[name]
    if isinstance(attack, Transfer):
        attack = replace(attack, sources=tuple(tiny(classes, seed=seed, dtype=dtype) for seed in (1, 2)))
    batch, model = batch_of(4, classes, dtype=dtype), tiny(classes, dtype=dtype).eval()
    if ball.norm == "l2" and name in LINF_ONLY:
        with pytest.raises(DemiluneError, match=r"l2.*only linf is possible.*use pgd"):
            run(attack, model, batch, ball)
        return
    found = run(attack, model, batch, ball)
    assert found.dtype == dtype
    assert found.grad_fn is None
    assert found.min() >= 0
    assert found.max() <= 1
    assert (ball.distance(found, batch.x) <= ball.eps + 1e-6).all()
    assert not torch.equal(found, batch.x)
    assert torch.equal(found, run(attack, model, batch, ball))
    assert not torch.equal(found, attack(model, batch.x, batch.y, ball, stream(batch, 1)))
    for row in range(4):
        one = batch._replace(x=batch.x[[row]], y=batch.y[[row]], ids=batch.ids[[row]])
        assert torch.allclose(run(attack, model, one, ball), found[[row]], atol=1e-6)
    assert torch.equal(run(attack, model, batch, replace(ball, eps=0.0)), batch.x)


@pytest.mark.parametrize("name", ALL)
def test_nan_logits_are_broken(name: str) -> None:
    """An image whose logits are NaN wherever it moves is found at once, and nobody searches on."""
    batch = batch_of(3, 3)
    counted = Counted(lambda x: torch.full((len(x), 3), float("nan")) + 0 * x.flatten(1).sum(dim=1, keepdim=True))
    found = run(ALL[name], counted, batch)
    assert found.isfinite().all()
    assert sum(size for size, _ in counted.passes) <= 3 * (PGD3.steps + 5)


@pytest.mark.parametrize("name", ["md", "md targeted", "odi"])
def test_only_a_pass_without_gradient_breaks_an_image(name: str) -> None:
    batch, attack = of_class_0(), ALL[name]
    model, _ = linear(4, favoured=50.0)
    counted = Counted(lying(model))
    run(attack, counted, batch)
    whole = Counted(model)
    run(attack, whole, batch)
    assert counted.sizes(True) == whole.sizes(True)  # the search's own logits say broken throughout, and drop nobody
    assert set(whole.sizes(True)) == {5}


@pytest.mark.parametrize(
    "make",
    [
        lambda: MarginDecomposition(steps=2),
        lambda: MarginDecomposition(change=1),
        lambda: MarginDecomposition(steps=25),
        lambda: MarginDecomposition(targets=-1),
        lambda: MarginDecomposition(steps=True),
        lambda: ODI(restarts=0),
        lambda: ODI(odi_steps=-1),
        lambda: ODI(steps=-1),
        lambda: ODI(step_ratio=0.0),
        lambda: ODIStart(step_ratio=float("nan")),
        lambda: Uniform(samples=0),
        lambda: Uniform(chunk=0),
        lambda: Transfer(()),
        lambda: Transfer((tiny(),), attack="pgd"),
        lambda: Rescaled(0.0),
        lambda: Rescaled(float("inf")),
        lambda: Rescaled(2.0, attack="pgd"),
    ],
)
def test_fields_that_mean_nothing_are_refused(make: Callable[[], Attack]) -> None:
    with pytest.raises(DemiluneError) as refusal:
        make()
    assert "\n" not in str(refusal.value)


# margin decomposition


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize(("steps", "change"), [(50, 25), (8, 4), (7, 2)])
def test_stages_and_step_sizes_are_the_papers(steps: int, change: int, targets: int) -> None:
    """On a linear model every iterate can be written down, without a derivative or the attack's own code."""
    classes, batch = 4, of_class_0()
    model, weight = linear(classes, favoured=100.0)
    points = list[Tensor]()

    def recording(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            points.append(x.detach())
        return model(x)

    found = run(MarginDecomposition(steps, change, targets), recording, batch)
    order = model(batch.x)[:, 1:].argsort(dim=1, descending=True) + 1
    runs = [(n, r) for n in range(max(targets, 1)) for r in (0, 1)]
    assert len(points) == steps * len(runs)
    for place, (number, r) in enumerate(runs):
        path = [*points[place * steps : (place + 1) * steps]]
        start = BALL.sample(batch.x, stream(batch).sub("target", number, "run", r).sub("start"))
        assert torch.equal(path[0], start)
        after = path[1:] if place + 1 < len(runs) else [*path[1:], found]
        for i, (here, there) in enumerate(zip(path, after, strict=False)):
            other = order[:, number] if targets else model(here)[:, 1:].argmax(dim=1) + 1
            if i == 0:
                direction = weight[:, [0] * 5]
            elif i < change:
                direction = weight[:, other] if r else -weight[:, [0] * 5]
            else:
                direction = weight[:, other] - weight[:, [0] * 5]
            if i <= change:
                size = BALL.eps * (1 + math.cos((i - 1) * math.pi / change))
            else:
                size = BALL.eps * (1 + math.cos((i - change - 1) * math.pi / (steps - change)))
            moved = here + size * direction.T.sign().reshape(here.shape)
            expected = torch.minimum(torch.maximum(moved, batch.x - BALL.eps), batch.x + BALL.eps).clamp(0, 1)
            assert torch.allclose(there, expected, atol=1e-12), (place, i)


def saturated() -> tuple[Model, Batch]:
    """Return a linear model in float32 that every image can be made to lose, with logits so large that the softmax is
    one-hot, and the gradient of its cross-entropy zero, wherever a random start falls."""
    batch = batch_of(8, 3)
    weight = Stream.of(7, "weight").normal("w", (64, 3))
    weight[:, 2] = 0.0
    gain = BALL.eps * float((weight[:, 1] - weight[:, 0]).abs().sum())
    bias = torch.tensor([0.7 * gain, 0.0, -1e3])
    batch = batch._replace(x=torch.full_like(batch.x, 0.5), y=torch.zeros(8, dtype=torch.int64))
    return lambda x: 1e3 * ((x - 0.5).flatten(1) @ weight + bias), batch


def test_a_saturated_softmax_holds_pgd_and_no_attack_on_margins() -> None:
    model, batch = saturated()
    assert correct(model, batch.x, batch.y).all()
    held = run(PGD(steps=50, step_ratio=0.25), model, batch)
    assert torch.equal(held, run(PGD(steps=0), model, batch))
    assert correct(model, held, batch.y).all()
    for attack in (MarginDecomposition(), MarginDecomposition(targets=2), ODI(restarts=1)):
        assert not correct(model, run(attack, model, batch), batch.y).any()


def imbalanced() -> tuple[Model, Batch]:
    """Return a model of imbalanced gradients, and images it has right.

    z_0 is a ripple: steep, but with so many turns that following it leads nowhere. z_1 is the mean of the pixels:
    gentle, and enough to cross.
    """
    batch = batch_of(12, 2, dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        ripple = 2e-4 * torch.sin(2e4 * pixels).mean(dim=1)
        return torch.stack([0.56 + ripple, pixels.mean(dim=1)], dim=1)

    return model, batch._replace(x=0.3 + 0.4 * batch.x, y=torch.zeros(12, dtype=torch.int64))


def test_a_steep_term_that_leads_nowhere_hides_the_other_from_pgd_alone() -> None:
    model, batch = imbalanced()
    assert correct(model, batch.x, batch.y).all()
    for attack in (PGD(steps=100, step_ratio=0.25), Rescaled(100.0, PGD(steps=20, step_ratio=0.25))):
        assert correct(model, run(attack, model, batch), batch.y).all()
    assert not correct(model, run(MarginDecomposition(), model, batch), batch.y).any()


def test_images_leave_the_search_at_their_first_misclassified_iterate() -> None:
    model, batch, ball = half_broken()
    counted = Counted(model)
    found = run(MarginDecomposition(steps=10, change=5), counted, batch, ball)
    sizes = counted.sizes(True)
    assert sizes == sorted(sizes, reverse=True)
    left = int((breach(model(found), batch.y) <= 0).sum())
    assert sizes[0] == 24 > sizes[9] >= sizes[10] >= sizes[-1] >= left > 0
    assert len(sizes) == 20
    assert sum(counted.sizes(False)) <= 24 + 2 * sizes[10]  # who breaks is confirmed once; who does not, at each end


def test_targets_are_gone_through_until_an_image_breaks() -> None:
    model, batch, ball = half_broken()
    counted = Counted(model)
    attack = MarginDecomposition(steps=6, change=3, targets=9)
    broken = breach(model(run(attack, counted, batch, ball)), batch.y) > 0
    sizes = counted.sizes(True)
    assert counted.passes[0] == (24, False)
    assert len(sizes) == 6 * 2 * 3
    assert sizes == sorted(sizes, reverse=True)
    one = breach(model(run(replace(attack, targets=1), model, batch, ball)), batch.y) > 0
    assert (broken >= one).all()
    assert 0 < int(broken.sum()) < 24


# ODI


@pytest.mark.parametrize("ball", [BALL, L2], ids=["linf", "l2"])
def test_a_run_ascends_a_random_direction_of_the_logits_and_then_the_margin(ball: Ball) -> None:
    batch, model = batch_of(), tiny().eval()
    rng = stream(batch)
    path = [iterate.point for iterate in ODIStart(steps=4).path(model, batch.x, batch.y, ball, rng)]
    assert len(path) == 7
    w = rng.sub("direction").uniform("w", (6, 4), -1.0, 1.0)
    assert len(w.unique(dim=0)) == 6
    start = ball.sample(batch.x, rng.sub("start"))
    first = ascend(model, batch.x, start, lambda z: (w * z).sum(dim=1), ball, ball.eps, 2)
    begun = [iterate.point for iterate in first]
    second = ascend(model, batch.x, begun[-1], lambda z: margin(z, batch.y), ball, ball.eps / 4, 4)
    expected = [*begun[:-1], *(iterate.point for iterate in second)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(path, expected, strict=True))


def test_without_odi_steps_it_is_pgd_on_the_margin() -> None:
    batch, model = batch_of(), tiny().eval()
    start = BALL.sample(batch.x, stream(batch).sub("start"))
    plain = [*ascend(model, batch.x, start, lambda z: margin(z, batch.y), BALL, BALL.eps / 4, 5)]
    assert torch.equal(run(ODIStart(odi_steps=0, steps=5), model, batch), plain[-1].point)


def test_odi_starts_elsewhere_each_time_and_skips_what_is_broken() -> None:
    model, batch, ball = half_broken()
    counted = Counted(model)
    found = run(ODI(restarts=3, steps=3), counted, batch, ball)
    sizes = counted.sizes(True)
    assert sizes[:5] == [24] * 5
    assert sizes[5] < 24
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 15
    assert len(counted.sizes(False)) == 6
    once = run(ODI(restarts=1, steps=3), model, batch, ball)
    heights = [breach(model(points), batch.y).detach() for points in (once, found)]
    assert (heights[1] >= heights[0] - 1e-6).all()
    assert (heights[1] > heights[0] + 1e-4).any()


# sampling


def test_sampling_finds_what_is_all_over_the_ball() -> None:
    """A quarter of the ball is of class 1, in steps that give no gradient; a 2^-64th of it is too little to find."""
    batch = batch_of(4, 2)
    batch = batch._replace(x=torch.full_like(batch.x, 0.5), y=torch.zeros(4, dtype=torch.int64))

    def stepped(pixels: int) -> Model:
        def model(x: Tensor) -> Tensor:
            beyond = (x.flatten(1)[:, :pixels] > 0.5).all(dim=1).float()
            return torch.stack([torch.full_like(beyond, 0.5), beyond], dim=1) + 0 * x.flatten(1).sum(dim=1)[:, None]

        return model

    assert not correct(stepped(2), run(Uniform(100), stepped(2), batch), batch.y).any()
    assert correct(stepped(64), run(Uniform(100), stepped(64), batch), batch.y).all()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_a_robust_image_costs_all_the_samples(chunk: int) -> None:
    batch = of_class_0(3)
    model, _ = linear(4, favoured=50.0)
    counted = Counted(model)
    found = run(Uniform(50, chunk), counted, batch)
    assert counted.sizes(True) == []
    assert sum(counted.sizes(False)) == 3 * 50
    assert max(counted.sizes(False)) <= chunk
    points = [BALL.sample(batch.x, stream(batch).sub("sample", s)) for s in range(50)]
    heights = torch.stack([margin(model(point), batch.y) for point in points])
    for row, best in enumerate(heights.argmax(dim=0)):
        assert torch.equal(found[row], points[best][row])


def test_the_first_sample_that_breaks_an_image_is_its_result_whatever_the_batch() -> None:
    model, batch, _ = half_broken()
    ball = Ball("linf", 0.3)
    counted = Counted(model)
    found = run(Uniform(40, 24), counted, batch, ball)
    sizes = counted.sizes(False)
    points = torch.stack([ball.sample(batch.x, stream(batch).sub("sample", s)) for s in range(40)])
    broken = torch.stack([breach(model(point).detach(), batch.y) > 0 for point in points])
    assert 0 < int(broken.any(dim=0).sum()) < 24
    for row in range(24):
        if broken[:, row].any():
            assert torch.equal(found[row], points[int(broken[:, row].int().argmax()), row])
    assert torch.equal(run(Uniform(40, 1024), model, batch, ball), found)
    assert sizes[0] == 24
    assert sum(sizes) < 24 * 40


# transfer


def test_transfer_from_the_target_itself_is_the_attack_itself() -> None:
    model, batch, ball = half_broken()
    found = run(Transfer((model,), PGD3), model, batch, ball)
    assert torch.equal(found, PGD3(model, batch.x, batch.y, ball, stream(batch).sub("source", 0)))
    assert int(correct(model, found, batch.y).sum()) < 24


def test_transfer_keeps_the_image_that_moves_the_target_furthest() -> None:
    model, batch, ball = half_broken()
    weak, strong = tiny(seed=3), tiny(seed=4)
    counted = Counted(model)
    both = run(Transfer((weak, strong, model), PGD3), counted, batch, ball)
    assert counted.sizes(True) == []
    one = run(Transfer((weak,), PGD3), model, batch, ball)
    heights = [breach(model(points), batch.y).detach() for points in (one, both)]
    assert (heights[1] >= heights[0] - 1e-6).all()
    sizes = counted.sizes(False)
    assert len(sizes) == 3
    assert sizes[0] == 24 >= sizes[1] >= sizes[2]
    assert int((heights[1] > 0).sum()) > int((heights[0] > 0).sum())
    own = run(Transfer((model,), PGD3), model, batch, ball)  # strongest first: the later sources replace little of it
    again = run(Transfer((model, weak, strong), PGD3), model, batch, ball)
    assert (breach(model(again), batch.y) >= breach(model(own), batch.y) - 1e-6).all()


def test_sources_are_attacked_in_eval_mode_and_left_as_they_were() -> None:
    _, batch, ball = half_broken()
    source = tiny(seed=3).train()
    source.net.features[1].eval()
    modes = [module.training for module in source.modules()]
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    during = list[bool]()
    source.register_forward_hook(lambda module, given, out: during.append(any(m.training for m in module.modules())))
    run(Transfer((source,), PGD3), tiny().eval(), batch, ball)
    assert during == [False] * 3
    assert [module.training for module in source.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in source.parameters())


# rescaled logits


@pytest.mark.parametrize("attack", [PGD3, MultiTargeted(targets=2, steps=2)])
def test_a_factor_of_one_changes_no_bit(attack: Attack) -> None:
    model, batch, ball = half_broken()
    assert torch.equal(run(Rescaled(1.0, attack), model, batch, ball), run(attack, model, batch, ball))


def test_a_small_factor_gives_a_saturated_softmax_its_gradient_back() -> None:
    model, batch = saturated()
    attack = PGD(steps=20, step_ratio=0.25)
    assert correct(model, run(Rescaled(10.0, attack), model, batch), batch.y).all()
    assert not correct(model, run(Rescaled(1e-3, attack), model, batch), batch.y).any()
