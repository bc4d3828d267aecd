"""A memory cell that looks things up, several times in a row, before it writes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.cells.common import CellOutput, MemoryTrace, check_inputs, check_sizes, interaction_init
from mnm_jax.cells.lstm import LSTMCell
from mnm_jax.memory import Memory, MemoryState

Array = jax.Array


class ChainCarry(NamedTuple):
    """controller: the LSTM's (c, h). memory: phi."""

    controller: tuple[Array, Array]
    memory: MemoryState


class ChainCell(nnx.RNNCellBase):
    """A controller that follows a chain of reads at every step, and writes what it makes of them.

        h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1}),   s_t = [x_t ; h_t]
        q_1 = tanh(A_1 s_t + a_1),   q_n = tanh(A_n s_t + a_n + B_n r_{n-1})        n = 2 ... N
        r_n = norm(f(q_n; phi_{t-1}))                                               all heads side by side
        [k^w ; v^w ; u]_t = tanh(C s_t + c + D [r_1 ; ... ; r_N]),   beta_t = sigmoid(b . u + b_0)
        phi_t = Write(phi_{t-1}; k^w_t, v^w_t, beta_t)
        y_t = [s_t ; r_1 ; ... ; r_N]
        L^meta_t = mean over heads and features of (f(k^w_t; phi_t) - v^w_t)^2

    with norm(r) of mean zero and variance one over the features of a head. `MNMCell`, as the paper has it, reads once,
    after the write, and sees the answer one step later: it needs as many steps as a question has hops. Here a question
    about a chain of facts (where is the milk: who has it; where is he?) is answered within a step, and so is a new fact
    put together with those already known.

    Args:
      in_features: `D`.
      hidden_features: of the controller.
      memory: from `gradient_memory` or `local_memory`.
      heads: `H`, reads side by side in each hop, and keys and values written.
      hops: `N`, reads one after the other.
      dtype: of parameters and carry but the memory's; see `MNMCell`.

    Raises:
      ValueError: for a size below 1, or inputs of another shape than `[B, D]`.

    Source: the memory of Munkhdalai et al., NeurIPS 2019; chained reads with normalised answers as in TPR-RNN (Schlag
    and Schmidhuber, NeurIPS 2018) and Fast Weight Memory (Schlag et al., ICLR 2021).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        memory: Memory,
        *,
        heads: int = 1,
        hops: int = 3,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features, heads=heads, hops=hops)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.heads = heads
        self.hops = hops
        self.dtype = dtype
        self.memory = nnx.static(memory)
        self.memory_params = nnx.Param(memory.init(rngs.params()))

        asked, answered = heads * memory.key_size, heads * memory.value_size
        written = asked + answered + memory.key_size
        self.out_features = in_features + hidden_features + hops * answered
        linear = lambda i, o, **options: nnx.Linear(i, o, param_dtype=dtype, rngs=rngs, **options)  # noqa: E731
        self.controller = LSTMCell(in_features, hidden_features, param_dtype=dtype, rngs=rngs)
        tied = partial(_tied, asked=asked, of_key=hops * asked)
        default_init = nnx.initializers.lecun_normal()
        self.interaction = linear(hidden_features, hops * asked + written, kernel_init=tied(interaction_init))
        self.shortcut = linear(in_features, hops * asked + written, use_bias=False, kernel_init=tied(default_init))
        self.links = nnx.List([linear(answered, asked, use_bias=False) for _ in range(hops - 1)])
        self.findings = linear(hops * answered, written, use_bias=False, kernel_init=nnx.initializers.zeros)
        self.rate = linear(memory.key_size, 1)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def linear_maps(self) -> list[nnx.Linear]:
        """The maps that every step multiplies by, each outside of any derivative taken in the step itself."""
        controller = [self.controller.dense_i, self.controller.dense_h]
        return [*controller, self.interaction, self.shortcut, *self.links, self.findings, self.rate]

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> ChainCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        memory = self.memory.start(self.memory_params.get_value(), input_shape[0])
        return ChainCarry(self.controller.initialize_carry(input_shape), memory)

    def __call__(self, carry: ChainCarry, inputs: Array) -> tuple[ChainCarry, CellOutput]:
        """One step: inputs `[B, D]`; the features put out are `[B, D + hidden + N H V]`."""
        check_inputs(inputs, self.in_features)
        params, memory, heads = self.memory_params.get_value(), self.memory, self.heads
        controller, hidden = self.controller(carry.controller, inputs)
        key_size, asked = memory.key_size, heads * memory.key_size
        plan = self.interaction(hidden) + self.shortcut(inputs)
        *queries, to_write = jnp.split(plan, [asked * (n + 1) for n in range(self.hops)], axis=-1)

        keys, found = [], []
        for hop, query in enumerate(queries):
            if hop:
                query = query + self.links[hop - 1](found[-1])
            keys.append(jnp.tanh(query).reshape(-1, heads, key_size))
            found.append(_norm(memory.read(params, carry.memory, keys[-1])).reshape(-1, heads * memory.value_size))

        u = jnp.tanh(to_write + self.findings(jnp.concatenate(found, -1)))
        write_keys, write_values, for_rate = jnp.split(u, [asked, asked + heads * memory.value_size], axis=-1)
        rate = jax.nn.sigmoid(self.rate(for_rate))[:, 0]
        write_keys = write_keys.reshape(-1, heads, key_size)
        write_values = write_values.reshape(-1, heads, memory.value_size)
        state, info = memory.write(params, carry.memory, write_keys, write_values, rate)

        # Of the first hop, whose keys look for sentences; those of later hops look for what was found.
        trace = MemoryTrace(write_keys, write_values, keys[0], found[0].reshape(write_values.shape), rate)
        features = jnp.concatenate([inputs, hidden, *found], -1)
        return ChainCarry(controller, state), CellOutput(features, info.loss_after, info, trace)


def _tied(init: Callable, asked: int, of_key: int) -> Callable:
    """An initialiser by which a step's write keys start as its first read keys.

    So a question asks from the start for sentences that are like it, and learning need not find the way from read keys
    to write keys first. They are parameters of their own.
    """

    def tied(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
        kernel = init(key, shape, dtype)
        return kernel.at[:, of_key : of_key + asked].set(kernel[:, :asked])

    return tied


def _norm(x: Array) -> Array:
    """Mean zero and variance one over the last axis; answers that are nearly constant stay small."""
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
