"""Stores the parameters of a finished run in one file of its folder, without the optimiser's state.

`params.npz` has them as they are. `params.safetensors`, for repositories and downloads, has them in half precision.
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mnm_jax._checks import check_flags, check_sizes
from mnm_jax._extras import extra
from mnm_jax._files import whole_file
from mnm_jax._params import by_name

_FULL, _HALF = "params.npz", "params.safetensors"
_STEP, _SUM = "step", "crc32"
_DTYPES = "dtypes"  # of the arrays stored as integers, by name


def save_params(workdir: str | os.PathLike, params: Any, step: int, *, half: bool = False) -> pathlib.Path:
    """Writes the parameters `[S, ...]` by name and returns the file's path; the file appears only when complete.

    Args:
      workdir: folder of the run.
      params: parameters of the model.
      step: number of updates made.
      half: whether to round float32 to float16 and write `params.safetensors`, of about half the size, instead of
        `params.npz`. `load_params` returns them as float32, and takes `params.npz` if both are there.

    Raises:
      ImportError: safetensors is not installed and `half` is True.
      ValueError: a parameter has another dtype than float32, or a value that float16 cannot represent, and `half` is
        True.
    """
    check_sizes(least=0, step=step)
    check_flags(half=half)
    path = pathlib.Path(workdir) / (_HALF if half else _FULL)
    arrays = by_name({"params": params})
    if half:
        data = _pack({name: _round(name, np.asarray(array)) for name, array in arrays.items()}, step)
    with whole_file(path, "wb") as file:
        if half:
            file.write(data)
        else:
            content: dict[str, Any] = {**_as_bits(arrays), _STEP: step}
            np.savez_compressed(file, **content)
    return path


def read_params(workdir: str | os.PathLike) -> tuple[pathlib.Path, dict[str, np.ndarray], int] | None:
    """Returns the file's path, its arrays by name and the number of updates; None if there is no file.

    Raises:
      ImportError: safetensors is not installed and the file needs it.
      ValueError: if the file is damaged; both kinds hold checksums.
    """
    for name, read in ((_FULL, _read_full), (_HALF, _read_half)):
        path = pathlib.Path(workdir) / name
        if path.is_file():
            try:
                return (path, *read(path))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path} is damaged ({error}); restore the file, or train again.") from error
    return None


def _read_full(path: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
    """Returns the arrays of `params.npz` and the number of updates."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        arrays = dict(content.items())
    step = int(arrays.pop(_STEP))
    return _from_bits(arrays), step


def _as_bits(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays; those with a dtype that NumPy's format cannot store become integers beside their dtypes."""
    found = {name: np.asarray(array) for name, array in arrays.items()}
    dtypes = {name: str(array.dtype) for name, array in found.items() if array.dtype.isbuiltin != 1}
    if not dtypes:  # bfloat16 and others of ml_dtypes
        return found
    bits = {name: found[name].view(f"u{found[name].dtype.itemsize}") for name in dtypes}
    return found | bits | {_DTYPES: np.array(json.dumps(dtypes))}


def _from_bits(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays that `_as_bits` was given."""
    arrays = dict(arrays)
    dtypes = json.loads(str(arrays.pop(_DTYPES, "{}")))
    return arrays | {name: arrays[name].view(jax.numpy.dtype(dtype)) for name, dtype in dtypes.items()}


def _read_half(path: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
    """Returns the arrays of `params.safetensors` as float32, and the number of updates."""
    with extra("train"):
        from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if int(notes[_SUM]) != _checksum(arrays, step := int(notes[_STEP])):
        raise ValueError("wrong checksum")
    return {name: array.astype(np.float32) for name, array in arrays.items()}, step


def _pack(arrays: Mapping[str, np.ndarray], step: int) -> bytes:
    """Returns the content of a safetensors file with number of updates and checksum."""
    with extra("train"):
        from safetensors.numpy import save

    return save(dict(arrays), metadata={_STEP: str(step), _SUM: str(_checksum(arrays, step))})


def _round(name: str, array: np.ndarray) -> np.ndarray:
    """Returns a float32 array as float16."""
    if array.dtype != np.float32:
        raise ValueError(f"{name} must be float32 with half=True, got {array.dtype}: leave out half.")
    largest, limit = float(np.max(np.abs(array), initial=0)), float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise ValueError(f"{name} must be at most {limit} with half=True, got {largest}.")
    return array.astype(np.float16)


def _checksum(arrays: Mapping[str, np.ndarray], step: int) -> int:
    """Returns the checksum of the number of updates and of all names, shapes and values."""
    found = zlib.crc32(str(step).encode())
    for name, array in sorted(arrays.items()):
        found = zlib.crc32(f"{name}{array.shape}".encode() + array.tobytes(), found)
    return found
