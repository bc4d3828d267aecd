"""The JSON files of a run's folder: `config.json`, written at the start, and `summary.json`, at the end.

A run that continued after a fault with other settings also has `earlier_configs.json`.
"""

import copy
import inspect
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from launch.runs.own import FOLDER, is_place
from launch.runs.registry import TASKS, load_task
from mnm_jax._files import whole_file
from mnm_jax.training import discard_fault, read_metrics

CONFIG, SUMMARY, EARLIER = "config.json", "summary.json", "earlier_configs.json"
# A summary without one of these does not count.
SUMMARY_KEYS = {"task", "model", "seeds", "steps", "seconds", "command", "parameters", "metrics"}
TUNING = "tuning"  # folder of the runs that choose a setting, and key of their accuracies in the run's summary
# Keys that say where files are, not what a run computes: a run continues when they have moved.
PLACES = (FOLDER, "task.data_dir", "task.cache_dir")
# Settings with which a run may continue after a fault: they change no array of its checkpoints.
_CHANGEABLE = ("learning_rate", "schedule", "warmup_steps", "clip_norm", "weight_decay", "epsilon", "meta_weight")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file that is complete or absent."""
    with whole_file(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_config(workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Returns the config of the run in `workdir`.

    Args:
      workdir: folder of the run.
      data_dir: folder of the task's data; replaces the one that the config names. None: keeps it. Of no effect for a
        task without data.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if its `config.json` is damaged, or `data_dir` is given and a module of its own task is missing.
    """
    path = pathlib.Path(workdir) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no run in {workdir}: it has no {CONFIG}; train first, or check --workdir.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config.keys()  # raises for JSON that is not an object
    except (ValueError, AttributeError) as error:
        message = f"{path} is damaged (no JSON object); bring the file back, or take another --workdir."
        raise ValueError(message) from error
    task = config.get("task")
    if data_dir is not None and isinstance(task, dict) and _reads_data(task, config.get(FOLDER)):
        task["data_dir"] = data_dir
    return config


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config without the folders that it names, `PLACES`."""
    placeless = copy.deepcopy(dict(config))
    for place in PLACES:
        section, _, key = place.rpartition(".")
        (placeless.get(section, {}) if section else placeless).pop(key, None)
    return placeless


def _reads_data(task: dict[str, Any], folder: str | None) -> bool:
    """Returns whether the task of a config has the setting `data_dir`, given or by default; own modules in `folder`."""
    name = task.get("name", "")
    if "data_dir" in task or not (is_place(name) or name in TASKS):
        return "data_dir" in task
    return "data_dir" in inspect.signature(load_task(name, folder)).parameters


def read_summary(workdir: pathlib.Path, name: str = SUMMARY) -> dict[str, Any] | None:
    """Returns the content of `summary.json`, or of an earlier one; None if it is missing, damaged or incomplete."""
    try:
        summary = json.loads((workdir / name).read_text(encoding="utf-8"))
        return summary if SUMMARY_KEYS | {"config"} <= summary.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def read_earlier(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the earlier configs of a run, each with the number of updates after which it changed, `until`."""
    path = workdir / EARLIER
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); bring the file back, or remove it.") from error


