"""Figures of runs: the learning curve and the memory maps of one run, and the comparison of several."""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from launch.reporting import figures
from launch.reporting.table import comparison_rows, sizes_of_test_sets
from launch.reporting.text_table import format_columns
from launch.runs.build import build_parts
from launch.runs.finished import Run, check_run, find_runs, join_seeds, read_run
from launch.runs.workdir import SUMMARY, read_config
from mnm_jax.analysis import has_metric
from mnm_jax.cells import CellOutput
from mnm_jax.training import Batch, load_model, optional_member, played

# A learning curve shows the first of these metrics that any of the runs has.
_METRICS = ("valid/accuracy", "valid/reward", "valid/bits", "valid/loss", "train/loss")
_PICTURED_STEPS = 20  # more would be too small to read
_SIZES = 3  # smallest number of test sets of one kind that makes a curve
CURVES, BY_SIZE = "learning_curves.png", "accuracy_by_{}.png"


def report_run(workdir: str | os.PathLike, data_dir: str | None = None) -> None:
    """Draws the figures of one finished run; reports a figure that cannot be drawn as one line on stderr.

    Args:
      workdir: folder of the run.
      data_dir: folder of the task's data; None: the one that the config names.

    Raises:
      FileNotFoundError, ValueError: as `read_run`.
    """
    folder = pathlib.Path(workdir)
    run = read_run(folder, folder)
    check_run(run)
    title = f"{run.summary['model']} on {run.summary['task']}"
    with or_note(f"{folder}: no learning curve"):
        curve = _curve(run, run.summary["model"])
        figures.learning_curves({title: [curve]}, curve_metric([run]), folder / "figures/learning_curve.png")
    if (folder / "checkpoints").is_dir() or any(folder.glob("params.*")):
        with or_note(f"{folder}: no memory map"):
            _draw_examples(folder, title, data_dir)


def report_runs(root: pathlib.Path, data_dir: str | None = None) -> str:
    """Draws the figures of each run below `root` and the figures that compare them, and returns the table.

    Folders whose files are damaged, or were written by another program, are left out, each with a line on stderr.

    Args:
      root: folder of the runs.
      data_dir: folder of the data of their task; None: the one that each config names.

    Raises:
      FileNotFoundError: there is no finished run.
      ValueError: a file of the light form is damaged.
    """
    found, notes = find_runs(root)
    runs = []
    for run in found:
        try:
            check_run(run)
            comparison_rows([run])
        except ValueError as error:
            notes.append(str(error))
        else:
            runs.append(run)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"no finished run in {root}; check --workdir, or train first.")
    for run in runs:
        if (run.folder / SUMMARY).is_file():
            report_run(run.folder, data_dir)
    runs = join_seeds(runs, root)
    with or_note(f"{root}: no comparison"):
        draw_comparison(runs, root)
        for key in sized_sets(runs):
            draw_test_sets(runs, key, root)
    return format_columns(comparison_rows(runs))


def draw_comparison(runs: Sequence[Run], root: pathlib.Path) -> None:
    """Draws `learning_curves.png` in `root`: one panel per group and one curve per run.

    Raises:
      ValueError: no run has a metric that could be drawn.
    """
    metric = curve_metric(runs)
    panels: dict[str, list[figures.Curve]] = {}
    for run in runs:
        if has_metric(run.lines, metric):
            curves = panels.setdefault(run.group or run.summary["task"], [])
            curves.append(_curve(run, run.name))
        else:
            print(f"{run.folder}: not in the comparison: its metrics.jsonl has no {metric}.", file=sys.stderr)
    figures.learning_curves(panels, metric, root / CURVES)


def sized_sets(runs: Sequence[Run]) -> list[str]:
    """Returns the names of test sets with sizes, such as "length" or "support", that make a curve for some run."""
    return list(dict.fromkeys(key for run in runs for key in _curves_by_size(run)))


def draw_test_sets(runs: Sequence[Run], key: str, root: pathlib.Path) -> None:
    """Draws `accuracy_by_KEY.png` in `root`: accuracy against the size of the test sets named `KEY=SIZE`.

    If KEY is a setting of the models, such as "state", accuracy is drawn against the setting, with one panel per task
    and one curve per model.

    Raises:
      ValueError: no run has three such test sets, and no model has three runs with different settings.
    """
    panels: dict[str, list[figures.SetCurve]] = {}
    trained: dict[str, int] = {}
    if settings := _curves_by_setting(runs, key):
        figures.accuracy_by_size(settings, key, trained, root / BY_SIZE.format(key))
        return
    for run in runs:
        title, values = run.group or run.summary["task"], _curves_by_size(run).get(key)
        if values:
            panels.setdefault(title, []).append(figures.SetCurve(run.name, run.summary["model"], values))
            size = run.summary.get("config", {}).get("task", {}).get(key)
            trained |= {title: size} if isinstance(size, int) else {}
    figures.accuracy_by_size(panels, key, trained, root / BY_SIZE.format(key))


