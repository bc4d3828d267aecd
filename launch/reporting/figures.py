"""The figures of runs, as PNG files: learning curves and test sets with their spread over seeds, and memory maps."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnm_jax import analysis
from mnm_jax.cells import MemoryTrace

# Okabe and Ito's colours, and Tol's for the last ones: the colour-blind can tell them apart. A model has the same one
# in every figure.
COLOURS = {
    "mnm-p": "#0072B2",
    "mnm-g": "#D55E00",
    "chain-p": "#56B4E9",
    "chain-g": "#E69F00",
    "lstm": "#000000",
    "lstm-salu": "#009E73",
    "ntm": "#CC79A7",
    "dnc": "#661100",
    "rnn": "#888888",
    "plastic": "#DDCC77",
    "neuromodulated": "#AA4499",
}
_OTHER_COLOURS = ("#332288", "#999999", "#F0E442")
_LINE_STYLES = ("-", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # of several runs of one model; dashed is chance
_SPLITS = {"train": "training batch", "valid": "validation", "test": "test"}

_WIDTH = 8.0  # inches; 1200 pixels, still readable when shown at 800
_DPI = 150
_LABELS = 32  # steps labelled at most on an axis of a memory map
_LABEL_LENGTH = 24


class Curve(NamedTuple):
    """One curve of a panel. name: for the legend; model: decides the colour; metrics: lines of `metrics.jsonl`.

    episodes: played for an update, where a reward is drawn.
    """

    name: str
    model: str
    metrics: Sequence[Mapping[str, Any]]
    episodes: int = 1


def learning_curves(panels: Mapping[str, Sequence[Curve]], metric: str, path: str | os.PathLike) -> None:
    """Draws a metric over updates (a reward over episodes): one panel a title, the mean over seeds of every curve.

    The band around a curve is one standard deviation over seeds to either side. Beside an accuracy, its chance level
    is a dashed line where the run has the metric "chance".

    Args:
        panels: curves by the title of their panel, in the order of the panels.
        metric: such as "valid/accuracy"; every curve must have it.
        path: the PNG file; written whole or not at all.

    Raises:
        ValueError: no curve, or a curve without the metric.
    """
    if not any(panels.values()):
        raise ValueError(f"no curve of {metric} to draw.")
    figure, axes, columns = _make_panels(len(panels))
    styles = _styles([curve for curves in panels.values() for curve in curves])
    handles: dict[str, Any] = {}
    chance = None
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        axis.set_title(title)
        axis.set_xlabel("episodes" if metric.endswith("reward") else "updates")
        axis.grid(alpha=0.25)
        for curve in curves:
            handles.setdefault(curve.name, _draw_curve(axis, curve, metric, styles[curve.name]))
        for level in _chance_levels(curves, metric):
            chance = axis.axhline(level, color="0.45", linestyle="--", linewidth=1.2)
        axis.set_xlim(left=0)
    if chance is not None:
        handles["chance"] = chance
    for axis in axes[::columns]:
        axis.set_ylabel(_describe(metric))
    if metric.endswith("accuracy"):
        axes[0].set_ylim(-0.02, 1.02)
    _add_legend(figure, handles, _legend_title(panels, metric))
    save_figure(figure, path)


class SetCurve(NamedTuple):
    """One curve over test sets. name: for the legend; model: decides the colour; values: of every seed, by size."""

    name: str
    model: str
    values: Mapping[int, Sequence[float]]


def accuracy_by_size(
    panels: Mapping[str, Sequence[SetCurve]], key: str, trained: Mapping[str, int], path: str | os.PathLike
) -> None:
    """Draws the accuracy on the test sets "KEY=N" against N: one panel a title, mean and range of seeds of every curve.

    Args:
        panels: curves by the title of their panel.
        key: what the test sets are named by, such as "length".
        trained: the largest N trained on, a dotted line, by the title of the panel; may lack some.
        path: the PNG file; written whole or not at all.

    Raises:
        ValueError: no curve.
    """
    if not any(panels.values()):
        raise ValueError(f"no test sets {key}=N to draw.")
    figure, axes, columns = _make_panels(len(panels))
    styles = _styles([curve for curves in panels.values() for curve in curves])
    handles: dict[str, Any] = {}
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        axis.set_title(title)
        axis.set_xlabel(key)
        axis.grid(alpha=0.25)
        for curve in curves:
            sizes = sorted(curve.values)
            seeds = [np.asarray(curve.values[size], float) for size in sizes]
            mean, low, high = ([part(row) for row in seeds] for part in (np.mean, np.min, np.max))
            (line,) = axis.plot(sizes, mean, marker="o", markersize=3.5, linewidth=1.8, **styles[curve.name])
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            handles.setdefault(curve.name, line)
        if title in trained:
            handles["longest trained on"] = axis.axvline(trained[title], color="0.45", linestyle=":", linewidth=1.2)
    for axis in axes[::columns]:
        axis.set_ylabel("accuracy (test)")
    axes[0].set_ylim(-0.02, 1.02)
    _add_legend(figure, handles, "line: mean over seeds; band: from the worst to the best seed")
    save_figure(figure, path)


def memory_maps(trace: MemoryTrace, tokens: Sequence[str], path: str | os.PathLike, title: str) -> None:
    """Draws the similarity of what is read at each step with what was written at it or before: keys, and values.

    Args:
        trace: of one sequence without its padding: keys `[T, H, K]`, values `[T, H, V]`.
        tokens: what goes in at each step, `T` of them; long ones are shortened.
        path: the PNG file; written whole or not at all.
        title: above the two panels.

    Raises:
        ValueError: another number of tokens than steps, or a trace of another shape.
    """
    maps = analysis.memory_maps(trace)
    steps = len(maps.keys)
    if len(tokens) != steps:
        raise ValueError(f"tokens must name each of the {steps} steps, got {len(tokens)}.")
    every = math.ceil(steps / _LABELS)
    places = np.arange(0, steps, every)
    labels = [_shorten(tokens[place]) for place in places]
    size = float(np.clip(180 / len(places), 5.5, 10))
    axis_label = "(the input of that step)" if every == 1 else f"(the input of that step; one in {every} is named)"

    longest = max(map(len, labels))
    inches = 0.6 * longest * size / 72  # roughly, of the longest label
    height = (_WIDTH - 1.6 - inches) / 2 + inches + 1.6
    figure = Figure(figsize=(_WIDTH, height), layout="compressed")
    figure.suptitle(title)
    axes = figure.subplots(1, 2, sharey=True)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.88")
    for axis, (name, similarity) in zip(axes, maps._asdict().items(), strict=True):
        image = axis.imshow(similarity, cmap=colours, vmin=-1, vmax=1)
        written = {"keys": "write keys", "values": "written values"}[name]
        axis.set_title(f"cosine similarity of\nread {name} with {written}", fontsize=10)
        axis.set_xticks(places, labels, rotation=90 if longest > 1 else 0, fontsize=size)
        axis.set_yticks(places, labels, fontsize=size)
        axis.set_xlabel(f"written at step\n{axis_label}")
        axis.text(
            0.96, 0.96, "not yet\nwritten", transform=axis.transAxes, ha="right", va="top", fontsize=9, color="0.35"
        )
    axes[0].set_ylabel(f"read at step\n{axis_label}")
    figure.colorbar(image, ax=axes, location="right", shrink=0.7, label="cosine similarity")
    save_figure(figure, path)


def _make_panels(count: int) -> tuple[Figure, Sequence[Axes], int]:
    """A figure of `count` panels that share their vertical axis, row by row; and how many columns it has."""
    columns = count if count < 3 else 2 if count == 4 else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, 1.0 + rows * (3.8 if columns == 1 else 2.7)), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes, columns


def _add_legend(figure: Figure, handles: Mapping[str, Any], title: str) -> None:
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, title=title, frameon=False)


def _draw_curve(axis: Axes, curve: Curve, metric: str, style: Mapping[str, Any]) -> Any:
    """Draws mean and band; returns what stands for the curve in a legend."""
    steps, mean, std, _ = analysis.learning_curve(curve.metrics, metric)
    steps = steps * curve.episodes if metric.endswith("reward") else steps
    marker = "o" if len(steps) <= 20 else ""
    (line,) = axis.plot(steps, mean, marker=marker, markersize=3.5, linewidth=1.8, **style)
    axis.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)
    if len(steps) == 1:  # a band has no width there
        axis.errorbar(steps, mean, std, color=style["color"], capsize=3)
    return line


def _styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """Colour by model and line style by name, the same in all panels."""
    models = {curve.name: curve.model for curve in curves}
    unknown = sorted(set(models.values()) - set(COLOURS))
    styles = {}
    for name, model in models.items():
        same = [other for other in models if models[other] == model]
        colour = COLOURS.get(model) or _OTHER_COLOURS[unknown.index(model) % len(_OTHER_COLOURS)]
        styles[name] = {"color": colour, "linestyle": _LINE_STYLES[same.index(name) % len(_LINE_STYLES)]}
    return styles


def _chance_levels(curves: Sequence[Curve], metric: str) -> list[float]:
    """The different chance levels of a panel (the last of each run), to a thousandth; of accuracies only."""
    if not metric.endswith("accuracy"):
        return []
    chance = metric.removesuffix("accuracy") + "chance"
    known = [curve.metrics for curve in curves if analysis.has_metric(curve.metrics, chance)]
    return sorted({round(float(analysis.learning_curve(lines, chance).mean[-1]), 3) for lines in known})


def _describe(metric: str) -> str:
    split, _, name = metric.partition("/")
    return f"{name.replace('_', ' ')} ({_SPLITS.get(split, split)})" if name else metric


def _legend_title(panels: Mapping[str, Sequence[Curve]], metric: str) -> str:
    sizes = {len(line[metric]) for curves in panels.values() for c in curves for line in c.metrics if metric in line}
    seeds = " to ".join(str(size) for size in dict.fromkeys((min(sizes), max(sizes))))
    if sizes == {1}:
        return "one seed"
    return f"line: mean of {seeds} seeds; band: one standard deviation over seeds to either side"


def _shorten(token: str) -> str:
    """The first and the last letters of a long token: in a sentence the last word often tells most."""
    if len(token) <= _LABEL_LENGTH:
        return token
    head = (_LABEL_LENGTH - 1) // 2
    return f"{token[:head].rstrip()}…{token[head + 1 - _LABEL_LENGTH :].lstrip()}"


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG file, whole or not at all; its folder is made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=_DPI, bbox_inches="tight")
    unfinished.replace(path)
