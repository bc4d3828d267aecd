"""A memory whose keys, values and gates come from the inputs alone, so that a sequence is worked through in chunks.

Shape letters: `T` time steps, `B` examples, `D` features, `H` heads (a memory each), `K` key and `V` value features.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._params import ParamTree
from mnm_jax.layers._convolution import ShortConvolution
from mnm_jax.memory import gradient_memory, local_memory
from mnm_jax.memory._chunks import chunk as chunked
from mnm_jax.memory._network import Network
from mnm_jax.memory._options import FORGET_LITTLE, normalise

Array = jax.Array
_RULES = {"local": local_memory, "gradient": gradient_memory}
_STEP_SIZES = ("normalised", "sum")


class BlockCarry(NamedTuple):
    """What a layer knows between two tokens.

    fast: the memories, leaves `[H, B, ...]`. position: how many tokens the present chunk has had. window: the vectors
    of the last tokens, `[n - 1, B, H (2K + V)]`, where there is a convolution of n.
    """

    fast: chunked.Fast
    position: Array
    window: Array | None


class NeuralMemoryBlock(nnx.Module):
    """A layer `[T, B, D] -> [T, B, D]` that writes every token into H memories and reads them, without recurrence.

        k = W_k x / |W_k x|,  v = W_v x,  q = W_q x / |W_q x|,  r, alpha, m = sigmoid(W x + b)
        phi_t = write(phi_{t-1}; k_t, v_t, r_t),  y_t = W_o [f(q_t; phi_t) of all heads]

    Nothing that is read goes back into what is written, so a chunk of tokens is a few products of matrices
    (`memory/_chunks`, with the equations). `__call__` runs over a sequence, `step` over one token; they are equal.
    With a convolution, W_k x, W_v x and W_q x are those of the last tokens, weighed (`ShortConvolution`).
    With the gradient rule and step_size="sum" a memory of one layer is DeltaNet (Yang et al., 2024), with `forget`
    gated DeltaNet; several layers with `forget` and `momentum` are the memory of Titans (Behrouz et al., 2025).

    Args:
      features: `D`.
      heads: `H`.
      key_size: `K` of a head.
      value_size: `V` of a head.
      hidden_sizes: of the memory's network; () is a matrix.
      rule: "local" (MNM-p: every layer has its own target and corrects its newest answer) or "gradient" (MNM-g; through
        several layers, taken at the beginning of the chunk).
      chunk: tokens that are worked through at once. With more than one layer it is part of the model: inputs of the
        layers are those of the weights at the chunk's beginning.
      step_size: "normalised" (rate 1 meets the target exactly) or "sum" (the plain error times the rate).
      forget: a gate alpha of its own, 2% a token at first.
      momentum: a gate m of its own.
      convolution: tokens that keys, values and queries see, their own among them; 1 is none.
      epsilon: added to squared key norms by "normalised"; same unit.
      dtype: of parameters and memories.

    Raises:
      ValueError: a size below 1, an unknown rule or step size, inputs of another shape.
    """

    def __init__(
        self,
        features: int,
        *,
        heads: int = 1,
        key_size: int = 32,
        value_size: int = 32,
        hidden_sizes: Sequence[int] = (),
        rule: str = "local",
        chunk: int = 64,
        step_size: str = "normalised",
        forget: bool = False,
        momentum: bool = False,
        convolution: int = 1,
        epsilon: float = 1e-3,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if rule not in _RULES:
            raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}.")
        if step_size not in _STEP_SIZES:
            raise ValueError(f"step_size must be one of {', '.join(_STEP_SIZES)}, got {step_size!r}.")
        for name, size in (("features", features), ("heads", heads), ("chunk", chunk), ("convolution", convolution)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}.")
        memory = _RULES[rule](key_size, value_size, hidden_sizes=hidden_sizes, epsilon=epsilon, param_dtype=dtype)
        network = Network((key_size, *hidden_sizes, value_size), jnp.tanh, False)
        self.rule = chunked.Rule(network, rule == "local", step_size == "normalised", epsilon, momentum)
        self.features, self.heads, self.chunk = features, heads, chunk
        self.forget, self.momentum = forget, momentum
        self.memory_params = ParamTree(jax.vmap(memory.init)(jax.random.split(rngs.params(), heads)))
        vectors = heads * (2 * key_size + value_size)
        self.to_vectors = nnx.Linear(features, vectors, use_bias=False, param_dtype=dtype, rngs=rngs)
        wide = convolution > 1
        self.convolution = nnx.data(ShortConvolution(vectors, convolution, dtype=dtype, rngs=rngs) if wide else None)
        self.to_gates = nnx.Linear(features, heads * (1 + forget + momentum), param_dtype=dtype, rngs=rngs)
        if forget:
            biases = self.to_gates.bias.get_value().reshape(heads, -1).at[:, 1].set(FORGET_LITTLE)
            self.to_gates.bias.set_value(biases.reshape(-1))
        self.to_output = nnx.Linear(heads * value_size, features, use_bias=False, param_dtype=dtype, rngs=rngs)

    def initialize_carry(self, batch_size: int) -> BlockCarry:
        """The memories at the beginning of sequences."""
        start = jax.tree.map(
            lambda w: jnp.broadcast_to(w[:, None], (self.heads, batch_size, *w.shape[1:])),
            self.memory_params.get_value().weights,
        )
        surprise = jax.tree.map(jnp.zeros_like, start) if self.momentum else ()
        window = None if self.convolution is None else self.convolution.initialize_carry(batch_size)
        return BlockCarry(chunked.Fast(start, start, surprise), jnp.zeros((), jnp.int32), window)

    def __call__(
        self, inputs: Array, carry: BlockCarry | None = None, *, mask: Array | None = None
    ) -> tuple[BlockCarry, Array]:
        """A sequence `[T, B, D]`, in chunks; outputs `[T, B, D]`.

        Args:
            carry: goes on from there, with a new chunk; None begins with phi_0.
            mask: `[T, B]`, False for padding, which leaves the carry as it is.
        """
        if inputs.ndim != 3 or inputs.shape[-1] != self.features:
            raise ValueError(f"inputs must have shape [T, B, D] = [T, B, {self.features}], got {inputs.shape}.")
        steps, batch = inputs.shape[:2]
        carry = self.initialize_carry(batch) if carry is None else carry
        fast = carry.fast._replace(start=carry.fast.now)
        params = self.memory_params.get_value()
        whole = steps - steps % self.chunk
        window, vectors = self._vectors(carry.window, inputs, mask)
        gates = self._gates(inputs, mask)
        mix = jax.vmap(partial(chunked.mix, self.rule))

        # Of the forward pass only the memories between chunks are kept. To compute a chunk again, and its tokens from
        # `vectors` as they lie in memory, is faster than to store and load what its derivative needs.
        @jax.checkpoint
        def run(fast: chunked.Fast, part: tuple) -> tuple[chunked.Fast, Array]:
            vectors, gates, mixture = part
            work = jax.vmap(partial(chunked.chunk, self.rule))
            fast, read = work(params, fast, self._tokens(vectors, gates), mixture)
            return fast, _join(read)

        answers = []
        if whole:
            chunks = vectors[:whole].reshape(-1, self.chunk, *vectors.shape[1:])
            chunk_gates = jax.tree.map(lambda x: _split(x[:, :, :whole], self.chunk), gates)
            fast, read = jax.lax.scan(run, fast, (chunks, chunk_gates, jax.vmap(mix)(chunk_gates)))
            answers.append(read.reshape(whole, batch, -1))
        if steps > whole:
            rest = jax.tree.map(lambda x: x[:, :, whole:], gates)
            begun = fast.start
            fast, read = run(fast, (vectors[whole:], rest, mix(rest)))
            fast = fast._replace(start=begun)
            answers.append(read)
        position = jnp.asarray(steps % self.chunk, jnp.int32)
        return BlockCarry(fast, position, window), self.to_output(jnp.concatenate(answers))

    def step(self, carry: BlockCarry, inputs: Array) -> tuple[BlockCarry, Array]:
        """One token `[B, D]`, as generating text needs it."""
        inputs = inputs[None]
        window, vectors = self._vectors(carry.window, inputs, None)
        tokens = jax.tree.map(lambda x: x[:, :, 0], self._tokens(vectors, self._gates(inputs, None)))
        begins = carry.position == 0
        start = jax.tree.map(lambda now, then: jnp.where(begins, now, then), carry.fast.now, carry.fast.start)
        write = jax.vmap(partial(chunked.step, self.rule))
        fast, read = write(self.memory_params.get_value(), carry.fast._replace(start=start), tokens)
        output = self.to_output(_join(read[:, :, None]))[0]
        return BlockCarry(fast, (carry.position + 1) % self.chunk, window), output

    def _vectors(self, window: Array | None, inputs: Array, mask: Array | None) -> tuple[Array | None, Array]:
        """Keys, values and queries of inputs `[T, B, D]` side by side, `[T, B, H (2K + V)]`, and the new window."""
        vectors = self.to_vectors(inputs)
        return (window, vectors) if self.convolution is None else self.convolution(window, vectors, mask)

    def _gates(self, inputs: Array, mask: Array | None) -> chunked.Gates:
        """Of inputs `[T, B, D]`, leaves `[H, B, T]`."""
        gates = jax.nn.sigmoid(self._by_head(self.to_gates(inputs)))
        mask = jnp.ones(inputs.shape[:2], bool) if mask is None else mask
        real = jnp.broadcast_to(mask.T[None], gates.shape[:-1]).astype(gates.dtype)
        keep = 1 - gates[..., 1] if self.forget else jnp.ones_like(real)
        momentum = gates[..., -1] if self.momentum else jnp.zeros_like(real)
        return chunked.Gates(gates[..., 0], keep, momentum, real).masked()

    def _tokens(self, vectors: Array, gates: chunked.Gates) -> chunked.Tokens:
        """From `vectors [T, B, H (2K + V)]`, leaves `[H, B, T, ...]`."""
        sizes = self.rule.network.sizes
        ends = [sizes[0], sizes[0] + sizes[-1]]
        keys, values, queries = jnp.split(self._by_head(vectors), ends, axis=-1)
        return chunked.Tokens(normalise(keys, "l2"), values, normalise(queries, "l2"), gates)

    def _by_head(self, x: Array) -> Array:
        """`[T, B, H X]` to `[H, B, T, X]`."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.heads, -1), (2, 1, 0), (0, 1, 2))


def _join(x: Array) -> Array:
    """`[H, B, T, V]` to `[T, B, H V]`."""
    joined = jnp.moveaxis(x, (2, 1, 0), (0, 1, 2))
    return joined.reshape(*joined.shape[:2], -1)


def _split(x: Array, size: int) -> Array:
    """`[H, B, T]` to `[N, H, B, C]`."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size), 2, 0)
