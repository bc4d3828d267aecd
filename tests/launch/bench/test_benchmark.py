"""Tests the benchmarks: order of candidates, ratios, resuming from a file, refused files, and one small real run."""

import json
import math
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from matplotlib import image

from launch.bench.forms import limit, many_heads, scaling, step_flops, training_step
from launch.bench.measure import Candidate, Group, Program, measure, with_ratios
from launch.bench.run import run
from launch.bench.suites import SUITES, Suite
from launch.reporting.benchmark_table import benchmark_parts

ROOT = pathlib.Path(__file__).parents[3]
MEASURED = {"milliseconds", "spread", "repeats", "temp_bytes", "compile_seconds", "note"}


class Bench:
    """Makes candidates that take given seconds on a fake clock, and records the order in which they ran."""

    def __init__(self):
        self.now, self.order, self.pauses = 0.0, [], 0

    def clock(self):
        return self.now

    def candidate(self, form, seconds, temp_bytes=None, **fields):
        """Returns a candidate. `seconds`: duration of each run; the last one is repeated."""
        left = list(seconds)

        def step():
            self.order.append(form)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return Candidate({"form": form} | fields, lambda: Program(step, temp_bytes, 0.5))

    def measure(self, *candidates, memory_bytes=None):
        return measure(candidates, memory_bytes=memory_bytes, clock=self.clock, pause=self.pause)

    def pause(self):
        self.pauses += 1
        self.now += 100.0  # which must not count for any run


@pytest.fixture
def bench():
    return Bench()


def failing(error):
    def prepare():
        raise error

    return Candidate({"form": "broken"}, prepare)


def test_candidates_are_warmed_once_and_then_take_turns(bench):
    rows = bench.measure(bench.candidate("plain", [9, 4, 3, 5, 3, 3]), bench.candidate("factored", [1, 1, 1, 3, 1, 1]))
    assert bench.order == ["plain", "factored"] * 6
    assert [row["repeats"] for row in rows] == [5, 5]
    assert bench.pauses == 10
    plain, factored = rows
    assert plain["milliseconds"] == 3000  # the warm-up of 9 seconds does not count
    assert plain["spread"] == pytest.approx((5 - 3) / 3)
    assert (factored["milliseconds"], factored["spread"]) == (1000, 2)
    assert plain.keys() == {"form"} | MEASURED


@pytest.mark.parametrize(("seconds", "repeats"), [(10.5, 3), (9.5, 5), (1.0, 10), (1e-3, 20)])
def test_a_long_step_is_repeated_less_often_a_short_one_more(bench, seconds, repeats):
    (row,) = bench.measure(bench.candidate("plain", [seconds]))
    assert row["repeats"] == repeats == bench.pauses


def test_a_program_shorter_than_a_rest_is_timed_when_it_is_warm_again(bench):
    # The first run compiles, and later ones are slower after every rest.
    short = bench.candidate("short", [0.3, *[0.02, 0.01] * 20])
    rows = bench.measure(short, bench.candidate("long", [1.0]))
    assert [row["milliseconds"] for row in rows] == pytest.approx([10, 1000])
    assert bench.order == ["short", "long"] + ["short", "short", "long"] * 10


def test_ratios_are_to_the_reference_of_the_same_run(bench):
    rows = bench.measure(
        bench.candidate("plain", [6], 800), bench.candidate("auto", [2], 100), bench.candidate("unknown", [12])
    )
    rows = with_ratios(rows, "form", "plain")
    assert [row["ratio_to_plain"] for row in rows] == pytest.approx([1, 3, 0.5])
    assert [row["memory_ratio_to_plain"] for row in rows] == [1, 8, None]
    assert all(row["ratio_to_plain"] is None for row in with_ratios(rows[1:], "form", "plain"))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), RuntimeError("can't allocate memory")]
)
def test_what_does_not_fit_has_a_note_and_the_others_go_on(bench, error):
    rows = bench.measure(failing(error), bench.candidate("auto", [1]))
    assert (rows[0]["milliseconds"], rows[0]["note"], rows[0]["repeats"]) == (None, "out of memory", 0)
    assert (rows[1]["milliseconds"], rows[1]["note"]) == (1000, None)
    assert with_ratios(rows, "form", "broken")[1]["ratio_to_broken"] is None


def test_another_error_is_not_taken_for_a_lack_of_memory(bench):
    with pytest.raises(RuntimeError, match="wrong shape"):
        bench.measure(failing(RuntimeError("wrong shape")))


