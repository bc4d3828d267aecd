"""Locates and reads the bAbI files: the official archive, or the folder that it unpacks to, unchanged."""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "tasks_1-20_v1-2.tar.gz"
FOLDER = "tasks_1-20_v1-2"
SIZES = {"1k": "en", "10k": "en-10k"}  # training questions per task -> folder in the archive
SPLITS = ("train", "test")
VARIABLE = "MNM_BABI_DIR"

_FILE = re.compile(r"qa([0-9]{1,2})_[^/]*_(train|test)\.txt")
_REMEDY = (
    f"name the folder that holds {ARCHIVE} or {FOLDER}/ as data_dir (--config.task.data_dir=DIR to train, "
    f"--data_dir=DIR to evaluate or ask) or in the environment variable {VARIABLE}; {ARCHIVE} is the official archive "
    "of Facebook AI Research's bAbI tasks, from the bAbI project page (research.facebook.com/downloads/babi)."
)

FileKey = tuple[int, str]  # task, split


class SourceFile(NamedTuple):
    """A file of the data set.

    Attributes:
      path: its path, for messages.
      data: its bytes.
    """

    path: str
    data: bytes


def read_files(data_dir: str | os.PathLike, size: str, tasks: Iterable[int]) -> dict[FileKey, SourceFile]:
    """Reads the train and test files of tasks; nothing is unpacked to disk.

    Args:
      data_dir: see `data_folder`.
      size: "1k" or "10k".
      tasks: numbers of tasks, 1 to 20.

    Returns:
      The files by (task, split), split being "train" or "test".

    Raises:
      FileNotFoundError: no data, or a file of one of the tasks is missing.
      ValueError: the archive is damaged, or two files hold the same task and split.
    """
    place = _locate(data_folder(data_dir))
    wanted = {(task, split) for task in tasks for split in SPLITS}
    members = _archive_members if place.is_file() else _folder_members
    found: dict[FileKey, SourceFile] = {}
    for key, file in members(place, SIZES[size], wanted):
        if key in found:
            raise ValueError(
                f"{found[key].path} and {file.path} both hold task {key[0]}, split {key[1]!r}: keep the official one."
            )
        found[key] = file
    if missing := sorted(wanted - found.keys()):
        task, split = missing[0]
        raise FileNotFoundError(
            f"{place} has no file {SIZES[size]}/qa{task}_*_{split}.txt: put the unchanged official {ARCHIVE} there."
        )
    return {key: found[key] for key in sorted(found)}


def data_folder(data_dir: str | os.PathLike) -> Path:
    """Returns the folder of the data as an absolute path.

    Args:
      data_dir: a folder that holds the folder `tasks_1-20_v1-2/` or the archive `tasks_1-20_v1-2.tar.gz` (the folder
        is preferred), or the folder `tasks_1-20_v1-2/` itself. "": the environment variable MNM_BABI_DIR.

    Raises:
      FileNotFoundError: neither the argument nor the variable names a folder.
    """
    given = data_dir or os.environ.get(VARIABLE)
    if not given:
        raise FileNotFoundError(f"no folder of bAbI data is given: {_REMEDY}")
    return Path(given).expanduser().resolve()


def _locate(root: Path) -> Path:
    """Returns the folder `tasks_1-20_v1-2`, which may have another name, or the archive."""
    for folder in (root, root / FOLDER):
        if any((folder / name).is_dir() for name in SIZES.values()):
            return folder
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    raise FileNotFoundError(f"no bAbI data in {root}: {_REMEDY}")


def _key(name: str) -> FileKey | None:
    match = _FILE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def _folder_members(root: Path, folder: str, wanted: set[FileKey]) -> Iterator[tuple[FileKey, SourceFile]]:
    for path in sorted((root / folder).glob("qa*.txt")):
        key = _key(path.name)
        if key in wanted:
            yield key, SourceFile(path=str(path), data=path.read_bytes())


def _archive_members(archive: Path, folder: str, wanted: set[FileKey]) -> Iterator[tuple[FileKey, SourceFile]]:
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                prefix, _, base = name.rpartition("/")
                key = _key(base)
                if prefix == f"{FOLDER}/{folder}" and key in wanted and (file := tar.extractfile(member)):
                    yield key, SourceFile(path=f"{archive}/{name}", data=file.read())
            while content.read(2**20):  # the checksum is at the end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{archive} cannot be read ({error}): get the official {ARCHIVE} again.") from error
