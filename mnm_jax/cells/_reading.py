"""The base of the cells with a table as their memory, whose controller receives the vectors read one step earlier."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells._common import Cell, check_step
from mnm_jax.cells._lstm import LSTMCell

Array = jax.Array


class ReadingCell(Cell):
    """A cell with a table of N slots. Its carry has the fields `controller` and `reads`, and its output is y_t.

        h_t, c_t = LSTM([x_t ; r_{t-1}], h_{t-1}, c_{t-1}),      y_t = [h_t ; r_t]

    Attributes:
      slots: `N`.
      memory_features: `W`, features of a slot.
      read_heads: `R`, so that r_t has `R W` features.
      controller: the LSTM.
      interface: the linear map from h_t to the vectors that address and write the table, before their activations.
    """

    slots: int
    memory_features: int
    read_heads: int

    def _build(
        self, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs, *, init: nnx.Initializer, **sizes: int
    ) -> None:
        """Checks and sets sizes and dtypes as `_set_up` does, and adds the controller and the interface."""
        linear = self._set_up(dtype, param_dtype, rngs, **sizes)
        reads = self.read_heads * self.memory_features
        self.out_features = self.hidden_features + reads
        self.controller = LSTMCell(
            self.in_features + reads, self.hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.interface = linear(self.hidden_features, self._interface_features(), kernel_init=init)

    def _interface_features(self) -> int:
        """Returns the number of outputs of the interface."""
        raise NotImplementedError

    def _control(self, carry: Any, kind: type, inputs: Array) -> tuple[tuple[Array, Array], Array, Array]:
        """Returns the controller's carry, h_t `[B, hidden]` and the interface's outputs, after the checks of a step."""
        inputs = check_step(self, carry, kind, inputs)
        controller, hidden = self.controller(carry.controller, join(inputs, carry.reads))
        return controller, hidden, self.interface(hidden)


def join(vector: Array, reads: Array) -> Array:
    """Returns a vector `[B, F]` followed by the vectors read, `[B, R, W]`: `[B, F + R W]`."""
    return jnp.concatenate([vector, reads.reshape(reads.shape[0], reads.shape[1] * reads.shape[2])], -1)
