"""The memory built from a network, a rule and options.

Shape letters: `B` examples, `H` heads, `K` key features, `V` value features, `I`/`O` inputs and outputs of a layer.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._precision import common_dtype, wide
from mnm_jax.memory import _network as networks
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
from mnm_jax.memory._network import Network
from mnm_jax.memory._norms import bound, gated, safe_root
from mnm_jax.memory._options import TRIALS, WriteOptions, longest, normalise
from mnm_jax.memory._rules import AfterWrite, ErrorRule, Pairs, Rule
from mnm_jax.memory._step_size import gram, inner_products
from mnm_jax.memory._storage import dense
from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import MemoryParams, Pair, Storage, WriteInfo

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PairMemory(Memory):
    """A memory that is written in pairs: `W_l -= beta sum_h x_{l,h} (x) delta_{l,h}`.

    Without forgetting, momentum and an optimiser, its functions accept any storage; `start` returns dense weights.

    Attributes:
      network: the architecture.
      rule: the write rule, which returns the pairs.
      options: the other settings of a write; see `WriteOptions`.
      learn_initial: whether phi_0 gets a gradient.
      initial_gain: `W_l ~ N(0, gain^2 / fan_in)` at first.
      param_dtype: dtype of parameters and fast weights.
    """

    network: Network
    rule: Rule
    options: WriteOptions
    learn_initial: bool
    initial_gain: float
    param_dtype: Any

    @property
    def key_size(self) -> int:
        """See `Memory`."""
        return self.network.sizes[0]

    @property
    def value_size(self) -> int:
        """See `Memory`."""
        return self.network.sizes[-1]

    @property
    def gates(self) -> tuple[str, ...]:
        """See `Memory`."""
        return self.options.gates

    @property
    def pairs_only(self) -> bool:
        """See `Memory`."""
        return self.options.pairs_only

    def init(self, key: Array) -> MemoryParams:
        """See `Memory`."""
        draw = lambda key: self.rule.init(self.network, key, self.param_dtype)  # noqa: E731
        weights_key, targets = key, None
        if jax.eval_shape(draw, key) is not None:  # otherwise nothing else is drawn
            weights_key, targets_key = jax.random.split(key)
            targets = draw(targets_key)
        return MemoryParams(networks.init(self.network, weights_key, self.initial_gain, self.param_dtype), targets)

    def start(self, params: MemoryParams, batch_size: int) -> Any:
        """See `Memory`."""
        check_batch(params, batch_size)
        shapes = tuple(w.shape for w in params.weights)
        if shapes != self.network.shapes:
            raise ValueError(
                f"this memory has layers of the shapes {list(self.network.shapes)}, got params with {list(shapes)}, "
                "which are of a memory of other sizes: use the init of this memory."
            )
        check_weights(params)
        weights = params.weights if self.learn_initial else jax.lax.stop_gradient(params.weights)
        state = dense.start(tuple(w.astype(common_dtype(w.dtype, self.param_dtype)) for w in weights), batch_size)
        return state if self.pairs_only else begin(state.weights, self.options)

    def read(self, params: MemoryParams, state: Any, keys: Array) -> Array:
        """See `Memory`."""
        del params  # the state holds the fast weights
        check_read(self, state, keys)
        return self._answers(state, normalise(jnp.asarray(keys), self.options.key_norm))

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
        """See `Memory`."""
        check_params(params)
        check_write(self, state, keys, values, rate, read_keys, gates)
        keys, values, rate, read_keys = map(jnp.asarray, (keys, values, rate, read_keys))
        how = self.options
        keys, read_keys = normalise(keys, how.key_norm), normalise(read_keys, how.key_norm)
        old, predicted, written = state, [], []
        dtype = common_dtype(keys.dtype, values.dtype)  # a rule may compute in more than the cell's half precision
        for inner in range(how.inner_steps):
            write = (self.network, params.targets, _storage(state), keys, values)
            if isinstance(self.rule, ErrorRule) and self.rule.write_through:
                full, answer = self.rule.pairs(*write, self._after_write(state, rate, gates, first=inner == 0))
            else:
                full, answer = self.rule.pairs(*write)
            predicted.append(answer)
            if self.pairs_only:
                full = tuple(Pair(p.inputs.astype(dtype), p.delta.astype(dtype)) for p in full)
            if how.max_norm is not None:
                full = scale_pairs(full, bound(norm_of_pairs(full), how.max_norm))
            if how.never_worse:
                full = scale_pairs(full, self._shorten(state, scale_pairs(full, rate), answer, keys, values))
            if self.pairs_only:
                written.append(scale_pairs(full, rate))
                state = state.subtract(written[-1])
            else:
                changes = tuple(_change(pair, w) for pair, w in zip(full, state.weights, strict=True))
                state = descend(state, changes, rate, how, gates, first=inner == 0)
        answers = self._answers(state, jnp.concatenate([keys, read_keys], 1))
        kept, read = jnp.split(answers, [keys.shape[1]], axis=1)
        if self.pairs_only:
            size = norm_of_pairs(jax.tree.map(lambda *rows: jnp.concatenate(rows, 1), *written))
        else:
            size = distance(state, old)
        return state, measures(predicted[0], kept, values, size), read

    def _after_write(self, state: Any, rate: Array, gates: Mapping[str, Array], *, first: bool) -> AfterWrite:
        """Returns the function that computes a layer's answers after a write to the state; see `descend`."""

        def after_write(layer: int, x: Array, answer: Array, pair: Pair) -> Array:
            added = -gated(rate, _product(x, pair))
            if self.options.momentum:
                added = added + gated(gates["momentum"], MemoryState(state.surprise).product(layer, x))
            forgets = self.options.forget and first
            return (gated(1 - gates["forget"], answer) if forgets else answer) + added

        return after_write

    def _answers(self, state: Any, keys: Array) -> Array:
        """Returns f(k; phi) for normalised keys."""
        return networks.forward(self.network, _storage(state), keys).outputs[-1]

    def _shorten(self, state: Any, pairs: Pairs, answers: Array, keys: Array, values: Array) -> Array:
        """Returns the factor a `[B]` of `WriteOptions.never_worse` for pairs that are multiplied by the rate."""
        heads, many = keys.shape[1], len(TRIALS)
        factors = jnp.repeat(jnp.asarray(TRIALS, keys.dtype), heads)[None, :, None]
        errors = self._answers(_Trials(state, pairs, factors), jnp.tile(keys, (1, many, 1)))
        errors = errors.reshape(keys.shape[0], many, heads, errors.shape[-1]) - values[:, None]
        before = answers - values
        return longest(jnp.mean(before * before, axis=(1, 2)), jnp.mean(errors * errors, axis=(2, 3)))


