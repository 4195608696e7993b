"""Anyone's network: what is declared of it once, and how it is made and filled without running a file's code.

A factory is the user's own code and is imported. A file is data: weights come from safetensors, or through torch's
reader that admits tensors alone. Files that are programs (torch.export, TorchScript) are run only where trusted.
timm:NAME and torchvision:NAME are networks of those libraries, which fetch the weights that they publish themselves.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import logging
import math
import os
import pickle
import pkgutil
import re
import sys
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from demilune.errors import DemiluneError, check_types, needed, said, unknown

Kind = Literal["safetensors", "checkpoint", "torchscript", "export"]
"""What a file is found to be, from its bytes: weights in two formats, programs in two."""

FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""package.module:function."""

PROGRAMS = (".pt2", ".pt", ".pth", ".ts", ".jit", ".torchscript")
"""How the names of files end that hold a program; one that is there may be called anything."""

LACKING = "the network lacks this normalisation: declare it"
"""How a note on weights ends that should not be passed over."""

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks are named LIBRARY:NAME, or LIBRARY:NAME.TAG where published weights are meant."""


@final
@dataclass(frozen=True, slots=True)
class Declaration:
    """A network that was not trained here: where it comes from, and which images it takes.

    Images x in [0,1] reach it as (x·(high - low) + low - mean)/std; attacks act before, so ε is in pixels of [0,1].

    model: package.module:function that makes the network, timm:NAME or torchvision:NAME, or the path of a torch.export
        or TorchScript file
    classes: number of classes, one logit each
    channels: channels of an image
    weights: file of the weights (safetensors, or a state dict saved by torch), null where the function fills them in
    part: which of the file's state dicts to take, where several fit (as model_ema)
    weights_sha256: that file's, or the program's; another file is refused; null where it was not recorded
    low: what the network takes a black pixel as
    high: what it takes a white pixel as (255 for images in grey levels)
    mean: one number a channel; empty where nothing is subtracted, or the network does so itself
    std: one number a channel, likewise
    trust: let the file of a program run
    pretrained: fill in the weights that timm or torchvision publish under the name
    """

    model: str
    classes: int
    channels: int
    weights: str | None = None
    part: str = ""
    weights_sha256: str | None = None
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    trust: bool = False
    pretrained: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model.strip() or (self.weights is not None and not self.weights.strip()):
            raise DemiluneError("a model was declared by an empty name: give package.module:function, or a file")
        if self.pretrained and not self.library:
            raise DemiluneError(
                f"pretrained weights are of timm:NAME or torchvision:NAME, and the model is {self.model!r}: name a "
                "file of weights, or let its function fill them in"
            )
        if self.library and self.pretrained == (self.weights is not None):
            told = "both published weights and a file" if self.pretrained else "no weights"
            raise DemiluneError(f"{self.model} is declared with {told}: give --weights FILE or --pretrained")
        if self.classes < 2 or self.channels < 1:
            raise DemiluneError(
                f"classes = {self.classes}, channels = {self.channels}: they must be at least 2 and 1 (a network of "
                "one logit z is declared as one of two, 0 and z)"
            )
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise DemiluneError(
                f"low = {self.low:g}, high = {self.high:g}: the range of pixels goes from low up to high"
            )
        moments = [*self.mean, *self.std]
        if not all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in moments):
            raise DemiluneError(f"mean = {self.mean}, std = {self.std}: numbers were expected")
        if len(self.mean) != len(self.std) or len(self.mean) not in (0, self.channels):
            raise DemiluneError(
                f"{len(self.mean)} mean and {len(self.std)} std: as many of each as channels, {self.channels}, or none"
            )
        if any(v <= 0 for v in self.std):
            raise DemiluneError(f"std = {self.std}: positive numbers were expected")
        if self.weights_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.weights_sha256):
            raise DemiluneError(f"weights_sha256 = {self.weights_sha256[:80]!r}: 64 hexadecimal digits were expected")

    @property
    def library(self) -> str:
        """The library that the network is one of by its name, or nothing."""
        library, colon, _ = self.model.partition(":")
        return library if colon and library in LIBRARIES else ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Declaration:
        """Return the declaration written by :meth:`to_json`; refuses what is none."""
        names = [field.name for field in fields(cls)]
        for name in value:
            if name not in names:
                raise unknown("field of a declared model", str(name), names)
        missing = [name for name in ("model", "classes", "channels") if name not in value]
        if missing:
            raise DemiluneError(f"a declared model lacks {', '.join(missing)}: declare it again")
        lists = {name: tuple(value[name]) for name in ("mean", "std") if isinstance(value.get(name), list)}
        return cls(**{**value, **lists})


@final
class Declared(nn.Module):
    """(x·(high - low) + low - mean)/std per channel, then the network: from images in [0,1] to its logits.

    ``notes`` say in a line each how its weights were found in their file, where there is more than one way to read it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, declared: Declaration, notes: Sequence[str] = ()) -> None:
        super().__init__()
        mean, std = declared.mean or (0.0,) * declared.channels, declared.std or (1.0,) * declared.channels
        self.low, self.range = declared.low, declared.high - declared.low
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.net = net
        self.notes = tuple(notes)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network answers, logits [N,K] if it is one of ours, to images in [0,1]."""
        logits: Tensor = self.net((x * self.range + self.low - self.mean) / self.std)
        return logits

    def under(self, declared: Declaration) -> Declared:
        """Return the same network, not a copy, behind another range and normalisation."""
        return Declared(self.net, declared, self.notes).to(self.mean.device).train(self.training)


@final
class Program(nn.Module):
    """A network that is a program of a file; batches of other sizes than it takes are parted, and filled up."""

    def __init__(self, net: nn.Module, least: int = 1, most: int = sys.maxsize) -> None:
        super().__init__()
        self.net, self.least, self.most = net, least, most
        self.train(False)
        for module in net.modules():  # a frozen script has no such flag, and an exported program a meaningless one
            module.training = False

    def train(self, mode: bool = True) -> Program:
        """Note the mode; the program's own was fixed when it was written."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the program's answer, of its own batch size or ours."""
        if self.least <= len(x) <= self.most:
            return self._run(x)
        parts = []
        for part in x.split(self.most):
            # Repeated images, without gradient, are sure to be something that the program can take.
            more = part[-1:].detach().expand(max(0, self.least - len(part)), *part.shape[1:])
            logits = self._run(torch.cat([part, more]))
            if not isinstance(logits, Tensor):
                return logits  # for the interview to refuse
            parts.append(logits[: len(part)])
        return torch.cat(parts)

    def _run(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.contiguous())
        return logits


@final
class Still(nn.Module):
    """A network that no gradient can be taken through, with one that is zero: attacks that follow it stand still."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's answer, cut off from its weights too; second derivatives are zero as well."""
        logits: Tensor = self.net(x)
        return logits.detach() + (0.0 * x * x).flatten(1).sum(dim=1, keepdim=True).to(logits.dtype)


