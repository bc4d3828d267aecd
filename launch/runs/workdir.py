"""The JSON files of a run's folder: `config.json`, written once at the start, and `summary.json`, at the end."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from launch.runs.own import FOLDER

CONFIG, SUMMARY = "config.json", "summary.json"


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file atomically: under another name first, then renamed."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_config(workdir: str | os.PathLike, data_dir: str | None = None) -> dict[str, Any]:
    """Returns the config of the run in `workdir`.

    Args:
      workdir: folder of the run.
      data_dir: folder of the task's data; replaces the one that the config names. None: keeps it.

    Raises:
      FileNotFoundError: if there is no run.
      ValueError: if its `config.json` is damaged.
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
    if data_dir is not None and isinstance(config.get("task"), dict):
        config["task"]["data_dir"] = data_dir
    return config


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> bool:
    """Makes `workdir` the folder of a run of `config`, or checks that it is one already; returns whether it is new.

    A finished run accepts a config that differs only in a larger `training.steps`. It is then unfinished again, and its
    summary remains as `summary_STEPS.json`.

    Raises:
      ValueError: if it is the folder of a run of another config; its files stay unchanged.
    """
    if (workdir / CONFIG).exists():
        before = read_config(workdir)
        differences = [found for found in _differences(before, config) if found[0] != FOLDER]
        only_steps = [key for key, _, _ in differences] == ["training.steps"]
        if only_steps and _continue(workdir, before["training"]["steps"], config):
            return False
        for key, old, new in differences:
            raise ValueError(
                f"{workdir} holds a run of another config: {key} is {old} there, {new} here; take another --workdir."
            )
        if before.get(FOLDER) != config.get(FOLDER):
            write_json(workdir / CONFIG, config)  # the user's project has moved, which is no other setting
        return False
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, config)
    return True


def continued_at(workdir: pathlib.Path) -> list[int]:
    """Returns the numbers of updates at which a finished run was continued, in order."""
    return sorted(int(path.stem.removeprefix("summary_")) for path in workdir.glob("summary_[0-9]*.json"))


def _continue(workdir: pathlib.Path, steps: int, config: dict[str, Any]) -> bool:
    """Makes a finished run of `steps` updates one of more updates; returns False for a number that is not larger.

    Raises:
      ValueError: if the run is not finished or its checkpoints are missing.
    """
    if config["training"]["steps"] <= steps:
        return False
    if not (workdir / SUMMARY).is_file():
        raise ValueError(f"{workdir} holds an unfinished run of training.steps={steps}; finish it before a longer one.")
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        raise ValueError(f"{workdir} has no checkpoint to continue from; take another --workdir.")
    (workdir / SUMMARY).rename(workdir / f"summary_{steps}.json")
    write_json(workdir / CONFIG, config)
    return True


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields (key, old value, new value) of each leaf that differs: names first, since other keys depend on them."""
    for key in sorted(old.keys() | new.keys(), key=lambda key: (key != "name", key)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif key not in old or key not in new or a != b:
            before, after = ("absent" if key not in side else json.dumps(side[key]) for side in (old, new))
            yield f"{prefix}{key}", before, after
