"""Checkpoints: one folder per checkpoint, complete or absent, with every file verified before use.

`WORKDIR/checkpoints/STEP/` holds Orbax's files and `files.json` with the step and the SHA-256 of each of them, because
Orbax and its array format detect a missing file but not a changed one. Arrays are stored by name, as plain host arrays,
so that a run can resume with another number of devices.
"""

import contextlib
import importlib.util
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
from mnm_jax._files import find_damage, named_errors, rename_folder, seal_folder
from mnm_jax._params import by_name, is_key, leaf_names
from mnm_jax.training import _processes as processes
from mnm_jax.training._state import TrainState, merge_model, split_model
from mnm_jax.training._weights import read_params

_KEEP = 2


class Checkpoint(NamedTuple):
    """A restored checkpoint.

    Attributes:
      step: number of updates made.
      state: the state, as host arrays.
      notes: the dictionary that was saved with the state.
    """

    step: int
    state: TrainState
    notes: dict[str, Any]


class _Stored(NamedTuple):
    """The newest complete checkpoint on disk; `damaged` lists newer checkpoints that are damaged."""

    path: pathlib.Path
    step: int
    arrays: dict[str, np.ndarray]
    notes: dict[str, Any]
    damaged: list[pathlib.Path]


def check_notes(position: Any) -> None:
    """Raises, before the first update, errors that would otherwise occur at the first checkpoint.

    Args:
      position: the position of the task's loader, or None.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      ValueError: the position cannot be saved.
    """
    with extra("train"):
        if importlib.util.find_spec("orbax") is None or importlib.util.find_spec("orbax.checkpoint") is None:
            raise ModuleNotFoundError("No module named 'orbax.checkpoint'", name="orbax.checkpoint")
    try:
        json.dumps(position)
    except TypeError as error:
        raise ValueError(
            f"a loader's get_state must return values of JSON, got {position!r} ({error}): use int(...) for a number "
            "of NumPy."
        ) from error


def save_checkpoint(workdir: str | os.PathLike, step: int, state: TrainState, notes: dict[str, Any]) -> pathlib.Path:
    """Saves a state, waits until it is on disk, and removes all but the newest two checkpoints; collective.

    The folder is written under another name and renamed when it is complete. The first process writes.

    Args:
      workdir: folder of the run.
      step: number of updates made.
      state: the state.
      notes: a JSON-serialisable dictionary to save with it.

    Returns:
      The checkpoint's folder.

    Raises:
      ImportError: orbax-checkpoint is not installed.
      FileExistsError: if the run has a checkpoint of this step with another state; an equal one is kept as it is.
      OSError: if the checkpoint could not be written, for example to a full disk; earlier checkpoints are unchanged.
    """
    check_sizes(least=0, step=step)
    folder = _folder(workdir)
    final = folder / str(step)
    arrays = {name: processes.to_host(leaf) for name, leaf in by_name(state).items()}
    arrays = {name: array for name, array in arrays.items() if array.size}  # Orbax refuses empty arrays
    with processes.common_errors():
        if processes.is_first_process() and not _holds(final, step, arrays):
            with named_errors(final):
                _write(folder, final, step, arrays, notes)
    return final


def _holds(path: pathlib.Path, step: int, arrays: dict[str, np.ndarray]) -> bool:
    """Returns whether a checkpoint holds these arrays; a damaged one is set aside, others raise FileExistsError."""
    if not path.exists():
        return False
    if problem := find_damage(path, step=step):
        logging.warning("Checkpoint %s is damaged (%s); it is written again.", path, problem)
        _set_aside(path, "damaged")
        return False
    saved = _read(path)[0]
    same = saved.keys() == arrays.keys() and all(
        (saved[name].dtype, saved[name].shape) == (array.dtype, array.shape)
        and saved[name].tobytes() == array.tobytes()
        for name, array in arrays.items()
    )
    if not same:
        raise FileExistsError(f"{path} holds another state of update {step}: take another workdir, or remove it.")
    return True


