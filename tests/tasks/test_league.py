"""Tests the tasks on tokens against readers that work token by token, and by hand."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from tasks.league import S3, NoisyRecall, Parity, Recall, SelectiveCopy

B = 16
TASKS = (
    Recall(vocabulary=24, pairs=4, length=20, more_pairs=(8,), evaluation_batches=1),
    SelectiveCopy(vocabulary=5, items=3, length=9, lengths=(14,), evaluation_batches=1),
    NoisyRecall(vocabulary=4, length=16, lengths=(24,), evaluation_batches=1),
    Parity(length=9, lengths=(20,), evaluation_batches=1),
    S3(length=9, lengths=(20,), evaluation_batches=1),
)


@partial(jax.jit, static_argnums=(0, 2))
def draw(task, seed=0, size=B, step=None):
    return task.sample(jax.random.key(seed), size, step)


def recall(task, tokens):
    """Yields (step, value) of every later key, from a table of the pairs before it."""
    table, shown = {}, 0
    while tokens[shown][0] == "k" and tokens[shown + 1][0] == "v" and tokens[shown] not in table:
        table[tokens[shown]] = tokens[shown + 1]
        shown += 2
    for step in range(shown, len(tokens)):
        if tokens[step] != ".":
            yield step, int(table[tokens[step]][1:])


def selective_copy(task, tokens):
    items = [int(token) for token in tokens if token not in ".?"]
    yield from zip([step for step, token in enumerate(tokens) if token == "?"], items, strict=True)


def noisy_recall(task, tokens):
    table = {}
    for step in range(0, len(tokens), 2):
        key, value = tokens[step : step + 2]
        if key[0] == "k":
            if key in table:
                yield step, table[key]
                assert table[key] == int(value[1:])  # one map per sequence
            table[key] = int(value[1:])


def parity(task, tokens):
    ones = np.cumsum([int(token) for token in tokens])
    yield from enumerate((ones % 2).tolist()) if not task.last else [(len(tokens) - 1, int(ones[-1] % 2))]


def s3(task, tokens):
    """Yields the permutations as products of matrices: row i has its one in the column of the image of i."""
    product = np.eye(3, dtype=int)
    for step, token in enumerate(tokens):
        product = product @ np.eye(3, dtype=int)[[int(image) for image in token]]
        if not task.last or step == len(tokens) - 1:
            yield step, task.elements.index("".join(map(str, np.argmax(product, 1))))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_reader_of_the_tokens_answers_every_set(task):
    read = globals()[task.name]
    sets = {"trained": lambda: [draw(task)]} | task.evaluations("test", B)
    assert len(sets) == 4
    for batches in sets.values():
        for batch in map(jax.device_get, batches()):
            for b in range(B):
                expected = dict(read(batch_task(task, batch), task.tokens(batch, b)))
                steps = np.flatnonzero(batch.loss_mask[:, b]).tolist()
                assert dict(zip(steps, batch.targets[steps, b].tolist(), strict=True)) == expected


def batch_task(task, batch):
    """Returns the task of a batch: only the last answer of a word counts in a set of one length."""
    if not isinstance(task, Parity | S3):
        return task
    return dataclasses.replace(task, last=bool(np.all(batch.loss_mask.sum(0) == 1)))


def test_recall_asks_for_every_pair_equally_often_and_fills_the_rest():
    batch = jax.device_get(draw(dataclasses.replace(TASKS[0], all_pairs=True), size=128))
    assert np.all(batch.loss_mask[:8] == 0) and np.mean(batch.loss_mask[8:]) == pytest.approx(0.75, abs=0.05)
    asked = [
        batch.inputs[:8:2, b].tolist().index(token)
        for b in range(128)
        for token in batch.inputs[8:, b][batch.loss_mask[8:, b] > 0]
    ]
    assert np.bincount(asked) / len(asked) == pytest.approx(0.25, abs=0.05)
    inputs = np.asarray(draw(TASKS[0], size=256).inputs)
    pairs = np.bincount(np.sum((inputs >= 12) & (inputs < 24), 0), minlength=5)  # the number of values
    assert pairs[0] == 0 and np.all(pairs[1:] > 256 / 4 * 0.6)  # 1 to 4 pairs, equally often


def test_a_curriculum_grows_to_the_trained_size():
    task = Parity(length=9, curriculum=8)
    longest = [int(jax.device_get(draw(task, 0, 64, step)).mask.sum(0).max()) for step in (0, 3, 7, None)]
    assert longest == [3, 6, 9, 9]  # 2 to 2 + 7 / 8, then 7 / 2 more, rounded up
    copy = dataclasses.replace(TASKS[1], curriculum=6)
    lengths = [jax.device_get(draw(copy, 0, 4, step)).mask.sum(0) for step in (0, 5)]
    assert [x.tolist() for x in lengths] == [[7] * 4, [12] * 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recall(vocabulary=7, pairs=2, more_pairs=()), "vocabulary must be even"),
        (
            lambda: Recall(vocabulary=8, pairs=4, more_pairs=(5,)),
            "more_pairs must be <= vocabulary / 2 = 4, one key each, got 5",
        ),
        (lambda: Recall(pairs=32, length=64), "length must be > 2 \\* pairs = 64, got 64"),
        (lambda: Recall(filler=1.0), "filler must be < 1, got 1"),
        (lambda: SelectiveCopy(items=9, length=8), "length must be >= items = 9, got 8"),
        (lambda: SelectiveCopy(lengths=(7,)), "lengths must be >= items = 8, got 7"),
        (lambda: NoisyRecall(length=7), "length must be even, since a key and its value take two steps, got 7"),
        (lambda: NoisyRecall(noise=1.0), "noise must be < 1, got 1"),
        (lambda: Parity(length=1), "length must be >= 2, got 1"),
        (lambda: Parity(lengths=(64, 1)), "lengths must be >= 2, got 1"),
        (lambda: S3(lengths=(0,)), "every one of lengths must be >= 1, got 0"),
    ],
)
def test_sizes_that_make_no_task_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
