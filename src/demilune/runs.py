"""The run folder: every stage of a run leaves a file here, and the next stage reads only that.

    experiment.json     the whole run as one value
    environment.json    versions, hardware, git
    metrics.jsonl       one line per epoch; the same bits whether or not the run was interrupted
    timing.jsonl        seconds and images per second of each epoch, which are not the same bits
    last.safetensors, best.safetensors          checkpoints: tensors, and their description as JSON in the header
    evaluations/<checkpoint>.json               a results.Evaluation
    evaluations/<checkpoint>.images.npz         per-image results
    evaluations/<checkpoint>.gallery.npz        example images
    curves/…                                    the same for what figures are made of, and surveys

Standard library only. Files are replaced whole (written beside, flushed to the disk, renamed), so that whatever
stands under its final name is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, final

from demilune.errors import DemiluneError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to, and put it in its place when all went well.

    Raises DemiluneError when the disk is full or the folder cannot be written; ``path`` then is as it was.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EISDIR if path.is_dir() else errno.ENOTSUP, "it is there, and no plain file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        try:
            yield beside
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.chmod(0o644)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise disk_refusal(path, error) from error


def disk_refusal(path: Path, error: OSError) -> DemiluneError:
    """Return the one line for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DemiluneError(f"the disk is full: {path} was not written and is as it was; free some space and resume")
    return DemiluneError(f"cannot write {path}: {error.strerror or error}; choose another folder or its permissions")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON atomically."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; refuses a missing or broken file, naming it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DemiluneError(f"{path} does not exist: {what} was expected there") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DemiluneError(f"{path} cannot be read as {what} ({error}): put the right file back") from None
    if not isinstance(value, dict):
        raise DemiluneError(f"{path} is no JSON object: {what} was expected there; put the right file back")
    return value


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep a folder, made where there is none, to this process; the lock leaves no file and ends with the process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY) if sys.platform != "win32" else -1
    except FileExistsError:
        raise DemiluneError(f"{path} is a file: name a folder for the run") from None
    except OSError as error:
        raise disk_refusal(path, error) from error
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DemiluneError(
            f"another process is training in {path}: wait for its end, or name another folder"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The names inside a run folder."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The run as one value."""
        return self.path / "experiment.json"

    @property
    def environment(self) -> Path:
        """Versions, hardware and git of the run's first start."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """One JSON line of seconds per epoch."""
        return self.path / "timing.jsonl"

    def checkpoint(self, name: str) -> Path:
        """Return the file of the checkpoint ``last`` or ``best``."""
        return self.path / f"{name}.safetensors"

    def evaluation(self, checkpoint: str, room: str = "evaluations") -> Path:
        """Return the JSON file of a checkpoint's evaluation; ``room`` "curves" holds those that figures are made of."""
        return self.path / room / f"{checkpoint}.json"

    def evaluations(self, room: str = "evaluations") -> list[Path]:
        """Return all evaluation files, "best" before "last"."""
        return sorted((self.path / room).glob("*.json"))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics, one dict per epoch."""
        return _lines(self.metrics)

    def read_timing(self) -> list[dict[str, Any]]:
        """Return the timings, one dict per epoch."""
        return _lines(self.timing)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            raise DemiluneError(f"{path} is broken at line {number}: resume the run to write it again") from None
    return found


def environment() -> dict[str, Any]:
    """Describe versions, hardware and the state of the source tree, for provenance."""
    versions = {}
    for package in ("demilune", "torch", "numpy", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "git": _git(),
        "command": " ".join(["demilune", *sys.argv[1:]]),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """Return commit and whether the tree was changed, where the package lies in a git checkout of its own."""
    here = Path(__file__).resolve().parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
