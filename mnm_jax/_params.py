"""Pytrees of arrays as parameters of flax modules, and names of leaves."""

from typing import Any

import jax
from flax import nnx


class ParamTree(nnx.Module):
    """A pytree of arrays as a module, with one `nnx.Param` per leaf.

    One `nnx.Param` that holds the whole tree would not do: `nnx.Optimizer` loses its structure at the second update
    (flax 0.12).

    Args:
      tree: any pytree of arrays.

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
        self.names = tuple(leaf_names(tree))
        for name, leaf in zip(self.names, leaves, strict=True):
            setattr(self, name, nnx.Param(leaf))

    def get_value(self) -> Any:
        """Returns the tree."""
        return jax.tree.unflatten(self.structure, [getattr(self, name).get_value() for name in self.names])

    def set_value(self, tree: Any) -> None:
        """Replaces the tree.

        Args:
          tree: a tree of the same structure, with leaves of the same shapes.

        Raises:
          ValueError: for another structure or shape.
        """
        leaves = self.structure.flatten_up_to(tree)
        for name, leaf in zip(self.names, leaves, strict=True):
            if leaf.shape != (shape := getattr(self, name).get_value().shape):
                raise ValueError(f"{name} must have the shape {shape}, got {leaf.shape}: use params of equal sizes.")
        for name, leaf in zip(self.names, leaves, strict=True):
            getattr(self, name).set_value(leaf)


def set_bias(linear: nnx.Linear, values: jax.Array) -> None:
    """Sets the bias of a linear map."""
    assert linear.bias is not None  # callers build their maps with a bias
    linear.bias.set_value(values)


def leaf_names(tree: Any) -> list[str]:
    """Returns the names of the leaves in the order of `jax.tree.leaves`, such as `cell.weights[0]`."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple[Any, ...]) -> str:
    keys = [getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))) for entry in path]
    if keys and keys[-1] == "value":  # the value inside an nnx.Variable
        keys.pop()
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
