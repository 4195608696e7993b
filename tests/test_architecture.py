"""The rules of docs/design.md that a machine can hold: arrows point down, values are frozen, start-up is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "demilune"
FILES = sorted(PACKAGE.rglob("*.py"))

ALLOWED = {
    # room: what of ours it may import
    "errors": set(),
    "core": {"errors"},
    "attacks": {"core", "errors"},
    "methods": {"core", "attacks", "errors"},
    "moves": {"core", "errors"},
    "models": {"core", "errors"},
    "data": {"core", "errors"},
    "schedules": {"errors"},
    "kernels": {"errors"},
    "runtime": {"attacks", "kernels", "errors"},
    "results": {"errors"},
    "runs": {"errors"},
    "options": {"errors"},
    "console": set(),
    "watch": {"console", "runs", "errors"},
    "track": {"options", "runs", "errors"},
    "papers": {"errors"},
    "checkpoint": {"errors", "runs"},
    "experiment": {"core", "attacks", "methods", "moves", "models", "data", "schedules", "runtime", "errors"},
    "presets": {"core", "attacks", "methods", "moves", "models", "data", "schedules", "runtime", "experiment"},
    "train": {
        "core", "attacks", "methods", "moves", "models", "data", "experiment", "runtime", "runs", "checkpoint",
        "track", "errors",
    },
    "paired": set(),
    "diagnosis": {"paired", "results"},
    "surveys": {"results", "errors"},
    "foreign": {"errors"},
    "evaluate": {
        "core", "attacks", "methods", "models", "data", "experiment", "foreign", "runtime", "runs", "checkpoint",
        "results", "paired", "diagnosis", "surveys", "options", "console", "errors",
    },
    "export": {"core", "attacks", "foreign", "runs", "errors"},
    "card": {"report", "results", "runs", "errors"},
    "hub": {"card", "checkpoint", "results", "runs", "errors"},
    "study": {"experiment", "moves", "report", "runs", "options", "errors"},
    "report": {"results", "paired", "diagnosis", "surveys", "runs", "papers", "errors"},
    "ledger": {"diagnosis", "results", "surveys", "runs", "errors"},
    "comparison": {"paired", "diagnosis", "report", "runs", "errors"},
    "pages": {"ledger", "paired", "report", "results", "surveys"},
    "automatic": {"core", "experiment", "kernels", "methods", "models", "runtime", "train"},
    "suites": {
        "automatic",
        "core", "attacks", "methods", "moves", "models", "data", "schedules", "runtime", "experiment", "presets",
        "train", "evaluate", "checkpoint", "runs", "results", "surveys", "report", "papers", "study", "options",
        "ledger", "pages", "errors",
    },
    "completion": {"experiment", "presets", "options"},
}  # fmt: skip
EDGES = {"cli", "cli_reproduce", "cli_interop", "__main__", "__init__"}
NO_TORCH = {
    "errors",
    "results",
    "paired",
    "comparison",
    "diagnosis",
    "surveys",
    "runs",
    "report",
    "papers",
    "options",
    "console",
    "watch",
    "track",
    "schedules",
    "cli",
    "cli_reproduce",
    "cli_interop",
    "card",
    "ledger",
    "pages",
    "__main__",
}
PLAIN_CLASSES = {
    "Parser": "argparse's own hook for refusals is a method",
    "Counted": "counts",
    "Book": "fills up as an evaluation goes on",
    "Line": "a context manager",
    "Pane": "a context manager",
    "Watcher": "a context manager, which remembers what it was told",
    "Convolution": "torch calls its two methods",
    "_PreciseHead": "a context manager of torch's kind",
    "Intercepted": "a context manager of torch's kind",
    "_Kind": "pickle calls its methods",
    "_Array": "pickle calls its methods",
    "_Reader": "pickle's own hook for what is admitted is a method",
}


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "demilune":  # from demilune import papers
                found += [f"demilune.{alias.name}" for alias in node.names if (PACKAGE / alias.name).is_dir()]
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    here = room(path)
    if here in EDGES:
        return
    assert here in ALLOWED, f"{here} is in no layer: add it to the table, and to docs/design.md"
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("demilune.")}
    assert ours - {here} <= ALLOWED[here]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_without_torch_do_not_name_it(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for n in top if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in top if isinstance(n, ast.ImportFrom)]
    if room(path) in NO_TORCH:
        assert not any(name.split(".")[0] == "torch" for name in names)
    assert not any(name.split(".")[0] in ("torchvision", "timm") for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_classes_are_abstract_or_final_and_values_are_frozen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "super":
                assert ast.unparse(node) == "super()"
                continue  # nn.Module's own __init__, checked below
            assert node.func.id not in ("hasattr", "eval", "exec"), f"{path}: {node.func.id}"
        if isinstance(node, ast.FunctionDef):
            assert node.args.kwarg is None, f"{path}: {node.name} takes **{node.args.kwarg}"
        if not isinstance(node, ast.ClassDef):
            continue
        bases = {ast.unparse(base).split(".")[-1].split("[")[0] for base in node.bases}
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        supers = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == "super"]
        assert not supers or bases == {"Module"}, f"{path}: {node.name} calls super()"
        if bases & {"ABC", "Protocol", "NamedTuple", "Exception"} or node.name in PLAIN_CLASSES:
            continue
        if bases == {"Attack"} and node.name == "IterativeAttack":
            continue  # the one abstract class that refines another
        assert "final" in decorators, f"{path}: {node.name} is neither abstract nor final"
        if bases == {"Module"}:
            continue
        values = [d for d in decorators if d.startswith("dataclass(")]
        assert values and "frozen=True" in values[0] and "slots=True" in values[0], f"{path}: {node.name} is not frozen"


@pytest.mark.parametrize("path", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda path: path.name)
def test_a_method_is_short_enough_to_read_beside_its_paper(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize(
    "code",
    [
        "import demilune",
        "from demilune.__main__ import main; main(['--help'])",
        "import demilune.report, demilune.results, demilune.runs, demilune.papers",
    ],
)
def test_starting_up_does_not_import_torch(code: str) -> None:
    ending = "\nfinally:\n    assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass{ending}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
