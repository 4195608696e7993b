"""What an evaluation must not be fooled by: ties, infinite logits, gradients that are no numbers, another radius."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, harden, stream, tiny
from demilune.attacks import (
    APGD,
    ATTACKS,
    CW,
    FABT,
    PGD,
    Attack,
    Square,
    breach,
    correct,
    read,
    right,
    survivors,
)
from demilune.core.geometry import LARGEST, Ball, Norm
from demilune.core.losses import margin
from demilune.core.random import Stream
from demilune.data import Digits, Split
from demilune.errors import DemiluneError
from demilune.evaluate import Findings, evaluate, suite
from demilune.evaluate.doctor import examine
from demilune.evaluate.suite import CASCADES, Setting
from demilune.evaluate.table import checks

RNG = Stream.of(0, "evaluation")
LINES = ["fgsm", "pgd5x3", "cw5", "multi9x5", "odi", "md", "apgd", "uniform20", "square@n=10"]


def network(channels: int = 8) -> nn.Module:
    """Return a small network that tells the digits apart, and withstands a little."""
    split = Digits().load().train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, 10))
    harden(model, split.pixels(slice(None)), split.labels, steps=120, rate=1e-2)
    return model.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def digits() -> Split:
    return Digits().load().test.take(torch.arange(40))


class Through(nn.Module):
    """A network with something before and after it."""

    def __init__(
        self, net: nn.Module, after: Callable[[Tensor], Tensor], before: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        self.net, self.after, self.before = net, after, before

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.before(x))
        return self.after(logits)


def stepped(logits: Tensor) -> Tensor:
    """Round logits to multiples of 2 and let gradients through: many are equal then."""
    return logits + ((logits / 2).round() * 2 - logits).detach()


def infinite(logits: Tensor) -> Tensor:
    """Let large logits be +∞, as an overflow would."""
    return torch.where(logits > 6.0, float("inf"), logits)


def accuracies(found: Findings) -> dict[str, int]:
    return {row.name: row.right for row in found.rows}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_image_is_broken_exactly_where_the_judge_calls_it_wrong(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf], dtype=dtype)
    logits = torch.cartesian_prod(values, values, values)
    if dtype == torch.float64:  # a difference that float32 does not hold
        logits = torch.cat((logits, torch.tensor([[0.0, 1e-60, -1.0], [1e-60, 0.0, -1.0]], dtype=dtype)))
    for label in range(3):
        y = torch.full((len(logits),), label)
        height = breach(logits, y)
        assert height.dtype == torch.float32
        assert torch.equal(height <= 0, right(logits, y))
        plain = logits.isfinite().all(dim=1) & (margin(logits, y).float() != 0)
        assert torch.equal(height[plain], margin(logits, y).float()[plain])


@pytest.mark.parametrize("after", [stepped, infinite], ids=["ties", "infinite"])
def test_readings_of_logits_with_ties_or_infinities_do_not_contradict_each_other(
    net: nn.Module, digits: Split, after: Callable[[Tensor], Tensor]
) -> None:
    model, x, y = Through(net, after), digits.pixels(slice(None)), digits.labels
    with torch.no_grad():
        logits = model(x)
        top = logits.topk(2, dim=1).values
    assert bool((top[:, 0] == top[:, 1]).any()) or bool(logits.isinf().any()), "else nothing is tested"
    found = evaluate(model, digits, Ball("linf", 0.05), suite(LINES), RNG, alone=False)
    seen = accuracies(found)
    assert seen["pgd5x3_any"] <= seen["pgd5_any"] <= seen["pgd5"]
    assert not (found.images["right.pgd5_any"] & ~found.images["right.pgd5"]).any()
    # The reading is the best there is: no iterate that the judge calls wrong is passed over.
    ball, rng = Ball("linf", 0.05), RNG.images(digits.ids)
    standing = torch.ones(len(y), dtype=torch.bool)
    for point, _ in list(PGD(5, step_ratio=0.25).path(model, x, y, ball, rng))[1:]:
        standing &= correct(model, point, y)
    assert torch.equal(correct(model, read(PGD(5, step_ratio=0.25), model, x, y, ball, rng).any, y), standing)


def roots(x: Tensor) -> Tensor:
    """Return |x|, whose gradient so written is no number at 0."""
    return x.pow(2).sqrt()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4)])
def test_gradients_that_are_no_numbers_end_no_evaluation(net: nn.Module, digits: Split, norm: Norm, eps: float) -> None:
    model, ball = Through(net, lambda logits: logits, roots), Ball(norm, eps)
    leaf = digits.pixels(slice(None)).requires_grad_()
    model(leaf).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isnan().any())
    x, y, rng = digits.pixels(slice(None)), digits.labels, RNG.images(digits.ids)
    for of in (FABT(steps=10), APGD(steps=10), PGD(5, step_ratio=0.25), Square(queries=20)):
        after = survivors(model, x, y, of, ball, rng).robust
        if not isinstance(of, Square):
            assert int(after.sum()) < int(correct(net, x, y).sum()), "what is a number in the gradient is of use"
    report = examine(model, digits.images, digits.labels, ball, ("fgsm", "pgd5"))
    assert any(check.name == "no gradient" for check in report.checks)


def test_infinite_gradients_are_left_out_of_fab(net: nn.Module, digits: Split) -> None:
    model = Through(net, lambda logits: logits, lambda x: x.sqrt().square())
    x, y, rng = digits.pixels(slice(None)), digits.labels, RNG.images(digits.ids)
    after = survivors(model, x, y, FABT(steps=10), Ball("linf", 0.1), rng).robust
    assert int(after.sum()) < int(correct(model, x, y).sum())


@pytest.mark.parametrize("names", [["apgd@eps=0.02"], ["apgd", "apgd@eps=0.02"], ["apgd@eps=0.02", "apgd"]])
def test_autoattack_in_another_ball_comes_after_its_own_parts(net: nn.Module, digits: Split, names: list[str]) -> None:
    some = digits.take(torch.arange(16))
    wanted = accuracies(evaluate(net, some, Ball("linf", 0.02), suite(["apgd"]), RNG))
    found = accuracies(evaluate(net, some, Ball("linf", 0.2), suite(names), RNG))
    assert found["autoattack.apgd_t@eps=0.02"] == wanted["autoattack.apgd_t"]
    assert found["autoattack.apgd_ce@eps=0.02"] == wanted["autoattack.apgd_ce"]
    assert 0 < wanted["autoattack.apgd_t"] < wanted["clean"]
    few = accuracies(evaluate(net, some, Ball("linf", 0.2), suite(["apgd@eps=0.02@n=5"]), RNG))
    assert few["autoattack.apgd_t@eps=0.02"] <= 5


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["autoattack_rand", "autoattack_plus"])
def test_every_version_of_autoattack_runs_to_its_end(
    net: nn.Module, digits: Split, name: str, norm: Norm, classes: int
) -> None:
    rows = (digits.labels < classes).nonzero().flatten()[:12]
    model, some = Through(net, lambda logits: logits[:, :classes]), digits.take(rows)
    ball = Ball(norm, {"linf": 0.08, "l2": 0.5}[norm])
    entries = [
        dataclasses.replace(one, of=quicker(one.of), run=judging(one.name, quicker(one.of)))
        for one in suite([name], Setting(norm=norm, classes=classes))
    ]
    assert len(entries) == len(CASCADES[name].parts)
    found = evaluate(model, some, ball, entries, RNG)
    counts = [row.right for row in found.rows[:-1]]
    assert counts == sorted(counts, reverse=True), "each is on the images that all before it left"
    notes = " ".join(row.note for row in found.rows)
    assert ("margin instead of" in notes) == (classes < (4 if name == "autoattack_plus" else 3))
    assert ("mean log-probabilities" in notes) == (name == "autoattack_rand")


def quicker(of: Attack | None) -> Attack:
    """Return an attack of AutoAttack's with a tenth of its steps."""
    assert of is not None
    if isinstance(of, Square):
        return dataclasses.replace(of, queries=30)
    return dataclasses.replace(of, steps=10)  # type: ignore[type-var]


