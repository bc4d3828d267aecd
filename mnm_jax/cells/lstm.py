"""The LSTM: controller of the memory cells, and the baseline without a memory."""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class LSTMCell(nnx.OptimizedLSTMCell):
    """flax's LSTM, whose carry (c, h) `[B, hidden]` starts at zero without a random key.

    Source: Hochreiter and Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al., 2000.
    """

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> tuple[Array, Array]:
        del rngs, carry_init
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
        return zeros, zeros
