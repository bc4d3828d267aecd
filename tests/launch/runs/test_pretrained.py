"""Tests that the models that ship with their weights still earn the numbers of their summaries."""

import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from launch.runs.build import build_parts
from launch.runs.evaluate import evaluate_folder, write_evaluation
from launch.runs.workdir import read_config
from mnm_jax.training import evaluate, load_params, split_model

RESULTS = pathlib.Path(__file__).parents[3] / "results"
RUN = RESULTS / "pretrained/dictionary"
LARGE = [path.parent for path in sorted(RESULTS.glob("*babi/**/params.safetensors"))]


def test_the_weights_have_the_accuracy_of_their_summary():
    task, make_model, training = build_parts(read_config(RUN))
    params, step = load_params(RUN, make_model)
    found = evaluate(split_model(make_model), params, task, "valid", training.batch_size)
    summary = json.loads((RUN / "summary.json").read_text())
    assert step == summary["steps"] and (RUN / "params.safetensors").stat().st_size < 100_000
    for name in ("accuracy", "loss"):
        (expected,) = summary["metrics"][f"valid/{name}"]["per_seed"]
        assert abs(float(found[f"valid/{name}"][0]) - expected) < 2e-3, name


def test_an_evaluation_is_written_as_the_line_of_its_run(tmp_path):
    path = tmp_path / "shipped.jsonl"
    found = evaluate_folder(RUN)
    write_evaluation(path, tmp_path / "other", found._replace(metrics={"test/perplexity": [math.nan, 1.0]}))
    for metrics in ({"test/error": [0.5]}, {"test/error": [0.25]}):
        write_evaluation(path, tmp_path / "group/model", found._replace(metrics=metrics))
    other, line = map(json.loads, path.read_text().splitlines())
    assert (other["run"], other["metrics"]) == ("other", {"test/perplexity": None}) and len(LARGE) >= 3
    assert (line["run"], line["steps"], line["seeds"]) == ("group/model", found.steps, found.seeds)
    assert line["metrics"] == {"test/error": 0.25} and "jax" in line["versions"]
    for wrong in ('{"run": "group/model", "seconds": 1.0}', '{"foo": 1}', "garbage", "[1]"):
        path.write_text(f"{json.dumps(line)}\n{wrong}\n")
        message = f"line 2 of {path} was not written by launch.evaluate: pass another file to --out."
        with pytest.raises(ValueError, match=re.escape(message)):
            write_evaluation(path, tmp_path / "group/model", found)
        done = subprocess.run(
            [sys.executable, "-m", "launch.evaluate", f"--workdir={tmp_path / 'none'}", f"--out={path}"],
            cwd=RESULTS.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (1, f"{message}\n")


@pytest.mark.parametrize("run", LARGE, ids=lambda run: run.relative_to(RESULTS).as_posix())
def test_the_recorded_evaluation_of_shipped_weights_agrees_with_the_summary_of_the_run(run):
    (section,) = (folder for folder in run.parents if folder.parent == RESULTS)
    lines = map(json.loads, (section / "shipped.jsonl").read_text().splitlines())
    (shipped,) = (line for line in lines if section / line["run"] == run)
    trained = json.loads((run / "summary.json").read_text())
    assert shipped["steps"] == [trained["steps"]]
    for name, value in shipped["metrics"].items():
        assert abs(value - trained["metrics"][name]["mean"]) <= _tolerance(name), name


@pytest.mark.slow
@pytest.mark.parametrize("run", LARGE, ids=lambda run: run.relative_to(RESULTS).as_posix())
def test_the_shipped_weights_of_stories_repeat_their_evaluation(run, babi_dir):
    for package in ("array_record", "grain", "tensorflow_datasets"):
        pytest.importorskip(package)
    (section,) = (folder for folder in run.parents if folder.parent == RESULTS)
    lines = map(json.loads, (section / "shipped.jsonl").read_text().splitlines())
    (shipped,) = (line for line in lines if section / line["run"] == run)
    found = evaluate_folder(run, str(babi_dir)).metrics
    for name, value in shipped["metrics"].items():
        assert abs(float(found[name].mean()) - value) <= _tolerance(name), name


def _tolerance(name):
    """Rounding changes at most two answers of a set of 20,000, or of 1,000 for a single task."""
    return 0.01 if name.endswith("loss") else 2.5e-3 if "task=" in name else 1.25e-4