def test_a_step_that_needs_most_of_the_machine_is_not_run(bench):
    large, small = bench.candidate("plain", [1], 71 * 2**30), bench.candidate("auto", [1], 70 * 2**30)
    rows = bench.measure(large, small, memory_bytes=100 * 2**30)
    assert rows[0]["note"] == "not run: needs 71.0 GiB of temporary memory, more than 70% of 100.0 GiB"
    assert (rows[0]["milliseconds"], rows[0]["temp_bytes"]) == (None, 71 * 2**30)
    assert set(bench.order) == {"auto"}
    assert with_ratios(rows, "form", "plain")[1]["memory_ratio_to_plain"] == pytest.approx(71 / 70)


def test_step_flops_are_those_worked_by_hand():
    # One head, one layer, d = 2: memory (4 + 9) * 4; three times LSTM 2 * 16 + 16 = 48, interaction 16, targets 4.
    assert step_flops(heads=1, width=2, layers=1) == 2 * (13 * 4 + 3 * (48 + 16 + 4)) == 512
    # Four heads, three layers, d = 128: memory (16 + 36) * 3 = 156 and maps (12 + 13 + 12) * 3 = 111, times 16,384.
    assert step_flops(heads=4, width=128, layers=3) == 2 * 267 * 16384


@pytest.mark.slow
def test_the_suites_have_the_sizes_that_they_promise():
    devices = jax.devices()
    groups = list(training_step(devices))
    fields = [candidate.fields for group in groups for candidate in group.candidates]
    assert len(groups) == 2 * 2 * 4
    assert [c.fields["form"] for c in groups[0].candidates] == ["plain", "factored", "reversible", "auto"]
    assert {f["steps"] for f in fields} == {16, 32, 128, 512}
    assert {(f["batch"], f["width"]) for f in fields} == {(64, 128)}
    fields = [candidate.fields for group in many_heads(devices) for candidate in group.candidates]
    assert {(f["heads"], f["steps"]) for f in fields} == {(8, 32), (8, 128), (16, 32), (16, 128)}
    assert [f["form"] for f in fields] == ["plain", "auto"] * 8
    for suite in SUITES.values():  # fields must identify a row
        fields = [tuple(c.fields.items()) for group in suite.groups(devices) for c in group.candidates]
        assert len(set(fields)) == len(fields)
    for group in scaling(devices):
        forms = [candidate.fields["form"] for candidate in group.candidates]
        assert forms == (["plain", "auto"] if group.candidates[0].fields["steps"] <= 256 else ["reversible", "auto"])


def rows_of(group, milliseconds, bench):
    """Returns rows of a real suite's group as if they had been measured; None: it did not fit into memory."""
    rows = []
    for candidate, each in zip(group.candidates, milliseconds, strict=True):
        rows += bench.measure(Candidate(candidate.fields, bench.candidate("", [1]).prepare, candidate.about))
        rows[-1] |= {"milliseconds": each, "temp_bytes": 2**20, "note": None if each else "out of memory"}
    return group.finish(rows)


def test_scaling_tells_the_time_of_a_step(bench):
    plain, auto = rows_of(next(scaling(jax.devices(), steps=(50,))), [20.0, 10.0], bench)
    assert (plain["microseconds_per_step"], auto["microseconds_per_step"]) == (400, 200)
    reversible, auto = rows_of(next(scaling(jax.devices(), steps=(500,))), [15.0, 10.0], bench)
    assert (auto["microseconds_per_step"], auto["ratio_to_plain"]) == (20, None)
    assert (reversible["microseconds_per_step"], reversible["chosen"]) == (30, "reversible")


def test_limit_sets_the_rate_beside_that_of_the_product(bench):
    group = next(limit(jax.devices()[:2], heads=1, steps=10, batch=50, width=2, product=100))
    # Two products of 2e6 operations in 1 ms; 10 steps of 50 examples in 2 ms, each 2 * 4 * (39 + 3 * 19) = 768.
    factored, reversible, auto, product = rows_of(group, [2.0, None, 1.0, 1.0], bench)
    assert product["gflop_per_second"] == pytest.approx(4)
    assert product["fraction_of_product"] == 1
    assert factored["gflop_per_second"] == pytest.approx(500 * 768 / 2e6)
    assert factored["fraction_of_product"] == pytest.approx(500 * 768 / 2e6 / 4)
    assert reversible["fraction_of_product"] is None
    assert auto["fraction_of_product"] == pytest.approx(2 * factored["fraction_of_product"])


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_figure_also_where_something_did_not_fit(name, bench, tmp_path):
    rows = []
    for group in list(SUITES[name].groups(jax.devices()))[:6]:
        times = [None if c.fields.get("form", c.fields.get("peer")) == "plain" else 2.0 for c in group.candidates]
        rows += rows_of(group, times, bench)
    SUITES[name].draw(rows, tmp_path / "figure.png", name)
    picture = image.imread(tmp_path / "figure.png")
    assert picture.shape[0] > 400
    assert picture[..., :3].min() < 0.5  # something is drawn


