"""Evaluation through the library: models that are randomised, that give NaN, that depend on more than the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import tiny
from demilune.attacks import PGD, survivors
from demilune.core.geometry import Ball
from demilune.core.random import Stream
from demilune.data import Split
from demilune.errors import DemiluneError
from demilune.evaluate import Findings, evaluate, suite
from demilune.evaluate.table import EOT, Progress

BALL = Ball("linf", 0.1)
RNG = Stream.of(0, "evaluation")


def images(n: int = 24, classes: int = 4) -> Split:
    draw = Stream.of(1)
    x = draw.integers("x", (n, 1, 8, 8), 0, 256).to(torch.uint8)
    return Split(x, draw.integers("y", (n,), 0, classes), torch.arange(100, 100 + n))


def easy(model: nn.Module, split: Split) -> Split:
    """Return the images labelled as the model sees them."""
    with torch.no_grad():
        return Split(split.images, model.eval()(split.pixels(slice(None))).argmax(dim=1), split.ids)


class Noisy(nn.Module):
    """A network with a random answer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + 0.05 * torch.randn_like(logits)


def rows(found: Findings) -> dict[str, int]:
    return {row.name: row.right for row in found.rows}


def test_worst_is_the_intersection_and_readings_are_nested() -> None:
    model = tiny()
    split = easy(model, images())
    found = evaluate(model, split, BALL, suite(["fgsm", "cw3", "pgd3x3", "multi2x3"]), RNG, batch=7)
    right = {name: found.images[f"right.{name}"] for name in rows(found)}
    assert right["clean"].all()
    assert (right["worst"] == np.logical_and.reduce(list(right.values()))).all()
    assert not (right["pgd3_any"] & ~right["pgd3"]).any()
    assert not (right["pgd3x3_any"] & ~right["pgd3_any"]).any()
    assert 0 < rows(found)["worst"] < len(split)
    assert [check.level for check in found.checks].count("error") == 0


def test_a_randomised_model_is_found_out_averaged_counted_and_repeatable() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model = Noisy(tiny())
    split = easy(model.net, images())
    one, two = (evaluate(model, split, BALL, suite(["pgd3", "pgd2x2"]), RNG) for _ in range(2))
    assert one.randomised
    assert any(check.name == "randomised" for check in one.checks)
    assert rows(one) == rows(two)
    pgd = next(row for row in one.rows if row.name == "pgd3")
    assert (pgd.forwards, pgd.gradients) == (3 * EOT, 3 * EOT)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_worst_case_of_a_random_model_is_its_strongest_attack_s_and_no_union_over_draws() -> None:
    model = Noisy(tiny())
    split = easy(model.net, images(60))
    names = ["fgsm", "cw3", "pgd3", "multi2x3", "pgd3@eps=0.9", "square@n=10"]
    found = evaluate(model, split, BALL, suite(names), RNG, alone=False)
    full = ("fgsm", "cw3", "pgd3", "multi2x3")
    least = min(full, key=lambda name: rows(found)[name])
    assert rows(found)["worst"] == rows(found)[least]
    assert np.array_equal(found.images["right.worst"], found.images[f"right.{least}"])
    union = np.logical_and.reduce([found.images[f"right.{name}"] for name in full])
    assert int(union.sum()) < rows(found)["worst"], "else this could not be told from a union"
    assert "its strongest attack" in found.rows[-1].note


def test_a_model_that_gives_nan_is_wrong_and_nothing_contradicts_itself() -> None:
    class Broken(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            bright = x.flatten(1).mean(dim=1, keepdim=True) > 0.5
            return torch.where(bright, logits * float("nan"), logits)

    model = Broken(tiny())
    split = images()
    found = evaluate(model, split, BALL, suite(["fgsm", "pgd3x2", "multi2x2"]), RNG)
    bright = split.pixels(slice(None)).flatten(1).mean(dim=1) > 0.5
    assert not (torch.from_numpy(found.images["right.clean"]) & bright).any()


def test_a_model_that_depends_on_more_than_its_image_is_refused() -> None:
    class Moody(nn.Module):
        """Changes its mind between the verdict on the attacked images and that on the clean ones."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            shift = (self.calls > 9) * 1.0
            return torch.stack([x.flatten(1).sum(dim=1) * 0 + shift, x.flatten(1).sum(dim=1) * 0 + 0.5], dim=1)

    split = images(classes=2)
    with pytest.raises(DemiluneError, match="radius 0 changed predictions"):
        evaluate(Moody(), split, BALL, suite(["fgsm"]), RNG)


def test_stopping_keeps_what_was_done(tmp_path: Path) -> None:
    model, partial = tiny(), tmp_path / "x.partial.npz"
    split = easy(model, images())

    class EnoughError(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.title == "FGSM" and event.done >= 14:
            raise EnoughError

    entries = suite(["fgsm", "pgd2"])
    whole = evaluate(model, split, BALL, entries, RNG, batch=7)
    with pytest.raises(EnoughError):
        evaluate(model, split, BALL, entries, RNG, batch=7, partial=partial, identity={"a": 1}, watch=stop)
    seen = list[Progress]()
    rest = evaluate(model, split, BALL, entries, RNG, batch=7, partial=partial, identity={"a": 1}, watch=seen.append)
    assert (seen[0].title, seen[0].done) == ("FGSM", 21)
    assert rest.rows == whole.rows
    other = list[Progress]()
    evaluate(model, split, BALL, entries, RNG, batch=7, partial=partial, identity={"a": 2}, watch=other.append)
    assert other[0].title == "clean"


def test_judging_a_model_in_training_mode_changes_nothing_of_it() -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split = images()
    x, y = split.pixels(slice(None)), split.labels
    survivors(model, x, y, PGD(steps=2, step_ratio=0.5), BALL, RNG.images(split.ids))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
