"""Figures, tables and RESULTS.md of runs written by hand, and what is said about damaged ones."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib import image
from ml_collections import ConfigDict

from launch.report import longest, report_run, report_runs, write_results
from launch.reporting import figures, table
from launch.reporting.table import compare
from launch.runs import build
from launch.runs.finished import find_runs, join_seeds
from launch.runs.registry import MODELS
from launch.train import run
from mnm_jax.cells import MemoryTrace
from mnm_jax.training import Batch, TrainState, load_params, save_checkpoint, save_params, split_model
from tasks.dictionary import Dictionary

ROOT = pathlib.Path(__file__).parents[2]
TASK = {"name": "dictionary", "support": 2, "queries": 1, "evaluation_batches": 1, "wider": False}
MEMORY = {"name": "mnm-p", "hidden_features": 4, "memory_features": 3, "memory_layers": 2, "heads": 2}
TRAINING = {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "seed": 4, "seeds": 2, "eval_every": 1}


def metric(*per_seed):
    values = np.array(per_seed)
    std = values.std(ddof=1) if len(values) > 1 else 0.0
    return {"mean": values.mean(), "std": std, "per_seed": list(per_seed)}


def write_run(folder, model="mnm-p", accuracy=(0.5, 0.75, 1.0), validation=((10, 0.2, 0.95, 0.9), (20, 0.9, 1.0, 1.0))):
    folder.mkdir(parents=True)
    summary = {
        "task": "dictionary",
        "model": model,
        "seeds": len(accuracy),
        "steps": 2000,
        "seconds": 1234.5,
        "command": f"/somewhere/bin/python3.11 -m launch.train --config=c.py:{model} '--workdir=/tmp/a b' --config.x=1",
        "parameters": 23118,
        "metrics": {
            "test/accuracy": metric(*accuracy),
            "test/chance": metric(0.25),
            "test/support=16/accuracy": metric(*(value / 2 for value in accuracy)),
            "test/support=8/accuracy": metric(*accuracy),
            "test/support=8/chance": metric(0.125),
            "test/loss": metric(1.0),
        },
    }
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": step, "seconds": 1.0, "valid/accuracy": values} for step, *values in validation]
    lines[-1]["valid/chance"] = [0.25] * len(accuracy)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary, lines


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(path):
    """Colours 0xRRGGBB of a picture without its legend; it must be wide enough, and show something."""
    red, green, blue = np.moveaxis(np.round(255 * image.imread(path)[..., :3]).astype(np.int32), -1, 0)
    picture = (red << 16) + (green << 8) + blue
    assert 800 < picture.shape[1] < 1250
    assert len(np.unique(picture)) > 10
    return picture[: 3 * len(picture) // 4]


def count(picture, colour):
    return int(np.sum(picture == int(colour.removeprefix("#"), 16)))


def cells(markdown, heading):
    """Rows of the Markdown table whose first line starts with `heading`."""
    lines = markdown.split(f"| {heading}", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_row_of_a_run_by_hand(tmp_path):
    row = compare(*write_run(tmp_path / "run"))
    assert row == {
        "seeds": "3",
        "steps": "2,000",
        "chance": "0.2500",
        "accuracy": "0.7500 +- 0.2500",
        "worst seed": "0.5000",
        "updates to 90%": "13",  # seeds reach it at 20, 10 and 10
        "seconds": "1,234",
        "parameters": "23,118",
    }


def test_the_row_of_one_seed_of_some_seeds_and_of_numbers_that_are_not_finite(tmp_path):
    summary, lines = write_run(tmp_path / "run", accuracy=(0.5,), validation=[(10, 0.2)])
    row = compare(summary, lines)
    assert (row["accuracy"], row["worst seed"], row["updates to 90%"]) == ("0.5000", "0.5000", "-")
    lines = [{"step": 40, "valid/accuracy": [0.9, 0.1]}]
    summary["metrics"]["test/accuracy"] = {"mean": None, "std": None, "per_seed": [1.0, None]}
    row = compare(summary, lines)
    assert (row["accuracy"], row["worst seed"]) == ("not finite", "not finite")
    assert row["updates to 90%"] == "40 (1 of 2 seeds)"
    del summary["metrics"]["test/accuracy"]
    row = compare(summary, [])
    assert (row["accuracy"], row["worst seed"], row["updates to 90%"]) == ("-", "-", "-")


def test_tables_are_aligned_and_fill_in_what_a_row_lacks():
    rows = [{"a": "1", "b": "x +- y"}, {"a": "long", "c": "|"}]
    assert table.format_columns(rows) == "a     b       c\n1     x +- y  -\nlong  -       |"
    assert table.format_markdown(rows).splitlines() == [
        "| a | b | c |",
        "| --- | --- | --- |",
        "| 1 | x ± y | - |",
        r"| long | - | \| |",
    ]


def test_a_folder_of_runs(tmp_path, capsys):
    write_run(tmp_path / "support=16/mnm-p")
    write_run(tmp_path / "support=8/plain", "lstm", (0.25, 0.25, 0.25), [(10, 0.1, 0.2, 0.3)])
    write_run(tmp_path / "support=8/mnm-p")
    header, *lines = report_runs(tmp_path).splitlines()
    assert header.split()[:4] == ["group", "model", "seeds", "steps"]
    assert [line.split()[0] for line in lines] == ["support=8", "support=8", "support=16"]
    assert "plain (lstm)  3      2,000  0.2500  0.2500 +- 0.0000  0.2500      -" in lines[1]
    assert "0.7500 +- 0.2500  0.5000      13" in lines[0]
    assert capsys.readouterr().err == ""

    picture = pixels(tmp_path / "learning_curves.png")
    left, right = picture[:, :600], picture[:, 600:]
    memory = figures.COLOURS["mnm-p"]
    assert min(count(left, memory), count(right, memory)) > 100
    assert not list(tmp_path.rglob("memory_map.png")) and not list(tmp_path.rglob("*.unfinished"))
    one, other = (
        pixels(tmp_path / name / "figures/learning_curve.png") for name in ("support=16/mnm-p", "support=8/plain")
    )
    assert count(one, memory) > 100 > count(other, memory)

    before = contents(tmp_path)
    report_runs(tmp_path)
    assert contents(tmp_path) == before


def test_runs_without_groups(tmp_path):
    write_run(tmp_path / "mnm-g", "mnm-g")
    assert report_runs(tmp_path).split()[:3] == ["model", "seeds", "steps"]
    assert count(pixels(tmp_path / "learning_curves.png"), figures.COLOURS["mnm-g"]) > 100


def test_every_model_has_a_colour_of_its_own_and_runs_of_one_model_a_line_of_their_own():
    assert set(MODELS) <= set(figures.COLOURS)
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    styles = figures._styles(
        [figures.Curve(name, model, []) for name, model in [("a", "lstm"), ("b", "lstm"), ("c", "x")]]
    )
    assert styles["a"]["color"] == styles["b"]["color"] == figures.COLOURS["lstm"]
    assert styles["a"]["linestyle"] != styles["b"]["linestyle"]
    assert styles["c"]["color"] not in figures.COLOURS.values()


def test_chance_is_drawn_beside_accuracies_only():
    lines = [{"step": 1, "valid/accuracy": [0.5], "valid/chance": [level]} for level in (0.9, 0.25)]
    curves = [figures.Curve("a", "lstm", lines), figures.Curve("b", "lstm", [{"step": 1, "valid/accuracy": [0.5]}])]
    assert figures._chance_levels(curves, "valid/accuracy") == [0.25]
    assert figures._chance_levels(curves, "valid/loss") == []


def test_the_band_is_the_spread_over_seeds(tmp_path):
    pictures = []
    for spread in (0.0, 0.05, 0.1):
        lines = [{"step": step, "valid/accuracy": [0.5 - spread, 0.5 + spread]} for step in range(1, 41)]
        curve = figures.Curve("mnm-p", "mnm-p", lines)
        figures.learning_curves({"title": [curve]}, "valid/accuracy", tmp_path / "a.png")
        pictures.append(pixels(tmp_path / "a.png"))
    none, narrow, wide = pictures
    assert np.sum(narrow != none) > 10_000
    assert np.sum(wide != none) == pytest.approx(2 * np.sum(narrow != none), rel=0.1)


def test_accuracy_by_size_has_a_curve_a_run_and_needs_three_sizes(tmp_path):
    for label, model, seeds in (("a", "mnm-p", (0.8, 0.9, 1.0)), ("b", "ntm", (0.5, 0.55, 0.6))):
        summary, _ = write_run(tmp_path / "copy" / label, model)
        for size, factor in ((20, 1.0), (30, 0.8), (50, 0.6)):
            summary["metrics"][f"test/length={size}/accuracy"] = metric(*(factor * x for x in seeds))
        summary["config"] = {"task": {"length": 20}, "model": {"name": model}, "training": {}}
        (tmp_path / "copy" / label / "summary.json").write_text(json.dumps(summary))
    found = table.sizes_of_test_sets(summary)
    assert found["support"] == {8: [0.5, 0.75, 1.0], 16: [0.25, 0.375, 0.5]} and list(found["length"]) == [20, 30, 50]
    report_runs(tmp_path)
    picture = pixels(tmp_path / "accuracy_by_length.png")
    assert min(count(picture, figures.COLOURS[model]) for model in ("mnm-p", "ntm")) > 100
    assert not (tmp_path / "accuracy_by_support.png").exists()  # two sizes are no curve


def test_wrong_figures_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="no curve of valid/accuracy"):
        figures.learning_curves({"empty": []}, "valid/accuracy", tmp_path / "a.png")
    with pytest.raises(ValueError, match="no line holds the metric 'valid/loss'"):
        figures.learning_curves(
            {"one": [figures.Curve("a", "lstm", [{"step": 1, "x": [1.0]}])]}, "valid/loss", tmp_path / "a.png"
        )
    trace = MemoryTrace(*(np.ones((3, 1, 2)) for _ in range(4)), np.ones(3))
    with pytest.raises(ValueError, match="each of the 3 steps, got 2"):
        figures.memory_maps(trace, ["a", "b"], tmp_path / "a.png", "title")
    assert not list(tmp_path.iterdir())


def test_long_tokens_keep_their_ends():
    assert figures._shorten("mary moved to the bathroom") == "mary moved…the bathroom"
    assert figures._shorten("where is mary") == "where is mary"
    assert all(len(figures._shorten("x" * length)) == min(length, 24) for length in (23, 24, 25, 60))


def trained(workdir, model):
    """The folder of a run with a checkpoint of random parameters; returns its task and the model of its first seed."""
    config = {"task": TASK, "model": model, "training": TRAINING}
    task = build.build_task(TASK)
    make_model = build.build_make_model(model, task)
    shapes = nnx.eval_shape(lambda: nnx.state(make_model(nnx.Rngs(0)), nnx.Param))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, (2, *leaf.shape)).astype(leaf.dtype), shapes)
    zeros = np.zeros(2, np.int32)
    write_run(workdir, model["name"])
    (workdir / "config.json").write_text(json.dumps(config))
    save_checkpoint(workdir, 2, TrainState(params, (), zeros, zeros, zeros, zeros), {"seconds": 1.0})
    return task, nnx.merge(split_model(make_model), jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), params))


def test_the_memory_map_is_that_of_the_first_seed_and_test_example(tmp_path, monkeypatch, capsys):
    task, model = trained(tmp_path / "run", MEMORY)
    drawn = []
    draw = figures.memory_maps
    monkeypatch.setattr(figures, "memory_maps", lambda *args: (drawn.append(args), draw(*args)))
    report_run(tmp_path / "run")
    ((trace, tokens, path, title),) = drawn
    batch = next(iter(task.evaluations("test", 8)[""]()))
    expected = model(batch.inputs, batch.mask).cell.trace
    assert trace.read_keys.shape == (6, 2, 3)
    for one, other in zip(trace, expected, strict=True):
        np.testing.assert_allclose(one, other[:, 0], rtol=1e-5, atol=1e-6)
    assert tokens == task.tokens(batch, 0)
    assert title == "mnm-p on dictionary: the memory over a test sequence (seed 4)"
    pixels(path)
    assert capsys.readouterr().err == ""

    before = contents(tmp_path)
    report_run(tmp_path / "run")
    assert contents(tmp_path) == before


def test_a_task_may_name_what_is_pictured_and_shipped_parameters_are_enough(tmp_path, monkeypatch):
    _, model = trained(tmp_path / "run", MEMORY)
    params, step = load_params(tmp_path / "run", build.build_make_model(MEMORY, build.build_task(TASK)))
    save_params(tmp_path / "run", params, step)
    shutil.rmtree(tmp_path / "run/checkpoints")
    monkeypatch.setattr(Dictionary, "pictured", ("other", "absent"), raising=False)
    sets = Dictionary.evaluations
    monkeypatch.setattr(
        Dictionary, "evaluations", lambda *args: {"other": sets(*args)[""], "": lambda: iter(())}
    )
    drawn = []
    monkeypatch.setattr(figures, "memory_maps", lambda *args: drawn.append(args))
    report_run(tmp_path / "run")
    ((trace, tokens, path, title),) = drawn
    batch = next(iter(sets(build.build_task(TASK), "test", 8)[""]()))
    np.testing.assert_allclose(
        trace.read_values, model(batch.inputs, batch.mask).cell.trace.read_values[:, 0], rtol=1e-5, atol=1e-6
    )
    assert path == tmp_path / "run/figures/memory_map_other.png"
    assert title == "mnm-p on dictionary: other, a test sequence (seed 4)"


def test_no_memory_map_without_memory_and_a_note_on_a_damaged_checkpoint(tmp_path, capsys):
    trained(tmp_path / "lstm", {"name": "lstm", "hidden_features": 4})
    report_run(tmp_path / "lstm")
    assert [path.name for path in (tmp_path / "lstm/figures").iterdir()] == ["learning_curve.png"]
    assert capsys.readouterr().err == ""
    (tmp_path / "lstm/checkpoints/2/files.json").write_text("{")
    report_run(tmp_path / "lstm")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'lstm'}: no memory map: no whole checkpoint")


def test_training_ends_with_figures_and_does_not_fail_for_want_of_one(tmp_path, monkeypatch, capsys):
    config = ConfigDict({"task": TASK, "model": {"name": "lstm", "hidden_features": 4}, "training": TRAINING})
    summary = run(config, tmp_path)
    pixels(tmp_path / "figures/learning_curve.png")
    (tmp_path / "figures/learning_curve.png").unlink()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(figures, "learning_curves", full)
    capsys.readouterr()
    assert run(config, tmp_path)["metrics"] == summary["metrics"]
    assert capsys.readouterr().err.strip().endswith("no learning curve: no space left on device")
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == summary["metrics"]


@pytest.fixture
def results(tmp_path):
    results = tmp_path / "results"
    write_run(results / "dictionary/n=3, S=16/mnm-p")
    write_run(results / "dictionary/n=3, S=8/mnm-p")
    write_run(results / "dictionary/n=3, S=8/lstm", "lstm", (0.2, 0.2, 0.5))
    text = "# Dictionary inference\n\nWhat it is.\n\n```\n# a comment\n[as](it.is)\n```\n\n## Sizes\n"
    text += "\n![a](b/c.png), [paper](https://x.org), [above](#sizes)\n"
    (results / "dictionary/README.md").write_text(text)
    folder = results / "dictionary/n=3, S=8/mnm-p/figures"
    folder.mkdir()
    shutil.copyfile(_small_map(tmp_path), folder / "memory_map.png")
    write_run(results / "babi/mnm-g", "mnm-g", (1.0,), [(5, 1.0)])
    return results


def _small_map(folder):
    trace = MemoryTrace(*(np.random.default_rng(0).normal(size=(3, 1, 2)) for _ in range(4)), np.ones(3))
    figures.memory_maps(trace, list("abc"), folder / "map.png", "title")
    return folder / "map.png"


def test_results_page(results, capsys):
    path = write_results(results)
    assert path == results.parent / "RESULTS.md"
    page = path.read_text()
    assert page.index("\n## babi\n") < page.index("\n## Dictionary inference\n\nWhat it is.")
    assert "```\n# a comment\n[as](it.is)\n```\n\n### Sizes" in page
    assert "![a](results/dictionary/b/c.png), [paper](https://x.org), [above](#sizes)" in page
    babi, dictionary = page.split("## Dictionary inference")

    assert cells(dictionary, "group | model | seeds | steps | chance") == [
        ["n=3, S=8", "lstm", "3", "2,000", "0.2500", "0.3000 ± 0.1732", "0.2000", "13", "1,234", "23,118"],
        ["n=3, S=8", "mnm-p", "3", "2,000", "0.2500", "0.7500 ± 0.2500", "0.5000", "13", "1,234", "23,118"],
        ["n=3, S=16", "mnm-p", "3", "2,000", "0.2500", "0.7500 ± 0.2500", "0.5000", "13", "1,234", "23,118"],
    ]
    assert cells(dictionary, "group | model | support=8 | support=16") == [
        ["n=3, S=8", "lstm", "0.3000 ± 0.1732 (chance 0.1250)", "0.1500 ± 0.0866"],
        ["n=3, S=8", "mnm-p", "0.7500 ± 0.2500 (chance 0.1250)", "0.3750 ± 0.1250"],
        ["n=3, S=16", "mnm-p", "0.7500 ± 0.2500 (chance 0.1250)", "0.3750 ± 0.1250"],
    ]
    assert cells(babi, "model | seeds") == [
        ["mnm-g", "1", "2,000", "0.2500", "1.0000", "1.0000", "5", "1,234", "23,118"]
    ]
    assert "![Learning curves](results/dictionary/learning_curves.png)" in dictionary
    assert "\n3 runs, 1.0 hours one after the other.\n" in dictionary
    assert "\n1 run, 0.3 hours one after the other.\n" in babi
    assert dictionary.count("![Memory map]") == 1
    assert "](results/dictionary/n=3,%20S=8/mnm-p/figures/memory_map.png)" in dictionary
    assert dictionary.index("learning_curves.png") < dictionary.index("| group") < dictionary.index("<details>")
    assert "# mnm-g\npython -m launch.train --config=c.py:mnm-g --workdir=runs/babi/mnm-g --config.x=1\n" in babi
    assert "'--workdir=runs/dictionary/n=3, S=16/mnm-p'" in dictionary
    assert "/somewhere" not in page and str(results) not in page and "/tmp/a" not in page
    assert count(pixels(results / "dictionary/learning_curves.png"), figures.COLOURS["lstm"]) > 100
    assert capsys.readouterr().err == ""

    before = contents(results.parent)
    write_results(results)
    assert contents(results.parent) == before


def test_half_written_runs_are_named_and_left_as_they_are(results, capsys):
    section = results / "dictionary"
    (section / "unfinished/a").mkdir(parents=True)
    (section / "unfinished/a/config.json").write_text("{}")
    for name, damaged in {"cut": '{"task": "dic', "list": "[]", "empty": "{}"}.items():
        write_run(section / "broken" / name)
        (section / "broken" / name / "summary.json").write_text(damaged)
    write_run(section / "silent/mnm-p")
    (section / "silent/mnm-p/metrics.jsonl").unlink()
    before = contents(section)

    page = write_results(results).read_text()
    notes = [line.removeprefix("Left out: ") for line in page.splitlines() if line.startswith("Left out: ")]
    assert [note.split(";")[0] for note in notes] == [
        "broken/cut/summary.json is damaged (no JSON object)",
        "broken/empty/summary.json lacks command, metrics, model, parameters, seconds, seeds, steps, task",
        "broken/list/summary.json is damaged (no JSON object)",
        "unfinished/a is not finished: it has no summary.json",
    ]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert "silent/mnm-p: not in the comparison: its metrics.jsonl has no valid/accuracy." in errors[0]
    silent = [row for row in cells(page.split("## Dictionary")[1], "group") if row[0] == "silent"]
    assert silent[0][5:8] == ["0.7500 ± 0.2500", "0.5000", "-"]
    after = contents(section)
    assert {path: after[path] for path in before} == before


def test_damage_inside_a_run_names_the_run_and_keeps_the_old_page(results):
    page = write_results(results).read_text()
    path = results / "babi/mnm-g/summary.json"
    path.write_text(path.read_text().replace('"steps": 2000', '"steps": "many"'))
    with pytest.raises(ValueError, match="results/babi/mnm-g is damaged"):
        write_results(results)
    assert (results.parent / "RESULTS.md").read_text() == page


def test_a_section_without_a_finished_run(results):
    (results / "maze").mkdir()
    (results / ".hidden").mkdir()
    assert write_results(results).read_text().endswith("## maze\n\nNo finished run yet.\n")


def test_nothing_to_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it has no summary\.json"):
        report_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        report_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="no section in"):
        write_results(tmp_path / "nowhere")
    write_run(tmp_path / "a/run")
    (tmp_path / "a/run/figures/deep").mkdir(parents=True)
    (tmp_path / "a/run/figures/deep/summary.json").write_text("{}")  # nothing below a run is a run
    assert [run.place for run in find_runs(tmp_path)[0]] == ["a/run"] and not find_runs(tmp_path)[1]


def test_errors_of_the_command_are_one_line(tmp_path):
    command = [sys.executable, "-m", "launch.report", f"--workdir={tmp_path / 'nowhere'}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [f"no finished run in {tmp_path / 'nowhere'}; check --workdir, or train first."]


def test_the_sentences_of_babi_name_its_steps(tmp_path):
    for package in ("array_record", "grain", "tensorflow_datasets"):
        pytest.importorskip(package)
    folder = tmp_path / "tasks_1-20_v1-2/en"
    folder.mkdir(parents=True)
    story = "1 Mary went home.\n2 Where is Mary?\thome\t1\n3 John left.\n4 Mary left.\n5 Where is Mary?\thome\t1\n"
    for split, stories in (("train", 10), ("test", 1)):
        (folder / f"qa1_name_{split}.txt").write_text(story * stories)
    settings = {"name": "babi", "data_dir": str(tmp_path), "size": "1k", "cache_dir": str(tmp_path / "cache")}
    task = build.build_task(settings)
    batch = next(iter(task.evaluations("test", 3)[""]()))
    asked = "? where is mary"
    assert task.tokens(batch, 0) == ["mary went home", asked, "john left", "mary left", asked]
    assert batch.mask.sum(0).tolist() == [5] * batch.mask.shape[1]


def test_the_map_is_that_of_a_longest_example():
    def batch(*lengths):
        mask = np.arange(4)[:, None] < np.array(lengths)
        return Batch(mask, mask, mask, mask)

    batches = [batch(1, 3), batch(2, 4, 4), batch(4, 1)]
    found, index = longest(iter(batches))
    assert found is batches[1] and index == 1
    found, index = longest(iter(batches), most=3)
    assert found is batches[0] and index == 1
    found, index = longest(iter([batch(0, 4, 3), batch(2, 0)]), most=1)  # without a step: no example
    assert (found.mask.shape, index) == ((4, 2), 0)


def _of_seed(folder, seed, *accuracies, steps=2000, **options):
    summary, _ = write_run(folder, accuracy=accuracies, **options)
    config = {"task": {"name": "dictionary"}, "model": {"name": "mnm-p"}, "training": {"seed": seed, "steps": steps}}
    (folder / "summary.json").write_text(json.dumps(summary | {"config": config}))


def test_runs_that_differ_in_their_seed_alone_are_one_run(tmp_path):
    section = tmp_path / "results" / "section"
    _of_seed(section / "g" / "ours" / "seed_0", 0, 0.5, 0.75, validation=[(10, 0.2, 0.95), (20, 0.9, 1.0)])
    _of_seed(section / "g" / "ours" / "seed_1", 1, 1.0, validation=[(10, 0.9), (20, 1.0), (30, 1.0)])
    _of_seed(section / "g" / "other", 0, 0.5, validation=[(10, 0.2)])
    runs, _ = find_runs(section)
    other, ours = join_seeds(runs, section)
    assert (other, ours.group, ours.label) == (runs[0], "g", "ours")
    assert ours.summary["metrics"]["test/accuracy"] == metric(0.5, 0.75, 1.0)
    assert (ours.summary["seeds"], ours.summary["seconds"]) == (3, 2 * 1234.5)
    lines = [{"step": line["step"], "valid/accuracy": line["valid/accuracy"]} for line in ours.lines]
    assert lines == [{"step": 10, "valid/accuracy": [0.2, 0.95, 0.9]}, {"step": 20, "valid/accuracy": [0.9, 1.0, 1.0]}]

    page = write_results(tmp_path / "results").read_text()
    rows = cells(page, "group")
    assert [row[:3] for row in rows] == [["g", "other (mnm-p)", "1"], ["g", "ours (mnm-p)", "3"]]
    assert page.count("python -m launch.train") == 3  # each with its own command


def test_runs_of_other_settings_or_without_a_config_stay_apart(tmp_path):
    _of_seed(tmp_path / "g" / "a", 0, 0.5, validation=[(10, 0.2)])
    _of_seed(tmp_path / "g" / "b", 1, 0.5, validation=[(10, 0.2)], steps=100)
    write_run(tmp_path / "g" / "c")
    write_run(tmp_path / "g" / "d")
    _of_seed(tmp_path / "e", 0, 0.5, validation=[(10, 0.2)])
    _of_seed(tmp_path / "f", 1, 0.5, validation=[(10, 0.2)])  # side by side in the folder of runs itself
    runs, _ = find_runs(tmp_path)
    assert join_seeds(runs, tmp_path) == runs