@pytest.fixture
def fake(bench, monkeypatch):
    """Registers a suite "fake" with one group per length and two forms per group."""

    def groups(devices, *, steps):
        for t in steps:
            candidates = [bench.candidate("plain", [2], 8, steps=t), bench.candidate("auto", [1], 2, steps=t)]
            yield Group(candidates, lambda rows: with_ratios(rows, "form", "plain"))

    def draw(rows, path, title):
        path.write_text(title)

    monkeypatch.setitem(SUITES, "fake", Suite(groups, draw))
    return lambda out, *steps: run("fake", out, clock=bench.clock, pause=bench.pause, steps=steps)


def test_the_report_says_what_was_measured_where_and_with_what(fake, tmp_path, capsys):
    out = tmp_path / "new" / "fake.json"
    report = fake(out, 3, 5)
    assert json.loads(out.read_text()) == report
    assert report.keys() == {"suite", "device", "versions", "environment", "timing", "command", "rows"}
    assert report["suite"] == "fake"
    assert report["device"].keys() == {"platform", "kind", "devices", "cores"}
    assert (report["device"]["platform"], report["device"]["devices"]) == ("cpu", len(jax.devices()))
    assert report["versions"].keys() == {"python", "jax", "jaxlib", "flax", "mnm_jax"}
    assert report["command"].startswith("python ")
    assert [(row["form"], row["steps"]) for row in report["rows"]] == [
        ("plain", 3),
        ("auto", 3),
        ("plain", 5),
        ("auto", 5),
    ]
    assert report["rows"][1]["ratio_to_plain"] == pytest.approx(2)
    assert report["rows"][1]["memory_ratio_to_plain"] == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("form=auto steps=3: 1000.0 ms")
    assert "2.00 times as fast as plain" in lines[1]
    assert out.with_suffix(".png").is_file()
    assert not list(out.parent.glob("*.unfinished"))


def test_a_run_goes_on_where_it_was_cut_off(fake, bench, tmp_path):
    out = tmp_path / "fake.json"
    before = fake(out, 3)["rows"]
    bench.order.clear()
    rows = fake(out, 3, 5)["rows"]
    assert rows[:2] == before
    assert [row["steps"] for row in rows] == [3, 3, 5, 5]
    assert len(bench.order) == 2 * (1 + rows[2]["repeats"])  # only the new group has run
    bench.order.clear()
    assert fake(out, 3, 5)["rows"] == rows
    assert not bench.order


def test_a_group_of_which_a_row_is_missing_is_measured_whole(fake, bench, tmp_path):
    out = tmp_path / "fake.json"
    report = fake(out, 3, 5)
    out.write_text(json.dumps(report | {"rows": report["rows"][1:]}))
    rows = fake(out, 3, 5)["rows"]
    assert sorted((row["steps"], row["form"]) for row in rows) == [(3, "auto"), (3, "plain"), (5, "auto"), (5, "plain")]
    assert {"plain", "auto"} <= set(bench.order[-6:])


def test_a_file_that_does_not_name_its_timing_was_timed_cold(fake, tmp_path):
    out = tmp_path / "fake.json"
    report = fake(out, 3)
    del report["timing"]
    out.write_text(json.dumps(report))
    with pytest.raises(ValueError, match='is of another timing: "cold" there, "warm" here; take another --out'):
        fake(out, 3, 5)


