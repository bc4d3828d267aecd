"""Write rules. A rule returns the pairs of a write, one `Pair(x_l, delta_l)` per layer.

The storage applies and keeps the pairs. A rule accesses the weights only through `product` and `product_transposed`,
and multiplies by its own target maps through `slow_product`.

Shape letters: `B` examples, `H` heads, `C` tokens of a chunk, `K` key features, `V` value features, `I`/`O` inputs and
outputs of a layer.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._precision import wide
from mnm_jax.memory._network import Activations, Network, backward, forward
from mnm_jax.memory._norms import safe_root
from mnm_jax.memory._step_size import factor, gram, inverse_norm, normalised_pairs, solve
from mnm_jax.memory._types import Pair, Storage, TargetMaps

Array = jax.Array
Pairs = tuple[Pair, ...]
# (layer, x, x W, pair) -> x W', the answers of a layer after the write of a pair at rate one; all `[B, H, .]`.
AfterWrite = Callable[[int, Array, Array, Pair], Array]
RIDGE = 0.05  # the relative accuracy of N in `GradientRule`: smaller eigenvalues of it are not inverted


class Rule(abc.ABC):
    """A write rule: computes the pairs of a write at rate one from the weights before the write."""

    def init(self, network: Network, key: Array, dtype: Any) -> Any:
        """Returns the rule's parameters, which are learned: any pytree of arrays; None for a rule without any.

        Only a kernel of `TargetMaps` gets its gradient once per sequence; others are differentiated step by step.
        """
        del network, key, dtype
        return None

    @abc.abstractmethod
    def pairs(
        self, network: Network, targets: Any, weights: Storage, keys: Array, values: Array
    ) -> tuple[Pairs, Array]:
        """Returns one pair per layer, and the answer f(k^w) before the write.

        Args:
          network: the architecture.
          targets: the parameters that `init` returns.
          weights: the fast weights before the write.
          keys: write keys, `[B, H, K]`.
          values: write values, `[B, H, V]`.
        """


class ErrorRule(Rule):
    """A rule whose pairs are computed from errors, each layer's answer minus the layer's target.

        pairs = steps([x_1, ..., x_L], [z_1 - t_1, ..., z_L - t_L])

    `NeuralMemoryLayer` computes the answers for a token with the weights after the previous token. For this a delta
    must be an error times a factor that does not depend on the error: for a single row, `steps` must return its input
    and `step_scale` times its error, or another pair with the same product.

    Attributes:
      write_through: whether a layer's inputs x_l are computed after the write to the layers below it, not before.
      pre_activation: whether the answer z_l of a hidden layer is x_l W_l, without the activation.
    """

    write_through: bool = False
    pre_activation: bool = False

    @abc.abstractmethod
    def layer_targets(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Array, ...]:
        """Returns the target t_l of every layer, `[B, H, O]`."""

    @abc.abstractmethod
    def steps(self, inputs: Sequence[Array], errors: Sequence[Array]) -> Pairs:
        """Returns one pair per layer, for heads that are written together.

        Args:
          inputs: x_l, `[B, H, I]`.
          errors: z_l - t_l, `[B, H, O]`.
        """

    @abc.abstractmethod
    def step_scale(self, inputs: Array, features: int) -> Array:
        """Returns the factor `[B, C, 1]` of an error in its delta if every row is a separate write.

        Args:
          inputs: x_l, `[B, C, I]`.
          features: the size of the error, `O`.
        """

    def pairs(
        self,
        network: Network,
        targets: TargetMaps | None,
        weights: Storage,
        keys: Array,
        values: Array,
        written: AfterWrite | None = None,
    ) -> tuple[Pairs, Array]:
        """See `Rule`; `written` is needed with `write_through`."""
        inputs, outputs, _ = forward(network, weights, keys)
        wanted = self.layer_targets(network, targets, weights, keys, values)
        if written is not None:
            return self._pairs_upwards(network, weights, keys, wanted, written), outputs[-1]
        errors = [z - t for z, t in zip(outputs, wanted, strict=True)]
        return self.steps(inputs, errors), outputs[-1]

    def _pairs_upwards(
        self, network: Network, weights: Storage, keys: Array, wanted: tuple[Array, ...], written: AfterWrite
    ) -> Pairs:
        """Returns the pairs of `write_through`, for targets `[B, H, O]`: one layer after another."""
        z, pairs = keys, list[Pair]()
        for layer, target in enumerate(wanted):
            x = network.layer_inputs(z)
            answer = weights.product(layer, x)
            hidden = layer < network.depth - 1
            own = network.activation(answer) if hidden and not self.pre_activation else answer
            pairs += self.steps([x], [own - target])
            if hidden:
                z = network.activation(written(layer, x, answer, pairs[-1]))
        return tuple(pairs)


class SnapshotRule(Rule):
    """A rule whose pairs, within a chunk of `NeuralMemoryLayer`, follow from the weights at the chunk's beginning.

    With a `GradientRule`, the layer also corrects the errors for the chunk's earlier writes, unless `stale=True`.

    Attributes:
      uses_weights: whether the pairs depend on the weights. Otherwise the result does not depend on the chunk size.
    """

    uses_weights: ClassVar[bool] = True

    @abc.abstractmethod
    def row_pairs(self, network: Network, targets: Any, weights: Storage, keys: Array, values: Array) -> Pairs:
        """Returns pairs as `pairs` does, with every row as a separate write.

        Args:
          network: the architecture.
          targets: the parameters that `init` returns.
          weights: the fast weights.
          keys: `[B, C, K]`.
          values: `[B, C, V]`.
        """


@dataclasses.dataclass(frozen=True)
class SizedRule(ErrorRule):
    """An error rule with one of the step sizes.

    Attributes:
      step_size: one of `STEP_SIZES`; None for the plain error.
      epsilon: squared norm of a layer's input below which the writes of "normalised" fade out.
    """

    step_size: str | None = None
    epsilon: float = 0.0

    def steps(self, inputs: Sequence[Array], errors: Sequence[Array]) -> Pairs:
        """See `ErrorRule`."""
        if self.step_size == "normalised":
            return normalised_pairs(inputs, errors, self.epsilon)
        scaled = (factor(self.step_size, *error.shape[1:]) * error for error in errors)
        return tuple(map(Pair, inputs, scaled))

    def step_scale(self, inputs: Array, features: int) -> Array:
        """See `ErrorRule`."""
        return _row_scale(self.step_size, inputs, features, self.epsilon)


@dataclasses.dataclass(frozen=True)
class LocalRule(SizedRule):
    """The perceptron rule of MNM-p (section 3.3): delta_l = z_l - t_l at rate one, t_l = g_l(v^w) learned.

    paper: 2 / (H O_l) (z_l - t_l); sum: 2 (z_l - t_l); normalised: (X_l X_l^T)^-1 (Z_l - T_l), which is
    (z_l - t_l) / |x_l|^2 for one head (see `_step_size` for equal keys and zero keys). z_l are the activations before
    the write. The derivative of the activation is left out, which makes the rule local. The order of the heads does not
    matter.

    Attributes:
      condition_on_key: whether the targets depend on the write key too, t_l = g_l(v^w, k^w).
      write_through: see `ErrorRule`.
      pre_activation: see `ErrorRule`.
    """

    condition_on_key: bool = False
    write_through: bool = False
    pre_activation: bool = False

    def init(self, network: Network, key: Array, dtype: Any) -> TargetMaps:
        """Returns target maps, the last layer's as the identity of the value, so that a first write stores it."""
        key_size, value_size = network.sizes[0], network.sizes[-1]
        context = value_size + key_size * self.condition_on_key
        kernel = jax.nn.initializers.lecun_normal()(key, (context, sum(network.sizes[1:])), dtype)
        kernel = kernel.at[:, -value_size:].set(jnp.eye(context, value_size, dtype=dtype))
        return TargetMaps(kernel, jnp.zeros(kernel.shape[1], dtype))

    def layer_targets(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Array, ...]:
        """See `ErrorRule`."""
        if targets is None:
            raise ValueError("params must have the target maps of the local rule, got None: use this memory's init.")
        context = jnp.concatenate([values, keys], -1) if self.condition_on_key else values
        shape = context.shape[-1], sum(network.sizes[1:])
        if targets.kernel.shape != shape:
            raise ValueError(
                f"the target maps of this memory's rule have a kernel of shape {list(shape)}, got params with "
                f"{list(targets.kernel.shape)}: use this memory's init."
            )
        wanted = weights.slow_product(context, targets.kernel) + targets.bias.astype(context.dtype)[None, None]
        ends = list(itertools.accumulate(network.sizes[1:]))
        return tuple(jnp.split(wanted, ends[:-1], axis=-1))


