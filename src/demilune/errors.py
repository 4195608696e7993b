"""Refusals: one clear line that names what was given, what is possible and the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import types
import typing
from collections.abc import Iterable
from numbers import Integral, Real


class DemiluneError(Exception):
    """Bad input or a broken file; the command line prints the message alone and exits with code 2."""


def unknown(kind: str, given: str, names: Iterable[str]) -> DemiluneError:
    """Return the refusal of an unknown name, with the nearest valid one."""
    valid = sorted(names)
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DemiluneError(f"unknown {kind} {given!r}: {hint}possible are {', '.join(valid)}")


def said(error: BaseException) -> str:
    """Return in one line what an exception of foreign code says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0][:200] if lines else ''}"


def needed(extra: str, module: str, misfit: str = "") -> typing.Any:
    """Return a module of an optional extra; refuses where it is not installed, or does not import.

    ``misfit`` is the remedy for the second.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that does not fit the others may fail in any way
        install = f"pip install 'demilune[{extra}]'"
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise DemiluneError(f"{module} is not installed: {install}") from None
        raise DemiluneError(f"{module} does not import ({said(error)}): {misfit or install}") from None


@functools.cache
def _hints(kind: type) -> dict[str, typing.Any]:
    return typing.get_type_hints(kind)


def check_types(value: typing.Any) -> None:
    """Refuse a frozen value whose fields are not of the types declared, or not among the names that are possible."""
    hints = _hints(value.__class__)
    for field in dataclasses.fields(value):
        given, kind = getattr(value, field.name), hints[field.name]
        if typing.get_origin(kind) is typing.Literal:
            if given not in typing.get_args(kind):
                raise unknown(field.name, str(given), typing.get_args(kind))
            continue
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (typing.get_origin(kind) or kind,)
        wide = {int: Integral, float: Real}
        fits = isinstance(given, tuple(wide.get(one, one) for one in kinds))
        huge = float in kinds and isinstance(given, int) and abs(given) >= 1 << 1000  # no float holds it
        if not fits or huge or (isinstance(given, bool) and bool not in kinds):
            told = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            raise DemiluneError(f"{field.name} = {given!r}: a value of type {told} was expected")
