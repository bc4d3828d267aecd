"""Tests search spaces, the plan of a trial, and the flags that reach it."""

import json
import pathlib
import sys

import numpy as np
import pytest
from absl import flags

from launch.command import parse_flags
from launch.configs import dictionary
from launch.runs.changes import apply
from launch.runs.config_flag import define_config
from launch.sweep.run import plan_trials
from launch.sweep.space import choose_trials, expand, plan, recipe_flags

A = {"model.heads": [1, 2]}
B = {"training.clip_norm": [0.5, 1.0]}


def test_spaces_by_hand():
    def pairs(trials):
        return [tuple(changes.values()) for changes in trials]

    assert pairs(expand({**A, **B})) == pairs(expand({"product": [A, B]})) == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    assert pairs(expand({"zip": [A, B]})) == [(1, 0.5), (2, 1.0)]
    heads = list(np.arange(1, 3))  # integers of NumPy, which JSON does not have
    assert choose_trials(expand({"model.heads": heads}), None) == choose_trials(expand(A), None)
    within = expand({"task.sizes": [(heads[0], np.float64(0.5))]})
    assert repr(choose_trials(within, None)) == "[{}, {'task.sizes': (1, 0.5)}]"
    assert expand({"chain": [A, B]}) == [{"model.heads": heads} for heads in (1, 2)] + [
        {"training.clip_norm": limit} for limit in (0.5, 1.0)
    ]
    assert pairs(expand({"product": [{"chain": [A, {"zip": [A, B]}]}, {"seeds": 2}]})) == [
        *[(1, 0), (1, 1), (2, 0), (2, 1)],
        *[(1, 0.5, 0), (1, 0.5, 1), (2, 1.0, 0), (2, 1.0, 1)],
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "a search space is a mapping of settings, or of one of product, zip, chain, seeds, got {}"),
        ([A], "a search space is a mapping"),
        ({"model.heads": 2}, "model.heads takes a list of values, got 2"),
        ({"model.name": "lstm"}, "model.name takes a list of values, got 'lstm'"),
        ({"model.heads": []}, "model.heads takes a list of values"),
        ({"task.sizes": [{1}]}, "task.sizes must be a number, a text, .*, got .1. of type set"),
        ({"prodcut": [A]}, "'prodcut' is no setting .SECTION.KEY., nor one of product"),
        ({"product": A}, "product takes a list of search spaces"),
        ({"product": [A], "zip": [A]}, "settings .SECTION.KEY. or one of product, zip, chain, seeds, got product, zip"),
        ({"seeds": 0}, "seeds must be a whole number >= 1, got 0"),
        ({"zip": [A, {"seeds": 3}]}, "zip takes search spaces of equally many trials, got 2, 3"),
        ({"product": [A, {"zip": [A, B]}]}, "model.heads is given twice for one trial"),
    ],
)
def test_what_is_no_space_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as error:
        expand(wrong)
    assert "\n" not in str(error.value)


def test_trials_are_drawn_by_lot_and_a_larger_number_only_adds_some():
    trials = expand({"model.heads": list(range(20))})
    drawn = [choose_trials(trials, number) for number in range(1, 21)]
    for number, (fewer, more) in enumerate(zip(drawn, drawn[1:], strict=False), 1):
        assert fewer[0] == {}
        assert len(fewer) == number + 1
        assert all(changes in more for changes in fewer)
    assert choose_trials(trials, None)[1:] == trials
    heads = [changes["model.heads"] for changes in drawn[9][1:]]
    assert heads == sorted(heads) != list(range(10))
    with pytest.raises(ValueError, match="num_trials must be from 1 to 20, the trials of the space, got 21"):
        choose_trials(trials, 21)


def test_a_space_with_the_same_trial_twice_is_refused():
    trials = expand({"chain": [{"model.heads": [1, 2]}, {"model.heads": [2, 4]}]})
    with pytest.raises(ValueError, match=r"the space has a trial twice: \{'model.heads': 2\}"):
        choose_trials(trials, None)


def test_a_trial_that_is_equal_to_the_recipe_is_left_out(tmp_path):
    config = dictionary.get_config("lstm")
    rate = config.training.learning_rate
    trials = plan_trials({"training.learning_rate": [rate, 2 * rate]}, None, config, [], tmp_path)
    assert [trial.changes for trial in trials] == [{}, {"training.learning_rate": 2 * rate}]
    assert [trial.name for trial in trials] == ["recipe", "e4f356ad"]


