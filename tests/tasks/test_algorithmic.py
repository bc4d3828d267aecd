"""Tests the tasks on bits: plain Python programs solve them from the inputs alone; curriculum, sets, score."""

import collections
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.runs.build import build_task
from mnm_jax.training import Batch
from tasks.algorithmic import AssociativeRecall, Copy, DoubleCopy, Pairs, PrioritySort, RepeatCopy

B = 24


def before_flag(x, task):
    """Returns the vectors shown before the first flag, as tuples, and the row of that flag."""
    at = int(np.flatnonzero(x[:, task.bits])[0])
    return [tuple(row[: task.bits]) for row in x[:at]], x[at]


def copy(x, task):
    return before_flag(x, task)[0]


def double_copy(x, task):
    return 2 * copy(x, task)


def repeat_copy(x, task):
    vectors, flag = before_flag(x, task)
    times = flag[task.bits + 1] * np.std(np.arange(1, 11)) + np.mean(np.arange(1, 11))
    assert times == pytest.approx(round(times), abs=1e-4)
    return [(*vector, -1) for vector in round(times) * vectors] + [(-1,) * task.bits + (1,)]


def priority_sort(x, task):
    vectors, _ = before_flag(x, task)
    priorities = x[: len(vectors), task.bits + 1]
    falling = sorted(zip(priorities, vectors, strict=True), reverse=True)
    return [vector for _, vector in falling][: max(1, int(0.8 * len(vectors) + 1e-6))]


def associative_recall(x, task):
    blocks = []
    for row in x:
        if row[task.bits :].any():
            blocks.append((row[task.bits + 1], []))
        elif row.any():
            blocks[-1][1].append(tuple(row[: task.bits]))
    items = [vectors for query, vectors in blocks if not query]
    (asked, nothing) = (vectors for query, vectors in blocks if query)
    assert nothing == [] and all(len(item) == task.item_length for item in items)
    return items[items.index(asked) + 1]


def pairs(x, task):
    known, answers = {}, []
    for row in x:
        value, key = tuple(row[: task.bits]), tuple(row[task.bits :])
        if any(value):
            known[key] = value
        else:
            answers.append(known[key])
    return answers


ORACLES = {
    Copy(length=5, lengths=(7,), evaluation_batches=1): copy,
    DoubleCopy(length=4, lengths=(6,), evaluation_batches=1): double_copy,
    RepeatCopy(length=4, repeats=3, lengths=(6,), more_repeats=(5,), evaluation_batches=1): repeat_copy,
    PrioritySort(length=10, lengths=(15,), evaluation_batches=1): priority_sort,
    AssociativeRecall(length=4, lengths=(6,), evaluation_batches=1): associative_recall,
    Pairs(length=7, lengths=(1, 12), evaluation_batches=1): pairs,
    Pairs(
        length=9, key_bits=3, lengths=(), overwriting=1, evaluation_batches=1
    ): pairs,  # keys that are equal by chance
}
TASKS = pytest.mark.parametrize("task", ORACLES, ids=lambda task: task.name)


def sequences(batch):
    """Yields (inputs, answers as +-1) of every example without its padding."""
    batch = jax.device_get(batch)
    for b in range(batch.mask.shape[1]):
        yield batch.inputs[batch.mask[:, b], b], 2 * batch.targets[batch.loss_mask[:, b] > 0, b] - 1


@TASKS
def test_a_reader_of_the_inputs_finds_the_answers_of_every_set(task):
    for split in ("valid", "test"):
        for batches in task.evaluations(split, B).values():
            for batch in batches():
                for x, answers in sequences(batch):
                    np.testing.assert_array_equal(ORACLES[task](x, task), answers)


def lengths(task, batch):
    """Returns the length of every example, in the task's own unit."""
    if isinstance(task, AssociativeRecall):
        return [int(x[:, task.bits].sum()) for x, _ in sequences(batch)]
    if isinstance(task, Pairs):
        return [int(np.any(x[:, : task.bits] != 0, axis=1).sum()) for x, _ in sequences(batch)]
    return [len(before_flag(x, task)[0]) for x, _ in sequences(batch)]


@TASKS
def test_lengths_are_those_promised(task):
    (batch,) = task.evaluations("valid", 200)[""]()
    assert set(lengths(task, batch)) == set(range(task.shortest, task.length + 1))
    for name, batches in task.evaluations("test", B).items():
        kind, _, size = name.partition("=")
        fixed = {"length": size, "overwriting": 2 * int(size or 0), "repeats": task.length}.get(kind)
        assert fixed is None or all(set(lengths(task, batch)) == {int(fixed)} for batch in batches())


