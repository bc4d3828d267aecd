"""The paper's baseline with a table as its memory: an LSTM with a soft-attention look-up table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes
from mnm_jax.cells._common import CarryRngs, Cell, CellOutput, MemoryTrace, cast_inputs, interaction_init
from mnm_jax.cells._lstm import LSTMCell

Array = jax.Array


class SALUCarry(NamedTuple):
    """Carry of a `SALUCell`.

    Attributes:
      controller: the LSTM's (c, h).
      read: v^r, `[B, V]`.
      keys: `[B, N, K]`.
      values: `[B, N, V]`.
      count: `[B]` int32, number of writes so far.
    """

    controller: tuple[Array, Array]
    read: Array
    keys: Array
    values: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count


class SALUCell(Cell):
    """LSTM-SALU: every step stores one key and value in a table of N slots and reads the table by soft attention.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [k^w ; v^w ; k^r]_t = tanh(A h_t + a)
        slot (t mod N) <- (k^w_t, v^w_t)
        v^r_t = sum_n softmax_n(k^r_t . k_n / sqrt(K)) v_n   over the slots written so far
        y_t = [h_t ; v^r_t]

    A full table overwrites its oldest slot. The paper does not state the equations of this baseline: slots, scaling and
    order (read after the write, as in `MNMCell`) are choices of this library.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      key_size: `K`.
      value_size: `V`.
      slots: `N`.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      ValueError: for a size below 1, or inputs whose shape is not `[B, D]`.

    References:
      Munkhdalai et al., NeurIPS 2019, section 4.1 (baseline LSTM-SALU).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        key_size: int,
        value_size: int,
        slots: int,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(
            in_features=in_features,
            hidden_features=hidden_features,
            key_size=key_size,
            value_size=value_size,
            slots=slots,
        )
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.key_size = key_size
        self.value_size = value_size
        self.slots = slots
        self.out_features = hidden_features + value_size
        self.dtype = param_dtype if dtype is None else dtype
        self.param_dtype = param_dtype
        self.controller = LSTMCell(
            in_features + value_size, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.interaction = nnx.Linear(
            hidden_features,
            2 * key_size + value_size,
            kernel_init=interaction_init,
            dtype=self.dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: CarryRngs = None, carry_init: nnx.Initializer | None = None
    ) -> SALUCarry:
        """Returns the carry at the start of sequences of inputs `input_shape = (B, D)`: an empty table."""
        del rngs, carry_init
        batch = input_shape[0]
        return SALUCarry(
            controller=self.controller.initialize_carry(input_shape),
            read=jnp.zeros((batch, self.value_size), self.dtype),
            keys=jnp.zeros((batch, self.slots, self.key_size), self.dtype),
            values=jnp.zeros((batch, self.slots, self.value_size), self.dtype),
            count=jnp.zeros(batch, jnp.int32),
        )

    def __call__(self, carry: SALUCarry, inputs: Array) -> tuple[SALUCarry, CellOutput]:
        """Returns the carry and the outputs, features `[B, hidden + V]`, after one step with inputs `[B, D]`."""
        inputs = cast_inputs(inputs, self.in_features, self.dtype)
        controller, hidden = self.controller(carry.controller, jnp.concatenate([inputs, carry.read], -1))
        u = jnp.tanh(self.interaction(hidden))
        write_key, write_value, read_key = jnp.split(u, [self.key_size, self.key_size + self.value_size], axis=-1)

        slot = jnp.arange(self.slots, dtype=carry.count.dtype)[None]
        written_now = (slot == carry.count[:, None] % self.slots)[..., None]
        keys = jnp.where(written_now, write_key[:, None], carry.keys)
        values = jnp.where(written_now, write_value[:, None], carry.values)
        count = carry.count + 1

        scores = jnp.einsum("bk,bnk->bn", read_key, keys) / jnp.sqrt(jnp.asarray(self.key_size, self.dtype))
        attention = jax.nn.softmax(scores, where=slot < count[:, None], axis=-1)
        read = jnp.einsum("bn,bnv->bv", attention, values)

        trace = MemoryTrace(
            write_keys=write_key[:, None],
            write_values=write_value[:, None],
            read_keys=read_key[:, None],
            read_values=read[:, None],
            rate=jnp.ones_like(read[:, 0]),
        )
        carry = SALUCarry(controller=controller, read=read, keys=keys, values=values, count=count)
        features = jnp.concatenate([hidden, read], -1)
        return carry, CellOutput(features=features, meta_loss=None, write=None, trace=trace)
