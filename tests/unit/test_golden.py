"""Golden losses: five steps of every method, pinned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import BALL, batch_of, tiny
from demilune.attacks import KLPGD, PGD
from demilune.core.random import Stream
from demilune.methods import ADT, AVM, GAIRAT, MART, METHODS, RAT, SAT, TRADES, Method, Standard
from demilune.train import step

ATTACK = PGD(steps=3, step_ratio=0.4)
GOLDEN: dict[str, tuple[Method, list[float]]] = {
    "standard": (
        Standard(),
        [1.373416208776114, 1.2832996938026349, 1.1501027264643837, 1.0247268363273028, 0.9343876280498393],
    ),
    "sat": (
        SAT(ATTACK),
        [1.5069616664717276, 1.3953673365344286, 1.3088844457009308, 1.2792803814715539, 1.2474969188178646],
    ),
    "trades": (
        TRADES(KLPGD(steps=3, step_ratio=0.4)),
        [1.4932971971540518, 1.3125821814200076, 1.237812426427649, 1.200612922650946, 1.1503754835658553],
    ),
    "mart": (
        MART(PGD(steps=3, step_ratio=0.4, noise=0.001)),
        [1.916523250649571, 1.7471933986266548, 1.7491195736798546, 1.7098927144425335, 1.682388820881323],
    ),
    "adt": (
        ADT(steps=2, draws=2),
        [1.4330392047079832, 1.3577890064224882, 1.234190190962787, 1.1521560220985736, 1.0796983999590146],
    ),
    "gairat": (
        GAIRAT(ATTACK),
        [1.498203405283596, 1.5578512444233563, 1.3002652026337396, 1.4260838903281208, 1.2584279525365702],
    ),
    "avm": (
        AVM(ATTACK),
        [1.3809092761425847, 1.4319092317302324, 1.3968431214138177, 1.332548082246851, 1.343256804703652],
    ),
    "rat": (
        RAT(ATTACK),
        [1.4118377756161147, 1.3898290818133912, 1.3910777585157197, 1.3678112884412519, 1.3603256249901736],
    ),
}


def addressed() -> nn.Module:
    """Return a network in float64 whose weights are uniform draws of a stream, exact on every machine."""
    model, draw = tiny(dtype=torch.float64), Stream.of(0, "golden")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            width = 1.0 if parameter.dim() == 1 else (3.0 / parameter[0].numel()) ** 0.5
            centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
            values = draw.uniform(name, parameter.shape, dtype=torch.float64)
            parameter.copy_(centre + width * (values - 0.5))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
    return model


def losses(method: Method) -> list[float]:
    model, batch, found = addressed(), batch_of(8, dtype=torch.float64), list[float]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for number in range(5):
        note = step(model, optimizer, method, batch, BALL, Stream.of(0, "golden", number))["loss"]
        found.append(float(note.total / note.weight))
    return found


def test_every_method_is_pinned() -> None:
    assert {name: type(method) for name, (method, _) in GOLDEN.items()} == dict(METHODS)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_refactor_that_changes_nothing_does_not_change_these_losses(name: str) -> None:
    """Five steps of SGD with momentum on eight images, in float64, to 1e-8.

    Weights, images and every draw are addressed and made of integer bits, so that neither torch's version nor
    the machine changes them. A change of code that is meant to change no result must leave these numbers as
    they are. One that is meant to (another default, another draw, another order of operations in the loss)
    changes them knowingly: run ``losses``, put the new numbers here, and say in the CHANGELOG why.
    """
    method, golden = GOLDEN[name]
    assert losses(method) == pytest.approx(golden, rel=1e-8)
