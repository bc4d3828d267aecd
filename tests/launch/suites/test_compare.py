"""Tests `launch.compare`: the runs of the suites, and resuming a suite in one process or in several."""

import fcntl
import functools
import json
import pathlib
import subprocess
import sys

import pytest

from launch.configs import league
from launch.runs.build import build_training
from launch.runs.finished import find_runs
from launch.runs.workdir import claim, write_json
from launch.suites import train as compare
from launch.suites.runs import SUITES, make_run, parameters, width_for
from mnm_jax.training import Interrupted, TrainingFault

ROOT = pathlib.Path(__file__).parents[3]
suite_of = functools.cache(lambda name: SUITES[name]())


def test_the_algorithmic_suite_has_every_model_on_every_task():
    labels = list(suite_of("algorithmic"))
    tasks = ["copy", "repeat_copy", "double_copy", "associative_recall", "priority_sort"]
    models = ["mnm-p", "mnm-g", "lstm-salu", "ntm", "dnc", "lstm"]
    assert labels == [f"{task}/{model}" for task in tasks for model in models]


def test_the_maze_suite_has_every_agent_in_every_size():
    agents = ["mnm-p", "mnm-g", "lstm", "lstm-salu", "rnn", "plastic", "neuromodulated"]
    assert list(suite_of("maze")) == [f"{n}x{n}/{agent}" for n in (9, 11, 13) for agent in agents]
    assert {cell.config.task.size for cell in suite_of("maze").values()} == {9, 11, 13}


def test_the_league_has_ten_layers_per_task_and_the_memories_at_two_more_states():
    suite, models = suite_of("league"), set(league.MODELS)
    groups = {
        group: {label.split("/")[1] for label in suite if label.split("/")[0] == group} for group in league.GROUPS
    }
    small = {"recall_64", "recall_256"}
    assert {group for group, found in groups.items() if found == models} == set(league.GROUPS) - small - {"s3_slow"}
    assert all(groups[group] == set(league.MEMORIES) for group in small) and len(suite) == 6 * 10 + 2 * 8 + 3
    assert all(len(cell.tuning.values) == 3 for cell in suite.values())


def test_no_seed_that_chooses_a_learning_rate_is_reported():
    for run in suite_of("league").values():
        reported, trials = run.config.training, run.change(run.tuning.changes).config.training
        assert trials.seed not in range(reported.seed, reported.seed + reported.seeds)


def test_capacity_compares_at_equal_state_and_at_equal_parameters():
    suite = suite_of("capacity")
    sizes = {label: parameters(cell.config) for label, cell in suite.items() if label.startswith("equal_parameters/")}
    assert len(sizes) == 6 and all(0.98e5 < size <= 1e5 for size in sizes.values())

    def numbers_of_memory(model):
        c = suite[f"equal_state/{model}"].config.model
        width, slots = c.get("memory_features"), c.get("slots")
        return {
            "mnm-p": lambda: width**2 * c.memory_layers,
            "mnm-g": lambda: width**2 * c.memory_layers,
            "lstm-salu": lambda: slots * 2 * width,
            "ntm": lambda: slots * width,
            "dnc": lambda: slots * width + slots**2,
            "lstm": lambda: 2 * c.hidden_features,
        }[model]()

    for model in ("mnm-p", "mnm-g", "lstm-salu", "ntm", "dnc", "lstm"):
        assert numbers_of_memory(model) == pytest.approx(1024, rel=0.01)


@pytest.mark.parametrize("suite", [pytest.param(s, marks=[pytest.mark.slow] * (s == "league")) for s in SUITES])
def test_every_run_of_a_suite_can_be_built(suite):
    for label, cell in suite_of(suite).items():
        training = build_training(cell.config.training)
        assert parameters(cell.config) > 20_000 and training.seeds >= 3, label


def test_the_widest_controller_that_fits():
    recipe = "pairs.py:lstm"
    width = width_for(recipe, 20_000)
    sizes = [parameters(make_run(recipe, {"model.hidden_features": w}).config) for w in (width, width + 1)]
    assert sizes[0] <= 20_000 < sizes[1]
    with pytest.raises(ValueError, match="more than 10 parameters with any controller"):
        width_for(recipe, 10)


def test_the_command_of_a_run_trains_the_same_config(tmp_path):
    cell = suite_of("capacity")["heads/mnm-g_heads=4"]
    words = compare.command(cell, tmp_path).split()
    assert words[3:] == ["--config=launch/configs/pairs.py:mnm-g", f"--workdir={tmp_path}", "--config.model.heads=4"]
    assert cell.config.model.heads == 4 and cell.config.model.name == "mnm-g"


