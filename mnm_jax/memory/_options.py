"""What came after the paper, as options of the same memory.

Shape letters: `B` examples, `H` heads, `K` key features.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory._storage.dense import MemoryState
from mnm_jax.memory._types import ReadPath

Array = jax.Array

KEY_NORMS = (None, "l2", "layer")
FORGET_LITTLE = -4.0  # bias of a forgetting gate, for what makes gates: 2% a write at first


class WriteOptions(NamedTuple):
    """How a memory is written, beyond its rule; all off by default.

    With G_t the rule's change at rate one (phi_t = phi_{t-1} - beta_t G_t is the paper's write), in this order:

        k <- k / |k|  ("l2")  or  (k - mean k) / sqrt(var k)  ("layer")                 key_norm
        G_t <- G_t min(1, c / |G_t|)                                                    max_norm = c
        U_t, o_t = optimizer(G_t, o_{t-1}, phi_{t-1}),   otherwise U_t = - G_t          optimizer
        S_t = m_t S_{t-1} + beta_t U_t,                  otherwise S_t = beta_t U_t     momentum
        phi_t = (1 - alpha_t) phi_{t-1} + S_t,           otherwise phi_{t-1} + S_t      forget

    and all of it, but for the forgetting, `inner_steps` times, each from the weights that the one before left.

    key_norm: of write and read keys, a head by itself; None, "l2" (as in DeltaNet: Yang et al., NeurIPS 2024) or
        "layer" (layer normalisation, Ba et al., 2016, without gain and bias).
    max_norm: bound on the Frobenius norm of all layers' G together; None for none (clipping of Pascanu et al., 2013).
    inner_steps: gradient steps a write (MAML's: Finn et al., ICML 2017).
    optimizer: an `optax.GradientTransformation`, one state for every example; its own learning rate is multiplied by
        beta. A root in it needs an `eps_root` > 0: its derivative at zero is infinite.
    momentum, forget: gates m_t and alpha_t in (0, 1), `[B]` each, that `Memory.write` is then given besides beta
        (Titans: Behrouz et al., 2025, equations 13 and 14).

    With `optimizer`, `momentum` or `forget` weights cannot be computed back from what was written: a cell is then run
    in the form "plain".
    """

    key_norm: str | None = None
    max_norm: float | None = None
    inner_steps: int = 1
    optimizer: Any = None
    momentum: bool = False
    forget: bool = False

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates that a write is given besides the rate."""
        return ("forget",) * self.forget + ("momentum",) * self.momentum

    @property
    def pairs_only(self) -> bool:
        """Whether a write does nothing but subtract pairs."""
        return self.optimizer is None and not self.gates


PAPER = WriteOptions()


def check_options(options: WriteOptions) -> None:
    """Raises ValueError for an option out of range."""
    if options.key_norm not in KEY_NORMS:
        raise ValueError(f"key_norm must be one of {KEY_NORMS}, got {options.key_norm!r}.")
    if options.max_norm is not None and not options.max_norm > 0:
        raise ValueError(f"max_norm must be > 0, or None for no bound, got {options.max_norm}.")
    if options.inner_steps < 1:
        raise ValueError(f"inner_steps must be >= 1, got {options.inner_steps}.")
    if options.optimizer is not None and not all(hasattr(options.optimizer, name) for name in ("init", "update")):
        raise ValueError(f"optimizer must be an optax.GradientTransformation, got {type(options.optimizer).__name__}.")


def normalise(keys: Array, how: str | None) -> Array:
    """Keys `[B, H, K]` by `WriteOptions.key_norm`; a zero key stays zero."""
    if how is None:
        return keys
    if how == "layer":
        keys = keys - jnp.mean(keys, -1, keepdims=True)
    square = (jnp.sum if how == "l2" else jnp.mean)(keys * keys, axis=-1, keepdims=True)
    # The derivative of a root at zero is infinite, and infinity times zero is NaN: step aside there.
    positive = square > 0
    return jnp.where(positive, keys * jax.lax.rsqrt(jnp.where(positive, square, 1)), 0)


def normalise_path(path: ReadPath | None, write_keys: Array, how: str | None) -> ReadPath | None:
    """The path of normalised keys, from the one of keys as they were before."""
    if path is None or how is None:
        return path
    _, pull_back = jax.vjp(lambda keys: normalise(keys, how), write_keys)
    back = lambda of_keys, of_values: path.pull_back(*pull_back(of_keys), of_values)  # noqa: E731
    return ReadPath(normalise(path.keys, how), back)


def bound(norm: Array, max_norm: float) -> Array:
    """min(1, c / norm) `[B]`, by which a change of that norm is multiplied."""
    return jnp.where(norm > max_norm, max_norm / jnp.maximum(norm, max_norm), 1)


class GatedState(NamedTuple):
    """Fast weights that forget or are moved by an optimiser, and what the next write has to know of earlier ones.

    weights: phi_t, leaves `[B, ...]`. surprise: S_t, likewise, or None. optimizer: its state, leaves `[B, ...]`, or
    None.
    """

    weights: Any
    surprise: Any
    optimizer: Any

    @property
    def batch_size(self) -> int:
        return jax.tree.leaves(self.weights)[0].shape[0]

    @property
    def storage(self) -> MemoryState:
        """The weights as rules see them."""
        return MemoryState(self.weights)


def begin(weights: Any, options: WriteOptions) -> GatedState:
    """The state at the beginning of sequences, from phi_0 with leaves `[B, ...]`."""
    surprise = jax.tree.map(jnp.zeros_like, weights) if options.momentum else None
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers with floats
        optimizer = None if options.optimizer is None else jax.vmap(options.optimizer.init)(weights)
    return GatedState(weights, surprise, optimizer)


def descend(
    state: GatedState,
    changes: Any,
    rate: Array,
    options: WriteOptions,
    gates: Mapping[str, Array],
    *,
    first: bool,
) -> GatedState:
    """One inner step with the bounded changes G, leaves `[B, ...]`; only the first of a write forgets."""
    optimizer = state.optimizer
    if options.optimizer is None:
        updates = jax.tree.map(jnp.negative, changes)
    else:
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer = jax.vmap(options.optimizer.update)(changes, optimizer, state.weights)
    added = jax.tree.map(lambda u, w: _times(rate, u).astype(w.dtype), updates, state.weights)
    if options.momentum:
        added = jax.tree.map(lambda s, a: _times(gates["momentum"], s) + a, state.surprise, added)
    weights = state.weights
    if options.forget and first:
        weights = jax.tree.map(lambda w: _times(1 - gates["forget"], w), weights)
    weights = jax.tree.map(jnp.add, weights, added)
    return GatedState(weights, added if options.momentum else None, optimizer)


def limit(changes: Any, max_norm: float | None) -> Any:
    """Changes `[B, ...]` with the norm of all leaves together bounded by `WriteOptions.max_norm`."""
    if max_norm is None:
        return changes
    factor = bound(norm(changes), max_norm)
    return jax.tree.map(lambda x: _times(factor, x), changes)


def norm(tree: Any) -> Array:
    """Norm `[B]` of all leaves `[B, ...]` together."""
    return safe_root(sum(jnp.sum(x * x, axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)))


def distance(a: GatedState, b: GatedState) -> Array:
    """|phi_a - phi_b| `[B]`."""
    return norm(jax.tree.map(jnp.subtract, a.weights, b.weights))


def safe_root(square: Array) -> Array:
    """The root, with derivative zero at zero, where it would be infinite, and infinity times a masked zero NaN."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _times(gate: Array, leaf: Array) -> Array:
    """A gate `[B]` times a leaf `[B, ...]`, in the dtype of the leaf."""
    return gate.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype) * leaf
