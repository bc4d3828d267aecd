"""The neural Turing machine: an LSTM whose heads move over a memory of slots.

Shape letters: `B` examples, `D` input features, `H` heads of one kind, `R` read heads, `N` slots, `W` features of a
slot, `S` shifts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells import _addressing as addressing
from mnm_jax.cells._common import CellOutput, MemoryTrace
from mnm_jax.cells._reading import ReadingCell, join

Array = jax.Array

_EMPTY = 1e-6  # value of every slot at the start of a sequence


class NTMCarry(NamedTuple):
    """Carry of an `NTMCell`.

    Attributes:
      controller: the LSTM's (c, h).
      reads: r, `[B, R, W]`.
      memory: M, `[B, N, W]`.
      read_weights: w of the read heads, `[B, R, N]`.
      write_weights: w of the write heads, `[B, H, N]`.
    """

    controller: tuple[Array, Array]
    reads: Array
    memory: Array
    read_weights: Array
    write_weights: Array


class Focus(NamedTuple):
    """Parameters of the weightings of `H` heads.

    Attributes:
      key: k, `[B, H, W]`.
      strength: beta, `[B, H]`, above 0.
      gate: g, `[B, H]`, in [0, 1]: 1 selects by content, 0 keeps the last weighting.
      shifts: s, `[B, H, S]`, with sum 1.
      sharpness: gamma, `[B, H]`, above 1.
    """

    key: Array
    strength: Array
    gate: Array
    shifts: Array
    sharpness: Array


class NTMCell(ReadingCell):
    """An LSTM with read and write heads that select slots by content or relative to the slots selected before.

        h_t, c_t = LSTM([x_t ; r^1_{t-1} ; ... ; r^R_{t-1}], h_{t-1}, c_{t-1})
        [k ; beta ; g ; s ; gamma]_t of every head, and [e ; a]_t of every write head, from A h_t + a
        k, a by tanh, beta by softplus, g, e by sigmoid, s by softmax, gamma = 1 + softplus
        w_t = sharpen(shift(g C(M, k, beta) + (1 - g) w_{t-1}, s), gamma)
        M_t = M_{t-1} o prod_h (1 - w^h_t (x) e^h_t) + sum_h w^h_t (x) a^h_t
        r^i_t = M_t^T w^i_t
        y_t = [h_t ; r^1_t ; ... ; r^R_t]

    The paper does not state the order: here write heads compare their keys with M_{t-1}, and read heads compare theirs
    with M_t, since the read follows the write as in the other cells. The paper does not state the initial state either.
    As in Collier and Beel, slots start at 1e-6, the initial read vectors are learned, and k and a pass through a tanh.
    Head h starts at slot h; with learned initial weightings, as in Collier and Beel, training was no faster.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      slots: `N`.
      memory_features: `W`, features of a slot.
      read_heads: `R`.
      write_heads: number of write heads.
      max_shift: largest number of slots by which a head moves per step.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    References:
      Graves et al., 2014 (arXiv 1410.5401), section 3; Collier and Beel, 2018 (arXiv 1807.08518).
    """

    write_heads: int
    max_shift: int

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        slots: int,
        memory_features: int,
        read_heads: int = 1,
        write_heads: int = 1,
        max_shift: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self._build(
            dtype,
            param_dtype,
            rngs,
            init=nnx.initializers.lecun_normal(),  # with `interaction_init`, associative recall was learned more slowly
            in_features=in_features,
            hidden_features=hidden_features,
            slots=slots,
            memory_features=memory_features,
            read_heads=read_heads,
            write_heads=write_heads,
            max_shift=max_shift,
        )
        self.first_reads = nnx.Param(jnp.zeros((read_heads, memory_features), param_dtype))

    def _start(self, batch_size: int) -> NTMCarry:
        to_batch = lambda x: jnp.broadcast_to(x[None], (batch_size, *x.shape))  # noqa: E731
        # Each head starts at a different slot: with uniform weightings all slots would stay equal.
        at_slots = lambda heads: jnp.eye(self.slots, dtype=self.dtype)[np.arange(heads) % self.slots]  # noqa: E731
        return NTMCarry(
            controller=self.controller._start(batch_size),
            reads=to_batch(self.first_reads[...].astype(self.dtype)),
            memory=jnp.full((batch_size, self.slots, self.memory_features), _EMPTY, self.dtype),
            read_weights=to_batch(at_slots(self.read_heads)),
            write_weights=to_batch(at_slots(self.write_heads)),
        )

    def __call__(self, carry: NTMCarry, inputs: Array) -> tuple[NTMCarry, CellOutput]:
        """Returns the carry and the outputs, features `[B, hidden + R W]`, after one step with inputs `[B, D]`."""
        controller, hidden, interface = self._control(carry, NTMCarry, inputs)
        reading, writing, erase, add = self._split(interface)

        write_weights = point(carry.memory, carry.write_weights, writing)
        memory = addressing.write(carry.memory, write_weights, erase, add)
        read_weights = point(memory, carry.read_weights, reading)
        reads = addressing.read(memory, read_weights)

        trace = self._trace(writing.key, add, reading.key, reads)
        carry = NTMCarry(
            controller=controller, reads=reads, memory=memory, read_weights=read_weights, write_weights=write_weights
        )
        return carry, CellOutput(features=join(hidden, reads), meta_loss=None, write=None, trace=trace)

    def _focus_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of the fields of `Focus` per head, in their order."""
        return self.memory_features, 1, 1, 2 * self.max_shift + 1, 1

    def _interface_features(self) -> int:
        heads = self.read_heads + self.write_heads
        return heads * sum(self._focus_sizes()) + self.write_heads * 2 * self.memory_features

    def _split(self, interface: Array) -> tuple[Focus, Focus, Array, Array]:
        """Returns the read heads' focus, the write heads' focus, and erase and add vectors `[B, write_heads, W]`."""
        heads = self.read_heads + self.write_heads
        sizes = self._focus_sizes()
        focus_size = heads * sum(sizes)
        offsets = [focus_size, focus_size + self.write_heads * self.memory_features]
        raw, erase, add = jnp.split(interface, offsets, axis=-1)
        raw = raw.reshape(*raw.shape[:1], heads, sum(sizes))
        key, strength, gate, shifts, sharpness = jnp.split(raw, np.cumsum(sizes)[:-1].tolist(), axis=-1)
        focus = Focus(
            key=jnp.tanh(key),
            strength=jax.nn.softplus(strength[..., 0]),
            gate=jax.nn.sigmoid(gate[..., 0]),
            shifts=jax.nn.softmax(shifts, axis=-1),
            sharpness=1 + jax.nn.softplus(sharpness[..., 0]),
        )
        reading = jax.tree.map(lambda x: x[:, : self.read_heads], focus)
        writing = jax.tree.map(lambda x: x[:, self.read_heads :], focus)
        to_heads = lambda x: x.reshape(*x.shape[:1], self.write_heads, self.memory_features)  # noqa: E731
        return reading, writing, jax.nn.sigmoid(to_heads(erase)), jnp.tanh(to_heads(add))

    def _trace(self, write_keys: Array, add: Array, read_keys: Array, reads: Array) -> MemoryTrace:
        """Returns the trace with read and write heads in pairs; the heads of the smaller kind are repeated."""
        heads = np.arange(max(self.read_heads, self.write_heads))
        pair = lambda x: x[:, heads % x.shape[1]]  # noqa: E731
        return MemoryTrace(
            write_keys=pair(write_keys),
            write_values=pair(add),
            read_keys=pair(read_keys),
            read_values=pair(reads),
            rate=jnp.ones_like(reads[:, 0, 0]),
        )


def point(memory: Array, last: Array, focus: Focus) -> Array:
    """Returns the weightings `[B, H, N]` of heads whose last weightings are `last` (figure 2 of the paper)."""
    content = addressing.content_weighting(memory, focus.key, focus.strength)
    gated = addressing.interpolate(content, last, focus.gate)
    return addressing.sharpen(addressing.shift(gated, focus.shifts), focus.sharpness)
