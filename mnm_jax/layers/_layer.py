"""A layer of memories whose keys, values and gates depend only on the inputs, so that it runs in parallel chunks.

Shape letters: `T` time steps, `B` examples, `D` features, `H` heads (one memory each), `K` key features, `V` value
features, `C` tokens of a chunk, `n` taps of the convolution.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_array, check_choice, check_dtype, check_flags, check_sizes
from mnm_jax._masking import Steps, check_steps, select
from mnm_jax._params import ParamTree, leaf_names
from mnm_jax._vary import vary_alike
from mnm_jax.layers._convolution import ShortConvolution
from mnm_jax.layers._slots import align
from mnm_jax.memory import Memory
from mnm_jax.memory._chunks.chunk import ChunkedMemory, ChunkState, Tokens, check_memory
from mnm_jax.memory._chunks.mixture import Gates, mix, wide
from mnm_jax.memory._options import gate_biases, normalise

Array = jax.Array

BACKENDS = ("auto", "xla", "pallas")


class LayerCarry(NamedTuple):
    """The state of a layer between two tokens.

    Attributes:
      memory: the memories of all heads, leaves `[B, H, ...]`.
      position: number of tokens of the current chunk processed so far, `[B]`; None for an exact layer.
      window: keys, values and queries of the last tokens, `[B, n - 1, H (2 K + V)]`; None without a convolution.
    """

    memory: ChunkState
    position: Array | None
    window: Array | None


class NeuralMemoryLayer(nnx.Module):
    """A layer `[T, B, D] -> [T, B, D]` that writes every token into H memories and reads them, without recurrence.

        k = W_k x,  v = W_v x,  q = W_q x,  r, alpha, m = sigmoid(W x + b)                              per head
        phi_t = write(phi_{t-1}; k_t, v_t, r_t, alpha_t, m_t),    y_t = W_o [f(q_t; phi_t) of all heads]

    Writes do not depend on earlier reads, so that a chunk of tokens takes a few matrix products. `__call__` runs a
    sequence and `step` one token; both compute the same function, and a sequence may be divided between calls and steps
    anywhere. With a convolution, k, v and q also pass through a `ShortConvolution` over the last n tokens (Yang et al.,
    NeurIPS 2024). The settings of the memory decide the rule, the normalisation of the keys and the gates: alpha with
    `WriteOptions(forget=True)`, initially 2% per token, and m with `momentum=True`.

    ==================  =============================================================================================
    layer               memory
    ==================  =============================================================================================
    MNM-p               `local_memory(K, V, hidden_sizes=...)`
    MNM-g               `gradient_memory(K, V, hidden_sizes=...)`
    linear attention    `matrix_memory(K, V, "hebbian")`
    DeltaNet            `matrix_memory(K, V, "delta", options=WriteOptions(key_norm="l2"))`
    gated DeltaNet      the same with `WriteOptions(key_norm="l2", forget=True)`
    Titans              `gradient_memory(K, V, hidden_sizes=..., step_size="sum", options=WriteOptions(forget=True,
                        momentum=True))` with `stale=True`; "sum" is the derivative of the sum of squares, twice that of
                        Titans' loss
    ==================  =============================================================================================

    **Exactness.** The local rule with any number of layers, the gradient rule without hidden layers, and the rules of a
    matrix give what `Memory.write_read` gives token by token: `chunk` changes only the speed, and `exact` is True. The
    gradient rule through hidden layers is linearised at the weights of each chunk's beginning, with the scalar kernel
    of `GradientRule`: `chunk` is then part of the model, and `exact` is False, except for chunks of one token. With
    `stale=True` all gradients of a chunk are those at the weights of its beginning, as in published layers. The
    distance from the outputs of single tokens, relative to the norm of these outputs, before training, over 512
    tokens of N(0, 1) with D = 6, K = V = 4, two heads and one hidden layer of 8 (`tests/layers/test_bounds.py`):

    ==========  =======  ========  ========
    form        chunk 4  chunk 16  chunk 64
    ==========  =======  ========  ========
    linearised  0.19     0.31      0.38
    stale       0.34     31        27,000
    ==========  =======  ========  ========

    **Bounds.** With normalised steps, or the delta rule on keys of length one, outputs stay bounded over any number of
    tokens. Without a forget gate the hidden weights of the local rule can grow, at most linearly: its targets may lie
    outside the range of the activation. Weights grow by design with the Hebbian rule without a forget gate, and with
    the step sizes "sum" and "paper" where the rate times the squared activations exceeds 1: Titans diverges untrained,
    and is bounded with `step_size="normalised"` and `stale=False`.

    **Cost.** Per token, head and layer `I x O` of the memory: 3 I O + 2 C (I + O) multiplications, independent of T;
    the gradient rule takes about twice as many. Softmax attention takes T (K + V) / 2 per token and head, and stores
    T (K + V) numbers instead of the weights. The layer is therefore cheaper than attention for long sequences (with
    K = V = 64, one hidden layer of 64 and chunks of 32: above 650 tokens), and for generation with a state of constant
    size. It recalls less than attention does as soon as the pairs exceed the size of the state.

    There are no resets: a new sequence begins with a new carry. All forms can be differentiated any number of times, in
    forward and reverse mode, except with `backend="pallas"`.

    Args:
      features: number of features `D`.
      memory: from `local_memory`, `gradient_memory` or `matrix_memory`, or from `rule_memory` with an `ErrorRule` or a
        `SnapshotRule`. Every head has its own memory, with its own slow parameters, and writes one key per token.
      heads: number of memories `H`.
      chunk: number of tokens `C` that are processed at once. For an exact layer it changes only the speed.
      stale: whether the gradient rule through hidden layers takes all gradients of a chunk at the weights of its
        beginning. For comparison: it diverges where overlapping keys of a chunk add up.
      convolution: number of tokens `n` on which keys, values and queries depend, including their own; 1 for no
        convolution.
      backend: "xla"; or "pallas" (experimental, not measured): a kernel for GPUs and TPUs that keeps the weights of a
        head on the chip over all chunks. It supports the local rule and the delta rule, without momentum and biases, in
        float32, with sizes that are powers of 2, at least 16, and with weights up to 16,384 numbers per head for
        `chunk=16`, 8,192 for 32 and 4,096 for 64. It has a reverse-mode derivative of first order. On a CPU it runs in
        Pallas' slow interpret mode, which `jax.shard_map` accepts with `check_vma=False`. "auto": "xla".
      dtype: dtype of the computation, to which inputs are cast; None for `param_dtype`. Gates, and the systems that
        chunks solve, are computed in float32 at least. Fast weights keep the dtype of the memory's parameters.
      param_dtype: dtype of the layer's own parameters; the memory has its own `param_dtype`.
      rngs: random keys.

    Raises:
      TypeError: for a memory that is no `Memory`, sizes that are no integers, or dtypes that are not floating.
      ValueError: for a size below 1, `stale` without effect, or a memory that cannot be written in chunks: one with an
        `optimizer`, several `inner_steps`, a `max_norm` or `never_worse`, a `custom_memory`, a rule given as a
        function, or one whose targets depend on the fast weights; for an unknown backend, or settings that the kernel
        does not support.

    Examples:
      Gated DeltaNet with two heads, over a sequence and then over one more token:

      >>> from mnm_jax import WriteOptions, matrix_memory
      >>> memory = matrix_memory(8, 8, options=WriteOptions(key_norm="l2", forget=True))
      >>> layer = NeuralMemoryLayer(16, memory, heads=2, rngs=nnx.Rngs(0))
      >>> layer.exact
      True
      >>> run, step = nnx.jit(NeuralMemoryLayer.__call__), nnx.jit(NeuralMemoryLayer.step)
      >>> inputs = jax.random.normal(jax.random.key(0), (65, 3, 16))
      >>> carry, outputs = run(layer, None, inputs[:64])
      >>> outputs.shape
      (64, 3, 16)
      >>> carry, output = step(layer, carry, inputs[64])
      >>> _, expected = run(layer, None, inputs)
      >>> bool(jnp.allclose(output, expected[64], atol=1e-5))
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
        stale: bool = False,
        convolution: int = 1,
        backend: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(features=features, heads=heads, chunk=chunk, convolution=convolution)
        check_flags(stale=stale)
        check_choice("backend", backend, BACKENDS)
        dtype = param_dtype if dtype is None else dtype
        check_dtype(param_dtype=param_dtype, dtype=dtype)
        self._chunked = ChunkedMemory(check_memory(memory), chunk, stale)
        self.memory = self._chunked.memory
        self.features, self.heads, self.chunk = features, heads, chunk
        self.dtype, self.backend = jnp.dtype(dtype), backend
        if backend == "pallas":
            _kernel().check_kernel(self.memory, chunk, self.dtype)
        self.memory_params = ParamTree(jax.vmap(memory.init)(jax.random.split(rngs.params(), heads)))

        linear = partial(nnx.Linear, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        vectors = heads * (2 * memory.key_size + memory.value_size)
        self.to_vectors = linear(features, vectors, use_bias=False)
        taps = ShortConvolution(vectors, convolution, param_dtype=param_dtype, rngs=rngs) if convolution > 1 else None
        self.convolution = nnx.data(taps)
        self.to_gates = linear(features, heads * (1 + len(memory.gates)))
        self.to_gates.bias = nnx.Param(jnp.tile(jnp.asarray(gate_biases(memory.gates), param_dtype), heads))
        self.to_output = linear(heads * memory.value_size, features, use_bias=False)

    @property
    def exact(self) -> bool:
        """True if `chunk` changes only the speed; otherwise it is part of the model."""
        return self._chunked.exact

    def initialize_carry(self, input_shape: tuple[int, ...]) -> LayerCarry:
        """Returns the carry at the start of sequences of inputs shaped `input_shape = (B, D)`."""
        batch_size = input_shape[0]
        return LayerCarry(
            memory=self._chunked.start(self.memory_params.get_value(), batch_size),
            position=None if self.exact else jnp.zeros(batch_size, jnp.int32),
            window=None if self.convolution is None else self.convolution.initialize_carry(batch_size, self.dtype),
        )

    def __call__(
        self, carry: LayerCarry | None, inputs: Array, *, mask: Array | None = None, time_major: bool = True
    ) -> tuple[LayerCarry, Array]:
        """Runs over a sequence, in chunks.

        Args:
          carry: the carry from which to continue; None begins a new sequence.
          inputs: `[T, B, D]`.
          mask: `[T, B]` bool, False = padding: the carry is unchanged, the outputs are zero, and the inputs, which may
            be NaN, have no influence and get exactly zero gradient.
          time_major: whether time is the first axis of inputs, mask and outputs; otherwise it is the second.

        Returns:
          The last carry, and the outputs `[T, B, D]`.

        Raises:
          TypeError: for inputs or a mask of another kind.
          ValueError: for shapes that do not agree, and a carry of another layer, batch size or dtype.
        """
        check_array("inputs", inputs, "T B D" if time_major else "B T D", D=self.features)
        steps = Steps(inputs, mask=mask)
        check_steps(steps, time_major=time_major)
        if not time_major:
            steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
        start = self._start(carry, steps.inputs.shape[1:])
        layer, start, steps = vary_alike((self, start, steps))
        if steps.inputs.shape[0]:
            start, outputs = layer._run(start, steps, fresh=carry is None)
        else:
            outputs = jnp.zeros(steps.inputs.shape, self.dtype)
        return start, outputs if time_major else jnp.swapaxes(outputs, 0, 1)

    def step(self, carry: LayerCarry | None, inputs: Array) -> tuple[LayerCarry, Array]:
        """Runs over one token, as in text generation.

        Args:
          carry: the carry from which to continue; None begins a new sequence.
          inputs: `[B, D]`.

        Returns:
          The new carry, and the outputs `[B, D]`.

        Raises:
          TypeError: for inputs of another kind.
          ValueError: for inputs of another shape, and a carry of another layer, batch size or dtype.
        """
        check_array("inputs", inputs, "B D", D=self.features)
        layer, carry, inputs = vary_alike((self, self._start(carry, inputs.shape), inputs))
        return layer._run_one(carry, inputs)

    def _start(self, carry: LayerCarry | None, input_shape: tuple[int, ...]) -> LayerCarry:
        """Returns a new carry for None; raises ValueError for a carry that does not fit the inputs."""
        if carry is None:
            return self.initialize_carry(input_shape)
        expected = jax.eval_shape(lambda: self.initialize_carry(input_shape))
        remedy = "pass the carry of an earlier call of this layer with the same examples, or None for new sequences."
        structure: Any = jax.tree.structure(carry)
        if structure != jax.tree.structure(expected):
            raise ValueError(f"carry must be a LayerCarry of this layer, got {structure}: {remedy}")
        leaves = zip(leaf_names(expected), jax.tree.leaves(carry), jax.tree.leaves(expected), strict=True)
        for name, found, wanted in leaves:
            if (jnp.shape(found), jnp.result_type(found)) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"carry.{name} must be {wanted.dtype} of shape {wanted.shape} for inputs of B = {input_shape[0]} "
                    f"examples, got {jnp.result_type(found)} of {jnp.shape(found)}: {remedy}"
                )
        return carry

    def _run(self, carry: LayerCarry, steps: Steps, *, fresh: bool) -> tuple[LayerCarry, Array]:
        """Returns the carry and the outputs `[T, B, D]` after at least one token; `fresh` for a new sequence."""
        inputs, mask, position = jax.vmap(lambda step: step.enter((), ())[1])(steps), steps.mask, carry.position
        window, vectors = self._vectors(carry.window, inputs, mask)
        logits = self.to_gates(inputs)
        if position is None or (fresh and mask is None):
            memory, answers = self._run_chunks(carry.memory, vectors, self._gates(logits, mask), None)
            position = None if position is None else position + len(inputs) % self.chunk
        else:
            slots = align(position, jnp.ones(inputs.shape[:2], bool) if mask is None else mask, self.chunk)
            vectors, logits = slots.enter((vectors, logits))
            memory, answers = self._run_chunks(carry.memory, vectors, self._gates(logits, slots.mask), slots.ends)
            position, answers = slots.position, slots.leave(answers)
        _, outputs = jax.vmap(lambda step, y: step.leave((), (), y))(steps, self.to_output(answers))
        return vary_alike((LayerCarry(memory=memory, position=position, window=window), outputs))

    def _run_one(self, carry: LayerCarry, inputs: Array) -> tuple[LayerCarry, Array]:
        """Returns the carry and the outputs `[B, D]` after one token."""
        window, vectors = self._vectors(carry.window, inputs[None], None)
        tokens = self._tokens(vectors, self._gates(self.to_gates(inputs[None]), None))
        memory, answers = self._chunked.step(self.memory_params.get_value(), carry.memory, tokens)
        position = carry.position
        if position is not None:
            position = (position + 1) % self.chunk
            memory = select(position == 0, self._chunked.restart(memory), memory)
        return LayerCarry(memory=memory, position=position, window=window), self.to_output(_join_heads(answers))[0]

    def _run_chunks(
        self, memory: ChunkState, vectors: Array, gates: Gates, ends: Array | None
    ) -> tuple[ChunkState, Array]:
        """Returns the memories after a sequence, and all answers `[T, B, H V]`.

        Args:
          memory: the memories before the sequence.
          vectors: keys, values and queries, `[T, B, H (2 K + V)]`.
          gates: `[B, H, T]` each.
          ends: for each C tokens, whether the example's chunk ends with them, `[T / C, B]`; None if all do.
        """
        params, steps = self.memory_params.get_value(), len(vectors)
        whole = steps - steps % self.chunk
        coefficients = jax.vmap(partial(mix, momentum="momentum" in self.memory.gates))

        # The forward pass stores only `vectors` and the memories between chunks. Computing a chunk and its tokens again
        # in the backward pass is faster than storing and loading the residuals.
        @jax.checkpoint
        def run(memory: ChunkState, part: tuple) -> tuple[ChunkState, Array]:
            vectors, gates, mixture = part
            memory, answers = self._chunked.chunk(params, memory, self._tokens(vectors, gates), mixture)
            return memory, _join_heads(answers)

        def run_whole(memory: ChunkState, part: tuple) -> tuple[ChunkState, Array]:
            memory, answers = run(memory, part[:3])
            restarted = self._chunked.restart(memory)
            return restarted if part[3] is None else select(part[3], restarted, memory), answers

        answers = []
        if whole:
            chunks = vectors[:whole].reshape(whole // self.chunk, self.chunk, *vectors.shape[1:])
            chunk_gates = jax.tree.map(lambda x: _split(x[:, :, :whole], self.chunk), gates)
            mixture = jax.vmap(coefficients)(chunk_gates)
            if self.backend == "pallas":
                tokens = self._tokens(vectors[:whole], jax.tree.map(lambda x: x[:, :, :whole], gates))
                memory, read = _kernel().run_sequence(self._chunked, params, memory, tokens, mixture)
                answers.append(_join_heads(read))
            else:
                memory, read = jax.lax.scan(run_whole, memory, (chunks, chunk_gates, mixture, ends))
                answers.append(read.reshape(whole, *read.shape[2:]))
        if steps > whole:
            rest = jax.tree.map(lambda x: x[:, :, whole:], gates)
            memory, read = run(memory, (vectors[whole:], rest, coefficients(rest)))
            answers.append(read)
        return memory, jnp.concatenate(answers)

    def _vectors(self, window: Array | None, inputs: Array, mask: Array | None) -> tuple[Array | None, Array]:
        """Returns the new window, and keys, values and queries joined, `[T, B, H (2 K + V)]`."""
        vectors = self.to_vectors(inputs)
        if self.convolution is None or window is None:
            return None, vectors
        return self.convolution(window, vectors, mask)

    def _gates(self, logits: Array, mask: Array | None) -> Gates:
        """Returns the gates of logits `[T, B, H (1 + gates)]`, leaves `[B, H, T]` in at least single precision."""
        mask = jnp.ones(logits.shape[:2], bool) if mask is None else mask
        gates = jax.nn.sigmoid(self._by_head(wide(logits)))
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


def _kernel() -> Any:
    """Returns the module of the kernel, whose import loads Pallas."""
    from mnm_jax.memory._chunks import kernel

    return kernel


def _join_heads(x: Array) -> Array:
    """Returns `[B, H, T, V]` as `[T, B, H V]`."""
    joined = jnp.moveaxis(x, 2, 0)
    return joined.reshape(*joined.shape[:2], joined.shape[2] * joined.shape[3])


def _split(x: Array, size: int) -> Array:
    """Returns `[B, H, T]` as `[T / C, B, H, C]`, for chunks of `C = size` tokens."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], x.shape[2] // size, size), 2, 0)
