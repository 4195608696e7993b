"""What a network is asked before it is attacked: every kind of wrong answer, and that a right one passes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import tiny
from demilune.core.random import Stream
from demilune.data import CIFAR10, MNIST
from demilune.diagnosis import diagnose
from demilune.errors import DemiluneError
from demilune.evaluate.interview import KNOWN, first_look, interview, normalisations
from demilune.foreign import Declaration, Declared, load_declared
from demilune.results import Check, Row

K, N = 4, 80
X = Stream.of(7).uniform("x", (N, 1, 8, 8))
NET = tiny(K).eval()
with torch.no_grad():
    LOGITS = 20 * (NET(X) - NET(X).mean(dim=0))
Y = LOGITS.argmax(dim=1)


def good(x: Tensor) -> Tensor:
    """Answer as the labels have it, whatever the company."""
    return 20 * (NET(x) - NET(X).detach().mean(dim=0))


class Wrong(nn.Module):
    """The good model, with something done to its logits (of the images, if that takes two)."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.change, self.calls = NET, change, 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.change(good(x), x)


def ask(model: Callable[[Tensor], Any], x: Tensor = X, y: Tensor = Y, classes: int = K) -> dict[str, Check]:
    found = interview(model, x, y, classes)
    assert len({check.name for check in found}) == len(found)
    assert all(check.level in ("pass", "warning", "error") and "\n" not in check.text for check in found)
    return {check.name: check for check in found}


def levels(found: Mapping[str, Check]) -> dict[str, str]:
    """Return what did not pass."""
    return {name: check.level for name, check in found.items() if check.level != "pass"}


def change(what: Callable[..., Any]) -> dict[str, Check]:
    return ask(Wrong(what).eval())


def test_a_sound_model_passes_and_is_left_as_it_was() -> None:
    model = Wrong(lambda z, x: z).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator, x = torch.get_rng_state(), X.clone()
    found = ask(model)
    assert levels(found) == {}
    names = ["mode", "numbers", "probabilities", "randomised", "dynamic", "batch", "zero gradient", "predictions"]
    assert list(found) == [*names, "accuracy"]
    assert "100.0% of 80 images" in found["accuracy"].text
    assert model.calls == 2 + 5 + 5  # two chunks with gradient, five the same, five in other company
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator) and torch.equal(X, x)


def test_anything_that_can_be_called_is_asked() -> None:
    found = ask(good, X[:1], Y[:1])
    assert levels(found) == {} and "mode" not in found


# Answers that are refused


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda z, x: (z, x), ["type tuple of 2", "alone"]),
        (lambda z, x: {"logits": z, "loss": 0}, ["type dict of logits, loss"]),
        (lambda z, x: SimpleNamespace(logits=z), ["type SimpleNamespace"]),
        (lambda z, x: None, ["None"]),
        (lambda z, x: z.argmax(dim=1), ["int64 [64]", "no gradient"]),
        (lambda z, x: z[:, :3], ["[64, 3] for 64 images and 4 classes", "--data NAME", "as num_classes=4"]),
        (lambda z, x: z[:, :, None], ["[64, 4, 1]"]),
        (lambda z, x: z[0], ["[4]"]),
        (lambda z, x: z.sum(), ["[]"]),
        (lambda z, x: z[:7], ["[7, 4] for 64"]),
        (lambda z, x: z @ torch.zeros(5, 2), ["fails on images [64, 1, 8, 8] (RuntimeError", "size and channels"]),
        (lambda z, x: 1 // 0, ["ZeroDivisionError"]),
    ],
)
def test_what_is_no_logits_is_refused(answer: Callable[..., Any], told: list[str]) -> None:
    with pytest.raises(DemiluneError) as caught:
        change(answer)
    for word in told:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_logit_is_told_how_to_become_two() -> None:
    for answer in (lambda z, x: z[:, 0], lambda z, x: z[:, :1]):
        with pytest.raises(DemiluneError, match="two logits 0 and z"):
            ask(Wrong(answer), X, Y % 2, 2)


@pytest.mark.parametrize(("label", "image"), [(4, 11), (-1, 3)])
def test_a_label_outside_the_classes_is_refused(label: int, image: int) -> None:
    y = Y.clone()
    y[image:] = label
    with pytest.raises(DemiluneError, match=f"image {image} has the label {label}, and the 4 classes are 0 to 3"):
        ask(good, X, y)
    with pytest.raises(DemiluneError, match="pixels from"):
        ask(good, X * 255)


