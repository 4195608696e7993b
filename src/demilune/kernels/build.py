"""Compile winograd.cpp with the C++ compiler found, keep the library, load it, and try it against torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from demilune.errors import DemiluneError, said

SOURCE = Path(__file__).with_name("winograd.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC")
SECONDS = 120
TOLERANCE = 1e-5
"""Largest error that the trial admits, relative to the largest output; some 2e-6 is usual."""


@final
@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library.

    lanes: channels in a vector; numbers of input and output channels must be multiples of it
    threaded: whether it runs on torch's own OpenMP threads, or on one thread
    """

    library: ctypes.CDLL
    lanes: int
    threaded: bool

    @property
    def threads(self) -> int:
        """Return how many threads a call takes: torch's number, or one."""
        return torch.get_num_threads() if self.threaded else 1

    def fingerprint(self, weight: Tensor) -> int | None:
        """Return a number that changes with the weight's values, some 45 GB/s; None where it is not dense."""
        dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
        if not (dense and _float32(weight)):
            return None
        found: int = self.library.demilune_fingerprint(weight.data_ptr(), weight.numel())
        return found

    def pack(self, weight: Tensor, turned: bool) -> Tensor:
        """Return the transformed filters of a float32 weight [K,C,3,3], flat: 36·K·C values.

        ``turned``: those of the convolution's gradient with respect to its input, from K to C channels.
        """
        outputs, inputs, s_out, s_in = *weight.shape[:2], *weight.stride()[:2]
        if turned:
            outputs, inputs, s_out, s_in = inputs, outputs, s_in, s_out
        if weight.shape[2:] != (3, 3) or outputs % self.lanes or inputs % self.lanes or not _float32(weight):
            raise DemiluneError(
                f"a weight of shape {tuple(weight.shape)} in {weight.dtype} on {weight.device}: [K,C,3,3] in float32 "
                f"on a cpu is possible, with K and C multiples of {self.lanes}"
            )
        packed = torch.empty(36 * outputs * inputs)
        self.library.demilune_pack(
            weight.data_ptr(), outputs, inputs, s_out, s_in, *weight.stride()[2:], turned, packed.data_ptr(),
            self.threads,
        )  # fmt: skip
        return packed

    def convolve(self, x: Tensor, packed: Tensor, outputs: int) -> Tensor:
        """Return the convolution [B,K,H,W] of float32 images [B,C,H,W], stride 1 and padding 1, channels last.

        ``packed`` is what ``pack`` made. Raises MemoryError.
        """
        images, inputs, height, width = x.shape
        if packed.numel() != 36 * inputs * outputs or not _float32(x):
            raise DemiluneError(
                f"images of shape {tuple(x.shape)} in {x.dtype} on {x.device}: float32 on a cpu is possible, with the "
                "weight's channels"
            )
        x = x.resolve_neg().contiguous(memory_format=torch.channels_last)
        y = torch.empty((images, outputs, height, width), memory_format=torch.channels_last)
        failed = self.library.demilune_convolve(
            x.data_ptr(), packed.data_ptr(), y.data_ptr(), images, height, width, inputs, outputs, self.threads
        )
        if failed:
            raise MemoryError(f"no memory for a convolution of {tuple(x.shape)}")
        return y


