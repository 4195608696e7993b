"""The method that docs/extending.md writes is short, and works with everything."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest
import torch
import yaml

from conftest import BALL, batch_of, stream, tiny
from contract.tables import MOVE_TABLE
from demilune.__main__ import main
from demilune.attacks import frozen
from demilune.core.random import Stream
from demilune.experiment import TABLES, VARIANTS
from demilune.methods import METHODS, Method
from demilune.moves import WeightMove
from demilune.options import field_help
from demilune.train import step

DOC = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def method() -> Iterator[Method]:
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 40
    module = sys.modules["alp"] = ModuleType("alp")  # a dataclass looks its module up
    exec(compile(code, str(DOC), "exec"), vars(module))
    assert issubclass(module.ALP, Method)
    yield module.ALP()
    del sys.modules["alp"]


@pytest.mark.parametrize("move", MOVE_TABLE.values(), ids=MOVE_TABLE)
def test_it_learns_with_every_move(method: Method, move: WeightMove) -> None:
    model, batch, losses = tiny(), batch_of(16), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number in range(25):
        note = step(model, optimizer, method, batch, BALL, Stream.of(0, number), move=move)["loss"]
        losses.append(float(note.total / note.weight))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_it_is_the_equation(method: Method) -> None:
    model, batch = tiny(dtype=torch.float64), batch_of(dtype=torch.float64)
    with frozen(model, "eval"):
        made = method.examples(model, batch, BALL, stream(batch))
    assert (BALL.distance(made.points, batch.x) <= BALL.eps + 1e-12).all()
    model.eval()
    clean, attacked = model(batch.x), model(made.points)
    loss = torch.nn.functional.cross_entropy(attacked, batch.y) + 0.5 * ((clean - attacked) ** 2).mean()
    assert float(method.objective(model, made).detach().mean()) == pytest.approx(float(loss.detach()), rel=1e-10)


def test_its_fields_have_help(method: Method) -> None:
    assert field_help(type(method)).keys() == {"attack", "pairing", "bn"}


def test_it_is_registered_as_the_page_says(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = MappingProxyType({**METHODS, "alp": type(method)})
    monkeypatch.setattr("demilune.experiment.TABLES", MappingProxyType({**TABLES, Method: table}))
    monkeypatch.setattr("demilune.experiment.VARIANTS", MappingProxyType({**VARIANTS, "method": table}))
    assert main(["list", "methods"]) == 0
    assert "alp  " in capsys.readouterr().out
    assert main(["show", "digits-sat", "--method", "alp", "--method.pairing", "1"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["method"]["pairing"], shown["method"]["attack"]["step_ratio"]) == (1.0, 0.25)
    tiny_run = ["--training.steps", "3", "--training.batch", "32", "--model.width", "4", "--runtime.threads", "1"]
    assert (
        main(["train", "digits-sat", "--method", "alp", "--move", "rwp", *tiny_run, "--out", str(tmp_path / "r")]) == 0
    )
    assert main(["evaluate", str(tmp_path / "r"), "--attacks", "fgsm", "--limit", "20"]) == 0