# Answers that mislead


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_widened(dtype: torch.dtype) -> None:
    assert levels(change(lambda z, x: (z + 0.01 * torch.arange(4)).to(dtype))) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_counted(bad: float) -> None:
    def broken(z: Tensor, x: Tensor) -> Tensor:
        here = x[:, 0, 0, 0] < X[:20, 0, 0, 0].median()
        return torch.where(here[:, None] & (torch.arange(K) == Y[0]), bad, z)

    found = change(broken)
    share = int((X[:, 0, 0, 0] < X[:20, 0, 0, 0].median()).sum()) / N
    assert levels(found) == {"numbers": "warning"}
    assert f"{share:.1%} of 80 images are not finite" in found["numbers"].text
    assert "count as wrong" in found["numbers"].text and f"{1 - share:.1%}" in found["accuracy"].text


def test_a_model_that_gives_no_number_at_all() -> None:
    found = change(lambda z, x: z * float("nan"))
    assert levels(found) == {"numbers": "warning", "accuracy": "warning"}
    assert "100.0%" in found["numbers"].text


def test_probabilities_are_told_from_logits_and_log_probabilities() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = change(lambda z, x: (z / 20).softmax(dim=1).to(dtype))  # noqa: B023
        assert found["probabilities"].level == "warning" and "second softmax" in found["probabilities"].text
    found = change(lambda z, x: z.log_softmax(dim=1))
    assert levels(found) == {} and "log-probabilities" in found["probabilities"].text
    assert levels(change(lambda z, x: z.sigmoid() * 0.5 + 0.01 * z)) == {}


def test_a_random_answer_is_found() -> None:
    found = change(lambda z, x: z + 0.01 * torch.randn_like(z))
    assert levels(found) == {"randomised": "warning"} and "batch" not in found


def by_grad(x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(good(leaf).sum(), leaf)[0]


def by_backward(x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        good(leaf).sum().backward()
        assert leaf.grad is not None
        return leaf.grad


def by_func(x: Tensor) -> Tensor:
    return torch.func.grad(lambda one: good(one).sum())(x.detach())


@pytest.mark.parametrize("taken", [by_grad, by_backward, by_func])
def test_a_model_that_takes_gradients_to_answer_is_found(taken: Callable[[Tensor], Tensor]) -> None:
    before = sys.getprofile()
    found = ask(lambda x: good(x - 0.001 * taken(x).sign()))
    assert levels(found) == {"dynamic": "warning"} and "a dynamic defence" in found["dynamic"].text
    assert sys.getprofile() is before
    row = Row("clean", "Clean", "none", 100, 50, None, 1, 0)
    flags = next(one for one in diagnose((row,), None, tuple(found.values()), 0.1)[0] if one.name == "G9")
    assert flags.outcome == "fail" and flags.attack == "dynamic"


def test_gradients_that_an_answer_may_not_take_are_named() -> None:
    def forward(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return good(x - torch.autograd.grad(good(leaf).sum(), leaf)[0])

    for asked in (interview, first_look):
        with pytest.raises(DemiluneError, match=r"does not require grad.*torch\.enable_grad\(\)"):
            asked(forward, X, Y, K)


class Alone(nn.Module):
    """Refuses one image, as batch norm in training mode refuses one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return good(x)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda z, x: z - z.mean(dim=0), "alone"),
        (lambda z, x: z + torch.arange(len(x))[:, None] % 2 * torch.arange(K), "in another order"),
        (lambda z, x: z + (len(x) == 64) * 100 * (x.mean() - X[:64].mean()).abs(), "beside other images"),
        (lambda z, x: z + (len(x) == 1) * torch.ones(K), "alone (image 0)"),
        (lambda z, x: z + z.requires_grad * torch.ones(K), "when gradients are taken"),
        (lambda z, x: z + torch.zeros(K).log() if len(x) == 1 else z, "differ by inf alone"),
    ],
)
def test_an_answer_that_depends_on_the_batch_is_found(answer: Callable[..., Any], told: str) -> None:
    found = change(answer)
    assert found["batch"].level == "error" and told in found["batch"].text, found["batch"]


def test_a_model_that_refuses_single_images_is_found() -> None:
    found = ask(Alone().eval())
    assert levels(found) == {"batch": "error"} and "Expected more than 1 value" in found["batch"].text


def test_training_mode_is_found() -> None:
    model = tiny(K).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ask(model)
    assert found["mode"].level == "error" and "eval()" in found["mode"].text
    assert found["batch"].level == "error"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half = tiny(K).eval()
    next(m for m in half.modules() if isinstance(m, nn.BatchNorm2d)).train()
    assert "batch" in (found := levels(ask(half))) and found["mode"] == "error"


# Gradients that are not there


class Cut(torch.autograd.Function):
    """Has no gradient, as what is written in another language."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("not differentiable\nat all")


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return good(x)


class Hidden(nn.Module):
    """Rounds its images to 16 levels: a gradient of zero everywhere."""

    def __init__(self, passed: float) -> None:
        super().__init__()
        self.passed = passed

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, :, :1, :1] < self.passed
        return good(torch.where(kept, x, x.detach()))


SCALE = torch.ones(1, requires_grad=True)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (without_gradient, "its answer has no gradient"),
        (lambda x: good(x.detach()) * SCALE, "cut off from the image"),
        (lambda x: good(Cut.apply(x)), "not differentiable)"),
        (Hidden(0.0).eval(), "exactly zero for 100.0% of 80 images"),
        (Hidden(0.2).eval(), "exactly zero for "),
        (lambda x: good((x * 15).round() / 15), "exactly zero for 100.0%"),
    ],
)
def test_a_gradient_that_does_not_reach_the_image_is_found(model: Callable[[Tensor], Tensor], told: str) -> None:
    found = ask(model)
    assert found["no gradient"].level == "error" and told in found["no gradient"].text
    assert "Square" in found["no gradient"].text and "zero gradient" not in found


