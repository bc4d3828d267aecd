"""Tests that a command whose output is redirected into a file prints progress, results, and nothing else."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = """
from launch.configs import dictionary

def get_config():
    config = dictionary.get_config("lstm")
    config.task.update(support=2, queries=1, evaluation_batches=1, wider=False)
    config.model.hidden_features = 4
    config.training.seeds = 2
    return config
"""
METRICS = ("accuracy", "chance", "loss")
NUMBER = r"\d+\.\d{4} \+- \d+\.\d{4}"


def run_into_a_file(path, *words):
    # Without JAX_PLATFORMS JAX looks for a TPU and a GPU, and reports that there is none.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    with path.open("w") as file:
        command = [sys.executable, "-m", *words]
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, check=False).returncode
    return code, path.read_text().splitlines()


def test_a_short_run_prints_its_size_its_progress_and_its_results(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    flags = [f"--config={tmp_path / 'recipe.py'}", f"--workdir={tmp_path / 'run'}", "--config.training.steps=3"]
    code, lines = run_into_a_file(tmp_path / "log", "launch.train", *flags)
    assert code == 0, lines
    patterns = [
        r"[\d,]+ parameters \([\d.]+ KiB\), carry [\d.]+ KiB per example, 0\.0 KiB of it fast weights; "
        r"[\d.]+ MFLOP per step, [\d.]+ GFLOP per update \(T \d+, B 32, seeds 2\)",
        r"update 3/3 [\d.]+ updates/s, 0:00:00 left, loss [\d.]+, accuracy [\d.e-]+",
        r"metric +mean \+- std of 2 seeds",
        *[rf"(test|train|valid)/\S+ +{NUMBER}"] * (len(lines) - 3),
    ]
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    names = [line.split()[0] for line in lines[3:]]
    assert {f"{split}/{name}" for split in ("test", "valid") for name in METRICS} | {"train/loss"} <= set(names)
    assert names == sorted(set(names))
