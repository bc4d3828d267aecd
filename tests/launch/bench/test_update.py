"""Tests the cost of a recipe's update against the sizes and the memory that the forms need."""

import itertools
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from launch.bench.update import describe_cost, update_costs
from launch.configs import training_section
from launch.runs.build import build_parts
from tasks.dictionary import Dictionary

ROOT = pathlib.Path(__file__).parents[3]
MEMORY = {"hidden_features": 4, "heads": 1, "memory_features": 64, "memory_layers": 2, "step_size": "sum"}
TASK = {"name": "dictionary", "length": 1, "support": 4, "queries": 2, "wider": False}
TRAINING = training_section(steps=100, batch_size=6, seeds=2, learning_rate=1e-3)


class _Files(Dictionary):
    """The task as if its batches were read from a file."""

    sample = None

    def loader(self, seed, batch_size):
        return itertools.repeat(Dictionary.sample(self, jax.random.key(seed), batch_size, 0))


def test_a_model_without_a_memory_has_one_form():
    training = TRAINING | {"optimizer": "muon"}  # which finds the matrices of the cell by their names
    parts = build_parts({"task": TASK, "model": {"name": "rnn", "hidden_features": 3}, "training": training})
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4 devices, got batch_size=6"):
        next(update_costs(parts, jax.devices()[:4]))  # as training does
    (row,) = update_costs(parts, jax.devices()[:3])
    steps = next(iter(parts.task.evaluations("test", 1)[""]())).mask.shape[0]
    assert (row["form"], row["chosen"], row["steps"], row["batch"]) == ("plain", "plain", steps, 6)
    assert row["devices"] == 3 and row["milliseconds"] > 0 and row["compile_seconds"] > 0 and row["temp_bytes"] > 0


def test_a_stack_of_layers_has_one_form():
    model = {"name": "layer-delta", "stack_features": 4, "state": 4, "block_parameters": 300, "layers": 1}
    parts = build_parts({"task": {"name": "parity", "length": 4}, "model": model, "training": TRAINING})
    (row,) = update_costs(parts, jax.devices()[:1])
    assert row["form"] == "plain" and row["note"] is None and row["milliseconds"] > 0


def test_the_batch_of_a_loader_is_padded_for_accumulate_as_in_training():
    """Six rows of a file on two devices in three parts each: 6; in two parts each: 8."""
    for accumulate, rows in ((3, 6), (2, 8)):
        training = TRAINING | {"accumulate": accumulate}
        parts = build_parts({"task": TASK, "model": {"name": "rnn", "hidden_features": 3}, "training": training})
        (row,) = update_costs(parts._replace(task=_Files(length=1, support=4, queries=2)), jax.devices()[:2])
        assert (row["batch"], row["devices"], row["note"]) == (rows, 2, None)


def test_the_line_of_a_form_by_hand():
    row = {"form": "auto", "chosen": "reversible", "steps": 40, "compile_seconds": 8.06, "temp_bytes": 3 * 2**20}
    timed = row | {"milliseconds": 280.0, "note": None}
    assert describe_cost(timed, 1500) == (
        "auto (reversible): compiled in 8.1 s, 3.0 MiB of temporary memory, 280.0 ms per update, 7,000 us per step; "
        "1,500 updates take 7.0 min"
    )
    assert describe_cost(timed, 90_000).endswith("90,000 updates take 7.0 h")
    failed = row | {"form": "plain", "milliseconds": None, "note": "not run: needs 9.0 GiB"}
    assert describe_cost(failed, 1) == "plain: compiled in 8.1 s, 3.0 MiB of temporary memory, not run: needs 9.0 GiB"


def test_an_unknown_form_is_refused():
    parts = build_parts({"task": TASK, "model": {"name": "mnm-p"} | MEMORY, "training": TRAINING})
    with pytest.raises(ValueError, match="form must be one of 'auto', 'plain', 'factored', 'reversible', got 'fast'"):
        next(update_costs(parts, jax.devices()[:1], ["fast"]))


@pytest.mark.slow
def test_each_form_runs_and_has_its_own_memory():
    config = {"task": TASK | {"support": 16, "queries": 8}, "model": {"name": "mnm-p"} | MEMORY, "training": TRAINING}
    rows = {row["form"]: row for row in update_costs(build_parts(config), jax.devices()[:1])}
    assert [rows[form]["chosen"] for form in ("plain", "factored", "reversible")] == ["plain", "factored", "reversible"]
    weights = 2 * 64 * 64 * 4 * 6  # bytes of the fast weights of the batch
    # Plain autodiff keeps the weights of every step, the reversible form the weights of a few.
    assert rows["plain"]["temp_bytes"] > rows["plain"]["steps"] * weights
    assert rows["reversible"]["temp_bytes"] < rows["plain"]["temp_bytes"] / 3
    assert rows["auto"]["temp_bytes"] == rows[rows["auto"]["chosen"]]["temp_bytes"]


@pytest.mark.slow
def test_the_command_prints_the_size_and_a_line_per_form():
    recipe = ["--config=launch/configs/dictionary.py:lstm", "--config.training.seeds=1", "--config.task.support=2"]
    command = [sys.executable, "-m", "launch.size", *recipe, "--config.training.batch_size=8", "--forms=auto,plain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    size, cost = done.stdout.splitlines()
    assert re.match(r"[\d,]+ parameters .* GFLOP per update \(T \d+, B 8, seeds 1\)", size)
    assert re.fullmatch(r"plain: compiled in .* MiB of temporary memory, .* us per step; 1,500 updates take .*", cost)
