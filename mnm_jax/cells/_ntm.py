"""The neural Turing machine: an LSTM whose heads move over a memory of slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.cells import _addressing as addressing
from mnm_jax.cells._common import CellOutput, MemoryTrace, check_inputs, check_sizes
from mnm_jax.cells._lstm import LSTMCell

Array = jax.Array

# What every slot holds when a sequence begins.
_EMPTY = 1e-6


class NTMCarry(NamedTuple):
    """controller: the LSTM's (c, h). reads: r `[B, R, W]`. memory: M `[B, N, W]`.

    read_weights, write_weights: w `[B, H, N]` of every read head and of every write head.
    """

    controller: tuple[Array, Array]
    reads: Array
    memory: Array
    read_weights: Array
    write_weights: Array


class Focus(NamedTuple):
    """Where heads are to point.

    key: k `[B, H, W]`. strength: beta `[B, H]`, above 0. gate: g `[B, H]`: 1 goes by content, 0 stays.
    shifts: s `[B, H, S]`, of sum 1. sharpness: gamma `[B, H]`, above 1.
    """

    key: Array
    strength: Array
    gate: Array
    shifts: Array
    sharpness: Array


class NTMCell(nnx.RNNCellBase):
    """An LSTM with read and write heads that find slots by content, or by moving on from where they are.

        h_t, c_t = LSTM([x_t ; r^1_{t-1} ; ... ; r^R_{t-1}], h_{t-1}, c_{t-1})
        [k ; beta ; g ; s ; gamma]_t of every head, and [e ; a]_t of every write head, from A h_t + a
        k, a by tanh, beta by softplus, g, e by sigmoid, s by softmax, gamma = 1 + softplus
        w_t = sharpen(shift(g C(M, k, beta) + (1 - g) w_{t-1}, s), gamma)
        M_t = M_{t-1} o prod_h (1 - w^h_t (x) e^h_t) + sum_h w^h_t (x) a^h_t
        r^i_t = M_t^T w^i_t
        y_t = [h_t ; r^1_t ; ... ; r^R_t]

    The paper leaves the order open: here write heads look at M_{t-1} and read heads at M_t, read after write as in the
    other cells. It leaves the beginning open, too: slots hold 1e-6 (the best start in Collier and Beel) and the first
    read vectors are learned, as theirs; head h starts at slot h (learned weightings, theirs, learned no faster). tanh
    for k and a is theirs as well.

    Args:
      in_features: `D`. hidden_features: of the controller. slots: `N`. slot_features: `W`.
      read_heads: `R`. write_heads: of their own number. max_shift: a step moves a head by as many slots at most.
      dtype: of parameters and carry.

    Raises:
      ValueError: for a size below 1, or inputs of another shape than `[B, D]`.

    Source: Graves et al., 2014 (arXiv 1410.5401), section 3; Collier and Beel, 2018 (arXiv 1807.08518).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        slots: int,
        slot_features: int,
        read_heads: int = 1,
        write_heads: int = 1,
        max_shift: int = 1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(
            in_features=in_features,
            hidden_features=hidden_features,
            slots=slots,
            slot_features=slot_features,
            read_heads=read_heads,
            write_heads=write_heads,
            max_shift=max_shift,
        )
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.slots = slots
        self.slot_features = slot_features
        self.read_heads = read_heads
        self.write_heads = write_heads
        self.max_shift = max_shift
        self.dtype = dtype
        reads = read_heads * slot_features
        self.out_features = hidden_features + reads
        self.controller = LSTMCell(in_features + reads, hidden_features, param_dtype=dtype, rngs=rngs)
        # Without the gain that the other cells start with: associative recall was learned more slowly with it.
        interface = (read_heads + write_heads) * sum(self._sizes()) + write_heads * 2 * slot_features
        self.interface = nnx.Linear(hidden_features, interface, param_dtype=dtype, rngs=rngs)
        self.first_reads = nnx.Param(jnp.zeros((read_heads, slot_features), dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> NTMCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        to_batch = lambda x: jnp.broadcast_to(x[None], (input_shape[0], *x.shape))  # noqa: E731
        # Heads at one slot each: from equal weightings all slots would stay alike for ever.
        at_slots = lambda heads: jnp.eye(self.slots, dtype=self.dtype)[np.arange(heads) % self.slots]  # noqa: E731
        return NTMCarry(
            self.controller.initialize_carry(input_shape),
            to_batch(self.first_reads[...]),
            jnp.full((input_shape[0], self.slots, self.slot_features), _EMPTY, self.dtype),
            to_batch(at_slots(self.read_heads)),
            to_batch(at_slots(self.write_heads)),
        )

    def __call__(self, carry: NTMCarry, inputs: Array) -> tuple[NTMCarry, CellOutput]:
        """One step: inputs `[B, D]`; the features put out are `[B, hidden + R W]`."""
        check_inputs(inputs, self.in_features)
        last = carry.reads.reshape(inputs.shape[0], -1)
        controller, hidden = self.controller(carry.controller, jnp.concatenate([inputs, last], -1))
        reading, writing, erase, add = self._interact(hidden)

        write_weights = point(carry.memory, carry.write_weights, writing)
        memory = addressing.write(carry.memory, write_weights, erase, add)
        read_weights = point(memory, carry.read_weights, reading)
        reads = addressing.read(memory, read_weights)

        features = jnp.concatenate([hidden, reads.reshape(inputs.shape[0], -1)], -1)
        trace = self._trace(writing.key, add, reading.key, reads)
        return NTMCarry(controller, reads, memory, read_weights, write_weights), CellOutput(features, None, None, trace)

    def _sizes(self) -> tuple[int, ...]:
        """Of the parts of a head's focus, in their order."""
        return self.slot_features, 1, 1, 2 * self.max_shift + 1, 1

    def _interact(self, hidden: Array) -> tuple[Focus, Focus, Array, Array]:
        """Focus of the read heads and of the write heads, erase and add vectors `[B, write_heads, W]`."""
        heads = self.read_heads + self.write_heads
        until = heads * sum(self._sizes())
        middle = until + self.write_heads * self.slot_features
        focus, erase, add = jnp.split(self.interface(hidden), [until, middle], axis=-1)
        focus = focus.reshape(-1, heads, sum(self._sizes()))
        raw = Focus(*jnp.split(focus, np.cumsum(self._sizes())[:-1].tolist(), axis=-1))
        focus = Focus(
            jnp.tanh(raw.key),
            jax.nn.softplus(raw.strength[..., 0]),
            jax.nn.sigmoid(raw.gate[..., 0]),
            jax.nn.softmax(raw.shifts, axis=-1),
            1 + jax.nn.softplus(raw.sharpness[..., 0]),
        )
        reading = jax.tree.map(lambda x: x[:, : self.read_heads], focus)
        writing = jax.tree.map(lambda x: x[:, self.read_heads :], focus)
        to_heads = lambda x: x.reshape(-1, self.write_heads, self.slot_features)  # noqa: E731
        return reading, writing, jax.nn.sigmoid(to_heads(erase)), jnp.tanh(to_heads(add))

    def _trace(self, write_keys: Array, add: Array, read_keys: Array, reads: Array) -> MemoryTrace:
        """Read and write heads in pairs; of the fewer, the first ones come again."""
        heads = np.arange(max(self.read_heads, self.write_heads))
        pair = lambda x: x[:, heads % x.shape[1]]  # noqa: E731
        return MemoryTrace(pair(write_keys), pair(add), pair(read_keys), pair(reads), jnp.ones_like(reads[:, 0, 0]))


def point(memory: Array, last: Array, focus: Focus) -> Array:
    """The weightings `[B, H, N]` of heads that were at `last` (figure 2 of the paper)."""
    content = addressing.content_weighting(memory, focus.key, focus.strength)
    gated = addressing.interpolate(content, last, focus.gate)
    return addressing.sharpen(addressing.shift(gated, focus.shifts), focus.sharpness)
