"""A memory cell that follows chains of facts: entity and relation make a key, and what is found is asked for next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax._params import ParamTree
from mnm_jax.cells._common import CellOutput, MemoryTrace, check_inputs, check_sizes, make_gates, split_gates
from mnm_jax.cells._lstm import LSTMCell
from mnm_jax.memory import Memory, MemoryState

Array = jax.Array

# Initial values, each of which lets learning start with chains that hold already; see the cell's docstring.
_RELATION = 0.7  # of every relation feature: facts and questions then start with relations alike
_FOUND = 0.7  # the part of what the first hop found in a write key
_GATE_SCALE = 0.3  # of the gates' kernel, against 1 / sqrt(fan in)


class ChainCarry(NamedTuple):
    """controller: the LSTM's (c, h). memory: phi."""

    controller: tuple[Array, Array]
    memory: MemoryState


class ChainCell(nnx.RNNCellBase):
    """A controller that follows a chain of reads at every step, and writes what it makes of them.

    The last `P V` of the inputs' features are the codes of `P` entities, the things that the step is about (the words
    picked from a sentence, say). One code serves as key, as value and as answer, so that an answer can be asked for:

        h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1}),   s_t = [x_t ; h_t],   m_t = tanh(A s_t + a)
        e_p = norm(code p of x_t)                                                         p = 1 ... P
        q_n = d_n (x) tanh(C_n m_t + c_n)       d_1 = [e_1 ... e_H],  d_n = G_n(m_t) [e ; r_1 ; ... ; r_{n-1}]
        r_n = norm(f(q_n; phi_{t-1}))                                                     n = 1 ... N
        k^w_t = G_k(m_t) [e ; r_1 ; ... ; r_N] (x) tanh(C_w m_t + c_w),   v^w_t = G_v(m_t) [e ; r_1 ; ... ; r_N]
        beta_t = sigmoid(b . [m_t ; r_1 ; ... ; r_N] + b_0)
        phi_t = Write(phi_{t-1}; k^w_t, v^w_t, beta_t),   y_t = [s_t ; r_1 ; ... ; r_N]
        L^meta_t = mean over heads and features of (f(k^w_t; phi_t) - v^w_t)^2

    (x) is the outer product of an entity `[V]` and a relation `[R]`, `K = V R`; G are matrices of gates, linear in m_t,
    one for each head and each entity named or found; norm gives mean zero and variance one. `MNMCell`, as the paper has
    it, reads once, after the write, and sees the answer one step later: it needs as many steps as a question has hops.

    At the start gates pass on the last answer, heads write in pairs (the entity of one under that of the other, and the
    other way round), write keys lean on what the first hop found, and relations are alike. A chain of look-ups is then
    whole from the first update on, and each part of it is improved by the gradient of the others.

    Args:
      in_features: `D >= P V`.
      hidden_features: of the controller, and of m.
      memory: from `gradient_memory` or `local_memory`; its key size is a multiple `R` of its value size.
      entities: `P`.
      heads: `H <= P`, reads side by side in each hop, and keys and values written.
      hops: `N`, reads one after the other.
      dtype: of parameters and carry but the memory's; see `MNMCell`.

    Raises:
      ValueError: for a size out of range, or inputs of another shape than `[B, D]`.

    Source: the memory of Munkhdalai et al., NeurIPS 2019; keys of entity and relation and chained reads with normalised
    answers as in TPR-RNN (Schlag and Schmidhuber, NeurIPS 2018).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        memory: Memory,
        *,
        entities: int,
        heads: int = 2,
        hops: int = 3,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = {"in_features": in_features, "hidden_features": hidden_features, "heads": heads, "hops": hops}
        check_sizes(**sizes, entities=entities)
        key_size, value_size = memory.key_size, memory.value_size
        if key_size % value_size:
            raise ValueError(f"key_size must be a multiple of value_size, got {key_size=}, {value_size=}.")
        if heads > entities:
            raise ValueError(f"heads must be <= entities, got {heads=}, {entities=}.")
        if entities * value_size > in_features:
            raise ValueError(
                f"in_features must be >= entities * value_size = {entities * value_size}, the codes, got {in_features}."
            )
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.entities = entities
        self.heads = heads
        self.hops = hops
        self.relation_features = key_size // value_size
        self.out_features = in_features + hidden_features + hops * heads * value_size
        self.dtype = dtype
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(memory.init(rngs.params()))

        def linear(i: int, o: int) -> nnx.Linear:
            return nnx.Linear(i, o, param_dtype=dtype, rngs=rngs)

        start = _first_gates(entities, heads, hops)
        relations = (hops + 1) * heads * self.relation_features
        self.controller = LSTMCell(in_features, hidden_features, param_dtype=dtype, rngs=rngs)
        self.hidden = linear(in_features + hidden_features, hidden_features)
        self.relations = linear(hidden_features, relations)
        self.relations.bias[...] = jnp.full(relations, _RELATION, dtype)
        self.gates = linear(hidden_features, start.size)
        self.gates.kernel[...] *= _GATE_SCALE
        self.gates.bias[...] = jnp.asarray(start.ravel(), dtype)
        self.rate = make_gates(hidden_features + hops * heads * value_size, memory, dtype, rngs)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def linear_maps(self) -> list[nnx.Linear]:
        """The maps that every step multiplies by, each outside of any derivative taken in the step itself."""
        return [
            self.controller.dense_i,
            self.controller.dense_h,
            self.hidden,
            self.relations,
            self.gates,
            self.rate,
        ]

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> ChainCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        memory = self.memory.start(self.memory_params.get_value(), input_shape[0])
        return ChainCarry(self.controller.initialize_carry(input_shape), memory)

    def __call__(self, carry: ChainCarry, inputs: Array) -> tuple[ChainCarry, CellOutput]:
        """One step: inputs `[B, D]`; the features put out are `[B, D + hidden + N H V]`."""
        check_inputs(inputs, self.in_features)
        params, memory, heads, hops = self.memory_params.get_value(), self.memory, self.heads, self.hops
        controller, hidden = self.controller(carry.controller, inputs)
        m = jnp.tanh(self.hidden(jnp.concatenate([inputs, hidden], -1)))
        relations = jnp.tanh(self.relations(m)).reshape(-1, hops + 1, heads, self.relation_features)
        gates = self.gates(m).reshape(-1, hops + 1, heads, self.entities + hops * heads)

        codes = inputs[:, self.in_features - self.entities * memory.value_size :]
        known = _norm(codes.reshape(-1, self.entities, memory.value_size))
        asked, keys, found = known[:, :heads], [], []
        for hop in range(hops):
            keys.append(_key(asked, relations[:, hop]))
            found.append(_norm(memory.read(params, carry.memory, keys[-1])))
            known = jnp.concatenate([known, found[-1]], 1)
            asked = _mix(gates[:, hop], known)
        # After the last hop, what would be asked next is what is written under.
        write_keys, write_values = _key(asked, relations[:, hops]), _mix(gates[:, hops], known)

        findings = jnp.concatenate(found, 1).reshape(-1, hops * heads * memory.value_size)
        rate, others = split_gates(memory, jax.nn.sigmoid(self.rate(jnp.concatenate([m, findings], -1))))
        state, info = memory.write(params, carry.memory, write_keys, write_values, rate, **others)

        # Of the first hop, whose keys look for sentences; those of later hops look for what was found.
        trace = MemoryTrace(write_keys, write_values, keys[0], found[0], rate)
        features = jnp.concatenate([inputs, hidden, findings], -1)
        return ChainCarry(controller, state), CellOutput(features, info.loss_after, info, trace)


def _first_gates(entities: int, heads: int, hops: int) -> np.ndarray:
    """`[N + 1, H, P + N H]`: of the queries of hops 2 to N, of the write keys, and of the write values, in this order.

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


def _mix(gates: Array, known: Array) -> Array:
    """The entities `[B, H, V]` that gates `[B, H, n or more]` make of the `n` known so far."""
    return jnp.sum(gates[..., : known.shape[1], None] * known[:, None], 2)


def _key(entities: Array, relations: Array) -> Array:
    """`[B, H, V]` and `[B, H, R]` to `[B, H, V R]`."""
    return (entities[..., None] * relations[..., None, :]).reshape(*entities.shape[:2], -1)


def _norm(x: Array) -> Array:
    """Mean zero and variance one over the last axis; answers that are nearly constant stay small."""
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
