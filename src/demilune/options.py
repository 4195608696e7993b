"""Command-line options made from frozen dataclasses: the dataclass is the configuration.

Every field becomes ``--section.field``; its type is the field's, its help the line ``field: …`` of the docstring. Only
what was given is returned, as nested plain values, to be laid over a preset.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NoReturn

from demilune.errors import DemiluneError


class Parser(argparse.ArgumentParser):
    """argparse, with refusals in one line and the nearest valid option."""

    def error(self, message: str) -> NoReturn:
        """Raise the refusal instead of printing usage."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        for word in re.findall(r"--[\w.-]+", message) if message.startswith("unrecognized") else ():
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            message += f"; did you mean {near[0]}?" if near else ""
            break
        raise DemiluneError(f"{message} (see {self.prog} --help)")


def number(text: str) -> float:
    """Return a number, which may be written as a fraction: 8/255."""
    try:
        over, _, under = text.partition("/")
        return float(over) / float(under) if under else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number (write 0.03 or 8/255)") from None


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list."""
    return tuple(number(part) for part in text.split(",") if part.strip())


def switch(text: str) -> bool:
    """Return true or false."""
    value = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return value


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number") from None
    if abs(value) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"{text[:40]} is too large: a whole number of at most 63 bits was expected")
    return value


def place(text: str) -> str:
    """Return the name of a file or folder, which an unset variable of the shell would leave empty."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def optional(kind: Any) -> Any:
    """Return the reader of a value that may be ``null``."""

    def read(text: str) -> Any:
        return None if text.lower() in ("null", "none") else kind(text)

    return read


def add_fields(parser: argparse.ArgumentParser, section: str, value: Any, only: Collection[str] | None = None) -> None:
    """Add ``--section.field`` for every field of a frozen value (or ``only`` some); its own values are shown as now."""
    group = parser.add_argument_group(f"{section}: {type(value).__name__}")
    _add(group, section, value, only)


def _add(group: argparse._ArgumentGroup, path: str, value: Any, only: Collection[str] | None = None) -> None:
    hints, helps = typing.get_type_hints(type(value)), field_help(type(value))
    for field in dataclasses.fields(value):
        if only is not None and field.name not in only:
            continue
        name, kind, now = f"{path}.{field.name}", hints[field.name], getattr(value, field.name)
        if dataclasses.is_dataclass(now):
            _add(group, name, now)
            continue
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "metavar": "VALUE"}
        text = helps.get(field.name, "").replace("%", "%%")
        if typing.get_origin(kind) is Literal:
            settings |= {"choices": typing.get_args(kind), "metavar": "|".join(typing.get_args(kind))}
        elif isinstance(kind, types.UnionType):
            inner = next(option for option in typing.get_args(kind) if option is not type(None))
            settings["type"] = optional(_reader(inner))
        else:
            settings["type"] = _reader(kind)
        group.add_argument(f"--{name}", dest=name, help=f"{text} (now {_shown(field.name, now)})".strip(), **settings)


def _reader(kind: Any) -> Any:
    return {float: number, bool: switch, int: whole, str: str}[kind]


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float):
        return levels(value) if name in ("eps", "step_size") else f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def levels(value: float) -> str:
    """Return a size in pixels of [0,1] as grey levels, 8/255, where those are whole."""
    grey = value * 255
    return f"{round(grey)}/255" if 0 < grey < 255 and abs(grey - round(grey)) < 1e-9 else f"{value:g}"


def field_help(kind: type) -> dict[str, str]:
    """Return what a docstring's ``field: …`` lines say of each field; indented lines go on with it."""
    found: dict[str, str] = {}
    names = {field.name for field in dataclasses.fields(kind)}
    current = None
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start and start[1] in names:
            current = start[1]
            found[current] = start[2]
        elif current and line.startswith("    "):
            found[current] += " " + line.strip()
        else:
            current = None
    return found


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def words(tree: Mapping[str, Any]) -> list[str]:
    """Return a configuration's content as the words one would type, so that it is read in one way only."""
    return [f"--{name}={_word(value)}" for name, value in flat(tree).items()]


def _word(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def scan(argv: Sequence[str], flags: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words that are no options, and what the options were given, before any of them is known.

    Every option but the ``flags`` takes one value.
    """
    loose, options, waiting = [], dict[str, str](), iter(argv)
    for word in waiting:
        if not word.startswith("-") or word in flags:
            loose += [] if word in flags else [word]
            continue
        name, equals, value = word.partition("=")
        options[name.lstrip("-")] = value if equals else next(waiting, "")
    return loose, options


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with others laid over them."""
    merged = dict(base)
    for name, value in over.items():
        inner = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[name] = overlaid(inner, value) if both else value  # type: ignore[arg-type]
    return merged


def names(text: str) -> Sequence[str]:
    """Return the names of a comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]
