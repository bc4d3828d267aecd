"""Tests the suite "accelerator": its order, failures, budget and resumption, its counts, and one small real run."""

import json
import math
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.bench.accelerator import peaks
from launch.bench.accelerator.programs import GIVEN_KEYS, Case
from launch.bench.accelerator.suite import accelerator
from launch.bench.measure import Candidate, Group, Program, measure_one_by_one
from launch.bench.run import LATE, run
from launch.bench.suites import SUITES, Suite

ROOT = pathlib.Path(__file__).parents[3]
NEEDED_BY_OTHERS = ("matplotlib", "ml_collections", "orbax", "tensorboardX", "grain", "etils", "torch", "ray")
SMALL = {
    "models": ("MNM-p", "layer: delta rule", GIVEN_KEYS, "attention", "LSTM"),
    "heads": (1,),
    "steps": (2,),
    "batches": (2,),
    "dtypes": ("float32",),
    "width": 4,
    "tokens": (2,),
    "tokens_per_batch": 4,
    "layer_width": 4,
    "layer_heads": 1,
}


class Bench:
    """A suite "fake" of one candidate per group on a fake clock, and the names of those that ran."""

    def __init__(self, monkeypatch, folder):
        self.now, self.ran, self.folder, self.seconds = 0.0, [], folder, {}
        monkeypatch.setitem(SUITES, "fake", Suite(self.groups, lambda *_: None, quick=True))

    def groups(self, devices, *, names, failing):
        assert len(devices) == 1
        for name in names:
            yield Group([self.candidate(name, failing.get(name))], lambda rows: rows)

    def candidate(self, name, error):
        times = iter([9.0, 3.0, 1.0, 2.0, 4.0, 5.0])

        def step():
            self.ran.append(name)
            if error:
                raise error
            self.now += self.seconds.get(name) or next(times) / 10
            return 7.0

        return Candidate({"form": name}, lambda: Program(step, inspect=lambda result: {"value": result}))

    def run(self, *names, failing=None, **more):
        sizes = {"names": names, "failing": failing or {}}
        return run("fake", self.folder, clock=lambda: self.now, **sizes, **more)["rows"]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


def test_a_row_has_the_least_of_five_times_after_a_warm_up(bench):
    (row,) = bench.run("a")
    assert len(bench.ran) == 6
    assert (row["milliseconds"], row["repeats"], row["value"]) == (pytest.approx(100), 5, 7.0)
    assert row["spread"] == pytest.approx((0.5 - 0.1) / 0.1)


def test_a_slow_row_is_repeated_until_three_seconds_have_passed(bench):
    bench.seconds = {"a": 1.6}
    (row,) = bench.run("a")
    assert (row["milliseconds"], row["repeats"]) == (pytest.approx(1600), 2)


def test_a_failure_is_a_row_and_the_others_are_measured(bench):
    failing = {"a": TypeError("wrong\nsecond line"), "b": RuntimeError("RESOURCE_EXHAUSTED: Out of memory")}
    rows = bench.run("a", "b", "c", failing=failing)
    assert [row["note"] for row in rows] == ["TypeError: wrong", "out of memory", None]
    assert [row["milliseconds"] is None for row in rows] == [True, True, False]
    table = (bench.folder / "fake.md").read_text()
    assert "TypeError: wrong" in table
    assert "out of memory" in table


def test_a_compilation_that_does_not_end_is_a_row():
    end = threading.Event()
    stuck = Candidate({"form": "stuck"}, lambda: (end.wait(), Program(lambda: None))[1])
    failing = Candidate({"form": "failing"}, lambda: 1 / 0)
    candidates = [stuck, failing, Candidate({"form": "fast"}, lambda: Program(lambda: None))]
    *_, rows = measure_one_by_one(candidates, memory_bytes=None, longest_compilation=0.3)
    end.set()
    notes = ["not measured: its compilation takes longer than 0.3 s", "ZeroDivisionError: division by zero", None]
    assert [row["note"] for row in rows] == notes
    assert [row["milliseconds"] is None for row in rows] == [True, True, False]


def test_what_is_not_started_in_time_says_so_and_is_measured_later(bench):
    bench.seconds = {"a": 3.0, "b": 3.0, "c": 3.0}
    rows = bench.run("a", "b", "c", budget=7.0)  # two runs of 3 seconds per row
    assert [row["note"] for row in rows] == [None, None, LATE]
    assert bench.ran == ["a", "a", "b", "b"]
    assert json.loads((bench.folder / "fake.json").read_text())["rows"] == rows
    later = bench.run("a", "b", "c")
    assert later[:2] == rows[:2]
    assert [(row["form"], row["note"]) for row in later] == [("a", None), ("b", None), ("c", None)]
    assert bench.ran[4:] == ["c", "c"]


