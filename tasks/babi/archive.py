"""Where the bAbI files lie, and their bytes: the official archive or the folder that it unpacks to, unchanged."""

import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "tasks_1-20_v1-2.tar.gz"
FOLDER = "tasks_1-20_v1-2"
SIZES = {"1k": "en", "10k": "en-10k"}  # training questions a task -> folder in the archive
SPLITS = ("train", "test")

_PROJECT = Path(__file__).resolve().parents[2]
_FILE = re.compile(r"qa([0-9]{1,2})_[^/]*_(train|test)\.txt")


class SourceFile(NamedTuple):
    """path: for messages; data: the bytes of the file."""

    path: str
    data: bytes


def read_files(data_dir: str | os.PathLike, size: str, tasks: Iterable[int]) -> dict[tuple[int, str], SourceFile]:
    """The train and test files of `tasks`, keyed by (task, "train" or "test"); nothing is unpacked to disk.

    data_dir: a folder that holds `tasks_1-20_v1-2/` or, looked at second, `tasks_1-20_v1-2.tar.gz`; or the folder
        `tasks_1-20_v1-2/` itself. See `resolve` for relative paths.
    size: "1k" or "10k".

    Raises:
        FileNotFoundError: no data there, or a file of one of the tasks is missing.
        ValueError: the archive cannot be read.
    """
    place = _locate(resolve(data_dir))
    wanted = {(task, split) for task in tasks for split in SPLITS}
    members = _archive_members if place.is_file() else _folder_members
    found = dict(members(place, SIZES[size], wanted))
    if missing := sorted(wanted - found.keys()):
        task, split = missing[0]
        raise FileNotFoundError(
            f"{place} has no file {SIZES[size]}/qa{task}_*_{split}.txt: put the unchanged official {ARCHIVE} there."
        )
    return {key: found[key] for key in sorted(found)}


def resolve(data_dir: str | os.PathLike) -> Path:
    """The absolute path of `data_dir`; a relative one that does not exist counts from the root of the project."""
    given = Path(data_dir).expanduser()
    return given.resolve() if given.exists() else (_PROJECT / given).resolve()


def _locate(root: Path) -> Path:
    """The folder `tasks_1-20_v1-2`, under whatever name, or the archive."""
    for folder in (root, root / FOLDER):
        if any((folder / name).is_dir() for name in SIZES.values()):
            return folder
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    raise FileNotFoundError(
        f"no bAbI data in {root}: put {ARCHIVE} or the folder {FOLDER}/ there; it is the official archive of "
        "Facebook AI Research's bAbI tasks, from the bAbI project page (research.facebook.com/downloads/babi)."
    )


def _key(name: str) -> tuple[int, str] | None:
    match = _FILE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def _folder_members(
    root: Path, folder: str, wanted: set[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str], SourceFile]]:
    for path in sorted((root / folder).glob("qa*.txt")):
        if (key := _key(path.name)) in wanted:
            yield key, SourceFile(str(path), path.read_bytes())


def _archive_members(
    archive: Path, folder: str, wanted: set[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str], SourceFile]]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                prefix, _, base = name.rpartition("/")
                if prefix == f"{FOLDER}/{folder}" and member.isfile() and (key := _key(base)) in wanted:
                    yield key, SourceFile(f"{archive}/{name}", tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{archive} cannot be read ({error}): get the official {ARCHIVE} again.") from error
