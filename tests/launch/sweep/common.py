"""Metrics of a run for tests, and waiting for a condition."""

import json
import pathlib
import time

ROOT = pathlib.Path(__file__).parents[3]


def write_metrics(workdir, accuracies):
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [{"step": 10 * (i + 1), "seconds": 1.0, "valid/accuracy": list(a)} for i, a in enumerate(accuracies)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
