"""PGD-10 of other packages, as a user of theirs would call it, from the images themselves and with equal budgets."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.setting import BALL, CLASSES, STEP, STEPS

Attacking = Callable[[], Tensor]


def _torchattacks(library: Any, model: nn.Module, x: Tensor, y: Tensor) -> Attacking:
    attack = library.PGD(model, eps=BALL.eps, alpha=STEP, steps=STEPS, random_start=False)
    return lambda: attack(x, y)


def _foolbox(library: Any, model: nn.Module, x: Tensor, y: Tensor) -> Attacking:
    net = library.PyTorchModel(model, bounds=(0.0, 1.0), device=x.device)
    attack = library.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=STEP, steps=STEPS, random_start=False)
    # ``run`` is the attack alone; calling it costs one pass more, for the verdict.
    return lambda: attack.run(net, x, y, epsilon=BALL.eps)


def _art(library: Any, model: nn.Module, x: Tensor, y: Tensor) -> Attacking:
    classification = importlib.import_module("art.estimators.classification")
    evasion = importlib.import_module("art.attacks.evasion")
    net = classification.PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=CLASSES, clip_values=(0.0, 1.0),
        device_type="gpu" if x.device.type == "cuda" else "cpu",
    )  # fmt: skip
    attack = evasion.ProjectedGradientDescent(
        net, norm=np.inf, eps=BALL.eps, eps_step=STEP, max_iter=STEPS, num_random_init=0, batch_size=len(x),
        verbose=False,
    )  # fmt: skip
    images, labels = x.cpu().numpy(), y.cpu().numpy()  # it takes and gives NumPy arrays
    return lambda: torch.from_numpy(attack.generate(images, labels)).to(x.device)


PEERS: Mapping[str, tuple[str, Callable[[Any, nn.Module, Tensor, Tensor], Attacking]]] = MappingProxyType(
    {
        "torchattacks": ("torchattacks", _torchattacks),
        "foolbox": ("foolbox", _foolbox),
        "ART": ("art", _art),
    }
)
"""The packages by the name they are shown under: the module, and the attack made of a network in eval mode."""


def present() -> tuple[dict[str, Any], dict[str, str]]:
    """Return the packages that import, and why the others do not."""
    found, missing = dict[str, Any](), dict[str, str]()
    for name, (module, _) in PEERS.items():
        try:
            with quiet():
                found[name] = importlib.import_module(module)
        except Exception as error:  # whatever a broken installation raises
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def pgd(name: str, library: Any, model: nn.Module, x: Tensor, y: Tensor) -> Attacking:
    """Return a package's PGD-10 on a network of its own, whose weights require gradients as a user's do."""
    with quiet():
        attack = PEERS[name][1](library, model, x, y)

    def run() -> Tensor:
        with quiet():
            return attack()

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nobody be warned of what these packages do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