def claim(
    workdir: pathlib.Path, config: dict[str, Any], *, after_fault: bool = False, more_updates: bool = True
) -> bool:
    """Makes `workdir` the folder of a run of `config`, or checks that it is one already; returns whether it is new.

    The folders that a config names may differ (`PLACES`), since projects and data move. A finished run also accepts a
    config with a larger `training.steps`. It is then unfinished again, and its summary remains as `summary_STEPS.json`.
    A run that ended before its first metric, checkpoint or parameters accepts any config.

    Args:
      workdir: folder of the run.
      config: its config.
      after_fault: whether the run continues after a fault, from the newest checkpoint before the fault. Settings of the
        optimiser may then differ; the earlier config is added to `earlier_configs.json`.
      more_updates: whether a finished run accepts a larger `training.steps`.

    Raises:
      ValueError: if it is the folder of a run of another config, or of a run whose config is missing, or `after_fault`
        is given and the run has no fault, unless it has passed its fault with this config and was interrupted; its
        files stay unchanged.
    """
    if (workdir / CONFIG).exists():
        before = read_config(workdir)
        changes = _changes(before, config)
        if changes and not after_fault and not _is_trained(workdir):
            write_json(workdir / CONFIG, config)
            return True
        only_steps = more_updates and [key for key, _, _ in changes] == ["training.steps"]
        if only_steps and _continue(workdir, before["training"]["steps"], config):
            return False
        changeable = {f"training.{name}" for name in _CHANGEABLE} if after_fault else set()
        _refuse(workdir, [change for change in changes if change[0] not in changeable])
        if after_fault:
            _continue_after_fault(workdir, before, config)
        elif before != config:
            write_json(workdir / CONFIG, config)  # the user's project or data have moved, and all settings are equal
        return False
    if left := [name for name in ("checkpoints", SUMMARY) if (workdir / name).exists()]:
        raise ValueError(
            f"{workdir} has {left[0]} of a run, but no {CONFIG}; bring the file back ({SUMMARY} holds its content), or "
            "take another --workdir."
        )
    if after_fault:
        raise ValueError(f"{workdir} has no run that could continue after a fault; check --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, config)
    return True


def check_claimed(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Checks, in a process other than the first, that it sees the run of `config` that the first process has claimed.

    Raises:
      ValueError: if the folder has no run, or one of another config.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise ValueError(f"{path} of process 0 is missing here: do all processes see the same workdir?")
    _refuse(workdir, _changes(read_config(workdir), config))


def continued_at(workdir: pathlib.Path) -> list[int]:
    """Returns the numbers of updates at which a finished run was continued, in order."""
    names = (path.stem.removeprefix("summary_") for path in workdir.glob("summary_*.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def settings_after_fault(workdir: pathlib.Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings, by key, with which a run of `config` continued after a fault; empty if they are the same.

    The run may have another number of updates; it is then for `claim` to reopen or refuse it.
    """
    same = {*PLACES, "training.steps"}
    earlier = [row["config"] for row in read_earlier(workdir)]
    if not any({key for key, _, _ in _differences(before, config)} <= same for before in earlier):
        return {}
    now, before = read_config(workdir)["training"], config["training"]
    return {f"training.{name}": now[name] for name in _CHANGEABLE if name in now and now[name] != before.get(name)}


def _continue_after_fault(workdir: pathlib.Path, before: dict[str, Any], config: dict[str, Any]) -> None:
    try:
        step = discard_fault(workdir)
    except ValueError:
        # The run has passed its fault and was interrupted; the same command resumes it.
        if before != config or (workdir / SUMMARY).exists() or not any((workdir / "checkpoints").glob("*.fault*")):
            raise
        return
    logging.warning("%s continues after update %d.", workdir, step)
    if before != config:
        write_json(workdir / EARLIER, [*read_earlier(workdir), {"until": step, "config": before}])
    write_json(workdir / CONFIG, config)


def _continue(workdir: pathlib.Path, steps: int, config: dict[str, Any]) -> bool:
    """Reopens a finished run of `steps` updates for more updates; returns False if the new number is not larger.

    Raises:
      ValueError: if the run is not finished or its checkpoints are missing.
    """
    if config["training"]["steps"] <= steps:
        return False
    if not (workdir / SUMMARY).is_file():
        raise ValueError(f"{workdir} holds an unfinished run of training.steps={steps}; finish it before a longer one.")
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise ValueError(f"{workdir} has no checkpoint to continue from; take another --workdir.")
    # The same command works again if the process is killed between any two of these lines.
    with whole_file(workdir / f"summary_{steps}.json", "wb") as file:
        file.write((workdir / SUMMARY).read_bytes())
    write_json(workdir / CONFIG, config)
    (workdir / SUMMARY).unlink()
    return True


def _is_trained(workdir: pathlib.Path) -> bool:
    """Returns whether a folder has anything that belongs to its config."""
    kept = (workdir / "checkpoints").exists() or (workdir / SUMMARY).exists() or any(workdir.glob("params.*"))
    return kept or bool(read_metrics(workdir))


def _changes(before: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [found for found in _differences(before, config) if found[0] not in PLACES]


def _refuse(workdir: pathlib.Path, changes: list[tuple[str, str, str]]) -> None:
    for key, old, new in changes:
        where = f"{workdir} holds a run of another config"
        remedy = f"take another --workdir, or continue that run with --config={workdir / CONFIG}"
        raise ValueError(f"{where}: {key} is {old} there, {new} here; {remedy}.")


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (key, old value, new value) of each leaf that differs: names first, since other keys depend on them."""
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "name", key)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif key not in old or key not in new or a != b:
            before, after = ("absent" if key not in side else json.dumps(side[key]) for side in (old, new))
            yield f"{prefix}{key}", before, after