class Linearised(NamedTuple):
    """The pairs of a chunk's tokens, to first order in the chunk's own writes.

    A write at rate r of a token with features psi and error e moves the answer to a token with features psi' by
    - r (psi . psi') scale e.

    Attributes:
      errors: f(k) - v with the weights of the chunk's beginning, `[B, C, V]`.
      features: psi, `[B, C, F]`.
      scale: the factor of the error in a write, `[B, C, 1]`.
      pairs: returns the pairs at rate one from errors `[B, C, V]`.
    """

    errors: Array
    features: Array
    scale: Array
    pairs: Callable[[Array], Pairs]


@dataclasses.dataclass(frozen=True)
class GradientRule(SnapshotRule):
    """The gradient step of MNM-g (section 3.2) at rate one, differentiable itself.

    With the error e_h = f(k_h) - v_h and delta_l = (d f / d (x_l W_l))^T c, the gradient of any loss whose derivative
    at the answer is c is x_l (x) delta_l in layer l. The step sizes differ only in c:

        paper:       c = 2 e / (H V)         the derivative of the mean of squares
        sum:         c = 2 e                 the derivative of the sum of squares
        normalised:  c = N^-1 e,   N = sum_l s_l X_l X_l^T,   s_l = |delta_l(e)|^2 / |e|^2

    Normalised: to first order, a step with c moves the answers by - J J^T c, where J is the Jacobian of f with respect
    to all weights, so that c = (J J^T)^-1 e would meet every target. N approximates J J^T: the backward map of layer l
    is replaced by its mean square gain s_l (one for the last layer), with delta_l(e) the delta for c = e. N is exact
    for a linear memory, N = X X^T, with any number of heads (see `_step_size`). For one head in any network the step
    length is 2 L / |grad L|^2 with L = |e|^2, twice Polyak's step.

    With hidden layers a step at rate 1 can increase the loss, since it ignores that the layers change each other's
    inputs and that N is only a mean: if the keys are much shorter than the error, or nearly equal with different
    values. Lower rates make this rarer, and `WriteOptions(never_worse=True)` shortens such writes.

    Attributes:
      step_size: one of `STEP_SIZES`.
      epsilon: squared norm of a key (with hidden layers, of the derivative of the outputs by the weights) below which
        the writes of "normalised" fade out.
    """

    step_size: str
    epsilon: float

    def pairs(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Pairs, Array]:
        """See `Rule`."""
        del targets
        passed, error = _errors(network, weights, keys, values)
        if self.step_size != "normalised":
            cotangent = factor(self.step_size, *error.shape[1:]) * error
            deltas = backward(network, weights, passed, cotangent)
            return tuple(map(Pair, passed.inputs, deltas)), passed.outputs[-1]
        of_error = backward(network, weights, passed, error)
        kernel = _scalar_kernel(passed.inputs, of_error)
        if error.shape[1] == 1:  # c is a multiple of e, and so are its deltas
            scale = jnp.square(inverse_norm(kernel, self.epsilon)).astype(error.dtype)
            deltas = tuple(scale * delta for delta in of_error)
        else:
            deltas = backward(network, weights, passed, solve(kernel, error, self.epsilon, RIDGE))
        return tuple(map(Pair, passed.inputs, deltas)), passed.outputs[-1]

    def row_pairs(self, network: Network, targets: Any, weights: Storage, keys: Array, values: Array) -> Pairs:
        """See `SnapshotRule`."""
        del targets
        linear = self.linearise(network, weights, keys, values)
        return linear.pairs((linear.scale * wide(linear.errors)).astype(linear.errors.dtype))

    def linearise(self, network: Network, weights: Storage, keys: Array, values: Array) -> Linearised:
        """Returns the rule for rows that are separate writes, with psi = [sqrt(s_1) x_1; ...; x_L].

        Args:
          network: the architecture.
          weights: the fast weights at the chunk's beginning.
          keys: `[B, C, K]`.
          values: `[B, C, V]`.
        """
        passed, error = _errors(network, weights, keys, values)
        of_error = backward(network, weights, passed, error)
        gains = map(safe_root, _gains(of_error, axes=(-1,)))
        inner = [gain.astype(x.dtype) * x for gain, x in zip(gains, passed.inputs[:-1], strict=True)]
        features = jnp.concatenate([*inner, passed.inputs[-1]], -1)
        scale = _row_scale(self.step_size, wide(features), error.shape[-1], self.epsilon)

        def pairs(deltas: Array) -> Pairs:
            return tuple(map(Pair, passed.inputs, backward(network, weights, passed, deltas)))

        return Linearised(errors=error, features=features, scale=scale, pairs=pairs)


