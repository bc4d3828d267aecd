"""A layer of memories whose keys, values and gates depend only on the inputs, so that it runs in parallel chunks.

Shape letters: `T` time steps, `B` examples, `D` features, `H` heads (one memory each), `K` key features, `V` value
features, `C` tokens of a chunk, `n` taps of the convolution.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._accelerator import BACKENDS
from mnm_jax._auto_axes import with_auto_axes
from mnm_jax._checks import (
    check_array,
    check_choice,
    check_dtypes,
    check_flags,
    check_input_shape,
    check_inputs,
    check_positive,
    check_rngs,
    check_sizes,
)
from mnm_jax._linear import dot_general
from mnm_jax._masking import Steps, check_steps, select, swap_axes
from mnm_jax._params import ParamTree, set_bias
from mnm_jax._vary import vary_alike
from mnm_jax.layers._carry import LayerCarry, LayerOutput, begin, without_tokens
from mnm_jax.layers._convolution import ShortConvolution
from mnm_jax.layers._heads import Heads, begin_biases, load_kernel, normalise_reads
from mnm_jax.layers._slots import align
from mnm_jax.memory import Memory
from mnm_jax.memory._chunks.check import check_memory
from mnm_jax.memory._chunks.chunk import ChunkedMemory

Array = jax.Array


class NeuralMemoryLayer(nnx.Module):
    """Maps `[T, B, D]` to `[T, B, D]`: writes every token into H memories and reads them, in parallel chunks.

        k = W_k x,  v = W_v x,  q = W_q x,  beta / max_rate, alpha, m = sigmoid(W x + b)        per head
        phi_t = write(phi_{t-1}; k_t, v_t, beta_t, alpha_t, m_t),    y_t = W_o [f(q_t; phi_t) of all heads]
        y_t = W_o [norm(f(q_t; phi_t)) of all heads o silu(W_g x_t)]           with output_norm and output_gate
        beta / max_rate = min(1, max(0, 1.2 sigmoid(W x + b) - 0.1))           with hard_rate

    with inputs x `[D]`, keys k and queries q `[K]`, values v `[V]`, the write rate beta, the forget gate alpha and the
    momentum m (one number each), and the memory f(key; weights phi). One matrix W `[K, V]` with a forget gate:

        W_t = (1 - alpha_t) W_{t-1} - beta_t k_t (x) (k_t W_{t-1} - v_t)

    MNM-p adds -beta_t / |x|^2 x (x) (act(x W) - g) to the weights W of each layer, with its input x and its target g.
    Writes do not depend on earlier reads: a chunk of tokens takes a few matrix products. `__call__` runs a sequence,
    `step` one token; both compute the same function, and a sequence may be divided between them anywhere. The memory
    sets the rule and, by `WriteOptions`, the norm of keys and the gates: alpha with `forget`, m with `momentum`.

    ==================  =============================================================================================
    layer               memory
    ==================  =============================================================================================
    MNM-p               `local_memory(K, V, hidden_sizes=...)`, also with `write_through=True`
    MNM-g               `gradient_memory(K, V, hidden_sizes=...)`
    linear attention    `matrix_memory(K, V, "hebbian")`
    DeltaNet            `matrix_memory(K, V, "delta", options=WriteOptions(key_norm="l2"))`
    the same, gated     with `WriteOptions(key_norm="l2", forget=True)`; Gated DeltaNet forgets before the error
    Titans              `gradient_memory(K, V, hidden_sizes=..., step_size="sum", options=WriteOptions(forget=True,
                        momentum=True))` with `stale=True`; "sum" is the derivative of a sum of squares
    ==================  =============================================================================================

    **Exactness.** The local rule with any number of layers, the gradient rule without hidden layers, and the rules of a
    matrix give what `Memory.write_read` gives token by token: `chunk` changes only the speed, and `exact` is True. The
    gradient rule through hidden layers is linearised at the weights of each chunk's beginning, with the scalar kernel
    of `GradientRule`: `chunk` is then part of the model, and `exact` is False, except for chunks of one token. With
    `stale=True` all gradients of a chunk are those at the weights of its beginning, as in published layers. All this
    holds for finite numbers: without `reset`, one NaN or infinite token makes its whole chunk NaN. To find the token,
    use `step` or `chunk=1`. Distance from the outputs of single tokens, relative to their norm, before training, over
    512 tokens of N(0, 1) with D = 6, K = V = 4, two heads and one hidden layer of 8 (`tests/layers/test_bounds.py`):

    ==========  =======  ========  ========
    form        chunk 4  chunk 16  chunk 64
    ==========  =======  ========  ========
    linearised  0.19     0.31      0.38
    stale       0.34     > 5       > 10,000
    ==========  =======  ========  ========

    **Options.** All are off by default. These were measured alone, each as one change to the first row: bits per
    character of a small language model in validation (lower is better), mean of two seeds at most 0.05 apart, D = 64,
    two heads with layers of 32-32-32, `convolution=3`, 400 updates (`results/language/options.jsonl`).

    ==========================================================================  ====
    the local rule with `WriteOptions(key_norm="l2", forget=True)`              2.79
    `local_memory(..., write_through=True)`, also with `pre_activation=True`    2.72
    `output_gate=True`                                                          2.74
    `forget_bias=-2.0`                                                          2.79
    `max_rate=2.0`                                                              2.81
    keys that are not normalised, `key_norm=None`                               2.82
    no forget gate, `forget=False`                                              2.83
    `output_norm=True`                                                          2.94
    ==========================================================================  ====

    **Bounds.** With normalised steps, or the delta rule on keys of length one, and rates up to 1, outputs of untrained
    layers stayed below 100 over 20,000 tokens (`tests/layers/test_bounds.py`). A write to a matrix replaces the answer
    a to its key by (1 - alpha - beta) a + beta v, with alpha = 0 without a forget gate. At rate 2 that is a reflection,
    2 v - a, which grows by 2 |v| per token if the values at one key alternate in sign; at rates above 2 - alpha answers
    can grow exponentially. Without a forget gate the hidden weights of the local rule can grow, at most linearly: its
    targets may lie outside the range of the activation. Weights grow with the Hebbian rule without a forget gate, and
    with the step sizes "sum" and "paper" where the rate times the squared activations exceeds 1. Titans diverges
    untrained, and stays bounded with `step_size="normalised", stale=False`.

    **Cost.** Per token, head and layer `I x O` of the memory: 3 I O + 2 C (I + O) multiplications, and V O for the
    targets of the local rule, independent of T; the gradient rule takes about twice as many. Begin with `carry=None`:
    with a carry, even from `initialize_carry`, a layer that is not `exact` computes up to one chunk more, since the
    carry may end within a chunk. The state is the weights, I O numbers per head and layer. Besides activations, a
    gradient holds per token and head I O / C numbers per layer and 2 C coefficients, 4 C with a forget gate
    (`tests/layers/test_stored.py`). Softmax attention takes T (K + V) / 2 per token and head, and stores T (K + V).

    **When to take it instead of attention.** For long sequences (with K = V = 64, one hidden layer of 64 and chunks of
    32, fewer multiplications above 770 tokens), for generation with a state of constant size, and for state tracking
    such as parity (`max_rate=2.0, hard_rate=True`). Attention recalls more once the pairs exceed the size of the state.

    Args:
      features: number of features `D`.
      memory: from `local_memory`, `gradient_memory` or `matrix_memory`, or from `rule_memory` with an `ErrorRule` or a
        `SnapshotRule`. Every head has its own memory, with its own slow parameters, and writes one key per token.
      heads: number of memories `H`.
      chunk: number of tokens `C` that are processed at once. For an exact layer it changes only the speed.
      stale: whether the gradient rule through hidden layers takes all gradients of a chunk at the weights of its
        beginning. For comparison: it diverges where overlapping keys of a chunk add up.
      convolution: number of tokens `n`, its own included, on which a token's keys, values and queries depend by a
        `ShortConvolution` (Yang et al., NeurIPS 2024); 1 for none.
      max_rate: largest write rate, at most 2. Above 1 a write can reflect the answer to a key at its value: the matrix
        that multiplies the weights then has negative eigenvalues (Grazzi et al., ICLR 2025). With a `dtype` of half
        precision, reflections by the delta rule can grow or fade exponentially, since |k|^2 is 1 +- 0.004 (bfloat16):
        use normalised steps, `gradient_memory(K, V, hidden_sizes=(), options=WriteOptions("l2"))`.
      hard_rate: whether the write rate reaches 0, at which a token writes nothing, and `max_rate`, so that reflections
        at rate 2 do not fade. Initially it is 0.88 of `max_rate` for every token. A token whose rate is at a limit
        gives the gate no gradient: a head whose rate is at a limit for every token of the training does not leave it.
      forget_bias: initial bias of the forget gate; None for -4, which forgets 2% per token.
      output_norm: whether the reads of every head are divided by their root mean square, with a learned gain.
      output_gate: whether the reads are multiplied by silu(W_g x).
      backend: "xla"; or "pallas" (experimental): a kernel for GPUs and TPUs that keeps the weights of a head on the
        chip over all chunks. It supports the local and the delta rule, without momentum, biases, `write_through`,
        resets and losses, in float32, with sizes that are powers of 2, at least 16, and up to 16,384 weights per head
        for `chunk=16`, 8,192 for 32 and 4,096 for 64. It has a reverse-mode derivative of first order; others raise a
        TypeError. A CPU interprets it, see `unroll_memory`. "auto": "pallas" in chunks of 16 on one NVIDIA Hopper GPU
        with TF32, if `chunk` <= 64, K = V = 64, hidden layers none or 64, T in [2048, 8192], B H <= 64; else "xla".
      dtype: dtype of the computation, to which inputs are cast; None for `param_dtype`. Gates, and the systems that
        chunks solve, are computed in float32 at least. Fast weights have at least the memory's `param_dtype`.
      param_dtype: dtype of the layer's own parameters; the memory has its own `param_dtype`.
      rngs: random keys.

    Raises:
      TypeError: for a memory that is no `Memory`, sizes that are no integers, or dtypes that are not floating.
      ValueError: for a size below 1, `stale` without effect, or a memory that cannot be written in chunks: one with an
        `optimizer`, several `inner_steps`, a `max_norm` or `never_worse`, a `custom_memory`, a rule given as a
        function, with its own `pairs`, or with targets that depend on the fast weights; for a `max_rate` outside
        (0, 2], a `forget_bias` without a forget gate, an unknown backend, or settings that the kernel does not support.

    Examples:
      A delta rule with a forget gate and two heads, over a sequence and then over one more token:

      >>> from mnm_jax import WriteOptions, matrix_memory
      >>> memory = matrix_memory(8, 8, options=WriteOptions(key_norm="l2", forget=True))
      >>> layer = NeuralMemoryLayer(16, memory, heads=2, rngs=nnx.Rngs(0))
      >>> run, step = nnx.jit(NeuralMemoryLayer.__call__), nnx.jit(NeuralMemoryLayer.step)
      >>> inputs = jax.random.normal(jax.random.key(0), (65, 3, 16))
      >>> carry, outputs = run(layer, None, inputs[:64])
      >>> layer.exact, outputs.shape
      (True, (64, 3, 16))
      >>> carry, output = step(layer, carry, inputs[64])
      >>> _, expected = run(layer, None, inputs)
      >>> bool(jnp.allclose(output, expected[64], atol=1e-5))
      True

    References:
      Munkhdalai et al., NeurIPS 2019 (the rules); Yang et al., NeurIPS 2024 (DeltaNet in chunks) and ICLR 2025 (gated
      DeltaNet, its norm and gate); Behrouz et al., 2025 (Titans); Grazzi et al., ICLR 2025 (`max_rate`); Louizos et
      al., ICLR 2018 (the stretched sigmoid of `hard_rate`).
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
        max_rate: float = 1.0,
        hard_rate: bool = False,
        forget_bias: float | None = None,
        output_norm: bool = False,
        output_gate: bool = False,
        backend: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(features=features, heads=heads, chunk=chunk, convolution=convolution)
        check_flags(stale=stale, hard_rate=hard_rate, output_norm=output_norm, output_gate=output_gate)
        check_positive(max_rate=max_rate)
        if max_rate > 2:
            raise ValueError(f"max_rate must be <= 2, got {max_rate}: a write at a higher rate enlarges its own error.")
        check_choice("backend", backend, BACKENDS)
        check_rngs(rngs)
        dtype = check_dtypes(dtype, param_dtype)
        self._chunked = ChunkedMemory(check_memory(memory), chunk, stale)
        biases = begin_biases(self.memory, forget_bias, hard_rate=hard_rate)
        self.features = self.in_features = self.out_features = features
        self.heads, self.backend = heads, backend
        self.dtype, self.max_rate, self.hard_rate = jnp.dtype(dtype), float(max_rate), bool(hard_rate)
        if backend == "pallas":
            load_kernel().check_kernel(self.memory, chunk, self.dtype)
        self.memory_params = ParamTree(jax.vmap(memory.init)(jax.random.split(rngs.params(), heads)))

        linear = partial(nnx.Linear, dot_general=dot_general, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        vectors = heads * (2 * memory.key_size + memory.value_size)
        self.to_vectors = linear(features, vectors, use_bias=False)
        taps = ShortConvolution(vectors, convolution, param_dtype=param_dtype, rngs=rngs) if convolution > 1 else None
        self.convolution = nnx.data(taps)
        self.to_gates = linear(features, heads * (1 + len(memory.gates)))
        set_bias(self.to_gates, jnp.tile(jnp.asarray(biases, param_dtype), heads))
        if hard_rate:
            self.to_gates.kernel[:, :: len(biases)] = 0.0
        read = heads * memory.value_size
        self.to_output = linear(read, features, use_bias=False)
        self.output_gain = nnx.data(nnx.Param(jnp.ones(memory.value_size, param_dtype)) if output_norm else None)
        self.to_output_gate = nnx.data(linear(features, read, use_bias=False) if output_gate else None)

    @property
    def memory(self) -> Memory:
        """The memory of each head."""
        return self._chunked.memory

    @property
    def chunk(self) -> int:
        """The number of tokens `C` that are processed at once."""
        return self._chunked.size

    @property
    def exact(self) -> bool:
        """True if `chunk` changes only the speed, as `reset` in calls requires; otherwise it is part of the model."""
        return self._chunked.exact

    def initialize_carry(self, input_shape: tuple[int, ...]) -> LayerCarry:
        """Returns the carry at the start of sequences of inputs shaped `input_shape = (B, D)`."""
        batch_size = check_input_shape(input_shape)
        return LayerCarry(
            memory=self._chunked.start(self.memory_params.get_value(), batch_size),
            position=None if self.exact else jnp.zeros(batch_size, jnp.int32),
            window=None if self.convolution is None else self.convolution.initialize_carry(batch_size, self.dtype),
        )

    def __call__(
        self,
        carry: LayerCarry | None,
        inputs: Array,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        return_loss: bool = False,
        time_major: bool = True,
    ) -> tuple[LayerCarry, Any]:
        """Runs over a sequence, in chunks.

        Args:
          carry: the carry from which to continue; None begins a new sequence.
          inputs: `[T, B, D]`, bools, integers or floating-point numbers; they are converted to the layer's `dtype`.
          mask: `[T, B]` bool, False = padding: the carry is unchanged, the outputs are zero, and the inputs, which may
            be NaN, have no influence and get exactly zero gradient.
          reset: `[T, B]` bool, True = a new sequence begins before this token: documents packed into one row give the
            same results as separate calls, and a NaN or infinity in a token or the carry affects results only up to the
            next reset. Exception: an overflow within a chunk can make every document of this chunk NaN.
          return_loss: whether to return a `LayerOutput`, which also has the loss of every token and head before the
            token's write.
          time_major: whether time is the first axis of inputs, flags, outputs and losses; otherwise it is the second.

        Returns:
          The last carry, and the outputs `[T, B, D]`, or a `LayerOutput`.

        Raises:
          TypeError: for inputs or flags of another kind.
          ValueError: for shapes that do not agree, and a carry of another layer, batch size or dtype; for `reset` if
            the layer is not `exact`, and for `reset` or `return_loss` with "pallas".
        """
        check_flags(return_loss=return_loss, time_major=time_major)
        self._heads.check_run(reset, return_loss)
        steps = Steps(inputs, mask=mask, reset=reset)
        check_steps(steps, self.features, time_major=time_major)
        if not time_major:
            steps = swap_axes(steps)
        carry, fresh = begin(self.initialize_carry, carry, steps.inputs.shape[1:]), carry is None
        if steps.inputs.shape[0]:
            run = with_auto_axes(partial(type(self)._run, fresh=fresh, old=return_loss), steps.inputs)
            carry, results = run(self, carry, steps)
        else:
            results = without_tokens(steps.inputs.shape, self.heads, self.dtype, return_loss)
        return carry, results if time_major else swap_axes(results)

    def step(
        self,
        carry: LayerCarry | None,
        inputs: Array,
        *,
        mask: Array | None = None,
        reset: Array | None = None,
        return_loss: bool = False,
    ) -> tuple[LayerCarry, Any]:
        """Runs over one token, as in text generation.

        Args:
          carry: the carry from which to continue; None begins a new sequence.
          inputs: `[B, D]`, as in `__call__`.
          mask: `[B]` bool, False = no token: as padding in `__call__`, after a reset of this example, if any.
          reset: `[B]` bool, True = a new sequence begins before this token. Every layer supports it.
          return_loss: as in `__call__`.

        Returns:
          The new carry, and the outputs `[B, D]`, or a `LayerOutput`.

        Raises:
          TypeError: for inputs or flags of another kind.
          ValueError: for shapes that do not agree, and a carry of another layer, batch size or dtype.
        """
        check_flags(return_loss=return_loss)
        check_inputs(inputs, "B D", D=self.features)
        carry = begin(self.initialize_carry, carry, inputs.shape)
        for name, flags in {"mask": mask, "reset": reset}.items():
            if flags is not None:
                check_array(name, flags, "B", jnp.bool_, B=inputs.shape[0])
        run = with_auto_axes(partial(type(self)._run_one, old=return_loss), inputs, axes=1)
        return run(self, carry, Steps(inputs, mask=mask, reset=reset))

    @property
    def _heads(self) -> Heads:
        params = self.memory_params.get_value()
        rates: Any = {"max_rate": self.max_rate, "hard_rate": self.hard_rate}
        return Heads(chunked=self._chunked, params=params, number=self.heads, backend=self.backend, **rates)

    def _run(self, carry: LayerCarry, steps: Steps, *, fresh: bool, old: bool) -> tuple[LayerCarry, Any]:
        """Returns the carry and the results of at least one token.

        Args:
          carry: the carry before the tokens.
          steps: the inputs and flags.
          fresh: whether new sequences begin, so that all examples are at the beginning of a chunk.
          old: whether to compute losses.
        """
        self, carry, steps = vary_alike((self, carry, steps))
        inputs, mask, position = steps.masked_inputs, steps.mask, carry.position
        window, vectors = self._vectors(carry.window, inputs, mask, steps.reset)
        logits, heads = self.to_gates(inputs), self._heads
        if position is None or (fresh and mask is None):
            memory, reads = heads.run(carry.memory, vectors, heads.gates(logits, mask, steps.reset), old=old)
            position = None if position is None else position + len(inputs) % self.chunk
        else:
            mask = jnp.ones(inputs.shape[:2], bool) if mask is None else mask
            slots = align(position, mask, self.chunk, fresh=fresh)
            vectors, logits = slots.enter((vectors, logits))
            memory, reads = heads.run(carry.memory, vectors, heads.gates(logits, slots.mask), slots.ends, old=old)
            position, reads = slots.position, jax.tree.map(slots.leave, reads)
        results = steps.mask_outputs(self._results(reads, inputs))
        return vary_alike((LayerCarry(memory=memory, position=position, window=window), results))

    def _run_one(self, carry: LayerCarry, token: Steps, *, old: bool) -> tuple[LayerCarry, Any]:
        """Returns the carry and the results of one token."""
        self, carry, token = vary_alike((self, carry, token))
        carry, inputs = token.enter(carry, None if token.reset is None else self.initialize_carry((1, self.features)))
        inputs, mask = jax.tree.map(lambda x: x[None], (inputs, token.mask))
        window, vectors = self._vectors(carry.window, inputs, mask)
        heads, position = self._heads, carry.position
        memory, reads = heads.step(carry.memory, vectors, heads.gates(self.to_gates(inputs), mask), old=old)
        if position is not None:
            position = (position + (1 if token.mask is None else token.mask.astype(jnp.int32))) % self.chunk
            memory = select(position == 0, self._chunked.restart(memory), memory)
        results = token.mask_outputs(jax.tree.map(lambda x: x[0], self._results(reads, inputs)))
        return LayerCarry(memory=memory, position=position, window=window), results

    def _results(self, reads: tuple[Array, ...], inputs: Array) -> Any:
        """Returns the outputs `[T, B, D]` of reads `[T, B, H V]`, or a `LayerOutput` if they come with losses."""
        read, *losses = reads
        if self.output_gain is not None:
            read = normalise_reads(read, self.output_gain.get_value())
        if self.to_output_gate is not None:
            read = read * jax.nn.silu(self.to_output_gate(inputs))
        outputs = self.to_output(read)
        return LayerOutput(outputs, *losses) if losses else outputs

    def _vectors(
        self, window: Array | None, inputs: Array, mask: Array | None = None, reset: Array | None = None
    ) -> tuple[Array | None, Array]:
        """Returns the new window, and keys, values and queries joined, `[T, B, H (2 K + V)]`."""
        vectors = self.to_vectors(inputs)
        if self.convolution is None or window is None:
            return None, vectors
        return self.convolution(window, vectors, mask, reset)
