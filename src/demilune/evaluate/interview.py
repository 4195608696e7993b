"""What a network is asked before it is attacked: whether what it answers is what attacks and verdicts rely on.

Many wrong robust accuracies come from here (Athalye et al. 2018, Carlini et al. 2019, Croce and Hein 2020): logits
that are probabilities, gradients that vanish, answers that depend on chance or on the batch, images normalised
otherwise than in training.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demilune.attacks import Model, correct, frozen, seeded
from demilune.attacks.base import check_images
from demilune.core.losses import cross_entropy, margin, widened
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.evaluate.table import check_labels, is_randomised
from demilune.foreign import Declaration
from demilune.results import Check

CHUNK = 64
"""Images run at once, and asked about batches."""

PAIRED = 500
"""Images that normalisations are compared on."""

KNOWN: Mapping[str, tuple[float, float, tuple[float, ...], tuple[float, ...]]] = {
    "no normalisation": (0.0, 1.0, (), ()),
    "the range [-1,1]": (-1.0, 1.0, (), ()),
    "the range [0,255]": (0.0, 255.0, (), ()),
    "MNIST's": (0.0, 1.0, (0.1307,), (0.3081,)),
    "CIFAR-10's": (0.0, 1.0, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's with .2471": (0.0, 1.0, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-10's with .2023": (0.0, 1.0, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": (0.0, 1.0, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "ImageNet's": (0.0, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "SVHN's": (0.0, 1.0, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
"""The normalisations in use: low, high, mean and std, as in a :class:`~demilune.foreign.Declaration`."""


class _Answers(NamedTuple):
    """What one pass with gradient gave: logits [N,K] as they were, each image's largest |gradient| of two losses, [N].

    ``refused`` says why there is no gradient, "" where there is. ``dynamic``: the model took gradients to answer.
    """

    logits: Tensor
    entropy: Tensor
    margin: Tensor
    refused: str
    dynamic: bool


def interview(model: Model, x: Tensor, y: Tensor, classes: int) -> tuple[Check, ...]:
    """Ask a model about itself on some images, x [N,C,H,W] in [0,1] with labels y int64 [N]; a few hundred are enough.

    A check's level is "error" where attacks by gradient, or any verdict, would mean nothing; "warning" where they mean
    less than they seem to. It costs each image one pass forward and two back, and ten more passes: five of up to 64
    images, unchanged, and five of up to 64 with and without company. Nothing of the model changes.

    Raises DemiluneError for labels outside the classes, and for a model that fails on the images or returns anything
    but logits [N,K].
    """
    check_labels(y, classes)
    check_images(x, y)
    with frozen(model, "keep"), seeded(Stream.of(0, "interview"), x.device):
        answers = _ask(model, x, y, classes)
        random = is_randomised(lambda some: _logits(model, some, classes), x[:CHUNK])
        company = () if random else (_company(model, x[:CHUNK], answers.logits[:CHUNK], classes),)
    finite = answers.logits.isfinite().all(dim=1)
    return (
        *_mode(model),
        _numbers(finite),
        _probabilities(answers.logits[finite]),
        _random(random, len(x[:CHUNK])),
        _dynamic(answers.dynamic),
        *company,
        *_gradient(answers, finite),
        _predictions(answers.logits[finite], y[finite]),
        _accuracy(answers.logits, finite, y, classes),
    )


def first_look(model: Model, x: Tensor, y: Tensor, classes: int) -> None:
    """Refuse what :func:`interview` refuses, in one pass forward, before anything is kept of a model."""
    check_labels(y, classes)
    check_images(x, y)
    with frozen(model, "keep"), seeded(Stream.of(0, "interview"), x.device), torch.no_grad():
        _logits(model, x, classes)


def raised(found: Iterable[Check], name: str) -> bool:
    """Say whether the check of that name is there, and did not pass."""
    return any(check.name == name and check.level != "pass" for check in found)


def _mode(model: Model) -> tuple[Check, ...]:
    if not isinstance(model, nn.Module):
        return ()
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if not training:
        return (Check("mode", "pass", "the model is in evaluation mode"),)
    text = f"the model is in training mode ({training[0]}): dropout and batch statistics are part of its answers"
    return (Check("mode", "error", f"{text}; call its eval()"),)


# What it answers


def _logits(model: Model, x: Tensor, classes: int) -> Tensor:
    """Return logits [N,K] as the model gave them; refuses whatever else it may return."""
    try:
        found: object = model(x)
    except (MemoryError, torch.OutOfMemoryError, DemiluneError):
        raise
    except Exception as error:  # a model may fail in any way
        told = (str(error).strip().splitlines() or [""])[0][:200]
        remedy = "check that their size and channels are what it was made for"
        if "does not require grad" in told:
            remedy = "where its forward takes gradients itself, let it do so under torch.enable_grad()"
        raise DemiluneError(
            f"the model fails on images {list(x.shape)} ({type(error).__name__}: {told}): {remedy}"
        ) from error
    if not isinstance(found, Tensor):
        what = "None" if found is None else f"an object of type {type(found).__name__}"
        what += f" of {len(found)}" if isinstance(found, tuple | list) else ""
        what += f" of {', '.join(map(str, found))}" if isinstance(found, Mapping) else ""
        raise DemiluneError(
            f"the model returned {what}, not a tensor of logits: let its forward return the logits [N,{classes}] alone"
        )
    if not found.is_floating_point():
        raise DemiluneError(
            f"the model returned {found.dtype} {list(found.shape)}: logits are floating-point numbers; classes that "
            "were chosen already have no gradient"
        )
    if found.shape != (len(x), classes):
        several = found.dim() == 2 and len(found) == len(x)
        remedy = "return those"
        if several:
            remedy = (
                f"name data of its {found.shape[1]} classes (--data NAME), or make one of {classes} (in the function, "
                f"as num_classes={classes}) with weights for these"
            )
        if found.shape in ((len(x),), (len(x), 1)) and classes == 2:
            remedy = "return the two logits 0 and z where it has one, z"
        raise DemiluneError(
            f"the model returned {list(found.shape)} for {len(x)} images and {classes} classes: logits are "
            f"[{len(x)},{classes}]; {remedy}"
        )
    return found


def _ask(model: Model, x: Tensor, y: Tensor, classes: int) -> _Answers:
    """Run every image once, with the gradients of the cross-entropy and of the margin at it."""
    parts = [_ask_some(model, *part, classes) for part in zip(x.split(CHUNK), y.split(CHUNK), strict=True)]
    logits, entropy, margins = (torch.cat(each) for each in list(zip(*parts, strict=True))[:3])
    refused = next((part.refused for part in parts if part.refused), "")
    return _Answers(logits, entropy, margins, refused, any(part.dynamic for part in parts))


def _ask_some(model: Model, x: Tensor, y: Tensor, classes: int) -> _Answers:
    sizes = []
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        with _watched() as taken:
            logits = _logits(model, leaf, classes)
        found, dynamic = logits.detach(), bool(taken)
        nothing = torch.zeros(len(x), device=x.device)
        if not logits.requires_grad:
            return _Answers(found, nothing, nothing, "its answer has no gradient", dynamic)
        finite = found.isfinite().all(dim=1)
        for loss in (cross_entropy, margin):
            try:
                (gradient,) = torch.autograd.grad(
                    loss(logits[finite], y[finite]).sum(), leaf, retain_graph=loss is cross_entropy, allow_unused=True
                )
            except RuntimeError as error:
                return _Answers(found, nothing, nothing, str(error).strip().splitlines()[0][:200], dynamic)
            if gradient is None:
                return _Answers(found, nothing, nothing, "its answer is cut off from the image", dynamic)
            sizes.append(gradient.detach().flatten(1).abs().amax(dim=1).float())
    return _Answers(found, sizes[0], sizes[1], "", dynamic)


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Note the calls of autograd in this thread, as AutoAttack does: a dynamic model takes gradients to answer.

    Profiling sees every way there is, torch.func's too, but those inside a compiled program.
    """
    inside = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}
    taken = list[str]()

    def see(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in inside:
            taken.append(inside[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        yield taken
    finally:
        sys.setprofile(before)


def _numbers(finite: Tensor) -> Check:
    n, broken = len(finite), int((~finite).sum())
    if not broken:
        return Check("numbers", "pass", f"the logits of all {n} images are finite")
    text = f"the logits of {broken / n:.1%} of {n} images are not finite: these images count as wrong"
    return Check("numbers", "warning", text)


def _probabilities(logits: Tensor) -> Check:
    """Tell probabilities and log-probabilities from logits by their sums, to 1e-5 (or half precision's rounding)."""
    kind, error = "logits", max(1e-5, torch.finfo(logits.dtype).eps)
    logits = widened(logits)
    if len(logits) and bool(((logits.exp().sum(dim=1) - 1.0).abs() < error).all()):
        kind = "log-probabilities, as good as logits"
    if len(logits) and bool(((logits >= 0) & (logits <= 1)).all() and ((logits.sum(dim=1) - 1.0).abs() < error).all()):
        return Check(
            "probabilities",
            "warning",
            "the model returns probabilities, not logits: the cross-entropy takes a second softmax of them, whose "
            "gradients are distorted and vanish where the model is sure; return what goes into the softmax, or trust "
            "attacks on the margin (CW, DLR, FAB) and by queries (Square) alone",
        )
    return Check("probabilities", "pass", f"the model returns {kind}")


# What its answers depend on


def _random(random: bool, n: int) -> Check:
    if random:
        text = "the model answers differently on the same images: gradients and verdicts are draws, to be averaged"
        return Check("randomised", "warning", text)
    return Check("randomised", "pass", f"five passes over {n} images gave the same answers")


def _dynamic(dynamic: bool) -> Check:
    if dynamic:
        text = (
            "the model takes gradients to answer: it fits itself anew to what it is asked (a dynamic defence), and "
            "attacks that take it for a fixed function may break less than there is to break; attack what it does too"
        )
        return Check("dynamic", "warning", text)
    return Check("dynamic", "pass", "the model takes no gradients to answer")


def _company(model: Model, x: Tensor, asked: Tensor, classes: int) -> Check:
    """Compare an image's answer in its batch with those in other company, to 1e-4 of the largest logit."""
    half = (len(x) + 1) // 2
    with torch.no_grad():
        whole = _logits(model, x, classes)
        # Negatives are images like no other, and so the batch's statistics differ.
        mates = torch.cat([x[:half], 1.0 - x[: len(x) - half]])
        seen = {
            "when gradients are taken": (asked, whole),
            "in another order": (_logits(model, x.flip(0), classes).flip(0), whole),
            "beside other images": (_logits(model, mates, classes)[:half], whole[:half]),
        }
        for i in sorted({0, len(x) - 1}):
            try:
                seen[f"alone (image {i})"] = (_logits(model, x[i : i + 1], classes), whole[i : i + 1])
            except DemiluneError as error:  # batch norm in training mode refuses one value a channel
                return Check("batch", "error", f"an image cannot be judged alone: {error}")
    apart = {how: _apart(*pair) for how, pair in seen.items()}
    worst = max(apart, key=lambda how: apart[how])
    scale = float(widened(whole).abs().nan_to_num(nan=0.0, posinf=0.0).amax())
    if apart[worst] > max(1e-4, 4.0 * torch.finfo(whole.dtype).eps) * scale:
        return Check(
            "batch",
            "error",
            f"an image's logits, {scale:.2g} at most, differ by {apart[worst]:.2g} {worst}: the model depends on more "
            "than its image (statistics of the batch, or whether it is attacked), so that a verdict holds for one "
            "batch only, and attacking an image moves its neighbours; make it answer image by image",
        )
    return Check("batch", "pass", "an image is answered alike alone, in any order and beside any others")


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits, over the rows that are finite in the second."""
    kept = other.isfinite().all(dim=1)
    gaps = (widened(one) - widened(other))[kept].abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(gaps.max()) if len(gaps) else 0.0


# What an attack can follow


def _gradient(answers: _Answers, finite: Tensor) -> tuple[Check, ...]:
    """Say whether gradients reach the image, and for how many they are exactly zero (a flag of AutoAttack's)."""
    n = int(finite.sum())
    if n == 0 and not answers.refused:
        return ()
    entropy, height = answers.entropy[finite], answers.margin[finite]
    zero, flat = float((entropy == 0).sum()) / max(n, 1), float((height == 0).sum()) / max(n, 1)
    reason = answers.refused or f"it is exactly zero for {min(zero, flat):.1%} of {n} images"
    if answers.refused or min(zero, flat) > 0.5:
        text = (
            f"no gradient reaches the image ({reason}): attacks by gradient say nothing of this model; only those by "
        )
        return (Check("no gradient", "error", f"{text}queries (Square, NATTACK) and of other models' images count"),)
    broken = int((~(entropy.isfinite() & height.isfinite())).sum())
    if broken:
        text = f"the gradient is no number in {broken} of {n} images: attacks by gradient leave such pixels as they are"
        return (Check("no gradient", "warning", text),)
    told = f"exactly zero for {zero:.1%} of {n} images by the cross-entropy and {flat:.1%} by the margin"
    if zero > 0 or flat > 0:
        # Cross-entropy alone may be saturated, as that of any sure network is: other losses still see these images.
        text = f"the gradient at the image is {told}: an attack by that loss does not move these"
        return (Check("zero gradient" if flat > 0 else "saturation", "warning", text),)
    return (Check("zero gradient", "pass", f"the gradient at the image is {told}"),)


# Whether it is right


def _predictions(logits: Tensor, y: Tensor) -> Check:
    """Say whether the classes are told apart at all."""
    top = logits.topk(2, dim=1).values
    tied = int((top[:, 0] == top[:, 1]).sum())
    if tied:
        text = f"the two largest logits are equal for {tied} of {len(top)} images: which class is called is arbitrary"
        return Check("predictions", "warning", text)
    called = logits.argmax(dim=1).unique()
    if len(logits) >= 8 and len(called) == 1 and len(y.unique()) > 1:
        text = f"every image is called class {int(called)}: the weights or the preprocessing are probably wrong"
        return Check("predictions", "warning", text)
    return Check("predictions", "pass", f"{len(called)} classes are called, and no two logits are equal at the top")


def _accuracy(logits: Tensor, finite: Tensor, y: Tensor, classes: int) -> Check:
    """Compare the accuracy with chance, 1/K, allowing three standard errors."""
    n, called = len(y), logits.nan_to_num(nan=-math.inf).argmax(dim=1)
    share = int(((called == y) & finite).sum()) / n
    bound = 1.0 / classes + 3.0 * math.sqrt((1.0 - 1.0 / classes) / classes / n)
    text = f"{share:.1%} of {n} images are classified correctly"
    if share > bound or bound >= 1.0:
        return Check("accuracy", "pass", text)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    counts.index_put_((y.cpu(), called.cpu()), torch.ones(n, dtype=torch.int64), accumulate=True)
    there = counts.sum(dim=1) > 0
    mostly = counts.argmax(dim=1)[there]
    moved = (mostly != torch.arange(classes)[there]).nonzero().flatten()
    cause = "the labels, the preprocessing or the weights are probably wrong"
    if len(moved) and float(counts.amax(dim=1).sum()) > 0.6 * n and len(mostly.unique()) == len(mostly) > 1:
        first = int(moved[0])
        label = int(there.nonzero()[first])
        cause = (
            f"its classes are in another order (class {label} is mostly called {int(mostly[first])}); "
            "renumber the labels"
        )
    return Check("accuracy", "warning", f"{text}, no better than chance, {1.0 / classes:.1%}: {cause}")


def normalisations(build: Callable[[Declaration], Model], x: Tensor, y: Tensor, declared: Declaration) -> Check:
    """Compare the accuracy under the declared normalisation with those under :data:`KNOWN` ones, on the same images.

    ``build`` gives the model in evaluation mode behind a declaration's range, mean and std, as
    :meth:`demilune.foreign.Declared.under` does; none is declared where the model normalises by itself. With b images
    right only under another and c only under the declared one, the other is better where b - c > 3·√(b + c), three of
    McNemar's standard errors. It costs a pass forward per normalisation and image (of the first 500): at most 10 for
    three channels, 5 for one.
    """
    x, y = x[:PAIRED], y[:PAIRED]
    own = _right(build(declared), x, y)
    others: dict[str, Declaration] = {}
    for name, (low, high, mean, std) in KNOWN.items():
        if len(mean) in (0, declared.channels):
            other = replace(declared, low=low, high=high, mean=mean, std=std)
            if all(not _same(other, one) for one in (declared, *others.values())):
                others[name] = other
    right = {name: _right(build(other), x, y) for name, other in others.items()}
    best = max(right, key=lambda name: int(right[name].sum()))
    gained, lost = int((right[best] & ~own).sum()), int((own & ~right[best]).sum())
    text = f"accuracy on {len(x)} images is {int(own.sum()) / len(x):.1%} under the declared normalisation"
    found = f"{int(right[best].sum()) / len(x):.1%} under {best}"
    if gained - lost > 3.0 * math.sqrt(gained + lost):
        text = f"{text} and {found}: it was probably trained with that; declare it anew {_options(others[best])}"
        return Check("normalisation", "warning", text)
    return Check("normalisation", "pass", f"{text}; the best of {len(others)} other usual ones gives {found}")


def _right(model: Model, x: Tensor, y: Tensor) -> Tensor:
    parts = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    with frozen(model, "keep"), seeded(Stream.of(0, "normalisation"), x.device):
        return torch.cat([correct(model, *part) for part in parts])


def _same(one: Declaration, other: Declaration) -> bool:
    """Say whether two declarations make the same of an image: black and white go to the same values, to 1e-6."""
    return all(math.isclose(a, b, abs_tol=1e-6, rel_tol=1e-6) for a, b in zip(_ends(one), _ends(other), strict=True))


def _ends(declared: Declaration) -> list[float]:
    mean, std = declared.mean or (0.0,) * declared.channels, declared.std or (1.0,) * declared.channels
    return [(end - m) / s for end in (declared.low, declared.high) for m, s in zip(mean, std, strict=True)]


def _options(declared: Declaration) -> str:
    """Return what one types to declare a normalisation, and nothing else of the kind."""
    typed = [f"--bounds {declared.low:g},{declared.high:g}"] if (declared.low, declared.high) != (0.0, 1.0) else []
    for name, values in (("mean", declared.mean), ("std", declared.std)):
        typed += [f"--{name} {','.join(f'{v:g}' for v in values)}"] if values else []
    return f"with {' '.join(typed)} alone" if typed else "without --mean, --std and --bounds"
