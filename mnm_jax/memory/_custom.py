"""A memory whose network and inner loss are the user's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mnm_jax.memory._bundle import check_shape, check_write, mean_square
from mnm_jax.memory._options import (
    PAPER,
    GatedState,
    WriteOptions,
    begin,
    check_options,
    descend,
    distance,
    limit,
    normalise,
)
from mnm_jax.memory._types import Memory, MemoryParams, WriteInfo

Array = jax.Array

STEP_SIZES = ("normalised", "gradient")


def squared_error(predicted: Array, values: Array) -> Array:
    """sum_h |f(k_h) - v_h|^2 of answers and values `[H, V]`: the inner loss of the paper, but for a factor."""
    return jnp.sum(jnp.square(predicted - values))


def custom_memory(
    key_size: int,
    value_size: int,
    *,
    init: Callable[[Array], Any],
    apply: Callable[[Any, Array], Array],
    loss: Callable[[Array, Array], Array] = squared_error,
    step_size: str = "normalised",
    learn_initial: bool = True,
    epsilon: float = 1e-3,
    options: WriteOptions = PAPER,
) -> Memory:
    """A memory with a network and an inner loss of one's own, written by a gradient step.

        L = loss(f(k^w; phi_{t-1}), v^w),   phi_t = phi_{t-1} - beta_t c grad_phi L

    with c = 1 ("gradient") or c = 2 L / (|grad_phi L|^2 + epsilon) ("normalised", for losses that are zero where the
    value is met: the step of Polyak, which for one head and a linear network meets a squared error exactly).

    Anything can be differentiated, so weights are kept as they are, of every step: cells run in the form "plain".

    Args:
      key_size: `K`.
      value_size: `V`.
      init: `(key) -> phi_0`, any pytree of floating-point arrays; of an `nnx` or Linen module its parameters.
      apply: `(phi, k [K]) -> f(k; phi) [V]`, for one key.
      loss: `(f(k^w) [H, V], v^w [H, V]) -> ()`, over the heads of one example.
      step_size: "normalised" or "gradient"; with an optimiser of `options` most want "gradient".
      learn_initial: phi_0 is learned.
      epsilon: of "normalised"; same unit as squared gradients.
      options: see `WriteOptions`.

    Raises:
      ValueError: when made, for a network that does not map `[K]` to `[V]`, weights that are not floating-point
        arrays, a loss that is no scalar, or an option out of range. What the functions raise comes as it is.

    Source: the network and loss of Titans (Behrouz et al., 2025, equation 12) and of Test-Time Training (Sun et al.,
    2024) are cases of it; step size: Polyak, 1987.

    >>> def apply(w, k): return k + jnp.tanh(k @ w["up"]) @ w["down"]      # a residual network
    >>> def init(key):
    ...     up, down = jax.random.split(key)
    ...     return {"up": jax.random.normal(up, (4, 8)) / 2, "down": jax.random.normal(down, (8, 4)) / 3}
    >>> memory = custom_memory(4, 4, init=init, apply=apply)
    >>> params = memory.init(jax.random.key(0))
    >>> key, value = jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4))
    >>> state, info = memory.write(params, memory.start(params, 1), key, value, jnp.ones(1))
    >>> bool(info.loss_after[0] < 0.5 * info.loss_before[0])
    True
    """
    if step_size not in STEP_SIZES:
        raise ValueError(f"step_size must be one of {STEP_SIZES}, got {step_size=}.")
    if epsilon < 0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon=}.")
    check_options(options)
    _probe(key_size, value_size, init, apply, loss)

    def start(params: MemoryParams, batch_size: int) -> GatedState:
        weights = params.weights if learn_initial else jax.lax.stop_gradient(params.weights)
        return begin(jax.tree.map(lambda w: jnp.broadcast_to(w, (batch_size, *w.shape)), weights), options)

    def answer(weights: Any, keys: Array) -> Array:
        return jax.vmap(jax.vmap(apply, (None, 0)))(weights, keys)

    def change(weights: Any, keys: Array, values: Array) -> Any:
        """c grad L of one example."""
        inner = lambda w: loss(jax.vmap(apply, (None, 0))(w, keys), values)  # noqa: E731
        size, gradient = jax.value_and_grad(inner)(weights)
        if step_size == "gradient":
            return gradient
        square = sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient))
        return jax.tree.map(lambda g: (2 * size / (square + epsilon)).astype(g.dtype) * g, gradient)

    def read(params: MemoryParams, state: GatedState, keys: Array) -> Array:
        del params
        check_shape("keys", keys, state, key_size)
        return answer(state.weights, normalise(keys, options.key_norm))

    def write(params, state, keys, values, rate, path=None, **gates) -> tuple[GatedState, WriteInfo]:
        del params
        check_write(key_size, value_size, options, state, keys, values, rate, keys, path, gates)
        if path is not None:
            raise ValueError("custom_memory takes no total derivative: leave out the path, or use gradient_memory.")
        keys = normalise(keys, options.key_norm)
        predicted, old = answer(state.weights, keys), state
        for inner in range(options.inner_steps):
            changes = limit(jax.vmap(change)(state.weights, keys, values), options.max_norm)
            state = descend(state, changes, rate, options, gates, first=inner == 0)
        kept = answer(state.weights, keys)
        info = WriteInfo(mean_square(predicted - values), mean_square(kept - values), distance(state, old))
        return state, info

    def write_read(params, state, keys, values, rate, read_keys, path=None, **gates):
        state, info = write(params, state, keys, values, rate, path, **gates)
        return state, info, read(params, state, read_keys)

    def make(key: Array) -> MemoryParams:
        return MemoryParams(init(key), None)

    return Memory(make, start, read, write, write_read, key_size, value_size, options.gates, False)


def _probe(key_size: int, value_size: int, init: Callable, apply: Callable, loss: Callable) -> None:
    """Runs the user's functions on shapes alone, so that what does not fit is said before anything is compiled."""
    if min(key_size, value_size) < 1:
        raise ValueError(f"memory sizes must be >= 1, got {key_size=}, {value_size=}.")
    weights = jax.eval_shape(init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError("init must return at least one array of weights, got an empty tree.")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"init must return floating-point arrays, which a write can change, got {leaf.dtype} at "
                f"{jax.tree_util.keystr(path) or 'the top'}: keep other things out of the weights."
            )
    dtype = leaves[0][1].dtype
    answer = jax.eval_shape(apply, weights, jax.ShapeDtypeStruct((key_size,), dtype))
    if getattr(answer, "shape", None) != (value_size,):
        raise ValueError(
            f"apply must map a key of shape ({key_size},) to a value of shape ({value_size},), without a batch, "
            f"got {getattr(answer, 'shape', type(answer).__name__)}."
        )
    heads = jax.ShapeDtypeStruct((2, value_size), dtype)
    size = jax.eval_shape(loss, heads, heads)
    if getattr(size, "shape", None) != ():
        raise ValueError(
            f"loss must map answers and values [H, V] to a scalar, got {getattr(size, 'shape', type(size).__name__)}: "
            "sum or average it over heads and features."
        )
