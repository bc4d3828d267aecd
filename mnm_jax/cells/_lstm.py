"""The LSTM: the controller of the memory cells, and a baseline without memory."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes
from mnm_jax.cells._common import CarryRngs, orthogonal_init

Array = jax.Array


class LSTMCell(nnx.OptimizedLSTMCell):
    """flax's LSTM with a carry that starts at zero without a random key.

        [i ; f ; o]_t = sigmoid(A x_t + W h_{t-1} + a),      g_t = tanh(B x_t + U h_{t-1} + b)
        c_t = f_t o c_{t-1} + i_t o g_t,      h_t = o_t o tanh(c_t)

    Args:
      in_features: `D`.
      hidden_features: size of c and h.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      ValueError: for a size below 1.

    References:
      Hochreiter and Schmidhuber, Neural Computation 1997; forget gate: Gers et al., Neural Computation 2000.
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
    ) -> tuple[Array, Array]:
        """Returns the carry (c, h) at the start of a sequence: zeros `[B, hidden_features]`; needs no random key."""
        del rngs, carry_init
        zeros = jnp.zeros((*input_shape[:-1], self.hidden_features), self.dtype)
        return zeros, zeros