class _Trials(NamedTuple):
    """A `Storage` from which pairs times a factor per row of a product, `[1, Q, 1]`, are subtracted."""

    storage: Storage
    pairs: Pairs
    factors: Array

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        return self.storage.product(layer, x) - self.factors * _product(x, self.pairs[layer])


def _product(x: Array, pair: Pair) -> Array:
    """Returns x times the change of a pair, x X^T D, `[B, Q, I] -> [B, Q, O]`."""
    return jnp.einsum("bqh,bho->bqo", inner_products(x, pair.inputs).astype(x.dtype), pair.delta)


def _storage(state: Any) -> Storage:
    return state.storage if isinstance(state, GatedState) else state


def scale_pairs(pairs: Pairs, factor: Array) -> Pairs:
    return tuple(Pair(p.inputs, gated(factor, p.delta)) for p in pairs)


def _change(pair: Pair, like: Array) -> Array:
    """Returns X^T D `[B, I, O]` in the dtype of the weights."""
    dtype = common_dtype(pair.delta.dtype, like.dtype)
    return jnp.einsum("bhi,bho->bio", pair.inputs.astype(dtype), pair.delta.astype(dtype)).astype(like.dtype)


def norm_of_pairs(pairs: Pairs) -> Array:
    """Returns |sum_h x_h (x) delta_h| over all layers, `[B]`, in at least float32."""
    squares = [_square(wide(p.inputs), wide(p.delta)) for p in pairs]
    return safe_root(functools.reduce(jnp.add, squares))


@jax.custom_jvp
def _square(x: Array, delta: Array) -> Array:
    """Returns |X^T D|^2 `[B]`.

    Pairs with equal or opposite inputs can cancel. The sum of (X X^T) * (D D^T) would then consist of rounding errors.
    Therefore the inputs are made orthogonal one after another (Gram-Schmidt), X = L Q, so that the square is a sum of
    squares, sum_h |q_h|^2 |(L^T D)_h|^2.
    """
    sums: list[Array] = []
    own = jnp.sum(x * x, -1)
    tolerance = (16 * jnp.finfo(x.dtype).eps) ** 2
    while True:
        first = x[:, :1]
        square = jnp.sum(first * first, -1)
        exists = square > tolerance * own[:, :1]  # otherwise this input depends on those before it
        share = jnp.where(exists, jnp.sum(x * first, -1) / jnp.where(exists, square, 1), 0)[..., None]
        sums.append(square[:, 0] * jnp.sum(jnp.square(jnp.sum(share * delta, 1)), -1))
        if x.shape[1] == 1:
            return functools.reduce(jnp.add, sums)
        x, delta, own = x[:, 1:] - share[:, 1:] * first, delta[:, 1:], own[:, 1:]


@_square.defjvp
def _square_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, delta), (dx, ddelta) = primals, tangents
    change = inner_products(dx, x) * gram(delta) + inner_products(ddelta, delta) * gram(x)
    return _square(x, delta), 2 * jnp.sum(change, (1, 2))
