"""The paper's baseline with a table as its memory: an LSTM with a soft-attention look-up table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells._common import CellOutput, MemoryTrace, interaction_init
from mnm_jax.cells._reading import ReadingCell, join

Array = jax.Array


class SALUCarry(NamedTuple):
    """Carry of a `SALUCell`.

    Attributes:
      controller: the LSTM's (c, h).
      reads: v^r, `[B, 1, W]`.
      keys: `[B, N, W]`.
      values: `[B, N, W]`.
      count: `[B]` int32, number of writes so far.
    """

    controller: tuple[Array, Array]
    reads: Array
    keys: Array
    values: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count


class SALUCell(ReadingCell):
    """LSTM-SALU: every step stores one key and value in a table of N slots and reads the table by soft attention.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [k^w ; v^w ; k^r]_t = tanh(A h_t + a)
        slot (t mod N) <- (k^w_t, v^w_t)
        v^r_t = sum_n softmax_n(k^r_t . k_n / sqrt(W)) v_n   over the slots written so far
        y_t = [h_t ; v^r_t]

    A full table overwrites its oldest slot. The paper does not state the equations of this baseline: slots, scaling and
    order (read after the write, as in `MNMCell`) are choices of this library.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      slots: `N`.
      memory_features: `W`, features of a key and of a value.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    References:
      Munkhdalai et al., NeurIPS 2019, section 4.1 (baseline LSTM-SALU).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        slots: int,
        memory_features: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self._build(
            dtype,
            param_dtype,
            rngs,
            init=interaction_init,
            in_features=in_features,
            hidden_features=hidden_features,
            slots=slots,
            memory_features=memory_features,
            read_heads=1,
        )

    def _interface_features(self) -> int:
        return 3 * self.memory_features

    def _start(self, batch_size: int) -> SALUCarry:
        zeros = lambda rows: jnp.zeros((batch_size, rows, self.memory_features), self.dtype)  # noqa: E731
        return SALUCarry(
            controller=self.controller._start(batch_size),
            reads=zeros(1),
            keys=zeros(self.slots),
            values=zeros(self.slots),
            count=jnp.zeros(batch_size, jnp.int32),
        )

    def __call__(self, carry: SALUCarry, inputs: Array) -> tuple[SALUCarry, CellOutput]:
        """Returns the carry and the outputs, features `[B, hidden + W]`, after one step with inputs `[B, D]`."""
        controller, hidden, interface = self._control(carry, SALUCarry, inputs)
        write_key, write_value, read_key = jnp.split(jnp.tanh(interface)[:, None], 3, axis=-1)

        slot = jnp.arange(self.slots, dtype=carry.count.dtype)[None]
        written_now = (slot == carry.count[:, None] % self.slots)[..., None]
        keys = jnp.where(written_now, write_key, carry.keys)
        values = jnp.where(written_now, write_value, carry.values)
        count = carry.count + 1

        scores = jnp.einsum("brk,bnk->brn", read_key, keys) / jnp.sqrt(jnp.asarray(self.memory_features, self.dtype))
        attention = jax.nn.softmax(scores, where=(slot < count[:, None])[:, None], axis=-1)
        reads = jnp.einsum("brn,bnv->brv", attention, values)

        trace = MemoryTrace(
            write_keys=write_key,
            write_values=write_value,
            read_keys=read_key,
            read_values=reads,
            rate=jnp.ones_like(reads[:, 0, 0]),
        )
        carry = SALUCarry(controller=controller, reads=reads, keys=keys, values=values, count=count)
        return carry, CellOutput(features=join(hidden, reads), meta_loss=None, write=None, trace=trace)
