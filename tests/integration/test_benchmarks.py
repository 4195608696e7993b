"""The measurements of speed on a tiny net: what is measured and written down, never how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks import (  # noqa: E402
    command,
    curve,
    flops,
    machine,
    memory,
    methods,
    ours,
    peers,
    reference,
    rounds,
    table,
    targets,
)
from benchmarks.setting import BALL, STEPS, Setting  # noqa: E402

from demilune.models import Architecture, PreActResNet18, Small, WideResNet  # noqa: E402
from demilune.options import nested  # noqa: E402
from demilune.runtime import Runtime  # noqa: E402

TINY = ["--net", "small", "--width", "1", "--side", "8", "--batch", "1", "--images", "2", "--rounds", "1", "--quick"]
TINY += ["--workers", "0", "--threads", "1"]
SETTING = Setting("small", 1, side=8, batch=2, workers=0, quick=True, levers={"channels_last": True})


@pytest.fixture(autouse=True)
def as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it for processes of its own


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("benchmarks") / "found.json"
    assert command.main(["pgd", "step", "rat", "ceiling", "data", "curve", *TINY, "--out", str(out)]) == 0
    return {record["bench"]: record for record in json.loads(out.read_text())["records"]}


def names(record: dict[str, Any]) -> set[str]:
    return {row["name"] for row in record["rows"]}


def keys(record: dict[str, Any]) -> set[str]:
    return {figure["key"] for figure in record["figures"]}


# what a run writes


def test_every_record_says_where_it_comes_from(found: dict[str, dict[str, Any]]) -> None:
    assert set(found) == {"pgd", "step", "rat", "ceiling", "data", "curve"}
    for record in found.values():
        about = record["environment"]
        assert {"processor", "flags", "cores", "memory", "threads", "date", "versions", "command", "git"} <= set(about)
        assert about["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert record["setting"]["threads"] == about["threads"] == 1
        for row in record["rows"]:
            assert len(row["seconds"]) == record["setting"]["rounds"] == 1
            assert min(row["seconds"]) > 0 and row["rate"] > 0
        assert 0 < about["busy"] < 1.5
        for figure in record["figures"]:
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_pgd_is_the_same_work_for_everybody(found: dict[str, dict[str, Any]]) -> None:
    record = found["pgd"]
    here, missing = peers.present()
    assert set(here) <= names(record) and not set(missing) & names(record)
    assert all(any(note.startswith(f"{name} is missing") for note in record["notes"]) for name in missing)
    assert {"demilune, levers off", "demilune, levers on"} <= names(record)
    for name, told in record["details"]["agreement"].items():
        assert told["outside"] < 1e-6
        if record["setting"]["levers"].get("precision") == "float32" or name != "demilune, levers on":
            assert told["apart"] <= 0.05, name  # pixels whose gradient is zero but for its rounding
    for passes in record["details"]["passes"].values():
        assert passes.endswith(f"{STEPS} backward")


def test_steps_are_compared_with_the_reference_loop(found: dict[str, dict[str, Any]]) -> None:
    assert {"step.sat", "step.sat.off", "step.rat", "step.sat.grad"} <= keys(found["step"])
    assert {"rat.on", "rat.off"} <= keys(found["rat"])
    assert names(found["rat"]) < names(found["step"])
    seconds = {row["name"]: row["seconds"] for row in found["step"]["rows"]}
    assert all(row["seconds"] == seconds[row["name"]] for row in found["rat"]["rows"])  # the same rounds
    for counted in found["rat"]["details"]["gradients"].values():
        assert counted == {"sat": STEPS, "rat": STEPS}


def test_the_ceiling_is_of_the_nets_own_convolutions(found: dict[str, dict[str, Any]]) -> None:
    record = found["ceiling"]
    assert {"ceiling.share", "ceiling.share.off"} <= keys(record)
    # conv 3→1 at 8×8, 1→2 at 4×4, 2→2 at 4×4
    assert record["details"]["forward_flops"] == 2 * 9 * (3 * 64 + 2 * 16 + 4 * 16)
    assert len(record["details"]["layers"]) == 3


def test_a_quick_curve_is_called_extrapolated_and_has_no_target(found: dict[str, dict[str, Any]]) -> None:
    record = found["curve"]
    assert record["details"]["apart"] == 0
    assert any(note.startswith("EXTRAPOLATED") for note in record["notes"])
    (figure,) = record["figures"]
    assert "EXTRAPOLATED" in figure["label"] and figure["target"] is None


def test_a_whole_curve_takes_5050_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "LAST", 4)
    whole = Setting("small", 1, side=8, images=2, rounds=1, levers=SETTING.levers)
    record = curve.run(whole, lambda text: None)
    assert [row.note for row in record.rows] == ["4 forward, 4 backward", "10 forward, 10 backward"]
    assert record.figures[0].key == "curve" and record.details is not None and record.details["apart"] == 0


def test_the_extrapolation_is_exact_on_a_line() -> None:
    assert curve.extrapolated(tuple(2.0 + 3.0 * steps for steps in curve.QUICK)) == pytest.approx(2.0 + 3.0 * 5050)


def test_the_command_that_is_written_down_is_the_one_that_was_run(
    tmp_path: Path, found: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(one["environment"]["command"].startswith("python -m benchmarks pgd step") for one in found.values())
    assert machine.command("benchmarks", ["pgd", "--out", "a b.json"]) == "python -m benchmarks pgd --out 'a b.json'"
    out, config = tmp_path / "steps.json", tmp_path / "tiny.yaml"
    told = {"data.name": "digits", "model.name": "small", "model.width": 1, "ball.norm": "linf", "ball.eps": 0.15}
    config.write_text(json.dumps(nested(told | {"training.batch": 2})))
    words = ["--config", str(config), "--rows", "sat", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["methods.py", *words])
    methods.main()
    about = json.loads(out.read_text())["environment"]
    assert about["command"] == f"python -m benchmarks.methods {' '.join(words)}"


# what is counted


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize(
    "net", [PreActResNet18(2), PreActResNet18(3), WideResNet(10, 1), WideResNet(10, 3), WideResNet(22, 2)], ids=repr
)
def test_the_closed_formula_counts_what_the_layers_do(net: Architecture, side: int) -> None:
    model = net.build(3, 10).eval()
    layers = flops.layers(model, 3, side)
    assert flops.by_hand(net, 3, side) == sum(layer.flops for layer in layers)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    counted = counter.get_flop_counts()["Global"]
    assert counted[torch.ops.aten.convolution] == sum(layer.flops for layer in layers)


def test_the_formula_of_the_net_that_is_measured() -> None:
    assert flops.by_hand(PreActResNet18(), 3, 32) == 2 * 1024 * (27 * 64 + 132 * 64**2) == 1_110_835_200
    assert flops.by_hand(Small(), 3, 32) is None
    assert flops.sat(100, 7, 10) == 10 * 200 + 300 - 7


@pytest.mark.parametrize(("method", "outer"), [("sat", 1), ("rat", 2)])
@pytest.mark.parametrize("inner", ["backward", "grad"])
def test_the_reference_loop_takes_as_many_gradients_as_ours(method: Any, inner: Any, outer: int) -> None:
    loop, counted = reference.Loop(SETTING, method, inner), [0, 0]

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        counted[0 if given[0].requires_grad else 1] += len(given[0])

    loop.model.register_forward_pre_hook(note)
    before = [weight.detach().clone() for weight in loop.model.parameters()]
    loop()
    assert counted == [STEPS * SETTING.batch, outer * SETTING.batch]
    assert ours.gradients(SETTING, "off", method) == (STEPS, outer)
    assert loop.loss > 0 and loop.model.training
    assert any(not torch.equal(old, new) for old, new in zip(before, loop.model.parameters(), strict=True))


def test_the_reference_region_is_rats() -> None:
    n = 64
    x, y = ours.images(SETTING, n)
    first, end = (x + BALL.eps / 2).clamp(0, 1), (x - BALL.eps).clamp(0, 1)
    fooled = torch.zeros(n, 10)
    fooled[torch.arange(n), (y + 1) % 10] = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        points, labels = reference.region(x, y, end, [(end, fooled), (first, fooled)])
    assert points.shape == (2 * n, *x.shape[1:]) and labels.shape == (2 * n, 10)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(2 * n))
    mass = labels.gather(1, y.repeat(2)[:, None]).squeeze(1)
    scale = (1.0 - mass) / 0.45
    assert bool((scale > -1e-5).all() and (scale < 2 + 1e-5).all())
    assert bool(((points - x.repeat(2, 1, 1, 1)).abs().flatten(1).amax(dim=1) <= scale * BALL.eps + 1e-5).all())
    # Up, towards x_f, in a third of the draws: the random start, which fooled it too, is no x_f.
    towards = (points - x.repeat(2, 1, 1, 1)).flatten(1).mean(dim=1)[scale > 0.05] > 0
    assert 0.2 < float(towards.float().mean()) < 0.5


def test_ours_is_set_up_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with ours.running(Runtime(threads=1)):
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True


def test_arms_are_those_that_differ() -> None:
    def of(**levers: Any) -> list[ours.Arm]:
        return ours.arms(Setting("small", 1, levers=levers))

    assert of() == ["on"]
    assert of(channels_last=True) == ["off", "on"]
    assert of(channels_last=True, precision="bf16") == ["off", "float32", "on"]


# how it is measured


def test_rounds_begin_with_the_next_and_the_warm_one_does_not_count() -> None:
    order: list[str] = []

    def enter(name: str) -> Callable[[], int]:
        return lambda: (order.append(name), len(order))[1]

    contestants = [rounds.Contestant(name, enter(name)) for name in "abc"]
    timed = rounds.timed(contestants, 3, torch.device("cpu"), lambda text: None)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert timed.first == {"a": 1, "b": 2, "c": 3} and timed.repeats == 1
    assert {name: len(taken) for name, taken in timed.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_short_calls_are_repeated_alike() -> None:
    count = {"a": 0, "b": 0}

    def enter(name: str) -> Callable[[], None]:
        return lambda: count.update({name: count[name] + 1})

    timed = rounds.timed(
        [rounds.Contestant(name, enter(name)) for name in count], 2, torch.device("cpu"), lambda text: None, least=9.0
    )
    assert timed.repeats == rounds.MOST
    assert count == {"a": 1 + 2 * rounds.MOST, "b": 1 + 2 * rounds.MOST}


def test_a_figure_is_the_median_of_ratios() -> None:
    values = rounds.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    figure = rounds.figure("step.sat", "", values, "×", "cpu")
    assert (figure.low, figure.value, figure.high) == (1.0, 2.0, 3.0)
    assert figure.target == targets.Target("≥", 3.0) and not figure.target.met(figure.value)
    on_gpu = rounds.figure("step.sat", "", values, "×", "cuda:0").target
    assert on_gpu is not None and on_gpu.value == 5.0


# the command


def test_results_stay_and_a_later_one_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page, rate = tmp_path / "found.json", tmp_path / "page.md", [1.0]

    def fake(setting: Setting, say: rounds.Say) -> rounds.Found:
        figure = rounds.figure("step.sat", "a ratio", [rate[0] + 2.5], "×", setting.device)
        return rounds.Found((rounds.Row("one|two", (0.5,), rate[0], "steps/s"),), (figure,), ("a note",))

    def stopped(setting: Setting, say: rounds.Say) -> rounds.Found:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "RUNNERS", {"step": (fake, ""), "data": (stopped, "")})
    assert command.main(["all", *TINY, "--out", str(out)]) == 130
    assert "step" in capsys.readouterr().err
    assert [record["bench"] for record in command.read(out)] == ["step"]

    rate[0] = 2.0
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert command.main(["step", *TINY, "--out", str(out), "--markdown", str(page)]) == 0
    assert command.main(["step", *TINY, "--batch", "3", "--out", str(out)]) == 0
    records = command.read(out)
    assert [(record["setting"]["batch"], record["rows"][0]["rate"]) for record in records] == [(1, 2.0), (3, 2.0)]

    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| a ratio | 4.50× | 4.50× … 4.50× | ≥ 3.00× | yes |" in text
    assert "one∣two" in text and "- a note" in text and "(a trial, no result)" in text
    assert "batch 3" not in text
    assert command.main(["--out", str(out), "--markdown", str(page)]) == 0  # tables alone
    assert "batch 3" in page.read_text() and page.read_text().count(table.BEGIN) == 1


def test_a_process_that_had_to_wait_for_the_cores_says_so() -> None:
    setting = Setting("small", threads=2)
    assert command.crowded("pgd", setting, 0.95) == []
    (note,) = command.crowded("pgd", setting, 0.5)
    assert "50 %" in note and "no result" in note
    assert command.crowded("startup", setting, 0.1) == []
    assert command.crowded("pgd", Setting("small", device="cuda"), 0.1) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pdg"], ["unknown sub-benchmark 'pdg'", "did you mean 'pgd'"]),
        ([], ["no sub-benchmark was named"]),
        (["pgd", "--net", "vgg17"], ["unknown net 'vgg17'"]),
        (["pgd", "--net", "vgg16", "--width", "2"], ["vgg16 has one width"]),
        (["pgd", "--depth", "10"], ["--depth 10", "wide_resnet"]),
        (["pgd", "--batch", "0"], ["--batch 0", "1 or more"]),
        (["pgd", "--threads", "-1"], ["--threads -1"]),
        (["pgd", "--rounds", "few"], ["'few' is no whole number"]),
        (["pgd", "--device", "tpu"], ["device 'tpu'"]),
        (["pgd", "--runtime.precision", "fp8"], ["fp8"]),
        (["pgd", "--bacth", "2"], ["did you mean --batch?"]),
        (["autoattack"], ["--robust MODEL"]),
        (["autoattack", "--weak", "nowhere"], ["--weak nowhere", "no such model"]),
        (["pgd", "--out", "nowhere/found.json"], ["no folder", "nowhere"]),
        (["pgd", "--out", "page.md"], ["page.md"]),
        (["pgd", "--markdown", "page.md"], ["page.md has no place for tables", table.BEGIN]),
        (
            ["step", "--net", "preactresnet18", "--width", "4", "--runtime.channels_last", "true"],
            ["4 channels", "--runtime.channels_last false"],
        ),
    ],
)
def test_bad_words_get_one_line(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")  # where narrow nets are refused
    (tmp_path / "page.md").write_text("a page\n")
    assert command.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("benchmarks: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error
    assert (tmp_path / "page.md").read_text() == "a page\n" and len(list(tmp_path.iterdir())) == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {"Nobody": ("no_such_package", peers.PEERS["foolbox"][1])})
    here, missing = peers.present()
    assert here == {} and "no_such_package" in missing["Nobody"]


# processes of their own


def test_memory_is_of_a_process_of_its_own() -> None:
    words = [sys.executable, "-m", "benchmarks.memory", "SAT, demilune, levers off", json.dumps(SETTING.to_json())]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    told = json.loads(done.stdout)
    assert 0 < told["peak"] < told["before"]  # a tiny net takes less than torch itself


def test_memory_that_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    with pytest.raises(Exception, match="the memory of Nobody failed"):
        memory._asked("Nobody", SETTING)


@pytest.mark.slow
def test_startup_and_autoattack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyautoattack")
    from demilune.__main__ import main

    weak, out = tmp_path / "weak", tmp_path / "found.json"
    tiny = ["--training.epochs", "2", "--model.width", "4", "--runtime.threads", "1"]
    assert main(["train", "digits-standard", "--out", str(weak), *tiny]) == 0
    argv = ["startup", "autoattack", "--weak", str(weak), "--limit", "6", *TINY, "--out", str(out)]
    assert command.main(argv) == 0
    records = {record["bench"]: record for record in json.loads(out.read_text())["records"]}
    assert names(records["startup"]) == {"demilune --help", "demilune report", "python alone"}
    assert "autoattack.weak" in keys(records["autoattack"])
    runs = records["autoattack"]["details"]["weak"]
    assert runs["pyautoattack"][0]["right"] == runs["demilune, levers off"][0]["right"]
    assert "no robust model was named" in records["autoattack"]["notes"]
