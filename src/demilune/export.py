"""A network as one file that runs without demilune: ONNX, torch.export, TorchScript.

Normalisation lies inside, images [N,C,H,W] in [0,1] go in, logits [N,K] come out, N is free. What is written is read
back and run on random images before the file takes its name: a file that answers otherwise than the network is refused.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from demilune.attacks import frozen
from demilune.core.random import Stream
from demilune.errors import DemiluneError, needed, said
from demilune.foreign import quiet
from demilune.runs import replacing

FORMS: Mapping[str, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "torch-export": (".pt2",),
    "torchscript": (".ts", ".torchscript", ".jit", ".pt"),
}
"""What can be written, and how its files are called."""

TOLERANCE = 1e-4
"""Largest difference of a logit between file and network, in units of the largest logit where that is above 1."""

BATCHES = (1, 2, 7)
"""Sizes of the batches that a written file is run on."""


@final
@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    ``difference`` is the largest difference of a logit on the random images, None where nothing could run the file;
    ``note`` says so. ``images`` is how many there were.
    """

    path: Path
    form: str
    size: int
    images: int
    difference: float | None
    note: str = ""


def check_place(path: Path, form: str, overwrite: bool) -> None:
    """Refuse, before any work, a form that there is not, a name that is another form's, and a file that is there."""
    if form not in FORMS:
        raise DemiluneError(f"--to {form}: possible are {', '.join(FORMS)}")
    if path.suffix not in FORMS[form]:
        other = next((name for name, endings in FORMS.items() if path.suffix in endings), None)
        hint = f" ({path.suffix} is {other}'s)" if other else ""
        named = " or ".join(FORMS[form])
        raise DemiluneError(f"{path}: a file of {form} is called {named}{hint}: name it {path.stem}{FORMS[form][0]}")
    if path.is_dir():
        raise DemiluneError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise DemiluneError(f"{path} is there already: name a new file, or give --overwrite")
    if form == "onnx":
        for module in ("onnx", "onnxscript"):
            needed("onnx", module)


def export(
    model: nn.Module, shape: Sequence[int], path: Path, form: str, about: Mapping[str, Any], overwrite: bool = False
) -> Exported:
    """Write a network on the cpu, as it is in evaluation mode, as ``form`` and check the file.

    ``shape`` is (C,H,W); ``about`` is plain JSON that goes along: under ``demilune`` in the metadata of ONNX, as
    demilune.json in the others. Nothing of the network changes. Raises DemiluneError where the form cannot express it,
    where what was written answers otherwise by more than ``TOLERANCE``, and where a network answers at random, so that
    no file can be checked.
    """
    check_place(path, form, overwrite)
    with frozen(model, "eval"):
        return _export(model, shape, path, form, json.dumps(about))


def _export(model: nn.Module, shape: Sequence[int], path: Path, form: str, about: str) -> Exported:
    rng = Stream.of(0, "export")
    batches = [rng.uniform(f"images{n}", (n, *shape)) for n in BATCHES]
    with torch.no_grad():
        expected = [model(x) for x in batches]
        if any(not torch.equal(model(x), y) for x, y in zip(batches, expected, strict=True)):
            raise DemiluneError(
                f"{path} was not written: the network answers differently each time: no file can be checked"
            )
    try:
        with quiet(), torch.no_grad():
            content = _WRITERS[form](model, batches[1], about)
    except Exception as error:  # tracing a stranger's network can fail in any way
        raise DemiluneError(
            f"{path} was not written: {form} cannot express this network ({_first(error)}): try another of "
            f"{', '.join(FORMS)}"
        ) from error
    with replacing(path) as beside:
        beside.write_bytes(content)
        difference, note = _compare(beside, form, batches, expected, path)
    return Exported(path, form, len(content), sum(BATCHES), difference, note)


def _first(error: BaseException) -> str:
    """Say in a line what went wrong, by the innermost cause: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return said(error)


def _compare(
    file: Path, form: str, batches: Sequence[Tensor], expected: Sequence[Tensor], path: Path
) -> tuple[float | None, str]:
    """Run the file that was written; refuse it where it answers otherwise than the network."""
    try:
        with quiet(), torch.no_grad():
            run = _READERS[form](file)
            if run is None:
                return None, "not checked: onnxruntime, which would run it, is not installed (demilune[onnx])"
            found = [run(x) for x in batches]
    except Exception as error:
        raise DemiluneError(
            f"{path} was not written: what {form} made does not run on {', '.join(map(str, BATCHES))} images "
            f"({_first(error)}): try another of {', '.join(FORMS)}"
        ) from error
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape:
            raise DemiluneError(
                f"{path} was not written: what {form} made answers {list(got.shape)} where the network answers "
                f"{list(want.shape)}: try another of {', '.join(FORMS)}"
            )
        apart = float((got - want).abs().max())
        if not apart <= TOLERANCE * max(1.0, float(want.abs().max())):  # NaN is not
            raise DemiluneError(
                f"{path} was not written: what {form} made differs from the network by {apart:.3g} in a logit of at "
                f"most {float(want.abs().max()):.3g}: try another of {', '.join(FORMS)}"
            )
        worst = max(worst, apart)
    return worst, ""


# Each form


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """Return the program of a network for batches of any size, without where its code lay on this machine."""
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _torch_export(model: nn.Module, x: Tensor, about: str) -> bytes:
    held = io.BytesIO()
    torch.export.save(_exported(model, x), held, extra_files={"demilune.json": about})
    return held.getvalue()


def _torchscript(model: nn.Module, x: Tensor, about: str) -> bytes:
    held = io.BytesIO()
    traced = torch.jit.trace(model, x, check_trace=False)  # it is run on other images, of other numbers, afterwards
    torch.jit.save(traced, held, _extra_files={"demilune.json": about})
    return held.getvalue()


def _onnx(model: nn.Module, x: Tensor, about: str) -> bytes:
    program: Any = torch.onnx.export(
        _exported(model, x), (), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    proto = program.model_proto
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        kept = [one for one in node.metadata_props if "stack_trace" not in one.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "demilune", about
    content: bytes = proto.SerializeToString()
    return content


_WRITERS: Mapping[str, Callable[[nn.Module, Tensor, str], bytes]] = {
    "onnx": _onnx,
    "torch-export": _torch_export,
    "torchscript": _torchscript,
}


def _run_onnx(file: Path) -> Callable[[Tensor], Tensor] | None:
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def _run_torch_export(file: Path) -> Callable[[Tensor], Tensor]:
    with file.open("rb") as opened:  # given a path, torch goes by its ending
        return torch.export.load(opened).module()


def _run_torchscript(file: Path) -> Callable[[Tensor], Tensor]:
    loaded: Callable[[Tensor], Tensor] = torch.jit.load(str(file))
    return loaded


_READERS: Mapping[str, Callable[[Path], Callable[[Tensor], Tensor] | None]] = {
    "onnx": _run_onnx,
    "torch-export": _run_torch_export,
    "torchscript": _run_torchscript,
}

__all__ = ["BATCHES", "FORMS", "TOLERANCE", "Exported", "check_place", "export"]
