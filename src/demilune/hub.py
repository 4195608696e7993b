"""Runs on the Hugging Face hub: fetched as safetensors and JSON alone, and given with a model card.

Nothing that could run code is ever fetched: of a repository only the files that ``FETCHED`` names are taken, and each
is read and checked before the folder takes its name.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demilune.card import card, of_checkpoint
from demilune.checkpoint import Checkpoint, load_run
from demilune.errors import DemiluneError, needed, said
from demilune.results import Evaluation
from demilune.runs import RunFolder, disk_refusal, read_json, replacing, write_json

FETCHED = re.compile(
    r"experiment\.json|environment\.json|metrics\.jsonl|(best|last)\.safetensors|evaluations/[\w-][\w.@=-]*\.json"
)
"""Names of the files of a repository that are taken; others, pickles and programs among them, stay where they are."""

ORIGIN = "hub.json"
"""The file of a fetched run that says where it is from."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLACE = re.compile(r"(?<![\w.:/<])(?:~|/[\w.@+-]+|[A-Za-z]:[\\/]+[\w.@+-]+)(?:[\\/]+[\w.@+-]+)+")


def parsed(name: str) -> tuple[str, str]:
    """Return OWNER/NAME and the revision, main where none is named, of OWNER/NAME[@REVISION]."""
    repository, at, revision = name.partition("@")
    if not _NAME.fullmatch(repository) or ".." in name or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise DemiluneError(
            f"{name!r} is no repository of the hub: name it as OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag "
            "or a commit"
        )
    return repository, revision or "main"


def fetch(name: str, home: Path | None = None) -> Path:
    """Fetch a run from the hub, OWNER/NAME[@REVISION], and return its folder, ``home`` or NAME-COMMIT.

    A folder that has that very commit already is returned as it is; for a commit named in full the hub is not even
    asked. Raises DemiluneError for a repository that is not there, not a run of demilune's or damaged, for a network
    that fails, and for a folder that holds something else; nothing then is left behind.
    """
    repository, revision = parsed(name)
    if _COMMIT.fullmatch(revision) and _is_there(_home(repository, revision, home), repository, revision):
        return _home(repository, revision, home)
    hub = needed("hub", "huggingface_hub")
    with _asking(f"{repository}@{revision}", "fetched"):
        info = hub.HfApi().model_info(repository, revision=revision)
    commit, names = str(info.sha), [str(one.rfilename) for one in info.siblings or ()]
    folder = _home(repository, commit, home)
    if _is_there(folder, repository, commit):
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemiluneError(f"{folder} is there, and not {repository}@{commit[:8]}: name a new folder with --home")
    wanted = [one for one in names if FETCHED.fullmatch(one)]
    if "experiment.json" not in wanted or not any(one.endswith(".safetensors") for one in wanted):
        raise DemiluneError(
            f"{repository} is no run of demilune's (experiment.json and best.safetensors): for another's network fetch "
            "its weights, and declare it: demilune evaluate package.module:factory --weights FILE"
        )
    with _asking(f"{repository}@{revision}", "fetched"):
        snapshot = Path(hub.snapshot_download(repository, revision=commit, allow_patterns=wanted))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as aside:
            made = Path(aside, folder.name)
            for one in wanted:
                (made / one).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(snapshot / one, made / one)
            _check_run(made, wanted, f"{repository}@{commit[:8]}")
            sums = {one: _sha256(made / one) for one in wanted}
            write_json(made / ORIGIN, {"repository": repository, "commit": commit, "asked": revision, "files": sums})
            made.replace(folder)
    except OSError as error:
        raise disk_refusal(folder, error) from error
    return folder


def _home(repository: str, commit: str, home: Path | None) -> Path:
    return home or Path(f"{repository.partition('/')[2]}-{commit[:8]}")


def _is_there(folder: Path, repository: str, commit: str) -> bool:
    if not (folder / ORIGIN).exists():
        return False
    told = read_json(folder / ORIGIN, "where a fetched run is from")
    return (told.get("repository"), told.get("commit")) == (repository, commit)


def _check_run(folder: Path, names: Sequence[str], origin: str) -> None:
    """Refuse files that are not what their names say, or not of one run."""
    try:
        experiment = read_json(RunFolder(folder).experiment, "the experiment of a run")
        for name in names:
            if name.endswith(".safetensors"):
                _check_same(folder / name, load_run(folder / name), experiment)
            elif name.startswith("evaluations/"):
                Evaluation.from_json(read_json(folder / name, "an evaluation"))
        RunFolder(folder).read_metrics()
    except DemiluneError as error:
        told = str(error).replace(f"{folder}/", "")
        raise DemiluneError(f"what the hub has as {origin} is damaged: {told}; nothing was written") from None


def _check_same(file: Path, checkpoint: Checkpoint, experiment: object) -> None:
    if checkpoint.about["experiment"] != experiment:
        raise DemiluneError(f"{file} is of another run than experiment.json beside it")