def test_gradients_that_are_exactly_zero_are_counted() -> None:
    found = ask(Hidden(0.7).eval())
    share = 1 - int((X[:, 0, 0, 0] < 0.7).sum()) / N
    assert 0.1 < share < 0.5 and levels(found) == {"zero gradient": "warning"}
    assert f"{share:.1%} of 80 images by the cross-entropy and {share:.1%} by the margin" in found["zero gradient"].text


def test_a_saturated_cross_entropy_is_told_from_the_margin() -> None:
    found = change(lambda z, x: z * 1e4)
    assert levels(found) == {"saturation": "warning"}
    assert "and 0.0% by the margin" in found["saturation"].text


def test_gradients_that_are_no_numbers_are_counted() -> None:
    found = change(lambda z, x: z + (x.flatten(1)[:, :1] - x.flatten(1)[:, :1].detach()).sqrt())
    assert levels(found) == {"no gradient": "warning"}
    assert "no number in 80 of 80 images" in found["no gradient"].text


# Whether it is right


def test_ties_and_constants_are_found() -> None:
    found = change(lambda z, x: 0 * z)
    assert levels(found)["predictions"] == "warning" and "equal for 80 of 80 images" in found["predictions"].text
    found = change(lambda z, x: z + 1e3 * F.one_hot(torch.tensor(2), K))
    assert "called class 2" in found["predictions"].text and levels(found)["predictions"] == "warning"
    assert levels(ask(good, X[Y == 2], Y[Y == 2])) == {}  # all of one class, and right


def test_an_accuracy_of_chance_is_found() -> None:
    wrong = ask(good, X, Stream.of(9).integers("y", (N,), 0, K))
    assert levels(wrong) == {"accuracy": "warning"} and "no better than chance, 25.0%" in wrong["accuracy"].text
    assert "preprocessing" in wrong["accuracy"].text
    renamed = ask(good, X, (Y + 1) % K)
    assert "another order (class 0 is mostly called 3)" in renamed["accuracy"].text
    assert levels(ask(good, X[:3], (Y[:3] + 1) % K)) == {}  # three images tell nothing


# Normalisations


