"""Tests that the model that ships with its weights still earns the numbers of its summary."""

import json
import pathlib

from launch.runs.build import build_parts
from launch.runs.workdir import read_config
from mnm_jax.training import evaluate, load_params, split_model

RUN = pathlib.Path(__file__).parents[3] / "results/pretrained/dictionary"


def test_the_weights_have_the_accuracy_of_their_summary():
    task, make_model, training = build_parts(read_config(RUN))
    params, step = load_params(RUN, make_model)
    found = evaluate(split_model(make_model), params, task, "valid", training.batch_size)
    summary = json.loads((RUN / "summary.json").read_text())
    assert step == summary["steps"] and (RUN / "params.safetensors").stat().st_size < 100_000
    for name in ("accuracy", "loss"):
        (expected,) = summary["metrics"][f"valid/{name}"]["per_seed"]
        assert abs(float(found[f"valid/{name}"][0]) - expected) < 2e-3, name
