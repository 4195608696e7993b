"""Our attacks beside those of other libraries: what agrees, how that is counted, and what is left as it was."""

from __future__ import annotations

import importlib
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import harden
from demilune.attacks import PGD, correct, judged
from demilune.core.geometry import Ball, Norm
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.evaluate.crosscheck import (
    LIBRARIES,
    SHOWN,
    TITLES,
    Absent,
    Adaptor,
    Agreement,
    Comparison,
    Counting,
    Task,
    crosscheck,
    installed,
    lines,
)
from demilune.evaluate.table import Progress
from demilune.paired import paired

ROOM = "demilune.evaluate.crosscheck"
BALLS: dict[Norm, Ball] = {"linf": Ball("linf", 0.1), "l2": Ball("l2", 0.6)}
HAVE = {
    "foolbox": ("fgsm", "pgd"),
    "pyautoattack": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "torchattacks": ("fgsm", "pgd", "apgd_ce", "apgd_t", "fab_t", "square"),
}

every_norm = pytest.mark.parametrize("norm", ["linf", "l2"])
every_library = pytest.mark.parametrize("library", LIBRARIES)


@cache
def trained() -> nn.Module:
    """Return a small network after 60 steps of FGSM training on the digits, in training mode."""
    x, y = digits(1500)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))
    harden(model, x, y, steps=60, rate=5e-3)
    return model


@cache
def digits(n: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images[:n], dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target[:n])


def images(n: int = 60) -> tuple[Tensor, Tensor, Stream]:
    x, y = digits(1700)
    return x[-n:], y[-n:], Stream.of(0, "evaluation").images(torch.arange(1700 - n, 1700))


@cache
def found(norm: Norm) -> Agreement:
    """Return what all libraries that are there say."""
    x, y, rng = images()
    return crosscheck(trained(), x, y, BALLS[norm], rng, steps=10, queries=400, targets=3, batch=40)


def rows(library: str, norm: Norm) -> dict[str, Comparison]:
    """Return the comparisons with a library by attack; skips where it is not there."""
    need(library)
    return {one.attack: one for one in found(norm).rows if one.library == library}