def test_every_row_is_written_before_the_next_one_runs(bench):
    with pytest.raises(KeyboardInterrupt):
        bench.run("a", "b", failing={"b": KeyboardInterrupt()})
    assert [row["form"] for row in json.loads((bench.folder / "fake.json").read_text())["rows"]] == ["a"]


def test_the_most_important_groups_come_first():
    fields = [group.candidates[0].fields for group in accelerator(jax.devices())]
    first = [(f["model"], f["heads"], f["steps"], f["batch"], f["dtype"]) for f in fields[:8]]
    assert first == [
        ("layer: delta rule", 8, 2048, 8, "float32"),
        ("layer: local, two layers", 8, 2048, 8, "float32"),
        *[(GIVEN_KEYS, 1, 128, 64, "float32")] * 2,
        ("attention", 8, 2048, 8, "float32"),
        ("LSTM", None, 128, 64, "float32"),
        ("MNM-p", 1, 128, 64, "float32"),
        ("MNM-p", 4, 128, 64, "float32"),
    ]
    of_mnm_p = [(f["steps"], f["batch"], f["dtype"]) for f in fields if (f["model"], f["heads"]) == ("MNM-p", 1)]
    assert of_mnm_p[:5] == [
        (128, 64, "float32"),
        (512, 64, "float32"),
        (32, 64, "float32"),
        (128, 64, "bfloat16"),
        (128, 512, "float32"),
    ]
    assert len(of_mnm_p) == 3 * 2 * 2 + 1
    assert {f["steps"] for f in fields if f["model"] == "LSTM"} == {32, 128, 512}
    assert {(f["steps"], f["batch"]) for f in fields if f["model"] == "attention"} == {(2048, 8), (8192, 2)}


@pytest.mark.parametrize(
    ("model", "form", "expected"),
    [
        # N = 3 layers of 8 x 8 float32 per example; 12 N per step and example.
        ("MNM-p", "plain", 6 * 2 * 12 * 3 * 64 * 4),
        # H = 2 rows per step, folded after d / (16 H) -> 1 step on a CPU: R = 1 row on average, 16 features per pair.
        ("MNM-p", "factored", 6 * 2 * 10 * 1 * 3 * 16 * 4),
        # As a cell; and on the chip 8 inputs, 3 x 2 x 8 + 1 features and 3 x 2 x 24 results, five times.
        (GIVEN_KEYS, "xla", 6 * 2 * 12 * 3 * 64 * 4),
        (GIVEN_KEYS, "pallas", 6 * 2 * 5 * (8 + 49 + 144) * 4),
        # 8 inputs and 2 x 32 gates per step and example, five times; 2 * (2 * 8 * 32 + 32) parameters per step.
        ("LSTM", "plain", 6 * 2 * 5 * (8 + 64) * 4 + 6 * 2 * (2 * 8 * 32 + 32) * 4),
    ],
)
def test_bytes_are_those_worked_by_hand(model, form, expected):
    case = Case({"model": model, "heads": 2, "steps": 6, "batch": 2, "width": 8, "dtype": "float32"})
    assert case.bytes_moved(form) == expected


def test_operations_grow_with_the_steps_and_are_mostly_those_of_the_products():
    # LSTM: 2 products of 8 x 32 forward, and twice as many backward, without a cotangent of the inputs.
    fields = {"model": "LSTM", "heads": None, "batch": 2, "width": 8, "dtype": "float32"}
    one, six = (Case(fields | {"steps": t}).flops("plain") for t in (1, 6))
    assert six == 6 * one
    products = 2 * 2 * 8 * 32 * 5
    assert products < one < 1.5 * products