def judging(name: str, of: Attack) -> Callable[..., dict[str, Tensor]]:
    def run(model: nn.Module, search: nn.Module, x: Tensor, y: Tensor, ball: Ball, rng: Stream) -> dict[str, Tensor]:
        return {name: correct(model, of(search, x, y, ball, rng), y)}

    return run


def test_autoattack_leaves_no_more_than_any_part_and_apgd_no_more_than_pgd(net: nn.Module, digits: Split) -> None:
    """attacks.md 6.7 (b); pgd100 within 0.3 points is less than one of these images."""
    names = ["autoattack", "apgd_ce", "apgd_t", "fab_t", "square", "pgd100"]
    some = digits.take(torch.arange(16))
    found = accuracies(evaluate(net, some, Ball("linf", 0.06), suite(names), RNG))
    assert 0 < found["autoattack"] < found["clean"]
    assert all(found["autoattack"] <= found[part] for part in ("apgd_ce", "apgd_t", "fab_t", "square"))
    assert found["apgd_ce"] <= found["pgd100"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_budgets_end_where_radii_do(net: nn.Module, digits: Split, norm: Norm) -> None:
    assert Ball(norm, LARGEST[norm]).times(2.0).eps == LARGEST[norm]
    assert Ball(norm, 0.25).times(0.5) == Ball(norm, 0.125)
    some = digits.take(torch.arange(4))
    ball = Ball(norm, 0.75 * LARGEST[norm])
    found = evaluate(net, some, ball, suite(["budget_pgd10"]), RNG)
    assert accuracies(found)["budget.pgd10.16_nested"] == 0
    rights = [row.right for row in found.rows if row.name.startswith("budget.pgd10") and "nested" not in row.name]
    (check,) = (check for check in found.checks if check.name == "accuracy falls with ε")
    assert (check.level == "pass") == (rights == sorted(rights, reverse=True))


def test_accuracy_that_rises_with_the_radius_is_a_warning(net: nn.Module, digits: Split) -> None:
    rows = evaluate(net, digits.take(torch.arange(4)), BALL, suite(["budget_pgd10"]), RNG).rows
    risen = [dataclasses.replace(row, right=row.n) if row.name == "budget.pgd10.12" else row for row in rows]
    found = {check.name: check for check in checks(risen, {}, 4)}["accuracy falls with ε"]
    assert found.level == "warning" and "PGD-10 at 12/8 ε 100.00%" in found.text


def test_looking_at_sources_moves_no_generator(net: nn.Module, digits: Split) -> None:
    state = torch.random.get_rng_state()
    noisy = Through(net, lambda logits: logits + 1e-6 * torch.randn_like(logits))
    examine(net, digits.images, digits.labels, BALL, ("fgsm", "transfer"), sources={"noisy": noisy})
    assert torch.equal(torch.random.get_rng_state(), state)


def test_models_to_transfer_from_are_held_still_throughout(net: nn.Module, digits: Split) -> None:
    source = tiny(classes=10).train()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    report = examine(net, digits.images, digits.labels, BALL, ("fgsm", "transfer"), sources={"other": source})
    still = examine(net, digits.images, digits.labels, BALL, ("fgsm", "transfer"), sources={"other": source.eval()})
    assert report.found.rows == still.found.rows
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())
    with pytest.raises(DemiluneError, match=r"'few' tells 4 classes apart.*10: nothing transfers"):
        examine(net, digits.images, digits.labels, BALL, ("fgsm", "transfer"), sources={"few": tiny(classes=4)})


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - {"kl_pgd"}))  # which asks for no labels
def test_labels_beyond_the_classes_are_one_line(name: str) -> None:
    batch = batch_of()
    y = batch.y.clone()
    y[1] = 7
    of = PGD(steps=1) if name == "pgd" else ATTACKS[name]()
    with pytest.raises(DemiluneError, match=r"label 7, and the model tells 4 classes apart: labels are 0 to 3"):
        of(tiny().eval(), batch.x, y, BALL, stream(batch))