def curve_metric(runs: Sequence[Run]) -> str:
    """Returns the metric that a learning curve of the runs shows.

    Raises:
      ValueError: no run has one of the metrics that can be drawn.
    """
    for metric in _METRICS:
        if any(has_metric(run.lines, metric) for run in runs):
            return metric
    raise ValueError(f"metrics.jsonl is missing or has none of {', '.join(_METRICS)}.")


def longest(batches: Iterable[Batch], most: int | None = None) -> tuple[Batch, int]:
    """Returns the batch with the longest example and the index of that example in it; of equals, the first one.

    Args:
      batches: evaluation batches.
      most: largest number of steps of the example; if all examples are longer, a shortest one is returned.
    """

    def rank(steps: int) -> int:
        return steps if most is None or steps <= most else -steps

    def best(batch: Batch) -> tuple[int, int]:
        # An example without steps is padding of the batch.
        ranks = [rank(steps) if steps else -sys.maxsize for steps in np.asarray(batch.mask).sum(0).tolist()]
        return max(ranks), ranks.index(max(ranks))

    batch = max(batches, key=lambda batch: best(batch)[0])
    return batch, best(batch)[1]


@contextlib.contextmanager
def or_note(subject: str) -> Iterator[None]:
    """Prints an error as one line on stderr and continues, since the rest of a report does not depend on it."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"{subject}: {' '.join(str(error).split())}", file=sys.stderr)


def _curve(run: Run, name: str) -> figures.Curve:
    episodes = run.summary.get("config", {}).get("training", {}).get("batch_size", 1)
    return figures.Curve(name=name, model=run.summary["model"], metrics=run.lines, episodes=episodes)


def _curves_by_size(run: Run) -> dict[str, dict[int, list[float]]]:
    if "test/error" in run.summary["metrics"]:  # the test sets are tasks, whose numbers are no sizes
        return {}
    return {key: values for key, values in sizes_of_test_sets(run.summary).items() if len(values) >= _SIZES}


def _draw_examples(folder: pathlib.Path, title: str, data_dir: str | None) -> None:
    """Draws the memory of the first seed over a test example.

    If the task names `pictured` evaluation sets, a map is drawn for each, of an example of at most twenty steps if
    there is one; otherwise one map is drawn, of a longest example. A model without a memory has no map. If the task has
    `draw_episode`, the example itself is drawn as well, for every model.
    """
    task, make_model, training = build_parts(read_config(folder, data_dir))
    model = load_model(folder, make_model)
    sets = task.evaluations("test", training.batch_size)
    names = [name for name in optional_member(task, "pictured") if name in sets]
    draw_episode = optional_member(task, "draw_episode")
    for name in names or [""]:
        batches = (jax.device_get(played(model, task, batch)) for batch in sets[name]())
        batch, index = longest(batches, _PICTURED_STEPS if names else None)
        example = jax.tree.map(lambda leaf, i=index: jnp.asarray(leaf[:, i : i + 1]), batch)
        cell = model(example.inputs, **example.flags).cell
        real = np.asarray(example.mask)[:, 0]
        trace = None
        if isinstance(cell, CellOutput):
            trace = jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real, 0], cell.trace)
        if draw_episode is not None:
            draw_episode(batch, index, trace, folder / "figures/episode.png", f"{title}: a test episode")
        if trace is None:
            return
        where = f"{name}, a test sequence" if name else "the memory over a test sequence"
        path = folder / "figures" / (f"memory_map_{name}.png" if name else "memory_map.png")
        lost = [flag for flag in (example.fork, example.fork_memory) if flag is not None]
        figures.memory_maps(
            trace,
            task.tokens(batch, index),
            path,
            f"{title}: {where} (seed {training.seed})",
            read_first=getattr(model.cell, "read_first", False),
            kept=~np.any(lost, axis=0)[real, 0] if lost else None,
        )


def _curves_by_setting(runs: Sequence[Run], key: str) -> dict[str, list[figures.SetCurve]]:
    """Returns curves over a setting of the models by task; empty unless some model has a curve.

    Runs belong to one curve if they have the same model, task and settings of the task. A single run is drawn as a
    point.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for run in runs:
        config, row = run.summary.get("config", {}), run.summary["metrics"].get("test/accuracy")
        size = config.get("model", {}).get(key)
        if isinstance(size, int) and row and None not in row["per_seed"]:
            models = found.setdefault(json.dumps([run.summary["task"], config.get("task")]), {})
            models.setdefault(run.summary["model"], {})[size] = row["per_seed"]
    panels: dict[str, list[figures.SetCurve]] = {}
    for task, models in found.items():
        if any(len(values) >= _SIZES for values in models.values()):
            curves = [figures.SetCurve(model, model, values) for model, values in models.items()]
            panels.setdefault(json.loads(task)[0], []).extend(curves)
    return panels
