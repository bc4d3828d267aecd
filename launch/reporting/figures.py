"""Figures of runs as PNG files: learning curves and test sets with their spread over seeds, and memory maps."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.reporting.png import save_figure
from launch.runs.registry import model_colours
from mnm_jax import analysis
from mnm_jax.cells import MemoryTrace

_LINE_STYLES: tuple[Any, ...] = ("-", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # runs of one model; dashed is chance
_SPLITS = {"train": "training batch", "valid": "validation", "test": "test"}

_LOGARITHMIC = ("state",)  # settings with a logarithmic axis
_WIDTH = 8.0  # inches; 960 pixels, readable when shown at 700
_LABELS = 32  # largest number of labelled steps on an axis of a memory map
_LABEL_LENGTH = 24


class Curve(NamedTuple):
    """One curve of a panel.

    Attributes:
      name: text in the legend.
      model: decides the colour.
      metrics: lines of `metrics.jsonl`.
      episodes: episodes per update, for the axis of a reward.
    """

    name: str
    model: str
    metrics: Sequence[Mapping[str, Any]]
    episodes: int = 1


def learning_curves(panels: Mapping[str, Sequence[Curve]], metric: str, path: str | os.PathLike) -> None:
    """Draws a metric against updates (a reward against episodes): one panel per title, and the mean over seeds.

    The band around a curve is one standard deviation over seeds to either side. The chance level of an accuracy is a
    dashed line, if the run has the metric "chance".

    Args:
      panels: curves by the title of their panel, in the order of the panels.
      metric: name of the metric, such as "valid/accuracy"; every curve must have it.
      path: the PNG file; written whole or not at all.

    Raises:
      ValueError: there is no curve, or a curve does not have the metric.
    """
    if not any(panels.values()):
        raise ValueError(f"no curve of {metric} to draw.")
    figure, axes = _make_panels(panels, "episodes" if metric.endswith("reward") else "updates", _describe(metric))
    styles = _styles([curve for curves in panels.values() for curve in curves])
    handles: dict[str, Any] = {}
    chance = None
    for axis, curves in zip(axes, panels.values(), strict=True):
        for curve in curves:
            handles.setdefault(curve.name, _draw_curve(axis, curve, metric, styles[curve.name]))
        for level in _chance_levels(curves, metric):
            chance = axis.axhline(level, color="0.45", linestyle="--", linewidth=1.2)
        axis.set_xlim(left=0)
    if chance is not None:
        handles["chance"] = chance
    if metric.endswith("accuracy"):
        axes[0].set_ylim(-0.02, 1.02)
    _add_legend(figure, handles, _legend_title(panels, metric))
    save_figure(figure, path)


class SetCurve(NamedTuple):
    """One curve over test sets.

    Attributes:
      name: text in the legend.
      model: decides the colour.
      values: accuracy of every seed, by size of the test set.
    """

    name: str
    model: str
    values: Mapping[int, Sequence[float]]


def accuracy_by_size(
    panels: Mapping[str, Sequence[SetCurve]], key: str, trained: Mapping[str, int], path: str | os.PathLike
) -> None:
    """Draws the accuracy on the test sets "KEY=N" against N: one panel per title, with mean and range over seeds.

    Args:
      panels: curves by the title of their panel.
      key: name of the size, such as "length".
      trained: largest N of the training set by the title of the panel, a dotted line; panels may be missing.
      path: the PNG file; written whole or not at all.

    Raises:
      ValueError: there is no curve.
    """
    if not any(panels.values()):
        raise ValueError(f"no test sets {key}=N to draw.")
    figure, axes = _make_panels(panels, key, "accuracy (test)")
    styles = _styles([curve for curves in panels.values() for curve in curves])
    handles: dict[str, Any] = {}
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            sizes = sorted(curve.values)
            seeds = [np.asarray(curve.values[size], float) for size in sizes]
            mean, low, high = ([part(row) for row in seeds] for part in (np.mean, np.min, np.max))
            (line,) = axis.plot(sizes, mean, marker="o", markersize=3.5, linewidth=1.8, **styles[curve.name])
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            handles.setdefault(curve.name, line)
        if key in _LOGARITHMIC:
            axis.set_xscale("log", base=2)
        if title in trained:
            handles["longest trained on"] = axis.axvline(trained[title], color="0.45", linestyle=":", linewidth=1.2)
    axes[0].set_ylim(-0.02, 1.02)
    _add_legend(figure, handles, "line: mean over seeds; band: from the worst to the best seed")
    save_figure(figure, path)


def memory_maps(
    trace: MemoryTrace,
    tokens: Sequence[str],
    path: str | os.PathLike,
    title: str,
    *,
    read_first: bool = False,
    kept: np.ndarray | None = None,
) -> None:
    """Draws how similar the read keys and values of each step are to those that the memory then holds.

    Args:
      trace: trace of one sequence without its padding: keys `[T, H, K]`, values `[T, H, V]`.
      tokens: label of the input of each step, `T` of them; long ones are shortened.
      path: the PNG file; written whole or not at all.
      title: text above the two panels.
      read_first: see `mnm_jax.analysis.memory_maps`.
      kept: see there.

    Raises:
      ValueError: the number of tokens is not the number of steps, or the trace has another shape.
    """
    maps = analysis.memory_maps(trace, read_first=read_first, kept=kept)
    absent = "not yet\nwritten" if kept is None or np.all(kept) else "not yet written,\nor discarded"
    steps = len(maps.keys)
    if len(tokens) != steps:
        raise ValueError(f"tokens must name each of the {steps} steps, got {len(tokens)}.")
    every = math.ceil(steps / _LABELS)
    places = range(0, steps, every)
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
        axis.text(0.96, 0.96, absent, transform=axis.transAxes, ha="right", va="top", fontsize=9, color="0.35")
    axes[0].set_ylabel(f"read at step\n{axis_label}")
    figure.colorbar(image, ax=axes, location="right", shrink=0.7, label="cosine similarity")
    save_figure(figure, path)


def _make_panels(panels: Collection[str], xlabel: str, ylabel: str) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure and one panel per title, row by row, which share their vertical axis."""
    count = len(panels)
    columns = count if count < 3 else 2 if count == 4 else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_WIDTH, 1.0 + rows * (3.8 if columns == 1 else 2.7)), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, title in zip(axes, panels, strict=False):
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.25)
    for axis in axes[::columns]:
        axis.set_ylabel(ylabel)
    return figure, axes[:count]


