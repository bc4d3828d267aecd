"""Tests dictionary inference against a reader that works token by token, and by hand."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from tasks.dictionary import LETTERS, SOURCE, TARGET, Dictionary

SMALL = Dictionary(length=3, support=3, queries=4, evaluation_batches=2)
B = 16


@partial(jax.jit, static_argnums=(0, 2))
def draw(task, seed=0, size=B):
    return task.sample(jax.random.key(seed), size)


@partial(jax.jit, static_argnums=0)
def metrics(task, logits, batch):
    return task.metrics(logits, batch)


def strings(tokens, length):
    return ["".join(tokens[i : i + length]) for i in range(0, len(tokens), length)]


def read(tokens, length):
    """Returns (pairs shown, strings asked for) of one sequence."""
    lines = strings(tokens, length)
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    shown = [pair for pair in pairs if "?" not in pair[1]]
    asked = pairs[len(shown) :]
    assert all(answer == "?" * length for _, answer in asked)
    return shown, [query for query, _ in asked]


def letters(shown):
    return [(a, b) for source, target in shown for a, b in zip(source, target, strict=True)]


def oracle(tokens, length):
    """Returns the answers, letter by letter, of a reader that remembers every pair of letters."""
    shown, asked = read(tokens, length)
    known = dict(letters(shown))
    return [TARGET.index(known[letter]) for query in asked for letter in query]


def score(task, batch, length, answer):
    """Returns (total, count) of the accuracy of `answer(tokens, length) -> class of every letter asked for`."""
    logits, batch = np.zeros((*batch.targets.shape, LETTERS), np.float32), jax.device_get(batch)
    for b in range(B):
        answers = answer(task.tokens(batch, b), length)
        steps = np.flatnonzero(batch.loss_mask[:, b])
        logits[steps, b, answers] = 1
    mean = metrics(task, logits, batch)["accuracy"]
    return np.array([mean.total, mean.count])


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_oracle_solves_every_evaluation_set(split):
    for name, batches in SMALL.evaluations(split, B).items():
        length = int(name.removeprefix("length=")) if name.startswith("length=") else SMALL.length
        right, count = sum(score(SMALL, batch, length, oracle) for batch in batches())
        assert right == count == 2 * B * SMALL.queries * length


def test_a_guess_among_the_letters_seen_scores_the_reported_chance():
    def guess(tokens, length):
        shown, asked = read(tokens, length)
        seen = sorted({b for _, b in letters(shown)})
        return rng.choice([TARGET.index(letter) for letter in seen], size=len(asked) * length)

    task, rng = Dictionary(length=2, support=3, queries=50), np.random.default_rng(0)
    batch = draw(task)
    right, count = score(task, batch, 2, guess)
    chance = metrics(task, np.zeros((*batch.targets.shape, LETTERS), np.float32), batch)["chance"]
    assert chance.count == count == B * 100
    distinct = [len({b for _, b in letters(read(task.tokens(batch, b), 2)[0])}) for b in range(B)]
    assert float(chance.value) == pytest.approx(np.mean(1 / np.array(distinct)), rel=1e-5)
    assert right / count == pytest.approx(float(chance.value), abs=4 * 0.5 / float(count) ** 0.5)


def test_every_example_has_a_bijection_of_its_own():
    task = Dictionary(length=1, support=60, queries=30)
    batch = jax.device_get(draw(task))
    dictionaries = set()
    for b in range(B):
        shown, asked = read(task.tokens(batch, b), 1)
        known = dict(shown)
        assert all(known[source] == target for source, target in shown)
        assert len(set(known.values())) == len(known)
        assert set(known) <= set(SOURCE) and set(known.values()) <= set(TARGET)
        dictionaries.add(tuple(sorted(known.items())))
        answers = [TARGET[t] for t in batch.targets[batch.loss_mask[:, b] > 0, b]]
        assert answers == [known[query] for query in asked]  # which shows that queries consist of letters seen
    assert len(dictionaries) == B
    images = [tuple(dict(d).get(letter) for d in sorted(dictionaries)) for letter in SOURCE]
    assert all(len(set(image)) > 5 for image in images)  # no letter has a fixed translation


def test_letters_are_uniform_and_queries_uniform_over_those_seen():
    batch = draw(Dictionary(length=1, support=1, queries=1), 0, 13_000)
    counts = np.asarray(batch.inputs[0].sum(0))[:LETTERS]
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))
    repeated = draw(Dictionary(length=3, support=1, queries=1), 1, 4000)
    shown = np.argmax(repeated.inputs[:3], -1)
    asked = np.argmax(repeated.inputs[6:9], -1)
    # Two of three letters are the same: each of the two letters seen is still asked for with probability one half.
    twice = (shown[0] == shown[1]) & (shown[1] != shown[2])
    part = np.mean(asked[:, twice] == shown[0, twice][None])
    assert part == pytest.approx(0.5, abs=4 * 0.5 / float(3 * twice.sum()) ** 0.5)


def test_time_line_by_hand():
    """length 3: the pair "abc" - "NOP", then "cab" is asked for and "PNO" expected, one letter per step."""
    task = Dictionary(length=3, support=1, queries=1)
    batch = draw(task)
    inputs = np.asarray(jax.nn.one_hot([0, 1, 2, 13, 14, 15, 2, 0, 1, 26, 26, 26], 27))[:, None]
    targets = np.array([0] * 9 + [2, 0, 1])[:, None]
    counted = np.array([0.0] * 9 + [1.0] * 3)[:, None]
    by_hand = batch._replace(inputs=inputs, targets=targets, loss_mask=counted)
    assert task.render(by_hand, 0) == "input   a b c N O P c a b ? ? ?\nanswer                    P N O"
    asked = np.asarray(batch.loss_mask)
    np.testing.assert_array_equal(asked, np.broadcast_to(counted, asked.shape))
    assert batch.mask.all()
    np.testing.assert_array_equal(batch.inputs.sum(-1), 1)


def test_the_same_key_gives_the_same_bytes_and_another_key_others():
    same = jax.tree.map(np.array_equal, draw(SMALL), draw(SMALL))
    assert jax.tree.all(same)
    assert not np.array_equal(draw(SMALL).inputs, draw(SMALL, seed=1).inputs)


def test_evaluation_sets_are_fixed_and_apart_from_training_and_each_other():
    task = Dictionary(length=3, support=4, queries=2, evaluation_batches=2, wider=False)
    sets = {split: task.evaluations(split, B)[""] for split in ("valid", "test")}
    drawn = {split: list(batches()) for split, batches in sets.items()}
    for split, batches in sets.items():
        again = list(batches())
        assert len(again) == 2
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, drawn[split])))
    training = [draw(task, seed) for seed in range(5)]
    batches = [*drawn["valid"], *drawn["test"], *training]
    every = [np.asarray(batch.inputs)[:, i].tobytes() for batch in batches for i in range(B)]
    assert len(set(every)) == len(every) == 9 * B


def test_wider_evaluation_has_longer_strings_and_larger_supports():
    sizes = {}
    for name, batches in SMALL.evaluations("test", B).items():
        length = int(name.removeprefix("length=")) if name.startswith("length=") else SMALL.length
        shown, asked = read(SMALL.tokens(next(iter(batches())), 0), length)
        sizes[name] = (len(shown), len(asked), length)
    assert sizes == {
        "": (3, 4, 3),
        "support=6": (6, 4, 3),
        "support=12": (12, 4, 3),
        "length=4": (3, 4, 4),
        "length=5": (3, 4, 5),
    }
    assert set(SMALL.evaluations("valid", B)) == {""}
    assert set(dataclasses.replace(SMALL, wider=False).evaluations("test", B)) == {""}


@pytest.mark.parametrize("name", ["length", "support", "queries", "evaluation_batches"])
@pytest.mark.parametrize("value", [0, -3])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got {value}"):
        Dictionary(**{name: value})


def test_mixed_training_draws_every_length_and_support_and_evaluates_as_without():
    task = dataclasses.replace(SMALL, mixed=True)
    batch = jax.device_get(draw(task, size=256))
    drawn = set()
    for b in range(256):
        tokens = task.tokens(batch, b)
        length = next(i for i, token in enumerate(tokens) if token in TARGET)
        shown, asked = read(tokens, length)
        assert asked
        np.testing.assert_array_equal(batch.targets[batch.loss_mask[:, b] > 0, b], oracle(tokens, length))
        drawn.add((length, len(shown)))
    assert drawn == {(n, s) for n, first, end in [(1, 9, 16), (2, 4, 8), (3, 3, 6)] for s in range(first, end)}
    for split in ("valid", "test"):
        for mine, others in zip(*(t.evaluations(split, B).values() for t in (task, SMALL)), strict=True):
            assert jax.tree.all(jax.tree.map(np.array_equal, next(iter(mine())), next(iter(others()))))


def test_the_number_of_pairs_does_not_follow_from_the_first_letter():
    """In these sizes both have 13 values if strings have one letter; drawn with one random key they were equal."""
    task = Dictionary(length=3, support=4, queries=8, mixed=True)
    batch = jax.device_get(draw(task, size=64))
    offsets = set()
    for b in range(64):
        tokens = task.tokens(batch, b)
        if tokens[1] in TARGET:  # strings of one letter
            shown, _ = read(tokens, 1)
            offsets.add((len(shown) - 3 * task.support - SOURCE.index(shown[0][0])) % 13)
    assert len(offsets) > 3
