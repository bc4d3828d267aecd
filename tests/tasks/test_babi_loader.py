"""Tests batches on records in memory: buckets, epochs, exact resuming, evaluation."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("grain")

from tasks.babi.cache import Split  # noqa: E402
from tasks.babi.layout import Layout  # noqa: E402
from tasks.babi.loader import (  # noqa: E402
    BabiLoader,
    bucket_lengths,
    epoch_plan,
    evaluation_batches,
    make_buckets,
    pad_batch,
)


class Records(list):
    """A list with the reading method of TFDS data sources."""

    def __getitems__(self, ids):
        return [self[index] for index in ids]


def make_split(count=53):
    """Returns a split whose record i has 2 to 22 rows (i + 1, row + 1, 0, ...) and 1 + i % 4 questions.

    The questions are the last row, the third last row, and so on. The answers number the questions of all records.
    """
    records, numbers = Records(), itertools.count()
    for index in range(count):
        questions = 1 + index % 4
        words = np.zeros((2 * questions + index % 15, 11), np.int32)
        words[:, 0], words[:, 1] = index + 1, np.arange(1, len(words) + 1)
        answers = np.full(len(words), -1, np.int32)
        answers[::-1][: 2 * questions : 2] = [next(numbers) for _ in range(questions)]
        records.append({"words": words, "answers": answers, "task": 1, "story_index": index})
    steps = np.array([len(record["words"]) for record in records])
    return Split(records, steps, 1 + np.arange(count) % 4, np.ones(count, int))


SPLIT = make_split()
QUESTIONS = 131  # 13 * (1 + 2 + 3 + 4) + 1
BATCHES = 7  # per epoch, in batches of 8 questions
LENGTHS = bucket_lengths(22)


def make_loader(seed=0, batch_size=8, change=None, part=(0, 1)):
    return BabiLoader(SPLIT, np.arange(len(SPLIT.steps)), LENGTHS, seed, batch_size, change, part)


def buckets_of(batch_size=8, split=SPLIT):
    return make_buckets(split, LENGTHS, batch_size, np.arange(len(split.steps)))


def answers(batch):
    return batch.targets[batch.loss_mask > 0].tolist()


def records_of(batch):
    return (batch.inputs[0, batch.mask[0], 0] - 1).tolist()


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def test_bucket_lengths_end_at_the_longest():
    assert bucket_lengths(135).tolist() == [3, 6, 10, 15, 20, 32, 48, 75, 105, 135]
    assert bucket_lengths(131).tolist() == [3, 6, 10, 15, 20, 32, 48, 75, 105, 131]
    assert bucket_lengths(140).tolist() == [3, 6, 10, 15, 20, 32, 48, 75, 105, 135, 140]
    assert bucket_lengths(3).tolist() == [3]
    assert bucket_lengths(2).tolist() == [2]


def test_padding_by_hand():
    records = [
        {"words": np.array([[1] * 11, [2] * 11, [3] * 11, [4] * 11], np.int32), "answers": np.array([-1, 4, -1, 0])},
        {"words": np.array([[5] * 11, [6] * 11], np.int32), "answers": np.array([-1, 7])},
    ]
    batch = pad_batch(records, 5, 3)
    np.testing.assert_array_equal(batch.inputs[..., 0], [[1, 5, 0], [2, 6, 0], [3, 0, 0], [4, 0, 0], [0, 0, 0]])
    assert np.all(batch.inputs == batch.inputs[..., :1])
    np.testing.assert_array_equal(batch.targets, [[0, 0, 0], [4, 7, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    asked = [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]  # class 0 counts as well
    np.testing.assert_array_equal(batch.loss_mask, asked)
    np.testing.assert_array_equal(batch.fork, np.array(asked, bool))
    np.testing.assert_array_equal(batch.mask, np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool))
    assert [leaf.dtype for leaf in batch[:5]] == [np.int32, np.int32, np.float32, np.bool_, np.bool_]
    assert set(batch.flags) == {"mask", "fork"}


def test_think_steps_by_hand():
    """Two think steps, and a controller that is reset at every sentence; word ids end at 6."""
    layout = Layout(words=7, think_steps=2, controller="sentence")
    records = [
        {"words": np.array([[1] * 11, [2] * 11, [3] * 11], np.int32), "answers": np.array([-1, 4, -1])},
        {"words": np.array([[5] * 11, [6] * 11], np.int32), "answers": np.array([-1, 0])},
    ]
    batch = pad_batch(records, 6, 2, layout)
    np.testing.assert_array_equal(batch.inputs[..., 0].T, [[1, 2, 0, 0, 3, 0], [5, 6, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.inputs[..., 11].T, [[0, 7, 8, 9, 0, 0], [0, 7, 8, 9, 0, 0]])
    np.testing.assert_array_equal(batch.loss_mask.T, [[0, 0, 0, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(batch.targets.T, [[0, 0, 0, 4, 0, 0], [0] * 6])
    np.testing.assert_array_equal(batch.mask.T, np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool))
    np.testing.assert_array_equal(batch.reset_controller.T, np.array([[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0]], bool))
    np.testing.assert_array_equal(batch.fork_memory.T, np.array([[0, 1, 1, 1, 0, 0]] * 2, bool))
    assert batch.fork is None and layout.columns == batch.inputs.shape[2] == 12
    np.testing.assert_array_equal(layout.kinds(batch, 0), [-1, 0, 1, 2, -1])


def test_think_steps_of_sentences_by_hand():
    """One think step per sentence and two per question; word ids end at 6, and 7 marks a question."""
    layout = Layout(words=7, think_steps=2, sentence_think_steps=1, controller="sentence", apart=True)
    record = {"words": np.array([[5] * 11, [4] * 11, [6] * 11], np.int32), "answers": np.array([-1, -1, 3])}
    batch = pad_batch([record], 8, 1, layout)
    np.testing.assert_array_equal(batch.inputs[:, 0, 0], [5, 0, 4, 0, 6, 0, 0, 0])
    np.testing.assert_array_equal(batch.inputs[:, 0, 11], [0, 10, 0, 10, 7, 8, 9, 0])
    np.testing.assert_array_equal(batch.loss_mask[:, 0], [0, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(batch.reset_controller[:, 0], np.array([1, 0, 1, 0, 1, 0, 0, 0], bool))
    np.testing.assert_array_equal(layout.kinds(batch, 0), [-1, 3, -1, 3, 0, 1, 2])
    assert layout.marks == 4


def test_a_question_of_one_step_is_on_a_fork_of_the_carry_between_sentences_with_think_steps():
    record = {"words": np.array([[5] * 11, [6] * 11, [4] * 11], np.int32), "answers": np.array([-1, 3, -1])}
    batch = Layout(words=7, sentence_think_steps=1).arrange(record)
    np.testing.assert_array_equal(batch.inputs[:, 11], [0, 8, 7, 0, 8])
    np.testing.assert_array_equal(batch.fork, [False, False, True, False, False])
    assert batch.fork_memory is None


def test_a_record_longer_than_the_batch_is_an_error():
    with pytest.raises(ValueError, match="broadcast"):
        pad_batch([SPLIT.records[14]], 15, 1)  # it has 20 rows


def split_of(steps, questions):
    """Returns a split without records; `steps` and `questions` are sequences of `(count, value)`."""
    repeated = [np.repeat(*np.transpose(pairs)[::-1]) for pairs in (steps, questions)]
    return Split(Records(), *repeated, np.ones(len(repeated[0]), int))


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        (1, [8, 8, 8, 5]),
        (32, [32, 8, 16, 5]),  # 32 / 1; 32 / 5 = 6.4, raised to 8; 32 / 2 = 16
        (64, [64, 16, 32, 5]),  # 64 / 5 = 12.8
        (99, [96, 16, 48, 5]),  # 99 / 5 = 19.8, nearer to 16 than to 24; 99 / 2 = 49.5
        (128, [128, 24, 60, 5]),  # 128 / 5 = 25.6; 128 / 2 = 64, limited to 60 records
        (200, [150, 40, 60, 5]),  # 200, limited to 150 records
    ],
)
def test_sizes_of_batches_by_hand(batch_size, sizes):
    """150 records of one question, 60 of five, 60 of two on average, and 5 of ten."""
    steps = [(150, 2), (30, 13), (30, 15), (60, 20), (5, 21)]
    questions = [(150, 1), (60, 5), (30, 1), (30, 3), (5, 10)]
    split = split_of(steps, questions)
    buckets = buckets_of(batch_size, split)
    assert [bucket.steps for bucket in buckets] == [3, 15, 20, 22]
    assert [bucket.batch_size for bucket in buckets] == sizes
    ends = np.cumsum([0, 150, 60, 60, 5])
    for bucket, start, end in zip(buckets, ends, ends[1:], strict=False):
        np.testing.assert_array_equal(bucket.records, np.arange(start, end))


@given(
    records=st.lists(st.tuples(st.integers(2, 22), st.integers(1, 10)), min_size=1, max_size=120),
    every=st.integers(1, 3),
    batch_size=st.integers(1, 300),
)
@settings(max_examples=200, deadline=None)
def test_buckets_of_any_records(records, every, batch_size):
    steps, questions = np.transpose(records)
    chosen = np.random.default_rng(0).permutation(len(steps))[::every]
    buckets = make_buckets(Split(Records(), steps, questions, np.ones_like(steps)), LENGTHS, batch_size, chosen)
    assert sorted(np.concatenate([bucket.records for bucket in buckets])) == sorted(chosen)
    assert [bucket.steps for bucket in buckets] == sorted({bucket.steps for bucket in buckets})
    for bucket in buckets:
        assert set(LENGTHS[np.searchsorted(LENGTHS, steps[bucket.records])]) == {bucket.steps}
        size, mean = bucket.batch_size, questions[bucket.records].mean()
        assert 1 <= size <= len(bucket.records)
        assert size % 8 == 0 or size == len(bucket.records)
        # A batch has `batch_size` questions to within half of 8 readings, and at least 8 readings if there are as many.
        if 8 < size < len(bucket.records):
            assert abs(size * mean - batch_size) <= 4 * mean * (1 + 1e-9)
        elif size == 8 < len(bucket.records):
            assert batch_size <= 12 * mean * (1 + 1e-9)
        else:
            assert size * mean <= max(8 * mean, batch_size + 4 * mean) * (1 + 1e-9)


def test_stories_of_one_question_and_of_ten_weigh_the_same():
    """4,000 questions of each kind: an epoch has equal numbers of batches of both kinds."""
    split = split_of([(4000, 3), (400, 22)], [(4000, 1), (400, 10)])
    steps, asked = collections.Counter(), collections.Counter()
    for length, records in epoch_plan(buckets_of(160, split), 0, 0):
        steps[length] += 1
        asked[length] += split.questions[records].sum()
    assert steps == {3: 25, 22: 25} and asked == {3: 4000, 22: 4000}


@pytest.mark.parametrize("batch_size", [8, 40])
def test_an_epoch_holds_every_record_at_most_once_and_leaves_out_a_remainder(batch_size):
    buckets = buckets_of(batch_size)
    by_length = {bucket.steps: bucket for bucket in buckets}
    remainders = {steps: len(bucket.records) % bucket.batch_size for steps, bucket in by_length.items()}
    assert sorted(remainders.values()) == {8: [0, 0, 0, 1, 3, 7], 40: [0, 0, 0, 0, 0, 1]}[batch_size]
    left_out = set()
    for epoch in range(60):
        plan = epoch_plan(buckets, 3, epoch)
        used = collections.defaultdict(list)
        for steps, ids in plan:
            # A batch has records of one bucket; their number is the bucket's batch size.
            assert set(ids) <= set(by_length[steps].records) and len(ids) == by_length[steps].batch_size
            used[steps] += ids.tolist()
        for steps, bucket in by_length.items():
            assert len(set(used[steps])) == len(used[steps]) == len(bucket.records) - remainders[steps]
            left_out |= set(bucket.records.tolist()) - set(used[steps])
    # Over the epochs every record of a bucket with a remainder is left out, and no other record.
    assert left_out == {r for steps, bucket in by_length.items() if remainders[steps] for r in bucket.records.tolist()}


def test_seed_and_epoch_decide_the_plan():
    def plan(seed, epoch):
        return [(steps, ids.tolist()) for steps, ids in epoch_plan(buckets_of(), seed, epoch)]

    assert plan(3, 0) == plan(3, 0)
    assert len({str(plan(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    # Lengths are mixed, and differently in every epoch.
    orders = [[steps for steps, _ in plan(3, epoch)] for epoch in range(9)]
    assert len(set(map(tuple, orders))) > 5 and any(order != sorted(order) for order in orders)


def check_records(batch):
    """Checks that every example is an unchanged record at the start of its column, followed by padding."""
    for column, index in enumerate(records_of(batch)):
        record = SPLIT.records[index]
        length = len(record["words"])
        asked = record["answers"] >= 0
        np.testing.assert_array_equal(batch.inputs[:length, column], record["words"])
        np.testing.assert_array_equal(batch.targets[:length, column][asked], record["answers"][asked])
        for leaf in (batch.loss_mask, batch.fork):
            np.testing.assert_array_equal(leaf[:length, column], asked)
        assert batch.mask[:, column].sum() == length and batch.mask[:length, column].all()
    assert not batch.inputs[~batch.mask].any()
    assert not batch.loss_mask[~batch.mask].any() and not batch.fork[~batch.mask].any()


@pytest.mark.parametrize("batch_size", [8, 40])
def test_batches_are_padded_to_the_length_of_their_bucket(batch_size):
    sizes = {bucket.steps: bucket.batch_size for bucket in buckets_of(batch_size)}
    running = make_loader(batch_size=batch_size)
    for batch in itertools.islice(running, 3 * running.batches):
        steps, examples = batch.mask.shape
        real = batch.mask.any(0)
        assert real.sum() == sizes[steps] == len(records_of(batch))
        assert examples % 8 == 0 and examples - sizes[steps] < 8  # few records: padded for the devices
        assert {LENGTHS[np.searchsorted(LENGTHS, length)] for length in batch.mask.sum(0)[real]} == {steps}
        check_records(batch)


def test_the_seed_decides_and_epochs_differ():
    first, second, other = (list(itertools.islice(make_loader(seed), 2 * BATCHES)) for seed in (5, 5, 6))
    assert make_loader().batches == BATCHES
    assert all(map(equal, first, second))
    assert not all(map(equal, first, other))
    epochs = [sum(map(records_of, first[start : start + BATCHES]), []) for start in (0, BATCHES)]
    assert all(len(set(epoch)) == len(epoch) == 53 - 11 for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("taken", range(0, 2 * BATCHES + 2))
def test_a_restored_position_continues_with_the_same_batches(taken):
    """At every position of two epochs, so at every change of length and of epoch."""
    running = make_loader(seed=2)
    for _ in range(taken):
        next(running)
    state = json.loads(json.dumps(running.get_state()))
    expected = list(itertools.islice(running, 9))
    fresh, used = make_loader(seed=2), make_loader(seed=2)
    list(itertools.islice(used, 3))
    for restored in (fresh, used, running):
        restored.set_state(state)
        assert restored.get_state() == state
        assert all(map(equal, expected, itertools.islice(restored, 9)))


def test_a_position_far_on_needs_no_replay():
    state = make_loader().get_state()
    state["position"] = {"next_index": BATCHES * 10**6 + 4}
    restored = make_loader()
    restored.set_state(state)
    steps, expected = epoch_plan(buckets_of(), 0, 10**6)[4]
    batch = next(restored)
    assert len(batch.mask) == steps and records_of(batch) == expected.tolist()


def test_a_change_is_drawn_anew_for_every_batch_and_the_same_after_a_restart():
    def change(record, rng):
        return {**record, "words": record["words"] + 1000 * rng.integers(1, 10**6, dtype=np.int32)}

    changed = make_loader(4, change=change)
    states, drawn = [], []
    for plain in itertools.islice(make_loader(4), 2 * BATCHES):
        states.append(changed.get_state())
        batch = next(changed)
        added = batch.inputs - plain.inputs
        # The whole record changes by the same number, and padding stays padding.
        np.testing.assert_array_equal(added, np.where(batch.mask[..., None], added[:1], 0))
        assert np.all(added == added[..., :1])
        drawn += added[0, batch.mask[0], 0].tolist()
        assert equal(batch[1:], plain[1:])
    assert len(set(drawn)) == len(drawn) and min(drawn) >= 1000
    for position in (BATCHES + 3, 1, BATCHES):
        expected = make_loader(4, change=change)
        expected.set_state(states[0])
        restored = make_loader(4, change=change)
        restored.set_state(states[position])
        assert equal(next(itertools.islice(expected, position, None)), next(restored))


def test_a_change_does_not_repeat_the_random_numbers_of_the_order():
    drawn = []
    loader = make_loader(4, change=lambda record, rng: drawn.append(rng.integers(2**63)) or record)
    for _ in range(2 * BATCHES):
        next(loader)
    orders = {np.random.default_rng([4, epoch]).integers(2**63) for epoch in range(2)}
    assert len(set(drawn)) == len(drawn) and not orders & set(drawn)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_parts_of_several_processes_side_by_side_are_the_batches_of_one(count):
    def change(record, rng):
        return record | {"answers": np.where(record["answers"] < 0, -1, rng.integers(1000))}

    whole = make_loader(change=change)
    parts = [make_loader(change=change, part=(which, count)) for which in range(count)]
    for _ in range(2 * BATCHES):
        batch, shares = next(whole), [next(part) for part in parts]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *shares)
        size = batch.mask.shape[1]
        assert not joined.mask[:, size:].any() and not joined.loss_mask[:, size:].any()
        assert equal([leaf[:, :size].copy() for leaf in jax.tree.leaves(joined)], batch)
        assert len({share.mask.shape for share in shares}) == 1
        assert sum(len(records_of(share)) for share in shares) == len(set(records_of(batch))) > 0
    assert parts[1].get_state() == whole.get_state()


def test_a_state_of_another_loader_is_refused():
    state = make_loader(seed=1, batch_size=8).get_state()
    with pytest.raises(ValueError, match="the saved loader has seed=1, this one seed=2"):
        make_loader(seed=2, batch_size=8).set_state(state)
    with pytest.raises(ValueError, match="batch_size=8, this one batch_size=4"):
        make_loader(seed=1, batch_size=4).set_state(state)
    with pytest.raises(ValueError, match="questions=131, this one questions=133"):
        BabiLoader(make_split(54), np.arange(54), LENGTHS, 1, 8).set_state(state)


def test_more_questions_a_batch_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match="batch_size must be <= 131, the training questions of an epoch, got batch_size=132"
    ):
        make_loader(batch_size=132)
    largest = make_loader(batch_size=131)
    assert sorted(sum(map(answers, itertools.islice(largest, largest.batches)), [])) == list(range(QUESTIONS))


@pytest.mark.parametrize("batch_size", [1, 8, 40, 131, 1000])
@pytest.mark.parametrize("every", [1, 2])
def test_evaluation_counts_every_chosen_record_once(batch_size, every):
    chosen = np.arange(0, 53, every)
    batches = list(evaluation_batches(SPLIT, chosen, LENGTHS, batch_size))
    assert sorted(sum(map(records_of, batches), [])) == chosen.tolist()
    expected = np.concatenate([SPLIT.records[index]["answers"] for index in chosen])
    assert sorted(sum(map(answers, batches), [])) == sorted(expected[expected >= 0].tolist())
    for batch in batches:
        check_records(batch)
    # Shortest first; one shape per length, and only its last batch has examples of padding.
    steps = [len(batch.mask) for batch in batches]
    assert steps == sorted(steps) and set(steps) <= set(LENGTHS.tolist())
    for _, group in itertools.groupby(batches, key=lambda batch: len(batch.mask)):
        *whole, last = group
        assert {batch.mask.shape for batch in whole} <= {last.mask.shape}
        assert all(batch.mask[0].all() for batch in whole) and last.mask[0, 0]
    again = list(evaluation_batches(SPLIT, chosen, LENGTHS, batch_size))
    assert all(map(equal, batches, again))
    assert jax.tree.structure(batches[0]) == jax.tree.structure(next(make_loader()))
