"""Contracts of a memory.

Shape letters: `B` examples, `H` heads, `K` key features, `V` value features.
"""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnm_jax.cells import MNMCell
from mnm_jax.memory import GatedState, Memory, MemoryParams, MemoryState
from mnm_jax.testing._cell_programs import check_cell_forms, trace_cell_forms
from mnm_jax.testing._contract import (
    assert_close,
    assert_derivatives,
    assert_equal,
    assert_finite,
    contract,
    first_dtype,
    is_float,
    kinds,
    normal,
    require,
    sum_of_sines,
)

Array = jax.Array
B, H = 3, 2


class _Write(NamedTuple):
    """The arguments of `write_read`. keys, read_keys: `[B, H, K]`; values: `[B, H, V]`; rate and gates: `[B]`.

    They are arrays of JAX or of NumPy.
    """

    keys: Any
    values: Any
    rate: Any
    read_keys: Any
    gates: dict[str, Any]

    @partial(jax.jit, static_argnums=1)
    def apply(self, memory: Memory, params: MemoryParams, state: Any) -> Any:
        """Returns (state, measures, values read)."""
        return memory.write_read(params, state, self.keys, self.values, self.rate, self.read_keys, **self.gates)


@partial(jax.jit, static_argnums=0)
def _read(memory: Memory, params: MemoryParams, state: Any, keys: Array) -> Array:
    """Reads as one program: outside of `jax.jit` every operation compiles alone."""
    return memory.read(params, state, keys)


@jax.jit
def _loss(answers: Array, values: Array) -> Array:
    """Returns the mean of the squared errors over heads and features, `[B]`."""
    return jnp.mean(jnp.square(answers - values), axis=(1, 2))


@jax.jit
def _distance(new: Any, old: Any) -> Array:
    """Returns the norm of the change of all weights of an example, `[B]`."""
    change = jax.tree.leaves(jax.tree.map(jnp.subtract, new, old))
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), tuple(range(1, leaf.ndim))) for leaf in change))


def _begin(memory: Memory, seed: int = 0) -> tuple[MemoryParams, Any, _Write]:
    """Returns new parameters, a state after one write, and the arguments of the next write."""
    params = jax.jit(memory.init)(jax.random.key(seed))
    dtype = first_dtype(params)
    state, _, _ = _draw(memory, dtype, 10).apply(memory, params, memory.start(params, B))
    return params, state, _draw(memory, dtype, 20)


def _draw(memory: Memory, dtype: Any, seed: int) -> _Write:
    return _Write(
        keys=normal((B, H, memory.key_size), dtype, seed),
        values=normal((B, H, memory.value_size), dtype, seed + 1),
        rate=np.linspace(0.2, 0.8, B).astype(dtype),
        read_keys=normal((B, H, memory.key_size), dtype, seed + 2),
        gates={name: np.linspace(0.1, 0.3, B).astype(dtype) for name in memory.gates},
    )


@contract
def check_memory_equality(make_memory: Callable[..., Memory]) -> None:
    """Checks that memories with equal settings are equal, have the same hash, and can be pickled.

    Args:
      make_memory: `make_memory(param_dtype=...)` returns the memory.
    """
    first, second = (make_memory(param_dtype=jnp.float32) for _ in range(2))
    require(
        first == second and hash(first) == hash(second),
        f"{first} and {second} must be equal: give a rule its settings as fields of a frozen dataclass with __call__, "
        "since two functools.partial are never equal.",
    )
    require(pickle.loads(pickle.dumps(first)) == first, "A memory must be equal to itself after pickling.")