def need(*libraries: str) -> None:
    """Skip where a library is not there; its own warnings are none of the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in libraries:
            pytest.importorskip(library)


# agreement


@every_norm
@every_library
def test_every_attack_agrees(library: str, norm: Norm) -> None:
    """Draws of their own keep two runs of Square apart on a few images, the fewer the more queries it has."""
    made = rows(library, norm)
    lacking = ("fgsm",) if (library, norm) == ("torchattacks", "l2") else ()
    assert list(made) == [name for name in HAVE[library] if name not in lacking]
    for one in made.values():
        assert one.agreement >= 0.95, (one.attack, one.disagreements)
        assert 0 < one.ours.right < one.attacked <= one.n == 60, one
        assert one.theirs.excess <= 1e-6 and one.theirs.left == 0 and one.ours.left == 0
        assert one.version and one.ours.seconds > 0 and one.theirs.seconds > 0


@every_norm
@every_library
def test_what_begins_alike_ends_alike(library: str, norm: Norm) -> None:
    """FGSM, PGD from the same start, APGD from the same start, FAB from the image: the very same verdicts."""
    shared = [one for one in rows(library, norm).values() if one.shared]
    for one in shared:
        assert one.agreement == 1.0 and one.disagreements == () and one.difference.value == 0.0, one
    wanted = {
        "foolbox": {"fgsm", "pgd"},
        "pyautoattack": {"apgd_ce", "fab_t"},
        "torchattacks": {"fgsm", "fab_t"} if norm == "linf" else {"fab_t"},
    }
    assert {one.attack for one in shared} == wanted[library]


@every_norm
@every_library
def test_both_sides_spend_the_same(library: str, norm: Norm) -> None:
    made = rows(library, norm)
    if library == "foolbox":
        assert (made["fgsm"].theirs.forwards, made["fgsm"].theirs.gradients) == (1.0, 1.0)
    if "pgd" in made:
        for side in (made["pgd"].ours, made["pgd"].theirs):
            assert (side.forwards, side.gradients) == (10.0, 10.0)
    if "apgd_ce" in made:  # broken images leave ours
        ce, aimed, square = made["apgd_ce"], made["apgd_t"], made["square"]
        assert ce.theirs.gradients == 11.0 and ce.ours.gradients <= 11.0
        assert 11.0 < aimed.theirs.gradients <= 33.0 and aimed.ours.gradients <= aimed.theirs.gradients
        assert square.theirs.forwards <= 403.0 and square.ours.gradients == square.theirs.gradients == 0.0


def test_torchattacks_has_no_fgsm_for_l2_and_says_so() -> None:
    need("torchattacks")
    absent = [one for one in found("l2").absent if one.library == "torchattacks"]
    assert absent == [Absent("fgsm", "torchattacks", "not there for l2")]
    assert "FGSM of torchattacks: not there for l2" in lines(found("l2"))


def test_torchattacks_takes_a_network_kept_as_nhwc() -> None:
    """Its PGD for l2 views gradients, which such a network gives in another order."""
    need("torchattacks")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    x = Stream.of(1).uniform("x", (8, 3, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    model.to(memory_format=torch.channels_last)
    y = model(x).argmax(dim=1)
    there = x.to(memory_format=torch.channels_last)
    agreement = crosscheck(
        model, there, y, Ball("l2", 0.3), Stream.of(0), ["torchattacks"], ["pgd", "apgd_ce"], 4, steps=5
    )
    assert [one.attack for one in agreement.rows] == ["pgd", "apgd_ce"] and agreement.absent == ()


# what changes and what does not


def test_nothing_is_left_behind(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    need(*LIBRARIES)
    model, (x, y, rng) = trained().train(), images(12)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    rules, threshold = list(warnings.filters), logging.root.manager.disable
    with torch.no_grad():
        crosscheck(model, x, y, BALLS["linf"], rng, steps=2, queries=5, targets=2)
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in weights.items())
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert warnings.filters == rules and logging.root.manager.disable == threshold
    assert capfd.readouterr() == ("", "")


def test_the_same_again_whatever_the_global_generator() -> None:
    need("torchattacks")
    x, y, rng = images(20)

    def again(seed: int) -> list[Comparison]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return list(crosscheck(trained(), x, y, BALLS["linf"], rng, ["torchattacks"], steps=3, queries=20).rows)

    for one, other in zip(again(1), again(2), strict=True):
        assert (one.both, one.disagreements, one.theirs.right) == (other.both, other.disagreements, other.theirs.right)


def test_ours_is_what_an_evaluation_would_say() -> None:
    need("foolbox")
    x, y, rng = images()
    ball, model = BALLS["linf"], trained().eval()
    after = judged(model, x, PGD(10, step_ratio=0.25)(model, x, y, ball, rng), y, ball)
    assert rows("foolbox", "linf")["pgd"].ours.right == int((after & correct(model, x, y)).sum())


# made-up libraries


def made_up(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Task], Tensor], shared: bool = False, name: str = "fgsm"
) -> None:
    """Put one library of the name "fake" in the place of all."""
    module = ModuleType("fake")
    module.__version__ = "7"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake", module)
    monkeypatch.setattr(f"{ROOM}.LIBRARIES", MappingProxyType({"fake": "fake>=7"}))
    monkeypatch.setattr(f"{ROOM}.ADAPTORS", MappingProxyType({(name, "fake"): Adaptor(run, shared)}))


def checked(ball: Ball = BALLS["linf"], watch: Callable[[Progress], None] = lambda progress: None) -> Comparison:
    x, y, rng = images()
    (one,) = crosscheck(trained(), x, y, ball, rng, names=["fgsm", "pgd"], batch=20, watch=watch).rows
    return one


@every_norm
def test_a_rounding_outside_the_ball_is_reported_and_judged(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    ball = BALLS[norm]

    def run(task: Task) -> Tensor:
        slope = slopes(task.model, task.x, task.y)
        inwards = torch.where((slope > 0) == (task.x < 0.5), slope, 0.0)  # so that the box is not left too
        return task.x + (ball.eps + 4e-6) * ball.steepest(inwards)

    made_up(monkeypatch, run)
    one = checked(ball)
    assert one.theirs.excess == pytest.approx(4e-6, abs=1e-6) and one.theirs.left == 0
    assert one.theirs.right < one.attacked


def test_an_image_far_outside_the_ball_is_counted_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: Task) -> Tensor:
        points = 1.0 - task.x  # these would break
        points[0] = task.x[0]
        points[1, 0, 0, 0] = float("nan")
        return points

    made_up(monkeypatch, run)
    one = checked()
    assert one.theirs.left == one.attacked - -(-one.attacked // 20)  # all but the first of each batch
    assert one.theirs.right == one.attacked and one.theirs.excess == float("inf")
    assert one.only_theirs == one.attacked - one.ours.right and one.only_ours == 0


def test_a_pixel_outside_the_box_counts_as_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x + 0.1)
    one = checked(Ball("linf", 0.2))
    x, _, _ = images()
    assert one.theirs.excess == pytest.approx(0.1, abs=1e-6) and bool((x.flatten(1).amax(dim=1) > 0.9).all())
    assert one.theirs.left == one.attacked == one.theirs.right


def test_verdicts_are_counted_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that does nothing leaves all right: who falls is ours alone."""
    made_up(monkeypatch, lambda task: task.x)
    one = checked()
    assert one.both == one.ours.right and one.theirs.right == one.attacked
    assert (one.only_ours, one.only_theirs) == (0, one.attacked - one.both)
    assert one.agreement == pytest.approx(one.both / one.attacked)
    x, y, rng = images()
    model = trained().eval()
    clean = correct(model, x, y)
    ours = torch.zeros_like(clean)
    ours[clean] = correct(model, (x + 0.1 * slopes(model, x, y).sign()).clamp(0, 1), y)[clean]
    assert one.difference == paired(ours.numpy(), clean.numpy())
    assert rng.ids is not None
    assert [d.image for d in one.disagreements] == rng.ids[clean & ~ours].tolist()
    assert all(d.ours > 0 > d.theirs for d in one.disagreements)


