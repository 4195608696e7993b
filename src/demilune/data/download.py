"""Fetching an archive and unpacking it: resumable, verified, and never half there under its final name."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path, PurePosixPath

from demilune.errors import DemiluneError

Progress = Callable[[int, int], None]
_CHUNK = 1 << 18


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unwritable(path: Path, error: OSError) -> DemiluneError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DemiluneError(f"the disk is full at {path}: free some space and run it again to resume")
    return DemiluneError(f"cannot write {path} ({error.strerror or error}): give another folder")


def fetch(url: str, path: Path, md5: str, progress: Progress | None = None) -> None:
    """Download ``url`` to ``path``, or finish the download that an earlier call left in ``path``.part.

    ``progress(done, total)`` is told of bytes; total is 0 where the server does not say. A file of another
    MD5 is deleted and refused; ``path`` appears only complete and verified. Raise :class:`DemiluneError` for
    that, for a failing network (the part is kept and the next call resumes it), and for a full disk.
    """
    if not url.startswith(("https://", "http://")):
        raise DemiluneError(f"cannot download {url!r}: it must begin with https:// or http://")
    if path.exists():
        if _md5(path) == md5:
            return
        raise DemiluneError(f"{path} is there, but damaged: its md5 is not {md5}; delete it and run it again")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise _unwritable(part, error) from error
    try:
        _transfer(url, part, progress)
    finally:
        if part.stat().st_size == 0:
            part.unlink()  # nothing came: there is nothing to resume
    found = _md5(part) if part.exists() else "of nothing"
    if found != md5:
        # Nothing tells which byte is wrong, so nothing of it can be resumed.
        part.unlink(missing_ok=True)
        raise DemiluneError(
            f"what {url} sent has the md5 {found}, expected {md5}: it was deleted; run it again, or name "
            "another mirror in DEMILUNE_MIRROR"
        )
    part.replace(path)


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Append to ``part`` what it lacks of ``url``."""
    done = part.stat().st_size
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=60) as response:
            # A server that does not know ranges sends everything (200): start over.
            begin = done if response.status == 206 else 0
            if not (response.headers.get("Content-Range") or f"bytes {begin}-").startswith(f"bytes {begin}-"):
                raise http.client.HTTPException(f"the server sent another range than bytes {begin}-")
            length = int(response.headers.get("Content-Length") or 0)
            total = begin + length if length else 0
            done = begin
            with part.open("r+b") as file:
                file.truncate(begin)
                file.seek(begin)
                while chunk := response.read(_CHUNK):
                    try:
                        file.write(chunk)
                        file.flush()
                    except OSError as error:
                        raise _unwritable(part, error) from error
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # the part has every byte, or too many: its md5 will tell
            raise DemiluneError(
                f"cannot download {url}: the server answers {error.code} {error.reason}; check the address, "
                "or name another mirror in DEMILUNE_MIRROR"
            ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DemiluneError(
            f"the download of {url} stopped after {done:,} bytes ({reason}): run it again to resume"
        ) from error
    if done < total:
        raise DemiluneError(f"the download of {url} stopped at {done:,} of {total:,} bytes: run it again to resume")


def unpack(archive: Path, root: Path, members: Collection[str]) -> None:
    """Unpack ``members``, paths ``folder/file`` of a tar archive, below ``root``; other files are left in it.

    A member ``folder/`` is everything below that folder. Each folder appears at once, when all its files are
    written. Raise :class:`DemiluneError` where it is there already; where the archive is damaged or lacks a member;
    and where it holds an absolute path, a path through ``..`` or a link, wanted or not, because then it is not what
    it claims to be; and for a full disk.
    """
    folders = sorted({PurePosixPath(member).parts[0] for member in members})
    for folder in folders:
        if (root / folder).exists():
            raise DemiluneError(f"{root / folder} is there already: move it away or delete it, then run it again")
    wholes = tuple(member for member in members if member.endswith("/"))
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as aside,
            tarfile.open(archive, "r:*") as tar,
        ):
            entries = [entry for entry in map(_plain, tar) if entry.isfile()]
            wanted = [entry for entry in entries if entry.name in members or entry.name.startswith(wholes)]
            names = {entry.name for entry in wanted}
            missing = [each for each in members if each not in names and not _below(each, wholes, names)]
            if missing:
                raise DemiluneError(f"{archive} lacks {', '.join(sorted(missing))}: delete it and run it again")
            tar.extractall(aside, wanted, filter="data")
            for folder in folders:
                Path(aside, folder).replace(root / folder)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DemiluneError(f"{archive} is damaged ({error}): delete it and run it again") from error
    except OSError as error:
        raise _unwritable(root, error) from error


def _below(member: str, wholes: Collection[str], names: Collection[str]) -> bool:
    return member in wholes and any(name.startswith(member) for name in names)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or not (entry.isfile() or entry.isdir()):
        raise DemiluneError(f"the archive holds {entry.name!r}, which is no plain file below its folder: refused")
    return entry
