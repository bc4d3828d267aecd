"""A layer of memories whose keys, values and gates depend only on the inputs, so that it runs in parallel chunks.

Shape letters: `T` time steps, `B` examples, `D` features, `H` heads (one memory each), `K` key features, `V` value
features, `n` taps of the convolution.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes
from mnm_jax._masking import Steps, check_steps
from mnm_jax._params import ParamTree
from mnm_jax._vary import vary_alike
from mnm_jax.layers._convolution import ShortConvolution
from mnm_jax.memory import Memory
from mnm_jax.memory._chunks.chunk import ChunkState, Tokens, check_memory, chunk, step
from mnm_jax.memory._chunks.mixture import Gates, mix
from mnm_jax.memory._options import gate_biases, normalise

Array = jax.Array


class LayerCarry(NamedTuple):
    """The state of a layer between two tokens.

    Attributes:
      memory: the memories of all heads, leaves `[B, H, ...]`.
      position: number of tokens of the current chunk processed so far, `[B]`.
      window: keys, values and queries of the last tokens, `[B, n - 1, H (2 K + V)]`; None without a convolution.
    """

    memory: ChunkState
    position: Array
    window: Array | None


class NeuralMemoryLayer(nnx.Module):
    """A layer `[T, B, D] -> [T, B, D]` that writes every token into H memories and reads them, without recurrence.

        k = W_k x,  v = W_v x,  q = W_q x,  r, alpha, m = sigmoid(W x + b)                              per head
        phi_t = write(phi_{t-1}; k_t, v_t, r_t, alpha_t, m_t),    y_t = W_o [f(q_t; phi_t) of all heads]

    Writes do not depend on earlier reads, so that a chunk of tokens takes a few matrix products. `__call__` runs a
    sequence and `step` one token; both compute the same function. With a convolution, k, v and q also pass through a
    `ShortConvolution` over the last n tokens (Yang et al., NeurIPS 2024). The settings of the memory decide the rule,
    the normalisation of the keys and the gates: alpha with `WriteOptions(forget=True)`, initially 2% per token, and m
    with `momentum=True`.

    ==================  =============================================================================================
    layer               memory
    ==================  =============================================================================================
    MNM-p               `local_memory(K, V, hidden_sizes=...)`
    linear attention    `matrix_memory(K, V, "hebbian")`
    DeltaNet            `matrix_memory(K, V, "delta", options=WriteOptions(key_norm="l2"))`
    gated DeltaNet      the same with `WriteOptions(key_norm="l2", forget=True)`
    Titans              `gradient_memory(K, V, hidden_sizes=..., step_size="sum", options=WriteOptions(forget=True,
                        momentum=True))`; "sum" is the derivative of the sum of squares, twice that of Titans' loss
    ==================  =============================================================================================

    In a memory of several layers, the hidden activations of a token are computed with the weights at the chunk's
    beginning, and so is the whole step of the gradient rule: `chunk` then changes the model. Padding, and calls that do
    not end at a multiple of `chunk`, move the beginnings of the chunks and so change later outputs. For a memory of one
    layer, `chunk` changes only the speed. There are no resets: a new sequence begins with a new carry.

    Args:
      features: number of features `D`.
      memory: from `local_memory`, `gradient_memory` or `matrix_memory`, or from `rule_memory` with an `ErrorRule` or a
        `SnapshotRule`. Every head has its own memory, with its own slow parameters, and writes one key per token.
      heads: number of memories `H`.
      chunk: number of tokens that are processed at once.
      convolution: number of tokens `n` on which keys, values and queries depend, including their own; 1 for no
        convolution.
      dtype: dtype of the computation, to which inputs are cast; None for `param_dtype`. Fast weights keep the dtype
        of the memory's parameters.
      param_dtype: dtype of the layer's own parameters; the memory has its own `param_dtype`.
      rngs: random keys.

    Raises:
      TypeError: for a memory that is no `Memory`.
      ValueError: for a size below 1, or a memory that cannot be written in chunks: one with an `optimizer`, several
        `inner_steps` or a `max_norm`, a `custom_memory`, or a rule given as a function.

    Examples:
      Gated DeltaNet with two heads, over a sequence and then over one more token:

      >>> from mnm_jax import WriteOptions, matrix_memory
      >>> memory = matrix_memory(8, 8, options=WriteOptions(key_norm="l2", forget=True))
      >>> layer = NeuralMemoryLayer(16, memory, heads=2, rngs=nnx.Rngs(0))
      >>> inputs = jax.random.normal(jax.random.key(0), (101, 3, 16))
      >>> carry, outputs = layer(None, inputs[:100])
      >>> outputs.shape
      (100, 3, 16)
      >>> carry, output = layer.step(carry, inputs[100])
      >>> _, expected = layer(None, inputs)
      >>> bool(jnp.allclose(output, expected[100], atol=1e-5))
      True

    References:
      Munkhdalai et al., NeurIPS 2019 (the rules); Yang et al., NeurIPS 2024 (DeltaNet in chunks); Yang et al., ICLR
      2025 (gated DeltaNet); Behrouz et al., 2025 (Titans).
    """

    def __init__(
        self,
        features: int,
        memory: Memory,
        *,
        heads: int = 1,
        chunk: int = 64,
        convolution: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(features=features, heads=heads, chunk=chunk, convolution=convolution)
        self.memory = check_memory(memory)
        self.features, self.heads, self.chunk = features, heads, chunk
        self.dtype = jnp.dtype(param_dtype if dtype is None else dtype)
        self.memory_params = ParamTree(jax.vmap(memory.init)(jax.random.split(rngs.params(), heads)))

        linear = partial(nnx.Linear, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        vectors = heads * (2 * memory.key_size + memory.value_size)
        self.to_vectors = linear(features, vectors, use_bias=False)
        taps = ShortConvolution(vectors, convolution, param_dtype=param_dtype, rngs=rngs) if convolution > 1 else None
        self.convolution = nnx.data(taps)
        self.to_gates = linear(features, heads * (1 + len(memory.gates)))
        self.to_gates.bias = nnx.Param(jnp.tile(jnp.asarray(gate_biases(memory.gates), param_dtype), heads))
        self.to_output = linear(heads * memory.value_size, features, use_bias=False)

    def initialize_carry(self, input_shape: tuple[int, ...]) -> LayerCarry:
        """Returns the carry at the start of sequences of inputs shaped `input_shape = (B, D)`."""
        batch_size = input_shape[0]
        begin = jax.vmap(partial(self.memory.start, batch_size=batch_size), out_axes=1)
        start = begin(self.memory_params.get_value()).weights
        surprise = jax.tree.map(jnp.zeros_like, start) if "momentum" in self.memory.gates else ()
        return LayerCarry(
            memory=ChunkState(start=start, now=start, surprise=surprise),
            position=jnp.zeros(batch_size, jnp.int32),
            window=None if self.convolution is None else self.convolution.initialize_carry(batch_size, self.dtype),
        )

    def __call__(
        self, carry: LayerCarry | None, inputs: Array, *, mask: Array | None = None, time_major: bool = True
    ) -> tuple[LayerCarry, Array]:
        """Runs over a sequence, in chunks.

        Args:
          carry: the carry from which to continue, beginning a new chunk; None begins a new sequence.
          inputs: `[T, B, D]`.
          mask: `[T, B]` bool, False = padding: the carry is unchanged, the outputs are zero, and the inputs, which may
            be NaN, have no influence and get exactly zero gradient.
          time_major: whether time is the first axis of inputs, mask and outputs; otherwise it is the second.

        Returns:
          The last carry, and the outputs `[T, B, D]`.

        Raises:
          ValueError: for shapes that do not agree.
        """
        steps = Steps(inputs, mask=mask)
        check_steps(steps, time_major=time_major)
        if inputs.shape[-1] != self.features:
            raise ValueError(f"inputs must have D = {self.features} features on the last axis, got {inputs.shape}.")
        if not time_major:
            steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
        carry = self.initialize_carry(steps.inputs.shape[1:]) if carry is None else carry
        layer, carry, steps = vary_alike((self, carry, steps))
        if steps.inputs.shape[0]:
            carry, outputs = layer._run(carry, steps)
        else:
            outputs = jnp.zeros(steps.inputs.shape, self.dtype)
        return carry, outputs if time_major else jnp.swapaxes(outputs, 0, 1)

    def step(self, carry: LayerCarry | None, inputs: Array) -> tuple[LayerCarry, Array]:
        """Runs over one token, as in text generation.

        Args:
          carry: the carry from which to continue; None begins a new sequence.
          inputs: `[B, D]`.

        Returns:
          The new carry, and the outputs `[B, D]`.

        Raises:
          ValueError: for inputs of another shape.
        """
        if inputs.ndim != 2 or inputs.shape[-1] != self.features:
            raise ValueError(f"inputs must have shape [B, D] = [B, {self.features}], got {inputs.shape}.")
        carry = self.initialize_carry(inputs.shape) if carry is None else carry
        layer, carry, inputs = vary_alike((self, carry, inputs))
        return layer._run_one(carry, inputs)

    def _run(self, carry: LayerCarry, steps: Steps) -> tuple[LayerCarry, Array]:
        """Returns the carry and the outputs `[T, B, D]` after at least one token."""
        inputs = jax.vmap(lambda step: step.enter((), ())[1])(steps)
        window, vectors = self._vectors(carry.window, inputs, steps.mask)
        memory, answers = self._run_chunks(carry.memory, vectors, self._gates(inputs, steps.mask))
        _, outputs = jax.vmap(lambda step, y: step.leave((), (), y))(steps, self.to_output(answers))
        position = jnp.full_like(carry.position, inputs.shape[0] % self.chunk)
        carry = LayerCarry(memory=memory, position=position, window=window)
        return vary_alike((carry, outputs))

    def _run_one(self, carry: LayerCarry, inputs: Array) -> tuple[LayerCarry, Array]:
        """Returns the carry and the outputs `[B, D]` after one token."""
        window, vectors = self._vectors(carry.window, inputs[None], None)
        tokens = self._tokens(vectors, self._gates(inputs[None], None))
        begins = carry.position[:, None, None, None] == 0
        start = jax.tree.map(partial(jnp.where, begins), carry.memory.now, carry.memory.start)
        memory = carry.memory._replace(start=start)
        memory, answers = step(self.memory, self.memory_params.get_value(), memory, tokens)
        position = (carry.position + 1) % self.chunk
        carry = LayerCarry(memory=memory, position=position, window=window)
        return carry, self.to_output(_join_heads(answers))[0]

    def _run_chunks(self, memory: ChunkState, vectors: Array, gates: Gates) -> tuple[ChunkState, Array]:
        """Returns the memories after a sequence, and all answers `[T, B, H V]`."""
        params, steps = self.memory_params.get_value(), vectors.shape[0]
        whole = steps - steps % self.chunk
        coefficients = jax.vmap(partial(mix, momentum="momentum" in self.memory.gates))

        # The forward pass stores only `vectors` and the memories between chunks. Computing a chunk and its tokens again
        # in the backward pass is faster than storing and loading the residuals.
        @jax.checkpoint
        def run(memory: ChunkState, part: tuple) -> tuple[ChunkState, Array]:
            vectors, gates, mixture = part
            memory, answers = chunk(self.memory, params, memory, self._tokens(vectors, gates), mixture)
            return memory, _join_heads(answers)

        answers = []
        memory = memory._replace(start=memory.now)
        if whole:
            chunks = vectors[:whole].reshape(whole // self.chunk, self.chunk, *vectors.shape[1:])
            chunk_gates = jax.tree.map(lambda x: _split(x[:, :, :whole], self.chunk), gates)
            memory, read = jax.lax.scan(run, memory, (chunks, chunk_gates, jax.vmap(coefficients)(chunk_gates)))
            answers.append(read.reshape(whole, *read.shape[2:]))
        if steps > whole:
            rest = jax.tree.map(lambda x: x[:, :, whole:], gates)
            start = memory.start
            memory, read = run(memory, (vectors[whole:], rest, coefficients(rest)))
            memory = memory._replace(start=start)
            answers.append(read)
        return memory, jnp.concatenate(answers)

    def _vectors(self, window: Array | None, inputs: Array, mask: Array | None) -> tuple[Array | None, Array]:
        """Returns the new window, and keys, values and queries joined, `[T, B, H (2 K + V)]`."""
        vectors = self.to_vectors(inputs)
        if self.convolution is None or window is None:
            return None, vectors
        return self.convolution(window, vectors, mask)

    def _gates(self, inputs: Array, mask: Array | None) -> Gates:
        """Returns the gates of inputs `[T, B, D]`, leaves `[B, H, T]`."""
        gates = jax.nn.sigmoid(self._by_head(self.to_gates(inputs)))
        mask = jnp.ones(inputs.shape[:2], bool) if mask is None else mask
        counts = jnp.broadcast_to(mask.T[:, None], gates.shape[:-1]).astype(gates.dtype)
        named = {name: gates[..., 1 + place] for place, name in enumerate(self.memory.gates)}
        return Gates(
            rate=gates[..., 0],
            decay=1 - named["forget"] if "forget" in named else jnp.ones_like(counts),
            momentum=named.get("momentum", jnp.zeros_like(counts)),
            mask=counts,
        ).masked()

    def _tokens(self, vectors: Array, gates: Gates) -> Tokens:
        """Returns the tokens of `vectors [T, B, H (2 K + V)]`, leaves `[B, H, T, ...]`."""
        key_size, value_size, how = self.memory.key_size, self.memory.value_size, self.memory.options.key_norm
        keys, values, queries = jnp.split(self._by_head(vectors), [key_size, key_size + value_size], axis=-1)
        return Tokens(keys=normalise(keys, how), values=values, queries=normalise(queries, how), gates=gates)

    def _by_head(self, x: Array) -> Array:
        """Returns `[T, B, H X]` as `[B, H, T, X]`."""
        return jnp.moveaxis(x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads), 0, 2)


def _join_heads(x: Array) -> Array:
    """Returns `[B, H, T, V]` as `[T, B, H V]`."""
    joined = jnp.moveaxis(x, 2, 0)
    return joined.reshape(*joined.shape[:2], joined.shape[2] * joined.shape[3])


def _split(x: Array, size: int) -> Array:
    """Returns `[B, H, T]` as `[T / C, B, H, C]`, for chunks of `C = size` tokens."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], x.shape[2] // size, size), 2, 0)