@contract
def check_memory_dtypes(make_memory: Callable[..., Memory]) -> None:
    """Checks that a write changes no shape or dtype of the state, and that a read answers in the dtype of the keys.

    Args:
      make_memory: `make_memory(param_dtype=...)` returns the memory.
    """
    for param_dtype, dtype in [(jnp.float32,) * 2, (jnp.bfloat16,) * 2, (jnp.float32, jnp.bfloat16)]:
        memory = make_memory(param_dtype=param_dtype)
        params = jax.eval_shape(memory.init, jax.random.key(0))
        state = jax.eval_shape(partial(memory.start, batch_size=B), params)
        require(first_dtype(params) == param_dtype, f"Parameters must be {param_dtype}, got {first_dtype(params)}.")
        write = _draw(memory, dtype, 20)
        new, info, values = jax.eval_shape(partial(write.apply, memory), params, state)
        require(kinds(new) == kinds(state), f"A write changes the state from {kinds(state)} to {kinds(new)}.")
        expected = ((B, H, memory.value_size), jnp.dtype(dtype))
        require(kinds(values) == expected, f"A read must give {expected}, got {kinds(values)}.")
        shapes = {leaf.shape for leaf in jax.tree.leaves(info)}
        require(shapes == {(B,)}, f"The measures of a write must have shape [B] = ({B},), got {shapes}.")


@contract
def check_memory_reads(memory: Memory) -> None:
    """Checks that `write_read` equals a write and then a read, that its measures are right, and that reads repeat.

    The losses are the mean over heads and features of `(f(k^w) - v^w)^2`, before and after the write; the norm is that
    of the change of the weights, if the state is one of this library's.
    """
    params, state, write = _begin(memory)
    before = jax.tree.map(np.array, state)
    read = _read(memory, params, state, write.keys)
    assert_equal(_read(memory, params, state, write.keys), read)
    assert_equal(jax.tree.map(np.array, state), before)
    new, info, values = write.apply(memory, params, state)
    assert_equal(jax.tree.map(np.array, state), before)
    alone, alone_info = jax.jit(memory.write)(params, state, write.keys, write.values, write.rate, **write.gates)
    assert_close((alone, alone_info), (new, info))
    assert_close(_read(memory, params, new, write.read_keys), values)
    assert_close(info.loss_before, _loss(read, write.values))
    assert_close(info.loss_after, _loss(_read(memory, params, new, write.keys), write.values))
    if isinstance(state, MemoryState | GatedState):
        assert_close(info.update_norm, _distance(new.weights, state.weights))


@contract
def check_memory_zero_rate(memory: Memory) -> None:
    """Checks that a write with rate 0, and all gates 0, after another write leaves every answer bit-equal."""
    params, state, write = _begin(memory)
    none = lambda leaf: np.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    write = write._replace(rate=none(write.rate), gates=jax.tree.map(none, write.gates))
    new, info, _ = write.apply(memory, params, state)
    assert_equal(_read(memory, params, new, write.read_keys), _read(memory, params, state, write.read_keys))
    assert_equal(info.update_norm, none(info.update_norm))


@contract
def check_memory_head_order(memory: Memory) -> None:
    """Checks that the order of the heads of a write does not matter."""
    params, state, write = _begin(memory)
    swapped = write._replace(keys=np.asarray(write.keys)[:, ::-1], values=np.asarray(write.values)[:, ::-1])
    assert_close(swapped.apply(memory, params, state), write.apply(memory, params, state))


@contract
def check_memory_isolation(memory: Memory) -> None:
    """Checks that a change of one example's write leaves the states and answers of the others bit-equal."""
    params, state, write = _begin(memory)
    changed = jax.tree.map(np.array, write)
    changed.rate[1] = 1.0
    for array in (changed.keys, changed.values, changed.read_keys):
        array[1] *= -2
    found, expected = (jax.device_get(given.apply(memory, params, state)) for given in (changed, write))
    others = lambda tree: jax.tree.map(lambda leaf: leaf[::2] if leaf.shape[:1] == (B,) else leaf, tree)  # noqa: E731
    assert_equal(others(found), others(expected))
    require(np.any(found[2][1] != expected[2][1]), "Another write of an example gives the same answer.")


