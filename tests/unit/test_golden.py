"""Golden losses: five steps of every method, pinned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import BALL, batch_of, tiny
from contract.tables import METHOD_TABLE
from demilune.core.random import Stream
from demilune.methods import METHODS, Method
from demilune.train import step

GOLDEN: dict[str, list[float]] = {
    "standard": [1.373416208776114, 1.2832996938026349, 1.1501027264643837, 1.0247268363273028, 0.9343876280498393],
    "sat": [1.5069616664717276, 1.3953673365344286, 1.3088844457009308, 1.2792803814715539, 1.2474969188178646],
    "trades": [1.4932971971540518, 1.3125821814200076, 1.237812426427649, 1.200612922650946, 1.1503754835658553],
    "mart": [1.916523250649571, 1.7471933986266548, 1.7491195736798546, 1.7098927144425335, 1.682388820881323],
    "adt": [1.4330392047079832, 1.3577890064224882, 1.234190190962787, 1.1521560220985736, 1.0796983999590146],
    "gairat": [1.498203405283596, 1.5578512444233563, 1.3002652026337396, 1.4260838903281208, 1.2584279525365702],
    "lrat": [1.4604868241272126, 1.3657300679155173, 1.268471609452238, 1.2057649027233535, 1.1647060154751325],
    "lrat_trades": [1.451605362775526, 1.3081047634188003, 1.2044999281199722, 1.131427078705681, 1.1068508651921782],
    "lrat_rat": [0.42151881076656067, 0.43314569992189106, 0.4374135352493759, 0.4445721305012769, 0.16499063350323484],
    "taylor_code": [1.3246983223179707, 1.1411253827779473, 1.100163631551216, 1.1009132719279737, 1.0737416295491173],
    "taylor_exact": [1.518202005604885, 1.3292259807495044, 1.2598188947787272, 1.2273789751774062, 1.2005662023788948],
    "avm": [1.3809092761425847, 1.4319092317302324, 1.3968431214138177, 1.332548082246851, 1.343256804703652],
    "rat": [1.4118377756161147, 1.3898290818133912, 1.3910777585157197, 1.3678112884412519, 1.3603256249901736],
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
    assert GOLDEN.keys() == METHODS.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_refactor_that_changes_nothing_does_not_change_these_losses(name: str) -> None:
    """Five steps of SGD with momentum on eight images, in float64, to 1e-8.

    Weights, images and every draw are addressed and made of integer bits, so that neither torch's version nor
    the machine changes them. A change of code that is meant to change no result must leave these numbers as
    they are. One that is meant to (another default, another draw, another order of operations in the loss)
    changes them knowingly: run ``losses``, put the new numbers here, and say in the CHANGELOG why.
    """
    assert losses(METHOD_TABLE[name]) == pytest.approx(GOLDEN[name], rel=1e-8)
