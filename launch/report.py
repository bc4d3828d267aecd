"""Figures and tables of finished runs.

    python -m launch.report --workdir=DIR        # one run, or a folder of runs at any depth
    python -m launch.report --results=results    # writes RESULTS.md beside that folder

Of one run: `DIR/figures/learning_curve.png` and, of a model with a memory whose parameters are there,
`DIR/figures/memory_map*.png`. Of a folder of runs: both for each, `DIR/learning_curves.png`, which compares them
(`DIR/GROUP/LABEL/` is one panel a group and one curve a label, `DIR/LABEL/` one panel), `DIR/accuracy_by_KEY.png` where
there are three test sets KEY=N or more, such as lengths, and a table. Runs side by side in one folder that differ in
their seed alone, `DIR/GROUP/LABEL/SEED/`, count as one run of several seeds.
"""

import contextlib
import os
import pathlib
import re
import shlex
import sys
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from launch.command import one_line_errors, parse_flags
from launch.reporting import figures
from launch.reporting.benchmark_table import benchmark_parts
from launch.reporting.table import by_test_set, compare, format_columns, format_markdown, sizes_of_test_sets
from launch.reporting.task_errors import errors_by_task, run_rows
from launch.runs.build import build_parts
from launch.runs.finished import Run, find_runs, join_seeds, read_run
from launch.runs.metrics import natural
from launch.runs.workdir import CONFIG, SUMMARY, read_config
from mnm_jax.analysis import has_metric
from mnm_jax.cells import CellOutput
from mnm_jax.training import Batch, load_params, played, split_model

# What a learning curve shows: the first of these that any of the runs has.
_METRICS = ("valid/accuracy", "valid/reward", "valid/bits", "valid/loss", "train/loss")
_PICTURED_STEPS = 20  # more would be too small to read
_SIZES = 3  # test sets of one kind that are worth a curve

_PREAMBLE = """\
<!-- Written by `python -m launch.report --results={folder}`: change the runs or their README.md, not this page. -->
# Results

Every figure, number and command on this page is taken from the files of the runs in [`{folder}/`]({link}).

In the tables, *accuracy* is that on the test set after the last update, from 0 to 1: mean ± sample standard deviation
over seeds. *Worst seed* is the lowest of any seed, *chance* what guessing gets. *Reward* is that of a test episode.
*Steps* are updates made. *Updates to 90%* is the first validation at which a seed answers 90% or more right, mean over
the seeds that get there ("-": none does). *Seconds* are those of all seeds together, trained side by side, with
compiling and evaluating. *Parameters* are those of one seed.
"""


def report_run(workdir: str | os.PathLike) -> None:
    """Draws the figures of one finished run (raises as `read_run`); what cannot be drawn is a line on stderr."""
    folder = pathlib.Path(workdir)
    run = read_run(folder, folder)
    title = f"{run.summary['model']} on {run.summary['task']}"
    with _or_note(f"{folder}: no learning curve"):
        curve = _curve(run, run.summary["model"])
        figures.learning_curves({title: [curve]}, _metric([run]), folder / "figures/learning_curve.png")
    if (folder / "checkpoints").is_dir() or (folder / "params.npz").is_file():
        with _or_note(f"{folder}: no memory map"):
            _draw_memory_maps(folder, title)


def report_runs(root: pathlib.Path) -> str:
    """Draws the figures of each run below `root` and the one that compares them; returns the table.

    Raises:
        FileNotFoundError: no finished run.
    """
    runs, notes = find_runs(root)
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
    if not runs:
        raise FileNotFoundError(f"no finished run in {root}; check --workdir, or train first.")
    for run in runs:
        report_run(run.folder)
    runs = join_seeds(runs, root)
    with _or_note(f"{root}: no comparison"):
        _draw_comparison(runs, root)
        _draw_test_sets(runs, root)
    return format_columns(_rows(runs))


def write_results(results: pathlib.Path) -> pathlib.Path:
    """Writes RESULTS.md beside a folder `SECTION/GROUP/LABEL/` of runs, and `SECTION/learning_curves.png`.

    The text of a section is its `README.md`, if there is one: a title as first heading, and what is compared.

    Raises:
        FileNotFoundError: no such folder, or no section in it.
    """
    sections = sorted((path for path in results.glob("[!.]*") if path.is_dir()), key=lambda path: natural(path.name))
    if not sections:
        raise FileNotFoundError(f"no section in {results}: put the folders of runs into {results}/SECTION/GROUP/LABEL.")
    root = results.absolute()
    parts = [_PREAMBLE.format(folder=root.name, link=urllib.parse.quote(root.name))]
    parts += [_section(root / section.name) for section in sections]
    path = root.parent / "RESULTS.md"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text("\n".join(parts), encoding="utf-8")
    unfinished.replace(path)
    return path