def test_the_plan_of_a_trial_is_its_command_and_its_config():
    config = dictionary.get_config("mnm-g")
    changes = {"training.learning_rate": 0.5, "model.step_size": "sum"}
    trial = plan(changes, config, ["--config=launch/configs/dictionary.py:mnm-g"], pathlib.Path("runs/s"))
    assert " ".join(trial.command) == (
        "python -m launch.train --config=launch/configs/dictionary.py:mnm-g --config.training.learning_rate=0.5 "
        "--config.model.step_size=sum --workdir=runs/s/trials/d7edb28b"
    )
    expected = config.to_dict()
    expected["training"]["learning_rate"] = 0.5
    expected["model"]["step_size"] = "sum"
    assert trial.config == expected
    assert config.training.learning_rate == 3e-3
    assert apply(config, {"training.epsilon": 1e-4}).training.epsilon == 1e-4  # the recipe leaves it out
    with pytest.raises(ValueError, match="model mnm-g has an unknown key 'head'; did you mean 'heads'"):
        apply(config, {"model.head": 2})
    with pytest.raises(ValueError, match=r"training\.steps of the recipe is 1500, got 'many'"):
        apply(config, {"training.steps": "many"})


RECIPE = """
from ml_collections import ConfigDict

def get_config(name="a"):
    task = {"name": name, "folder": "", "sizes": (1, 2), "names": ("x",), "wider": True, "limit": 1.0, "text": None}
    return ConfigDict({"task": task, "training": {"steps": 1, "learning_rate": 1e-3}})
"""


@pytest.fixture
def parse(monkeypatch):
    """Returns a function that parses words as a command does, and returns the config and the words for a trial."""

    def parse(words):
        monkeypatch.setattr(sys, "argv", ["command", *words])
        try:
            holder = define_config()
            parse_flags(sys.argv)
            return holder.value, recipe_flags(flags.FLAGS["config"])
        finally:
            for name in [name for name in flags.FLAGS if name.startswith("config")]:
                delattr(flags.FLAGS, name)

    return parse


FOLDER = "--config.task.folder="
WAYS = {
    "equals": [
        "--config.training.steps=7",
        f"{FOLDER}a b'\"c",
        "--config.task.sizes=(3,)",
        "--config.task.wider=false",
    ],
    "words": ["--config.training.steps", "7", "--config.task.folder", "a b'\"c", "--config.task.sizes", "3,"],
    "dash": ["-config.training.steps=7", "-config.task.folder", "a b'\"c", "-noconfig.task.wider"],
    "several": [
        "--config.task.sizes=3",
        "--config.task.sizes",
        "4",
        "--config.task.names=yz",
        "--noconfig.task.wider",
    ],
    "last": ["--config.training.steps=6", "--config.training.steps=7", f"{FOLDER}--config.task.name=b"],
    "none": ["--config.task.limit=None", "--config.task.text='3'", "--config.task.new=l2", FOLDER + "true "],
    "dict": ["--config.training={'steps': 7, 'learning_rate': 0.1}", "--config.task.text=a b"],
}
EXPECTED = {
    "several": {"sizes": (3, 4), "names": ("yz",), "wider": False},
    "none": {"limit": None, "text": "3", "new": "l2", "folder": "true "},
}


@pytest.mark.parametrize("config", [["--config=FILE:b"], ["--config", "FILE"], ["-config=FILE"]], ids=" ".join)
@pytest.mark.parametrize("way", [*WAYS, "file"])
def test_a_trial_trains_the_recipe_that_was_asked_for_however_it_was_written(tmp_path, parse, config, way):
    (tmp_path / "a recipe.py").write_text(RECIPE)
    (tmp_path / "flags").write_text("--config.training.steps=7\n--config.task.folder=a b\n")
    words = [word.replace("FILE", str(tmp_path / "a recipe.py")) for word in config]
    asked, words = parse(words + WAYS.get(way, [f"--flagfile={tmp_path / 'flags'}"]))
    if way in EXPECTED:
        assert {name: asked.task[name] for name in EXPECTED[way]} == EXPECTED[way]
    else:
        assert asked.training.steps == 7
    assert parse(words)[0].to_dict() == asked.to_dict()
    changes = {"task.folder": "d e", "task.limit": 3, "task.text": "4", "task.sizes": (5, 6), "task.wider": None}
    trial = plan(changes, asked, words, tmp_path)
    trained, _ = parse([word for word in trial.command[3:] if not word.startswith("--workdir=")])
    assert json.loads(json.dumps(trained.to_dict())) == trial.config
    changed = {name.split(".")[1]: value for name, value in changes.items()}
    assert trained.task.to_dict() == asked.task.to_dict() | changed
    assert trained.training.to_dict() == asked.training.to_dict()
