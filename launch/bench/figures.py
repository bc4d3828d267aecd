"""The figures of the benchmarks, as PNG files."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from mnm_jax._files import whole_file

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, distinguishable for the colour-blind.
_COLOURS = {"plain": "#000000", "factored": "#0072B2", "reversible": "#D55E00", "auto": "#009E73"}
_OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
_DPI = 150
_MIB = 2**20


def draw_training_step(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws speed and memory saving of each form relative to "plain" over the number of steps; a column per memory."""
    columns = _distinct(rows, "rule", "heads")
    figure = _figure(title, 1 + 2.9 * len(columns), 6.4)
    axes = figure.subplots(2, len(columns), squeeze=False, sharey="row")
    measures = {
        "ratio_to_plain": "speed (times plain's)",
        "memory_ratio_to_plain": "plain's temporary memory\n(times the form's)",
    }
    for (measure, label), line in zip(measures.items(), axes, strict=True):
        line[0].set_ylabel(label)
        for axis, (rule, heads) in zip(line, columns, strict=True):
            own = [row for row in rows if (row["rule"], row["heads"]) == (rule, heads) and row["form"] != "plain"]
            _bars(axis, own, "steps", "form", measure)
            what = {"ratio_to_plain": "speed", "memory_ratio_to_plain": "memory"}[measure]
            axis.set_title(f"{what}: {rule} rule, {_heads(heads)}", fontsize=10)
            axis.set_xlabel("steps of a sequence")
            axis.axhline(1, color="0.3", linewidth=1)
    for axis in axes[0]:
        for times in (3, 5):
            axis.axhline(times, color="0.45", linestyle="--", linewidth=1)
    for axis in axes[1]:
        _log_axis(axis)
    _legend(figure, axes)
    _save(figure, path)


draw_many_heads = draw_training_step