@contextlib.contextmanager
def _or_note(what: str) -> Iterator[None]:
    """One line on stderr instead of an error: the rest of a report does not depend on it."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"{what}: {' '.join(str(error).split())}", file=sys.stderr)


def _metric(runs: Sequence[Run]) -> str:
    for metric in _METRICS:
        if any(has_metric(run.lines, metric) for run in runs):
            return metric
    raise ValueError(f"metrics.jsonl is missing or has none of {', '.join(_METRICS)}.")


def _curve(run: Run, name: str) -> figures.Curve:
    episodes = run.summary.get("config", {}).get("training", {}).get("batch_size", 1)
    return figures.Curve(name, run.summary["model"], run.lines, episodes)


def _draw_comparison(runs: Sequence[Run], root: pathlib.Path) -> None:
    metric = _metric(runs)
    panels: dict[str, list[figures.Curve]] = {}
    for run in runs:
        if has_metric(run.lines, metric):
            curves = panels.setdefault(run.group or run.summary["task"], [])
            curves.append(_curve(run, run.name))
        else:
            print(f"{run.folder}: not in the comparison: its metrics.jsonl has no {metric}.", file=sys.stderr)
    figures.learning_curves(panels, metric, root / "learning_curves.png")


def _draw_test_sets(runs: Sequence[Run], root: pathlib.Path) -> list[pathlib.Path]:
    """Draws accuracy against length (or support, ...) where test sets are named by sizes; returns the figures."""
    found = {run.place: sizes_of_test_sets(run.summary) for run in runs}
    drawn = []
    for key in dict.fromkeys(key for sizes in found.values() for key in sizes):
        panels: dict[str, list[figures.SetCurve]] = {}
        trained = {}
        for run in runs:
            title, values = run.group or run.summary["task"], found[run.place].get(key, {})
            if "test/error" not in run.summary["metrics"] and len(values) >= _SIZES:  # tasks have numbers, not sizes
                panels.setdefault(title, []).append(figures.SetCurve(run.name, run.summary["model"], values))
                size = run.summary.get("config", {}).get("task", {}).get(key)
                trained |= {title: size} if isinstance(size, int) else {}
        if panels:
            drawn.append(root / f"accuracy_by_{key}.png")
            figures.accuracy_by_size(panels, key, trained, drawn[-1])
    return drawn


def _draw_memory_maps(folder: pathlib.Path, title: str) -> None:
    """Draws the memory of the first seed over a test example; nothing for a model without a memory.

    Of a task that names what to picture (`pictured`, evaluation sets), one of each, of no more than twenty steps if
    there is one; else a longest example. A task with `draw_episode` also draws that example itself, for every model.
    """
    task, make_model, training = build_parts(read_config(folder))
    params, _ = load_params(folder, make_model)
    model = nnx.merge(split_model(make_model), jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params))
    sets = task.evaluations("test", training.batch_size)
    names = [name for name in getattr(task, "pictured", ()) if name in sets]
    for name in names or [""]:
        batches = (jax.device_get(played(model, task, batch)) for batch in sets[name]())
        batch, index = longest(batches, _PICTURED_STEPS if names else None)
        example = jax.tree.map(lambda leaf, i=index: jnp.asarray(leaf[:, i : i + 1]), batch)
        cell = model(example.inputs, example.mask, example.fork).cell
        real = np.asarray(example.mask)[:, 0]
        trace = None
        if isinstance(cell, CellOutput):
            trace = jax.tree.map(lambda leaf, real=real: np.asarray(leaf)[real, 0], cell.trace)
        if hasattr(task, "draw_episode"):
            task.draw_episode(batch, index, trace, folder / "figures/episode.png", f"{title}: a test episode")
        if trace is None:
            return
        where = f"{name}, a test sequence" if name else "the memory over a test sequence"
        path = folder / "figures" / (f"memory_map_{name}.png" if name else "memory_map.png")
        figures.memory_maps(trace, task.tokens(batch, index), path, f"{title}: {where} (seed {training.seed})")


def longest(batches: Iterable[Batch], most: int | None = None) -> tuple[Batch, int]:
    """The batch with the most real steps in one example, and the place of that example; the first of equals.

    most: examples of more steps are passed over; if all have more, it is a shortest one.
    """

    def rank(steps: int) -> int:
        return steps if most is None or steps <= most else -steps

    def best(batch: Batch) -> tuple[int, int]:
        # An example without steps fills a batch up.
        ranks = [rank(steps) if steps else -sys.maxsize for steps in np.asarray(batch.mask).sum(0).tolist()]
        return max(ranks), ranks.index(max(ranks))

    batch = max(batches, key=lambda batch: best(batch)[0])
    return batch, best(batch)[1]


def _names(runs: Sequence[Run]) -> list[dict[str, str]]:
    grouped = any(run.group for run in runs)
    return [{"group": run.group or "-", "model": run.name} if grouped else {"model": run.name} for run in runs]


def _rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    rows = []
    for names, run in zip(_names(runs), runs, strict=True):
        try:
            rows.append(names | compare(run.summary, run.lines))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{run.folder} is damaged ({error}); bring its files back, or move it away.") from error
    return rows


def _section(folder: pathlib.Path) -> str:
    """A section of RESULTS.md: text, figure, tables, memory maps, commands, and what was left out."""
    members, notes = find_runs(folder)
    runs = join_seeds(members, folder)
    parts = [_text(folder)]
    if runs:
        with _or_note(f"{folder}: no comparison"):
            _draw_comparison(runs, folder)
            parts.append(f"![Learning curves]({_link(folder / 'learning_curves.png', folder)})")
            drawn = _draw_test_sets(runs, folder)
            parts += [f"![{path.stem.replace('_', ' ').capitalize()}]({_link(path, folder)})" for path in drawn]
        parts.append(format_markdown(_rows(runs)))
        hours = sum(run.summary["seconds"] for run in runs) / 3600
        parts.append(f"{len(members)} run{'s' * (len(members) != 1)}, {hours:.1f} hours one after the other.")
        errors = {run.place: errors_by_task(run.summary["metrics"]) for run in runs}
        sets = [by_test_set(run.summary) for run in runs]
        if any(errors.values()):
            rows = run_rows({place: found for place, found in errors.items() if found})
            parts += ["Test error in % by task, mean over seeds; *failed* are tasks above 5%:", format_markdown(rows)]
        elif any(sets):
            rows = [names | own for names, own in zip(_names(runs), sets, strict=True)]
            parts += ["Accuracy by test set, of the same parameters:", format_markdown(rows)]
        maps = [(run, path) for run in members for path in _maps(run.folder)]
        if maps:
            parts.append("<details open><summary>Memory maps: what is read, against what was written</summary>")
            for run, path in maps:
                parts += [f"`{run.place}`", f"![Memory map]({_link(path, folder)})"]
            parts.append("</details>")
        commands = "\n".join(f"# {run.place}\n{_command(run, folder.name)}" for run in members)
        parts += ["<details><summary>The command of each run</summary>", f"```sh\n{commands}\n```", "</details>"]
    benchmarks = benchmark_parts(folder, _link(folder, folder))
    parts += benchmarks
    if not runs and not benchmarks:
        parts.append("No finished run yet.")
    for note in notes:
        print(f"left out: {note}", file=sys.stderr)
        parts.append("Left out: " + note.replace(f"{folder}/", ""))
    return "\n\n".join(parts) + "\n"


def _maps(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("figures/memory_map*.png"), key=lambda path: natural(path.name))


def _text(folder: pathlib.Path) -> str:
    """README.md of a section, headings one level lower, links as from the page; the folder's name for a title."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not text.startswith("# "):
        text = f"# {folder.name}\n\n{text}".strip()
    pieces = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # code may hold lines that start with #
    here = _link(folder, folder)
    for index in range(0, len(pieces), 2):
        lowered = re.sub("^#", "##", pieces[index], flags=re.M)
        pieces[index] = re.sub(r"\]\((?![a-z]+:|/|#)", f"]({here}/", lowered)
    return "".join(pieces)


