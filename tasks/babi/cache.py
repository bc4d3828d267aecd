"""The encoded data set on disk: built once for each set of source files and options, then only opened.

Shape letter: `N` records of a split.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from mnm_jax._files import find_damage, lock_folder, named_errors, seal_folder
from tasks.babi.archive import FileKey, SourceFile, data_folder, read_files
from tasks.babi.encode import WORDS
from tasks.babi.vocabulary import Vocabulary

FORMAT = 4  # raise it when the records change: entries of another format are never opened

_WAIT_SECONDS = 600.0


class Options(NamedTuple):
    """The options that the records depend on besides the source files; fields of `tasks.babi.Babi`."""

    tasks: tuple[int, ...]
    size: str
    max_sentences: int
    max_sentences_task3: int
    apart: bool = False


class Records(Protocol):
    """Random access to the records of a split, as TFDS data sources provide it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Mapping[str, Any]]: ...


class Split(NamedTuple):
    """A split of the data set.

    Attributes:
      records: its readings.
      steps: number of rows of each record, `[N]`.
      questions: number of questions of each record, `[N]`.
      tasks: task of each record, `[N]`.
    """

    records: Records
    steps: np.ndarray
    questions: np.ndarray
    tasks: np.ndarray


class Dataset(NamedTuple):
    """The whole data set.

    Attributes:
      vocabulary: words and answers.
      counts: uses of each word id in the training stories, `[words]`.
      splits: "train", "test" and, if a file has ten stories or more, "valid".
    """

    vocabulary: Vocabulary
    counts: np.ndarray
    splits: dict[str, Split]


def open_dataset(data_dir: str, cache_dir: str, options: Options) -> Dataset:
    """Opens the entry of `cache_dir` for the files in `data_dir`; builds it first if there is none.

    An entry is built in a temporary folder and renamed when it is complete, so an interrupted build is never opened. An
    interrupted build leaves a folder `.building-*`, which may be deleted. A damaged entry is named in a warning and
    built again.

    Args:
      data_dir: see `tasks.babi.archive.data_folder`.
      cache_dir: the folder of the cache.
      options: the options of the records.

    Raises:
      FileNotFoundError: see `tasks.babi.archive.read_files`.
      ValueError: damaged files; see `tasks.babi.archive.read_files` and `tasks.babi.parser.parse`.
      ImportError: the packages of `pip install mnm_jax[data]` are not installed.
    """
    files = read_files(data_dir, options.size, options.tasks)
    _require_packages()
    entry = Path(cache_dir).expanduser() / "babi" / _fingerprint(files, options)
    if not entry.exists():
        _build(entry, data_dir, options)
    elif find_damage(entry):
        with lock_folder(entry.parent, wait=_WAIT_SECONDS):  # another process may be building it again
            if problem := find_damage(entry):
                logging.warning("The encoded stories in %s are damaged (%s); they are built again.", entry, problem)
                shutil.rmtree(entry)
                _build(entry, data_dir, options)
    return _read(entry)


def _require_packages() -> None:
    for package in ("array_record", "grain", "tensorflow_datasets"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(f"the bAbI task needs {package}: pip install mnm_jax[data]") from error


def _fingerprint(files: Mapping[FileKey, SourceFile], options: Options) -> str:
    """Returns the name of an entry: the same for the archive and its folder, different for other bytes or options."""
    parts = [[*key, hashlib.sha256(file.data).hexdigest()] for key, file in files.items()]
    text = json.dumps([FORMAT, WORDS, options, parts])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _build(entry: Path, data_dir: str, options: Options) -> None:
    import tensorflow_datasets as tfds

    from tasks.babi.builder import BabiConfig, BabiQa

    entry.parent.mkdir(parents=True, exist_ok=True)
    with named_errors(entry), tempfile.TemporaryDirectory(prefix=".building-", dir=entry.parent) as folder:
        logging.info("Encoding the bAbI stories into %s.", entry)
        with _quiet():
            builder = BabiQa(data_dir=folder, config=BabiConfig(name=entry.name, **options._asdict()))
            config = tfds.download.DownloadConfig(manual_dir=data_folder(data_dir), try_download_gcs=False)
            try:
                builder.download_and_prepare(download_dir=f"{folder}/downloads", download_config=config)
            except RuntimeError as error:  # TFDS reports a full disk as one
                raise OSError(" ".join(str(error).split())) from error
        seal_folder(Path(builder.data_path))
        try:
            os.rename(builder.data_path, entry)
        except OSError:
            if not entry.exists():  # if it exists, another process has built the same files
                raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what TFDS prints: a download into the temporary folder, progress bars, and a warning of a new config."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _read(entry: Path) -> Dataset:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(entry)
    metadata = builder.info.metadata
    splits = {
        name: Split(
            records=builder.as_data_source(name),
            steps=np.asarray(metadata["steps"][name]),
            questions=np.asarray(metadata["questions"][name]),
            tasks=np.asarray(metadata["tasks"][name]),
        )
        for name in metadata["steps"]
    }
    vocabulary = Vocabulary(words=tuple(metadata["words"]), answers=tuple(metadata["answers"]))
    return Dataset(vocabulary=vocabulary, counts=np.asarray(metadata["counts"]), splits=splits)
