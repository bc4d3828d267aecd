"""Tests that an interrupted run of the joint recipe on the real bAbI files resumes exactly."""

import json
import os
import pathlib
import signal

import pytest

from launch.configs import babi_joint
from launch.runs.size import _BATCHES
from launch.train import run
from mnm_jax.training import Interrupted, read_metrics
from tasks.babi.loader import BabiLoader

SHARED = pathlib.Path(__file__).resolve().parents[4] / "shared/data/babi"


def small(cache_dir):
    """Returns the recipe with two tasks of different lengths, renaming, and a small model of the same kind."""
    config = babi_joint.get_config("chain-p")
    config.task.update({"tasks": (1, 20), "data_dir": str(SHARED), "size": "1k", "cache_dir": str(cache_dir)})
    config.task.update({"embedding_features": 16, "hidden_features": 16, "entities": 2, "entity_features": 8})
    config.model.update({"hidden_features": 16, "hops": 2, "relation_features": 2, "readout_features": 8})
    config.training.update({"steps": 36, "eval_every": 20, "log_every": 3, "warmup_steps": 5})
    return config


@pytest.mark.slow
@pytest.mark.skipif(
    not SHARED.is_dir(), reason="no bAbI data: put the official tasks_1-20_v1-2.tar.gz into ../shared/data/babi"
)
def test_a_run_that_is_cut_off_ends_with_the_numbers_of_one_that_is_not(tmp_path, monkeypatch):
    """The interrupt comes in the second epoch, which begins after 14 updates, with batches read ahead."""
    config = small(tmp_path / "cache")
    whole = run(config, tmp_path / "whole")

    read = BabiLoader.__next__
    batches = []

    def read_and_stop(loader):
        batches.append(read(loader))
        if len(batches) == _BATCHES + 17:  # a start reads some batches for the size of an update
            os.kill(os.getpid(), signal.SIGTERM)
        return batches[-1]

    monkeypatch.setattr(BabiLoader, "__next__", read_and_stop)
    with pytest.raises(Interrupted, match="run the same command again"):
        run(config, tmp_path / "cut")
    assert 0 < max(line["step"] for line in read_metrics(tmp_path / "cut")) < 20
    resumed = run(config, tmp_path / "cut")
    assert len(batches) < 2 * (_BATCHES + 36)
    assert resumed["metrics"] == whole["metrics"]

    def numbers(folder):
        return [{key: value for key, value in line.items() if key != "seconds"} for line in read_metrics(folder)]

    assert json.dumps(numbers(tmp_path / "cut")) == json.dumps(numbers(tmp_path / "whole"))
    assert whole["metrics"]["test/error"]["mean"] < 0.9  # it has learned something
