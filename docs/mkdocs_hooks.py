"""What the site needs besides mkdocs: links to files that are no pages, and docstrings as Markdown."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, final

import griffe

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page's text with links out of the site as GitHub has them: to the repository, else as plain words.

    A link to a page, or to nothing, stays as it is: mkdocs follows the one and complains of the other.
    """

    def outward(found: re.Match[str]) -> str:
        text, target, _ = found.groups()
        if re.match(r"[a-z]+:", target):
            return found[0]
        place = _joined(PurePosixPath("docs", page.file.src_uri).parent, target)
        inside = place.removeprefix("docs/")
        shown = place.startswith("docs/") and files.get_file_from_path(inside) is not None
        if shown and not files.get_file_from_path(inside).inclusion.is_excluded():
            return found[0]
        if not (ROOT / place).exists():
            return found[0]
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{place})" if config.repo_url else text

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(outward, part) for part in parts)


def _joined(folder: PurePosixPath, target: str) -> str:
    """Return a path within the repository, its dots resolved."""
    parts = list[str]()
    for part in (folder / target).parts:
        if part == "..":
            parts = parts[:-1] if parts else [".."]
        else:
            parts.append(part)
    return "/".join(parts)


@final
class Docstrings(griffe.Extension):
    """Turns the docstrings, plain text with `field: …` lines, into Markdown that says the same."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            fields = {name for name, one in obj.members.items() if one.is_attribute} if obj.is_class else set[str]()
            obj.docstring.value = as_markdown(obj.docstring.value, fields)


def as_markdown(text: str, fields: set[str]) -> str:
    """Return a docstring as Markdown: fields as a list, roles as code, signs that mean something escaped."""
    lines, open_field = list[str](), False
    for line in text.splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start and start[1] in fields:
            lines += [] if open_field else [""]
            lines.append(f"- `{start[1]}`: {_escaped(start[2])}")
            open_field = True
        elif open_field and line.startswith("    "):
            lines.append(f"  {_escaped(line.strip())}")
        else:
            open_field = False
            lines.append(line if line.startswith("    ") else _escaped(line))  # an indented line is an equation
    return "\n".join(lines)


def _escaped(line: str) -> str:
    """Return words whose stars, underscores and brackets are meant as they stand, code left alone."""
    line = ROLE.sub(lambda found: f"`{found[1].removeprefix('demilune.')}`", line)
    parts = re.split(r"(``.*?``|`.*?`)", line)
    plain = (re.sub(r"([*_\[\]\\])", r"\\\1", part.replace("<", "&lt;")) for part in parts)
    return "".join(part if part.startswith("`") else safe for part, safe in zip(parts, plain, strict=True))