def test_what_is_measured_is_written_before_the_next_group(fake, tmp_path):
    out = tmp_path / "fake.json"
    fails = failing(KeyboardInterrupt())
    whole = SUITES["fake"].groups

    def groups(devices, *, steps):
        yield from whole(devices, steps=steps)
        yield Group([fails], list)

    SUITES["fake"] = SUITES["fake"]._replace(groups=groups)
    with pytest.raises(KeyboardInterrupt):
        fake(out, 3)
    assert [row["form"] for row in json.loads(out.read_text())["rows"]] == ["plain", "auto"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "limit"}, 'is of another suite: "limit" there, "fake" here; take another --out'),
        ({"device": {"platform": "gpu"}}, 'is of another device: {"platform": "gpu"} there'),
        ({"versions": {"jax": "0.1"}}, 'is of another versions: {"jax": "0.1"} there'),
        ({"rows": None, "suite": None}, "is of another suite: null there"),
        ({"environment": {"MALLOC_X": "1"}}, 'is of another environment: {"MALLOC_X": "1"} there'),
        ({"timing": "cold"}, 'is of another timing: "cold" there, "warm" here'),
    ],
)
def test_a_file_of_something_else_is_refused_and_left(fake, tmp_path, change, message):
    out = tmp_path / "fake.json"
    out.write_text(json.dumps(fake(out, 3) | change))
    before = out.read_bytes()
    with pytest.raises(ValueError) as error:
        fake(out, 3, 5)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert out.read_bytes() == before


@pytest.mark.parametrize("damaged", ["", "[1, 2]", '{"suite": "fake"}', '{"rows": ['])
def test_a_damaged_file_is_refused_and_left(fake, tmp_path, damaged):
    out = tmp_path / "fake.json"
    out.write_text(damaged)
    with pytest.raises(ValueError, match="is no benchmark's file, or damaged; move it away"):
        fake(out, 3)
    assert out.read_text() == damaged


def test_unknown_suites_other_names_and_empty_sizes_are_one_line(fake, tmp_path):
    with pytest.raises(ValueError, match=r"suite must be one of 'training_step', .*, got 'speed'"):
        run("speed", tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"out must end in \.json or be a folder, got '.*a\.txt'"):
        run("fake", tmp_path / "a.txt", steps=(3,))
    with pytest.raises(ValueError, match="suite fake has nothing to measure"):
        fake(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_the_command_line_reports_in_one_line(tmp_path):
    command = [sys.executable, "-m", "launch.benchmark", "--suite=speed", f"--out={tmp_path / 'a.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("suite must be one of 'training_step'")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_small_training_step_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "training_step.json"
    sizes = {"rules": ("local",), "forms": ("plain", "auto"), "heads": (2,), "steps": (4,), "batch": 2, "width": 8}
    report = run("training_step", out, pause=lambda: None, **sizes)
    assert json.loads(out.read_text()) == report
    assert [row["form"] for row in report["rows"]] == ["plain", "auto"]
    for row in report["rows"]:
        assert (row["rule"], row["heads"], row["steps"], row["batch"], row["width"]) == ("local", 2, 4, 2, 8)
        assert row["chosen"] in ("plain", "factored", "reversible", "auto")
        assert row["note"] is None
        assert 5 <= row["repeats"] <= 20
        numbers = [row[name] for name in ("milliseconds", "temp_bytes", "compile_seconds", "ratio_to_plain")]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert row["ratio_to_plain"] == pytest.approx(report["rows"][0]["milliseconds"] / row["milliseconds"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert image.imread(out.with_suffix(".png")).shape[0] > 400
    assert run("training_step", out, pause=lambda: None, **sizes)["rows"] == report["rows"]


def test_a_benchmark_becomes_a_table(tmp_path):
    row = {"rule": "local", "form": "auto", "heads": 1, "milliseconds": 2.0, "temp_bytes": 3 * 2**20, "note": None}
    device = {"platform": "cpu", "kind": "some CPU", "devices": 2, "cores": 2}
    report = {"suite": "limit", "device": device, "versions": {"jax": "0"}, "environment": {"MALLOC_X": "1"}}
    (tmp_path / "limit.json").write_text(json.dumps(report | {"command": "python -m x", "rows": [row]}))
    title, device_line, table, command = benchmark_parts(tmp_path, "results/benchmark")
    assert (title, command) == ("### limit", "```sh\npython -m x\n```")
    assert device_line == "2 x some CPU (2 cores); jax 0; MALLOC_X=1."
    head, _, body = (re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines())
    assert dict(zip(head, body, strict=True)) == {"rule": "local", "form": "auto", "H": "1", "ms": "2.0", "MiB": "3.0"}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="other.json is not a file of launch.benchmark"):
        benchmark_parts(tmp_path, "")
