"""Tests the figures and tables of `launch.report --workdir`."""

import functools
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
from ml_collections import ConfigDict

from launch.reporting import figures, table
from launch.reporting.draw import draw_test_sets, longest, report_run, report_runs
from launch.reporting.pages import write_results
from launch.runs import build
from launch.runs.finished import find_runs
from launch.runs.registry import MODELS
from launch.train import run
from mnm_jax.training import Batch, TrainState, load_model, load_params, save_checkpoint, save_params
from tasks.dictionary import Dictionary

ROOT = pathlib.Path(__file__).parents[3]
TASK = {"name": "dictionary", "support": 2, "queries": 1, "evaluation_batches": 1, "wider": False}
MEMORY = {"name": "mnm-p", "hidden_features": 4, "memory_features": 3, "memory_layers": 2, "heads": 2}
TRAINING = {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "seed": 4, "seeds": 2, "eval_every": 1}


def test_a_folder_of_runs(tmp_path, capsys, write_run, pixels, count, contents):
    write_run(tmp_path / "support=16/mnm-p")
    write_run(tmp_path / "support=8/plain", "lstm", (0.25, 0.25, 0.25), [(10, 0.1, 0.2, 0.3)])
    write_run(tmp_path / "support=8/mnm-p")
    header, *lines = report_runs(tmp_path).splitlines()
    assert header.split()[:4] == ["group", "model", "seeds", "updates"]
    assert [line.split()[0] for line in lines] == ["support=8", "support=8", "support=16"]
    assert "plain (lstm)  3      2,000    0.2500  0.2500 +- 0.0000  0.2500      -" in lines[1]
    assert "0.7500 +- 0.2500  0.5000      13" in lines[0]
    assert capsys.readouterr().err == ""

    picture = pixels(tmp_path / "learning_curves.png")
    left, right = picture[:, :600], picture[:, 600:]
    memory = MODELS["mnm-p"].colour
    assert min(count(left, memory), count(right, memory)) > 100
    assert not list(tmp_path.rglob("memory_map.png")) and not list(tmp_path.rglob("*.unfinished"))
    one, other = (
        pixels(tmp_path / name / "figures/learning_curve.png") for name in ("support=16/mnm-p", "support=8/plain")
    )
    assert count(one, memory) > 100 > count(other, memory)

    before = contents(tmp_path)
    report_runs(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("blank_figures")
def test_foreign_folders_are_named_and_the_rest_is_shown(tmp_path, capsys, write_run):
    write_run(tmp_path / "good")
    foreign = {
        "metrics": {"metrics": 3},
        "row": {"metrics": {"loss": 0.5}},
        "text": {"metrics": {"test/accuracy": {"mean": "a", "std": 0, "per_seed": ["x"]}}},
        "steps": {"steps": "many"},
        "seconds": {"seconds": None},
        "config": {"config": [1]},
    }
    for name, change in foreign.items():
        write_run(tmp_path / name)
        path = tmp_path / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_run(tmp_path / "curve")
    (tmp_path / "curve/metrics.jsonl").write_text('{"step": 3, "valid/accuracy": ["x"]}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"architectures": ["Bert"]}')

    _, *lines = report_runs(tmp_path).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["curve (mnm-p)", "good (mnm-p)"]
    notes = capsys.readouterr().err.splitlines()
    assert any(note.startswith(f"{tmp_path}/curve: no learning curve") for note in notes)
    left_out = [note.split()[2] for note in notes if note.startswith("left out: ")]
    assert {pathlib.Path(path).relative_to(tmp_path).parts[0] for path in left_out} == {*foreign, "model"}
    with pytest.raises(ValueError, match="metric loss has no mean, per_seed, std; restore it, or move it away"):
        report_run(tmp_path / "row")


def test_runs_without_groups(tmp_path, write_run, pixels, count):
    write_run(tmp_path / "mnm-g", "mnm-g")
    assert report_runs(tmp_path).split()[:3] == ["model", "seeds", "updates"]
    assert count(pixels(tmp_path / "learning_curves.png"), MODELS["mnm-g"].colour) > 100


def test_accuracy_by_size_has_a_curve_a_run_and_needs_three_sizes(tmp_path, metric, write_run, pixels, count):
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
    assert min(count(picture, MODELS[model].colour) for model in ("mnm-p", "ntm")) > 100
    assert not (tmp_path / "accuracy_by_support.png").exists()  # two sizes do not make a curve


def test_accuracy_by_a_setting_has_a_curve_per_model_and_a_point_for_a_single_run(tmp_path, monkeypatch, write_run):
    drawn = []
    monkeypatch.setattr(figures, "accuracy_by_size", lambda *args: drawn.append(args))
    runs = {("256", "mnm-p"): 256, ("1024", "mnm-p"): 1024, ("4096", "mnm-p"): 4096, ("1024", "lstm"): 128}
    for (group, model), state in (runs | {("long", "mnm-p"): 256}).items():  # "long" is another setting of the task
        summary, _ = write_run(tmp_path / group / model, model)
        summary["config"] = {
            "task": {"length": 9 if group == "long" else 1},
            "model": {"name": model, "state": state},
            "training": {},
        }
        summary["metrics"]["test/accuracy"]["per_seed"] = [0.0, 0.0] if group == "long" else [state / 4096, 1.0]
        (tmp_path / group / model / "summary.json").write_text(json.dumps(summary))
    found, _ = find_runs(tmp_path)
    draw_test_sets(found, "state", tmp_path)
    (panels, key, trained, path) = drawn[0]
    curves = {curve.name: dict(curve.values) for curve in panels["dictionary"]}
    assert curves == {"mnm-p": {n: [n / 4096, 1.0] for n in (256, 1024, 4096)}, "lstm": {128: [128 / 4096, 1.0]}}
    assert (key, trained, path.name, len(panels)) == ("state", {}, "accuracy_by_state.png", 1)


@pytest.fixture
def trained(write_run):
    return functools.partial(_trained, write_run)


def _trained(write_run, workdir, model):
    """Writes a run with a checkpoint of random parameters; returns its task and the model of its first seed."""
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
    return task, load_model(workdir, make_model)


def test_the_memory_map_is_that_of_the_first_seed_and_test_example(
    tmp_path, monkeypatch, capsys, trained, pixels, contents
):
    task, model = trained(tmp_path / "run", MEMORY)
    drawn = []
    draw = figures.memory_maps
    monkeypatch.setattr(
        figures, "memory_maps", lambda *args, **order: (drawn.append((*args, order)), draw(*args, **order))
    )
    report_run(tmp_path / "run")
    ((trace, tokens, path, title, order),) = drawn
    assert order == {"read_first": False, "kept": None}
    batch = next(iter(task.evaluations("test", 8)[""]()))
    expected = model(batch.inputs, mask=batch.mask).cell.trace
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


def test_the_memory_map_leaves_out_writes_that_were_discarded_or_came_after_the_read(tmp_path, monkeypatch, trained):
    trained(tmp_path / "run", MEMORY | {"read_first": True})
    sets = Dictionary.evaluations

    def forked(*args):
        def batches():
            for batch in sets(*args)[""]():
                fork = np.zeros(np.shape(batch.mask), bool)
                fork[2] = True
                yield batch._replace(fork=fork)

        return {"": batches}

    monkeypatch.setattr(Dictionary, "evaluations", forked)
    drawn = []
    monkeypatch.setattr(figures, "memory_maps", lambda *args, **order: drawn.append(order))
    report_run(tmp_path / "run")
    assert drawn[0]["read_first"] is True
    np.testing.assert_array_equal(drawn[0]["kept"], np.arange(6) != 2)


def test_a_task_may_name_what_is_pictured_and_shipped_parameters_are_enough(tmp_path, monkeypatch, trained):
    _, model = trained(tmp_path / "run", MEMORY)
    params, step = load_params(tmp_path / "run", build.build_make_model(MEMORY, build.build_task(TASK)))
    save_params(tmp_path / "run", params, step)
    shutil.rmtree(tmp_path / "run/checkpoints")
    monkeypatch.setattr(Dictionary, "pictured", ("other", "absent"), raising=False)
    sets = Dictionary.evaluations
    monkeypatch.setattr(Dictionary, "evaluations", lambda *args: {"other": sets(*args)[""], "": lambda: iter(())})
    drawn = []
    monkeypatch.setattr(figures, "memory_maps", lambda *args, **order: drawn.append(args))
    report_run(tmp_path / "run")
    ((trace, tokens, path, title),) = drawn
    batch = next(iter(sets(build.build_task(TASK), "test", 8)[""]()))
    np.testing.assert_allclose(
        trace.read_values, model(batch.inputs, mask=batch.mask).cell.trace.read_values[:, 0], rtol=1e-5, atol=1e-6
    )
    assert path == tmp_path / "run/figures/memory_map_other.png"
    assert title == "mnm-p on dictionary: other, a test sequence (seed 4)"


@pytest.mark.usefixtures("blank_figures")
def test_no_memory_map_without_memory_and_a_note_on_a_damaged_checkpoint(tmp_path, capsys, trained):
    trained(tmp_path / "lstm", {"name": "lstm", "hidden_features": 4})
    report_run(tmp_path / "lstm")
    assert [path.name for path in (tmp_path / "lstm/figures").iterdir()] == ["learning_curve.png"]
    assert capsys.readouterr().err == ""
    (tmp_path / "lstm/checkpoints/2/files.json").write_text("{")
    report_run(tmp_path / "lstm")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'lstm'}: no memory map: no complete checkpoint")


def test_training_ends_with_figures_and_does_not_fail_for_want_of_one(tmp_path, monkeypatch, capsys, pixels):
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


def test_nothing_to_report(tmp_path, write_run):
    with pytest.raises(FileNotFoundError, match=r"holds no run: it has no summary\.json"):
        report_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        report_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match="no section in"):
        write_results(tmp_path / "nowhere")
    write_run(tmp_path / "a/run")
    (tmp_path / "a/run/figures/deep").mkdir(parents=True)
    (tmp_path / "a/run/figures/deep/summary.json").write_text("{}")  # folders below a run do not count as runs
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
    found, index = longest(iter([batch(0, 4, 3), batch(2, 0)]), most=1)  # an example without steps is padding
    assert (found.mask.shape, index) == ((4, 2), 0)
