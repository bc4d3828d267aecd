"""Sentence vectors from word ids.

Shape letters: `T` time steps, `B` examples, `W` words of a sentence, `D` features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tasks.babi.vocabulary import PADDING

Array = jax.Array


class SentenceEncoder(nnx.Module):
    """e_t = sum_j E[w_tj] * P[j] over the words j of sentence t; padding words add exactly zero.

        s_t = e_t,   or with hidden units   s_t = e_t + C relu(A e_t + a)

    The bag of words with learned position vectors of TPR-RNN (Schlag and Schmidhuber, NeurIPS 2018) and STM (Le et
    al., ICML 2020). The initial values are a choice of this library: E normal with variance 1 / 6, about one over
    the words of a sentence, so that a feature of s_t starts with variance near 1; P normal around 1 with deviation
    0.1, so that word order counts from the first step. The hidden units tell pairs of words (north of, the office) from
    the two apart, which a sum does not.

    words: number of word ids, the padding 0 among them.
    sentence_words: `W`. features: `D`. hidden: hidden units; 0: none.
    """

    def __init__(self, words: int, sentence_words: int, features: int, hidden: int = 0, *, rngs: nnx.Rngs):
        normal = jax.random.normal
        self.embedding = nnx.Param(normal(rngs.params(), (words, features)) / 6**0.5)
        self.position = nnx.Param(1.0 + 0.1 * normal(rngs.params(), (sentence_words, features)))
        into = nnx.Linear(features, hidden, rngs=rngs) if hidden else None
        out = nnx.Linear(hidden, features, use_bias=False, rngs=rngs) if hidden else None
        self.into, self.out = nnx.data(into), nnx.data(out)

    def __call__(self, words: Array) -> Array:
        """int `[T, B, W] -> [T, B, D]`."""
        # A zero row in the table keeps padding out of value and gradient, whatever the stored row holds.
        table = self.embedding[...].at[PADDING].set(0)
        sentences = jnp.einsum("tbwd,wd->tbd", table[words], self.position[...])
        if self.into is None:
            return sentences
        return sentences + self.out(jax.nn.relu(self.into(sentences)))