def slopes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return slope


def test_a_library_is_given_our_start(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def run(task: Task) -> Tensor:
        starts.append(task.start)
        return task.x

    made_up(monkeypatch, run, name="pgd")
    checked()
    x, y, rng = images()
    model = trained().eval()
    path = PGD(100, step_ratio=0.25).path(model, x, y, BALLS["linf"], rng)
    assert torch.equal(torch.cat(starts), next(path).point[correct(model, x, y)])


def test_a_library_that_fails_is_told_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(task: Task) -> Tensor:
        raise IndexError("too many targets")

    made_up(monkeypatch, lambda task: task.x)
    both = {("fgsm", "fake"): Adaptor(lambda task: task.x), ("pgd", "fake"): Adaptor(run)}
    monkeypatch.setattr(f"{ROOM}.ADAPTORS", MappingProxyType(both))
    x, y, rng = images(10)
    agreement = crosscheck(trained(), x, y, BALLS["linf"], rng, names=["fgsm", "pgd"], steps=2)
    assert [one.attack for one in agreement.rows] == ["fgsm"]
    assert agreement.absent[0].why == "it failed: IndexError: too many targets"
    monkeypatch.setattr(f"{ROOM}.ADAPTORS", MappingProxyType({("fgsm", "fake"): Adaptor(run)}))
    with pytest.raises(DemiluneError, match="nothing could be compared: FGSM of fake: it failed"):
        crosscheck(trained(), x, y, BALLS["linf"], rng, names=["fgsm"])


def test_who_watches_sees_progress_and_may_stop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StopError(Exception):
        pass

    def run(task: Task) -> Tensor:
        print("noise")
        warnings.warn("noise", DeprecationWarning, stacklevel=1)
        logging.getLogger("fake").error("noise")
        for _ in range(3):
            task.model(task.x)
        return task.x

    made_up(monkeypatch, run)
    monkeypatch.setattr("demilune.evaluate.counted.TICK", -1.0)  # at every pass
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        print("seen")

    one = checked(watch=watch)
    assert capsys.readouterr() == ("seen\n" * len(seen), "")
    assert {event.title for event in seen} == {"FGSM", "FGSM of fake"}
    assert seen[-1].done == seen[-1].total == one.attacked and seen[-1].right == one.theirs.right
    assert all(0.0 <= event.within <= 1.0 for event in seen) and any(event.within > 0 for event in seen)

    def stop(progress: Progress) -> None:
        if progress.title == "FGSM of fake" and progress.within > 0:
            raise StopError

    with pytest.raises(StopError):
        checked(watch=stop)


# refusals


def missing(monkeypatch: pytest.MonkeyPatch, errors: dict[str, Exception]) -> None:
    """Let some libraries fail to import."""
    real = importlib.import_module

    def fake(name: str, package: str | None = None) -> ModuleType:
        if name in errors:
            raise errors[name]
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", fake)


def test_a_library_asked_for_by_name_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {name: ModuleNotFoundError(f"No module named {name!r}", name=name) for name in LIBRARIES}
    missing(monkeypatch, {"foolbox": none["foolbox"], "torchattacks": none["torchattacks"]})
    x, y, rng = images(8)
    with pytest.raises(DemiluneError, match=r"foolbox: not installed: pip install 'demilune\[crosscheck\]'"):
        crosscheck(trained(), x, y, BALLS["linf"], rng, ["foolbox"])
    with pytest.raises(DemiluneError, match=r"torchattacks: not installed: .*\(it brings torchvision, which must be"):
        installed(["torchattacks"])
    missing(monkeypatch, none)  # and where nobody is
    with pytest.raises(DemiluneError, match=r"foolbox: not installed.*; pyautoattack: .*; torchattacks: "):
        installed()


def test_a_library_not_asked_for_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x)
    monkeypatch.setattr(f"{ROOM}.LIBRARIES", MappingProxyType({"fake": "fake>=7", "torchattacks": "torchattacks"}))
    missing(monkeypatch, {"torchattacks": RuntimeError("operator torchvision::nms does not exist")})
    x, y, rng = images(8)
    agreement = crosscheck(trained(), x, y, BALLS["linf"], rng, names=["fgsm"])
    (absent,) = agreement.absent
    assert (absent.attack, absent.library) == ("", "torchattacks")
    assert absent.why.startswith("there, but it does not import (RuntimeError: operator torchvision::nms")
    assert absent.why.endswith(f"install the torchvision that goes with torch {torch.__version__}")
    assert any(line.startswith("torchattacks: there, but") for line in lines(agreement))


