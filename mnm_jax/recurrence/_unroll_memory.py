"""Runs a memory over a sequence of given keys and values.

Shape letters: `T` time steps, `B` examples, `H` heads written, `R` keys read, `K`/`V` key and value features.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._accelerator import BACKENDS, on_measured_gpu
from mnm_jax._checks import check_array, check_choice
from mnm_jax._params import ParamTree, leaf_names
from mnm_jax.memory import Memory, MemoryParams, WriteInfo
from mnm_jax.memory._memory import check_batch, check_gates, check_is_memory, check_state
from mnm_jax.recurrence._carry import first_change
from mnm_jax.recurrence._unroll import unroll

Array = jax.Array


def unroll_memory(
    memory: Memory,
    params: MemoryParams,
    state: Any | None,
    keys: Array,
    values: Array,
    rate: Array,
    read_keys: Array,
    *,
    mask: Array | None = None,
    reset: Array | None = None,
    backend: str = "auto",
    checkpoint_every: int | None = None,
    **gates: Array,
) -> tuple[Any, WriteInfo, Array]:
    """Runs a memory over time for given keys and values: `phi_t, v^r_t = write_read(phi_{t-1}; k^w_t, v^w_t, k^r_t)`.

    It returns what `Memory.write_read` returns in a `jax.lax.scan` over the steps, but runs in the execution forms of
    `unroll`. They store no weights per step, except for a memory with gates or an inner optimiser or from
    `custom_memory`, whose form is "plain": give `checkpoint_every` for its long sequences. Use this function in a model
    whose keys, values and rates do not depend on its reads from this memory, so that they can be computed for all steps
    at once. In `MNMCell` and `ChainCell` they do depend on reads. `NeuralMemoryLayer` writes one key per head and step,
    and computes chunks of steps in parallel.

    Args:
      memory: from `gradient_memory`, `local_memory` or another factory.
      params: its slow parameters, from `memory.init`.
      state: the state before the first step; None begins new sequences, as `memory.start` does.
      keys: write keys k^w, `[T, B, H, K]`. Keys, values, rates and gates have one dtype.
      values: write values v^w, `[T, B, H, V]`.
      rate: write rates beta, `[T, B]`.
      read_keys: read keys k^r, `[T, B, R, K]`, read after the write of their step; `R` may be 0.
      mask: `[T, B]` bool, False = padding: the state stays bit-equal, the results are zero, and the inputs, which may
        be NaN, have no influence and get exactly zero gradient.
      reset: `[T, B]` bool, True = a new sequence begins at this step, before its write.
      backend: "xla"; or "pallas" (experimental): a kernel for GPUs and TPUs that keeps the weights of an example on
        the chip over all steps, forward and backward. It supports the local, the gradient and the delta rule with every
        step size and `key_norm`, without biases, `write_through`, resets and the other `WriteOptions`, in float32, with
        sizes that are powers of 2, at least 16, for 1, 2, 4 or 8 heads and 0, 1, 2, 4 or 8 read keys, and with at most
        49,152 weights per example. (Up to 12,288 weights and their cotangents fit in the registers of an H100; more
        would use its caches.) It has a reverse-mode derivative of first order; others raise a TypeError that names
        "xla". On a CPU it runs in Pallas' slow interpret mode, which `jax.shard_map` accepts with `check_vma=False`.
        "auto": "xla"; on one NVIDIA Hopper GPU with products in TF32 the kernel, for the local rule with three layers
        of 64 or 128 units, T >= 128, B <= 64 and H = R = 1 (measured on an H200 for T = 128, B = 64).
      checkpoint_every: see `unroll`; selects "xla", since the kernel has no checkpoints.
      **gates: `[T, B]` each, one for every name in `memory.gates`.

    Returns:
      The state after the last step, the measures of the writes `[T, B]`, and the values `[T, B, R, V]`.

    Raises:
      TypeError: for an argument of the wrong kind.
      ValueError: for shapes or dtypes that do not agree, gates that differ from `memory.gates`, an unknown backend,
        `checkpoint_every` below 1 or with "pallas", or settings that the kernel does not support.

    Examples:
      A model whose controller does not receive the reads computes keys and values for all steps at once:

      >>> from mnm_jax import LSTMCell, local_memory, unroll
      >>> memory = local_memory(4, 4, hidden_sizes=(8,))
      >>> params = memory.init(jax.random.key(0))
      >>> controller = LSTMCell(3, 8, rngs=nnx.Rngs(0))
      >>> to_vectors = nnx.Linear(8, 13, rngs=nnx.Rngs(1))
      >>> @jax.jit
      ... def run(inputs):                                                         # [T, B, D]
      ...     _, hidden = unroll(controller, None, inputs)
      ...     vectors = to_vectors(hidden)
      ...     keys, values, read_keys = jnp.split(vectors[:, :, None, :12], 3, -1)  # H = R = 1
      ...     rate = jax.nn.sigmoid(vectors[:, :, 12])
      ...     return unroll_memory(memory, params, None, keys, values, rate, read_keys)
      >>> state, info, reads = run(jnp.ones((6, 5, 3)))
      >>> print(reads.shape, info.loss_after.shape)
      (6, 5, 1, 4) (6, 5)
    """
    check_is_memory(memory)
    check_choice("backend", backend, BACKENDS)
    check_array("keys", keys, "T B H K", K=memory.key_size)
    steps, batch, heads = keys.shape[:3]
    if heads < 1:
        raise ValueError(f"keys must have at least one head, got shape {keys.shape}: call read to read only.")
    sizes = {"T": steps, "B": batch}
    check_array("values", values, "T B H V", H=heads, V=memory.value_size, **sizes)
    check_array("read_keys", read_keys, "T B R K", K=memory.key_size, **sizes)
    check_gates(memory, gates)
    scalars = {"rate": rate} | {name: gates[name] for name in memory.gates}
    for name, gate in scalars.items():
        check_array(name, gate, "T B", **sizes)
    keys, values, read_keys = map(jnp.asarray, (keys, values, read_keys))  # float64 of NumPy becomes float32
    scalars = {name: jnp.asarray(gate) for name, gate in scalars.items()}
    rate = scalars["rate"]
    for name, array in {"values": values, "read_keys": read_keys, **scalars}.items():
        if array.dtype != keys.dtype:
            raise ValueError(f"{name} must have the dtype of keys, {keys.dtype}, got {array.dtype}: use astype.")
    for name, flags in {"mask": mask, "reset": reset}.items():
        if flags is not None:
            check_array(name, flags, "T B", jnp.bool_, **sizes)
    check_batch(params, batch)
    if state is not None:
        own = jax.eval_shape(lambda params: memory.start(params, batch), params)
        if hasattr(own, "batch_size"):  # not needed in the state of a user's own memory
            check_state(state)
            if state.batch_size != batch:
                raise ValueError(f"state must have the batch size of keys, {batch}, got {state.batch_size}.")
        wanted: Any = jax.tree.structure(own)
        if wanted != jax.tree.structure(state):
            leaves = ", ".join(leaf_names(own))
            raise TypeError(f"state must be from this memory's start or write, with the leaves {leaves}: got others.")
        if change := first_change(own, state):
            raise TypeError(f"state must be from this memory's start or write, but {change}.")
    if backend == "pallas" and checkpoint_every is not None:
        raise ValueError(
            f"backend='pallas' needs checkpoint_every=None, got {checkpoint_every}: leave it out, or pass "
            "backend='auto'."
        )
    if backend == "pallas" or (backend == "auto" and checkpoint_every is None and on_measured_gpu(keys)):
        from mnm_jax.memory._kernels import sequence  # its import loads Pallas

        if backend == "pallas":
            sequence.check_kernel(memory, keys, read_keys, reset)
        if steps and batch and (backend == "pallas" or sequence.wins(memory, keys, read_keys, reset)):
            state = memory.start(params, batch) if state is None else state
            return sequence.write_read_all(memory, params, state, keys, values, rate, read_keys, mask)
    cell = _GivenTokens(memory, params, heads, read_keys.shape[2])
    parts = [x.reshape(steps, batch, math.prod(x.shape[2:])) for x in (keys, values, read_keys, *scalars.values())]
    inputs = jnp.concatenate(parts, -1)
    state, (info, reads) = unroll(cell, state, inputs, mask=mask, reset=reset, checkpoint_every=checkpoint_every)
    return state, info, reads


class _GivenTokens(nnx.RNNCellBase):
    """A `MemoryCell` whose inputs are keys, values, read keys, rate and gates, and whose carry is the memory's state.

    Args:
      memory: the memory.
      params: its slow parameters.
      heads: `H`.
      reads: `R`.
    """

    def __init__(self, memory: Memory, params: MemoryParams, heads: int, reads: int):
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(params)
        self.heads, self.reads = heads, reads

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of the inputs: 1."""
        return 1

    def linear_maps(self) -> list[nnx.Linear]:
        """Returns no maps."""
        return []

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """Returns the state at the start of sequences of inputs `input_shape = (B, D)`."""
        del rngs, carry_init
        return self.memory.start(self.memory_params.get_value(), input_shape[0])

    def __call__(self, carry: Any, inputs: Array) -> tuple[Any, Any]:
        """Returns the state, the measures of the write and the values read, after a step with inputs `[B, D]`."""
        key_size, value_size = self.memory.key_size, self.memory.value_size
        shapes = [(self.heads, key_size), (self.heads, value_size), (self.reads, key_size)]
        ends = list(itertools.accumulate(map(math.prod, shapes)))
        *parts, scalars = jnp.split(inputs, ends, axis=-1)
        keys, values, read_keys = (x.reshape(inputs.shape[0], *shape) for x, shape in zip(parts, shapes, strict=True))
        rate, *gates = (scalars[:, place] for place in range(scalars.shape[1]))
        named = dict(zip(self.memory.gates, gates, strict=True))
        params = self.memory_params.get_value()
        state, info, reads = self.memory.write_read(params, carry, keys, values, rate, read_keys, **named)
        return state, (info, reads)
