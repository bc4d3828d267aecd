"""Builds a `Memory` from a rule, a network and a storage."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mnm_jax.memory import dense, network, rules
from mnm_jax.memory.network import Network
from mnm_jax.memory.step_size import STEP_SIZES, gram
from mnm_jax.memory.types import Memory, MemoryParams, Pair, Storage, TargetMaps, WriteInfo

Array = jax.Array


def gradient_memory(
    key_size: int,
    value_size: int,
    *,
    hidden_sizes: Sequence[int],
    step_size: str = "normalised",
    activation: Callable[[Array], Array] = jnp.tanh,
    use_bias: bool = False,
    learn_initial: bool = True,
    initial_gain: float = 1.0,
    epsilon: float = 1e-3,
    dtype: jnp.dtype = jnp.float32,
) -> Memory:
    """MNM-g: a memory written by one gradient step on its own reconstruction error.

        phi_t = phi_{t-1} - beta_t c grad_phi sum_h |f(k^w_h; phi_{t-1}) - v^w_h|^2

    with c by `step_size`; see `mnm_jax.memory.rules.gradient_pairs` for the three of them. The step is part of the
    forward pass and is differentiated through (second order).

    Args:
      key_size, value_size: `K`, `V`.
      hidden_sizes: widths of the hidden layers; `L` = their number + 1, so `()` is a linear memory.
      step_size: "normalised" (an exact one-shot write for a linear memory at rate 1), "sum" or "paper".
      activation: of the hidden layers. The paper: tanh.
      use_bias: biases in the memory. The paper: none.
      learn_initial: phi_0 is learned; otherwise it stays the random draw of `init`.
      initial_gain: W_l starts as N(0, gain^2 / fan_in).
      epsilon: added to squared key norms by "normalised"; same unit.
      dtype: of parameters and fast weights.

    Raises:
      ValueError: for sizes below 1, an unknown step size, or a negative epsilon.

    Source: Munkhdalai et al., NeurIPS 2019, section 3.2.

    >>> memory = gradient_memory(2, 1, hidden_sizes=())
    >>> params = memory.init(jax.random.key(0))
    >>> state = memory.start(params, 1)
    >>> key, value = jnp.array([[[3.0, 4.0]]]), jnp.array([[[7.0]]])
    >>> state, info = memory.write(params, state, key, value, jnp.ones(1))
    >>> print(f"{memory.read(params, state, key)[0, 0, 0]:.2f}")
    7.00
    """
    shape = _network(key_size, value_size, hidden_sizes, activation, use_bias)
    _check_step(step_size, epsilon)

    def init(key: Array) -> MemoryParams:
        return MemoryParams(network.init(shape, key, initial_gain, dtype), None)

    def pairs(params, weights, keys, values, path):
        del params  # the rule itself has none to learn
        return rules.gradient_pairs(shape, weights, keys, values, path, step_size=step_size, epsilon=epsilon)

    return _memory(shape, init, pairs, learn_initial)


def local_memory(
    key_size: int,
    value_size: int,
    *,
    hidden_sizes: Sequence[int],
    step_size: str = "normalised",
    condition_on_key: bool = False,
    activation: Callable[[Array], Array] = jnp.tanh,
    use_bias: bool = False,
    learn_initial: bool = True,
    initial_gain: float = 1.0,
    epsilon: float = 1e-3,
    dtype: jnp.dtype = jnp.float32,
) -> Memory:
    """MNM-p: a memory written by a learned local rule, layer by layer.

        t_l = g_l(v^w)   (learned),      W_l <- W_l - beta c sum_h x_{l,h} (x) (z_{l,h} - t_{l,h})

    with c by `step_size`; see `mnm_jax.memory.rules.local_pairs`. No gradient is taken inside the step.

    Args as in `gradient_memory`, and:
      condition_on_key: the targets see the write key too, t_l = g_l(v^w, k^w), as synthetic gradients do
        (Jaderberg et al., ICML 2017).

    The last layer's target map starts as the identity, t_L = v^w, so that the first write already stores the value;
    the others start as N(0, 1 / fan_in).

    Raises:
      ValueError: for sizes below 1, an unknown step size, or a negative epsilon.

    Source: Munkhdalai et al., NeurIPS 2019, section 3.3.

    >>> memory = local_memory(2, 1, hidden_sizes=())
    >>> params = memory.init(jax.random.key(0))
    >>> state = memory.start(params, 1)
    >>> keys = jnp.array([[[1.0, 0.0], [1.0, 1.0]]])     # two heads with overlapping keys
    >>> values = jnp.array([[[2.0], [5.0]]])
    >>> state, info = memory.write(params, state, keys, values, jnp.ones(1))
    >>> print(jnp.round(memory.read(params, state, keys)[0, :, 0], 1))
    [2. 5.]
    """
    shape = _network(key_size, value_size, hidden_sizes, activation, use_bias)
    _check_step(step_size, epsilon)

    def init(key: Array) -> MemoryParams:
        weights_key, targets_key = jax.random.split(key)
        context = value_size + key_size * condition_on_key
        kernel = jax.nn.initializers.lecun_normal()(targets_key, (context, sum(shape.sizes[1:])), dtype)
        kernel = kernel.at[:, -value_size:].set(jnp.eye(context, value_size, dtype=dtype))
        targets = TargetMaps(kernel, jnp.zeros(kernel.shape[1], dtype))
        return MemoryParams(network.init(shape, weights_key, initial_gain, dtype), targets)

    def pairs(params, weights, keys, values, path):
        if path is not None:
            raise ValueError("the local rule takes no gradient: call write without a path, or use gradient_memory.")
        return rules.local_pairs(
            shape,
            weights,
            params.targets,
            keys,
            values,
            step_size=step_size,
            epsilon=epsilon,
            condition_on_key=condition_on_key,
        )

    return _memory(shape, init, pairs, learn_initial)


def _memory(shape: Network, init: Callable, pairs: Callable, learn_initial: bool) -> Memory:
    """Joins a rule (`pairs`) with the functions of a memory, which take any storage and start with dense weights."""
    key_size, value_size = shape.sizes[0], shape.sizes[-1]

    def start(params: MemoryParams, batch_size: int) -> dense.MemoryState:
        weights = params.weights if learn_initial else jax.lax.stop_gradient(params.weights)
        return dense.start(weights, batch_size)

    def read(params: MemoryParams, state: Storage, keys: Array) -> Array:
        del params  # the storage has the fast weights
        _check_shape("keys", keys, state, key_size)
        return network.forward(shape, state, keys).outputs[-1]

    def write_read(params, state, keys, values, rate, read_keys, path=None) -> tuple[Storage, WriteInfo, Array]:
        _check_shape("keys", keys, state, key_size)
        _check_shape("values", values, state, value_size)
        _check_shape("read_keys", read_keys, state, key_size)
        heads = keys.shape[1]
        if heads != values.shape[1] or rate.shape != keys.shape[:1]:
            raise ValueError(
                "a write needs keys [B, H, K], values [B, H, V] and rate [B], "
                f"got {keys.shape=}, {values.shape=}, {rate.shape=}."
            )
        full, predicted = pairs(params, state, keys, values, path)
        scaled = tuple(Pair(p.inputs, rate[:, None, None] * p.delta) for p in full)
        written = state.subtract(scaled)
        answers = network.forward(shape, written, jnp.concatenate([keys, read_keys], 1)).outputs[-1]
        kept, read = jnp.split(answers, [heads], axis=1)
        return written, WriteInfo(_mean_square(predicted - values), _mean_square(kept - values), _norm(scaled)), read

    def write(params, state, keys, values, rate, path=None) -> tuple[Storage, WriteInfo]:
        return write_read(params, state, keys, values, rate, keys[:, :0], path)[:2]

    return Memory(init, start, read, write, write_read, key_size, value_size)


def _mean_square(x: Array) -> Array:
    return jnp.mean(x * x, axis=(1, 2))


def _norm(pairs: tuple[Pair, ...]) -> Array:
    """|X^T D|_F over all layers, from the Gram matrices of the factors: |X^T D|^2 = sum (X X^T) * (D D^T)."""
    square = sum(jnp.sum(gram(p.inputs) * gram(p.delta), axis=(1, 2)) for p in pairs)
    # The derivative of a root at zero is infinite, and infinity times a masked zero is NaN: step aside there.
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _network(key_size, value_size, hidden_sizes, activation, use_bias) -> Network:
    hidden_sizes = tuple(hidden_sizes)
    sizes = (key_size, *hidden_sizes, value_size)
    if min(sizes) < 1:
        raise ValueError(f"memory sizes must be >= 1, got {key_size=}, {value_size=}, {hidden_sizes=}.")
    return Network(sizes, activation, use_bias)


def _check_step(step_size: str, epsilon: float) -> None:
    if step_size not in STEP_SIZES:
        raise ValueError(f"step_size must be one of {STEP_SIZES}, got {step_size=}.")
    if epsilon < 0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon=}.")


def _check_shape(name: str, array: Array, state: Storage, features: int) -> None:
    batch = state.batch_size
    if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != features:
        raise ValueError(f"{name} must have shape [B, H, features] = [{batch}, H, {features}], got {array.shape}.")
