"""Tests what two processes of a run agree on: errors, and the state in which they begin."""

import re

import pytest

from tests.two_processes import in_two_processes


def test_an_error_of_one_process_is_raised_in_both_as_one_line(tmp_path):
    first, second = in_two_processes(
        """
from mnm_jax.training import first_process_first
called = []

def fail(culprit, error):
    called.append(culprit)
    if index == culprit:
        raise error
    return index

record("both", lambda: first_process_first(lambda: fail(None, None)))
record("first", lambda: first_process_first(lambda: fail(0, ValueError("steps must be\\n>= 1, \\u00e9" + 990 * "x"))))
record("second", lambda: first_process_first(lambda: fail(1, KeyError("seed"))))
record("silent", lambda: first_process_first(lambda: fail(0, RuntimeError())))
found["called"] = called
""",
        tmp_path,
    )
    assert (first["both"], second["both"]) == (0, 1)
    assert first["first"].startswith("ValueError: steps must be")
    assert second["first"].startswith("OSError: process 0 failed: steps must be >= 1, éxxx")
    assert "\n" not in second["first"]
    assert first["second"] == "OSError: process 1 failed: 'seed'"
    assert second["second"] == "KeyError: 'seed'"
    assert second["silent"] == "OSError: process 0 failed: RuntimeError()"
    assert second["called"] == [None, 1]  # after an error of the first process the function is not called


@pytest.mark.slow
def test_processes_that_see_other_checkpoints_do_not_train(tmp_path):
    first, second = in_two_processes(
        """
import shutil
from mnm_jax.training import read_metrics, train
from mnm_jax.training._processes import check_same_start
from tests.training.conftest import Model, Recall, config
task, settings = Recall(), lambda steps: config(steps=steps, log_every=1, eval_every=100, seeds=1)
train(task, Model, settings(2), folder / "run")
own = folder / f"own{index}"
if index == 0:
    shutil.copytree(folder / "run", own)
record("lost", lambda: train(task, Model, settings(4), own))
record("lines", lambda: [line["step"] for line in read_metrics(own)])
record("resumed", lambda: train(task, Model, settings(4), folder / "run").steps)
record("state", lambda: check_same_start(7, {"a": jax.numpy.full(3, 1.0 + index)}, None))
record("position", lambda: check_same_start(7, None, {"part": index}))
""",
        tmp_path,
    )
    remedy = "do all processes see the same workdir?"
    assert first["lost"] == second["lost"] == f"ValueError: process 1 is at update 0, process 0 at update 2: {remedy}"
    assert max(first["lines"]) == 2 and second["lines"] == []
    assert (first["resumed"], second["resumed"]) == (4, 4)
    for name in ("state", "position"):
        message = f"ValueError: process 1 holds another state of update 7 than process 0: {remedy}"
        assert first[name] == second[name] == message


@pytest.mark.slow
def test_a_signal_is_noticed_after_some_seconds_or_one_update_and_fast_updates_are_seldom_interrupted(tmp_path):
    first, second = in_two_processes(
        """
import os, signal, time
from mnm_jax.training import _loop, _processes, train
from tests.training.conftest import Model, Recall, RecallLoader, config

class Read(Recall):
    @property
    def loader(self):
        return lambda seed, batch_size, part: RecallLoader(seed, batch_size // part[1], self.before)

def slow(seconds):
    def before(position, batch):
        time.sleep(seconds)
        if (position, index) == (3, 1):  # in the fourth update
            os.kill(os.getpid(), signal.SIGTERM)
    return Read(reads=True, before=before)

steps, decide = [], _loop._Run.decide

def counted(run, **options):
    before = run.decided
    made = decide(run, **options)
    steps.extend([run.step] * (run.decided is not before))
    return made

_loop._Run.decide = counted
settings = config(steps=64, log_every=100, eval_every=100, seeds=1)
record("fast", lambda: train(Recall(), Model, settings, folder / "fast", parallel="fsdp").steps)
found["decisions"] = steps
_loop._SECONDS_PER_DECISION = 1.0
for seconds in (0.3, 1.1):
    record(f"{seconds}", lambda: train(slow(seconds), Model, settings, folder / f"{seconds}"))
""",
        tmp_path,
    )
    assert (first["fast"], second["fast"]) == (64, 64)
    assert first["decisions"] == second["decisions"]
    assert len(set(first["decisions"])) <= 10
    for name, latest in (("0.3", 7), ("1.1", 5)):
        stops = [re.match(r"Interrupted: stopped by .* at update (\d+) of 64", end[name]) for end in (first, second)]
        assert len({int(stop[1]) for stop in stops}) == 1
        assert 4 <= int(stops[0][1]) <= latest
