"""Pytrees of arrays as parameters of flax modules; names and kinds of leaves."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class ParamTree(nnx.Module):
    """A pytree of arrays as a module, with one `nnx.Param` per leaf.

    One `nnx.Param` that holds the whole tree would not do: `nnx.Optimizer` loses its structure at the second update
    (flax 0.12).

    Args:
      tree: any pytree of arrays.

    Raises:
      ValueError: if two leaves have the same name, such as `{"a.b": x, "a": {"b": y}}`, or if one has that of an
        attribute of the module, such as `{"names": x}`.

    Examples:
      >>> params = ParamTree({"weights": (jnp.zeros(2), jnp.ones(3))})
      >>> params.names
      ('weights[0]', 'weights[1]')
      >>> params.get_value()["weights"][1]
      Array([1., 1., 1.], dtype=float32)
    """

    def __init__(self, tree: Any) -> None:
        leaves, structure = jax.tree.flatten(tree)
        self.structure: Any = structure
        self.names = tuple(by_name(tree))
        if taken := [name for name in self.names if hasattr(self, name)]:
            raise ValueError(f"an array must not be named {taken[0]!r}, an attribute of ParamTree: rename its key.")
        for name, leaf in zip(self.names, leaves, strict=True):
            setattr(self, name, nnx.Param(leaf))

    def get_value(self) -> Any:
        """Returns the tree."""
        return jax.tree.unflatten(self.structure, [getattr(self, name).get_value() for name in self.names])

    def set_value(self, tree: Any) -> None:
        """Replaces the tree.

        Args:
          tree: a tree of the same structure, with leaves of the same shapes and dtypes.

        Raises:
          ValueError: for another structure, shape or dtype.
        """
        try:
            leaves = self.structure.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                f"params must have the arrays {', '.join(self.names)}, got {', '.join(leaf_names(tree)) or 'none'}: "
                f"use the init of an equal memory. ({error})"
            ) from error
        for name, leaf in zip(self.names, leaves, strict=True):
            own = getattr(self, name).get_value()
            shape, dtype = jnp.shape(own), jnp.result_type(own)
            if leaf.shape == shape[1:]:
                raise ValueError(
                    f"{name} must have the shape {shape}, got {leaf.shape}: use params of equal sizes; if these are "
                    "of one head of a layer, join those of all heads by jnp.stack."
                )
            if leaf.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {leaf.shape}: use params of equal sizes.")
            if jnp.result_type(leaf) != dtype:
                raise ValueError(f"{name} must have the dtype {dtype}, got {jnp.result_type(leaf)}: use astype.")
        for name, leaf in zip(self.names, leaves, strict=True):
            getattr(self, name).set_value(leaf)


def set_bias(linear: nnx.Linear, values: jax.Array) -> None:
    """Sets the bias of a linear map."""
    assert linear.bias is not None  # callers build their maps with a bias
    linear.bias.set_value(values)


def is_key(leaf: Any) -> bool:
    """Returns whether an array or a `jax.ShapeDtypeStruct` holds random keys; False for a Python number."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by name, see `leaf_names`; raises ValueError if two have the same name."""
    names = leaf_names(tree)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the names of the arrays must differ, got {twice[0]!r} twice: rename a key with a dot.")
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def leaf_names(tree: Any) -> list[str]:
    """Returns the names of the leaves in the order of `jax.tree.leaves`, such as `cell.weights[0]`."""
    names = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable)):
        # The path of a leaf in a variable begins with an entry for the value of the variable, which is left out.
        inner = jax.tree_util.tree_leaves_with_path(node) if isinstance(node, nnx.Variable) else [((None,), node)]
        names += [_name((*path, *within[1:])) for within, _ in inner]
    return names


def _name(path: tuple[Any, ...]) -> str:
    keys = [getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))) for entry in path]
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
