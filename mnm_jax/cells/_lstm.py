"""The LSTM: controller of the memory cells, and the baseline without a memory."""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.cells._common import orthogonal_init

Array = jax.Array


class LSTMCell(nnx.OptimizedLSTMCell):
    """flax's LSTM, whose carry (c, h) `[B, hidden]` starts at zero without a random key, in any `param_dtype`.

    Source: Hochreiter and Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al., 2000.
    """

    def __init__(self, in_features: int, hidden_features: int, **options):
        super().__init__(in_features, hidden_features, **{"recurrent_kernel_init": orthogonal_init} | options)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> tuple[Array, Array]:
        """(c, h), zeros `[B, hidden]`; needs no random key."""
        del rngs, carry_init
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
        return zeros, zeros
