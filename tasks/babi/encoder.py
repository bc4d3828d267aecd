"""Encodes word ids as sentence vectors and entities.

Shape letters: `T` time steps, `B` examples, `W` words of a sentence, `D` features, `P` entities of `V` features.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._linear import dot_general
from tasks.babi.vocabulary import PADDING

Array = jax.Array

_SLOPE = 0.7  # change of an entity's initial scores from one word to the next


class SentenceEncoder(nnx.Module):
    """Encodes the words w_t1, ..., w_tW of each sentence; padding words add exactly zero.

        e_t  = sum_j E[w_tj] * L[j]
        s_t  = e_t + C relu(A e_t + a)                    (e_t without hidden units)
        c_tp = sum_j alpha_tpj Z[w_tj],   alpha_tp = softmax over j of (U[w_tj, p] + Q[j, p] + (B relu(A e_t + a))_jp)

    The output is [s_t ; c_t1 ; ... ; c_tP]. e is the bag of words with learned position vectors of TPR-RNN and STM. Its
    hidden units distinguish pairs of words ("north of", "the office"), which a sum does not. Entities c are words
    picked by attention: the code of a word is the same at every position.

    The initial values are ours. E is normal with variance 1 / min(6, W), about one over the words of a sentence, so
    that s_t starts with variance near 1. L is normal around 1 with deviation 0.1 by default, so that word order counts
    from the first update. U[w, p] is -log of the share of word w among all words, so that entities start as the rare
    words (inverse document frequency). Q falls or rises by 0.7 per word, alternating over the entities, so that the
    first entity starts at the front of the sentence and the second at its end.

    Args:
      counts: uses of each word id in training, `[words]`; 0 for the padding.
      sentence_words: `W`.
      features: `D`.
      hidden: hidden units; 0: none.
      entities: `P`; 0: none.
      entity_features: `V`.
      position_deviation: standard deviation of the initial L.
      rngs: random keys of the initial values.

    Examples:
      >>> encoder = SentenceEncoder(np.array([0, 3, 1]), 4, 8, entities=2, entity_features=5, rngs=nnx.Rngs(0))
      >>> encoder(jnp.array([[[2, 1, 0, 0]]])).shape
      (1, 1, 18)

    References:
      Schlag and Schmidhuber, TPR-RNN, NeurIPS 2018; Le et al., STM, ICML 2020.
    """

    def __init__(
        self,
        counts: np.ndarray,
        sentence_words: int,
        features: int,
        hidden: int = 0,
        entities: int = 0,
        entity_features: int = 1,
        *,
        position_deviation: float = 0.1,
        rngs: nnx.Rngs,
    ):
        normal = jax.random.normal
        self.entities = entities
        self.embedding = nnx.Param(normal(rngs.params(), (len(counts), features)) / min(6, sentence_words) ** 0.5)
        self.position = nnx.Param(1.0 + position_deviation * normal(rngs.params(), (sentence_words, features)))
        linear = functools.partial(nnx.Linear, dot_general=dot_general, rngs=rngs)
        into = linear(features, hidden) if hidden else None
        out = linear(hidden, features, use_bias=False) if hidden else None
        self.into, self.out = nnx.data(into), nnx.data(out)
        if entities:
            rarity = np.log((counts.sum() + len(counts)) / (counts + 1.0))
            # -1, 1, -1/3, 1/3, ...: the front, the end, and then closer to the middle.
            slopes = _SLOPE * np.array([(2 * (p % 2) - 1) / (1 + p // 2 * 2) for p in range(entities)])
            self.codes = nnx.Param(normal(rngs.params(), (len(counts), entity_features)))
            self.word_scores = nnx.Param(jnp.asarray(np.tile(rarity[:, None], entities), jnp.float32))
            self.place_scores = nnx.Param(jnp.asarray(np.outer(np.arange(sentence_words), slopes), jnp.float32))
            self.context = linear(hidden or features, sentence_words * entities)

    def __call__(self, words: Array) -> Array:
        """Returns `[T, B, D + P V]` for word ids `[T, B, W]`."""
        # A zero row in the table keeps padding out of value and gradient, whatever the parameter's row holds.
        table = self.embedding[...].at[PADDING].set(0)
        sentences = context = jnp.einsum("tbwd,wd->tbd", table[words], self.position[...])
        if self.into is not None and self.out is not None:
            context = jax.nn.relu(self.into(sentences))
            sentences = sentences + self.out(context)
        if not self.entities:
            return sentences
        picked = jnp.einsum("tbwp,tbwv->tbpv", self.attention(words, context), self.codes[...][words])
        return jnp.concatenate([sentences, picked.reshape(*words.shape[:2], -1)], -1)

    def attention(self, words: Array, context: Array) -> Array:
        """Returns alpha `[T, B, W, P]`; zero on padding, except in an empty sentence."""
        scores = self.word_scores[...][words] + self.place_scores[...][None, None]
        scores = scores + self.context(context).reshape(scores.shape)
        scores = jnp.where((words != PADDING)[..., None], scores, -1e9)
        return jax.nn.softmax(scores, axis=2)
