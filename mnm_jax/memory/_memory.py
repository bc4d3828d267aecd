"""The interface of a memory, and the checks on the arrays passed to it.

Shape letters: `B` examples, `H` heads written, `R` keys read, `K` key features, `V` value features.
"""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mnm_jax._checks import check_array, check_sizes
from mnm_jax._precision import common_dtype, wide
from mnm_jax.memory._gated import GatedState
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import MemoryParams, TargetMaps, WriteInfo

Array = jax.Array


class Memory(abc.ABC):
    """A neural memory as pure functions of its parameters and its state.

        phi_t = write(phi_{t-1}; k^w_t, v^w_t, beta_t),      v^r_t = f(k^r_t; phi_t)

    A memory object holds settings only. The memories of this library are frozen dataclasses: memories with equal
    settings are equal, have the same hash and can be pickled. A jitted function that depends on a memory is therefore
    not recompiled for a second, equal memory. (Functions among the settings are equal only if they are the same object,
    and are pickled by name.)

    Subclasses implement the abstract methods and do not override `write`.
    """

    @property
    @abc.abstractmethod
    def key_size(self) -> int:
        """The number of key features `K`."""

    @property
    @abc.abstractmethod
    def value_size(self) -> int:
        """The number of value features `V`."""

    @property
    @abc.abstractmethod
    def gates(self) -> tuple[str, ...]:
        """The names of the gates that a write takes by keyword besides the rate; see `WriteOptions`."""

    @property
    @abc.abstractmethod
    def pairs_only(self) -> bool:
        """True if the state is a `MemoryState` whose weights change only by subtracted pairs, as fast forms require."""

    @abc.abstractmethod
    def init(self, key: Array) -> MemoryParams:
        """Returns new slow parameters: the initial weights phi_0, and the target maps of the local rule.

        Args:
          key: random key; it is consumed.
        """

    @abc.abstractmethod
    def start(self, params: MemoryParams, batch_size: int) -> Any:
        """Returns the state at the start of a sequence: phi_0 for each of `batch_size` examples.

        A memory with a `param_dtype` has fast weights of at least this dtype, also in a program that casts all
        parameters, for example to bfloat16.

        For `reset_controller` and `fork_memory` of `unroll`, a state of another type than this library's own must have
        a property `of_memory` that is True.
        """

    @abc.abstractmethod
    def read(self, params: MemoryParams, state: Any, keys: Array) -> Array:
        """Returns the values `f(k; phi)`, `[B, R, V]`, of keys `[B, R, K]`."""

    @abc.abstractmethod
    def write_read(
        self,
        params: MemoryParams,
        state: Any,
        keys: Array,
        values: Array,
        rate: Array,
        read_keys: Array,
        **gates: Array,
    ) -> tuple[Any, WriteInfo, Array]:
        """Writes and then reads, with one forward pass fewer than `write` followed by `read`.

        Args:
          params: from `init`.
          state: from `start` or an earlier write.
          keys: write keys k^w, `[B, H, K]`.
          values: write values v^w, `[B, H, V]`.
          rate: write rate beta, `[B]`; with 0, and without gates, the weights stay bit-equal.
          read_keys: read keys k^r, `[B, R, K]`.
          **gates: `[B]` each, one for every name in `gates`.

        Returns:
          The new state, the measures of the write, and the values `[B, R, V]` read from the new state.

        Raises:
          TypeError: for arguments that are no arrays of floating-point numbers.
          ValueError: for shapes that do not agree, no heads, gates that differ from `gates`, or a rate or gate that is
            not finite, where its value is known.
        """

    def write(
        self, params: MemoryParams, state: Any, keys: Array, values: Array, rate: Array, **gates: Array
    ) -> tuple[Any, WriteInfo]:
        """Writes: `write_read` without read keys. Returns the new state and measures of the write."""
        check_array("keys", keys, "B H K", K=self.key_size)
        # Not keys[:, :0]: outside of `jax.jit`, JAX cannot place these zeros on a mesh with axes of the type Explicit.
        none = jax.lax.slice_in_dim(jax.lax.stop_gradient(keys), 0, 0, axis=1)
        return self.write_read(params, state, keys, values, rate, none, **gates)[:2]


def check_is_memory(memory: Memory) -> None:
    """Raises TypeError for anything that is no `Memory`."""
    if not isinstance(memory, Memory):
        raise TypeError(f"memory must be a Memory, got {memory!r}: make one with local_memory or another factory.")


