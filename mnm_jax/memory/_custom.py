"""A memory with a user-defined network and inner loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnm_jax._checks import check_choice, check_flags, check_functions, check_not_negative, check_sizes
from mnm_jax.memory._gated import GatedState, begin, descend, distance
from mnm_jax.memory._memory import (
    Memory,
    check_batch,
    check_params,
    check_read,
    check_weights,
    check_write,
    measures,
)
from mnm_jax.memory._norms import limit, scaled, sum_of_squares
from mnm_jax.memory._options import PAPER, TRIALS, WriteOptions, check_options, longest, normalise
from mnm_jax.memory._step_size import STEP_SIZES, inverse_norm
from mnm_jax.memory._types import MemoryParams, WriteInfo

Array = jax.Array

# "paper" averages over heads and features; here the loss itself decides that.
_STEP_SIZES = tuple(step_size for step_size in STEP_SIZES if step_size != "paper")


def squared_error(predicted: Array, values: Array) -> Array:
    """Returns sum_h |f(k_h) - v_h|^2 for answers and values `[H, V]`: the paper's inner loss, up to a factor."""
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
    """Returns a memory with your own network and inner loss; a write is a gradient step.

        L = loss(f(k^w; phi_{t-1}), v^w),   phi_t = phi_{t-1} - beta_t c grad_phi L

    with c = 1 for "sum" (the plain gradient of the loss), or c = 2 L / |grad_phi L|^2 for "normalised". The latter is
    twice Polyak's step, for losses whose minimum is zero; with a squared error, one head and a linear network it stores
    the value exactly at rate 1. If q = |grad_phi L|^2 / (4 L) < epsilon, c is q^2 / (2 epsilon^3) instead. For one head
    and a squared error this is the normalised step of `gradient_memory`; if the network is also linear, q is the
    squared norm of the key.

    Writes need not be pairs, so the weights of every step are kept: cells run in the execution form "plain".

    Args:
      key_size: number of key features `K`.
      value_size: number of value features `V`.
      init: `(key) -> phi_0`, any pytree of floating-point arrays, such as the parameters of an `nnx` or Linen module.
        Fast weights have the dtypes of the parameters from which they start.
      apply: `(phi, k [K]) -> f(k; phi) [V]`, for one key. It is called with weights in the dtype of the key.
      loss: `(f(k^w) [H, V], v^w [H, V]) -> ()`, over the heads of one example; with "normalised" >= 0 for any answers.
      step_size: "normalised" or "sum". With `WriteOptions(optimizer=...)`, "sum" is usually the right choice. A loss
        that can be negative, such as minus an inner product, needs "sum": "normalised" writes nothing where it is
        negative.
      learn_initial: whether phi_0 is learned.
      epsilon: the value of q below which the writes of "normalised" fade out.
      options: see `WriteOptions`.

    Raises:
      ValueError: if the network does not map `[K]` to `[V]`, the weights are not floating-point arrays, the loss is not
        a scalar, an option is out of range, or with "normalised" the loss is negative for values of 0 and 1 and answers
        of -1, 0, 1/2 or 1 times the values. Errors of the functions themselves pass unchanged.

    Examples:
      A residual network:

      >>> def apply(w, k): return k + jnp.tanh(k @ w["up"]) @ w["down"]
      >>> def init(key):
      ...     up, down = jax.random.split(key)
      ...     return {"up": jax.random.normal(up, (4, 8)) / 2, "down": jax.random.normal(down, (8, 4)) / 3}
      >>> memory = custom_memory(4, 4, init=init, apply=apply)
      >>> params = memory.init(jax.random.key(0))
      >>> key, value = jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4))
      >>> state, info = memory.write(params, memory.start(params, 1), key, value, jnp.ones(1))
      >>> bool(info.loss_after[0] < 0.5 * info.loss_before[0])
      True

    References:
      The networks and losses of Titans (Behrouz et al., 2025, equation 12) and of Test-Time Training (Sun et al., 2024)
      are special cases. Step size: Polyak, 1987.
    """
    check_choice("step_size", step_size, _STEP_SIZES)
    check_not_negative(epsilon=epsilon)
    check_options(options)
    check_sizes(key_size=key_size, value_size=value_size)
    check_functions(init=init, apply=apply, loss=loss)
    check_flags(learn_initial=learn_initial)
    dtype = _probe(key_size, value_size, init, apply, loss)
    if step_size == "normalised" and loss is not squared_error:
        _check_sign(value_size, loss, dtype)
    return CustomMemory(
        sizes=(int(key_size), int(value_size)),
        initializer=init,
        apply=apply,
        loss=loss,
        step_size=step_size,
        learn_initial=bool(learn_initial),
        epsilon=float(epsilon),
        options=options,
    )