def _link(path: pathlib.Path, section: pathlib.Path) -> str:
    return urllib.parse.quote(path.relative_to(section.parent.parent).as_posix(), safe="/=,")


def _command(run: Run, section: str) -> str:
    """The command of a run as one may type it again: plain `python`, and a new workdir below `runs/`."""
    workdir = f"--workdir=runs/{section}/{run.place}"
    words = shlex.split(run.summary["command"])[1:]
    return shlex.join(["python", *(workdir if word.startswith("--workdir=") else word for word in words)])


def main(argv: list[str]) -> None:
    with one_line_errors():
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}; give the runs as --workdir=DIR or --results=DIR.")
        if (_WORKDIR.value is None) == (_RESULTS.value is None):
            raise ValueError("give either --workdir=DIR or --results=DIR.")
        if _RESULTS.value is not None:
            print(f"written: {write_results(pathlib.Path(_RESULTS.value))}")
            return
        workdir = pathlib.Path(_WORKDIR.value)
        if (workdir / CONFIG).exists() or (workdir / SUMMARY).exists():
            report_run(workdir)
            print(format_columns(_rows([read_run(workdir, workdir)])))
        else:
            print(report_runs(workdir))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of one run, or of several at any depth.")
    _RESULTS = flags.DEFINE_string("results", None, "Folder SECTION/GROUP/LABEL of runs; RESULTS.md goes beside it.")
    app.run(main, flags_parser=parse_flags)
