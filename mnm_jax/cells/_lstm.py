"""The LSTM: the controller of the memory cells, and a baseline without memory."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells._common import Cell, check_step, orthogonal_init

Array = jax.Array


class LSTMCell(Cell):
    """A long short-term memory, with the parameters and results of flax's `OptimizedLSTMCell`.

        [i ; f ; o]_t = sigmoid(A x_t + W h_{t-1} + a),      g_t = tanh(B x_t + U h_{t-1} + b)
        c_t = f_t o c_{t-1} + i_t o g_t,      h_t = o_t o tanh(c_t)

    The carry is (c, h), zeros `[B, hidden_features]` at the start of a sequence; the output is h.

    Args:
      in_features: `D`.
      hidden_features: size of c and h.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

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
        linear = self._set_up(dtype, param_dtype, rngs, in_features=in_features, hidden_features=hidden_features)
        self.out_features = hidden_features
        self.dense_i = linear(in_features, 4 * hidden_features, use_bias=False)
        self.dense_h = linear(hidden_features, 4 * hidden_features, kernel_init=orthogonal_init)

    def _start(self, batch_size: int) -> tuple[Array, Array]:
        zeros = lambda: jnp.zeros((batch_size, self.hidden_features), self.dtype)  # noqa: E731
        return zeros(), zeros()

    def __call__(self, carry: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        """Returns the carry and the features h `[B, hidden]` after one step with inputs `[B, D]`."""
        inputs = check_step(self, carry, tuple, inputs)
        c, h = carry
        i, f, g, o = jnp.split(self.dense_i(inputs) + self.dense_h(h), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h
