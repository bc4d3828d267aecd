"""The plain recurrent network, a baseline."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells._common import ARRAY, Cell, check_step, orthogonal_init

Array = jax.Array


class RNNCell(Cell):
    """A simple recurrent network, with the parameters and results of flax's `SimpleCell`.

        h_t = tanh(A x_t + a + W h_{t-1})

    The carry and the output are h, zeros `[B, hidden_features]` at the start of a sequence.

    Args:
      in_features: `D`.
      hidden_features: size of h.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

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
        linear = self._set_up(dtype, param_dtype, rngs, in_features=in_features, hidden_features=hidden_features)
        self.out_features = hidden_features
        self.dense_h = linear(hidden_features, hidden_features, use_bias=False, kernel_init=orthogonal_init)
        self.dense_i = linear(in_features, hidden_features)

    def _start(self, batch_size: int) -> Array:
        return jnp.zeros((batch_size, self.hidden_features), self.dtype)

    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """Returns the carry and the features h `[B, hidden]` after one step with inputs `[B, D]`."""
        inputs = check_step(self, carry, ARRAY, inputs)
        hidden = jnp.tanh(self.dense_i(inputs) + self.dense_h(carry))
        return hidden, hidden