@dataclasses.dataclass(frozen=True)
class DeltaRule(SizedRule):
    """The delta rule of a single layer: delta = k W - v at rate one, or that error scaled by a step size.

    With a step size it equals the gradient rule of a memory without hidden layers.
    """

    def layer_targets(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Array, ...]:
        """See `ErrorRule`."""
        del network, targets, weights, keys
        return (values,)


@dataclasses.dataclass(frozen=True)
class HebbianRule(SnapshotRule):
    """The Hebbian rule of a single layer: delta = -v at rate one."""

    uses_weights: ClassVar[bool] = False

    def pairs(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Pairs, Array]:
        """See `Rule`."""
        del targets
        (x,), (answer,), _ = forward(network, weights, keys)
        return (Pair(x, -values),), answer

    def row_pairs(self, network: Network, targets: Any, weights: Storage, keys: Array, values: Array) -> Pairs:
        """See `SnapshotRule`."""
        del targets, weights
        return (Pair(network.layer_inputs(keys), -values),)


@dataclasses.dataclass(frozen=True)
class FunctionRule(Rule):
    """A rule that a user gives as a function, `(network, weights, keys, values) -> (pairs, answers)`."""

    function: Callable[[Network, Storage, Array, Array], tuple[Pairs, Array]]

    def pairs(
        self, network: Network, targets: TargetMaps | None, weights: Storage, keys: Array, values: Array
    ) -> tuple[Pairs, Array]:
        """See `Rule`."""
        del targets
        return self.function(network, weights, keys, values)


