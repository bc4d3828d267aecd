"""The encoded data set on disk: built once for each set of source files and options, then only opened."""

import contextlib
import hashlib
import importlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from tasks.babi.archive import SourceFile, read_files, resolve
from tasks.babi.encode import WORDS
from tasks.babi.vocabulary import Vocabulary

FORMAT = 3  # raise it when the records change: entries of another format are then never opened


class Options(NamedTuple):
    """What decides the records, next to the source files: the fields of `tasks.babi.Babi` of the same names."""

    tasks: tuple[int, ...]
    size: str
    max_sentences: int
    max_sentences_task3: int


class Split(NamedTuple):
    """records: random access to readings. Of each, `[N]`: steps: its rows `T`; questions: how many; tasks: its task."""

    records: Sequence[Mapping[str, Any]]
    steps: np.ndarray
    questions: np.ndarray
    tasks: np.ndarray


class Dataset(NamedTuple):
    """counts: how often the training stories use each word id. splits: "train", "test" and, where a file has ten
    stories or more, "valid"."""

    vocabulary: Vocabulary
    counts: np.ndarray
    splits: dict[str, Split]


def open_dataset(data_dir: str, cache_dir: str, options: Options) -> Dataset:
    """Opens the entry of `cache_dir` that belongs to the files in `data_dir`, and builds it first if there is none.

    An entry is built in a folder of its own and renamed when it is whole, so a build that was cut short is never
    taken for one; whatever it left behind lies in `.building-*` and may be deleted.

    Raises:
        FileNotFoundError, ValueError: see `tasks.babi.archive.read_files` and `tasks.babi.parse.parse`.
        ImportError: the extra packages are not installed.
    """
    files = read_files(data_dir, options.size, options.tasks)
    _require_extra()
    entry = Path(cache_dir).expanduser() / "babi" / _fingerprint(files, options)
    if not entry.exists():
        _build(entry, data_dir, files, options)
    return _read(entry)


def _require_extra() -> None:
    for package in ("array_record", "grain", "tensorflow_datasets"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the bAbI task needs {package}: pip install mnm_jax[data]") from error


def _fingerprint(files: Mapping[tuple[int, str], SourceFile], options: Options) -> str:
    """The same for the archive and for the folder it unpacks to; any other byte or option gives another one."""
    parts = [[*key, hashlib.sha256(file.data).hexdigest()] for key, file in files.items()]
    text = json.dumps([FORMAT, WORDS, options, parts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _build(entry: Path, data_dir: str, files: Mapping[tuple[int, str], SourceFile], options: Options) -> None:
    import tensorflow_datasets as tfds

    from tasks.babi.builder import BabiConfig, BabiQa

    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent) as folder:
        config = BabiConfig(name=entry.name, **options._asdict())
        builder = BabiQa(data_dir=folder, config=config)
        logging.info("Encoding the bAbI stories into %s.", entry)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of a download, and names the temporary folder
            builder.download_and_prepare(
                download_dir=f"{folder}/downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=resolve(data_dir), try_download_gcs=False),
            )
        try:
            os.rename(builder.data_path, entry)
        except OSError:
            if not entry.exists():  # else another process built the same entry first, and its files serve as well
                raise


def _read(entry: Path) -> Dataset:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(entry)
    metadata = builder.info.metadata
    splits = {
        name: Split(builder.as_data_source(name), *(np.asarray(metadata[field][name]) for field in Split._fields[1:]))
        for name in metadata["steps"]
    }
    vocabulary = Vocabulary(tuple(metadata["words"]), tuple(metadata["answers"]))
    return Dataset(vocabulary, np.asarray(metadata["counts"]), splits)
