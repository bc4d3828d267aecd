"""Tests the record of a run: lines, events, and the lines that a restart keeps."""

import json
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from mnm_jax.training import MetricWriter, read_metrics


def write(workdir, steps, *, resume=0, value=0.5):
    writer = MetricWriter(workdir, step=resume)
    for step in steps:
        writer.write(step, float(step), {"train/loss": np.array([value, value + 1.0])})
    writer.close()


def test_a_line_holds_a_number_per_seed_and_no_invalid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(3, 1.5, {"valid/accuracy": np.array([0.25, np.nan]), "train/loss": np.array([np.inf, 2.0])})
    text = (tmp_path / "metrics.jsonl").read_text()  # readable before the file is closed
    writer.close()

    def refuse(constant):
        raise AssertionError(constant)

    line = {"step": 3, "seconds": 1.5, "valid/accuracy": [0.25, None], "train/loss": [None, 2.0]}
    assert json.loads(text, parse_constant=refuse) == line
    assert read_metrics(tmp_path) == [line]


def test_float32_numbers_come_back_exactly(tmp_path):
    number = np.float32(0.1)
    write(tmp_path, [1], value=number)
    assert np.float32(read_metrics(tmp_path)[0]["train/loss"][0]) == number


def test_a_restart_removes_later_lines_and_keeps_the_others(tmp_path):
    write(tmp_path, [1, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    write(tmp_path, [3], resume=2, value=7.0)
    after = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert after[:2] == before[:2]
    assert [(line["step"], line["train/loss"][0]) for line in read_metrics(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 7.0)]


def test_a_line_cut_short_is_left_out_and_the_next_one_stands_alone(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    write(tmp_path, [2], resume=1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_crash_while_dropping_lines_loses_none(tmp_path, monkeypatch):
    write(tmp_path, [1, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda number: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            MetricWriter(tmp_path, step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def events(workdir):
    """Yields all events; a record is a length (8 bytes), its checksum (4), the event and its checksum (4)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event, rest = data[12 : 12 + length], data[12 + length :]
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            assert int.from_bytes(rest[:4], "little") == masked_crc32c(event)
            yield Event.FromString(event)
            data = rest[4:]


def board(workdir):
    """Returns the values of all events by (tag, step)."""
    return {(value.tag, event.step): value.simple_value for event in events(workdir) for value in event.summary.value}


def test_a_restart_tells_tensorboard_to_drop_later_events_only(tmp_path):
    MetricWriter(tmp_path, step=2).close()
    assert [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START] == [3]


def test_tensorboard_has_the_mean_and_each_of_several_seeds(tmp_path):
    write(tmp_path / "two", [4])
    assert board(tmp_path / "two") == {
        ("train/loss", 4): 1.0,
        ("train/loss/seed0", 4): 0.5,
        ("train/loss/seed1", 4): 1.5,
    }
    writer = MetricWriter(tmp_path / "one")
    writer.write(2, 0.0, {"test/support=32/loss": np.array([0.5])})
    writer.close()
    assert board(tmp_path / "one") == {("test/support_32/loss", 2): 0.5}


def test_a_package_of_the_extra_that_is_missing_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"tensorboardX.*: run pip install 'mnm_jax\[train\]'\."):
        MetricWriter(tmp_path / "run")
    assert not (tmp_path / "run").exists()