def dressed(folder: Path, repository: str, licence: str, checkpoint: str, out: Path) -> list[str]:
    """Write what a repository of a run holds into ``out``, new or empty, and return the files' names.

    These are its checkpoint ``best`` or ``last`` as it is, its experiment, environment and metrics, the evaluations of
    that very checkpoint, and README.md, the model card. Raises DemiluneError where the folder is no run, lacks the
    checkpoint, or has no evaluation of it.
    """
    if parsed(repository) != (repository, "main"):
        raise DemiluneError(f"{repository!r} names a revision: a run is given to OWNER/NAME")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise DemiluneError(
            f"--licence {licence!r}: the hub's words are lower case, as mit, apache-2.0, cc-by-4.0, other"
        )
    run = RunFolder(folder)
    experiment = read_json(run.experiment, "the experiment of a run")
    file = run.checkpoint(checkpoint)
    found = load_run(file)
    _check_same(file, found, experiment)
    label = f"{found.about['checkpoint']} (step {found.about['step']})"
    taken = {
        run.experiment.name: run.experiment,
        run.environment.name: run.environment,
        run.metrics.name: run.metrics,
        file.name: file,
    } | {f"evaluations/{entry.path.name}": entry.path for entry in of_checkpoint(folder, label)}
    there = {name: path for name, path in taken.items() if path.exists()}
    strange = [name for name in there if not FETCHED.fullmatch(name)]
    if strange:
        raise DemiluneError(
            f"{folder / strange[0]}: a name of letters, digits and . @ = - alone can be fetched again: rename it"
        )
    text = card(folder, label, repository, licence, {name: _sha256(path) for name, path in there.items()})
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DemiluneError(f"{out} is there, and not empty: name a new folder")
    for name, path in there.items():
        with replacing(out / name) as beside:
            shutil.copyfile(path, beside)
    with replacing(out / "README.md") as beside:
        beside.write_text(text, encoding="utf-8")
    return [*there, "README.md"]


def places(folder: Path) -> list[str]:
    """Return in a line each the places of this machine that the text of a dressed folder names."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors":
            named = dict.fromkeys(_PLACE.findall(path.read_text(encoding="utf-8")))
            found += [f"{path.relative_to(folder).as_posix()} names {', '.join(named)}"] if named else []
    return found


def push(
    folder: Path, repository: str, licence: str, checkpoint: str, private: bool, say: Callable[[str], None]
) -> str:
    """Give a run to the hub as :func:`dressed` makes it, and return OWNER/NAME@COMMIT; ``say`` takes remarks before.

    A repository is made where there is none; what an earlier run had there and this one has not is deleted. Raises
    DemiluneError where it holds something that is no run, where ``private`` is asked of one that everybody sees, and
    where the hub refuses or the network fails.
    """
    hub = needed("hub", "huggingface_hub")
    with tempfile.TemporaryDirectory(prefix="demilune-") as aside:
        names = dressed(folder, repository, licence, checkpoint, Path(aside))
        for line in places(Path(aside)):
            say(line)
        with _asking(repository, "uploaded"):
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            info = api.model_info(repository)
            there = {str(one.rfilename) for one in info.siblings or ()} - {".gitattributes", "README.md"}
            if there and "experiment.json" not in there:
                raise DemiluneError(
                    f"{repository} holds something that is no run ({sorted(there)[0]}, …): name a new repository; "
                    "nothing was uploaded"
                )
            if private and not info.private:
                raise DemiluneError(
                    f"{repository} is there already, and everybody sees it: leave out --private, or name another; "
                    "nothing was uploaded"
                )
            done = api.upload_folder(
                repo_id=repository,
                folder_path=aside,
                commit_message=f"{checkpoint} checkpoint of a run of demilune's, with its evaluations",
                delete_patterns=sorted(one for one in there if FETCHED.fullmatch(one) and one not in names),
            )
    return f"{repository}@{done.oid}"


@contextmanager
def _asking(what: str, wanted: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line with the remedy."""
    try:
        yield
    except DemiluneError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_refusal(Path("the hub's cache"), error) from error
        raise _refusal(what, wanted, error) from error
    except Exception as error:  # the client's own, and those of the library that it speaks http with
        raise _refusal(what, wanted, error) from error


def _refusal(what: str, wanted: str, error: BaseException) -> DemiluneError:
    kinds = {one.__name__ for one in type(error).__mro__}
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if "GatedRepoError" in kinds:
        told = "its owner lets in only whom they admit: ask for access on its page, then hf auth login"
    elif "RevisionNotFoundError" in kinds:
        told = "the repository has no such revision: name a branch, a tag or a commit of it"
    elif "RepositoryNotFoundError" in kinds:
        told = "there is no such repository, or you may not see it: check the name, or hf auth login"
    elif "LocalTokenNotFoundError" in kinds or status in (401, 403):
        told = "the hub does not know you, or does not let you: hf auth login, with a token that may write"
    elif "HFValidationError" in kinds:
        told = f"the hub does not take the name ({said(error)})"
    else:
        told = f"the hub did not answer ({said(error)}): check the network, and run it again"
    return DemiluneError(f"{what} was not {wanted}: {told}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["FETCHED", "ORIGIN", "dressed", "fetch", "parsed", "places", "push"]