def _float32(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


@functools.cache
def load() -> Kernels | str:
    """Return the kernels, compiled now if they never were on this machine, or the reason why there are none.

    The compiler is $CXX, else c++, g++ or clang++. The library is kept in $DEMILUNE_CACHE, else in
    $XDG_CACHE_HOME/demilune, else in ~/.cache/demilune.
    """
    try:
        return made(compiler(), _folder())
    except DemiluneError as error:
        return str(error)


def made(compiler: tuple[str, ...], folder: Path | None) -> Kernels:
    """Return the kernels from a folder (None: not kept), compiled where it has none that can be trusted.

    ``compiler`` is the program and what it is always given. Raises DemiluneError where it does not compile, the library
    does not load, or its trial fails.
    """
    words = (*compiler, *FLAGS)
    version = _run((*compiler, "--version"))
    openmp = _openmp(version)
    told = "\0".join((*words, version, SOURCE.read_text(), str(openmp), _processor()))
    key = hashlib.sha256(told.encode()).hexdigest()[:20]
    found = _kept(folder, key)
    if found is None:
        with tempfile.TemporaryDirectory(prefix="demilune-") as work:
            fresh = _compiled(words, openmp, Path(work))
            return tried(_opened(_keep(folder, key, fresh) or fresh))
    return tried(_opened(found))


def tried(kernels: Kernels) -> Kernels:
    """Return the kernels after a trial against torch in float64; raises DemiluneError where they differ too much."""
    draw = torch.Generator().manual_seed(0)
    few, many = 3 * kernels.lanes, 4 * kernels.lanes
    x = torch.randn((3, few, 7, 10), generator=draw)
    weight = torch.randn((many, few, 3, 3), generator=draw)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = F.conv2d(x.double(), weight.double(), padding=1)
        back = F.conv_transpose2d(y, weight.double(), padding=1)
        ours = kernels.convolve(x, kernels.pack(weight, False), many)
        ours_back = kernels.convolve(y.float(), kernels.pack(weight, True), few)
    for one, other in ((ours, y), (ours_back, back)):
        error = float((one - other).abs().max() / other.abs().max())
        if not error <= TOLERANCE:
            raise DemiluneError(
                f"the compiled convolution differs from torch's by {error:.1e}, more than {TOLERANCE:g}"
            )
    return kernels


def compiler() -> tuple[str, ...]:
    """Return the C++ compiler as the words that call it; raises DemiluneError where there is none."""
    asked = os.environ.get("CXX", "").strip()
    try:
        words = shlex.split(asked)
    except ValueError as error:
        raise DemiluneError(f"CXX={asked!r} cannot be read as a command: {error}") from None
    if words:
        if shutil.which(words[0]) is None:
            raise DemiluneError(f"no C++ compiler: CXX={asked!r}, and there is no program {words[0]!r}")
        return tuple(words)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    raise DemiluneError("no C++ compiler: c++, g++ and clang++ are not installed; another is named by $CXX")


def _folder() -> Path | None:
    """Return the folder that keeps compiled libraries, or None where nobody is at home."""
    base = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    given = os.environ.get("DEMILUNE_CACHE", "") or str(Path(base) / "demilune")
    try:
        return Path(given).expanduser() / "kernels"
    except RuntimeError:
        return None


def _run(words: tuple[str, ...]) -> str:
    """Return what a program prints; refuse with its first error where it fails."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise DemiluneError(f"the C++ compiler {words[0]} did not run: {said(error)}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        why = lines[0][:200] if lines else f"exit code {done.returncode}"
        raise DemiluneError(f"the C++ compiler {words[0]} failed: {why}")
    return done.stdout


def _openmp(version: str) -> Path | None:
    """Return the OpenMP library that torch itself runs on, where this compiler's code can share it; else None.

    Two OpenMP runtimes in a process keep two sets of threads that fight for the cores.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return found[0] if len(found) == 1 and "Free Software Foundation" in version else None


def _processor() -> str:
    """Name the processor, with what it can do: -march=native depends on it."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join(facts)


def _compiled(words: tuple[str, ...], openmp: Path | None, work: Path) -> Path:
    """Return the library compiled in an empty folder.

    It is linked to torch's OpenMP by its path: -fopenmp at this step would name the system's.
    """
    part, whole = work / "winograd.o", work / "winograd.so"
    _run((*words, *(("-fopenmp",) if openmp else ()), "-c", str(SOURCE), "-o", str(part)))
    _run((*words, "-shared", str(part), *((str(openmp),) if openmp else ()), "-o", str(whole)))
    return whole


def _kept(folder: Path | None, key: str) -> Path | None:
    """Return the library kept under this key; one that is damaged, or is not ours, counts for nothing.

    Its name ends in a hash of its bytes: loading a damaged library could end the process.
    """
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f"winograd-{key}-*.so")):
            if _ours(folder) and _ours(path) and path.name == _name(key, path):
                return path
    return None


def _ours(path: Path) -> bool:
    """Say whether only this user (or root) can have written it."""
    facts = path.stat()
    return os.name != "posix" or (facts.st_uid in (0, os.getuid()) and not facts.st_mode & 0o022)


def _name(key: str, path: Path) -> str:
    return f"winograd-{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:20]}.so"


def _keep(folder: Path | None, key: str, fresh: Path) -> Path | None:
    """Copy the library into the folder in one step and return its place, or None where nothing can be kept."""
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.glob(f"winograd-{key}-*.so"):
            if old.name != _name(key, old):
                old.unlink(missing_ok=True)
        path = folder / _name(key, fresh)
        handle, name = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=folder)
        os.close(handle)
        beside = Path(name)
        try:
            shutil.copyfile(fresh, beside)
            beside.chmod(0o700)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError:
        return None
    return _kept(folder, key)


def _opened(path: Path) -> Kernels:
    """Load the library."""
    number, address = ctypes.c_int64, ctypes.c_void_p
    try:
        library = ctypes.CDLL(str(path))
        library.demilune_pack.argtypes = (address, *(number,) * 6, ctypes.c_int, address, ctypes.c_int)
        library.demilune_pack.restype = None
        library.demilune_fingerprint.argtypes = (address, number)
        library.demilune_fingerprint.restype = ctypes.c_uint64
        library.demilune_convolve.argtypes = (address, address, address, *(number,) * 5, ctypes.c_int)
        lanes, threads = library.demilune_lanes(), library.demilune_threads()
    except (OSError, AttributeError) as error:
        raise DemiluneError(f"the compiled library does not load: {said(error)}") from None
    # The same number as torch's shows that it is torch's OpenMP; where it is another, one thread is safe.
    return Kernels(library, lanes, threads == torch.get_num_threads())
