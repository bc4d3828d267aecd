"""The parameters of a finished run as one small file, `WORKDIR/params.npz`, without the optimiser's state."""

import os
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from mnm_jax._params import leaf_names

_FILE = "params.npz"
_STEP = "step"


def save_params(workdir: str | os.PathLike, params: Any, step: int) -> pathlib.Path:
    """Writes the parameters `[S, ...]`, by name; the file is whole or not there at all."""
    path = pathlib.Path(workdir) / _FILE
    unfinished = path.with_suffix(".unfinished")
    arrays = dict(zip(leaf_names({"params": params}), jax.tree.leaves(params), strict=True))
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **{_STEP: step}, **arrays)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path


def read_params(workdir: str | os.PathLike) -> tuple[pathlib.Path, dict[str, np.ndarray], int] | None:
    """Path, arrays by name and step of the file; None if there is none.

    Raises:
        ValueError: the file is damaged (a zip file knows the checksum of all that is in it).
    """
    path = pathlib.Path(workdir) / _FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content.items())
        return path, arrays, int(arrays.pop(_STEP))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); bring the file back, or train anew.") from error
