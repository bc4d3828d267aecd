"""Makes arrays vary over the same mesh axes, as loops under `jax.shard_map` with its default checks require.

Also recognises symbolic zeros, in whose place a hand-written backward pass gets no array.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Tree = TypeVar("Tree")


def vary_alike(tree: Tree) -> Tree:
    """Returns the tree with every leaf varying over all manual mesh axes over which any of its leaves varies.

    Without `jax.shard_map`, and with `check_vma=False`, this is the tree itself. Parameters, which are the same on all
    devices, are cast here once per sequence, so that their gradients are summed over devices once, not at every step.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))
    if not axes:
        return tree

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree)


def zeros_alike(tree: Any) -> Any:
    """Returns zeros with the shape, the dtype and the varying axes of every array or `jax.ShapeDtypeStruct`."""

    def zeros(leaf: Any) -> jax.Array:
        axes = tuple(varying_axes(leaf))
        new = jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf))
        return jax.lax.pcast(new, axes, to="varying") if axes else new

    return jax.tree.map(zeros, tree)


def is_zero(leaf: Any) -> bool:
    """Returns whether a cotangent is known to be zero, with `symbolic_zeros` of `jax.custom_vjp`."""
    return isinstance(leaf, SymbolicZero)


def varying_axes(leaf: Any) -> frozenset[str]:
    """Returns the manual mesh axes over which an array or a `jax.ShapeDtypeStruct` varies."""
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    if hasattr(aval, "vma"):  # the name of the attribute depends on the version of JAX
        return aval.vma or frozenset()
    return getattr(getattr(aval, "mat", None), "varying", frozenset())