@contract
def check_memory_extremes(memory: Memory) -> None:
    """Checks that values and gradients are finite for zero keys, keys of 1,000, and equal keys in all heads."""
    params, _, write = _begin(memory)
    keys = np.asarray(write.keys)
    equal = np.broadcast_to(keys[:, :1], keys.shape)

    @jax.jit
    def differentiate(params: MemoryParams, write: _Write) -> Any:
        def value(params: MemoryParams, write: _Write) -> Array:
            _, info, values = write.apply(memory, params, memory.start(params, B))
            return jnp.sum(values) + sum(jnp.sum(leaf) for leaf in info)

        return jax.value_and_grad(value, argnums=(0, 1))(params, write)

    for given in (np.zeros_like(keys), np.asarray(1e3, keys.dtype) * keys, equal):
        assert_finite(differentiate(params, write._replace(keys=given, read_keys=given)))


@contract
def check_memory_derivatives(memory: Memory) -> None:
    """Checks derivatives of first and second order of a write and a read against finite differences, in float64."""
    params, state, write = _begin(memory)
    require(write.keys.dtype == jnp.float64, f"Finite differences need a memory in float64, got {write.keys.dtype}.")
    # Short keys: where a write overshoots its target many times over, finite differences have few digits.
    write = write._replace(keys=np.asarray(write.keys) / 2, read_keys=np.asarray(write.read_keys) / 2)
    leaves, tree = jax.tree.flatten((params, state, write))
    places = [place for place, leaf in enumerate(leaves) if is_float(leaf)]

    def objective(floats: list[Array]) -> Array:
        given = list(leaves)
        for place, leaf in zip(places, floats, strict=True):
            given[place] = leaf
        params, state, write = jax.tree.unflatten(tree, given)
        return sum_of_sines(write.apply(memory, params, state))

    assert_derivatives(objective, [leaves[place] for place in places])


@contract
def check_memory_forms(memory: Memory) -> None:
    """Checks that a cell with the memory gives the same numbers in all execution forms, or refuses them by name.

    A cell in bfloat16 with the same weights is traced only.
    """
    dtype = first_dtype(jax.eval_shape(memory.init, jax.random.key(0)))
    make = partial(MNMCell, 3, 4, memory, heads=H, param_dtype=dtype)
    check_cell_forms(make(rngs=nnx.Rngs(0)))
    trace_cell_forms(make(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))


def check_memory(make_memory: Callable[..., Memory], *, any_head_order: bool = True) -> None:
    """Checks all contracts of a memory; each of them can also be called separately.

    ==========================  ===================================================================================
    contract                    statement
    ==========================  ===================================================================================
    `check_memory_equality`     memories with equal settings are equal, have the same hash, and can be pickled
    `check_memory_dtypes`       the state keeps its shapes and dtypes; a read answers in the dtype of the keys
    `check_memory_reads`        `write_read` is a write and then a read; a read changes nothing
    `check_memory_zero_rate`    a write with rate 0 leaves every answer bit-equal
    `check_memory_head_order`   the order of the heads of a write does not matter
    `check_memory_isolation`    a change of one example leaves the others bit-equal
    `check_memory_extremes`     values and gradients are finite for extreme keys
    `check_memory_derivatives`  derivatives of first and second order agree with finite differences
    `check_memory_forms`        all execution forms of a cell with the memory agree
    ==========================  ===================================================================================

    Args:
      make_memory: `make_memory(param_dtype=...)` returns the memory; it is called with float32, bfloat16 and float64.
        `check_memory_equality` and `check_memory_dtypes` take `make_memory`, the other contracts take a memory.
      any_head_order: whether to check that the order of the heads does not matter.

    Raises:
      AssertionError: if a contract does not hold; the message begins with the contract's name.

    Examples:
      >>> from mnm_jax import matrix_memory
      >>> check_memory(lambda param_dtype: matrix_memory(4, 3, "hebbian", param_dtype=param_dtype))
    """
    check_memory_equality(make_memory)
    check_memory_dtypes(make_memory)
    memory = make_memory(param_dtype=jnp.float32)
    check_memory_zero_rate(memory)
    check_memory_isolation(memory)
    check_memory_extremes(memory)
    with jax.enable_x64(True):
        memory = make_memory(param_dtype=jnp.float64)
        check_memory_reads(memory)
        if any_head_order:
            check_memory_head_order(memory)
        check_memory_derivatives(memory)
        check_memory_forms(memory)
