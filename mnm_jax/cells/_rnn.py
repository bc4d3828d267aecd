"""The plain recurrent network, a baseline."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes
from mnm_jax.cells._common import CarryRngs, orthogonal_init

Array = jax.Array


class RNNCell(nnx.SimpleCell):
    """flax's simple recurrent cell with a carry that starts at zero without a random key.

        h_t = tanh(A x_t + a + W h_{t-1})

    Args:
      in_features: `D`.
      hidden_features: size of h.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      ValueError: for a size below 1.

    References:
      Elman, Cognitive Science 1990.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features)
        super().__init__(
            in_features,
            hidden_features,
            recurrent_kernel_init=orthogonal_init,
            dtype=param_dtype if dtype is None else dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.out_features = hidden_features

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: CarryRngs = None, carry_init: nnx.Initializer | None = None
    ) -> Array:
        """Returns the carry h at the start of a sequence: zeros `[B, hidden_features]`; needs no random key."""
        del rngs, carry_init
        return jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)
