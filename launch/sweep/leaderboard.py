"""The result of a sweep: its trials from best to worst as rows, and a figure of parallel coordinates."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from launch.reporting.png import save_figure
from launch.runs.workdir import SUMMARY
from launch.sweep.space import DEFAULT, PlannedTrial
from launch.sweep.trial import scores

Row = dict[str, Any]
_STATES = ("finished", "stopped early", "failed")


def make_rows(
    trials: Sequence[PlannedTrial],
    defaults: Mapping[str, Any],
    folder: pathlib.Path,
    metric: str,
    errors: Mapping[str, str],
    *,
    largest: bool = True,
) -> list[Row]:
    """Returns a row per trial: name, state, area, last, step, settings, error.

    The area is the mean of the metric over the evaluations. Finished trials come first, then trials stopped
    early, each from the best area to the worst, then failed trials. `area` and `last` are
    None if they are not finite or there is no evaluation; a trial without an area is the last of its state.

    Args:
      trials: the trials of the sweep.
      defaults: the recipe's values of all settings that the space has; "default" for one that the recipe leaves out.
      folder: folder with one folder per trial.
      metric: metric of the evaluations, such as "valid/accuracy".
      errors: error messages, by name of the trial.
      largest: whether a larger metric is better.
    """
    rows = []
    for trial in trials:
        workdir = folder / trial.name
        failed = trial.name in errors
        found = [] if failed and not workdir.is_dir() else scores(workdir, metric)
        score = found[-1] if found else None
        state = _STATES[2] if failed else _STATES[0] if (workdir / SUMMARY).is_file() else _STATES[1]
        rows.append(
            {
                "trial": trial.name,
                "state": state,
                "area": _finite(score and score.area),
                "last": _finite(score and score.last),
                "step": score.step if score else 0,
                "settings": {**defaults, **trial.changes},
                "error": errors.get(trial.name),
            }
        )
    sign = -1.0 if largest else 1.0
    order = lambda area: np.inf if area is None else sign * area  # noqa: E731
    return sorted(rows, key=lambda row: (_STATES.index(row["state"]), order(row["area"])))


def _finite(number: float | None) -> float | None:
    """Returns the number, or None if it is not finite; JSON has no NaN or infinity."""
    return number if number is not None and math.isfinite(number) else None


def describe(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the rows as text by column, for a table."""
    columns = []
    for row in rows:
        numbers = {name: "-" if row[name] is None else f"{row[name]:.4f}" for name in ("area", "last")}
        settings = {name: str(value) for name, value in row["settings"].items()}
        state = row["state"] if row["error"] is None else f"failed: {row['error']}"
        columns.append({"trial": row["trial"], **numbers, "step": f"{row['step']:,}", **settings, "state": state})
    return columns


def draw(rows: Sequence[Row], metric: str, path: pathlib.Path) -> None:
    """Draws parallel coordinates: an axis per setting and one of areas, a line per trial, dashed if stopped early.

    The unchanged recipe has a black line. Trials without a score are left out.
    """
    shown = [row for row in rows if row["area"] is not None]
    if not shown:
        return
    names = list(shown[0]["settings"])
    figure = Figure(figsize=(max(6.0, 2.0 * (len(names) + 1)), 4.0), layout="constrained")
    axes = figure.add_subplot()
    heights, ticks = [], []
    for name in names:
        column = [row["settings"][name] for row in shown]
        named = {json.dumps(value): value for value in column}
        texts = sorted(named, key=lambda text: _order(named[text], text))
        places = {text: index / max(len(texts) - 1, 1) for index, text in enumerate(texts)}
        heights.append([places[json.dumps(value)] for value in column])
        labels = [f"{value:g}" if isinstance(value := named[text], float) else str(value) for text in texts]
        ticks.append(list(zip(places.values(), labels, strict=True)))
    areas = np.array([row["area"] for row in shown])
    low, high = areas.min(), max(areas.max(), areas.min() + 1e-9)
    heights.append(((areas - low) / (high - low)).tolist())
    ticks.append([(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")])
    colours, scale = colormaps["viridis"], Normalize(low, high)
    for index, row in reversed(list(enumerate(shown))):  # the best on top
        recipe = row["trial"] == DEFAULT
        axes.plot(
            [column[index] for column in heights],
            color="black" if recipe else colours(scale(row["area"])),
            linestyle="-" if row["state"] == _STATES[0] else "--",
            linewidth=2.5 if recipe or index == 0 else 1.2,
            label="the unchanged recipe" if recipe else None,
        )
    for place, marks in enumerate(ticks):
        axes.axvline(place, color="0.7", linewidth=0.8, zorder=0)
        for height, text in marks:
            axes.annotate(text, (place, height), (4, 2), textcoords="offset points", fontsize=8)
    short = [name.split(".", 1)[1].replace("_", " ") for name in names]
    axes.set_xticks(range(len(ticks)), [*short, f"area under\n{metric}"])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.12), frameon=False)
    save_figure(figure, path)


def _order(value: Any, text: str) -> tuple[bool, float, str]:
    """Returns the key that sorts numbers by size, and other values after them by their text."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0, text