@dataclasses.dataclass(frozen=True)
class CustomMemory(Memory):
    """A memory returned by `custom_memory`, which describes the settings. `sizes` is `(K, V)`."""

    sizes: tuple[int, int]
    initializer: Callable[[Array], Any]
    apply: Callable[[Any, Array], Array]
    loss: Callable[[Array, Array], Array]
    step_size: str
    learn_initial: bool
    epsilon: float
    options: WriteOptions

    @property
    def key_size(self) -> int:
        """See `Memory`."""
        return self.sizes[0]

    @property
    def value_size(self) -> int:
        """See `Memory`."""
        return self.sizes[1]

    @property
    def gates(self) -> tuple[str, ...]:
        """See `Memory`."""
        return self.options.gates

    @property
    def pairs_only(self) -> bool:
        """See `Memory`."""
        return False

    def init(self, key: Array) -> MemoryParams:
        """See `Memory`."""
        return MemoryParams(self.initializer(key), None)

    def start(self, params: MemoryParams, batch_size: int) -> GatedState:
        """See `Memory`."""
        check_batch(params, batch_size)
        check_weights(params)
        weights = params.weights if self.learn_initial else jax.lax.stop_gradient(params.weights)
        return begin(jax.tree.map(lambda w: jnp.broadcast_to(w, (batch_size, *w.shape)), weights), self.options)

    def read(self, params: MemoryParams, state: GatedState, keys: Array) -> Array:
        """See `Memory`."""
        del params  # the state holds the fast weights
        check_read(self, state, keys)
        return jax.vmap(self._answers)(state.weights, normalise(jnp.asarray(keys), self.options.key_norm))

    def write_read(
        self,
        params: MemoryParams,
        state: GatedState,
        keys: Array,
        values: Array,
        rate: Array,
        read_keys: Array,
        **gates: Array,
    ) -> tuple[GatedState, WriteInfo, Array]:
        """See `Memory`."""
        check_params(params)
        check_write(self, state, keys, values, rate, read_keys, gates)
        keys, values, rate = map(jnp.asarray, (keys, values, rate))
        options, old = self.options, state
        given = normalise(keys, options.key_norm)
        predicted = jax.vmap(self._answers)(state.weights, given)
        for inner in range(options.inner_steps):
            changes = limit(jax.vmap(self._change)(state.weights, given, values), options.max_norm)
            if options.never_worse:
                changes = scaled(changes, self._shorten(state.weights, scaled(changes, rate), given, values))
            state = descend(state, changes, rate, options, gates, first=inner == 0)
        kept = jax.vmap(self._answers)(state.weights, given)
        info = measures(predicted, kept, values, distance(state, old))
        return state, info, self.read(params, state, read_keys)

    def _answers(self, weights: Any, keys: Array) -> Array:
        """Returns f(k; phi) of one example, `[H, K] -> [H, V]`, computed in the dtype of the keys."""
        weights = jax.tree.map(lambda w: w.astype(keys.dtype), weights)
        return jax.vmap(self.apply, (None, 0))(weights, keys)

    def _shorten(self, weights: Any, changes: Any, keys: Array, values: Array) -> Array:
        """Returns the factor a `[B]` of `WriteOptions.never_worse` for changes that are multiplied by the rate."""
        moved = lambda a: jax.tree.map(lambda w, g: w - a * g, weights, changes)  # noqa: E731
        loss = lambda a: jax.vmap(self.loss)(jax.vmap(self._answers)(moved(a), keys), values)  # noqa: E731
        return longest(loss(0.0), jnp.stack([loss(a) for a in TRIALS], -1))

    def _change(self, weights: Any, keys: Array, values: Array) -> Any:
        """Returns c grad L of one example."""
        size, gradient = jax.value_and_grad(lambda w: self.loss(self._answers(w, keys), values))(weights)
        if self.step_size == "sum":
            return gradient
        square = sum_of_squares(jax.tree.map(lambda g: g[None], gradient))[0]
        # Derivatives of second order divide by the third power of this sum, which must not be zero.
        gain = square / (4 * jnp.maximum(size.astype(square.dtype), 0) + float(jnp.finfo(square.dtype).tiny) ** 0.25)
        scale = jnp.square(inverse_norm(gain, self.epsilon)) / 2
        return jax.tree.map(lambda g: scale.astype(g.dtype) * g, gradient)


def _probe(key_size: int, value_size: int, init: Callable, apply: Callable, loss: Callable) -> jnp.dtype:
    """Checks shapes and dtypes of the user's functions by abstract evaluation; returns the dtype of the weights."""
    weights = jax.eval_shape(init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    if not leaves:
        raise ValueError("init must return at least one array of weights, got an empty tree.")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"init must return floating-point arrays, which a write can change, got {leaf.dtype} at "
                f"{jax.tree_util.keystr(path) or 'the top'}: keep all other leaves out of the weights."
            )
    dtype = leaves[0][1].dtype
    answer = jax.eval_shape(apply, weights, jax.ShapeDtypeStruct((key_size,), dtype))
    if getattr(answer, "shape", None) != (value_size,):
        raise ValueError(
            f"apply must map a key of shape ({key_size},) to a value of shape ({value_size},), key_size to value_size "
            f"without a batch, got {getattr(answer, 'shape', type(answer).__name__)}."
        )
    heads = jax.ShapeDtypeStruct((2, value_size), dtype)
    size = jax.eval_shape(loss, heads, heads)
    if getattr(size, "shape", None) != ():
        raise ValueError(
            f"loss must map answers and values [H, V] to a scalar, got {getattr(size, 'shape', type(size).__name__)}: "
            "sum or average it over heads and features."
        )
    return dtype


def _check_sign(value_size: int, loss: Callable, dtype: jnp.dtype) -> None:
    """Raises ValueError if the loss is negative for one of a few answers of two heads.

    The values are 0 and 1, as one-hot labels and as probabilities, for which likelihoods are losses too. A loss that is
    undefined, such as the logarithm of a negative answer, passes, as does one that closes over a traced value.
    """
    values = np.zeros((2, value_size))
    values[0, 0] = values[1, -1] = 1
    rounding = 8 * float(jnp.finfo(dtype).eps)
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        for factor in (1.0, 0.0, 0.5, -1.0):
            size = loss(jnp.asarray(factor * values, dtype), jnp.asarray(values, dtype))
            if not isinstance(size, jax.core.Tracer) and float(size) < -rounding:
                raise ValueError(
                    f"loss must be >= 0 with step_size='normalised', got {float(size):g} for values of 0 and 1 and "
                    f"answers of {factor} times the values: use step_size='sum'."
                )