def cut_off(model: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Say why no gradient reaches images that a model answers, or nothing where one does."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = model(leaf)
        if not logits.requires_grad:
            return "its answer has no gradient"
        try:
            (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
        except RuntimeError as error:
            return str(error).strip().splitlines()[0][:200]
    return "its answer is cut off from the image" if gradient is None else ""


def load_declared(declared: Declaration, device: torch.device | str = "cpu") -> Declared:
    """Make the network that was declared, fill in its weights in float32, and return it in evaluation mode.

    Raises DemiluneError, in one line with the remedy, for a factory that is not there, fails or makes no network, for
    a file that is missing, damaged, not what it was, or not trusted, and for weights that do not fit or are no numbers.
    """
    path, notes = _path(declared), list[str]()
    net: nn.Module
    if path is not None:
        if declared.weights is not None:
            raise DemiluneError(f"{path} is to be a program, which has its weights: leave {declared.weights} out")
        net, notes = _program(path, declared, torch.device(device))
    else:
        net = _by_name(declared) if declared.library else _made(declared.model)
        if declared.pretrained:
            notes = [f"{declared.model}: its weights as {declared.library} publishes them"]
        if declared.weights is not None:
            file = Path(declared.weights).expanduser()
            notes = _fill(net, _read(file, declared), file, declared)
        _check_numbers(net, declared.weights or declared.model)
    return Declared(net, declared, notes).to(device).eval()


def _path(declared: Declaration) -> Path | None:
    """Return the program's path, or None where a factory is named."""
    path = Path(declared.model).expanduser()
    module, colon, name = declared.model.partition(":")
    if colon and module.endswith(".py"):
        better = ".".join(part for part in Path(module.removesuffix(".py")).parts if part not in ("/", "."))
        raise DemiluneError(f"model {declared.model!r}: write {better}:{name or 'function'}, as in an import")
    if (declared.library or FACTORY.fullmatch(declared.model)) and not os.path.lexists(path):
        return None
    if not os.path.lexists(path) and path.suffix not in PROGRAMS:
        raise DemiluneError(
            f"model {declared.model!r} is neither package.module:function, which makes a network, nor the path of a "
            "torch.export or TorchScript file"
        )
    return path


# Factories


def _made(spec: str) -> nn.Module:
    """Import a factory and call it; the global generator is left as it was, and fresh weights are always the same."""
    module, _, name = spec.partition(":")
    with _here(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        factory = _attribute(_imported(spec, module), module, name)
        if isinstance(factory, nn.Module):
            raise DemiluneError(
                f"model {spec!r} is a network, which others may use too: name a function that makes one"
            )
        if not callable(factory):
            raise DemiluneError(f"model {spec!r} is {_a(factory)}: name a function that makes a network")
        _check_arguments(spec, factory)
        try:
            torch.manual_seed(0)
            net = factory()
        except (Exception, SystemExit) as error:  # what a user's code may raise is anything
            raise DemiluneError(
                f"model {spec!r}: the function fails ({_told(error)}): make it return a network when called without "
                "arguments"
            ) from error
    if not isinstance(net, nn.Module):
        raise DemiluneError(
            f"model {spec!r} returned {_a(net)}, no torch.nn.Module: name a function that returns the network itself"
        )
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        if torch.nn.parameter.is_lazy(value) or value.is_meta:
            raise DemiluneError(
                f"model {spec!r} returned a network without values in {name}: make it on the cpu, and run it on an "
                "image once where it has lazy layers"
            )
    return net.float().eval()


# Networks of timm and torchvision


class Published(NamedTuple):
    """What a library says of published weights: its name for them in full, and what they take and tell apart."""

    model: str
    classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(model: str, classes: int, channels: int) -> Published:
    """Return what timm or torchvision says of the weights it publishes under a name, LIBRARY:NAME or LIBRARY:NAME.TAG.

    Nothing is fetched. Raises DemiluneError where the library is missing or does not fit torch, where it has no such
    network, or no weights of it, and where these are of other numbers of classes and channels.
    """
    library, _, spec = model.partition(":")
    found = _library(library)
    name, _, tag = spec.partition(".")
    with quiet():
        _check_known(library, found, name)
        says = _timm_says(found, spec) if library == "timm" else _torchvision_says(found, name, tag)
    if (says.classes, says.channels) != (classes, channels):
        raise DemiluneError(
            f"the published weights of {says.model} take {says.channels} channels and tell {says.classes} classes "
            f"apart, not {channels} and {classes}: name images of theirs, or give weights that were trained for "
            "these, --weights FILE"
        )
    return says


def _library(name: str) -> Any:
    """Import a library of networks; refuses a torchvision, which timm needs as well, of another torch."""
    try:
        given = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        given = "of an unknown version"
    misfit = (
        f"torchvision {given} is not for torch {torch.__version__}: pip uninstall torchvision, then pip install "
        f"torch=={torch.__version__.partition('+')[0]} torchvision, from the index that this torch is from"
    )
    with quiet():
        needed("vision", "torchvision", misfit)
        return needed("vision", name)


def _names(library: str, found: Any) -> list[str]:
    names = found.list_models() if library == "timm" else found.models.list_models(module=found.models)
    return [str(name) for name in names]


def _check_known(library: str, found: Any, name: str) -> None:
    names = _names(library, found)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        listed = "timm.list_models()" if library == "timm" else "torchvision.models.list_models()"
        raise DemiluneError(f"{library} has no network {name!r}: {hint}{listed} names its {len(names)}")


def _timm_says(timm: Any, spec: str) -> Published:
    name, _, tag = spec.partition(".")
    try:
        config = timm.get_pretrained_cfg(spec)
    except RuntimeError:  # of a tag that there is not
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{name}.*")]
        raise unknown(f"weights of timm's {name}", tag, tags) from None
    if config is None or not config.has_weights:
        raise DemiluneError(f"timm publishes no weights of {spec}: give your own, --weights FILE")
    return Published(
        f"timm:{name}{'.' if config.tag else ''}{config.tag or ''}",
        int(config.num_classes),
        int(config.input_size[0]),
        tuple(map(float, config.mean)),
        tuple(map(float, config.std)),
    )


def _torchvision_says(torchvision: Any, name: str, tag: str) -> Published:
    kinds = torchvision.models.get_model_weights(name)
    tags = [one.name for one in kinds]
    if tag and tag not in tags:
        raise unknown(f"weights of torchvision's {name}", tag, tags)
    if not tags:
        raise DemiluneError(f"torchvision publishes no weights of {name}: give your own, --weights FILE")
    chosen = kinds[tag] if tag else kinds.DEFAULT
    way = chosen.transforms()
    mean, std = tuple(map(float, way.mean)), tuple(map(float, way.std))
    return Published(f"torchvision:{name}.{chosen.name}", len(chosen.meta["categories"]), len(mean), mean, std)


def _by_name(declared: Declaration) -> nn.Module:
    """Make a network of timm or torchvision, with the weights it publishes where they were declared."""
    library, spec = declared.library, declared.model.partition(":")[2]
    name, _, tag = spec.partition(".")
    found = _library(library)
    if declared.pretrained:
        published(declared.model, declared.classes, declared.channels)
    else:
        with quiet():
            _check_known(library, found, name)
    if library == "torchvision" and declared.channels != 3:
        raise DemiluneError(
            f"torchvision's networks take 3 channels, the images have {declared.channels}: name a function that makes "
            "the network, as package.module:function"
        )
    with quiet(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        try:
            if library == "timm":
                channels = {} if declared.channels == 3 else {"in_chans": declared.channels}
                net = found.create_model(spec, pretrained=declared.pretrained, num_classes=declared.classes, **channels)
            elif declared.pretrained:
                net = found.models.get_model(name, weights=tag or "DEFAULT")
            else:
                net = found.models.get_model(name, weights=None, num_classes=declared.classes)
        except Exception as error:  # the network may be down, and a stranger's constructor fails in any way
            remedy = "check the network, or give a file, --weights FILE" if declared.pretrained else "name another"
            raise DemiluneError(f"{library} could not make {spec} ({said(error)}): {remedy}") from error
    if not isinstance(net, nn.Module):
        raise DemiluneError(f"{library} made {_a(net)} of {spec}: name another network")
    return net.float().eval()


@contextmanager
def _here() -> Iterator[None]:
    """Let imports find what lies in the working folder, as python itself does for a script there."""
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _imported(spec: str, module: str) -> object:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        lacking = error.name if isinstance(error, ModuleNotFoundError) else None
        if lacking and f"{module}.".startswith(f"{lacking}."):
            parent, _, last = lacking.rpartition(".")
            where = getattr(sys.modules[parent], "__path__", []) if parent else None
            near = difflib.get_close_matches(last, [found.name for found in pkgutil.iter_modules(where)], n=1)
            hint = f"did you mean {'.'.join(filter(None, (parent, near[0])))!r}? " if near else ""
            raise DemiluneError(
                f"model {spec!r}: there is no module {lacking!r}: {hint}start in the folder it lies in, or install it"
            ) from None
        remedy = f"install {lacking.partition('.')[0]}" if lacking else "make it import without an error"
        raise DemiluneError(f"model {spec!r}: importing {module} fails ({_told(error)}): {remedy}") from error


def _attribute(found: object, module: str, name: str) -> object:
    for step in name.split("."):
        try:
            inner = getattr(found, step)
        except AttributeError:
            names = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            own = [key for key in names if getattr(vars(found)[key], "__module__", module) == module]
            if not names:
                told = f"model {module}:{name}: no {step!r} is there: name a function of {module}"
                raise DemiluneError(told) from None
            raise unknown(f"function of {module}", step, own or names) from None
        found = inner
    return found


def _check_arguments(spec: str, factory: Callable[..., object]) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise DemiluneError(
            f"model {spec!r} needs arguments ({error}): name a function that takes none, which calls it with them"
        ) from None
    except ValueError:  # made in C: it may tell nothing of its arguments
        pass


def _told(error: BaseException) -> str:
    """Say in one line what went wrong, and where in the user's code."""
    lines = str(error).strip().splitlines()
    ours = ("<", __file__, importlib.__file__, str(Path(torch.__file__).parent))
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(ours)]
    where = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{': ' + lines[0][:200] if lines else ''}{where}"


def _a(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


# Files


def sniff(path: Path) -> Kind:
    """Say what a file is, from its bytes alone; refuses what holds no network."""
    try:
        if path.exists() and not path.is_file():
            told = "a folder: name a file in it" if path.is_dir() else "no plain file: name one"
            raise DemiluneError(f"{path} is {told}")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "name the file of a network"
        raise DemiluneError(f"{path} does not exist: {hint}") from None
    except (OSError, ValueError) as error:
        raise DemiluneError(f"{path} cannot be read ({error}): name another file, or change its permissions") from None
    if not head:
        raise DemiluneError(f"{path} is empty: copy or download it again")
    if head[8:9] == b"{":  # before it stands a length, which may look like anything, a pickle too
        return "safetensors"
    if head.startswith(b"PK"):
        return _archive(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):  # a pickle and its protocol
        return "checkpoint"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise DemiluneError(f"{path} is a web page, not the file it was to lead to: download that (GitHub's raw file)")
    if text.startswith(b"version https://git-lfs"):
        raise DemiluneError(f"{path} is a pointer of Git LFS, not the file: run git lfs pull in its repository")
    known = {b"\x89HDF": "a Keras file", b"\x1f\x8b": "packed with gzip", b"BZh": "packed with bzip2"}
    what = next((f" ({told})" for start, told in known.items() if head.startswith(start)), "")
    raise DemiluneError(
        f"{path} is no file of PyTorch's or safetensors{what}: give a .safetensors file or a state dict"
    )


def _archive(path: Path) -> Kind:
    """Tell the zip files of torch apart by the names in them; nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            whole = min((one.header_offset for one in archive.infolist()), default=0) == 0
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        whole = False
    if not whole:  # what is left of a truncated one may end in a whole one that lay inside
        raise DemiluneError(f"{path} is truncated or damaged: copy or download it again")
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "serialized_exported_program.json" in {*names, *inner} or any(
        name.startswith("models/") and name.endswith(".json") for name in inner
    ):
        return "export"
    if "data.pkl" in inner:
        return "checkpoint"
    what = "compiled code" if any(name.endswith(".so") for name in names) else ", ".join(names[:3]) or "nothing"
    raise DemiluneError(f"{path} is a zip file that is no network's (it holds {what}): give the weights themselves")


def _check_same(path: Path, declared: Declaration) -> None:
    """Refuse another file than was declared."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if declared.weights_sha256 not in (None, digest):
        raise DemiluneError(
            f"{path} is another file than was declared (sha256 {digest[:12]}…, not {declared.weights_sha256[:12]}…): "
            "put the right one back, or declare the model again"
        )


def _read(path: Path, declared: Declaration) -> Any:
    """Return what a file of weights holds; no code of it runs."""
    kind = sniff(path)
    _check_same(path, declared)
    if kind == "safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                if "demilune" in (file.metadata() or {}):
                    raise DemiluneError(f"{path} was trained here, and says all of itself: evaluate it without a model")
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise DemiluneError(f"{path} is truncated or damaged ({error}): copy or download it again") from None
    if kind != "checkpoint":
        raise DemiluneError(f"{path} is a program, not weights: name it as the model, and leave the weights out")
    try:
        with path.open("rb") as file:  # given a path, torch goes by its ending first
            return torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken pickle can fail in any way
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted is None:
            raise DemiluneError(f"{path} is truncated, damaged or no checkpoint: copy or download it again") from None
        load = f"torch.load({str(path)!r}, weights_only=False)"
        raise DemiluneError(
            f"{path} holds more than tensors ({wanted[1]}), and to load that runs code: where you trust it, give the "
            f"file that torch.save({load}.state_dict(), 'weights.pth') writes ([...] instead where it is a dict)"
        ) from None


# State dicts


class _Part(NamedTuple):
    """Tensors of a file that may be the network's: the keys and prefix that lead to them, and what lies beside."""

    name: str
    tensors: dict[str, Tensor]
    beside: dict[str, Tensor]


def _fill(net: nn.Module, found: Any, path: Path, declared: Declaration) -> list[str]:
    """Copy a file's weights into a network; returns what was chosen, kept and left out, refuses what does not fit."""
    state, weights = net.state_dict(), {name for name, _ in net.named_parameters()}
    places = _bare(name for name, value in state.items() if isinstance(value, Tensor))
    have = {bare: state[name] for bare, name in places.items()}
    own = {bare for bare, name in places.items() if name not in weights and _normalises(bare, have[bare], declared)}
    dicts = [(where, {bare: each[name] for bare, name in _bare(each).items()}) for where, each in _dicts(found)]
    if not dicts:
        told = f"its keys are {', '.join(map(str, [*found][:5]))}" if isinstance(found, Mapping) else f"but {_a(found)}"
        raise DemiluneError(f"{path} holds no state dict ({told}): save the network's state_dict(), and give that")
    if not have.keys() - own:
        raise DemiluneError(f"model {declared.model!r} has no weights that {path} could fill: leave the file out")
    root, part = _match({bare: tensor for bare, tensor in have.items() if bare not in own}, dicts, path, declared)
    rooted = {root + name: tensor for name, tensor in part.tensors.items()}
    given = {**part.tensors, **part.beside, **rooted}
    filled = {bare: given[bare] for bare in have if _alike(given.get(bare), have[bare])}
    try:
        net.load_state_dict(state | {places[bare]: tensor for bare, tensor in filled.items()})
    except (RuntimeError, ValueError, TypeError) as error:  # a network may load in a way of its own
        raise DemiluneError(f"{path} cannot be loaded into {declared.model} ({_told(error)})") from None
    notes = [f"{path.name}: took what is under {part.name!r}"] if part.name else []
    kept = sorted(own - filled.keys())
    notes += [f"{', '.join(kept)}: as {declared.model} made them, for {path.name} has none"] if kept else []
    left = {name: t for name, t in {**rooted, **part.beside}.items() if name not in filled}
    shown = [f"{name} ({_values(t)})" for name, t in left.items() if _normalises(name, t, declared)]
    hint = f"; {LACKING}" if shown and not declared.mean else ""
    shown += [name for name, t in left.items() if not _normalises(name, t, declared)]
    return notes + ([f"{path.name}: left out {_few(shown)}{hint}"] if shown else [])


def _match(
    needed: Mapping[str, Tensor],
    dicts: Sequence[tuple[tuple[str, ...], Mapping[str, Tensor]]],
    path: Path,
    declared: Declaration,
) -> tuple[str, _Part]:
    """Return the part of a file that fits, and the prefix that it lacks before its names; refuses none, or several."""
    tried = []
    for root in _roots([*needed]):
        wanted = {bare.removeprefix(root): tensor for bare, tensor in needed.items()}
        parts = [part for where, tensors in dicts for part in _parts(where, tensors, wanted)]
        fitting = [part for part in parts if all(_alike(part.tensors.get(name), t) for name, t in wanted.items())]
        if fitting:
            part = _chosen(fitting, wanted, path, declared)
            if all(name in wanted or _normalises(name, t, declared) for name, t in part.tensors.items()):
                return root, part
            raise _misfit(part, wanted, path, declared)
        tried += [(part, wanted) for part in parts]
    named = [one for one in tried if declared.part in ("", one[0].name)]
    raise _misfit(*max(named or tried, key=lambda one: len(one[0].tensors.keys() & one[1].keys())), path, declared)


def _dicts(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dict of named tensors inside a checkpoint, with the keys that lead to it."""
    if not isinstance(value, Mapping) or len(where) > 4:
        return
    named = {key: each.detach() for key, each in value.items() if isinstance(key, str) and isinstance(each, Tensor)}
    if named:
        yield where, named
    for key, each in value.items():
        if isinstance(key, str):
            yield from _dicts(each, (*where, key))


def _bare(names: Any) -> dict[str, str]:
    """Map names without the words of DataParallel and torch.compile, which stand anywhere, to the names as they are.

    Batch norm's count of batches is left out: nothing depends on it, and old files lack it.
    """
    names = [name for name in names if name.rpartition(".")[2] != "num_batches_tracked"]
    bare = {".".join(w for w in name.split(".") if w not in ("module", "_orig_mod")): name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _normalises(name: str, tensor: Tensor, declared: Declaration) -> bool:
    """Say whether a tensor looks like the mean or deviation of a normalisation of images."""
    last = name.rpartition(".")[2]
    return last in ("mean", "std", "mu", "sigma", "new_mean", "new_std") and tensor.numel() in (1, declared.channels)


def _roots(names: Sequence[str]) -> Iterator[str]:
    """Yield "", then the prefixes that all of a network's names share: a wrapper's, which the file may lack."""
    root = ""
    while all(name.startswith(root) for name in names):
        yield root
        root = names[0][: names[0].find(".", len(root)) + 1]
        if not root:
            return


def _parts(where: tuple[str, ...], tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[_Part]:
    """Yield what a dict holds under each prefix that leads to a name that is wanted, the likeliest first."""
    starts = Counter[str]()
    for name in tensors:
        cuts = [0, *(found.end() for found in re.finditer(r"\.", name))]
        starts.update(name[:cut] for cut in cuts if name[cut:] in wanted)
    for start, _ in starts.most_common() or [("", 0)]:
        under = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        beside = {name: t for name, t in tensors.items() if not name.startswith(start)}
        yield _Part(".".join([*where, *filter(None, start.split("."))]), under, beside)


def _alike(given: Tensor | None, wanted: Tensor) -> bool:
    return (
        given is not None
        and given.shape == wanted.shape
        and given.is_floating_point() == wanted.is_floating_point()
        and given.is_complex() == wanted.is_complex()
    )


def _chosen(fitting: Sequence[_Part], wanted: Mapping[str, Tensor], path: Path, declared: Declaration) -> _Part:
    """Return the one part that fits, the one that was named, or any of several that are the same."""
    names = [part.name or "the file itself" for part in fitting]
    if declared.part:
        named = [part for part in fitting if part.name == declared.part]
        if not named:
            raise unknown(f"part of {path.name}", declared.part, names)
        return named[0]
    first, *more = fitting
    if any(not torch.equal(first.tensors[name], part.tensors[name]) for part in more for name in wanted):
        raise DemiluneError(
            f"{path} holds several weights that fit {declared.model}: {', '.join(names)}: declare one as its part"
        )
    return first


def _misfit(part: _Part, wanted: Mapping[str, Tensor], path: Path, declared: Declaration) -> DemiluneError:
    """Return the refusal of weights that do not fit, told of the part that comes closest."""
    given = part.tensors
    lacking = [name for name in wanted if name not in given]
    spare = [name for name, t in given.items() if name not in wanted and not _normalises(name, t, declared)]
    shapes = [
        f"{name} is {_shape(given[name])} in the file and {_shape(wanted[name])} in the network"
        for name in wanted
        if name in given and not _alike(given[name], wanted[name])
    ]
    near = difflib.get_close_matches(lacking[0], spare or [*given], n=1) if lacking else []
    told = [f"the file lacks {_few(lacking)}" + (f" (nearest there: {near[0]})" if near else "")] if lacking else []
    told += [f"the network lacks {_few(spare)}"] if spare else []
    told += [_few(shapes, 1)] if shapes else []
    where = f" (under {part.name!r})" if part.name else ""
    return DemiluneError(
        f"{path}{where} does not fit {declared.model}: {'; '.join(told)}: name the function that makes the very "
        "network that was saved"
    )


def _check_numbers(net: nn.Module, source: str) -> None:
    """Refuse weights that are no numbers; a buffer may hold infinities, as a mask of attention does."""
    weights = dict(net.named_parameters())
    for name, value in net.state_dict().items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if not bool((value.isfinite() if name in weights else ~value.isnan()).all()):
            raise DemiluneError(f"{source} holds weights that are no numbers ({name}): take another checkpoint")


def _few(words: Sequence[str], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _values(tensor: Tensor) -> str:
    return " ".join(f"{v:.4g}" for v in tensor.flatten().tolist())


# Programs


def _program(path: Path, declared: Declaration, device: torch.device) -> tuple[Program, list[str]]:
    """Load a program that is trusted."""
    from torch.export.passes import move_to_device_pass  # slow to import

    kind = sniff(path)
    if kind in ("safetensors", "checkpoint"):
        raise DemiluneError(
            f"{path} holds weights: name the function that makes their network, as package.module:function, and give "
            "this file as the weights"
        )
    if not declared.trust:
        raise DemiluneError(f"{path} is a program, which runs when it is loaded: give --trust if you trust its origin")
    _check_same(path, declared)
    try:
        with quiet():
            if kind == "torchscript":
                return Program(torch.jit.load(str(path), map_location=device)), []
            with path.open("rb") as file:  # given a path, torch goes by its ending
                exported = torch.export.load(file)
            least, most = _batch(exported, path, declared)
            moved = move_to_device_pass(exported, str(device))
            net = moved.module()
    except DemiluneError:
        raise
    except Exception as error:  # as with pickles
        raise DemiluneError(
            f"{path} cannot be loaded by torch {torch.__version__} ({_told(error)}): write it again with this version"
        ) from None
    bounds = f"{least}" if least == most else f"{least} to {most}"
    told = f"{path.name} takes batches of {bounds} images: others are parted, and filled up with copies"
    return Program(net, least, most), [told] if most < sys.maxsize else []


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from telling that TorchScript is deprecated, and tracebacks of what is refused in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _batch(exported: torch.export.ExportedProgram, path: Path, declared: Declaration) -> tuple[int, int]:
    """Return the smallest and largest batch an exported program takes; refuses one that takes other than images."""
    signature = exported.graph_signature
    values = [node.meta.get("val") for node in exported.graph.nodes if node.name in signature.user_inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].dim() != 4:
        raise DemiluneError(f"{path} does not take one batch of images [N,C,H,W] alone: export a network that does")
    (value,) = values
    size, channels = value.shape[:2]
    if value.dtype != torch.float32 or (isinstance(channels, int) and channels != declared.channels):
        raise DemiluneError(
            f"{path} takes {_shape(value)} and not float32 images of {declared.channels} channels: export it so, or "
            "declare its channels"
        )
    training = [
        node for node in exported.graph.nodes if str(node.target) == "aten.batch_norm.default" and any(node.args[5:6])
    ]
    if training or signature.buffers_to_mutate:
        raise DemiluneError(f"{path} was exported in training mode, and changes as it is run: export net.eval()")
    if isinstance(size, int):
        return size, size
    symbol = size.node.expr
    if not symbol.is_symbol:
        raise DemiluneError(f"{path} takes only batches of {symbol} images: export it with torch.export.Dim('batch')")
    limits = exported.range_constraints.get(symbol)
    if limits is None:
        return 1, sys.maxsize
    return max(1, int(limits.lower)), int(limits.upper) if limits.upper < sys.maxsize else sys.maxsize


__all__ = [
    "LIBRARIES",
    "Declaration",
    "Declared",
    "Program",
    "Published",
    "Still",
    "cut_off",
    "load_declared",
    "published",
    "quiet",
    "sniff",
]
