"""Device, precision, memory layout and determinism: the only place that knows them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from demilune.attacks import Model, Search
from demilune.errors import DemiluneError, check_types
from demilune.kernels import Packing, compiler, load, winograd

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""glibc's numbers for what mallopt sets."""


@final
@dataclass(frozen=True, slots=True)
class Runtime:
    """How the arithmetic is done.

    device: auto (cuda where there is one, else cpu), cpu, or cuda, cuda:1, …
    precision: of training and of searching for adversarial images; verdicts are always given in float32
    channels_last: keep images as NHWC in memory, faster for convolutions on most hardware
    convolution: of training and of searching in float32: plain (torch's), or winograd, our own for a cpu, which has a
        quarter of a 3×3 filter's multiplications and is compiled at first use; verdicts are always given by torch's
    compile: let torch.compile fuse the passes of a training step (fixed shapes; other bits than without)
    deterministic: only algorithms that give the same bits every time (cpu: always so at one number of threads)
    threads: processor threads, 0 for torch's own choice; the number is part of what fixes the bits
    """

    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False
    convolution: Literal["plain", "winograd"] = "plain"
    compile: bool = False
    deterministic: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bf16"):
            raise DemiluneError(f"precision {self.precision!r}: possible are bf16, float32")
        check_types(self)
        if self.convolution == "winograd" and self.precision != "float32":
            raise DemiluneError(
                "convolution winograd is float32: give --runtime.precision float32, or convolution plain"
            )
        if not 0 <= self.threads <= 1024:
            raise DemiluneError(f"threads = {self.threads}: it must be 0 (torch's own choice) or more, up to 1024")
        if self.device == "mps":
            raise DemiluneError(
                "device 'mps': Apple's GPU is not supported (torch has no deterministic algorithms there); use cpu"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise DemiluneError(f"device {self.device!r}: possible are auto, cpu, cuda, cuda:N")

    def start(self) -> torch.device:
        """Set the process up and return the device; refuses a device that is not there."""
        available = torch.cuda.is_available()
        name = ("cuda" if available else "cpu") if self.device == "auto" else self.device
        if name.startswith("cuda") and not available:
            raise DemiluneError(f"device {name!r}: torch finds no CUDA device here; use --runtime.device cpu")
        # A verdict is float32, and so is a search that was asked to be: no TF32 behind its back.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        if self.threads:
            torch.set_num_threads(self.threads)
        if self.deterministic and name.startswith("cuda"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if name == "cpu":
            _keep_pages()
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise DemiluneError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
        if self.compile and not compiles():
            raise DemiluneError(
                "compile: no C++ compiler is found, which torch.compile needs: install one (g++ or clang++, or name "
                "it in CXX), or leave out --runtime.compile"
            )
        if self.convolution == "winograd":
            kernels = "it is for a cpu" if device.type != "cpu" else load()
            if isinstance(kernels, str):
                raise DemiluneError(f"convolution winograd: {kernels}; leave it out, or --runtime.convolution plain")
        return device

    @property
    def exact(self) -> bool:
        """Whether a search computes as a verdict does."""
        return self.precision == "float32" and self.convolution == "plain"

    @property
    def arithmetic(self) -> str:
        """What a search computes in, in words."""
        return f"{self.precision} (Winograd)" if self.convolution == "winograd" else self.precision

    def place(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the model on the device in this layout."""
        model = model.to(device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the model, to be compiled at its first passes where that was asked for; it stays the same module."""
        if self.compile:
            model.compile(dynamic=False)
        return model

    def layout(self, x: Tensor) -> Tensor:
        """Return images [N,C,H,W] in this layout."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which training and search run their forward passes."""
        if self.precision == "bf16":
            return _low(device)
        return winograd(_packing()) if self.convolution == "winograd" else contextlib.nullcontext()

    def search(self, model: Model, device: torch.device) -> Model:
        """Return the model to search with: itself where that is exact, else a :class:`~demilune.attacks.Search`."""
        if self.exact:
            return model

        def quick(x: Tensor) -> Tensor:
            with self.autocast(device):
                return model(x)

        return Search(model, quick)


@final
class _PreciseHead(TorchFunctionMode):
    """Computes linear layers of [N,F], as the last one is, in float32 under autocast.

    Logits rounded to bf16 lie on a grid as wide as what the points that Square compares differ by, or FAB's distance to
    a boundary: both leave images standing then that they break in float32.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch's."""
        kwargs = kwargs or {}
        if func is not linear or not args or not isinstance(args[0], Tensor) or args[0].dim() != 2:
            return func(*args, **kwargs)
        with torch.autocast(args[0].device.type, enabled=False):
            widened = (one.float() if isinstance(one, Tensor) and one.dtype == torch.bfloat16 else one for one in args)
            return func(*widened, **kwargs)


@contextlib.contextmanager
def _low(device: torch.device) -> Iterator[None]:
    """Compute in bf16, but for the logits."""
    with torch.autocast(device.type, torch.bfloat16), _PreciseHead():
        yield


@functools.cache
def _keep_pages() -> None:
    """Let the C library keep the memory that tensors give back, where it is glibc: no bits change.

    It returns each large block to the system at once and gets it back zeroed page by page, at every layer and pass.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def _packing() -> Packing:
    """Return this process's transformed filters; they are kept while their weights are as they were."""
    kernels = load()
    if isinstance(kernels, str):
        raise DemiluneError(f"convolution winograd: {kernels}")
    return Packing(kernels)


def eager() -> AbstractContextManager[object]:
    """Return the context in which a compiled model runs as it is written: for batches of many sizes."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def compiles() -> bool:
    """Say whether there is a C++ compiler, which torch.compile needs."""
    try:
        compiler()
    except DemiluneError:
        return False
    return True


def low_precision(device: torch.device) -> str | None:
    """Return by which instructions a device multiplies in bf16, None where it has none and would emulate it."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    # torch.cpu.get_capabilities says the same in newer versions only.
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None


def hazard(net: nn.Module, device: torch.device) -> str | None:
    """Return why a network must not be trained with channels last on a device; None where it may.

    oneDNN's gradient in the weights of a strided 1×1 convolution of 2 to 7 channels writes past its memory with AVX2
    (seen in torch 2.13: oneDNN's issue 6035); with AVX-512 it does not.
    """
    if device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability():
        return None
    for layer in net.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1) and 2 <= layer.in_channels < 8:
            narrow = f"strided 1×1 convolutions of {layer.in_channels} channels (2 to 7)"
            return f"torch corrupts memory in {narrow} on this CPU"
    return None


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn a lack of memory into a refusal that says what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has a type of its own only for the memory of a GPU
        told = str(error)
        lack = isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in told or "Storage size" in told
        if not lack:
            raise
        raise DemiluneError(
            f"out of memory ({told.splitlines()[0] if told else 'of this process'}): give a smaller model or batch; "
            "--training.parts trains a batch in portions, --batch is an evaluation's"
        ) from None


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: of the device, or of this process on a cpu."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device) -> str:
    """Name the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