def test_labels_beyond_the_classes_end_an_evaluation_before_it_begins(net: nn.Module, digits: Split) -> None:
    wrong = Split(digits.images, digits.labels + 3, digits.ids)
    with pytest.raises(DemiluneError, match=r"the 10 classes are 0 to 9"):
        evaluate(net, wrong, BALL, suite(["pgd5x3"]), RNG)


def test_an_answer_that_is_cut_off_from_the_image_is_one_line(net: nn.Module, digits: Split) -> None:
    detached = Through(net, lambda logits: logits.detach())
    x, y, rng = digits.pixels(slice(None)), digits.labels, RNG.images(digits.ids)
    for of in (PGD(), CW(), APGD(), FABT()):
        with pytest.raises(DemiluneError, match="no gradient reaches the images"):
            of(detached, x, y, BALL, rng)
    assert int(correct(detached, Square(queries=50)(detached, x, y, BALL, rng), y).sum()) < len(y)


def test_another_fault_of_a_model_stays_what_it_is(net: nn.Module, digits: Split) -> None:
    def fails(logits: Tensor) -> Tensor:
        raise RuntimeError("a fault of its own")

    def crowded(logits: Tensor) -> Tensor:
        if len(logits) > 4:
            raise RuntimeError("a fault of its own")
        return logits.detach()

    def lonely(logits: Tensor) -> Tensor:
        if len(logits) < 4:
            raise ValueError("too few")
        raise RuntimeError("a fault of its own")

    for after in (fails, crowded, lonely):
        for of in (PGD(), Square(queries=3)):
            with pytest.raises(RuntimeError, match="a fault of its own"):
                of(Through(net, after), digits.pixels(slice(None)), digits.labels, BALL, RNG.images(digits.ids))