def test_a_better_normalisation_is_found() -> None:
    """A network that reads which normalisation it gets from its darkest and brightest pixels."""
    truth = Declaration("a:b", 2, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    x = Stream.of(8).uniform("x", (700, 3, 4, 4))
    y = Stream.of(8).integers("y", (700,), 0, 2)
    x[:, :, 0, 0], x[:, :, 0, 1], x[:, 0, 1, 1] = 0.0, 1.0, y / 2 + 0.25
    calls = []

    class Picky(nn.Module):
        def __init__(self, made_for: Declaration) -> None:
            super().__init__()
            self.wanted = Declared(nn.Identity(), made_for)(x[:1])[0, :, 0, :2]

        def forward(self, seen: Tensor) -> Tensor:
            calls.append(len(seen))
            fits = torch.isclose(seen[:, :, 0, :2], self.wanted, atol=1e-5).flatten(1).all(dim=1)
            middle = self.wanted[0].mean()
            one = torch.where(fits, seen[:, 0, 1, 1] - middle, torch.full((len(seen),), 0.1))
            return torch.stack([torch.zeros_like(one), one], dim=1)

    def compared(made_for: Declaration, declared: Declaration) -> Check:
        net = Picky(made_for)
        return normalisations(lambda one: Declared(net, one).eval(), x, y, declared)

    none = replace(truth, mean=(), std=())
    found = compared(truth, truth)
    assert found.level == "pass" and "100.0% under the declared" in found.text and "500 images" in found.text
    assert sum(calls) == 9 * 500
    found = compared(truth, none)
    assert found.level == "warning" and "100.0% under ImageNet's" in found.text and "under the declared" in found.text
    assert "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 alone" in found.text
    assert "without --mean, --std and --bounds" in compared(none, truth).text
    assert "with --bounds 0,255 alone" in compared(replace(none, high=255.0), none).text
    half = replace(none, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "with --bounds -1,1 alone" in compared(half, none).text
    found = compared(half, half)  # which is [-1,1] by another name, and not compared with itself
    assert found.level == "pass" and "of 8 other usual ones" in found.text
    own = replace(truth, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    calls.clear()
    assert compared(own, own).level == "pass" and sum(calls) == 10 * 500


def test_a_difference_within_its_error_is_no_warning() -> None:
    """Nine images more are three errors of nine: not more than three."""
    declared = Declaration("a:b", 2, 1)
    x, y = torch.rand(500, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(500, dtype=torch.int64)

    def build(gained: int) -> Callable[[Declaration], Callable[[Tensor], Tensor]]:
        def built(one: Declaration) -> Callable[[Tensor], Tensor]:
            hard = x[100 : 100 + gained] if one.high != 255.0 else x[:0]

            def model(images: Tensor) -> Tensor:
                wrong = (images[:, None] == hard[None]).flatten(2).all(dim=2).any(dim=1)
                return F.one_hot(wrong.long(), 2).float()

            return model

        return built

    assert normalisations(build(9), x, y, declared).level == "pass"
    found = normalisations(build(10), x, y, declared)
    assert found.level == "warning" and "98.0%" in found.text and "100.0% under the range [0,255]" in found.text
    assert normalisations(build(9), x[:3], y[:3], declared).level == "pass"


def test_one_channel_has_its_own_normalisations() -> None:
    declared = Declaration("a:b", K, 1)
    found = normalisations(lambda one: Declared(Wrong(lambda z, x: z), one).eval(), X, Y, declared)
    assert found.level == "pass" and "of 3 other usual ones" in found.text
    assert sum(len(mean) in (0, 2) for _, _, mean, _ in KNOWN.values()) == 3


# The real ones


@pytest.mark.parametrize(
    ("name", "file", "mean", "std"),
    [
        ("resnet20", "resnet20-12fca82f.th", *KNOWN["ImageNet's"][2:]),
        ("resnet2b", "cifar_resnet2b_adv.pth", *KNOWN["CIFAR-10's with .2471"][2:]),
        ("cnn_a", "cifar_cnn_a_adv.model", *KNOWN["CIFAR-10's with .2023"][2:]),
        ("smallcnn", "trades_mnist_smallcnn.pt", (), ()),
    ],
)
@pytest.mark.slow
def test_the_real_checkpoints_pass(
    name: str, file: str, mean: tuple[float, ...], std: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data = os.environ.get("DEMILUNE_TEST_CHECKPOINTS"), os.environ.get("DEMILUNE_TEST_DATA")
    if not root or not data:
        pytest.skip("needs $DEMILUNE_TEST_CHECKPOINTS and $DEMILUNE_TEST_DATA, with the checkpoints and their images")
    monkeypatch.chdir(Path(__file__).parents[2])
    declared = Declaration(f"tests.foreign_nets:{name}", 10, len(mean) or 1, str(Path(root) / file), mean=mean, std=std)
    model = load_declared(declared)
    test = (MNIST(root=data) if name == "smallcnn" else CIFAR10(root=data, unverified=True)).load().test
    x, y = test.pixels(slice(0, 500)), test.labels[:500]
    assert levels(ask(model, x[:128], y[:128], 10)) == {}
    assert normalisations(model.under, x, y, declared).level == "pass"
    wrong = replace(declared, low=-1.0, mean=(), std=()) if not mean else replace(declared, mean=(), std=())
    assert normalisations(model.under, x, y, wrong).level == "warning"