def _row_scale(step_size: str | None, rows: Array, features: int, epsilon: float) -> Array:
    """Returns the factor `[B, C, 1]` of an error of size `features` in its delta if every row is a separate write."""
    if step_size == "normalised":
        return jnp.square(inverse_norm(jnp.sum(rows * rows, axis=-1, keepdims=True), epsilon))
    return jnp.full_like(rows[..., :1], factor(step_size, 1, features))


def _errors(network: Network, weights: Storage, keys: Array, values: Array) -> tuple[Activations, Array]:
    passed = forward(network, weights, keys)
    return passed, passed.outputs[-1] - values


def _scalar_kernel(inputs: tuple[Array, ...], deltas: tuple[Array, ...]) -> Array:
    """Returns N = sum_l s_l X_l X_l^T, `[B, H, H]`, from the inputs of every layer; see `_gains`."""
    *grams, kernel = map(gram, inputs)
    for gain, inner in zip(_gains(deltas, axes=(-2, -1)), grams, strict=True):
        kernel = kernel + gain * inner
    return kernel


def _gains(deltas: tuple[Array, ...], axes: tuple[int, ...]) -> list[Array]:
    """Returns s_l = |delta_l|^2 / |e|^2 of every layer except the last, whose gain is 1.

    Args:
      deltas: the error, passed back to every layer; the last entry is the error itself.
      axes: the axes of a delta that belong to one write: heads and features, or only features.
    """
    *squares, last = [jnp.sum(jnp.square(wide(delta)), axis=axes, keepdims=True) for delta in deltas]
    # Derivatives of second order divide by the third power of this, which must not be zero.
    size = last + float(jnp.finfo(last.dtype).tiny) ** 0.25
    return [square / size for square in squares]