def test_labels_beyond_the_classes_are_one_line_in_training_mode_too(digits: Split) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()
    with pytest.raises(DemiluneError, match="labels are 0 to 3"):
        PGD()(model, digits.pixels(slice(None)), digits.labels, BALL, RNG.images(digits.ids))


def test_an_attack_is_named_as_it_was_before_it_had_another_form() -> None:
    """Results are compared by these words: a field that is new must not make old ones other attacks."""
    (usual,), (released,) = suite(["cw10"]), suite(["cw10_rlfat"])
    assert usual.described() == "CW(steps=10, step_size=0.00784313725490196, step_ratio=0.25, kappa=50.0)"
    assert released.described() == f"{usual.described()}, masking zero"


def test_results_kept_in_a_file_say_of_which_model_they_are(net: nn.Module, digits: Split, tmp_path: Path) -> None:
    with pytest.raises(DemiluneError, match="partial without identity"):
        evaluate(net, digits, BALL, suite(["fgsm"]), RNG, partial=tmp_path / "x.npz")
    partial, weights = tmp_path / "y.npz", {"weights": "a"}
    one = evaluate(net, digits, BALL, suite(["pgd2"]), RNG, partial=partial, identity=weights)
    other = evaluate(net, digits, BALL, suite(["pgd2"]), Stream.of(1, "evaluation"), partial=partial, identity=weights)
    fresh = evaluate(net, digits, BALL, suite(["pgd2"]), Stream.of(1, "evaluation"))
    assert np.array_equal(other.images["right.pgd2"], fresh.images["right.pgd2"])
    assert one.rows[0] == other.rows[0]


def test_cw_as_rlfat_released_it_sees_no_wrong_logit_below_zero() -> None:
    """attacks.md 3: logits shifted by a constant leave the attack unchanged, but not the released form."""
    batch, model = batch_of(n=12), tiny().eval()

    def shifted(by: float) -> Callable[[Tensor], Tensor]:
        return lambda x: model(x) + by

    rng = stream(batch)
    for masking, same in (("inf", True), ("zero", False)):
        of = CW(5, step_ratio=0.25, masking=masking)  # type: ignore[arg-type]
        one, two = (of(shifted(by), batch.x, batch.y, BALL, rng) for by in (20.0, -20.0))
        assert torch.allclose(one, two, atol=1e-5) == same
    # With every wrong logit below 0 it descends the true logit alone; with all above 0 it is the margin.
    released = CW(5, step_ratio=0.25, masking="zero")
    plain = CW(5, step_ratio=0.25)
    up = shifted(20.0)
    assert torch.equal(released(up, batch.x, batch.y, BALL, rng), plain(up, batch.x, batch.y, BALL, rng))
    with pytest.raises(DemiluneError, match="masking"):
        CW(masking="none")  # type: ignore[arg-type]