@TASKS
def test_as_many_steps_as_the_longest_sequence_needs(task):
    (batch,) = task.evaluations("valid", 200)[""]()
    assert batch.mask[-1].any() and not batch.mask.all()


def test_evaluation_sets_of_the_papers_sizes():
    def names(task):
        return list(task.evaluations("test", B))

    assert names(Copy()) == ["", "length=20", "length=30", "length=50", "length=120"]
    assert names(RepeatCopy()) == ["", "length=10", "length=20", "repeats=20"]
    assert names(PrioritySort())[:2] == ["", "length=20"]
    (batch,) = PrioritySort(evaluation_batches=1).evaluations("test", B)["length=20"]()
    assert np.all(np.sum(batch.loss_mask, 0) == 16)
    assert names(Pairs(length=2, lengths=(1,))) == ["", "length=2", "length=1", "overwriting=2", "overwriting=1"]


def test_overwriting_writes_every_key_twice_and_asks_for_the_second_value():
    (batch,) = Pairs(length=4, lengths=(), evaluation_batches=1).evaluations("test", B)["overwriting=4"]()
    for x, answers in sequences(batch):
        writes = [row for row in x if row[:8].any()]
        assert sorted(collections.Counter(tuple(row[8:]) for row in writes).values()) == [2] * 4
        second = {tuple(row[8:]): row[:8] for row in writes[4:]}
        np.testing.assert_array_equal([second[tuple(row[8:])] for row in x[len(writes) :]], answers)


@partial(jax.jit, static_argnums=(0, 2))
def draw(task, step, size=400):
    return task.sample(jax.random.key(0), size, step)


def test_a_curriculum_reads_an_int_as_it_reads_an_array():
    task = Copy(length=9, curriculum=4)
    early, same, later = (task.sample(jax.random.key(0), 2, step) for step in (1, jnp.int32(1), 3))
    jax.tree.map(np.testing.assert_array_equal, early, same)
    assert early.mask.sum() < later.mask.sum() == task.sample(jax.random.key(0), 2).mask.sum()


def test_a_curriculum_lets_lengths_grow_and_then_repeats():
    task = RepeatCopy(length=9, repeats=5, curriculum=100)

    def longest(step):
        batch = draw(task, jnp.int32(step))
        repeats = [(len(answers) - 1) // len(before_flag(x, task)[0]) for x, answers in sequences(batch)]
        return max(lengths(task, batch)), max(repeats)

    grown = [longest(step) for step in (0, 24, 49, 74, 99, 10_000)]
    assert grown == [(2, 1), (5, 1), (9, 1), (9, 3), (9, 5), (9, 5)]
    over, never = draw(task, None), draw(RepeatCopy(length=9, repeats=5), jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, over, never)


def test_score_of_hand_made_logits():
    """Two sequences of two answers of four bits: the first has one wrong bit in eight, the second none."""
    targets = np.array([[[1, 0, 1, 0], [1, 1, 1, 1]], [[0, 0, 1, 1], [0, 0, 0, 0]]], np.float32)
    logits = 2.0 * targets - 1
    logits[1, 0, 3] = -3.0
    ones = np.ones((2, 2), np.float32)
    task, batch = Copy(bits=4), Batch(np.zeros((2, 2, 5)), targets, ones, ones > 0)
    found = {name: float(mean.value) for name, mean in task.metrics(jnp.asarray(logits), batch).items()}
    assert found == {"accuracy": 15 / 16, "whole": 0.5, "chance": 0.5}
    expected = (15 * np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 16
    assert float(task.loss(jnp.asarray(logits), batch).value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "copy", "length": 0}, "length must be >= 1, got 0"),
        ({"name": "copy", "lengths": [30, 0]}, "every one of lengths must be >= 1, got 0"),
        ({"name": "copy", "curriculum": -1}, "curriculum must be >= 0, got -1"),
        ({"name": "double_copy", "length": 3, "shortest": 4}, "shortest must be <= length = 3, got 4"),
        ({"name": "repeat_copy", "fewest": 11}, "fewest must be <= repeats = 10, got 11"),
        ({"name": "repeat_copy", "more_repeats": [0]}, "every one of more_repeats must be >= 1, got 0"),
        ({"name": "associative_recall", "shortest": 1}, "shortest must be >= 2"),
        ({"name": "associative_recall", "lengths": (8, 1)}, r"lengths must be >= 2, .*, got \(8, 1\)"),
        ({"name": "associative_recall", "item_length": 0}, "item_length must be >= 1, got 0"),
        ({"name": "pairs", "overwriting": 1.5}, r"overwriting must be in \[0, 1\], got 1.5"),
        ({"name": "pairs", "key_bits": 0}, "key_bits must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_task(settings)
