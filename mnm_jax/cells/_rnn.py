"""The plain recurrent network, a baseline."""

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.cells._common import orthogonal_init

Array = jax.Array


class RNNCell(nnx.SimpleCell):
    """flax's h_t = tanh(A x_t + a + W h_{t-1}), whose carry h `[B, hidden]` starts at zero without a random key.

    Source: Elman, Cognitive Science 1990.
    """

    def __init__(self, in_features: int, hidden_features: int, **options):
        usual = {"recurrent_kernel_init": orthogonal_init, "dtype": options.get("param_dtype", jnp.float32)}
        super().__init__(in_features, hidden_features, **usual | options)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> Array:
        """h, zeros `[B, hidden]`; needs no random key."""
        del rngs, carry_init
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.param_dtype)
