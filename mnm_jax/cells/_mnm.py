"""The recurrent cell with a metalearned neural memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_array, check_choice, check_flags, check_sizes
from mnm_jax._params import ParamTree
from mnm_jax._precision import wide, wide_dtype
from mnm_jax.cells._common import (
    Cell,
    CellOutput,
    MemoryTrace,
    check_step,
    interaction_init,
    make_gates,
    split_gates,
)
from mnm_jax.cells._lstm import LSTMCell
from mnm_jax.memory import Memory, MemoryState
from mnm_jax.memory._memory import check_is_memory

Array = jax.Array

INTERACTIONS = ("tanh", "layer_norm")


class RecentWrites(NamedTuple):
    """The last tau - 1 writes, newest first, without those that were masked, forked or otherwise discarded.

    Attributes:
      keys: `[B, tau - 1, H, K]`.
      values: `[B, tau - 1, H, V]`.
      valid: `[B, tau - 1]`, 1 for a write of this sequence, else 0.
    """

    keys: Array
    values: Array
    valid: Array

    @property
    def of_memory(self) -> bool:
        """True: `reset_controller` and `fork_memory` of `unroll` treat these writes as they treat the memory."""
        return True


class MNMCarry(NamedTuple):
    """Carry of an `MNMCell`.

    Attributes:
      controller: the LSTM's (c, h).
      read: v^r, `[B, V]`.
      memory: phi, the fast weights.
      recent: the last writes, for a meta objective over several writes; None if it uses only the current write.
      keys: the write keys and then the read keys of the last step, `[B, 2 H, K]`; None without `follow_keys`.
    """

    controller: tuple[Array, Array]
    read: Array
    memory: MemoryState
    recent: RecentWrites | None
    keys: Array | None = None


class MNMCell(Cell):
    """A controller that writes to and reads from a neural memory at every step.

        h_t, c_t = LSTM([x_t ; v^r_{t-1}], h_{t-1}, c_{t-1})
        [u ; k^w ; v^w ; k^r]_t = tanh(A h_t + a),      beta_t = sigmoid(b . u_t + b_0)
        phi_t = Write(phi_{t-1}; k^w_t, v^w_t, beta_t)
        v^r_t = mean over heads of f(k^r_t; phi_t)
        y_t = [h_t ; v^r_t],  or C [h_t ; v^r_t] + d with `out_features`
        L^meta_t = mean over heads, features and the last tau writes s of (f(k^w_s; phi_t) - v^w_s)^2

    With `follow_keys` every write key and read key k can be that of the previous step, rotated. A cell can then step
    through keys in sequences longer than in training, as the heads of an NTM step through slots:

        k_t = g_t R k_{t-1} + (1 - g_t) k~_t,      g_t = sigmoid(e . u_t + e_0),      k_0 = 0

    k~_t is the key computed above. Every key has a gate g_t of its own. R is a learned rotation, one for all keys: it
    rotates the plane of the features j and j + K / 2 by (2 j - 1 + a_j) pi / K, for j = 1 .. K / 2, with learned a_j
    that are 0 at first. R keeps the length of a key, so k_t needs no further tanh. With a = 0, the keys k, R k, ..,
    R^{K-1} k are orthogonal if k is equally long in all planes.

    With `equal_keys` the rows of A for k^r start equal to those for k^w, so that reads find values written in a similar
    state from the start. Otherwise they start independent, and reads depend on the query only after the cell has
    learned to match its keys. Until then the read keys of all queries can become nearly equal, a plateau that some
    seeds do not leave (`docs/results/dictionary_equal_keys.md`).

    The memory starts every sequence from phi_0. Meta-training minimises the outer loss over a distribution of
    sequences, while phi is rewritten within each of them. The gradient of L^meta passes through v^w. The gradient rule
    takes k^w_t and v^w_t as constants when it differentiates its write loss.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      memory: from `gradient_memory` (MNM-g), `local_memory` (MNM-p) or another factory. Gates that its `WriteOptions`
        enable are computed from u_t, like beta_t. Its weights keep the memory's own `param_dtype`; use float32 weights
        in a cell whose `dtype` is bfloat16.
      heads: `H`, keys and values per step.
      out_features: size of a linear read-out; None returns `[h ; v^r]` without a read-out.
      meta_window: tau, number of writes in the meta objective; 1 uses only the current write.
      interaction: "tanh" (the paper) or "layer_norm", for keys and values.
      read_first: whether a step reads before its write; the default is to read after it, as in the paper.
      follow_keys: whether keys can be rotated keys of the previous step (not in the paper); needs an even `K`.
      equal_keys: whether read keys start equal to write keys. The paper does not give the initial values.
      dtype: dtype of the computation and of the carry except the memory's weights; None takes `param_dtype`.
      param_dtype: dtype of the parameters except the memory's.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, an unknown interaction, an odd `K` with `follow_keys`, inputs whose shape is not
        `[B, D]`, or a carry of another batch size.

    Examples:
      >>> from mnm_jax import local_memory, unroll
      >>> memory = local_memory(8, 8, hidden_sizes=(16,))
      >>> cell = MNMCell(5, 32, memory, heads=2, rngs=nnx.Rngs(0))
      >>> inputs = jnp.zeros((7, 3, 5))                                        # [T, B, D]
      >>> carry, outputs = unroll(cell, None, inputs)
      >>> print(outputs.features.shape, outputs.meta_loss.shape)               # [T, B, hidden + V], [T, B]
      (7, 3, 40) (7, 3)
      >>> print([weights.shape for weights in carry.memory.weights])           # phi_T of every example
      [(3, 8, 16), (3, 16, 8)]

    References:
      Munkhdalai et al., NeurIPS 2019, sections 3.1-3.4 and equation 5.
    """

    heads: int
    meta_window: int

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
        follow_keys: bool = False,
        equal_keys: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_is_memory(memory)
        check_choice("interaction", interaction, INTERACTIONS)
        check_flags(read_first=read_first, follow_keys=follow_keys, equal_keys=equal_keys)
        if follow_keys and memory.key_size % 2:
            raise ValueError(f"the memory's key_size must be even with follow_keys=True, got {memory.key_size}.")
        linear = self._set_up(
            dtype,
            param_dtype,
            rngs,
            in_features=in_features,
            hidden_features=hidden_features,
            heads=heads,
            meta_window=meta_window,
        )
        key_size, value_size = memory.key_size, memory.value_size
        joint = hidden_features + value_size
        self.out_features = joint if out_features is None else out_features
        check_sizes(out_features=self.out_features)
        self.read_first = read_first
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(memory.init(rngs.params()))
        self.controller = LSTMCell(
            in_features + value_size, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        interactions = key_size + heads * (2 * key_size + value_size)
        kernel_init = _equal_keys_init(heads, key_size, value_size) if equal_keys else interaction_init
        self.interaction = linear(hidden_features, interactions, kernel_init=kernel_init)
        self.rate = make_gates(linear, key_size, memory)
        norm = None
        if interaction == "layer_norm":
            norm = nnx.LayerNorm(interactions, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = nnx.data(norm)
        self.readout = nnx.data(None if out_features is None else linear(joint, out_features))
        angles: Any = None
        follow = None
        if follow_keys:
            angles = nnx.Param(jnp.zeros(key_size // 2, param_dtype))
            follow = linear(key_size, 2 * heads)
        self.angles, self.follow = nnx.data(angles), nnx.data(follow)

    def linear_maps(self) -> list[nnx.Linear]:
        """Returns the slow linear maps of every step, which lie outside of derivatives taken within a step."""
        maps = [self.controller.dense_i, self.controller.dense_h, self.interaction, self.rate]
        return maps + [linear for linear in (self.readout, self.follow) if linear is not None]

    def _start(self, batch_size: int) -> MNMCarry:
        key_size = self.memory.key_size
        recent = None
        if self.meta_window > 1:
            past = (batch_size, self.meta_window - 1)
            recent = RecentWrites(
                keys=jnp.zeros((*past, self.heads, key_size), self.dtype),
                values=jnp.zeros((*past, self.heads, self.memory.value_size), self.dtype),
                valid=jnp.zeros(past, self.dtype),
            )
        return MNMCarry(
            controller=self.controller._start(batch_size),
            read=jnp.zeros((batch_size, self.memory.value_size), self.dtype),
            memory=self.memory.start(self.memory_params.get_value(), batch_size),
            recent=recent,
            keys=None if self.follow is None else jnp.zeros((batch_size, 2 * self.heads, key_size), self.dtype),
        )

    def __call__(self, carry: MNMCarry, inputs: Array) -> tuple[MNMCarry, CellOutput]:
        """Returns the carry and the outputs, features `[B, out_features]`, after one step with inputs `[B, D]`."""
        inputs = check_step(self, carry, MNMCarry, inputs, apart=("memory",))
        params = self.memory_params.get_value()
        controller, hidden = self.controller(carry.controller, jnp.concatenate([inputs, carry.read], -1))
        write_keys, write_values, read_keys, rate, gates, keys = self._interact(hidden, carry.keys)

        if self.read_first:
            read_values = self.memory.read(params, carry.memory, read_keys)
            memory, info = self.memory.write(params, carry.memory, write_keys, write_values, rate, **gates)
        else:
            memory, info, read_values = self.memory.write_read(
                params, carry.memory, write_keys, write_values, rate, read_keys, **gates
            )
        read = jnp.mean(read_values, axis=1)

        features = jnp.concatenate([hidden, read], -1)
        if self.readout is not None:
            features = self.readout(features)
        recent, meta_loss = self._meta_loss(carry.recent, memory, write_keys, write_values, info.loss_after)
        trace = MemoryTrace(
            write_keys=write_keys, write_values=write_values, read_keys=read_keys, read_values=read_values, rate=rate
        )
        new = MNMCarry(controller=controller, read=read, memory=memory, recent=recent, keys=keys)
        return new, CellOutput(features=features, meta_loss=meta_loss, write=info, trace=trace)

    def _interact(self, hidden: Array, last: Any) -> tuple[Array, Array, Array, Array, dict[str, Array], Array | None]:
        """Returns k^w `[B, H, K]`, v^w `[B, H, V]`, k^r `[B, H, K]`, beta `[B]`, the other gates, and `MNMCarry.keys`.

        `last` are the keys of the previous step, `MNMCarry.keys`, which are checked here.
        """
        key_size, value_size = self.memory.key_size, self.memory.value_size
        u = self.interaction(hidden)
        u = jnp.tanh(u) if self.norm is None else self.norm(u)
        for_rate, vectors = jnp.split(u, [key_size], axis=-1)
        rate, gates = split_gates(self.memory, jax.nn.sigmoid(self.rate(for_rate)))
        vectors = vectors.reshape(-1, self.heads, 2 * key_size + value_size)
        write_keys, write_values, read_keys = jnp.split(vectors, [key_size, key_size + value_size], axis=-1)
        keys = None
        if self.follow is not None:
            check_array("carry.keys", last, "B N K", B=hidden.shape[0], N=2 * self.heads, K=key_size)
            followed = jax.nn.sigmoid(self.follow(for_rate))[..., None]
            keys = jnp.concatenate([write_keys, read_keys], 1)
            keys = followed * _rotate(last, self.angles.get_value()) + (1 - followed) * keys
            write_keys, read_keys = jnp.split(keys, 2, axis=1)
        return write_keys, write_values, read_keys, rate, gates, keys

    def _meta_loss(
        self, recent: RecentWrites | None, state: MemoryState, keys: Array, values: Array, current: Array
    ) -> tuple[RecentWrites | None, Array]:
        """Returns the window with this write added, and L^meta_t `[B]` over it and the writes of this sequence."""
        if recent is None:
            return None, current
        all_keys = recent.keys.reshape(keys.shape[0], (self.meta_window - 1) * self.heads, keys.shape[-1])
        answers = self.memory.read(self.memory_params.get_value(), state, all_keys).reshape(recent.values.shape)
        past = jnp.mean(jnp.square(wide(answers) - wide(recent.values)), axis=(2, 3))
        valid = wide(recent.valid)
        loss = (current + jnp.sum(valid * past, 1)) / (1 + jnp.sum(valid, 1))
        push = lambda new, old: jnp.concatenate([new[:, None], old[:, :-1]], 1)  # noqa: E731
        window = RecentWrites(
            keys=push(keys, recent.keys),
            values=push(values, recent.values),
            valid=push(jnp.ones_like(recent.valid[:, 0]), recent.valid),
        )
        return window, loss


def _equal_keys_init(heads: int, key_size: int, value_size: int) -> nnx.Initializer:
    """Returns `interaction_init` with the same numbers for the read key of each head as for its write key."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, *args: Any) -> Array:
        first, vectors = jnp.split(interaction_init(key, shape, dtype, *args), [key_size], axis=1)
        vectors = vectors.reshape(len(vectors), heads, 2 * key_size + value_size)
        vectors = vectors.at[..., -key_size:].set(vectors[..., :key_size])
        return jnp.concatenate([first, vectors.reshape(len(vectors), -1)], axis=1)

    return init


def _rotate(keys: Array, angles: Array) -> Array:
    """Returns R k for keys k `[B, N, K]` and the learned part a `[K / 2]` of the angles."""
    # Rounding cosine and sine to fewer bits would make every key longer, or shorter, step by step.
    dtype = wide_dtype(keys.dtype)
    # In the unit pi / K, an update of the optimiser moves the angles little, and keys stay nearly orthogonal.
    theta = np.pi / keys.shape[-1] * (2 * jnp.arange(len(angles), dtype=dtype) + 1 + angles.astype(dtype))
    cos, sin = (f(theta)[None, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(keys.astype(dtype), 2, axis=-1)
    return jnp.concatenate([cos * a - sin * b, sin * a + cos * b], -1).astype(keys.dtype)
