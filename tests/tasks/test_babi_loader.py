"""Batches: buckets, epochs, the exact position, evaluation; on records in memory."""

import doctest
import itertools
import json

import jax
import numpy as np
import pytest

pytest.importorskip("grain")

from tasks.babi import loader  # noqa: E402
from tasks.babi.cache import Split  # noqa: E402
from tasks.babi.loader import BabiLoader, bucket_lengths, epoch_plan, evaluation_batches, pad_batch  # noqa: E402


class Records(list):
    """A list that is read as TFDS data sources are."""

    def __getitems__(self, ids):
        return [self[index] for index in ids]


def make_split(count=53):
    """Record i has answer i, and 1 + i % 20 sentences that all begin with word i + 1."""
    records = Records()
    for index in range(count):
        words = np.zeros((2 + index % 20, 11), np.int32)
        words[:, 0] = index + 1
        records.append({"words": words, "answer": index, "task": 1})
    steps = np.array([len(record["words"]) for record in records])
    return Split(records, steps, np.ones(count, int))


SPLIT = make_split()
LENGTHS = bucket_lengths(21)


def make_loader(seed=0, batch_size=8):
    return BabiLoader(SPLIT, LENGTHS, seed, batch_size)


def answers(batch):
    return batch.targets[batch.loss_mask > 0].tolist()


def equal(a, b):
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_doctests():
    assert doctest.testmod(loader) == (0, 1)


def test_bucket_lengths_end_at_the_longest():
    assert bucket_lengths(131).tolist() == [3, 7, 11, 17, 29, 47, 71, 131]
    assert bucket_lengths(3).tolist() == [3]
    assert bucket_lengths(2).tolist() == [2]


def test_padding_by_hand():
    records = [
        {"words": np.array([[1] * 11, [2] * 11], np.int32), "answer": 4},
        {"words": np.array([[3] * 11], np.int32), "answer": 5},
    ]
    batch = pad_batch(records, 3, 3)
    np.testing.assert_array_equal(batch.inputs[..., 0], [[1, 3, 0], [2, 0, 0], [0, 0, 0]])
    assert np.all(batch.inputs == batch.inputs[..., :1])
    np.testing.assert_array_equal(batch.targets, [[0, 5, 0], [4, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask, [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.mask, [[True, True, False], [True, False, False], [False, False, False]])
    assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.float32, np.bool_]


def test_an_epoch_holds_every_record_at_most_once_and_leaves_out_a_remainder():
    buckets = np.searchsorted(LENGTHS, SPLIT.steps)
    left_out = set()
    for epoch in range(30):
        plan = epoch_plan(buckets, 3, epoch, 8)
        assert plan.shape == (6, 8)
        assert len(set(plan.ravel())) == 48
        left_out |= set(range(53)) - set(plan.ravel().tolist())
        # At most one batch mixes two neighbouring buckets at each boundary.
        assert sum(len(set(buckets[batch])) > 1 for batch in plan) <= len(LENGTHS) - 1
    assert len(left_out) > 40  # not always the same five
    assert not np.array_equal(epoch_plan(buckets, 3, 0, 8), epoch_plan(buckets, 3, 1, 8))
    assert not np.array_equal(epoch_plan(buckets, 3, 0, 8), epoch_plan(buckets, 4, 0, 8))


def test_batches_are_padded_to_the_bucket_of_their_longest_story():
    for batch in itertools.islice(make_loader(), 30):
        lengths = batch.mask.sum(0)
        assert len(batch.mask) == LENGTHS[np.searchsorted(LENGTHS, lengths.max())]
        for column, answer in enumerate(batch.targets.max(0)):
            record = SPLIT.records[answer]["words"]
            np.testing.assert_array_equal(batch.inputs[: len(record), column], record)
            assert lengths[column] == len(record) and batch.loss_mask[len(record) - 1, column] == 1
        assert batch.loss_mask.sum() == 8 and not batch.inputs[~batch.mask].any()


def test_the_seed_decides_and_epochs_differ():
    first, second, other = (list(itertools.islice(make_loader(seed), 13)) for seed in (5, 5, 6))
    assert all(map(equal, first, second))
    assert not all(map(equal, first, other))
    epochs = [sorted(sum(map(answers, first[start : start + 6]), [])) for start in (0, 6)]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert [answers(batch) for batch in first[:6]] != [answers(batch) for batch in first[6:12]]


@pytest.mark.parametrize("taken", range(0, 14))
def test_a_restored_position_continues_with_the_same_batches(taken):
    """At every position of two epochs of 6 batches, so at every change of bucket and of epoch."""
    running = make_loader(seed=2)
    for _ in range(taken):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    expected = list(itertools.islice(running, 8))
    fresh, used = make_loader(seed=2), make_loader(seed=2)
    list(itertools.islice(used, 3))
    for restored in (fresh, used, running):
        restored.set_state(state)
        assert restored.get_state() == state
        assert all(map(equal, expected, itertools.islice(restored, 8)))


def test_a_position_far_on_needs_no_replay(monkeypatch):
    state = make_loader().get_state()
    state["position"] = {"next_index": 6 * 10**6 + 4}
    restored = make_loader()
    restored.set_state(state)
    expected = epoch_plan(np.searchsorted(LENGTHS, SPLIT.steps), 0, 10**6, 8)[4]
    assert sorted(answers(next(restored))) == sorted(expected.tolist())


def test_a_state_of_another_loader_is_refused():
    state = make_loader(seed=1, batch_size=8).get_state()
    with pytest.raises(ValueError, match="the saved loader has seed=1, this one seed=2"):
        make_loader(seed=2, batch_size=8).set_state(state)
    with pytest.raises(ValueError, match="batch_size=8, this one batch_size=4"):
        make_loader(seed=1, batch_size=4).set_state(state)
    with pytest.raises(ValueError, match="questions=53, this one questions=54"):
        BabiLoader(make_split(54), LENGTHS, 1, 8).set_state(state)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be <= 53, the training questions, got batch_size=54"):
        make_loader(batch_size=54)
    assert sorted(answers(next(make_loader(batch_size=53)))) == list(range(53))


@pytest.mark.parametrize("batch_size", [1, 8, 53, 100])
def test_evaluation_counts_every_chosen_record_once(batch_size):
    chosen = np.arange(0, 53, 2)
    batches = list(evaluation_batches(SPLIT, chosen, LENGTHS, batch_size))
    assert sorted(sum(map(answers, batches), [])) == chosen.tolist()
    assert {batch.targets.shape[1] for batch in batches} == {batch_size}
    assert {len(batch.targets) for batch in batches} <= set(LENGTHS.tolist())
    again = list(evaluation_batches(SPLIT, chosen, LENGTHS, batch_size))
    assert all(map(equal, batches, again))
    assert jax.tree.structure(batches[0]) == jax.tree.structure(next(make_loader()))
