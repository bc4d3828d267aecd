"""Tests `--config` and `--config.SECTION.KEY=VALUE` as a command parses them, without starting one."""

import json
import pathlib
import sys

import pytest
from absl import flags

from launch.command import parse_flags
from launch.runs.build import build_parts
from launch.runs.config_flag import define_config

ROOT = pathlib.Path(__file__).parents[3]
RECIPE = f"--config={ROOT}/launch/configs/dictionary.py"


@pytest.fixture
def parse(monkeypatch):
    """Returns a function that parses words and returns the config, after checking it as training does."""

    def parse(*words):
        monkeypatch.setattr(sys, "argv", ["command", *words])
        try:
            holder = define_config()
            parse_flags(sys.argv)
            config = json.loads(json.dumps(holder.value.to_dict()))
        finally:
            for name in [name for name in flags.FLAGS if name.startswith("config")]:
                delattr(flags.FLAGS, name)
        build_parts(config)
        return config

    return parse


def test_settings_take_none_and_keys_that_the_recipe_leaves_out(parse):
    changes = ("--config.training.clip_norm=None", "--config.model.key_norm=l2", "--config.task.wider=False")
    config = parse(RECIPE, *changes)
    assert config["training"]["clip_norm"] is None
    assert config["model"]["key_norm"] == "l2" and config["task"]["wider"] is False
    config = parse(RECIPE, "--config.task.mixed", "--config.training.clip_norm", "2", "--config.task.wider", "false")
    assert config["training"]["clip_norm"] == 2
    assert config["task"]["mixed"] is True and config["task"]["wider"] is False


def test_the_config_of_a_run_is_a_recipe(parse, tmp_path):
    recipe = f"--config={ROOT}/launch/configs/pairs.py:dnc"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(parse(recipe)))
    assert parse(f"--config={file}") == parse(recipe)
    changed = parse(f"--config={file}", "--config.training.steps=700", "--config.task.lengths=(3, 4)")
    assert changed["training"]["steps"] == 700 and changed["task"]["lengths"] == [3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([RECIPE, "--config.training.stepz=1"], "training has an unknown key 'stepz'; did you mean 'steps'? known: st"),
        ([RECIPE, "--config.task.nosuch=1"], "task dictionary has an unknown key 'nosuch'; known: length, support, "),
        ([RECIPE, "--config.trainig.steps=1"], "unknown config section 'trainig'; did you mean 'training'?"),
        ([RECIPE, "--config.training.steps.x=1"], "--config.training.steps.x: a setting has no keys of its own"),
        ([RECIPE, "--config.model=lstm"], "model is a section; set one of its keys, as in --config.model.name=NAME."),
        ([RECIPE, "--config.training.steps=sum"], "steps must be an integer >= 1, got 'sum' of type str: pass an int"),
        ([RECIPE, "--config.training.learning_rate=[1]"], "learning_rate must be a number, got [1] of type list"),
        ([f"{RECIPE}:"], "the recipe's model must be one of 'mnm-p', "),
        ([f"{RECIPE}:gru"], "the recipe's model must be one of 'mnm-p', "),
        (["--config=nosuch.py"], "there is no file 'nosuch.py'; name a recipe, or the config.json of a run"),
        (["--config=config.json:lstm"], "a config.json has no choices"),
        (["--config=cut.json"], "the file is damaged"),
        (["--config=list.json"], "the file holds no JSON object"),
        (["--config=broken.py"], "flag --config=broken.py: line 2: KeyError: 'missing'"),
        (["--config=typo.py"], "SyntaxError: '(' was never closed (typo.py, line 3)"),
        (["--config=none.py"], "get_config() must return a ConfigDict, got a value of type NoneType"),
        ([], "Flag --config must have a value other than None"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(parse, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    files = {
        "config.json": "{}",
        "cut.json": '{"task": ',
        "list.json": "[1]",
        "broken.py": "def get_config():\n    return {}['missing']\n",
        "typo.py": "x = 1\ny = 2\nz = (\n",
        "none.py": "def get_config():\n    pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises((SystemExit, ValueError)) as error:
        parse(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