def draw_own_program(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the speed of each program relative to the training program; a cluster per memory and number of steps."""
    named = [{**row, "case": f"{row['rule']}\nH {row['heads']}, T {row['steps']}"} for row in rows]
    figure = _figure(title, 2 + 1.1 * len(_distinct(named, "case")), 4.2)
    axis = figure.subplots()
    _bars(axis, named, "case", "form", "ratio_to_training")
    axis.set(ylabel="speed (times the training program's)")
    _legend(figure, [axis])
    _save(figure, path)


def draw_scaling(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws time per step and temporary memory against the number of steps, the width and the number of heads."""
    drawn = [name for name in ("steps", "width", "heads") if any(row["against"] == name for row in rows)]
    figure = _figure(title, 1 + 3.6 * max(1, len(drawn)), 6.4)
    axes = figure.subplots(2, max(1, len(drawn)), squeeze=False)
    for column, name in zip(axes.T, drawn, strict=False):
        own = [row for row in rows if row["against"] == name]
        fixed = [other for other in ("steps", "batch", "width") if other != name]
        about = f"against {name} ({', '.join(f'{other} {own[0][other]}' for other in fixed)})"
        by_heads = name != "heads" and len({row["heads"] for row in own}) > 1
        for form, *heads in _distinct(own, "form", *["heads"] * by_heads):
            curve = [row for row in own if row["form"] == form and [row["heads"]] * by_heads == heads]
            style = {"color": _COLOURS.get(form), "linestyle": "--" if heads and heads[0] == 1 else "-", "marker": "o"}
            label = f"{form}, {_heads(heads[0])}" if heads else form
            _curve(column[0], curve, name, lambda row: row["microseconds_per_step"], label=label, **style)
            _curve(column[1], curve, name, lambda row: row["temp_bytes"] and row["temp_bytes"] / _MIB, **style)
        labels = {"time": "microseconds per step", "memory": "temporary memory (MiB)"}
        for axis, (what, label) in zip(column, labels.items(), strict=True):
            places = sorted({row[name] for row in own})
            axis.set_title(f"{what} {about}", fontsize=8)
            axis.set(xscale="log", xlabel=name, ylabel=label)
            axis.set_xticks(places, [str(place) for place in places], minor=False)
            axis.set_xticks([], minor=True)
            _log_axis(axis)
            axis.grid(alpha=0.25)
        column[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_limit(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the rates of the forms and of the large product."""
    figure = _figure(title, 5.5, 4)
    axis = figure.subplots()
    known = [row for row in rows if row["gflop_per_second"] is not None]
    names = [f"product of {row['width']}" if row["form"] == "product" else row["form"] for row in known]
    colours = [_COLOURS.get(row["form"], "0.6") for row in known]
    bars = axis.bar(names, [row["gflop_per_second"] for row in known], color=colours)
    shares = ["" if row["fraction_of_product"] is None else f"{row['fraction_of_product']:.0%}" for row in known]
    axis.bar_label(bars, shares)
    axis.set_title("rate, and its share of the large product's")
    axis.set_ylabel("GFLOP/s")
    _save(figure, path)


def draw_peers(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the time of a training step of each library."""
    figure = _figure(title, 7, 4.2)
    axis = figure.subplots()
    _bars(axis, rows, "steps", "peer", "milliseconds")
    axis.set_title("value and gradient of a whole sequence")
    axis.set(xlabel="steps of a sequence", ylabel="milliseconds")
    _log_axis(axis)
    _legend(figure, [axis])
    _save(figure, path)


draw_lstm = draw_peers


def draw_seeds(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the time of an update of all seeds, mapped by `vmap` and by `lax.map`."""
    figure = _figure(title, 5, 4)
    axis = figure.subplots()
    _bars(axis, rows, "seeds", "mapping", "milliseconds")
    axis.set_title("update of the dictionary recipe, one device")
    axis.set(xlabel="seeds", ylabel="milliseconds")
    _legend(figure, [axis])
    _save(figure, path)


def draw_maze(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the steps of the environment per second for each agent."""
    figure = _figure(title, 9, 4.2)
    axis = figure.subplots()
    _bars(axis, rows, "agent", "driver", "kilosteps_per_second")
    axis.set_title("play: mazes and agent in one program; train: with the update")
    axis.set(xlabel="agent", ylabel="thousand steps per second")
    _log_axis(axis)
    _legend(figure, [axis])
    _save(figure, path)


def draw_layer(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the time of each memory's layer by form, forward and in training, and of the models beside it by length."""
    forms, models = ([row for row in rows if name in row] for name in ("memory", "model"))
    longest = max((row["steps"] for row in forms), default=0)
    panels = []
    for (run,) in _distinct(forms, "pass"):
        own = [row for row in forms if (row["pass"], row["steps"]) == (run, longest)]
        panels.append((own, "memory", "form", f"{run}, {longest:,} tokens"))
    if models:
        panels.append((models, "steps", "model", "training, by the number of tokens"))
    figure = _figure(title, 4.5 * len(panels) + 1, 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (own, place, name, about) in zip(axes, panels, strict=True):
        _bars(axis, own, place, name, "milliseconds")
        axis.set_title(about)
        axis.set(ylabel="milliseconds")
        _log_axis(axis)
    _legend(figure, axes)
    _save(figure, path)


def draw_accelerator(rows: Rows, path: str | os.PathLike, title: str) -> None:
    """Draws the tokens per second of each model and size, in every form, for those that were measured."""
    named = [
        {**row, "case": f"{row['model']}, H {row['heads'] or 1}\nT {row['steps']}, B {row['batch']}\n{row['dtype']}"}
        for row in rows
        if row.get("tokens_per_second") is not None
    ]
    figure = _figure(title, 3 + 0.9 * len(_distinct(named, "case")), 5.5)
    axis = figure.subplots()
    _bars(axis, named, "case", "form", "tokens_per_second")
    axis.tick_params(axis="x", rotation=90, labelsize=7)
    axis.set(ylabel="tokens per second")
    _log_axis(axis)
    _legend(figure, [axis])
    _save(figure, path)


def _bars(axis: Axes, rows: Rows, place: str, name: str, measure: str) -> None:
    """Draws bars of a measure: one cluster per `place`, one bar per `name`; a cluster without a number is labelled."""
    places = [value for (value,) in _distinct(rows, place)]
    names = [value for (value,) in _distinct(rows, name)]
    width = 0.8 / max(1, len(names))
    others = iter(_OTHER_COLOURS * len(names))
    for index, own in enumerate(names):
        known = [row for row in rows if row[name] == own and row[measure] is not None]
        at = [places.index(row[place]) + (index - (len(names) - 1) / 2) * width for row in known]
        colour = _COLOURS.get(own) or next(others)
        axis.bar(at, [row[measure] for row in known], width, color=colour, label=own)
    for index, value in enumerate(places):
        if all(row[measure] is None for row in rows if row[place] == value):
            axis.text(index, 0.02, "not known", transform=axis.get_xaxis_transform(), ha="center", rotation=90)
    axis.set_xticks(range(len(places)), [str(value).replace(", ", ",\n") for value in places])
    axis.grid(axis="y", alpha=0.25)


def _curve(axis: Axes, rows: Rows, x: str, y: Callable[[Mapping[str, Any]], float | None], **style: Any) -> None:
    points = sorted((row[x], y(row)) for row in rows if y(row) is not None)
    if points:
        axis.plot(*zip(*points, strict=True), markersize=4, **style)


def _log_axis(axis: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2, 5, 10, ..."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _heads(number: int) -> str:
    return f"{number} head{'s' * (number != 1)}"


def _distinct(rows: Rows, *names: str) -> list[tuple]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _figure(title: str, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=10)
    return figure


def _legend(figure: Figure, axes: Any) -> None:
    found = [axis.get_legend_handles_labels() for axis in getattr(axes, "flat", axes)]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with whole_file(pathlib.Path(path), "wb") as file:
        figure.savefig(file, format="png", dpi=_DPI)
