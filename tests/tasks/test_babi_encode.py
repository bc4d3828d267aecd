"""Tests word ids, answer classes and sentence vectors by hand and against a plain loop."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.babi import vocabulary
from tasks.babi.encode import encode_reading, encode_rows
from tasks.babi.encoder import SentenceEncoder
from tasks.babi.readings import Reading
from tasks.babi.vocabulary import build_vocabulary

ROWS = (("mary", "went", "home"), ("where", "is", "mary"), ("john", "left"), ("mary", "left", "home"), ("who", "left"))
READING = Reading(ROWS, (None, "home", None, None, "john,mary"), 8, 17)


def encode(reading, vocabulary=None):
    vocabulary = vocabulary or build_vocabulary([reading])
    return encode_reading(reading, vocabulary.word_ids(), vocabulary.answer_ids())


def test_the_doctest_of_the_vocabulary():
    assert doctest.testmod(vocabulary) == (0, 2)


def test_vocabulary_counts_answers_apart_from_words():
    other = Reading((("what", "is", "milk"),), ("nothing",), 8, 18)
    words, answers = build_vocabulary([READING, other])
    assert words == ("home", "is", "john", "left", "mary", "milk", "went", "what", "where", "who")
    assert answers == ("home", "john,mary", "nothing")


def test_encoding_by_hand():
    # home 1, is 2, john 3, left 4, mary 5, went 6, where 7, who 8; answers: home 0, "john,mary" 1
    record = encode(READING)
    expected = [[5, 6, 1], [7, 2, 5], [3, 4, 0], [5, 4, 1], [8, 4, 0]]
    np.testing.assert_array_equal(record["words"], np.pad(expected, ((0, 0), (0, 8))))
    np.testing.assert_array_equal(record["answers"], [-1, 0, -1, -1, 1])
    assert record["words"].dtype == record["answers"].dtype == np.int32
    assert (record["task"], record["story_index"], len(record)) == (8, 17, 4)


def test_the_longest_sentence_fills_its_row_and_what_fits_none_is_named():
    long = READING._replace(rows=(*ROWS[:4], ("why",) * 11))
    np.testing.assert_array_equal(encode(long)["words"][4], [8] * 11)
    with pytest.raises(ValueError, match="task 8, story 17: a sentence of 12 words, 1 to 11 can be .*why why"):
        encode(long._replace(rows=(*ROWS[:4], ("why",) * 12)))
    with pytest.raises(ValueError, match="task 8, story 17: a sentence of 0 words, 1 to 11 can be encoded: ''"):
        encode(long._replace(rows=(*ROWS[:4], ())))


def test_an_unknown_word_is_named_and_never_padding():
    with pytest.raises(ValueError, match="task 8, story 17: the word 'fred' in 'fred left' is not in the vocabulary"):
        encode(READING._replace(rows=(*ROWS[:2], ("fred", "left"), *ROWS[3:])), build_vocabulary([READING]))
    with pytest.raises(ValueError, match="here: the word '' in 'mary ' is not in the vocabulary"):
        encode_rows([("mary", "")], {"mary": 1}, "here")


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder(np.ones(9), 5, 6, rngs=nnx.Rngs(0))


def test_sentence_vectors_equal_a_plain_loop(encoder):
    words = np.random.default_rng(0).integers(0, 9, (3, 4, 5)).astype(np.int32)
    assert 0 < (words == 0).sum() < words.size
    embedding, position = np.asarray(encoder.embedding[...]), np.asarray(encoder.position[...])
    expected = np.zeros((3, 4, 6))
    for t, b, j in np.ndindex(words.shape):
        if words[t, b, j] != 0:
            expected[t, b] += embedding[words[t, b, j]] * position[j]
    np.testing.assert_allclose(encoder(jnp.asarray(words)), expected, rtol=1e-5, atol=1e-6)


def test_padding_words_have_no_influence_at_all(encoder):
    words = jnp.asarray([[[3, 1, 0, 0, 0]], [[0, 0, 0, 0, 0]]])
    graph, state = nnx.split(encoder)
    spoiled = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    spoiled.embedding[...] = spoiled.embedding[...].at[0].set(jnp.nan)
    spoiled.position[...] = spoiled.position[...].at[2:].set(1e30)
    np.testing.assert_array_equal(spoiled(words), encoder(words))
    np.testing.assert_array_equal(encoder(words)[1], np.zeros((1, 6)))

    gradient = jax.grad(lambda model: jnp.sum(jnp.square(model(words))))(encoder)
    np.testing.assert_array_equal(gradient.embedding[...][0], np.zeros(6))
    np.testing.assert_array_equal(gradient.position[...][2:], np.zeros((3, 6)))
    assert np.all(np.any(np.asarray(gradient.embedding[...])[[1, 3]] != 0, axis=1))


def test_word_order_counts(encoder):
    swapped = encoder(jnp.asarray([[[3, 1, 0, 0, 0]]])) - encoder(jnp.asarray([[[1, 3, 0, 0, 0]]]))
    assert np.abs(swapped).max() > 1e-3


COUNTS = np.array([0, 1000, 1000, 1000, 1000, 10, 10, 10, 10])  # the words 5 to 8 are rare


@pytest.fixture(scope="module")
def picking():
    return SentenceEncoder(COUNTS, 5, 6, hidden=7, entities=3, entity_features=4, rngs=nnx.Rngs(0))


def test_hidden_units_and_entities_equal_a_plain_loop(picking):
    words = np.random.default_rng(1).integers(1, 9, (2, 3, 5)).astype(np.int32)
    words[0, 0, 3:] = words[1, 2, 1:] = 0
    sums = np.asarray(SentenceEncoder.__call__(_without_extras(picking), jnp.asarray(words)))
    units = np.maximum(0, sums @ np.asarray(picking.into.kernel[...]) + np.asarray(picking.into.bias[...]))
    context = units @ np.asarray(picking.context.kernel[...]) + np.asarray(picking.context.bias[...])
    expected = np.zeros((2, 3, 6 + 3 * 4))
    expected[..., :6] = sums + units @ np.asarray(picking.out.kernel[...])
    for t, b, p in np.ndindex(2, 3, 3):
        length = np.count_nonzero(words[t, b])
        scores = np.asarray(picking.word_scores[...])[words[t, b, :length], p]
        scores = scores + np.asarray(picking.place_scores[...])[:length, p] + context[t, b].reshape(5, 3)[:length, p]
        weights = np.exp(scores) / np.exp(scores).sum()
        expected[t, b, 6 + 4 * p : 10 + 4 * p] = weights @ np.asarray(picking.codes[...])[words[t, b, :length]]
    np.testing.assert_allclose(picking(jnp.asarray(words)), expected, rtol=1e-4, atol=1e-5)


def _without_extras(encoder):
    plain = SentenceEncoder(COUNTS, 5, 6, rngs=nnx.Rngs(0))
    plain.embedding[...], plain.position[...] = encoder.embedding[...], encoder.position[...]
    return plain


def test_entities_start_as_the_rare_words_from_the_front_and_from_the_end(picking):
    """Scores initially depend on words and positions only: 4.6 more for a rare word, and 0.7 per position."""
    words = jnp.asarray([[[5, 1, 2, 7, 3]]])
    nothing = jnp.zeros((1, 1, 7))
    weights = np.asarray(picking.attention(words, nothing))[0, 0]
    assert weights[:, :2].argmax(0).tolist() == [0, 3]
    share = np.exp(0.7 * 3) / (np.exp(0.7 * 3) + 1)  # weight of the later rare word; the others have 1% each
    np.testing.assert_allclose(weights[3, 1], share, atol=0.05)
    np.testing.assert_allclose(weights[0, 0], share, atol=0.05)


def test_padding_is_never_picked(picking):
    words = jnp.asarray([[[5, 1, 0, 0, 0]]])
    graph, state = nnx.split(picking)
    spoiled = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    spoiled.codes[...] = spoiled.codes[...].at[0].set(1e30)
    spoiled.word_scores[...] = spoiled.word_scores[...].at[0].set(1e30)
    np.testing.assert_array_equal(spoiled(words), picking(words))
