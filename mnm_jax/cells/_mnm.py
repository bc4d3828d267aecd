"""The recurrent cell with a metalearned neural memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._params import ParamTree
from mnm_jax.cells._common import (
    CellOutput,
    MemoryTrace,
    check_inputs,
    check_sizes,
    interaction_init,
    make_gates,
    split_gates,
)
from mnm_jax.cells._lstm import LSTMCell
from mnm_jax.memory import Memory, MemoryState

Array = jax.Array

INTERACTIONS = ("tanh", "layer_norm")


class RecentWrites(NamedTuple):
    """The last tau - 1 writes, newest first.

    keys: `[B, tau-1, H, K]`. values: `[B, tau-1, H, V]`. valid: `[B, tau-1]`, 1 where there was a write, else 0.
    """

    keys: Array
    values: Array
    valid: Array


class MNMCarry(NamedTuple):
    """controller: the LSTM's (c, h). read: v^r `[B, V]`. memory: phi.

    recent: the writes kept for a meta objective over several writes, else None.
    """

    controller: tuple[Array, Array]
    read: Array
    memory: MemoryState
    recent: RecentWrites | None


class MNMCell(nnx.RNNCellBase):
    """A controller that writes to and reads from a neural memory at every step.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [u ; k^w ; v^w ; k^r]_t = tanh(A h_t + a),      beta_t = sigmoid(b . u_t + b_0)
        phi_t = Write(phi_{t-1}; k^w_t, v^w_t, beta_t)
        v^r_t = mean over heads of f(k^r_t; phi_t)
        y_t = [h_t ; v^r_t],  or C [h_t ; v^r_t] + d with `out_features`
        L^meta_t = mean over heads, features and the last tau writes s of (f(k^w_s; phi_t) - v^w_s)^2

    The memory starts every sequence from phi_0 (meta-training: the outer loss is minimised over a distribution of
    sequences, while phi is rebuilt within each). v^w is not detached from L^meta.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      memory: from `gradient_memory` (MNM-g), `local_memory` (MNM-p) or another of `mnm_jax`. Gates that its
        `WriteOptions` switch on are made of u_t as beta_t is.
      heads: `H`, keys and values per step.
      out_features: size of a linear read-out; None gives `[h ; v^r]` as it is.
      meta_window: tau, the number of writes that the meta objective asks for: 1 (default), the current one.
      interaction: "tanh" (the paper) or "layer_norm", for keys and values.
      read_first: read before the write of the same step; the default, and the paper, reads after it.
      dtype: of parameters and carry but the memory's. Give the memory the same, or a higher one: its weights are then
        kept in float32, say, while all products are in bfloat16.

    Raises:
      ValueError: for a size below 1, an unknown interaction, or inputs of another shape than `[B, D]`.

    Source: Munkhdalai et al., NeurIPS 2019, sections 3.1-3.4 and equation 5.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        memory: Memory,
        *,
        heads: int = 1,
        out_features: int | None = None,
        meta_window: int = 1,
        interaction: str = "tanh",
        read_first: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features, heads=heads, meta_window=meta_window)
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction must be one of {INTERACTIONS}, got {interaction=}.")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.heads = heads
        self.meta_window = meta_window
        self.read_first = read_first
        self.dtype = dtype
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(memory.init(rngs.params()))

        key_size, value_size = memory.key_size, memory.value_size
        joint = hidden_features + value_size
        self.out_features = joint if out_features is None else out_features
        self.controller = LSTMCell(in_features + value_size, hidden_features, param_dtype=dtype, rngs=rngs)
        interactions = key_size + heads * (2 * key_size + value_size)
        self.interaction = nnx.Linear(
            hidden_features, interactions, kernel_init=interaction_init, param_dtype=dtype, rngs=rngs
        )
        self.rate = make_gates(key_size, memory, dtype, rngs)
        layer_norm = interaction == "layer_norm"
        self.norm = nnx.data(nnx.LayerNorm(interactions, param_dtype=dtype, rngs=rngs) if layer_norm else None)
        check_sizes(out_features=self.out_features)
        linear = out_features is not None
        self.readout = nnx.data(nnx.Linear(joint, out_features, param_dtype=dtype, rngs=rngs) if linear else None)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def linear_maps(self) -> list[nnx.Linear]:
        """The maps that every step multiplies by, each outside of any derivative taken in the step itself."""
        maps = [self.controller.dense_i, self.controller.dense_h, self.interaction, self.rate]
        return maps if self.readout is None else [*maps, self.readout]

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> MNMCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        batch = input_shape[0]
        memory = self.memory
        recent = None
        if self.meta_window > 1:
            past = (batch, self.meta_window - 1)
            recent = RecentWrites(
                jnp.zeros((*past, self.heads, memory.key_size), self.dtype),
                jnp.zeros((*past, self.heads, memory.value_size), self.dtype),
                jnp.zeros(past, self.dtype),
            )
        return MNMCarry(
            controller=self.controller.initialize_carry(input_shape),
            read=jnp.zeros((batch, memory.value_size), self.dtype),
            memory=memory.start(self.memory_params.get_value(), batch),
            recent=recent,
        )

    def __call__(self, carry: MNMCarry, inputs: Array) -> tuple[MNMCarry, CellOutput]:
        """One step: inputs `[B, D]`; the features put out are `[B, out_features]`."""
        check_inputs(inputs, self.in_features)
        params = self.memory_params.get_value()
        controller, hidden = self.controller(carry.controller, jnp.concatenate([inputs, carry.read], -1))
        write_keys, write_values, read_keys, rate, gates = self._interact(hidden)

        if self.read_first:
            read_values = self.memory.read(params, carry.memory, read_keys)
            state, info = self.memory.write(params, carry.memory, write_keys, write_values, rate, **gates)
        else:
            state, info, read_values = self.memory.write_read(
                params, carry.memory, write_keys, write_values, rate, read_keys, **gates
            )
        read = jnp.mean(read_values, axis=1)

        features = jnp.concatenate([hidden, read], -1)
        if self.readout is not None:
            features = self.readout(features)
        recent, meta_loss = self._meta_loss(carry.recent, state, write_keys, write_values, info.loss_after)
        trace = MemoryTrace(write_keys, write_values, read_keys, read_values, rate)
        new_carry = MNMCarry(controller=controller, read=read, memory=state, recent=recent)
        return new_carry, CellOutput(features, meta_loss, info, trace)

    def _interact(self, hidden: Array) -> tuple[Array, Array, Array, Array, dict[str, Array]]:
        """k^w `[B, H, K]`, v^w `[B, H, V]`, k^r `[B, H, K]`, beta `[B]`, and the memory's other gates."""
        key_size, value_size = self.memory.key_size, self.memory.value_size
        u = self.interaction(hidden)
        u = jnp.tanh(u) if self.norm is None else self.norm(u)
        for_rate, vectors = jnp.split(u, [key_size], axis=-1)
        rate, gates = split_gates(self.memory, jax.nn.sigmoid(self.rate(for_rate)))
        vectors = vectors.reshape(-1, self.heads, 2 * key_size + value_size)
        write_keys, write_values, read_keys = jnp.split(vectors, [key_size, key_size + value_size], axis=-1)
        return write_keys, write_values, read_keys, rate, gates

    def _meta_loss(
        self, recent: RecentWrites | None, state: MemoryState, keys: Array, values: Array, current: Array
    ) -> tuple[RecentWrites | None, Array]:
        """The window moved on by this write, and L^meta_t `[B]` over it (a sequence's first writes have fewer)."""
        if recent is None:
            return None, current
        flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])  # noqa: E731
        answer = self.memory.read(self.memory_params.get_value(), state, flat(recent.keys)).reshape(recent.values.shape)
        past = jnp.mean(jnp.square(answer - recent.values), axis=(2, 3))
        loss = (current + jnp.sum(recent.valid * past, 1)) / (1 + jnp.sum(recent.valid, 1))
        push = lambda new, old: jnp.concatenate([new[:, None], old[:, :-1]], 1)  # noqa: E731
        valid = push(jnp.ones_like(recent.valid[:, 0]), recent.valid)
        return RecentWrites(push(keys, recent.keys), push(values, recent.values), valid), loss
