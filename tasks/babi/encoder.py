"""Sentence vectors from word ids.

Shape letters: `T` time steps, `B` examples, `W` words of a sentence, `D` features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tasks.babi.vocabulary import PADDING

Array = jax.Array


class SentenceEncoder(nnx.Module):
    """s_t = sum_j E[w_tj] * P[j] over the words j of sentence t; padding words add exactly zero.

    The bag of words with learned position vectors of TPR-RNN (Schlag and Schmidhuber, NeurIPS 2018) and STM (Le et
    al., ICML 2020). The initial values are a choice of this library: E normal with variance 1 / 6, about one over
    the words of a sentence, so that a feature of s_t starts with variance near 1; P normal around 1 with deviation
    0.1, so that word order counts from the first step.

    words: number of word ids, the padding 0 among them.
    sentence_words: `W`. features: `D`.
    """

    def __init__(self, words: int, sentence_words: int, features: int, *, rngs: nnx.Rngs):
        normal = jax.random.normal
        self.embedding = nnx.Param(normal(rngs.params(), (words, features)) / 6**0.5)
        self.position = nnx.Param(1.0 + 0.1 * normal(rngs.params(), (sentence_words, features)))

    def __call__(self, words: Array) -> Array:
        """int `[T, B, W] -> [T, B, D]`."""
        # A zero row in the table keeps padding out of value and gradient, whatever the stored row holds.
        table = self.embedding[...].at[PADDING].set(0)
        return jnp.einsum("tbwd,wd->tbd", table[words], self.position[...])
