"""The paper's baseline with a memory that is a list: LSTM with a soft-attention look-up table."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.cells._common import CellOutput, MemoryTrace, check_inputs, check_sizes, interaction_init
from mnm_jax.cells._lstm import LSTMCell

Array = jax.Array


class SALUCarry(NamedTuple):
    """controller: the LSTM's (c, h). read: v^r `[B, V]`. keys, values: `[B, N, K or V]`. count: `[B]` writes."""

    controller: tuple[Array, Array]
    read: Array
    keys: Array
    values: Array
    count: Array


class SALUCell(nnx.RNNCellBase):
    """LSTM-SALU: every step stores one key and value in a table of N slots and reads it by soft attention.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [k^w ; v^w ; k^r]_t = tanh(A h_t + a)
        slot (t mod N) <- (k^w_t, v^w_t)
        v^r_t = sum_n softmax_n(k^r_t . k_n / sqrt(K)) v_n   over the slots written so far
        y_t = [h_t ; v^r_t]

    A full table overwrites its oldest slot. The paper names the baseline and says no more: slots, scaling and order
    (read after the write, as in `MNMCell`) are our choice.

    Args:
      in_features: `D`. hidden_features: of the controller. key_size, value_size: `K`, `V`. slots: `N`.
      dtype: of parameters and carry.

    Raises:
      ValueError: for a size below 1, or inputs of another shape than `[B, D]`.

    Source: Munkhdalai et al., NeurIPS 2019, section 4.1 (baseline LSTM-SALU).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        key_size: int,
        value_size: int,
        slots: int,
        dtype: jnp.dtype = jnp.float32,
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
        self.dtype = dtype
        self.out_features = hidden_features + value_size
        self.controller = LSTMCell(in_features + value_size, hidden_features, param_dtype=dtype, rngs=rngs)
        interactions = 2 * key_size + value_size
        self.interaction = nnx.Linear(
            hidden_features, interactions, kernel_init=interaction_init, param_dtype=dtype, rngs=rngs
        )

    @property
    def num_feature_axes(self) -> int:
        return 1

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> SALUCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`: an empty table."""
        del rngs, carry_init
        batch = input_shape[0]
        return SALUCarry(
            self.controller.initialize_carry(input_shape),
            jnp.zeros((batch, self.value_size), self.dtype),
            jnp.zeros((batch, self.slots, self.key_size), self.dtype),
            jnp.zeros((batch, self.slots, self.value_size), self.dtype),
            jnp.zeros(batch, jnp.int32),
        )

    def __call__(self, carry: SALUCarry, inputs: Array) -> tuple[SALUCarry, CellOutput]:
        """One step: inputs `[B, D]`; the features put out are `[B, hidden + V]`."""
        check_inputs(inputs, self.in_features)
        controller, hidden = self.controller(carry.controller, jnp.concatenate([inputs, carry.read], -1))
        u = jnp.tanh(self.interaction(hidden))
        write_key, write_value, read_key = jnp.split(u, [self.key_size, self.key_size + self.value_size], axis=-1)

        slot = jnp.arange(self.slots, dtype=carry.count.dtype)[None]
        here = (slot == carry.count[:, None] % self.slots)[..., None]
        keys = jnp.where(here, write_key[:, None], carry.keys)
        values = jnp.where(here, write_value[:, None], carry.values)
        count = carry.count + 1

        scores = jnp.einsum("bk,bnk->bn", read_key, keys) / jnp.sqrt(jnp.asarray(self.key_size, self.dtype))
        attention = jax.nn.softmax(scores, where=slot < count[:, None], axis=-1)
        read = jnp.einsum("bn,bnv->bv", attention, values)

        features = jnp.concatenate([hidden, read], -1)
        one_head = lambda x: x[:, None]  # noqa: E731
        trace = MemoryTrace(
            one_head(write_key), one_head(write_value), one_head(read_key), one_head(read), jnp.ones_like(read[:, 0])
        )
        return SALUCarry(controller, read, keys, values, count), CellOutput(features, None, None, trace)