def test_settings_and_labels_that_are_none():
    suite = suite_of("algorithmic")
    chosen = compare.choose(
        suite,
        "copy/*",
        ["training.seeds=2", "model.hidden_features=7", "training.schedule=constant", "training.clip_norm=None"],
    )
    assert [label.split("/")[0] for label in chosen] == ["copy"] * 6
    assert {cell.config.training.seeds for cell in chosen.values()} == {2}
    assert {cell.config.training.schedule for cell in chosen.values()} == {"constant"}
    assert {cell.config.training.clip_norm for cell in chosen.values()} == {None}
    followed = compare.choose(suite, "copy/mnm-p", ["model.follow_keys=true"])  # a key that the recipe leaves out
    assert followed["copy/mnm-p"].config.model.follow_keys is True
    for only, settings, message in (
        ("cpoy/*", [], "no label matches 'cpoy/\\*'; the labels are copy/mnm-p"),
        ("*", ["seeds=2"], "SECTION.KEY=VALUE, such as training.seeds=2, got 'seeds=2'"),
        ("*", ["training.sedes=2"], "training has an unknown key 'sedes'; did you mean 'seeds'"),
        ("*", ["trainign.seeds=2"], "the recipe has no section 'trainign'"),
        ("*", ["training.seeds=2.5"], "training.seeds of the recipe is 5, got 2.5"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.choose(suite, only, settings)


def end(folder, config, metrics=()):
    """Writes the summary of a finished run."""
    run = {"task": config.task.name, "model": config.model.name, "command": "", "seconds": 1.0, "parameters": 1}
    counts = {"seeds": 1, "steps": config.training.steps}
    write_json(folder / "summary.json", run | counts | {"config": {}, "metrics": dict(metrics)})


def test_resumes_and_leaves_to_other_processes_the_runs_that_they_train(tmp_path, capsys):
    trained = []

    def train(config, folder, command):
        trained.append((config.model.name, command))
        if config.model.name == "dnc" and len(trained) < 4:
            raise Interrupted("stopped by SIGTERM")
        claim(folder, json.loads(json.dumps(config.to_dict())))
        end(folder, config)

    cells = compare.choose(suite_of("algorithmic"), "copy/[lnd]*", [])
    assert list(cells) == ["copy/lstm-salu", "copy/ntm", "copy/dnc", "copy/lstm"]
    (tmp_path / "copy/lstm-salu").mkdir(parents=True)
    with (tmp_path / "copy/lstm-salu/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as if another process trained this run
        with pytest.raises(Interrupted):
            compare.train_all(cells, tmp_path, train)
        assert [model for model, _ in trained] == ["ntm", "dnc"]
        trained.append(None)
        assert compare.train_all(cells, tmp_path, train) == ["copy/lstm-salu"]
    assert [model for model, _ in trained[3:]] == ["dnc", "lstm"]
    assert compare.train_all(cells, tmp_path, train) == []  # the other process has ended: its lock is free
    assert trained[-1] == ("lstm-salu", compare.command(cells["copy/lstm-salu"], tmp_path / "copy/lstm-salu"))
    capsys.readouterr()
    assert compare.train_all(cells, tmp_path, train) == []
    assert len(trained) == 6 and capsys.readouterr().out == ""  # nothing is left to do

    ntm = tmp_path / "copy/ntm/summary.json"
    summary = json.loads(ntm.read_text())
    for damaged in ("{}", json.dumps(summary | {"steps": 1})):  # 1: it was killed while the run was reopened
        ntm.write_text(damaged)
        assert compare.plan(cells, tmp_path).count("# to do") == 1
        assert compare.train_all(cells, tmp_path, train) == []
        assert trained.pop()[0] == "ntm" and len(trained) == 6 and json.loads(ntm.read_text()) == summary

    others = compare.choose(suite_of("algorithmic"), "copy/ntm", ["training.seeds=2"])
    with pytest.raises(ValueError, match="holds a run of another config: training.seeds is 5 there, 2 here"):
        compare.train_all(others, tmp_path, train)


def test_the_last_process_finds_the_runs_of_the_others_finished(tmp_path):
    cells = compare.choose(suite_of("algorithmic"), "copy/[nd]*", [])
    (tmp_path / "copy/ntm").mkdir(parents=True)

    def finish(config, folder):
        claim(folder, json.loads(json.dumps(config.to_dict())))
        end(folder, config)

    with (tmp_path / "copy/ntm/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def train(config, folder, command):
            finish(config, folder)
            finish(cells["copy/ntm"].config, tmp_path / "copy/ntm")  # another process ends its run meanwhile
            fcntl.flock(file, fcntl.LOCK_UN)

        assert compare.train_all(cells, tmp_path, train) == []


def test_the_command_line_says_what_is_to_do(tmp_path):
    words = [sys.executable, "-m", "launch.compare", "--suite=algorithmic", f"--workdir={tmp_path}", "--dry_run"]
    done = subprocess.run([*words, "--only=copy/*"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("# to do") == 6 and "algorithmic.py:copy/dnc" in done.stdout
    assert not list(tmp_path.iterdir())
    assert set(SUITES) == {"algorithmic", "capacity", "league", "maze"}


def test_a_setting_is_tuned_in_runs_of_its_own_before_its_run_trains(tmp_path, capsys):
    """The second value is best in validation, and the third stops at a NaN."""
    trained = []

    def train(config, folder, command):
        rate = config.training.learning_rate
        trained.append((folder.relative_to(tmp_path).as_posix(), rate, config.training.seeds))
        if rate == 1e-2:
            raise TrainingFault("loss is not finite at update 3.")
        claim(folder, json.loads(json.dumps(config.to_dict())))
        mean = {1e-3: 0.25, 3e-3: 0.75}[rate]
        end(folder, config, {"valid/accuracy": {"mean": mean}})

    label = "parity/layer-delta"
    cells = compare.choose(suite_of("league"), label, [])
    assert "# to do, with the best training.learning_rate" in compare.plan(cells, tmp_path)
    for _ in range(2):  # the second call finds everything finished, except the trial that stopped
        assert compare.train_all(cells, tmp_path, train) == []
    trials = [(f"{label}/tuning/learning_rate={rate}", rate, 1) for rate in (0.001, 0.003, 0.01)]
    assert trained == [*trials, (label, 3e-3, 3)]
    assert "learning_rate=0.01: loss is not finite at update 3." in capsys.readouterr().err
    summary = json.loads((tmp_path / label / "summary.json").read_text())
    assert summary["tuning"] == {"0.001": 0.25, "0.003": 0.75, "0.01": None}
    assert compare.plan(cells, tmp_path).startswith("# finished\n")
    write_json(tmp_path / label / "summary.json", {k: v for k, v in summary.items() if k != "tuning"})
    assert "# to do, with the best" in compare.plan(cells, tmp_path)  # it was killed before the scores were added
    assert compare.train_all(cells, tmp_path, train) == []
    assert compare.plan(cells, tmp_path).startswith("# finished\n")

    fixed = compare.choose(suite_of("league"), label, ["training.learning_rate=0.001"])
    with pytest.raises(ValueError, match="another config: training.learning_rate is 0.003 there, 0.001 here"):
        compare.train_all(fixed, tmp_path, train)


def test_a_tuned_run_that_is_interrupted_on_its_way_to_more_updates_keeps_its_setting(tmp_path):
    """With more updates another rate would be selected."""
    trained, interrupted = [], []

    def train(config, folder, command):
        steps, rate = config.training.steps, config.training.learning_rate
        trained.append((folder.name, rate, steps))
        claim(folder, json.loads(json.dumps(config.to_dict())))
        (folder / "checkpoints/1").mkdir(parents=True, exist_ok=True)
        if steps in interrupted:
            raise Interrupted("stopped by SIGTERM")
        end(folder, config, {"valid/accuracy": {"mean": float(rate == (3e-3 if steps == 800 else 1e-3))}})

    label = "parity/layer-delta"
    cells = compare.choose(suite_of("league"), label, [])
    compare.train_all(cells, tmp_path, train)
    assert trained.pop() == ("layer-delta", 3e-3, 800)
    for steps in (1600, 3200):
        longer = compare.choose(suite_of("league"), label, [f"training.steps={steps}"])
        trained.clear()
        interrupted.append(steps)
        with pytest.raises(Interrupted):
            compare.train_all(longer, tmp_path, train)
        interrupted.clear()
        plan = compare.plan(longer, tmp_path)
        assert plan.startswith("# to do\n") and plan.endswith("learning_rate=0.003") and plan.count("#") == 1
        compare.train_all(longer, tmp_path, train)
        assert trained == 2 * [("layer-delta", 3e-3, steps)]
        summary = json.loads((tmp_path / label / "summary.json").read_text())
        assert summary["tuning"] == {"0.001": 0.0, "0.003": 1.0, "0.01": 0.0}
        # As if the run had been killed before the scores were added, and then continued.
        write_json(tmp_path / label / "summary.json", {name: summary[name] for name in summary if name != "tuning"})


def test_a_run_that_continued_after_a_fault_keeps_its_settings_and_the_suite_goes_on(tmp_path, capsys):
    trained = []

    def train(config, folder, command):
        trained.append((config.model.name, config.training.learning_rate, command))
        claim(folder, json.loads(json.dumps(config.to_dict())))
        end(folder, config)

    cells = compare.choose(suite_of("maze"), "9x9/[lr]*[mn]", [])
    assert list(cells) == ["9x9/lstm", "9x9/rnn"]
    folder = tmp_path / "9x9/lstm"
    first = json.loads(json.dumps(cells["9x9/lstm"].config.to_dict()))
    now = first | {"training": first["training"] | {"learning_rate": 5e-4, "clip_norm": 0.5}}
    write_json(folder / "config.json", now)  # as after `launch.train --after_fault`, interrupted
    write_json(folder / "earlier_configs.json", [{"until": 0, "config": first}])

    changed = "--config.training.learning_rate=0.0005 --config.training.clip_norm=0.5"
    assert compare.plan(cells, tmp_path).splitlines()[1].endswith(f"--workdir={folder} {changed}")
    compare.train_all(cells, tmp_path, train)
    assert [row[:2] for row in trained] == [("lstm", 5e-4), ("rnn", 1e-3)] and trained[0][2].endswith(changed)
    assert f"{folder}: continued after a fault with other settings, which it keeps: python" in capsys.readouterr().out
    trained.clear()
    compare.train_all(cells, tmp_path, train)
    assert not trained and compare.plan(cells, tmp_path).startswith("# finished\n")

    (folder / "checkpoints/1").mkdir(parents=True)
    steps = first["training"]["steps"] + 1
    longer = compare.choose(suite_of("maze"), "9x9/lstm", [f"training.steps={steps}"])
    compare.train_all(longer, tmp_path, train)
    assert [row[:2] for row in trained] == [("lstm", 5e-4)]
    with pytest.raises(ValueError, match=f"training.steps is {steps} there, {steps - 1} here"):
        compare.train_all(cells, tmp_path, train)
    other = compare.choose(suite_of("maze"), "9x9/lstm", [f"training.steps={steps}", "training.seeds=2"])
    with pytest.raises(ValueError, match="holds a run of another config: training.clip_norm is 0.5 there"):
        compare.train_all(other, tmp_path, train)


def test_tuning_is_not_taken_from_runs_of_other_settings_nor_reported(tmp_path):
    """A first process is killed after two trials, and a second one between the end of the run and its scores."""
    trained = []

    def train(config, folder, command):
        if len(trained) == 2:
            raise Interrupted("stopped by SIGTERM")
        trained.append(folder.name)
        claim(folder, json.loads(json.dumps(config.to_dict())))
        end(folder, config, {"valid/accuracy": {"mean": 0.5, "std": 0.0, "per_seed": [0.5]}})

    label = "parity/layer-delta"
    short = compare.choose(suite_of("league"), label, ["training.batch_size=2"])
    with pytest.raises(Interrupted):
        compare.train_all(short, tmp_path, train)
    assert trained == ["learning_rate=0.001", "learning_rate=0.003"] and find_runs(tmp_path) == ([], [])
    cells = compare.choose(suite_of("league"), label, [])
    with pytest.raises(ValueError, match="another config: training.batch_size is 2 there"):
        compare.train_all(cells, tmp_path, train)
    trained.append(None)
    compare.train_all(short, tmp_path, train)
    assert trained[3:] == ["learning_rate=0.01", "layer-delta"]
    summary = json.loads((tmp_path / label / "summary.json").read_text())
    write_json(tmp_path / label / "summary.json", {name: summary[name] for name in summary if name != "tuning"})
    assert "# to do, with the best training.learning_rate" in compare.plan(short, tmp_path)
    compare.train_all(short, tmp_path, train)
    assert len(trained) == 5 and json.loads((tmp_path / label / "summary.json").read_text())["tuning"]
    assert [run.place for run in find_runs(tmp_path)[0]] == [label]
