"""The factories, which build a `Memory` from a network, a rule and options."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mnm_jax._checks import check_choice, check_dtype, check_flags, check_functions, check_not_negative, check_sizes
from mnm_jax.memory._memory import Memory
from mnm_jax.memory._network import Network
from mnm_jax.memory._options import PAPER, WriteOptions, changed, check_options
from mnm_jax.memory._pair_memory import PairMemory
from mnm_jax.memory._probe import check_rule
from mnm_jax.memory._rules import DeltaRule, ErrorRule, FunctionRule, GradientRule, HebbianRule, LocalRule, Pairs, Rule
from mnm_jax.memory._step_size import STEP_SIZES
from mnm_jax.memory._types import Storage

Array = jax.Array
_MATRIX_RULES = {"delta": DeltaRule(), "hebbian": HebbianRule()}
_ONE_LAYER = (DeltaRule, HebbianRule)
_OWN_RULES = (*_ONE_LAYER, GradientRule, LocalRule)  # their pairs fit every network that they accept


def rule_memory(
    key_size: int,
    value_size: int,
    rule: Rule | Callable[[Network, Storage, Array, Array], tuple[Pairs, Array]],
    *,
    hidden_sizes: Sequence[int] = (),
    activation: Callable[[Array], Array] = jnp.tanh,
    use_bias: bool = False,
    learn_initial: bool = True,
    initial_gain: float = 1.0,
    options: WriteOptions = PAPER,
    param_dtype: DTypeLike = jnp.float32,
) -> Memory:
    """Returns a memory with your own write rule.

        W_l <- W_l - beta sum_h x_{l,h} (x) delta_{l,h}

    A rule returns the pairs (x, delta) of a write at rate one. It accesses the weights only through `weights.product`
    and `weights.product_transposed` (as `forward` and `backward` do), outside of transformations such as `jax.jit`,
    `jax.vmap` or `jax.lax.scan`: with a product inside one, cells run in the form "plain" only.

    Args:
      key_size: number of key features `K`.
      value_size: number of value features `V`.
      rule: `(network, weights, keys [B, H, K], values [B, H, V]) -> (pairs, answers)`, with one `Pair` per layer and
        the answers f(k^w) `[B, H, V]` before the write. A pair may have more rows than heads; without gates
        and inner optimiser it is cast to the dtype of keys and values. A `Rule` object is accepted too.
      hidden_sizes: widths of the hidden layers; `L` = their number + 1, so `()` is a matrix.
      activation: of the hidden layers, elementwise.
      use_bias: whether the layers have biases; `forward` then appends a constant one to the inputs of each layer.
      learn_initial: whether phi_0 is learned; otherwise it stays the random draw of `init`, unless weight decay
        shrinks it.
      initial_gain: `W_l ~ N(0, gain^2 / fan_in)` at first; 0 for zeros.
      options: forgetting, momentum, inner steps and more; see `WriteOptions`.
      param_dtype: dtype of parameters and fast weights. Products are computed in the dtype of the keys.

    Raises:
      TypeError: for a rule that is no function and no `Rule`, or that does not return pairs and answers.
      ValueError: for sizes below 1, options out of range, or a rule whose pairs do not fit the layers.

    Examples:
      Oja's rule with the value as the output, W <- W + beta (k - v W^T) (x) v. It is a Hebbian write whose weights stay
      bounded: the stored part of the key, v W^T, is subtracted from the key.

      >>> from mnm_jax.memory import Pair
      >>> def oja(network, weights, keys, values):
      ...     found = weights.product_transposed(0, values)
      ...     return (Pair(keys - found, -values),), weights.product(0, keys)
      >>> memory = rule_memory(2, 1, oja, initial_gain=0.0)
      >>> params = memory.init(jax.random.key(0))
      >>> state = memory.start(params, 1)
      >>> key, value = jnp.array([[[0.6, 0.8]]]), jnp.array([[[1.0]]])
      >>> for _ in range(3):
      ...     state, _ = memory.write(params, state, key, value, rate=jnp.full(1, 0.5))
      ...     print(f"{memory.read(params, state, key)[0, 0, 0]:.3f}")
      0.500
      0.750
      0.875

    References:
      Oja, Journal of Mathematical Biology, 1982.
    """
    _check_hidden(hidden_sizes)
    check_sizes(key_size=key_size, value_size=value_size)
    _check_activation(activation)
    check_flags(use_bias=use_bias, learn_initial=learn_initial)
    check_not_negative(initial_gain=initial_gain)
    check_options(options)
    check_dtype(param_dtype=param_dtype)
    sizes = tuple(map(int, (key_size, *hidden_sizes, value_size)))
    network, dtype = Network(sizes, activation, bool(use_bias)), jnp.dtype(param_dtype)
    if not isinstance(rule, Rule):
        if not callable(rule):
            raise TypeError(f"rule must be a function or a Rule, got {rule!r}: rules by name are in matrix_memory.")
        rule = FunctionRule(rule)
    if isinstance(rule, _ONE_LAYER) and hidden_sizes:
        raise ValueError(
            f"rule must fit all layers, got {type(rule).__name__}, which writes a single one, with {hidden_sizes=}: "
            "use hidden_sizes=(), or gradient_memory."
        )
    if isinstance(rule, ErrorRule):
        _check_order(rule, hidden_sizes, options)
    if type(rule) not in _OWN_RULES:
        check_rule(network, rule, dtype, options)
    return PairMemory(
        network=network,
        rule=rule,
        options=options,
        learn_initial=bool(learn_initial),
        initial_gain=float(initial_gain),
        param_dtype=dtype,
    )


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
    epsilon: float | None = None,
    options: WriteOptions = PAPER,
    param_dtype: DTypeLike = jnp.float32,
) -> Memory:
    """Returns MNM-g: a memory written by one gradient step on its own reconstruction error.

        phi_t = phi_{t-1} - beta_t c grad_phi sum_h |f(k^w_h; phi_{t-1}) - v^w_h|^2

    with c from `step_size`; `GradientRule` has the equations of all three step sizes. The step is part of the forward
    pass, and the outer gradient passes through it (second order).

    Through hidden layers "normalised" is a step of first order, which can increase its own loss if the keys are much
    shorter than the error. `WriteOptions(never_worse=True)` shortens such writes.

    Args:
      key_size: number of key features `K`.
      value_size: number of value features `V`.
      hidden_sizes: widths of the hidden layers; `L` = their number + 1, so `()` is a linear memory.
      step_size: "normalised" (an exact one-shot write for a linear memory at rate 1), "sum" (c = 1: the derivative of
        the sum of squares) or "paper" (the derivative of the mean over heads and features, c = 1 / (H V)).
      activation: of the hidden layers, elementwise. The paper: tanh.
      use_bias: whether the layers have biases. The paper: none.
      learn_initial: whether phi_0 is learned; otherwise it stays the random draw of `init`, unless weight decay
        shrinks it.
      initial_gain: `W_l ~ N(0, gain^2 / fan_in)` at first; 0 for zeros.
      options: forgetting, momentum, inner steps and more; see `WriteOptions`.
      param_dtype: dtype of parameters and fast weights. Products are computed in the dtype of the keys.
      epsilon: squared norm of a layer's input below which the writes of "normalised" fade out. None: 1e-3 with hidden
        layers, whose inputs change with the write, and 1e-8 without them.

    Raises:
      ValueError: for sizes below 1, an unknown step size, a negative epsilon, or options out of range.

    Examples:
      >>> memory = gradient_memory(2, 1, hidden_sizes=())
      >>> params = memory.init(jax.random.key(0))
      >>> state = memory.start(params, 1)
      >>> key, value = jnp.array([[[3.0, 4.0]]]), jnp.array([[[7.0]]])
      >>> state, info = memory.write(params, state, key, value, jnp.ones(1))
      >>> print(f"{memory.read(params, state, key)[0, 0, 0]:.2f}")
      7.00

    References:
      Munkhdalai et al., NeurIPS 2019, section 3.2.
    """
    epsilon = _check_step(step_size, epsilon, hidden_sizes)
    # The gradient of a single layer is the delta rule, which NeuralMemoryLayer follows exactly.
    rule = GradientRule(step_size, epsilon) if hidden_sizes else DeltaRule(step_size, epsilon)
    return rule_memory(
        key_size,
        value_size,
        rule,
        hidden_sizes=hidden_sizes,
        activation=activation,
        use_bias=use_bias,
        learn_initial=learn_initial,
        initial_gain=initial_gain,
        options=options,
        param_dtype=param_dtype,
    )


def local_memory(
    key_size: int,
    value_size: int,
    *,
    hidden_sizes: Sequence[int],
    step_size: str = "normalised",
    condition_on_key: bool = False,
    write_through: bool = False,
    pre_activation: bool = False,
    activation: Callable[[Array], Array] = jnp.tanh,
    use_bias: bool = False,
    learn_initial: bool = True,
    initial_gain: float = 1.0,
    epsilon: float | None = None,
    options: WriteOptions = PAPER,
    param_dtype: DTypeLike = jnp.float32,
) -> Memory:
    """Returns MNM-p: a memory written by a learned local rule, layer by layer.

        t_l = g_l(v^w)   (learned),      W_l <- W_l - beta c sum_h x_{l,h} (x) (z_{l,h} - t_{l,h})

    with c from `step_size`; `LocalRule` has the equations of all three step sizes. The write takes no gradient.

    The inputs x_l and outputs z_l of all layers are computed before the write. With `write_through`, the layers are
    written one after another, and each computes the input of the next one with its new weights. With `pre_activation`,
    errors do not pass through the activation:

        x_{l+1} = act(x_l W_l'),   W_l' after this write                                write_through
        W_l <- W_l - beta c sum_h x_{l,h} (x) (x_{l,h} W_l - t_{l,h})                   pre_activation

    The last layer's target map starts as the identity, t_L = v^w, so that the first write already stores the value; the
    other target maps start as N(0, 1 / fan_in).

    Args:
      key_size: number of key features `K`.
      value_size: number of value features `V`.
      hidden_sizes: widths of the hidden layers; `L` = their number + 1, so `()` is a linear memory.
      step_size: "normalised" (an exact one-shot write for a linear memory at rate 1), "sum" (c = 2, as in the
        derivative of a sum of squares) or "paper" (c = 2 / (H O_l), as in the derivative of a mean).
      condition_on_key: whether the targets depend on the write key too, t_l = g_l(v^w, k^w), as in synthetic gradients.
      write_through: whether the inputs of a layer are computed after the write of the layers below it, as reads are.
      pre_activation: whether the errors of hidden layers are computed before their activation; needs `write_through`.
        It has no effect without hidden layers.
      activation: of the hidden layers, elementwise. The paper: tanh.
      use_bias: whether the layers have biases. The paper: none.
      learn_initial: whether phi_0 is learned; otherwise it stays the random draw of `init`, unless weight decay
        shrinks it.
      initial_gain: `W_l ~ N(0, gain^2 / fan_in)` at first; 0 for zeros.
      options: forgetting, momentum, inner steps and more; see `WriteOptions`.
      param_dtype: dtype of parameters and fast weights. Products are computed in the dtype of the keys.
      epsilon: squared norm of a layer's input below which the writes of "normalised" fade out. None: 1e-3 with hidden
        layers, whose inputs change with the write, and 1e-8 without them.

    Raises:
      ValueError: for sizes below 1, an unknown step size, a negative epsilon, options out of range, `pre_activation`
        with hidden layers but without `write_through`, or `write_through` with an `optimizer`, a `max_norm` or
        `never_worse`, which change a write after the pairs of all layers are computed.

    Examples:
      >>> memory = local_memory(2, 1, hidden_sizes=())
      >>> params = memory.init(jax.random.key(0))
      >>> state = memory.start(params, 1)
      >>> keys = jnp.array([[[1.0, 0.0], [1.0, 1.0]]])     # two heads with overlapping keys
      >>> values = jnp.array([[[2.0], [5.0]]])
      >>> state, info = memory.write(params, state, keys, values, jnp.ones(1))
      >>> print(jnp.round(memory.read(params, state, keys)[0, :, 0], 1))
      [2. 5.]

    References:
      Munkhdalai et al., NeurIPS 2019, section 3.3. condition_on_key: Jaderberg et al., ICML 2017.
    """
    epsilon = _check_step(step_size, epsilon, hidden_sizes)
    check_flags(condition_on_key=condition_on_key, write_through=write_through, pre_activation=pre_activation)
    return rule_memory(
        key_size,
        value_size,
        LocalRule(step_size, epsilon, bool(condition_on_key), bool(write_through), bool(pre_activation)),
        hidden_sizes=hidden_sizes,
        activation=activation,
        use_bias=use_bias,
        learn_initial=learn_initial,
        initial_gain=initial_gain,
        options=options,
        param_dtype=param_dtype,
    )


def matrix_memory(
    key_size: int,
    value_size: int,
    rule: str = "delta",
    *,
    learn_initial: bool = False,
    options: WriteOptions = PAPER,
    param_dtype: DTypeLike = jnp.float32,
) -> Memory:
    """Returns a matrix written by the delta rule or the Hebbian rule: the linear special cases.

        delta:    W_t = W_{t-1} - beta_t sum_h k_h (x) (k_h W_{t-1} - v_h)
        hebbian:  W_t = W_{t-1} + beta_t sum_h k_h (x) v_h

    with W_0 = 0 at first. Neither rule divides by the length of the keys. With the delta rule, keys longer than
    sqrt(2 / beta) make the weights diverge, so use it with `WriteOptions(key_norm="l2")`. `WriteOptions(forget=True)`
    adds a decay of the fast weights.

    Args:
      key_size: number of key features `K`.
      value_size: number of value features `V`.
      rule: "delta" or "hebbian".
      learn_initial: whether W_0 is learned; in both cases it starts at zero.
      options: see `WriteOptions`.
      param_dtype: dtype of parameters and fast weights. Products are computed in the dtype of the keys.

    Raises:
      ValueError: for sizes below 1, an unknown rule, or options out of range.

    Examples:
      >>> memory = matrix_memory(2, 1, "hebbian")
      >>> params = memory.init(jax.random.key(0))
      >>> state = memory.start(params, 1)
      >>> key, value = jnp.array([[[1.0, 1.0]]]), jnp.array([[[3.0]]])
      >>> for _ in range(2):
      ...     state, _ = memory.write(params, state, key, value, jnp.full(1, 0.5))
      >>> print(memory.read(params, state, key)[0, 0, 0])
      6.0

    References:
      delta: Schlag et al., ICML 2021, and DeltaNet, Yang et al., NeurIPS 2024. hebbian: Ba et al., NeurIPS 2016,
      equation 1. Origins: Widrow and Hoff, 1960 (delta rule), and Hebb, 1949.
    """
    check_choice("rule", rule, _MATRIX_RULES)
    return rule_memory(
        key_size,
        value_size,
        _MATRIX_RULES[rule],
        learn_initial=learn_initial,
        initial_gain=0.0,
        options=options,
        param_dtype=param_dtype,
    )


def _check_hidden(hidden_sizes: Sequence[int]) -> None:
    if not isinstance(hidden_sizes, Sequence) or isinstance(hidden_sizes, str):
        raise TypeError(f"hidden_sizes must be a sequence of sizes such as (64, 64), got {hidden_sizes!r}.")
    check_sizes(**{f"hidden_sizes[{place}]": size for place, size in enumerate(hidden_sizes)})


def _check_activation(activation: Callable[[Array], Array]) -> None:
    check_functions(activation=activation)
    given = jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)
    found = jax.eval_shape(activation, given)
    if getattr(found, "shape", None) != given.shape or found.dtype != given.dtype:
        raise ValueError(
            f"activation must return an array of the shape and dtype of its argument, {given.shape} and float32, got "
            f"{getattr(found, 'shape', type(found).__name__)} and {getattr(found, 'dtype', None)}."
        )


def _check_step(step_size: str, epsilon: float | None, hidden_sizes: Sequence[int]) -> float:
    """Checks the arguments of the step size, and returns epsilon."""
    _check_hidden(hidden_sizes)
    check_choice("step_size", step_size, STEP_SIZES)
    if epsilon is None:
        return 1e-3 if hidden_sizes else 1e-8
    check_not_negative(epsilon=epsilon)
    return float(epsilon)


def _check_order(rule: ErrorRule, hidden_sizes: Sequence[int], options: WriteOptions) -> None:
    """Raises ValueError for `pre_activation` without `write_through`, and for options that exclude the latter."""
    if rule.pre_activation and hidden_sizes and not rule.write_through:
        raise ValueError(
            "pre_activation=True needs write_through=True with hidden layers: a layer above them would be written at "
            "inputs from before this write, but read at inputs from after it; set write_through=True."
        )
    for name in changed(options, "optimizer", "max_norm", "never_worse") if rule.write_through else ():
        raise ValueError(
            f"write_through must be False with {name}={getattr(options, name)!r}, got True: this option changes a "
            "write after the pairs of all layers are computed; leave one of the two out."
        )
