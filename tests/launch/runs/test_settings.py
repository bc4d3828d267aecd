"""Tests configs with settings drawn at random: a wrong one is refused by its key, in one line."""

import inspect
import math
import random

import pytest

from launch.configs import babi_joint, dictionary, maze, pairs
from launch.runs.build import build_parts, count_parameters
from launch.runs.registry import MODELS

RECIPES = [
    dictionary.get_config("mnm-p"),
    dictionary.get_config("lstm-salu"),
    pairs.get_config("ntm"),
    pairs.get_config("dnc"),
    maze.get_config("9x9/plastic"),
    babi_joint.get_config("chain-g"),
]
# Values that a config read from JSON, or a recipe, may hold.
VALUES = (1, 2, 3, 5, 0, -1, 2.5, 0.5, True, False, None, "3", "sum", "", [], [1], (2, 3), {}, math.nan, math.inf)


def draw(rng):
    """Returns a config with one changed setting, its section and its key."""
    config = rng.choice(RECIPES).to_dict()
    section = rng.choice(("task", "model", "training"))
    parameters = inspect.signature(MODELS[config["model"]["name"]].make).parameters
    optional = [key for key in parameters if key not in ("features", "entities", "entity_features", "rngs", "max_norm")]
    key = rng.choice(list(config[section]) if section != "model" else [*optional, "name", "readout_features"])
    config[section][key] = rng.choice(VALUES)
    checked_early = key not in parameters or parameters[key].annotation in (int, bool)
    return config, key, checked_early


def check(seed):
    """Draws a config; returns whether the objects that it describes can be built."""
    config, key, checked_early = draw(random.Random(seed))
    try:
        parts = build_parts(config)
        if not checked_early and parts.task.name != "babi":  # whose number of answers needs the data
            count_parameters(parts.make_model)
    except ValueError as error:
        assert key in str(error), (key, config, error)
        assert "\n" not in str(error) and "supported between" not in str(error)
        return False
    return True


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_setting_is_accepted_or_refused_by_its_key(count):
    accepted = sum(map(check, range(count)))
    assert 0.1 < accepted / count < 0.9


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "hidden_features", 2.5, "hidden_features must be an integer >= 1, got 2.5 of type float: pass an"),
        ("model", "memory_layers", "2", "memory_layers must be an integer >= 1, got '2'"),
        ("model", "heads", True, "heads must be an integer >= 1, got True"),
        ("model", "forget", 1, "forget must be True or False, got 1"),
        ("model", "readout_features", None, "readout_features must be an integer >= 0, got None"),
        ("task", "support", [8], "support must be an integer >= 1, got [8]"),
        ("task", "support", "three", "support must be an integer >= 1, got 'three' of type str: pass an int"),
        ("task", "mixed", "no", "mixed must be True or False, got 'no'"),
        ("task", "name", ["dictionary"], "task.name must be one of 'dictionary', "),
    ],
)
def test_a_value_of_another_type_is_named_with_the_remedy(section, key, value, message):
    config = dictionary.get_config("mnm-p").to_dict()
    config[section][key] = value
    with pytest.raises(ValueError) as error:
        build_parts(config)
    assert message in str(error.value)
