"""Tests the command, the leaderboard, and a whole sweep, killed, interrupted and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest

from launch.sweep.host import Host
from launch.sweep.run import is_smaller_better, run_sweep
from launch.sweep.space import PlannedTrial
from tests.launch.sweep.common import ROOT, wait_for, write_metrics

A = {"model.heads": [1, 2]}


def sweep(*arguments, **popen):
    command = [sys.executable, "-m", "launch.sweep", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, text=True, **popen)


@pytest.mark.parametrize("more", [[], ["--nocompilation_cache"]])
def test_a_dry_run_prints_commands_and_starts_nothing(tmp_path, more):
    (tmp_path / "space.json").write_text(json.dumps({"training.learning_rate": [0.1, 0.2, 0.3]}))
    recipe = ["--config=launch/configs/dictionary.py:lstm", "--config.training.steps=7"]
    flags = [
        *recipe,
        f"--space={tmp_path / 'space.json'}",
        "--num_trials=2",
        f"--workdir={tmp_path / 's'}",
        "--dry_run",
        *more,
    ]
    said, errors = sweep(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE).communicate()
    assert not errors
    lines = said.splitlines()
    first = ["python", "-m", "launch.train", *recipe, f"--workdir={tmp_path}/s/trials/recipe", *more]
    assert lines[0] == " ".join(first)
    assert [line.count("--config.training.learning_rate=0.") for line in lines] == [0, 1, 1]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("name", "space", "message"),
    [
        ("s.json", '{"model.step_size": ["normalised", "wrong"]}', "step_size must be one of .*, got 'wrong'"),
        (
            "s.json",
            '{"training.learning_rate.x": [1]}',
            "a setting is named SECTION.KEY, .*, got 'training.lea",
        ),
        ("s.py", "\nSPACE = [0.1,", r"s\.py, line 2: SyntaxError: "),
        ("s.py", "import json\n\njson.dumps({1})", r"s\.py, line 3: TypeError: "),
        ("s.py", "int('x')", r"s\.py, line 1: ValueError: invalid literal"),
        ("s.py", "SPACE = {'model.heads': [1]}\n\nheads", r"s\.py, line 3: NameError: name 'heads' is not defined"),
    ],
)
def test_an_error_of_the_space_is_named_in_one_line_before_anything_starts(tmp_path, name, space, message):
    (tmp_path / name).write_text(space)
    flags = ["--config=launch/configs/dictionary.py:mnm-p", f"--space={tmp_path / name}", "--dry_run"]
    process = sweep(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate()
    assert (process.returncode, said, len(errors.splitlines())) == (1, "", 1)
    assert re.search(message, errors), errors


def test_the_direction_of_a_metric_follows_from_its_name():
    names = ["valid/accuracy", "valid/loss", "valid/meta_loss", "valid/error", "valid/support=8/loss", "valid/bits"]
    assert [is_smaller_better(name) for name in names] == [False, True, True, True, True, False]


def test_without_ray_the_extra_is_named(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    (tmp_path / "space.json").write_text(json.dumps({"training.learning_rate": [0.1]}))
    flags = ["--config=launch/configs/dictionary.py", f"--space={tmp_path / 'space.json'}"]
    command = [sys.executable, "-m", "launch.sweep", *flags, f"--workdir={tmp_path / 's'}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["No module named 'ray': run pip install 'mnm_jax[sweep]'."]
    assert not (tmp_path / "s").exists()


def test_every_start_limits_the_concurrent_trials():
    one, slices = Host({"CPU": 1.0, "GPU": 0.0}), Host({"TPU": 4.0}, hosts=2)
    assert one.bundles(None) == [{"CPU": 1.0}]
    for number in range(1, 97):
        own, head = one.bundles(number)
        assert own == {"CPU": 1.0} and [head] == slices.bundles(number)
        (part,) = head.values()
        units = round(10_000 * part)  # Ray counts in these, and there is one head node
        assert units == pytest.approx(10_000 * part)
        assert 10_000 // units == (10_000 - 10) // units == number  # also while Ray Train takes 10 of them
    for wrong in (0, 97):
        with pytest.raises(ValueError, match=f"concurrent must be from 1 to 96, got {wrong}; leave it out"):
            one.bundles(wrong)


def test_settings_that_tune_restores_from_the_first_start_have_a_state_of_their_own(tmp_path):
    from launch.sweep.tuning import state_folder

    trials = [PlannedTrial("abc", {}, ["python"], {"training": {"steps": 1}})]
    settings = [("valid/accuracy", True, True), ("valid/loss", True, True), ("valid/accuracy", False, True)]
    settings += [("valid/accuracy", True, False)]
    folders = [state_folder(tmp_path, trials, *one) for one in settings]
    assert len(set(folders)) == 4 and folders[0] == state_folder(tmp_path, list(trials), *settings[0])


@pytest.mark.parametrize(("address", "expected"), [(None, "0"), ("auto", None)])
def test_on_one_machine_ray_listens_on_the_loopback_interface(tmp_path, monkeypatch, address, expected):
    monkeypatch.delenv(name := "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)

    class Started(Exception):
        pass

    def start(*args, **kwargs):
        assert (os.environ.get(name), kwargs["address"]) == (expected, address)
        raise Started

    monkeypatch.setattr("launch.sweep.tuning.run", start)
    with pytest.raises(Started):
        run_sweep([], None, tmp_path, Host({"CPU": 1.0}), metric="valid/accuracy", largest=True, address=address)
    monkeypatch.delenv(name, raising=False)


def test_every_30_seconds_each_running_trial_has_a_line(tmp_path, monkeypatch, capsys):
    from launch.sweep import tuning

    def trial(name, status):
        config = {"trial": {"name": name, "config": {"training": {"steps": 1500}}}}
        result = {"progress": 100.0, "area": 0.5}
        done = status == "TERMINATED"
        return types.SimpleNamespace(config=config, status=status, is_finished=lambda: done, last_result=result)

    now = [100.0]
    monkeypatch.setattr(tuning, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    write_metrics(tmp_path / "abc", [(0.0, 0.5)])
    with (tmp_path / "abc" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1200, "seconds": 2.0, "train/loss": [1.0, 1.0]}) + "\n")
    (tmp_path / "ghi").mkdir()
    (tmp_path / "ghi" / "metrics.jsonl").write_text(json.dumps({"step": 5, "train/loss": [1.0]}) + "\n")
    names = {"abc": "RUNNING", "def": "RUNNING", "ghi": "RUNNING", "jkl": "PENDING", "mno": "TERMINATED"}
    trials = [trial(name, status) for name, status in names.items()]
    reporter = tuning._Reporter(str(tmp_path), "valid/accuracy")
    reporter.on_step_end(0, trials[3:])  # none runs
    reporter.on_trial_start(0, trials, trials[0])
    for seconds in (0.0, 0.1, 29.8, 0.2):
        now[0] += seconds
        reporter.on_step_end(1, trials)
    reporter.on_trial_complete(2, trials, trials[0])
    lines = [
        "abc: update 1,200 of 1,500, valid/accuracy 0.2500",
        "def: no metrics yet",
        "ghi: update 5 of 1,500, valid/accuracy not measured yet",
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"abc: started, its output is in {tmp_path}/abc/log.txt",
        *lines,
        *lines,
        "abc: 100% of its updates, area 0.5000; 2 have ended",
    ]


def test_the_leaderboard_by_hand(tmp_path):
    from launch.sweep.leaderboard import describe, draw, make_rows

    changes = {"recipe": {}} | {name: {"model.heads": n} for n, name in enumerate("abcd", 2)}
    trials = [PlannedTrial(name, changed, [], {}) for name, changed in changes.items()]
    for name, accuracies in {"recipe": [0.0, 0.5], "a": [0.5, 0.75], "b": [1.0], "c": [0.25]}.items():
        write_metrics(tmp_path / name, [(accuracy,) for accuracy in accuracies])
    for name in ("recipe", "a"):
        (tmp_path / name / "summary.json").write_text("{}")
    rows = make_rows(trials, {"model.heads": 1}, tmp_path, "valid/accuracy", {"c": "nan", "d": "no such file"})
    assert [(row["trial"], row["state"], row["area"], row["settings"]["model.heads"]) for row in rows] == [
        ("a", "finished", 0.625, 2),
        ("recipe", "finished", 0.25, 1),
        ("b", "stopped early", 1.0, 3),
        ("c", "failed", 0.25, 4),
        ("d", "failed", None, 5),
    ]
    losses = make_rows(trials, {"model.heads": 1}, tmp_path, "valid/accuracy", {}, largest=False)
    assert [row["trial"] for row in losses[:2]] == ["recipe", "a"]
    write_metrics(tmp_path / "b", [(0.1,), (None,)])  # a loss that was not finite
    for largest in (True, False):
        diverged = make_rows(trials[:-1], {}, tmp_path, "valid/accuracy", {}, largest=largest)
        assert (diverged[-1]["trial"], diverged[-1]["area"], diverged[-1]["last"]) == ("b", None, None)
        json.dumps(diverged, allow_nan=False)
    assert json.loads(json.dumps(rows)) == rows
    assert describe(rows)[-1] == {
        "trial": "d",
        "area": "-",
        "last": "-",
        "step": "0",
        "model.heads": "5",
        "state": "failed: no such file",
    }
    write_metrics(tmp_path / "zero", [(0.0,)])
    (tmp_path / "zero" / "summary.json").write_text("{}")
    (first, *_) = make_rows(
        [*trials, PlannedTrial("zero", {}, [], {})], {}, tmp_path, "valid/accuracy", {}, largest=False
    )
    assert first["trial"] == "zero"  # an area of exactly zero is the smallest, not a missing one
    lists = [row | {"settings": {"task.sizes": [8, row["step"]]}} for row in rows]
    draw(lists, "valid/accuracy", tmp_path / "lists.png")
    assert (tmp_path / "lists.png").is_file()
    settings = ({"a": 1}, [[1], 2], [None, 1], "default", 0.5)
    mixed = [row | {"settings": {"task.x": value}} for row, value in zip(rows, settings, strict=True)]
    draw(mixed, "valid/accuracy", tmp_path / "mixed.png")
    assert (tmp_path / "mixed.png").is_file()
    draw(rows, "valid/accuracy", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    draw(rows[-1:], "valid/accuracy", tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_repeats_nothing_and_a_trial_that_fails_does_not_end_it(tmp_path, listening):
    workdir, trials = tmp_path / "s", tmp_path / "s" / "trials"
    two = {"training.learning_rate": [0.001, 0.01], "model.hidden_features": [4]}
    wrong = {"training.batch_size": [7], "model.hidden_features": [4]}
    (tmp_path / "space.json").write_text(json.dumps({"chain": [two, wrong]}))
    flags = ["--config=launch/configs/dictionary.py:lstm", f"--space={tmp_path / 'space.json'}", f"--workdir={workdir}"]
    settings = {"seeds": 1, "steps": 60, "eval_every": 10, "log_every": 10, "accumulate": 2, "checkpoint_seconds": 0.5}
    for name, value in settings.items():
        flags += [f"--config.training.{name}", str(value)]

    def finished():
        return {path.parent.name: path.stat().st_mtime for path in trials.glob("*/summary.json")}

    process = sweep(*flags, start_new_session=True)
    try:
        wait_for(lambda: len(finished()) >= 1, 200)
        found = listening(process.pid)
        time.sleep(6)  # the state of the sweep is written every five seconds
    finally:
        process.kill()
        process.wait()
    before = finished()
    assert len(found) > 4 and all(ip.is_loopback for ip, _ in found), found
    said, _ = sweep(*flags, "--concurrent=1", stdout=subprocess.PIPE).communicate(timeout=280)
    running = 0
    for line in said.splitlines():
        running += (": started, " in line) - (" have ended" in line)
        assert running in (0, 1), said
    assert said.count(": started, ") >= 2
    assert before.items() <= finished().items()
    rows = json.loads((workdir / "leaderboard.json").read_text())
    assert len(rows) == 4
    (failed,) = (row for row in rows if row["state"] == "failed")
    assert "accumulate must divide the 7 examples of a device, got accumulate=2. (exit code 1, see " in failed["error"]
    assert failed["settings"]["training.batch_size"] == 7
    assert failed["error"] in said
    for path in trials.glob("*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if "valid/accuracy" in line]
        assert steps == [10, 20, 30, 40, 50, 60][: len(steps)]
    assert "recipe" in finished()
    assert (workdir / "leaderboard.png").is_file() and "| recipe |" in (workdir / "leaderboard.md").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_saves_its_trials_and_says_so(tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"training.learning_rate": [0.001, 0.01]}))
    flags = ["--config=launch/configs/dictionary.py:lstm", f"--space={tmp_path / 'space.json'}"]
    settings = {"training.steps": 1000000, "training.checkpoint_seconds": 3600.0, "training.log_every": 10}
    settings |= {"training.seeds": 1, "model.hidden_features": 4}
    flags += [f"--config.{name}={value}" for name, value in settings.items()]
    process = sweep(*flags, f"--workdir={tmp_path / 's'}", "--concurrent=2", stderr=subprocess.PIPE)
    trials = tmp_path / "s" / "trials"
    try:
        wait_for(lambda: sum(path.stat().st_size > 0 for path in trials.glob("*/metrics.jsonl")) == 2, 250)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "the sweep was interrupted; the same command resumes it."
    assert not list((tmp_path / "s").glob("leaderboard*"))
    for path in trials.glob("*/metrics.jsonl"):  # no checkpoint was due
        assert list((path.parent / "checkpoints").glob("[0-9]*")), (path.parent / "log.txt").read_text()


@pytest.mark.slow
def test_trials_of_two_hosts_each(tmp_path):
    (tmp_path / "space.json").write_text(json.dumps({"training.learning_rate": [0.01]}))
    flags = ["--config=launch/configs/dictionary.py:lstm", f"--space={tmp_path / 'space.json'}"]
    settings = {"training.steps": 20, "training.eval_every": 10, "training.seeds": 1, "model.hidden_features": 4}
    flags += [f"--config.{name}={value}" for name, value in settings.items()]
    process = sweep(*flags, f"--workdir={tmp_path / 's'}", "--hosts=2")
    try:
        assert process.wait(timeout=280) == 0
    finally:
        process.send_signal(signal.SIGKILL)
    rows = json.loads((tmp_path / "s" / "leaderboard.json").read_text())
    assert {row["state"] for row in rows} == {"finished"}
    for row in rows:
        summary = json.loads((tmp_path / "s" / "trials" / row["trial"] / "summary.json").read_text())
        assert (summary["devices"], summary["processes"]) == (2, 2)
