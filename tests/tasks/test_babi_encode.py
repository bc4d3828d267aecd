"""Word ids, answer classes and sentence vectors, by hand and against a plain loop."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.babi import Question, vocabulary
from tasks.babi.encode import encode_question
from tasks.babi.encoder import SentenceEncoder
from tasks.babi.vocabulary import build_vocabulary

STORY = (("mary", "went", "home"), ("john", "left"), ("mary", "left", "home"))
WHERE = Question(STORY, ("where", "is", "mary"), "nowhere", (2,), 0, 1)


def test_the_doctest_of_the_vocabulary():
    assert doctest.testmod(vocabulary) == (0, 2)


def test_vocabulary_counts_answers_apart_from_words():
    words, answers = build_vocabulary([WHERE, WHERE._replace(answer="milk,football", question=("what", "is", "milk"))])
    assert words == ("home", "is", "john", "left", "mary", "milk", "went", "what", "where")
    assert answers == ("milk,football", "nowhere")


def test_encoding_by_hand():
    # home 1, is 2, john 3, left 4, mary 5, went 6, where 7
    ids = build_vocabulary([WHERE]).word_ids()
    encoded = encode_question(WHERE, ids, 70)
    assert encoded.dtype == np.int32
    expected = [[5, 6, 1], [3, 4, 0], [5, 4, 1], [7, 2, 5]]
    np.testing.assert_array_equal(encoded, np.pad(expected, ((0, 0), (0, 8))))


def test_a_long_story_keeps_its_end_and_the_question():
    ids = build_vocabulary([WHERE]).word_ids()
    whole = encode_question(WHERE, ids, 3)
    np.testing.assert_array_equal(encode_question(WHERE, ids, 2), whole[1:])
    np.testing.assert_array_equal(encode_question(WHERE, ids, 1), whole[2:])


def test_a_sentence_too_long_is_named():
    question = WHERE._replace(question=("why",) * 12)
    with pytest.raises(ValueError, match="task 1, story 0: a sentence of 12 words, at most 11 .*why why"):
        encode_question(question, build_vocabulary([question]).word_ids(), 70)


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder(9, 5, 6, rngs=nnx.Rngs(0))


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