def _write(
    folder: pathlib.Path, final: pathlib.Path, step: int, arrays: dict[str, np.ndarray], notes: dict[str, Any]
) -> None:
    unfinished = final.with_name(f"{final.name}.unfinished")
    for left_over in (*folder.glob("*.unfinished*"), *folder.glob("*.removed")):
        shutil.rmtree(left_over)
    args = _orbax().args
    try:
        with _checkpointer(logging.FATAL) as checkpointer:  # below it, Orbax logs the error that it raises
            checkpointer.save(
                unfinished, args=args.Composite(state=args.StandardSave(arrays), run=args.JsonSave(notes))
            )
    except ValueError as error:  # the array format reports a full disk as a ValueError
        raise OSError(" ".join(str(error).split())) from error
    seal_folder(unfinished, step=step)
    rename_folder(unfinished, final)
    for old in _finished(folder)[:-_KEEP]:
        removed = old.rename(old.with_name(f"{old.name}.removed"))  # a reader never finds a half-deleted checkpoint
        shutil.rmtree(removed)


def restore_checkpoint(workdir: str | os.PathLike, like: TrainState, *, change: bool = True) -> Checkpoint | None:
    """Returns the newest complete checkpoint of a run, or None if the run has none.

    A damaged checkpoint is logged in one line and renamed to `STEP.damaged`, and the previous one is used.

    Args:
      workdir: folder of the run.
      like: a state, or its `jax.ShapeDtypeStruct`s, of the structure to restore.
      change: whether to rename damaged checkpoints; False leaves all files as they are.

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
    for other in stored.damaged if change else ():
        _set_aside(other, "damaged")
    return Checkpoint(step=stored.step, state=state, notes=stored.notes)


def discard_fault(workdir: str | os.PathLike) -> int:
    """Renames the checkpoints that hold a fault to `STEP.fault`, so that a run resumes from the last one before it.

    The run may then continue with settings that avoid the fault, such as a lower learning rate.

    Args:
      workdir: folder of the run.

    Returns:
      The number of updates from which the run resumes; 0 if it has no checkpoint from before the fault.

    Raises:
      ValueError: if the newest checkpoint holds no fault, or all checkpoints are damaged.
    """
    found = [int(path.stem) for path in _folder(workdir).glob("*.fault*")]  # of an earlier call
    while (stored := _read_newest(workdir)) and np.any(stored.arrays["fault_step"] >= 0):
        found.append(stored.step)
        _set_aside(stored.path, "fault")
    step = stored.step if stored else 0
    if max(found, default=-1) < step:
        raise ValueError(f"{workdir} holds no run that stopped at a fault; its newest checkpoint is of update {step}.")
    return step


def _set_aside(path: pathlib.Path, reason: str) -> None:
    taken = len(list(path.parent.glob(f"{path.name}.{reason}*")))
    path.rename(path.with_name(f"{path.name}.{reason}{taken or ''}"))


def load_params(workdir: str | os.PathLike, make_model: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, int]:
    """Returns the parameters `[S, ...]` of a run and the number of updates; changes nothing on disk.

    They come from the newest complete checkpoint, or from the file of `save_params` if the run has no checkpoints. If
    the run stopped at a fault, parameters and number are those before the faulty update.

    Args:
      workdir: folder of the run.
      make_model: called as `make_model(rngs)`; gives the structure of the parameters.

    Raises:
      FileNotFoundError: if the run has neither checkpoints nor a file of parameters.
      ValueError: if all checkpoints or the file are damaged, they are of another model, or the seeds differ in their
        number of updates, because some stopped at a fault.
      ImportError: if the file is of half precision and safetensors is not installed.
    """
    params, steps = _load_seeds(workdir, make_model)
    if len(set(steps)) > 1:
        raise ValueError(
            f"{workdir} stopped at a fault, and its seeds have {steps} updates, so their parameters are not of one "
            "update: continue the run after the fault (`discard_fault`), or load one seed with `load_model`."
        )
    return params, steps[0]


def _load_seeds(workdir: str | os.PathLike, make_model: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, list[int]]:
    """Returns the parameters `[S, ...]` of a run and the number of updates of each seed."""
    steps = None
    if stored := _read_newest(workdir):
        path, step = stored.path, stored.step
        params = {name: array for name, array in stored.arrays.items() if name.startswith("params.")}
        fault = stored.arrays["fault_step"]  # the update that a seed was stopped before; noticed at a later one
        steps = np.where(fault > 0, fault - 1, step).tolist()
    elif found := read_params(workdir):
        path, params, step = found
    else:
        raise FileNotFoundError(
            f"no checkpoint in {_folder(workdir)}, and no params.npz or params.safetensors beside it: check the "
            "workdir, or train first; if the files of a finished run were lost, train in another workdir."
        )
    seeds = len(next(iter(params.values()), ()))
    one = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    like = {"params": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), one)}
    return _unflatten(like, params, path)["params"], steps or [step] * seeds


def load_model(workdir: str | os.PathLike, make_model: Callable[[nnx.Rngs], nnx.Module], index: int = 0) -> Any:
    """Returns the trained model of one seed of a run; changes nothing on disk.

    Args:
      workdir: folder of the run.
      make_model: the function that the run was trained with.
      index: number of the seed in the run, from 0.

    Raises:
      ValueError: if the run has no such seed; also raised, as FileNotFoundError and ImportError, for the reasons that
        `load_params` names.
    """
    return merge_model(split_model(make_model), _load_seeds(workdir, make_model)[0], index)


def _orbax() -> Any:
    """Returns the module `orbax.checkpoint`, imported at its first use because the import is slow."""
    with extra("train"):
        import orbax.checkpoint
    return orbax.checkpoint


@contextlib.contextmanager
def _checkpointer(verbosity: int = logging.WARNING) -> Iterator[Any]:
    """Yields a checkpointer for this process alone that logs little; Orbax logs 30 lines per checkpoint."""
    orbax = _orbax()
    before, this = logging.get_verbosity(), jax.process_index()
    alone = orbax.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
    )
    logging.set_verbosity(min(before, verbosity))
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
    damaged: dict[pathlib.Path, str] = {}
    for path in reversed(_finished(_folder(workdir))):
        step = int(path.name)
        problem = find_damage(path, step=step)
        try:
            if problem is None:
                arrays, notes = _read(path)
                return _Stored(path=path, step=step, arrays=arrays, notes=notes, damaged=list(damaged))
        except (OSError, ValueError):
            if path.exists():
                raise
        if not path.exists():  # the process that trains this run has removed it, after writing newer ones
            return _read_newest(workdir)
        logging.warning("Checkpoint %s is damaged (%s); the previous one is used.", path, problem)
        damaged[path] = problem or ""
    for path, problem in damaged.items():
        remedy = "restore the files, or train again in another workdir."
        if (path.parents[1] / "params.npz").is_file():
            remedy = (
                f"restore the files, or move {path.parent} away: the parameters of a finished run are in params.npz."
            )
        raise ValueError(f"no complete checkpoint in {path.parent}: {path.name} is damaged ({problem}); {remedy}")
    return None


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    args = _orbax().args
    with _checkpointer() as checkpointer:
        content = checkpointer.restore(path, args=args.Composite(state=args.StandardRestore(), run=args.JsonRestore()))
    return content["state"], content["run"]


def _unflatten(like: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
    """Returns a tree of the structure `like` with its leaves taken from `arrays` by name."""
    names, leaves = leaf_names(like), jax.tree.leaves(like)
    empty = {name: leaf for name, leaf in zip(names, leaves, strict=True) if not leaf.size}
    arrays = arrays | {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in empty.items() if name not in arrays}
    for name in sorted(set(names) ^ set(arrays)):
        where = "has" if name in arrays else "lacks"
        raise ValueError(f"checkpoint {path} belongs to another model or optimizer: it {where} {name}; use its config.")
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        saved = arrays[name]
        if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
            raise ValueError(
                f"checkpoint {path} belongs to another model or number of seeds: {name} is "
                f"{saved.dtype}{[*saved.shape]} there, {expected.dtype}{[*expected.shape]} here; use its config."
            )
        found.append(jax.random.wrap_key_data(jax.numpy.asarray(saved)) if is_key(leaf) else saved)
    return jax.tree.unflatten(jax.tree.structure(like), found)
