"""A memory cell that chains several reads: each answer of the memory can become part of the next key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._params import ParamTree, set_bias
from mnm_jax.cells._common import Cell, CellOutput, MemoryTrace, check_step, make_gates, split_gates
from mnm_jax.cells._lstm import LSTMCell
from mnm_jax.memory import Memory, MemoryState
from mnm_jax.memory._memory import check_is_memory

Array = jax.Array

# Initial values that make chains of look-ups work before training; see the cell's docstring.
_RELATION = 0.7  # every relation feature: facts and questions then start with equal relations
_FOUND = 0.7  # share of the first hop's answer in a write key
_GATE_SCALE = 0.3  # factor on the gates' kernel, whose scale is 1 / sqrt(fan in) otherwise


class ChainCarry(NamedTuple):
    """Carry of a `ChainCell`.

    Attributes:
      controller: the LSTM's (c, h).
      memory: phi, the fast weights.
    """

    controller: tuple[Array, Array]
    memory: MemoryState


class ChainCell(Cell):
    """A controller that follows a chain of reads at every step and writes a combination of entities and answers.

    The last `P V` features of the inputs are the codes of the step's `P` entities, such as words selected from a
    sentence. The same code serves as part of a key, as a value and as an answer, so that an answer can be part of the
    next key:

        h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1}),   s_t = [x_t ; h_t],   m_t = tanh(A s_t + a)
        e_p = norm(code p of x_t)                                                         p = 1 ... P
        q_n = d_n (x) tanh(C_n m_t + c_n)       d_1 = [e_1 ... e_H],  d_n = G_n(m_t) [e ; r_1 ; ... ; r_{n-1}]
        r_n = norm(f(q_n; phi_{t-1}))                                                     n = 1 ... N
        k^w_t = G_k(m_t) [e ; r_1 ; ... ; r_N] (x) tanh(C_w m_t + c_w),   v^w_t = G_v(m_t) [e ; r_1 ; ... ; r_N]
        beta_t = sigmoid(b . [m_t ; r_1 ; ... ; r_N] + b_0)
        phi_t = Write(phi_{t-1}; k^w_t, v^w_t, beta_t),   y_t = [s_t ; r_1 ; ... ; r_N]
        L^meta_t = mean over heads and features of (f(k^w_t; phi_t) - v^w_t)^2

    (x) is the outer product of an entity `[V]` and a relation `[R]`, so that `K = V R`. G are matrices of gates, linear
    in m_t, with one gate per head and entity or answer; norm normalises to mean zero and variance one. `MNMCell`, as in
    the paper, reads once, after the write, and its controller receives the answer one step later, so that it needs one
    step per hop of a question.

    Before training, the gates of each hop select the answer of the previous hop, the heads of a pair write each other's
    entities (key: the head's own entity, value: the other's), write keys contain the answer of the first hop, and all
    relations are equal. Chains of look-ups therefore work before the first update, and the gradient of each part passes
    through the others.

    Args:
      in_features: `D >= P V`.
      hidden_features: of the controller, and of m.
      memory: from `gradient_memory` or `local_memory`; its key size is a multiple `R` of its value size.
      entities: `P`.
      heads: `H <= P`, parallel reads per hop, and keys and values written per step; 2 by default, a pair.
      hops: `N`, successive reads per step.
      dtype: dtype of the computation and of the carry except the memory's weights; None takes `param_dtype`.
      param_dtype: dtype of the parameters except the memory's.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size out of range, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    Examples:
      >>> from mnm_jax import local_memory, unroll
      >>> memory = local_memory(16, 4, hidden_sizes=())                        # V = 4, R = 16 / 4
      >>> cell = ChainCell(10, 8, memory, entities=2, heads=2, hops=3, rngs=nnx.Rngs(0))
      >>> inputs = jnp.zeros((7, 5, 10))                                       # [T, B, D], two codes of 4 at the end
      >>> carry, outputs = unroll(cell, None, inputs)
      >>> print(outputs.features.shape)                                        # [T, B, D + hidden + N H V]
      (7, 5, 42)

    References:
      Memory: Munkhdalai et al., NeurIPS 2019. Keys of entity and relation, and chained reads with normalised answers,
      as in TPR-RNN: Schlag and Schmidhuber, NeurIPS 2018.
    """

    read_first = True  # every step reads before its write
    entities: int
    heads: int
    hops: int

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        memory: Memory,
        *,
        entities: int,
        heads: int = 2,
        hops: int = 3,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_is_memory(memory)
        linear = self._set_up(
            dtype,
            param_dtype,
            rngs,
            in_features=in_features,
            hidden_features=hidden_features,
            entities=entities,
            heads=heads,
            hops=hops,
        )
        key_size, value_size = memory.key_size, memory.value_size
        if key_size % value_size:
            raise ValueError(f"key_size must be a multiple of value_size, got {key_size=}, {value_size=}.")
        if heads > entities:
            raise ValueError(f"heads must be <= entities, got {heads=}, {entities=}.")
        if entities * value_size > in_features:
            raise ValueError(
                f"in_features must be >= entities * value_size = {entities * value_size}, the codes, got {in_features}."
            )
        self.relation_features = key_size // value_size
        self.out_features = in_features + hidden_features + hops * heads * value_size
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(memory.init(rngs.params()))
        first_gates = _first_gates(entities, heads, hops)
        relations = (hops + 1) * heads * self.relation_features
        self.controller = LSTMCell(in_features, hidden_features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.hidden = linear(in_features + hidden_features, hidden_features)
        self.relations = linear(hidden_features, relations)
        set_bias(self.relations, jnp.full(relations, _RELATION, param_dtype))
        self.gates = linear(hidden_features, first_gates.size)
        self.gates.kernel[...] *= _GATE_SCALE
        set_bias(self.gates, jnp.asarray(first_gates.ravel(), param_dtype))
        self.rate = make_gates(linear, hidden_features + hops * heads * value_size, memory)

    def linear_maps(self) -> list[nnx.Linear]:
        """Returns the slow linear maps of every step, which lie outside of derivatives taken within a step."""
        lstm = self.controller
        return [lstm.dense_i, lstm.dense_h, self.hidden, self.relations, self.gates, self.rate]

    def _start(self, batch_size: int) -> ChainCarry:
        memory = self.memory.start(self.memory_params.get_value(), batch_size)
        return ChainCarry(controller=self.controller._start(batch_size), memory=memory)

    def __call__(self, carry: ChainCarry, inputs: Array) -> tuple[ChainCarry, CellOutput]:
        """Returns the carry and the outputs after one step with inputs `[B, D]`; features `[B, D + hidden + N H V]`."""
        inputs = check_step(self, carry, ChainCarry, inputs, apart=("memory",))
        params, memory, heads, hops = self.memory_params.get_value(), self.memory, self.heads, self.hops
        controller, hidden = self.controller(carry.controller, inputs)
        m = jnp.tanh(self.hidden(jnp.concatenate([inputs, hidden], -1)))
        relations = jnp.tanh(self.relations(m)).reshape(-1, hops + 1, heads, self.relation_features)
        gates = self.gates(m).reshape(-1, hops + 1, heads, self.entities + hops * heads)

        codes = inputs[:, self.in_features - self.entities * memory.value_size :]
        known = _normalise(codes.reshape(-1, self.entities, memory.value_size))
        query, keys, answers = known[:, :heads], [], []
        for hop in range(hops):
            keys.append(_join_key(query, relations[:, hop]))
            answers.append(_normalise(memory.read(params, carry.memory, keys[-1])))
            known = jnp.concatenate([known, answers[-1]], 1)
            query = _combine(gates[:, hop], known)
        # The query after the last hop is the entity part of the write keys.
        write_keys, write_values = _join_key(query, relations[:, hops]), _combine(gates[:, hops], known)

        flat_answers = jnp.concatenate(answers, 1).reshape(-1, hops * heads * memory.value_size)
        rate, others = split_gates(memory, jax.nn.sigmoid(self.rate(jnp.concatenate([m, flat_answers], -1))))
        state, info = memory.write(params, carry.memory, write_keys, write_values, rate, **others)

        # The trace shows the first hop: its keys contain the inputs' entities, while later keys contain answers.
        trace = MemoryTrace(
            write_keys=write_keys, write_values=write_values, read_keys=keys[0], read_values=answers[0], rate=rate
        )
        features = jnp.concatenate([inputs, hidden, flat_answers], -1)
        carry = ChainCarry(controller=controller, memory=state)
        return carry, CellOutput(features=features, meta_loss=info.loss_after, write=info, trace=trace)


def _first_gates(entities: int, heads: int, hops: int) -> np.ndarray:
    """Returns the initial gates `[N + 1, H, P + N H]` of queries 2 to N, of the write keys and of the write values.

    Examples:
      >>> print(_first_gates(2, 2, 1))
      [[[1.  0.  0.7 0. ]
        [0.  1.  0.  0.7]]
      <BLANKLINE>
       [[0.  1.  0.  0. ]
        [1.  0.  0.  0. ]]]
    """
    gates = np.zeros((hops + 1, heads, entities + hops * heads))
    for head in range(heads):
        other = head ^ 1
        for hop in range(hops - 1):
            gates[hop, head, entities + hop * heads + head] = 1
        gates[hops - 1, head, head] = 1
        gates[hops - 1, head, entities + head] = _FOUND
        gates[hops, head, other if other < entities else head] = 1
    return gates


def _combine(gates: Array, known: Array) -> Array:
    """Returns sums `[B, H, V]` of the `n` known entities and answers, weighted by the first `n` gates of each head."""
    return jnp.sum(gates[..., : known.shape[1], None] * known[:, None], 2)


def _join_key(entities: Array, relations: Array) -> Array:
    """Returns keys `[B, H, V R]`, the outer products of entities `[B, H, V]` and relations `[B, H, R]`."""
    keys = entities[..., None] * relations[..., None, :]
    return keys.reshape(*keys.shape[:2], keys.shape[2] * keys.shape[3])


def _normalise(x: Array) -> Array:
    """Returns x with mean zero and variance one over the last axis; a nearly constant x stays small."""
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
