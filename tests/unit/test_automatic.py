"""What is chosen where nobody said how the arithmetic is to be done, and why."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from demilune import automatic, runtime
from demilune.automatic import Choice, choose, compiling, operations
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.experiment import Experiment, Training
from demilune.kernels import Kernels
from demilune.models import PreActResNet18, Small, WideResNet, create
from demilune.presets import PRESETS
from demilune.runtime import Runtime, compiles, eager, hazard

CPU = torch.device("cpu")
DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)


def chosen(experiment: Experiment, shape: tuple[int, int, int], *said: str) -> Choice:
    return choose(replace(experiment, runtime=replace(experiment.runtime, device="cpu")), shape, 10, said, 100)


def test_bf16_only_in_hardware_and_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    net, small = PRESETS["s30-cifar10-rat"].experiment, PRESETS["digits-rat"].experiment
    monkeypatch.setattr(automatic, "low_precision", lambda device: "AVX512-BF16")
    found = chosen(net, CIFAR)
    assert found.runtime.precision == "bf16" and "AVX512-BF16" in found.reasons["precision"]
    assert chosen(small, DIGITS).runtime.precision == "float32"
    assert "million operations" in chosen(small, DIGITS).reasons["precision"]
    kept = chosen(net, CIFAR, "precision")
    assert kept.runtime.precision == "float32" and "precision" not in kept.reasons
    monkeypatch.setattr(automatic, "low_precision", lambda device: None)
    found = chosen(net, CIFAR)
    assert found.runtime.precision == "float32" and "emulate" in found.reasons["precision"]


def test_the_same_machine_and_network_are_given_the_same() -> None:
    experiment = PRESETS["s30-cifar10-sat"].experiment
    assert chosen(experiment, CIFAR) == chosen(experiment, CIFAR)


def test_nothing_is_chosen_of_what_was_said() -> None:
    experiment = replace(PRESETS["digits-sat"].experiment, runtime=Runtime(device="cpu"))
    found = chosen(experiment, DIGITS, "precision", "channels_last", "convolution", "compile")
    assert found.runtime == Runtime(device="cpu") and not found.reasons


def test_our_own_convolution_where_bf16_is_not_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    net, small = PRESETS["s30-cifar10-rat"].experiment, PRESETS["digits-rat"].experiment
    monkeypatch.setattr(automatic, "low_precision", lambda device: None)
    monkeypatch.setattr(automatic, "load", lambda: Kernels(ctypes.CDLL(None), 16, False))
    assert chosen(net, CIFAR).runtime.convolution == "winograd"
    assert chosen(small, DIGITS).runtime.convolution == "plain"
    odd = chosen(replace(net, model=PreActResNet18(17)), CIFAR)
    assert odd.runtime.convolution == "plain" and "multiples of 16 channels" in odd.reasons["convolution"]
    monkeypatch.setattr(automatic, "load", lambda: "no C++ compiler")
    found = chosen(net, CIFAR)
    assert found.runtime.convolution == "plain" and found.reasons["convolution"] == "no C++ compiler"
    monkeypatch.setattr(automatic, "low_precision", lambda device: "AMX")
    assert chosen(net, CIFAR).runtime.convolution == "plain"


def test_our_own_convolution_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DemiluneError, match=r"winograd is float32"):
        Runtime(precision="bf16", convolution="winograd")
    monkeypatch.setattr(runtime, "load", lambda: "no C++ compiler: none was found")
    with pytest.raises(DemiluneError, match=r"no C\+\+ compiler: none was found; leave it out"):
        Runtime(device="cpu", convolution="winograd").start()
    assert Runtime().exact and not Runtime(convolution="winograd").exact and not Runtime(precision="bf16").exact


def test_a_search_uses_it_and_a_verdict_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    @contextlib.contextmanager
    def context(packing: object) -> Iterator[None]:
        used.append(1)
        yield

    monkeypatch.setattr(runtime, "winograd", context)
    monkeypatch.setattr(runtime, "_packing", lambda: None)
    search = Runtime(convolution="winograd").search(lambda x: x, CPU)
    with torch.no_grad():
        search(torch.ones(1))
    assert not used
    search(torch.ones(1))
    assert used


def test_operations_are_two_per_multiplication() -> None:
    with torch.device("meta"):
        net = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert operations(net, CIFAR) == 2 * 9 * 3 * 8 * 32 * 32
    with torch.device("meta"):
        wide = WideResNet(34, 10).build(3, 10)
    assert operations(wide, CIFAR) == pytest.approx(13.3e9, rel=0.01)  # far too large to be built for this


def test_narrow_nets_are_kept_from_corrupting_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's issue 6035: 2 to 7 channels into a strided 1×1 convolution, with AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    narrow, wide = PreActResNet18(4).build(3, 10), PreActResNet18(8).build(3, 10)
    assert "4 channels" in (hazard(narrow, CPU) or "") and hazard(wide, CPU) is None
    experiment = replace(PRESETS["s30-cifar10-sat"].experiment, model=PreActResNet18(4))
    found = chosen(experiment, CIFAR)
    assert not found.runtime.channels_last and "corrupts memory" in found.reasons["channels_last"]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert hazard(narrow, CPU) is None


def test_compiling_is_not_tried_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = replace(PRESETS["digits-sat"].experiment, model=Small(4), training=Training(batch=8))
    monkeypatch.setattr(automatic, "compiles", lambda: False)
    assert compiling(experiment, DIGITS, 10, 100, CPU) == (0.0, "no C++ compiler is found")
    monkeypatch.setattr(automatic, "compiles", lambda: True)
    gain, why = compiling(experiment, DIGITS, 10, 100, CPU)
    assert gain == 0.0 and "too short" in why


def test_what_cannot_be_compiled_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = replace(PRESETS["digits-sat"].experiment, model=Small(4), training=Training(batch=8))
    monkeypatch.setattr(automatic, "compiles", lambda: True)

    def broken(module: torch.nn.Module, dynamic: bool) -> None:
        raise NotImplementedError("no backend")

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    monkeypatch.setattr(automatic, "LONG", 0.0)
    with pytest.raises(NotImplementedError):
        torch.nn.Linear(1, 1).compile(dynamic=False)
    gain, why = compiling(experiment, DIGITS, 10, 100, CPU)
    assert gain == 0.0 and "NotImplementedError" in why


def test_compiling_by_hand_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiles()
    with pytest.raises(DemiluneError, match=r"no C\+\+ compiler is found.*--runtime.compile"):
        Runtime(device="cpu", compile=True).start()


def test_a_compiled_network_can_be_run_as_it_is_written() -> None:
    """Counted by a backend of our own, so that no compiler is needed."""
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        calls.append(1)
        return graph

    net = create(Small(4), 1, 10, [0.5], [0.2], Stream.of(0)).eval()
    net.compile(backend=backend, dynamic=False)
    x = torch.linspace(0, 1, 3 * 64).reshape(3, 1, 8, 8)
    with eager():
        before = net(x)
    assert not calls
    assert torch.equal(net(x), before) and len(calls) == 1
    with eager():
        net(x[:2])
    assert len(calls) == 1


def test_apples_gpu_is_refused_by_name() -> None:
    with pytest.raises(DemiluneError, match=r"mps.*not supported.*use cpu"):
        Runtime(device="mps")
