"""Builds a `Memory` from a rule, a network and a storage."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mnm_jax.memory import _network as network
from mnm_jax.memory import _rules as rules
from mnm_jax.memory._bundle import memory_of_pairs
from mnm_jax.memory._network import Network
from mnm_jax.memory._options import PAPER, WriteOptions
from mnm_jax.memory._step_size import STEP_SIZES
from mnm_jax.memory._types import Memory, MemoryParams, TargetMaps

Array = jax.Array
_MATRIX_RULES = {"delta": rules.delta_pairs, "hebbian": rules.hebbian_pairs}


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
    options: WriteOptions = PAPER,
    dtype: jnp.dtype = jnp.float32,
) -> Memory:
    """MNM-g: a memory written by one gradient step on its own reconstruction error.

        phi_t = phi_{t-1} - beta_t c grad_phi sum_h |f(k^w_h; phi_{t-1}) - v^w_h|^2

    with c by `step_size`; see `mnm_jax.memory._rules.gradient_pairs` for the three of them. The step is part of the
    forward pass and is differentiated through (second order).

    Args:
      key_size: `K`.
      value_size: `V`.
      hidden_sizes: widths of the hidden layers; `L` = their number + 1, so `()` is a linear memory.
      step_size: "normalised" (an exact one-shot write for a linear memory at rate 1), "sum" or "paper".
      activation: of the hidden layers. The paper: tanh.
      use_bias: biases in the memory. The paper: none.
      learn_initial: phi_0 is learned; otherwise it stays the random draw of `init`.
      initial_gain: W_l starts as N(0, gain^2 / fan_in).
      epsilon: added to squared key norms by "normalised"; same unit.
      options: forgetting, momentum, inner steps and more; see `WriteOptions`.
      dtype: of parameters and fast weights.

    Raises:
      ValueError: for sizes below 1, an unknown step size, a negative epsilon, or options out of range.

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

    return memory_of_pairs(shape, init, pairs, learn_initial, options)


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
    options: WriteOptions = PAPER,
    dtype: jnp.dtype = jnp.float32,
) -> Memory:
    """MNM-p: a memory written by a learned local rule, layer by layer.

        t_l = g_l(v^w)   (learned),      W_l <- W_l - beta c sum_h x_{l,h} (x) (z_{l,h} - t_{l,h})

    with c by `step_size`; see `mnm_jax.memory._rules.local_pairs`. No gradient is taken inside the step.

    Args as in `gradient_memory`, and:
      condition_on_key: the targets see the write key too, t_l = g_l(v^w, k^w), as synthetic gradients do
        (Jaderberg et al., ICML 2017).

    The last layer's target map starts as the identity, t_L = v^w, so that the first write already stores the value;
    the others start as N(0, 1 / fan_in).

    Raises:
      ValueError: for sizes below 1, an unknown step size, a negative epsilon, or options out of range.

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

    return memory_of_pairs(shape, init, pairs, learn_initial, options)


def matrix_memory(
    key_size: int,
    value_size: int,
    rule: str = "delta",
    *,
    learn_initial: bool = False,
    options: WriteOptions = PAPER,
    dtype: jnp.dtype = jnp.float32,
) -> Memory:
    """A matrix written by the delta rule or the Hebbian rule: the linear special cases.

        delta:    W_t = W_{t-1} - beta_t sum_h k_h (x) (k_h W_{t-1} - v_h)
        hebbian:  W_t = W_{t-1} + beta_t sum_h k_h (x) v_h

    with W_0 = 0. Neither looks at the length of the keys: with the delta rule keys longer than sqrt(2 / beta) make it
    grow without end, so that `WriteOptions(key_norm="l2")` goes with it. `forget` gives the decay of fast weights.

    Args:
      key_size: `K`.
      value_size: `V`.
      rule: "delta" or "hebbian".
      learn_initial: W_0 is learned; it starts at zero all the same.
      options: see `WriteOptions`.
      dtype: of parameters and fast weights.

    Raises:
      ValueError: for sizes below 1, an unknown rule, or options out of range.

    Source: delta: Schlag et al., ICML 2021, and DeltaNet, Yang et al., NeurIPS 2024; hebbian: Ba et al., NeurIPS 2016,
    equation 1; both, before networks had them: Widrow and Hoff, 1960, and Hebb, 1949.

    >>> memory = matrix_memory(2, 1, "hebbian")
    >>> params = memory.init(jax.random.key(0))
    >>> state = memory.start(params, 1)
    >>> key, value = jnp.array([[[1.0, 1.0]]]), jnp.array([[[3.0]]])
    >>> for _ in range(2):
    ...     state, _ = memory.write(params, state, key, value, jnp.full(1, 0.5))
    >>> print(memory.read(params, state, key)[0, 0, 0])
    6.0
    """
    if rule not in _MATRIX_RULES:
        raise ValueError(f"rule must be one of {', '.join(_MATRIX_RULES)}, got {rule!r}.")
    shape = _network(key_size, value_size, (), jnp.tanh, False)

    def init(key: Array) -> MemoryParams:
        del key  # nothing is drawn
        return MemoryParams((jnp.zeros((key_size, value_size), dtype),), None)

    def pairs(params, weights, keys, values, path):
        del params
        if path is not None:
            raise ValueError("a matrix memory takes no total derivative: use gradient_memory(hidden_sizes=()).")
        return _MATRIX_RULES[rule](shape, weights, keys, values)

    return memory_of_pairs(shape, init, pairs, learn_initial, options)


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