def test_shares_of_the_peaks_follow_from_the_time(monkeypatch):
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(peaks._PEAKS, kind, peaks.Peaks(float32=1e9, bfloat16=2e9, exact=5e8, bandwidth=1e8))
    (group,) = accelerator(jax.devices(), **(SMALL | {"models": ("LSTM",)}))
    fields = group.candidates[0].fields
    row = dict(fields) | {"milliseconds": 0.5, "temp_bytes": None}
    (rated,) = group.finish([row])
    case = Case(fields)
    assert rated["tokens_per_second"] == pytest.approx(2 * 2 / 0.5e-3)
    assert rated["fraction_of_peak"] == pytest.approx(case.flops("plain") / 0.5e-3 / 1e9)
    assert rated["fraction_of_bandwidth"] == pytest.approx(case.bytes_moved("plain") / 0.5e-3 / 1e8)
    monkeypatch.delitem(peaks._PEAKS, kind)
    (unknown,) = group.finish([row])
    assert (unknown["fraction_of_peak"], unknown["fraction_of_bandwidth"]) == (None, None)


def test_every_kind_of_row_runs_and_the_forms_agree(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # torch has its own test
    report = run("accelerator", tmp_path, **SMALL)
    rows = report["rows"]
    assert json.loads((tmp_path / "accelerator.json").read_text()) == report
    assert [(row["model"], row["form"]) for row in rows] == [
        ("MNM-p", "plain"),
        ("MNM-p", "reversible"),
        ("MNM-p", "factored"),
        ("layer: delta rule", "chunks"),
        ("layer: delta rule", "steps"),
        (GIVEN_KEYS, "xla"),  # with half the width
        (GIVEN_KEYS, "xla"),
        ("attention", "xla"),
        ("LSTM", "plain"),
    ]
    for row in rows:
        assert row["note"] is None
        assert row["value"] > 0
        assert row["gradient_difference"] < 1e-5
        assert row["tokens_per_second"] == pytest.approx(4 / row["milliseconds"] * 1e3)
    assert [row["auto"] for row in rows].count(True) == 1
    assert (tmp_path / "accelerator.png").is_file()


def test_bfloat16_is_the_dtype_of_the_computation_only():
    fields = {"model": "attention", "heads": 1, "steps": 3, "batch": 2, "width": 4}
    exact = Case(fields | {"dtype": "float32"})
    value, gradients = exact.program("xla", jax.devices()[0]).run()
    rounded, rounded_gradients = Case(fields | {"dtype": "bfloat16"}).program("xla", jax.devices()[0]).run()
    assert 0 < abs(float(value) - float(rounded)) < 0.05 * float(value)
    assert jax.tree.leaves(rounded_gradients)[0].dtype == jnp.float32
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_loss_that_is_not_finite_is_a_note():
    (group,) = accelerator(jax.devices(), **(SMALL | {"models": ("LSTM",)}))
    inspect = group.candidates[0].prepare().inspect
    row = inspect((jnp.float32(math.nan), {"w": jnp.ones(2)}))
    assert (row["value"], row["gradient_difference"], row["note"]) == (None, 0.0, "not finite: value")
    # |(2, 1) - (1, 1)| / |(1, 1)|
    assert inspect((jnp.ones(()), {"w": jnp.array([2.0, 1.0])}))["gradient_difference"] == pytest.approx(0.5**0.5)


def test_the_command_needs_no_further_packages(tmp_path):
    """Blocks the packages of the other commands, and measures nothing, in no time."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({NEEDED_BY_OTHERS!r}))
sys.argv = ["benchmark", "--suite=accelerator", "--out={tmp_path}", "--budget=0"]
import runpy
runpy.run_module("launch.benchmark", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no figure" in done.stderr
    rows = json.loads((tmp_path / "accelerator.json").read_text())["rows"]
    assert {row["note"] for row in rows} == {LATE}
    assert f"{len(rows)} rows {LATE} (0 s)" in done.stdout
    assert "MNM-p" in (tmp_path / "accelerator.md").read_text()


@pytest.mark.parametrize("model", ["MNM-p", "LSTM", "attention"])
def test_torch_computes_the_same_loss_and_gradient(model):
    pytest.importorskip("torch")
    from launch.bench.accelerator.torch_programs import torch_program

    case = Case({"model": model, "heads": 2, "steps": 3, "batch": 2, "width": 4, "dtype": "float32"})
    value, gradients = case.program("xla" if model == "attention" else "plain", jax.devices()[0]).run()
    other, others = torch_program(case, "cpu").run()
    assert float(other) == pytest.approx(float(value), rel=1e-5)
    norms = sorted(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(gradients))
    # PyTorch's LSTM has a second bias.
    other_norms = sorted(float(leaf.norm()) for name, leaf in others.items() if "bias_ih" not in name)
    np.testing.assert_allclose(other_norms, norms, rtol=1e-3, atol=1e-6)
