"""The light form of finished runs: two files per folder of runs, with the numbers that tables and figures show.

`summaries.jsonl` has one line per run: the content of its `summary.json`, with the values of every seed for each metric
(mean and standard deviation follow from them), and its place in the folder, `GROUP/LABEL`, as `run`. Losses are left
out, and so are the folders that a config names, paths of one machine. `curves.jsonl` has one line per run: the updates
of its evaluations as `step`, and for each metric of the figures the values of every seed at each of these updates.
"""

import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from launch.runs.metrics import natural, summarise
from launch.runs.workdir import PLACES, without_places
from mnm_jax._files import whole_file

SUMMARIES, CURVES = "summaries.jsonl", "curves.jsonl"
_CURVES = re.compile(r"valid/(accuracy|reward|bits|error|chance|task=\w+/error)")
_PLACE_FLAGS = tuple(f"--config.{place}=" for place in PLACES)
_CONSTANT = re.compile(r".*/chance")  # metrics of which only the last value is kept
_DIGITS = 6  # significant digits of the points of a curve; summaries, which tables quote, are exact

Line = dict[str, Any]


class LightRun(NamedTuple):
    """A run in the light form.

    Attributes:
      summary: content of `summary.json`.
      lines: the lines of `metrics.jsonl` that a figure or a table needs.
    """

    summary: Line
    lines: list[Line]


def read_light(folder: pathlib.Path) -> dict[str, LightRun]:
    """Returns the runs of a folder in the light form, by place; empty if the folder has no `summaries.jsonl`.

    Raises:
      ValueError: a line of one of the two files is damaged; the message names file and line.
    """
    if not (folder / SUMMARIES).is_file():
        return {}
    curves = _read_lines(folder / CURVES, _parse_curve) if (folder / CURVES).is_file() else {}
    summaries = _read_lines(folder / SUMMARIES, _parse_summary)
    return {place: LightRun(summary, curves.get(place, [])) for place, summary in summaries.items()}


def write_light(folder: pathlib.Path, runs: Mapping[str, LightRun]) -> None:
    """Writes the two files of a folder of runs, each atomically, in natural order of the places."""
    folder.mkdir(parents=True, exist_ok=True)
    places = sorted(runs, key=natural)
    _write_lines(folder / SUMMARIES, [{"run": place} | _thin_summary(runs[place].summary) for place in places])
    _write_lines(folder / CURVES, [{"run": place} | _thin_curve(runs[place].lines) for place in places])


def _read_lines(path: pathlib.Path, parse: Any) -> dict[str, Any]:
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            content = json.loads(line)
            place = content.pop("run")
            found[place] = parse(content)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({type(error).__name__}: {error}); publish the run again with "
                "launch.report --publish."
            ) from error
    return found


def _write_lines(path: pathlib.Path, lines: Sequence[Line]) -> None:
    with whole_file(path) as file:
        file.writelines(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)


def _parse_summary(content: Line) -> Line:
    metrics = {name: np.array(values, np.float64) for name, values in content["metrics"].items()}
    return {**content, "metrics": summarise(metrics)}


def _parse_curve(content: Line) -> list[Line]:
    steps = content.pop("step")
    columns = [[(name, value) for value in values] for name, values in content.items()]
    rows = zip(steps, *columns, strict=True)
    return [{"step": step} | {name: value for name, value in row if value is not None} for step, *row in rows]


def _thin_summary(summary: Line) -> Line:
    metrics = summary["metrics"]
    kept = [name for name in metrics if not name.endswith("loss")] or list(metrics)
    thin = {**summary, "metrics": {name: metrics[name]["per_seed"] for name in kept}}
    if "config" in thin:
        thin["config"] = without_places(thin["config"])
    if "command" in thin:
        words = shlex.split(thin["command"])
        kept_words = [word for word in words if not word.startswith(_PLACE_FLAGS)]
        thin["command"] = thin["command"] if kept_words == words else shlex.join(kept_words)
    if "earlier_configs" in thin:
        thin["earlier_configs"] = [{**row, "config": without_places(row["config"])} for row in thin["earlier_configs"]]
    return thin


def _thin_curve(lines: Sequence[Line]) -> Line:
    names = {name for line in lines for name, value in line.items() if isinstance(value, list)}
    kept = sorted(filter(_CURVES.fullmatch, names)) or sorted(names & {"valid/loss"}) or sorted(names & {"train/loss"})
    rows: dict[int, Line] = {}
    for line in lines:  # the later one of two lines for the same step counts
        values = {name: line[name] for name in kept if name in line}
        if values:
            rows[line["step"]] = rows.get(line["step"], {}) | values
    steps = sorted(rows)
    columns: Line = {"step": steps}
    for name in kept:
        columns[name] = [_round(rows[step].get(name)) for step in steps]
        if _CONSTANT.fullmatch(name):
            columns[name] = [None] * (len(steps) - 1) + columns[name][-1:]
    return columns


def _round(values: Sequence[float | None] | None) -> list[float | None] | None:
    return None if values is None else [None if value is None else float(f"{value:.{_DIGITS}g}") for value in values]
