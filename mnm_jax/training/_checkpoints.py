"""Checkpoints: one folder a step, whole or not there at all, every file checked before it is believed.

`WORKDIR/checkpoints/STEP/` is what Orbax writes, plus `files.json` with the SHA-256 of each of its files: Orbax and its
array format find a missing file but not a changed one. Arrays are kept by name, as plain arrays of the host, so that
a run may go on with another number of devices.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx

from mnm_jax._params import leaf_names
from mnm_jax.training import _hosts as hosts
from mnm_jax.training._state import TrainState
from mnm_jax.training._weights import read_params

_KEEP = 2
_FILES = "files.json"


class Saved(NamedTuple):
    """A restored checkpoint. run: what else was saved (JSON)."""

    step: int
    state: TrainState
    run: dict[str, Any]


def save(workdir: str | os.PathLike, step: int, state: TrainState, run: dict[str, Any]) -> pathlib.Path:
    """Saves a state and a JSON-serialisable dictionary; returns when all is on disk. Keeps the newest two.

    Nothing carries the name `STEP` until it is whole: the folder is written beside it and then renamed. Of several
    processes all take part, and the first one writes.

    Raises:
        OSError: it could not be written, as where no space is left; the ones before it are as they were.
    """
    folder = _folder(workdir)
    final = folder / str(step)
    arrays = dict(zip(leaf_names(state), map(_to_host, jax.tree.leaves(state)), strict=True))
    failure = None
    if hosts.is_first() and not final.exists():
        try:
            _write(folder, final, arrays, run)
        except (OSError, ValueError) as error:  # ValueError: how Orbax reports a full disk
            failure = error
    if hosts.agree(failure is not None)[0]:
        reason = failure or "see what the first process reports"
        raise OSError(
            f"checkpoint {final} could not be written: {reason}. Free space on the disk or check its permissions, and "
            "run the same command again: it goes on from the checkpoint before."
        ) from failure
    return final


def _write(folder: pathlib.Path, final: pathlib.Path, arrays: dict[str, np.ndarray], run: dict[str, Any]) -> None:
    unfinished = final.with_name(f"{final.name}.unfinished")
    for left_over in folder.glob("*.unfinished*"):
        shutil.rmtree(left_over)
    with _orbax() as checkpointer:
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), run=ocp.args.JsonSave(run))
        checkpointer.save(unfinished, args=args)
    (unfinished / _FILES).write_text(json.dumps(_digests(unfinished), indent=1))
    unfinished.rename(final)
    for old in _finished(folder)[:-_KEEP]:
        shutil.rmtree(old)


def restore(workdir: str | os.PathLike, like: TrainState) -> Saved | None:
    """The newest whole checkpoint of a run (host arrays), or None if the run has none yet.

    A damaged checkpoint is reported in one line and set aside as `STEP.damaged`; the one before it is used.

    Args:
        like: a state, or its `jax.ShapeDtypeStruct`s, of the structure to restore.

    Raises:
        ValueError: checkpoints exist but none is whole, or they are of another model, optimiser or number of seeds.
    """
    for path in sorted(_folder(workdir).glob("*.unfinished*")):
        logging.warning("Checkpoint %s was never finished; it is not used.", path)
    found = _read_newest(workdir)
    if found is None:
        return None
    path, arrays, run, damaged = found
    state = _fill(like, arrays, path)
    for other in damaged:
        taken = len(list(other.parent.glob(f"{other.name}.damaged*")))
        other.rename(other.with_name(f"{other.name}.damaged{taken or ''}"))
    return Saved(int(path.name), state, run)


def load_params(workdir: str | os.PathLike, make_model: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, int]:
    """The parameters `[S, ...]` of the newest whole checkpoint, and its step; changes nothing on disk.

    A run that has no checkpoints, because only its parameters were shipped, has them in `params.npz`.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: checkpoints exist but none is whole, the file is damaged, or they are of another model.
    """
    if newest := _read_newest(workdir):
        path, arrays, _, _ = newest
        found = path, {name: array for name, array in arrays.items() if name.startswith("params.")}, int(path.name)
    else:
        found = read_params(workdir)
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {_folder(workdir)}; train first, or check the workdir.")
    path, params, step = found
    seeds = len(next(iter(params.values()), ()))
    one = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    like = {"params": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), one)}
    return _fill(like, params, path)["params"], step


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """A checkpointer of this process alone, and which only logs warnings: Orbax has thirty lines for a checkpoint."""
    before, this = logging.get_verbosity(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
    )
    logging.set_verbosity(min(before, logging.WARNING))
    try:
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        logging.set_verbosity(before)


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _finished(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def _read_newest(workdir: str | os.PathLike) -> tuple[pathlib.Path, dict, dict, list[pathlib.Path]] | None:
    """Path, arrays and run of the newest whole checkpoint, and the damaged ones after it."""
    damaged = []
    for path in reversed(_finished(_folder(workdir))):
        problem = _problem(path)
        if problem is None:
            with _orbax() as checkpointer:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(), run=ocp.args.JsonRestore())
                content = checkpointer.restore(path, args=args)
            return path, content["state"], content["run"], damaged
        logging.warning("Checkpoint %s is damaged (%s); the one before it is used.", path, problem)
        damaged.append(path)
    if damaged:
        raise ValueError(
            f"no whole checkpoint in {damaged[0].parent}: {damaged[0].name} is damaged ({_problem(damaged[0])}); "
            "bring the files back, or take another workdir to start over."
        )
    return None


def _digests(path: pathlib.Path) -> dict[str, str]:
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _FILES:
            with file.open("rb") as stream:
                digests[str(file.relative_to(path))] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _problem(path: pathlib.Path) -> str | None:
    """What is wrong with a finished checkpoint, naming the file; None if it is whole."""
    try:
        expected = json.loads((path / _FILES).read_text())
        found = _digests(path)
        for name, digest in expected.items():
            if found.get(name) != digest:
                return f"{name} {'has changed' if name in found else 'is missing'}"
    except (OSError, ValueError, AttributeError):  # gone, not JSON, or JSON of something else
        return f"{_FILES} is missing or unreadable"
    return None


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return hosts.to_host(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _fill(like: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
    """The tree `like` with its leaves taken from `arrays` by name."""
    names, (leaves, tree) = leaf_names(like), jax.tree.flatten(like)
    for name in sorted(set(names) ^ set(arrays)):
        where = "has" if name in arrays else "lacks"
        raise ValueError(f"checkpoint {path} is of another model or optimizer: it {where} {name}; use its own config.")
    filled = []
    for name, leaf in zip(names, leaves, strict=True):
        expected = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        saved = arrays[name]
        if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"checkpoint {path} is of another model or number of seeds: {name} is {saved.dtype}{[*saved.shape]} "
                f"there, {expected.dtype}{[*expected.shape]} here; use its own config."
            )
        filled.append(jax.random.wrap_key_data(saved) if _is_key(leaf) else saved)
    return tree.unflatten(filled)
