"""Shell completion: a script that holds every command, preset and option, so that completing starts no Python."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from demilune.experiment import VARIANTS, build
from demilune.options import add_fields
from demilune.presets import PRESETS

LISTS = ("methods", "moves", "attacks", "models", "data", "schedules", "averages", "presets")


def script(shell: str, commands: Sequence[str]) -> str:
    """Return the script for bash, zsh or fish."""
    words = {name: candidates(name) for name in commands}
    if shell == "fish":
        head = [f"complete -c demilune -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
        tail = [
            f"complete -c demilune -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words[name])}'"
            for name in commands
        ]
        return "\n".join(head + tail) + "\n"
    cases = "\n".join(f"    {name}) words='{' '.join(words[name])}' ;;" for name in commands)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}_demilune() {{
  local words=''
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(commands)} --help --version' -- "${{COMP_WORDS[1]}}"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _demilune demilune
"""


def candidates(command: str) -> list[str]:
    """Return what can follow a command: presets, names, and the options of every class there is."""
    if command in ("train", "show", "stationary"):
        extra = {"train": ["--out", "--resume", "--track"], "stationary": ["--out", "--ranges"]}.get(command, [])
        return [*PRESETS, "--config", "--name", "--seed", *extra, *(f"--{s}" for s in VARIANTS), *fields()]
    if command == "evaluate":
        own = ["attacks", "checkpoint", "limit", "split", "batch", "step_ratio", "seed", "out"]
        mine = ("--data.", "--ball.", "--runtime.")
        return [f"--{name}" for name in own] + [name for name in fields() if name.startswith(mine)]
    if command == "watch":
        return ["--once"]
    if command == "label":
        return ["--images", "--out", "--checkpoint", "--batch"]
    return {
        "list": list(LISTS),
        "data": [*VARIANTS["data"], "--download", "--root", "--url"],
        "report": ["--out"],
        "compare": ["--row", "--baseline", "--out"],
    }.get(command, ["bash", "zsh", "fish"])


def fields() -> list[str]:
    """Return the options of all fields, of whichever class."""
    parser = argparse.ArgumentParser(conflict_handler="resolve", add_help=False)
    run = PRESETS["digits-rat"].experiment
    for section, table in VARIANTS.items():
        for kind in table.values():
            add_fields(parser, section, build(kind, {}))
    for section in ("ball", "training", "runtime"):
        add_fields(parser, section, getattr(run, section))
    found = [option for action in parser._actions for option in action.option_strings]
    return sorted(set(found))
