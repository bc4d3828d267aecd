"""Checkpoints: one folder per checkpoint, complete or absent, with every file verified before use.

`WORKDIR/checkpoints/STEP/` holds Orbax's files and `files.json` with the SHA-256 of each of them, because Orbax and its
array format detect a missing file but not a changed one. Arrays are stored by name, as plain host arrays, so that a run
can resume with another number of devices.
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
from absl import logging
from flax import nnx

from mnm_jax._checks import check_sizes
from mnm_jax._extras import extra
from mnm_jax._params import leaf_names
from mnm_jax.training import _processes as processes
from mnm_jax.training._state import TrainState
from mnm_jax.training._weights import read_params

_KEEP = 2
_FILES = "files.json"


class Checkpoint(NamedTuple):
    """A restored checkpoint.

    Attributes:
      step: number of updates made.
      state: the state, as host arrays.
      run: the dictionary that was saved with the state.
    """

    step: int
    state: TrainState
    run: dict[str, Any]


class _Stored(NamedTuple):
    """The newest complete checkpoint on disk; `damaged` lists newer checkpoints that are damaged."""

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    run: dict[str, Any]
    damaged: list[pathlib.Path]


def save_checkpoint(workdir: str | os.PathLike, step: int, state: TrainState, run: dict[str, Any]) -> pathlib.Path:
    """Saves a state, waits until it is on disk, and removes all but the newest two checkpoints; collective.

    The folder is written under another name and renamed when it is complete. The first process writes.

    Args:
      workdir: folder of the run.
      step: number of updates made.
      state: the state.
      run: a JSON-serialisable dictionary to save with it.

    Returns:
      The checkpoint's folder.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      OSError: if the checkpoint could not be written, for example to a full disk; earlier checkpoints are unchanged.
    """
    check_sizes(least=0, step=step)
    folder = _folder(workdir)
    final = folder / str(step)
    arrays = dict(zip(leaf_names(state), map(_to_host, jax.tree.leaves(state)), strict=True))
    failure = None
    if processes.is_first_process() and not final.exists():
        try:
            _write(folder, final, arrays, run)
        except (OSError, ValueError) as error:  # Orbax reports a full disk as a ValueError
            failure = error
    if processes.any_process(failure is not None)[0]:
        reason = failure or "see the report of the first process"
        raise OSError(
            f"checkpoint {final} could not be written: {reason}. Free space on the disk or check its permissions, and "
            "run the same command again: it resumes from the previous checkpoint."
        ) from failure
    return final


def _write(folder: pathlib.Path, final: pathlib.Path, arrays: dict[str, np.ndarray], run: dict[str, Any]) -> None:
    unfinished = final.with_name(f"{final.name}.unfinished")
    for left_over in folder.glob("*.unfinished*"):
        shutil.rmtree(left_over)
    args = _orbax().args
    with _checkpointer() as checkpointer:
        checkpointer.save(unfinished, args=args.Composite(state=args.StandardSave(arrays), run=args.JsonSave(run)))
    (unfinished / _FILES).write_text(json.dumps(_digests(unfinished), indent=1))
    unfinished.rename(final)
    for old in _finished(folder)[:-_KEEP]:
        shutil.rmtree(old)


def restore_checkpoint(workdir: str | os.PathLike, like: TrainState) -> Checkpoint | None:
    """Returns the newest complete checkpoint of a run, or None if the run has none.

    A damaged checkpoint is logged in one line and renamed to `STEP.damaged`, and the previous one is used.

    Args:
      workdir: folder of the run.
      like: a state, or its `jax.ShapeDtypeStruct`s, of the structure to restore.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      ValueError: if all checkpoints are damaged, or they are of another model, optimiser or number of seeds.
    """
    for path in sorted(_folder(workdir).glob("*.unfinished*")):
        logging.warning("Checkpoint %s was never finished; it is not used.", path)
    stored = _read_newest(workdir)
    if stored is None:
        return None
    state = _unflatten(like, stored.arrays, stored.path)
    for other in stored.damaged:
        taken = len(list(other.parent.glob(f"{other.name}.damaged*")))
        other.rename(other.with_name(f"{other.name}.damaged{taken or ''}"))
    return Checkpoint(step=int(stored.path.name), state=state, run=stored.run)


def load_params(workdir: str | os.PathLike, make_model: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, int]:
    """Returns the parameters `[S, ...]` of a run and the number of updates; changes nothing on disk.

    They come from the newest complete checkpoint, or from `params.npz` if the run has no checkpoints.

    Args:
      workdir: folder of the run.
      make_model: called as `make_model(rngs)`; gives the structure of the parameters.

    Raises:
      FileNotFoundError: if the run has neither checkpoints nor `params.npz`.
      ValueError: if all checkpoints or the file are damaged, or they are of another model.
    """
    if stored := _read_newest(workdir):
        path, step = stored.path, int(stored.path.name)
        params = {name: array for name, array in stored.arrays.items() if name.startswith("params.")}
    elif found := read_params(workdir):
        path, params, step = found
    else:
        raise FileNotFoundError(f"no checkpoint in {_folder(workdir)}; train first, or check the workdir.")
    seeds = len(next(iter(params.values()), ()))
    one = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    like = {"params": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), one)}
    return _unflatten(like, params, path)["params"], step


def _orbax() -> Any:
    """Returns the module `orbax.checkpoint`, imported at its first use because the import is slow."""
    with extra("train"):
        import orbax.checkpoint
    return orbax.checkpoint


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """Yields a checkpointer for this process alone that logs only warnings; Orbax logs 30 lines per checkpoint."""
    orbax = _orbax()
    before, this = logging.get_verbosity(), jax.process_index()
    alone = orbax.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
    )
    logging.set_verbosity(min(before, logging.WARNING))
    try:
        options = orbax.CompositeOptions(multiprocessing_options=alone)
        handler = orbax.CompositeCheckpointHandler(composite_options=options)
        with orbax.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        logging.set_verbosity(before)


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _finished(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def _read_newest(workdir: str | os.PathLike) -> _Stored | None:
    damaged: list[pathlib.Path] = []
    for path in reversed(_finished(_folder(workdir))):
        problem = _problem(path)
        if problem is None:
            args = _orbax().args
            with _checkpointer() as checkpointer:
                parts = args.Composite(state=args.StandardRestore(), run=args.JsonRestore())
                content = checkpointer.restore(path, args=parts)
            return _Stored(path=path, arrays=content["state"], run=content["run"], damaged=damaged)
        logging.warning("Checkpoint %s is damaged (%s); the previous one is used.", path, problem)
        damaged.append(path)
    if damaged:
        raise ValueError(
            f"no complete checkpoint in {damaged[0].parent}: {damaged[0].name} is damaged ({_problem(damaged[0])}); "
            "restore the files, or train again in another workdir."
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
    """Returns a description of a finished checkpoint's damage, with the file's name; None if it is complete."""
    try:
        expected = json.loads((path / _FILES).read_text())
        found = _digests(path)
        for name, digest in expected.items():
            if found.get(name) != digest:
                return f"{name} {'has changed' if name in found else 'is missing'}"
    except (OSError, ValueError, AttributeError):  # missing, not JSON, or other JSON
        return f"{_FILES} is missing or unreadable"
    return None


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return processes.to_host(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _unflatten(like: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
    """Returns a tree of the structure `like` with its leaves taken from `arrays` by name."""
    names, leaves = leaf_names(like), jax.tree.leaves(like)
    for name in sorted(set(names) ^ set(arrays)):
        where = "has" if name in arrays else "lacks"
        raise ValueError(f"checkpoint {path} belongs to another model or optimizer: it {where} {name}; use its config.")
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        expected = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        saved = arrays[name]
        if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"checkpoint {path} belongs to another model or number of seeds: {name} is "
                f"{saved.dtype}{[*saved.shape]} there, {expected.dtype}{[*expected.shape]} here; use its config."
            )
        found.append(jax.random.wrap_key_data(jax.numpy.asarray(saved)) if _is_key(leaf) else saved)
    return jax.tree.unflatten(jax.tree.structure(like), found)
