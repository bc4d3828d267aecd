"""The differentiable neural computer: an LSTM with a memory that allocates slots and records their order.

Shape letters: `B` examples, `D` input features, `R` read heads, `N` slots, `W` features of a slot.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax.cells import _addressing as addressing
from mnm_jax.cells._common import CellOutput, MemoryTrace, interaction_init
from mnm_jax.cells._reading import ReadingCell, join

Array = jax.Array


class DNCMemory(NamedTuple):
    """State of the memory of a `DNCCell`.

    Attributes:
      matrix: M, `[B, N, W]`.
      usage: u, `[B, N]`.
      link: L, `[B, N, N]`.
      precedence: p, `[B, N]`.
      write_weights: w^w, `[B, N]`.
      read_weights: w^r, `[B, R, N]`.
    """

    matrix: Array
    usage: Array
    link: Array
    precedence: Array
    write_weights: Array
    read_weights: Array


class DNCInterface(NamedTuple):
    """The parts of the interface vector xi, in the paper's order.

    Attributes:
      read_keys: k^r, `[B, R, W]`.
      read_strengths: beta^r, `[B, R]`, at least 1.
      write_key: k^w, `[B, W]`.
      write_strength: beta^w, `[B]`, at least 1.
      erase: e, `[B, W]`, in [0, 1].
      write_vector: v, `[B, W]`.
      free_gates: f, `[B, R]`, in [0, 1].
      allocation_gate: g^a, `[B]`, in [0, 1].
      write_gate: g^w, `[B]`, in [0, 1].
      read_modes: pi, `[B, R, 3]` with sum 1: backward, content, forward.
    """

    read_keys: Array
    read_strengths: Array
    write_key: Array
    write_strength: Array
    erase: Array
    write_vector: Array
    free_gates: Array
    allocation_gate: Array
    write_gate: Array
    read_modes: Array


class DNCCarry(NamedTuple):
    """Carry of a `DNCCell`.

    Attributes:
      controller: the LSTM's (c, h).
      reads: r, `[B, R, W]`.
      memory: state of the memory.
    """

    controller: tuple[Array, Array]
    reads: Array
    memory: DNCMemory


class DNCCell(ReadingCell):
    """An LSTM that writes to free or similar slots, and reads by content or in the order of the writes.

        h_t, c_t = LSTM([x_t ; r^1_{t-1} ; ... ; r^R_{t-1}], h_{t-1}, c_{t-1}),      xi_t = A h_t + a
        psi_t = prod_i (1 - f^i_t w^{r,i}_{t-1}),      u_t = (u_{t-1} + w^w_{t-1} - u_{t-1} o w^w_{t-1}) o psi_t
        w^w_t = g^w_t (g^a_t a(u_t) + (1 - g^a_t) C(M_{t-1}, k^w_t, beta^w_t))
        M_t = M_{t-1} o (1 - w^w_t (x) e_t) + w^w_t (x) v_t
        L_t, p_t from L_{t-1}, p_{t-1}, w^w_t
        w^{r,i}_t = pi^i[1] L_t^T w^{r,i}_{t-1} + pi^i[2] C(M_t, k^{r,i}_t, beta^{r,i}_t) + pi^i[3] L_t w^{r,i}_{t-1}
        r^i_t = M_t^T w^{r,i}_t
        y_t = [h_t ; r^1_t ; ... ; r^R_t]

    The controller has one layer. The next layer of the model computes the paper's output W_y h_t + W_r r_t. A sequence
    starts from zeros. The time per step, and the memory per step of the backward pass, grow with N^2.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      slots: `N`.
      memory_features: `W`, features of a slot.
      read_heads: `R`.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    References:
      Graves et al., Nature 2016, Methods.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        slots: int,
        memory_features: int,
        read_heads: int = 1,
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
            read_heads=read_heads,
        )

    def _start(self, batch_size: int) -> DNCCarry:
        zeros = lambda *shape: jnp.zeros((batch_size, *shape), self.dtype)  # noqa: E731
        memory = DNCMemory(
            matrix=zeros(self.slots, self.memory_features),
            usage=zeros(self.slots),
            link=zeros(self.slots, self.slots),
            precedence=zeros(self.slots),
            write_weights=zeros(self.slots),
            read_weights=zeros(self.read_heads, self.slots),
        )
        reads = zeros(self.read_heads, self.memory_features)
        return DNCCarry(controller=self.controller._start(batch_size), reads=reads, memory=memory)

    def __call__(self, carry: DNCCarry, inputs: Array) -> tuple[DNCCarry, CellOutput]:
        """Returns the carry and the outputs, features `[B, hidden + R W]`, after one step with inputs `[B, D]`."""
        controller, hidden, xi = self._control(carry, DNCCarry, inputs)
        interface = self._split(xi)
        memory, reads = access(carry.memory, interface)
        to_heads = lambda x: jnp.broadcast_to(x[:, None], reads.shape)  # noqa: E731
        trace = MemoryTrace(
            write_keys=to_heads(interface.write_key),
            write_values=to_heads(interface.write_vector),
            read_keys=interface.read_keys,
            read_values=reads,
            rate=interface.write_gate,
        )
        carry = DNCCarry(controller=controller, reads=reads, memory=memory)
        return carry, CellOutput(features=join(hidden, reads), meta_loss=None, write=None, trace=trace)

    def _interface_features(self) -> int:
        return sum(self._interface_sizes())

    def _interface_sizes(self) -> tuple[int, ...]:
        """Returns the sizes of the fields of `DNCInterface`, in their order."""
        w, r = self.memory_features, self.read_heads
        return r * w, r, w, 1, w, w, r, 1, 1, 3 * r

    def _split(self, interface: Array) -> DNCInterface:
        """Returns the parts of xi_t, each mapped into its range."""
        offsets = np.cumsum(self._interface_sizes())[:-1].tolist()
        xi = DNCInterface._make(jnp.split(interface, offsets, axis=-1))
        to_heads = lambda x: x.reshape(*x.shape[:1], self.read_heads, x.shape[1] // self.read_heads)  # noqa: E731
        one_plus = lambda x: 1 + jax.nn.softplus(x)  # noqa: E731
        return DNCInterface(
            read_keys=to_heads(xi.read_keys),
            read_strengths=one_plus(xi.read_strengths),
            write_key=xi.write_key,
            write_strength=one_plus(xi.write_strength[:, 0]),
            erase=jax.nn.sigmoid(xi.erase),
            write_vector=xi.write_vector,
            free_gates=jax.nn.sigmoid(xi.free_gates),
            allocation_gate=jax.nn.sigmoid(xi.allocation_gate[:, 0]),
            write_gate=jax.nn.sigmoid(xi.write_gate[:, 0]),
            read_modes=jax.nn.softmax(to_heads(xi.read_modes), axis=-1),
        )


def access(memory: DNCMemory, xi: DNCInterface) -> tuple[DNCMemory, Array]:
    """Writes and then reads; returns the new memory and the read vectors `[B, R, W]`."""
    retained = addressing.retention(xi.free_gates, memory.read_weights)
    used = addressing.usage(memory.usage, memory.write_weights, retained)
    content = addressing.content_weighting(memory.matrix, xi.write_key[:, None], xi.write_strength[:, None])[:, 0]
    allocated = addressing.allocation(used)
    write_weights = addressing.write_weighting(content, allocated, xi.allocation_gate, xi.write_gate)
    matrix = addressing.write(memory.matrix, write_weights[:, None], xi.erase[:, None], xi.write_vector[:, None])

    links = addressing.link(memory.link, write_weights, memory.precedence)
    precedence = addressing.precedence(memory.precedence, write_weights)
    forward, backward = addressing.follow(links, memory.read_weights)
    content = addressing.content_weighting(matrix, xi.read_keys, xi.read_strengths)
    read_weights = addressing.read_weighting(backward, content, forward, xi.read_modes)
    memory = DNCMemory(
        matrix=matrix,
        usage=used,
        link=links,
        precedence=precedence,
        write_weights=write_weights,
        read_weights=read_weights,
    )
    return memory, addressing.read(matrix, read_weights)