def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x, name="apgd_t")
    x, y, rng = images(8)

    def refused(match: str, libraries: tuple[str, ...] = (), names: tuple[str, ...] = ("apgd_t",)) -> None:
        with pytest.raises(DemiluneError, match=match):
            crosscheck(trained(), x, y, BALLS["linf"], rng, libraries, names, classes=3)

    refused("unknown library 'fakes': did you mean 'fake'", libraries=("fakes",))
    refused("unknown attack 'apgd_d': did you mean 'apgd_", names=("apgd_d",))
    refused("no attack was named", names=())
    refused("FGSM of fake: not there", names=("fgsm",))
    refused("needs 4 classes or more, and there are 3")
    with pytest.raises(DemiluneError, match="none of 8 images is classified correctly"):
        crosscheck(trained(), x, (trained()(x).argmax(dim=1) + 1) % 10, BALLS["linf"], rng)
    with pytest.raises(DemiluneError, match="batch = 0"):
        crosscheck(trained(), x, y, BALLS["linf"], rng, batch=0)


# what is told


def test_json_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x)
    x, y, rng = images()
    agreement = crosscheck(trained(), x, y, BALLS["linf"], rng, names=["fgsm", "pgd"], steps=2)
    assert agreement.rows[0].disagreements and agreement.absent
    written = json.loads(json.dumps(agreement.to_json()))
    assert written["kind"] == "agreement" and Agreement.from_json(written) == agreement
    for broken in ({}, {**written, "rows": [{}]}, {**written, "more": 1}):
        with pytest.raises(DemiluneError, match="no crosscheck of demilune's"):
            Agreement.from_json(broken)
    with pytest.raises(DemiluneError, match="broken crosscheck"):
        Agreement.from_json({**written, "n": "sixty"})


def test_the_text_shows_some_disagreements_and_says_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x)
    x, y, rng = images()
    agreement = crosscheck(trained(), x, y, Ball("linf", 0.3), rng, names=["fgsm"])
    (one,) = agreement.rows
    count = len(one.disagreements)
    text = lines(agreement)
    assert count > SHOWN
    head = text.index(f"{SHOWN} of {count} disagreements (a margin above 0 is broken)")
    assert len(text) == head + 2 + SHOWN
    assert text[0].startswith(f"60 images, {agreement.clean} right when clean and attacked; linf, ε = 0.3")
    assert any(line.startswith("FGSM    fake 7") and line.endswith("own") for line in text)


def test_a_random_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, lambda task: task.x)

    x, y, rng = images()
    handle = trained().register_forward_hook(lambda *given: given[2] + 0.1 * torch.randn_like(given[2]))
    try:
        agreement = crosscheck(trained(), x, y, BALLS["linf"], rng, names=["fgsm"])
    finally:
        handle.remove()
    assert agreement.randomised and "not even two runs of one attack would agree" in lines(agreement)[1]


def test_passes_are_counted_both_ways() -> None:
    net = Counting(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    x = torch.zeros(5, 1, 2, 2)
    with torch.no_grad():
        net(x)
    leaf = x[:2].clone().requires_grad_()
    logits = net(leaf)
    assert (net.forwards, net.gradients) == (7, 0)
    torch.autograd.grad(logits[:, 0].sum(), leaf, retain_graph=True)
    torch.autograd.grad(logits[:, 1].sum(), leaf)
    assert (net.forwards, net.gradients) == (7, 4)
    assert net.first is not None and torch.equal(net.first, x)


def test_titles_are_of_attacks_the_libraries_have() -> None:
    assert {name for names in HAVE.values() for name in names} == set(TITLES)
