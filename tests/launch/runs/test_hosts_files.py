"""Tests which of two processes of a run writes the files of its folder, and what ends both."""

import json

import pytest

from tests.two_processes import in_two_processes


@pytest.mark.slow
def test_only_the_first_process_writes_and_another_that_sees_no_run_ends_both(tmp_path):
    first, second = in_two_processes(
        """
import contextlib, io
from launch.runs import workdir
from launch.runs.train import train_run
from tests.launch.runs.test_train import tiny
written, write_json = [], workdir.write_json
workdir.write_json = lambda path, content: (written.append(path.name), write_json(path, content))
config = tiny()
config.training.update(seeds=1, steps=1)
output = io.StringIO()

def start(path, **options):
    with contextlib.redirect_stdout(output):
        return train_run(config, path, **options)["steps"]

record("fault", lambda: start(folder / "fault", after_fault=True))
found["claimed"] = sorted(path.name for path in (folder / "fault").iterdir())
record("apart", lambda: start(folder / f"own{index}"))
found["own"] = (folder / f"own{index}" / "config.json").exists()
record("whole", lambda: start(folder / "run"))
config.training.learning_rate = 0.5 if index else 0.01
record("other", lambda: start(folder / "run"))
config.model.hidden_features = 1 - index
record("wrong", lambda: start(folder / "wrong"))
found["empty"] = not (folder / "wrong").exists()
found["written"] = written
found["output"] = output.getvalue()
""",
        tmp_path,
    )
    message = f"{tmp_path / 'fault'} has no run that could continue after a fault; check --workdir."
    assert first["fault"] == f"ValueError: {message}"
    assert second["fault"] == f"OSError: process 0 failed: {message}"
    assert first["claimed"] == second["claimed"] == [".lock"]  # no process has made a run
    message = f"{tmp_path / 'own1' / 'config.json'} of process 0 is missing here: do all processes see"
    assert second["apart"].startswith(f"ValueError: {message} the same workdir?")
    assert first["apart"].startswith(f"OSError: process 1 failed: {message}")
    assert (first["own"], second["own"]) == (True, False)
    assert (first["whole"], second["whole"]) == (1, 1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2
    message = "training.learning_rate is 0.01 there, 0.5 here"
    assert message in first["other"] and second["other"].startswith("ValueError") and message in second["other"]
    message = "hidden_features must be >= 1, got 0."
    assert (first["wrong"], second["wrong"]) == (f"OSError: process 1 failed: {message}", f"ValueError: {message}")
    assert first["empty"] and second["empty"]
    assert (first["written"], second["written"]) == (["config.json"] * 2, [])
    assert "2 processes, 4 devices\n" in first["output"] and second["output"] == ""