def _add_legend(figure: Figure, handles: Mapping[str, Any], title: str) -> None:
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, title=title, frameon=False)


def _draw_curve(axis: Axes, curve: Curve, metric: str, style: Mapping[str, Any]) -> Any:
    """Draws mean and band, and returns the handle of the curve for a legend."""
    steps, mean, std, _ = analysis.learning_curve(curve.metrics, metric)
    steps = steps * curve.episodes if metric.endswith("reward") else steps
    marker = "o" if len(steps) <= 20 else ""
    (line,) = axis.plot(steps, mean, marker=marker, markersize=3.5, linewidth=1.8, **style)
    axis.fill_between(steps, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)
    if len(steps) == 1:  # a band has no width there
        axis.errorbar(steps, mean, std, color=style["color"], capsize=3)
    return line


def _styles(curves: Sequence[Curve | SetCurve]) -> dict[str, dict[str, Any]]:
    """Returns a colour by model and a line style by name, the same in all panels."""
    models = {curve.name: curve.model for curve in curves}
    colours = model_colours(models.values())
    styles = {}
    for name, model in models.items():
        same = [other for other in models if models[other] == model]
        styles[name] = {"color": colours[model], "linestyle": _LINE_STYLES[same.index(name) % len(_LINE_STYLES)]}
    return styles


def _chance_levels(curves: Sequence[Curve], metric: str) -> list[float]:
    """Returns the distinct chance levels of a panel, the last one per run, to three decimals; of accuracies only."""
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
    """Returns the first and the last letters of a long token, since the last word of a sentence often matters most."""
    if len(token) <= _LABEL_LENGTH:
        return token
    head = (_LABEL_LENGTH - 1) // 2
    return f"{token[:head].rstrip()}…{token[head + 1 - _LABEL_LENGTH :].lstrip()}"
