"""Tests tasks with arguments drawn at random: right ones make a task, wrong ones are refused by name."""

import math
import random

import jax
import numpy as np
import pytest

from tasks.algorithmic import AssociativeRecall, Copy, DoubleCopy, Pairs, PrioritySort, RepeatCopy
from tasks.babi import Babi
from tasks.dictionary import Dictionary
from tasks.league import S3, NoisyRecall, Parity, Recall, SelectiveCopy
from tasks.maze import Maze, MazeTask

BITS = ("length", "shortest", "bits", "curriculum", "lengths", "evaluation_batches")
ACTOR = ("discount", "value_weight", "concentration_weight", "first_baseline", "evaluation_batches")
TOKENS = ("curriculum", "wider", "embedding_features", "evaluation_batches", "length")
ARGUMENTS = {
    Parity: (*TOKENS, "lengths", "last"),
    S3: (*TOKENS, "lengths", "last"),
    Recall: (*TOKENS, "vocabulary", "pairs", "filler", "more_pairs", "all_pairs"),
    SelectiveCopy: (*TOKENS, "vocabulary", "items", "lengths"),
    NoisyRecall: (*TOKENS, "vocabulary", "noise", "lengths"),
    Dictionary: ("length", "support", "queries", "evaluation_batches", "wider", "mixed"),
    Copy: BITS,
    DoubleCopy: BITS,
    PrioritySort: BITS,
    RepeatCopy: (*BITS, "repeats", "fewest", "more_repeats"),
    AssociativeRecall: (*BITS, "item_length"),
    Pairs: (*BITS, "key_bits", "overwriting"),
    Maze: ("size",),
    MazeTask: (*ACTOR, "size", "penalty", "episode_steps"),
    Babi: ("tasks", "data_dir", "size", "max_sentences", "max_sentences_task3", "renaming", "embedding_features")
    + ("hidden_features", "entities", "entity_features", "cache_dir", "position_deviation", "think_steps")
    + ("sentence_think_steps", "controller", "apart"),
}
WRONG = (None, -1, 0, 2.5, math.nan, math.inf, -math.inf, "3", b"3", [], [0], (2, "x"), [1.5], {}, {3}, 1j, object)
VALUES = (1, 2, 3, 7, 11, True, False, 0.5, np.int64(3), np.float32(0.5), (2, 3), [4], "1k", *WRONG, np.ones(2))


def draw(rng):
    kind = rng.choice(list(ARGUMENTS))
    names = rng.sample(ARGUMENTS[kind], rng.choice((1, 1, 2) if len(ARGUMENTS[kind]) > 1 else (1,)))
    return kind, {name: rng.choice(VALUES) for name in names}


def check(seed):
    """Draws arguments; returns the task that they make, or None if they are refused by name."""
    kind, arguments = draw(random.Random(seed))
    try:
        made = kind(**arguments)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in arguments), (kind, arguments, error)
        assert "\n" not in str(error) and "supported between" not in str(error)
        return None
    assert made == kind(**arguments) and hash(made) == hash(kind(**arguments)), (kind, arguments)
    return made


@pytest.mark.parametrize("count", [1500, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_arguments_make_a_task_or_are_refused_by_name(count):
    made = [check(seed) for seed in range(count)]
    assert len({type(task) for task in made}) == 1 + len(ARGUMENTS)
    assert 0.1 < made.count(None) / count < 0.9


def test_tasks_of_any_accepted_arguments_draw_batches():
    made = {task for task in map(check, range(1500)) if hasattr(task, "sample") and task.sample is not None}
    for task in made:
        batch = jax.eval_shape(lambda key, task=task: task.sample(key, 2), jax.random.key(0))
        assert batch.mask.shape[1] == 2 and batch.inputs.shape[:2] == batch.mask.shape


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Dictionary, {"length": 2.0}, r"^length must be an integer >= 1, got 2.0 of type float: pass an int\.$"),
        (Dictionary, {"support": True}, "support must be an integer >= 1, got True"),
        (Dictionary, {"mixed": 1}, "mixed must be True or False, got 1"),
        (Copy, {"lengths": 30}, r"lengths must be a tuple of integers such as \(30, 50\), got 30"),
        (Copy, {"lengths": "30"}, "lengths must be a tuple of integers .* got '30'"),
        (Copy, {"lengths": [2.5]}, "every one of lengths must be an integer >= 1, got 2.5"),
        (RepeatCopy, {"more_repeats": None}, "more_repeats must be a tuple of integers .* got None"),
        (Pairs, {"overwriting": math.nan}, "overwriting must be finite, got nan"),
        (MazeTask, {"discount": "0.9"}, "discount must be a number, got '0.9'"),
        (MazeTask, {"penalty": math.inf}, "penalty must be finite, got inf"),
        (MazeTask, {"first_baseline": 0}, "first_baseline must be True or False, got 0"),
        (MazeTask, {"size": True}, "size must be an odd number >= 5"),
        (Babi, {"hidden_features": -1}, "hidden_features must be >= 0, got -1"),
        (Babi, {"size": ["1k"]}, r"size must be one of '1k', '10k', got \['1k'\]"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_the_remedy(kind, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        kind(**arguments)
