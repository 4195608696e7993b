"""Checkpoints: safetensors files whose header describes them as JSON. A pickle is never loaded."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from demilune.errors import DemiluneError
from demilune.runs import disk_refusal, replacing

HEADER = "demilune"
FORMAT = 1
"""The number a run's checkpoints carry; another one means another layout of the file."""

_ABOUT: Mapping[str, type | tuple[type, ...]] = {
    "experiment": dict,
    "data": dict,
    "step": int,
    "best": (int, float),
    "robust": (int, float, type(None)),
    "stopped": bool,
    "checkpoint": str,
    "metrics": int,
}
_DATA: Mapping[str, type] = {"classes": list, "shape": list, "mean": list, "std": list}


@final
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Named tensors and what they are: ``about`` is plain JSON (experiment, data, step, metrics so far)."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors named ``prefix.…``, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: t for name, t in self.tensors.items() if name.startswith(start)}


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: whatever happens, ``path`` holds a whole checkpoint, the old or the new one."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    with replacing(path) as beside:
        try:
            save_file(tensors, beside, metadata={HEADER: json.dumps(checkpoint.about)})
        except SafetensorError as error:  # it wraps the operating system's own errors in text
            raise disk_refusal(path, _os_error(error)) from error


def _os_error(error: SafetensorError) -> OSError:
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]) if number else errno.EIO, str(error))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; refuses what is missing, truncated, a pickle, or not written by :func:`save`."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise DemiluneError(f"{path} does not exist: name a run folder or a .safetensors checkpoint") from None
    except OSError as error:
        raise DemiluneError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix == ".npz":
        raise DemiluneError(f"{path} is an .npz of arrays: name a run folder or a .safetensors checkpoint")
    # A safetensors file may begin with any bytes, the length of its header, which begins with a brace.
    if start[8:9] != b"{" and start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise DemiluneError(f"{path} is a pickle, which can run code when loaded: give a .safetensors file instead")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise DemiluneError(
            f"{path} is truncated or no safetensors file ({error}): use another checkpoint of the run, or train again"
        ) from None
    if header is None:
        raise DemiluneError(f"{path} was not written by demilune (its header lacks the description)")
    try:
        about = json.loads(header)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise DemiluneError(f"{path} has a damaged header: use another checkpoint of the run, or train again")
    return Checkpoint(about, tensors)


def load_run(path: Path) -> Checkpoint:
    """Read a checkpoint that training wrote; refuses another format, and a header that lacks what every run's has."""
    found = load(path)
    about = found.about
    if about.get("format") != FORMAT:
        raise DemiluneError(
            f"{path} has the format {about.get('format')!r}, and this demilune {FORMAT}: read it with the version that "
            "wrote it"
        )
    data = about.get("data")
    wrong = [name for name, kind in _ABOUT.items() if name not in about or not isinstance(about[name], kind)]
    if not wrong and isinstance(data, dict):
        wrong = [f"data.{name}" for name, kind in _DATA.items() if not isinstance(data.get(name), kind)]
        if not wrong and not _sizes(data):
            wrong = ["data"]
    if wrong:
        raise DemiluneError(
            f"{path} has a damaged header ({', '.join(wrong)}): use another checkpoint of the run, or train again"
        )
    return found


def _sizes(data: Mapping[str, Any]) -> bool:
    """Say whether a header's shape, mean and standard deviation are numbers that go together."""
    shape, moments = data["shape"], [*data["mean"], *data["std"]]
    numbers = all(isinstance(value, int | float) for value in [*shape, *moments])
    return numbers and len(shape) == 3 and len(data["mean"]) == len(data["std"]) == shape[0] and bool(data["classes"])


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, wanted: str) -> None:
    """Copy tensors into a model; refuses another architecture or number of classes, naming what differs."""
    have = model.state_dict()
    for name in sorted(have.keys() | tensors.keys()):
        given, expected = tensors.get(name), have.get(name)
        if given is None or expected is None or (given.shape, given.dtype) != (expected.shape, expected.dtype):
            raise DemiluneError(
                f"{path} does not fit {wanted}: {name} is {_shape(given)} in the file and {_shape(expected)} in the "
                "model; it holds another architecture or another number of classes"
            )
        if given.is_floating_point() and not bool(given.isfinite().all()):
            raise DemiluneError(
                f"{path} holds weights that are no numbers ({name}): use another checkpoint of the run, or train again"
            )
    model.load_state_dict(dict(tensors))


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
