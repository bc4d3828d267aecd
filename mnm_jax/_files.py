"""Files and folders that are complete or absent: flushed to the disk before they get their name, verified, locked."""

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

_DIGESTS = "files.json"
LOCK = ".lock"
_POLL_SECONDS = 0.1
_held: dict[pathlib.Path, int] = {}  # folders that this process has locked, and the thread that did


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yields a new file, which replaces `path` when the block has ended without an error; its folder is created.

    Raises:
      OSError: if the file could not be written; the message names it, and an earlier file of that name is unchanged.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named_errors(path: pathlib.Path) -> Iterator[None]:
    """Adds the path and the remedy to an OSError of the block: the error of a full disk names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} could not be written: {error.strerror or error}. Free space on the disk or check its permissions, "
            "and run the same command again."
        ) from error


def seal_folder(folder: pathlib.Path, **content: Any) -> None:
    """Writes `files.json` with the SHA-256 of every file of a folder, and flushes all of them to the disk."""
    text = json.dumps({**content, "files": _digests(folder)}, indent=1)
    (folder / _DIGESTS).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def rename_folder(folder: pathlib.Path, name: pathlib.Path) -> None:
    """Renames a folder, and flushes the new name to the disk."""
    folder.rename(name)
    _sync(name.parent)


def find_damage(folder: pathlib.Path, **content: Any) -> str | None:
    """Returns a description of the damage to a sealed folder, with the file's name; None if the folder is whole.

    Args:
      folder: the folder.
      **content: values that `files.json` must hold, if it has an entry of that name.
    """
    try:
        sealed = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        expected = dict(sealed.get("files", sealed))  # without "files": as earlier versions wrote it
        found = _digests(folder)
        for name, digest in expected.items():
            if found.get(name) != digest:
                return f"{name} {'has changed' if name in found else 'is missing'}"
        for name, value in content.items():
            if sealed.get(name, value) != value:
                return f"{_DIGESTS} belongs to {name} {sealed[name]}"
    except (OSError, ValueError, TypeError, AttributeError):  # missing, not JSON, or other JSON
        return f"{_DIGESTS} is missing or unreadable"
    return None if expected else f"{_DIGESTS} lists no file"


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder, which is created if missing; the system releases it when the process ends.

    A thread may lock the same folder again inside of the block. Where the file system has no locks, a warning names
    the folder.

    Args:
      folder: the folder; its file `.lock` holds process, host and time of the holder.
      wait: seconds to wait until another process releases the lock.

    Raises:
      BlockingIOError: if another process, or another thread, holds the lock.
      OSError: if the file cannot be written.
    """
    folder = folder.absolute()
    key, thread = folder.resolve(), threading.get_ident()
    if _held.get(key) == thread:
        yield
        return
    with named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait
        while not _try_lock(descriptor, folder):
            if time.monotonic() >= deadline:
                holder = _holder(descriptor)
                raise BlockingIOError(f"{folder} is in use by {holder}: wait until it ends, or take another folder.")
            time.sleep(_POLL_SECONDS)
        _held[key] = thread
        _describe(descriptor, {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
        try:
            yield
        finally:
            _describe(descriptor, None)
            del _held[key]
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, folder: pathlib.Path) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, ImportError) as error:
        from absl import logging

        logging.warning("%s cannot be locked (%s). Do not use it in two processes at once.", folder, error)
    return True


def _describe(descriptor: int, holder: dict[str, Any] | None) -> None:
    """Replaces the content of a lock's file; on a full disk the file stays empty, and the lock is held."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() if holder else b"", 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {holder['process']} on host {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, LookupError):  # the holder has not written it yet
        return "another process"


def _sync(path: pathlib.Path) -> None:
    """Flushes a file, or the names in a folder; the error of a file system that cannot flush folders is ignored."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _digests(folder: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != _DIGESTS:
            with file.open("rb") as stream:
                digests[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests
