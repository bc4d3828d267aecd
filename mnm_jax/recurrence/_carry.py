"""Splits the carry of a memory cell into the memory's state and the other, small leaves."""

from typing import Any, NamedTuple

import jax

from mnm_jax.memory import MemoryState, Storage

Array = jax.Array


class CarryLayout(NamedTuple):
    """The structure of a carry that has the memory's state as one of its nodes. Static.

    Attributes:
      tree: the structure, with the memory's state as one leaf.
      place: the index of the memory's state among the leaves.
    """

    tree: jax.tree_util.PyTreeDef
    place: int

    @classmethod
    def of(cls, carry: Any) -> "CarryLayout":
        """Returns the layout of a carry."""
        leaves, tree = jax.tree.flatten(carry, is_leaf=_is_memory)
        return cls(tree, next(i for i, leaf in enumerate(leaves) if _is_memory(leaf)))

    def split(self, carry: Any) -> tuple[list[Array], Any]:
        """Returns the small leaves, and the node in the memory's place, which may have any type."""
        leaves = self.tree.flatten_up_to(carry)
        return leaves[: self.place] + leaves[self.place + 1 :], leaves[self.place]

    def join(self, small: list[Array], memory: Storage) -> Any:
        """Returns the carry made of small leaves and a memory, the inverse of `split`."""
        return jax.tree.unflatten(self.tree, [*small[: self.place], memory, *small[self.place :]])


def _is_memory(leaf: Any) -> bool:
    return isinstance(leaf, MemoryState)