def check_params(params: MemoryParams) -> None:
    """Raises TypeError for anything that is not the parameters of a memory."""
    if not isinstance(params, MemoryParams):
        raise TypeError(f"params must be MemoryParams, got {type(params).__name__}: use the memory's init.")


def check_batch(params: MemoryParams, batch_size: int) -> None:
    """Raises TypeError or ValueError unless the arguments of `start` fit."""
    check_params(params)
    if not export.is_symbolic_dim(batch_size):
        check_sizes(least=0, batch_size=batch_size)


def check_weights(params: MemoryParams) -> None:
    """Raises TypeError unless the initial weights and the target maps are floating-point numbers."""
    maps = params.targets if isinstance(params.targets, TargetMaps) else None
    for path, leaf in jax.tree_util.tree_leaves_with_path(MemoryParams(params.weights, maps)):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{name} must be floating-point numbers, got dtype {jnp.result_type(leaf)}: use astype.")


def check_state(state: Any) -> None:
    """Raises TypeError for anything that is no state of this library's own memories."""
    if not hasattr(state, "batch_size"):
        raise TypeError(f"state must be from start or a write, got {type(state).__name__}: use the memory's start.")


def check_gates(memory: Memory, gates: dict[str, Array]) -> None:
    """Raises ValueError unless the names of the gates are those that the memory's write takes."""
    if set(gates) != set(memory.gates):
        raise ValueError(
            f"this memory's write takes the gates ({', '.join(memory.gates)}), got ({', '.join(gates)}): pass by "
            "keyword the gates that its WriteOptions switch on, and no others."
        )


def check_read(memory: Any, state: Any, keys: Array) -> None:
    """Raises TypeError or ValueError unless state and keys belong to this memory, one of this library's own."""
    check_state(state)
    fits = isinstance(state, GatedState) != memory.pairs_only
    if fits and isinstance(state, GatedState):
        has = state.surprise is not None, state.optimizer is not None
        fits = has == (memory.options.momentum, memory.options.optimizer is not None)
    if not fits:
        raise TypeError(
            f"this memory does not take this {type(state).__name__}, which is of a memory of another kind or with "
            "other write options: use the start of this memory."
        )
    network = getattr(memory, "network", None)
    weights = state.weights if isinstance(state, MemoryState | GatedState) else None
    if network is not None and isinstance(weights, tuple):
        shapes = tuple(weight.shape[1:] for weight in weights)
        if shapes != network.shapes:
            raise ValueError(
                f"this memory has layers of the shapes {list(network.shapes)}, got a state with {list(shapes)}, which "
                "is of a memory of other sizes: use the start of this memory."
            )
        for weight in weights:
            if common_dtype(weight.dtype, memory.param_dtype) != weight.dtype:
                raise TypeError(
                    f"the fast weights must have the memory's param_dtype {jnp.dtype(memory.param_dtype)}, got a state "
                    f"with {weight.dtype}, which would lose writes: use the start of this memory, or astype."
                )
    check_array("keys", keys, "B H K", B=state.batch_size, K=memory.key_size)


def check_write(
    memory: Any,
    state: Any,
    keys: Array,
    values: Array,
    rate: Array,
    read_keys: Array,
    gates: dict[str, Array],
) -> None:
    """Raises TypeError or ValueError unless the arguments of a write fit the memory and each other."""
    check_read(memory, state, keys)
    batch_size, heads = keys.shape[:2]
    if heads < 1:
        raise ValueError(f"keys must have at least one head, got shape {keys.shape}: call read to read only.")
    check_array("values", values, "B H V", B=batch_size, H=heads, V=memory.value_size)
    check_array("read_keys", read_keys, "B R K", B=batch_size, K=memory.key_size)
    check_gates(memory, gates)
    for name, gate in {"rate": rate, **gates}.items():
        check_array(name, gate, "B", B=batch_size)
        if not isinstance(gate, jax.core.Tracer) and not np.all(np.isfinite(gate)):
            raise ValueError(f"{name} must be finite, got {gate}.")


def mean_square(answers: Array, values: Array) -> Array:
    """Returns the mean over heads and features of (f(k) - v)^2, `[B, H, V] -> [B]`, in at least float32."""
    error = wide(answers) - wide(values)
    return jnp.mean(error * error, axis=(1, 2))


def measures(predicted: Array, kept: Array, values: Array, size: Array) -> WriteInfo:
    """Returns the measures of a write, from the answers before and after it and the norm of the change."""
    before, after = mean_square(predicted, values), mean_square(kept, values)
    size = size.astype(common_dtype(size.dtype, after.dtype))
    return WriteInfo(loss_before=before, loss_after=after, update_norm=size)
