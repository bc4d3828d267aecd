"""Stores the parameters of a finished run in one file, `WORKDIR/params.npz`, without the optimiser's state."""

import os
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from mnm_jax._checks import check_sizes
from mnm_jax._files import whole_file
from mnm_jax._params import leaf_names

_FILE = "params.npz"
_STEP = "step"


def save_params(workdir: str | os.PathLike, params: Any, step: int) -> pathlib.Path:
    """Writes the parameters `[S, ...]` by name and returns the file's path; the file appears only when complete.

    Args:
      workdir: folder of the run.
      params: parameters of the model.
      step: number of updates made.
    """
    check_sizes(least=0, step=step)
    path = pathlib.Path(workdir) / _FILE
    arrays: dict[str, Any] = dict(zip(leaf_names({"params": params}), jax.tree.leaves(params), strict=True))
    with whole_file(path, "wb") as file:
        np.savez_compressed(file, **(arrays | {_STEP: step}))
    return path


def read_params(workdir: str | os.PathLike) -> tuple[pathlib.Path, dict[str, np.ndarray], int] | None:
    """Returns the file's path, its arrays by name and the number of updates; None if there is no file.

    Raises:
      ValueError: if the file is damaged; a zip file holds the checksum of each member.
    """
    path = pathlib.Path(workdir) / _FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content.items())
        return path, arrays, int(arrays.pop(_STEP))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); restore the file, or train again.") from error
