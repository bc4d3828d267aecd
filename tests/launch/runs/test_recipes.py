"""Tests that every model is in a recipe, and that every recipe can be built."""

import types

import numpy as np
import pytest
from flax import nnx

from launch.configs import babi_joint, babi_paper, babi_task1, catbabi, dictionary, league, maze, pairs
from launch.runs import build
from launch.runs.registry import MODELS

RECIPES = {
    dictionary: ("mnm-p", "mnm-g", "lstm", "lstm-salu"),
    babi_task1: ("mnm-p", "mnm-g", "lstm", "lstm-salu"),
    babi_paper: ("mnm-p", "mnm-g"),
    babi_joint: ("chain-p", "chain-g", "lstm", "lstm-salu"),
    catbabi: tuple(catbabi.MODELS),
    pairs: ("mnm-p", "mnm-g", "lstm-salu", "ntm", "dnc", "lstm"),
    maze: ("mnm-p", "mnm-g", "lstm", "lstm-salu", "rnn", "plastic", "neuromodulated"),
    league: league.MODELS,
}


def test_every_model_is_in_a_recipe_and_others_are_refused():
    with pytest.raises(ValueError, match="size must be one of '9x9', '11x11', '13x13', got '8x8'"):
        maze.get_config("8x8/lstm")
    assert babi_paper.get_config("untuned").model.name == "mnm-p"
    assert catbabi.get_config("lm").task.mode == "language" and catbabi.get_config("lm/dnc").model.name == "dnc"
    assert {model for models in RECIPES.values() for model in models} == set(MODELS)
    for recipe in RECIPES:
        with pytest.raises(ValueError, match="the recipe's model must be one of 'mnm-p', .*, got 'gru'"):
            recipe.get_config(which(recipe, "gru"))


def which(recipe, model):
    """Returns the part of --config after the colon: for some recipes it includes a size or a group."""
    return {maze: f"11x11/{model}", league: f"dictionary/{model}"}.get(recipe, model)


@pytest.mark.parametrize(
    ("recipe", "model"), [(recipe, model) for recipe, models in RECIPES.items() for model in models]
)
def test_every_recipe_can_be_built(recipe, model):
    config = recipe.get_config(which(recipe, model))
    build.build_training(config.training)
    task = build.build_task(config.task)
    expected = {dictionary: 27, babi_task1: 96, babi_paper: 128, babi_joint: 128 + 4 * 48, pairs: 24, maze: 17}
    expected[league] = 27
    expected[catbabi] = {"mnm-p": 128, "mnm-g": 128, "chain-p": 128 + 4 * 48, "chain-g": 128 + 4 * 48}.get(model, 256)
    assert task.input_features == expected[recipe]
    if config.task.name == "babi":  # without the data: the task with made-up words and answers
        data = types.SimpleNamespace(counts=np.ones(145), vocabulary=types.SimpleNamespace(answers=range(13)))
        task.__dict__["_dataset"] = data
    if config.task.name == "catbabi":
        task.use_vocabulary(types.SimpleNamespace(size=13))
    made = nnx.eval_shape(lambda: build.build_make_model(config.model, task)(nnx.Rngs(0)))
    features = config.model.get("hidden_features", 0) + config.model.get("memory_features", 0)
    if recipe is league:
        features = config.model.stack_features
    if model.startswith("chain"):  # the inputs, and the results of 3 hops by 2 heads
        features = task.input_features + config.model.hidden_features + 3 * 2 * 48
    assert made.head.kernel.shape == (features, {pairs: 8, maze: 5}.get(recipe, 13))
