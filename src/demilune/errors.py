"""Refusals: one clear line that names what was given, what is possible and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DemiluneError(Exception):
    """Bad input or a broken file; the command line prints the message alone and exits with code 2."""


def unknown(kind: str, given: str, names: Iterable[str]) -> DemiluneError:
    """Return the refusal of an unknown name, with the nearest valid one."""
    valid = sorted(names)
    near = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return DemiluneError(f"unknown {kind} {given!r}: {hint}possible are {', '.join(valid)}")
