"""Tests a whole small run, the files that it writes, and the errors of wrong workdirs and configs."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.configs import babi_task1
from launch.evaluate import evaluation_table
from launch.reporting.text_table import format_table
from launch.runs import workdir as workdir_module
from launch.runs.evaluate import evaluate_folder, evaluate_run
from launch.runs.metrics import summarise
from launch.runs.train import _describe_continuing, train_run
from launch.runs.versions import commit
from launch.runs.workdir import claim
from launch.train import run
from mnm_jax.training import TrainConfig, TrainingFault, read_metrics


def tiny():
    training = {"steps": 3, "batch_size": 8, "learning_rate": 0.01, "seeds": 2, "seed": 4, "log_every": 1}
    return ConfigDict(
        {
            "task": {"name": "dictionary", "support": 2, "queries": 1, "evaluation_batches": 2, "wider": False},
            "model": {"name": "lstm", "hidden_features": 4},
            "training": training,
        }
    )


def table(folder):
    return evaluation_table(folder, evaluate_folder(folder))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, without_drawing):
    workdir = tmp_path_factory.mktemp("run") / "new" / "folder"
    with without_drawing():
        return workdir, run(tiny(), workdir)


@pytest.fixture
def copy(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_the_summary_agrees_with_the_metrics_and_the_config(finished):
    workdir, summary = finished
    written = json.loads((workdir / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    (line,) = (line for line in read_metrics(workdir) if "test/accuracy" in line)
    for name, row in written["metrics"].items():
        if name.startswith("test/"):
            first, second = line[name]
            assert row["per_seed"] == [first, second]
            assert row["mean"] == pytest.approx((first + second) / 2)
            assert row["std"] == pytest.approx(abs(first - second) / 2**0.5)
    assert {"test/accuracy", "test/loss", "valid/accuracy", "train/loss"} <= written["metrics"].keys()
    assert written["config"] == json.loads((workdir / "config.json").read_text()) == tiny().to_dict()
    assert (written["task"], written["model"], written["seeds"], written["steps"]) == ("dictionary", "lstm", 2, 3)
    # LSTM: 27 inputs and 4 hidden to 4 gates of 4, one bias each; head: 4 to 13, with biases.
    assert written["parameters"] == (27 + 4) * 16 + 16 + 4 * 13 + 13
    assert written["versions"]["jax"] == jax.__version__
    assert written["commit"] == commit()
    assert (workdir / "figures").is_dir()
    assert not list(workdir.glob("*.unfinished"))


@pytest.mark.usefixtures("blank_figures")
def test_a_finished_run_is_not_trained_again(finished, copy, capsys):
    before = (copy / "metrics.jsonl").read_bytes()
    summary = json.loads((copy / "summary.json").read_text()) | {"commit": "of the training", "tuning": {"0.1": 0.5}}
    (copy / "summary.json").write_text(json.dumps(summary))
    (copy / "params.npz").unlink()
    again = run(tiny(), copy)
    assert (copy / "params.npz").is_file()  # written again
    assert again == summary == json.loads((copy / "summary.json").read_text())
    assert again["metrics"] == finished[1]["metrics"]
    assert again["seconds"] == finished[1]["seconds"]
    assert (copy / "metrics.jsonl").read_bytes() == before
    accuracy = finished[1]["metrics"]["test/accuracy"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["test/accuracy", f"{accuracy['mean']:.4f}", "+-", f"{accuracy['std']:.4f}"] in lines


def test_another_config_is_refused_and_the_workdir_stays_as_it_is(copy):
    before = contents(copy)
    other = tiny()
    other.training.learning_rate = 0.5
    other.training.seeds = 3
    with pytest.raises(
        ValueError, match=r"training\.learning_rate is 0\.01 there, 0\.5 here.*another --workdir"
    ) as error:
        run(other, copy)
    assert "\n" not in str(error.value)
    other = tiny()
    other.model.update(name="mnm-p", memory_features=4)
    with pytest.raises(ValueError, match="model.name"):
        run(other, copy)
    other = tiny()
    del other.task.wider
    with pytest.raises(ValueError, match="task.wider is false there, absent here"):
        run(other, copy)
    assert contents(copy) == before


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("cut", [lambda path: path.unlink(), lambda path: path.write_text("")])
def test_a_finished_run_whose_metrics_are_lost_keeps_its_summary(finished, copy, cut):
    before = (copy / "metrics.jsonl").read_text().splitlines()
    cut(copy / "metrics.jsonl")
    assert run(tiny(), copy)["metrics"] == finished[1]["metrics"]
    assert [json.loads(line)["step"] for line in before] == [line["step"] for line in read_metrics(copy)]


@pytest.mark.usefixtures("blank_figures")
def test_no_summary_is_replaced_by_a_poorer_one(finished, copy, caplog, capsys):
    summary = json.loads((copy / "summary.json").read_text())
    summary["metrics"]["test/more"] = summary["metrics"]["test/loss"]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert run(tiny(), copy) == summary == json.loads((copy / "summary.json").read_text())
    assert f"{copy / 'summary.json'} is kept: this start of the run has no test/more." in caplog.text
    (copy / "summary.json").write_text('{"cut')  # a damaged one is no summary
    assert run(tiny(), copy)["metrics"] == finished[1]["metrics"]
    lacking = {key: value for key, value in finished[1].items() if key != "parameters"}
    (copy / "summary.json").write_text(json.dumps(lacking))  # nor is one without the number of parameters
    assert run(tiny(), copy)["parameters"] == finished[1]["parameters"]
    shutil.rmtree(copy / "checkpoints")
    lines = (copy / "metrics.jsonl").read_text()
    assert run(tiny(), copy)["metrics"] == finished[1]["metrics"]  # from the summary
    assert (copy / "metrics.jsonl").read_text() == lines and "nothing is trained;" in capsys.readouterr().out
    (copy / "summary.json").write_text(json.dumps(lacking))
    with pytest.raises(ValueError, match="summary.json is damaged or incomplete; restore it, or remove it to train"):
        run(tiny(), copy)  # nothing is trained over results that were kept without checkpoints
    assert json.loads((copy / "summary.json").read_text()) == lacking


def test_a_run_that_meets_a_nan_says_how_to_find_it_and_continues_with_another_learning_rate(tmp_path, capfd):
    workdir, config = tmp_path / "a b", tiny()
    # The first update has the rate 0; the second exceeds the largest float32.
    config.training.update(learning_rate=3.3e38, optimizer="nadam", warmup_steps=1, checkpoint_seconds=0.0, seeds=1)
    message = r"seed 4: updated .* is not finite at update 2\. .*`python -m launch\.find_nan --workdir='.*a b'`"
    with pytest.raises(TrainingFault, match=message):
        run(config, workdir)
    config.training.learning_rate = 0.01
    with pytest.raises(ValueError, match=r"training\.learning_rate is 3\.3e\+38 there, 0\.01 here"):
        run(config, workdir)
    other = ConfigDict(config.to_dict())
    other.model.hidden_features = 5
    with pytest.raises(ValueError, match=r"model\.hidden_features is 4 there, 5 here"):
        train_run(other, workdir, after_fault=True)
    summary = train_run(config, workdir, after_fault=True)
    (earlier,) = summary["earlier_configs"]
    assert (earlier["until"], earlier["config"]["training"]["learning_rate"]) == (1, 3.3e38)
    assert summary["config"]["training"]["learning_rate"] == 0.01 and summary["steps"] == 3
    with pytest.raises(ValueError, match="holds no run that stopped at a fault"):
        train_run(config, workdir, after_fault=True)
    # As if it had been interrupted before its end: the same command resumes it, one with other settings does not.
    (workdir / "summary.json").unlink()
    assert train_run(config, workdir, after_fault=True)["metrics"] == summary["metrics"]
    (workdir / "summary.json").unlink()
    config.training.learning_rate = 0.02
    with pytest.raises(ValueError, match="holds no run that stopped at a fault"):
        train_run(config, workdir, after_fault=True)
    with pytest.raises(ValueError, match=r"other has no run that could continue after a fault"):
        train_run(config, tmp_path / "other", after_fault=True)


def test_a_run_that_starts_again_after_a_fault_before_its_first_checkpoint_keeps_its_earlier_config(tmp_path):
    config = _change("training", learning_rate=3.3e38, optimizer="nadam", seeds=1)
    with pytest.raises(TrainingFault, match="is not finite at update 1"):
        train_run(config, tmp_path)
    config.training.learning_rate = 0.01
    (earlier,) = train_run(config, tmp_path, after_fault=True)["earlier_configs"]
    assert (earlier["until"], earlier["config"]["training"]["learning_rate"]) == (0, 3.3e38)


@pytest.mark.parametrize("damaged", ['{"task": {"na', "", "[1, 2]"])
def test_a_half_written_config_is_reported_and_left(copy, damaged):
    (copy / "config.json").write_text(damaged)
    before = contents(copy)
    for start in (lambda: run(tiny(), copy), lambda: evaluate_run(copy)):
        with pytest.raises(ValueError, match=r"config\.json is damaged") as error:
            start()
        assert "\n" not in str(error.value)
    assert contents(copy) == before


@pytest.mark.usefixtures("blank_figures")
def test_a_finished_run_continues_if_its_number_of_updates_is_increased(finished, copy, capsys):
    longer = tiny()
    longer.training.update(steps=4, schedule="constant")
    with pytest.raises(ValueError, match=r'training.schedule is absent there, "constant" here'):
        run(longer, copy)  # two differences
    del longer.training["schedule"]
    summary = run(longer, copy)
    assert "continues the run of 3 updates to 4 updates." in capsys.readouterr().out
    assert (summary["steps"], summary["continued_at"]) == (4, [3])
    assert json.loads((copy / "config.json").read_text())["training"]["steps"] == 4
    assert json.loads((copy / "summary_3.json").read_text()) == json.loads(json.dumps(finished[1]))
    losses = {line["step"]: line["train/loss"] for line in read_metrics(copy) if "train/loss" in line}
    assert sorted(losses) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"training\.steps is 4 there, 3 here; take another --workdir"):
        run(tiny(), copy)


@pytest.mark.parametrize("place", ["write_json", "whole_file", "unlink"])
def test_the_command_for_more_updates_works_again_after_a_kill_at_any_point(copy, monkeypatch, place):
    longer, summary = _change("training", steps=9).to_dict(), (copy / "summary.json").read_bytes()

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(*((pathlib.Path, place) if place == "unlink" else (workdir_module, place)), kill)
        claim(copy, longer)
    assert (copy / "summary.json").read_bytes() == summary
    claim(copy, longer)
    assert json.loads((copy / "config.json").read_text()) == longer
    assert place == "unlink" or not (copy / "summary.json").exists()
    assert (copy / "summary_3.json").read_bytes() == summary


def test_only_a_finished_run_with_checkpoints_continues(copy):
    longer = _change("training", steps=9).to_dict()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint to continue from"):
        claim(copy, longer)
    (copy / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"unfinished run of training\.steps=3; finish it before a longer one"):
        claim(copy, longer)
    assert json.loads((copy / "config.json").read_text()) == tiny().to_dict()


def test_a_line_on_a_cosine_states_the_rate_that_follows():
    longer = TrainConfig(steps=4, batch_size=1, learning_rate=0.5, schedule="cosine")
    assert "learning rate rises from 0 to 0.25, that of a cosine over 4 updates" in _describe_continuing(2, longer)


def _change(section, **settings):
    config = tiny()
    for key, value in settings.items():
        config[section][key] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_change("task", lenght=2), "unknown key 'lenght'; did you mean 'length'? known: length, support"),
        (_change("model", heads=2), "model lstm has an unknown key 'heads'; known: hidden_features"),
        (_change("model", rngs=2), "unknown key 'rngs'"),
        (_change("training", nosuch=1), "training has an unknown key 'nosuch'; known: steps"),
        (_change("task", name="sort"), "task.name must be one of 'dictionary', 'babi', 'catbabi', 'copy', "),
        (_change("model", name="gru"), "model.name must be one of 'mnm-p', 'mnm-g', 'chain-p', 'chain-g', 'lstm', "),
        (
            _change("model", name="chain-p"),
            "chain-p needs a task with entities (task.entities >= 1), got dict",
        ),
        (_change("model", readout_features=-1), "readout_features must be >= 0, got -1"),
        (_change("model", name="mnm-p"), "model mnm-p lacks the key 'memory_features'"),
        (_change("model", hidden_features=-4), "hidden_features must be >= 1, got -4"),
        (_change("model", name="mnm-g", memory_features=4, memory_layers=0), "memory_layers must be >= 1, got 0"),
        (_change("model", name="lstm-salu", memory_features=4, slots=-1), "slots must be >= 1, got -1"),
        (_change("task", support=-2), "support must be >= 1, got -2"),
        (_change("task", support=2**40), "support must be < 2**31, got 1099511627776"),
        (_change("model", hidden_features=2**32), "hidden_features must be < 2**31, got 4294967296"),
        (_change("training", steps=-1), "steps must be >= 1, got -1"),
        (
            ConfigDict(tiny().to_dict() | {"trainig": {}}),
            "config has an unknown key 'trainig'; did you mean 'training'? known: task, model, training",
        ),
        (ConfigDict({"task": {"name": "dictionary"}}), "lacks the section model"),
    ],
)
def test_a_wrong_config_is_one_line_and_makes_no_workdir(tmp_path, config, message):
    with pytest.raises(ValueError) as error:
        run(config, tmp_path / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_leaves_the_workdir_to_the_corrected_config(tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        run(_change("training", batch_size=len(jax.devices()) + 1), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_failed_before_its_first_update_takes_the_corrected_config(tmp_path):
    wrong = _change("training", batch_size=len(jax.devices()) + 1)
    claim(tmp_path, wrong.to_dict())  # as `launch.sweep` does before it starts a trial
    with pytest.raises(ValueError, match="batch_size"):
        train_run(wrong, tmp_path)
    assert train_run(tiny(), tmp_path)["config"] == tiny().to_dict()
    with pytest.raises(ValueError, match="holds a run of another config: training.batch_size is 8 there, 9 here"):
        train_run(wrong, tmp_path)


@pytest.mark.parametrize("kept", ["checkpoints/3", "summary.json", "params.safetensors", "metrics.jsonl"])
def test_whatever_a_run_has_left_keeps_its_config(tmp_path, kept):
    claim(tmp_path, tiny().to_dict())
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text('{"step": 1, "seconds": 0.5, "train/loss": [1.0, 1.0]}\n')
    with pytest.raises(ValueError, match="holds a run of another config: training.seed is 4 there, 5 here"):
        claim(tmp_path, _change("training", seed=5).to_dict())


def test_missing_babi_data_says_where_to_put_it(tmp_path):
    config = babi_task1.get_config()
    config.task.data_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no bAbI data in .*: name the folder .* tasks_1-20_v1-2\.tar\.gz"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_shipped_is_evaluated_as_the_run_was(finished, copy):
    for checkpoint in (copy / "checkpoints").iterdir():
        shutil.rmtree(checkpoint / "state")
    with pytest.raises(ValueError, match="is damaged .*move .*checkpoints away: .* are in params.npz"):
        evaluate_run(copy)
    shutil.rmtree(copy / "checkpoints")
    assert evaluate_run(copy)[1] == evaluate_run(copy, data_dir="none")[1] == 3  # the task reads no data
    jax.tree.map(np.testing.assert_array_equal, evaluate_run(copy)[0], evaluate_run(finished[0])[0])


def test_a_folder_of_seeds_is_evaluated_as_one_run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "both" / "seed_10")
    shutil.copytree(finished[0], tmp_path / "both" / "seed_9")
    with pytest.raises(ValueError, match=r"^two runs in .*both have a seed in common, among "):
        table(tmp_path / "both")
    path = tmp_path / "both" / "seed_10" / "config.json"
    config = json.loads(path.read_text())
    config["training"]["seed"] = 10
    path.write_text(json.dumps(config))
    alone, both = table(finished[0]).splitlines(), table(tmp_path / "both").splitlines()
    assert both[0] == f"{tmp_path / 'both'}, step 3"
    assert ["2 seeds" in alone[1], "4 seeds" in both[1]] == [True, True]
    assert [line.split(" +- ")[0] for line in alone[2:]] == [line.split(" +- ")[0] for line in both[2:]]


def test_runs_of_other_settings_have_no_common_mean(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "both" / "a")
    shutil.copytree(finished[0], tmp_path / "both" / "b")
    config = json.loads((tmp_path / "both" / "b" / "config.json").read_text())
    config["training"]["learning_rate"] *= 2
    (tmp_path / "both" / "b" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="both/b and .*both/a differ in more than their seed"):
        table(tmp_path / "both")


@pytest.mark.parametrize("name", ["summary_2.json", "earlier_configs.json"])
def test_seeds_that_were_continued_in_other_ways_have_no_common_mean(finished, tmp_path, name):
    for seed in (4, 9):
        folder = shutil.copytree(finished[0], tmp_path / "both" / f"seed_{seed}")
        config = _change("training", seed=seed, learning_rate=0.3).to_dict()
        history = json.dumps([{"until": 1, "config": config}] if name == "earlier_configs.json" else {})
        (folder / name).write_text(history)
        config["training"]["learning_rate"] = 0.01
        (folder / "config.json").write_text(json.dumps(config))
    assert "4 seeds" in table(tmp_path / "both")
    (folder / name).unlink()
    with pytest.raises(ValueError, match=r"seed_9 and .*seed_4 differ in more than their seed \(a setting, or how"):
        table(tmp_path / "both")


def test_evaluate_repeats_the_test_metrics_of_the_summary(finished):
    workdir, summary = finished
    before = contents(workdir)
    metrics, step = evaluate_run(workdir)
    assert step == 3
    expected = {name: row["per_seed"] for name, row in summary["metrics"].items() if name.startswith("test/")}
    assert {name: value.tolist() for name, value in metrics.items()} == expected
    assert contents(workdir) == before


def test_evaluate_without_run_or_checkpoint(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run in .*no config\.json"):
        evaluate_run(tmp_path / "nowhere")
    shutil.rmtree(copy / "checkpoints")
    (copy / "params.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        evaluate_run(copy)


def test_the_summary_of_one_seed_and_of_numbers_that_are_not_finite():
    rows = summarise({"b": np.array([1.0, 2.0, 6.0]), "a": np.array([0.5]), "c": np.array([1.0, np.nan])})
    assert rows["a"] == {"mean": 0.5, "std": 0.0, "per_seed": [0.5]}
    assert rows["b"] == {"mean": 3.0, "std": pytest.approx(7**0.5), "per_seed": [1.0, 2.0, 6.0]}
    assert rows["c"] == {"mean": None, "std": None, "per_seed": [1.0, None]}
    assert format_table(rows).splitlines()[1:3] == ["a       0.5000 +- 0.0000", "b       3.0000 +- 2.6458"]
