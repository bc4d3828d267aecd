"""Tests what a trial reports of its run, and how the run ends."""

import subprocess
import sys

import pytest

from launch.sweep.space import PlannedTrial
from tests.launch.sweep.common import ROOT, wait_for, write_metrics


def test_the_area_is_the_mean_over_evaluations_and_seeds(tmp_path):
    from launch.sweep.trial import scores

    assert scores(tmp_path, "valid/accuracy") == []
    write_metrics(tmp_path, [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)])
    assert scores(tmp_path, "valid/accuracy") == [(10, 0.25, 0.25), (20, 0.5, 0.75), (30, pytest.approx(2 / 3), 1.0)]
    with pytest.raises(ValueError, match="no line holds the metric 'valid/reward'; there are: valid/accuracy"):
        scores(tmp_path, "valid/reward")


class FakeJob:
    """A run whose exit code is set by the test."""

    def __init__(self, *_):
        self.code, self.stopped = None, False

    def exit_code(self):
        return self.code

    def stop(self):
        self.stopped = True


def make_trial(tmp_path, monkeypatch, name):
    from launch.sweep import trial as module

    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    planned = PlannedTrial(name, {}, [], {"training": {"steps": 30}})
    trial = object.__new__(module.Trial)  # without Ray
    trial.setup({"trial": planned._asdict()}, where=module.Where(str(tmp_path), "", "valid/accuracy", 1, FakeJob))
    return trial, tmp_path / name


def test_a_flag_of_the_sweep_ends_the_command_of_a_trial(tmp_path):
    from launch.sweep import trial as module

    commands = []
    start = lambda command, config, workdir: commands.append(command)  # noqa: E731
    planned = PlannedTrial("abc", {}, ["python", "-m", "launch.train"], {"training": {"steps": 30}})
    where = module.Where(str(tmp_path), "", "valid/accuracy", 1, start, flags=["--nocompilation_cache"])
    object.__new__(module.Trial).setup({"trial": planned._asdict()}, where=where)
    assert commands == [["python", "-m", "launch.train", "--nocompilation_cache"]]


def test_a_trial_tells_each_evaluation_once_and_the_last_when_all_is_written(tmp_path, monkeypatch):
    trial, workdir = make_trial(tmp_path, monkeypatch, "abc")
    write_metrics(workdir, [(0.0,), (0.5,), (1.0,)])
    told = [trial.step(), trial.step()]
    assert [(row["step"], row["area"], row["done"]) for row in told] == [(10, 0.0, False), (20, 0.25, False)]
    assert told[1]["progress"] == pytest.approx(200 / 3)
    from launch.sweep import trial as module

    def end(_):  # the run ends while the trial waits: the last evaluation is not reported yet
        trial._job.code = 0

    monkeypatch.setattr(module.time, "sleep", end)
    assert trial.step() == {"step": 30, "area": 0.5, "last": 1.0, "progress": 100.0, "done": True}
    assert trial._job.code == 0
    trial.cleanup()
    assert trial._job.stopped


def test_the_recipe_is_told_at_its_end_so_that_it_is_not_stopped(tmp_path, monkeypatch):
    trial, workdir = make_trial(tmp_path, monkeypatch, "recipe")
    write_metrics(workdir, [(0.0,), (0.5,), (1.0,)])
    from launch.sweep import trial as module

    monkeypatch.setattr(module.time, "sleep", lambda _: setattr(trial._job, "code", 0))
    assert trial.step() == {"step": 30, "area": 0.5, "last": 1.0, "progress": 100.0, "done": True}


def test_a_finished_run_is_told_and_not_started_again(tmp_path, monkeypatch, contents):
    write_metrics(tmp_path / "abc", [(0.5,), (1.0,)])
    (tmp_path / "abc" / "config.json").write_text('{"training": {"steps": 30}}')
    (tmp_path / "abc" / "summary.json").write_text("{}")
    trial, _ = make_trial(tmp_path, monkeypatch, "abc")
    assert [trial.step()["done"], trial.step()["done"]] == [False, True]
    (tmp_path / "abc" / "checkpoints/30").mkdir(parents=True)
    before = contents(tmp_path)
    for steps in (29, 31):  # `launch.train` would continue the run to 31
        config = {"training": {"steps": steps}}
        message = f"holds a run of another config: training.steps is 30 there, {steps} here; take another --workdir"
        with pytest.raises(ValueError, match=message):
            trial.setup({"trial": PlannedTrial("abc", {}, [], config)._asdict()}, where=trial._where)
    assert contents(tmp_path) == before
    (tmp_path / "abc/summary.json").unlink()  # a trial that was stopped early
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="training.steps is 30 there, 31 here; take another --workdir"):
        trial.setup({"trial": PlannedTrial("abc", {}, [], config)._asdict()}, where=trial._where)
    assert contents(tmp_path) == before


def test_a_run_that_fails_fails_its_trial_with_its_last_line(tmp_path, monkeypatch):
    trial, workdir = make_trial(tmp_path, monkeypatch, "abc")
    (workdir / "log.txt").write_text("I read\nbatch_size must be good\n\n")
    trial._job.code = 3
    with pytest.raises(RuntimeError, match=rf"batch_size must be good \(exit code 3, see {workdir}/log\.txt\)"):
        trial.step()
    trial._job.code = 0
    with pytest.raises(RuntimeError, match="it was not evaluated once"):
        trial.step()


def test_a_run_is_asked_to_save_when_the_process_that_started_it_is_killed(tmp_path):
    child = "import signal, pathlib, time\n"
    child += f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(tmp_path / 'saved')!r}).touch())\n"
    child += f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)\n"
    parent = "import pathlib, time\nfrom launch.sweep.trial import Process\n"
    parent += f"Process(['python', '-c', {child!r}], pathlib.Path({str(tmp_path / 'log')!r}), '.', 1)\ntime.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    wait_for(lambda: (tmp_path / "ready").exists())
    process.kill()
    process.wait()
    wait_for((tmp_path / "saved").exists)
