"""Checks carries, and splits the carry of a memory cell into the memory's state and the other, small leaves."""

import operator
from typing import Any, NamedTuple

import jax
from flax import errors, nnx

from mnm_jax._masking import Steps, is_memory
from mnm_jax._params import leaf_names
from mnm_jax.memory import MemoryState, Storage
from mnm_jax.recurrence._fast.record import StepError
from mnm_jax.recurrence._protocol import MemoryCell

Array = jax.Array


class CarryLayout(NamedTuple):
    """The structure of a carry that has the memory's state as one of its nodes. Static.

    Attributes:
      tree: the structure, with the memory's state, and other nodes that belong to the memory, as leaves.
      place: the index of the memory's state among the leaves.
    """

    tree: jax.tree_util.PyTreeDef
    place: int

    @classmethod
    def of(cls, carry: Any) -> "CarryLayout":
        """Returns the layout of a carry; raises StepError if it has no `MemoryState`."""
        leaves, tree = jax.tree.flatten(carry, is_leaf=is_memory)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, MemoryState)]
        if not places:
            raise StepError("the carry of the cell has no MemoryState: use unroll(..., form='plain').")
        return cls(tree, places[0])

    def split(self, carry: Any) -> tuple[list[Any], Any]:
        """Returns the small leaves, and the node in the memory's place, which may have any type."""
        leaves = self.tree.flatten_up_to(carry)
        return leaves[: self.place] + leaves[self.place + 1 :], leaves[self.place]

    def join(self, small: list[Any], memory: Storage) -> Any:
        """Returns the carry made of small leaves and a memory, the inverse of `split`."""
        return jax.tree.unflatten(self.tree, [*small[: self.place], memory, *small[self.place :]])


def begin_carry(cell: nnx.RNNCellBase, input_shape: tuple[int, ...]) -> Any:
    """Returns the carry at the start of sequences of inputs shaped `input_shape = (B, D)`, of any `nnx.RNNCellBase`.

    Flax's own cells refuse to begin without a random key, also for their default, a start of zeros.
    """
    if type(cell).initialize_carry.__module__.startswith("flax."):
        return cell.initialize_carry(input_shape, nnx.Rngs(0))
    return cell.initialize_carry(input_shape)


def copy_tree(tree: Any) -> Any:
    """Returns a copy made at the current trace level, since flax lets a module be changed only at its own level."""
    return jax.tree.map(lambda leaf: leaf, tree)


def call_unchanged(cell: Any, carry: Any, inputs: Array) -> tuple[Any, Any]:
    """Returns the results of a step; raises TypeError if it changes the cell, since the next step gets the old one."""
    structure: Any
    before, structure = jax.tree.flatten(cell)
    results = cell(carry, inputs)
    leaves, now = jax.tree.flatten(cell)
    changed = ["its attributes"] if structure != now else []
    if not changed and any(map(operator.is_not, before, leaves)):
        changed = [repr(name) for name, a, b in zip(leaf_names(cell), before, leaves, strict=True) if a is not b]
    if changed:
        raise TypeError(
            f"a step of {type(cell).__name__} may change only its carry, but it changes {changed[0]}, which unroll "
            "does not pass from step to step: use dropout on the inputs or outputs of unroll instead, or keep such "
            "state in the carry."
        )
    return results


def check_carry(carry: Any, batch_size: int) -> None:
    """Raises TypeError or ValueError unless the leaves of a carry are arrays `[B, ...]`."""
    for name, leaf in zip(leaf_names(carry), jax.tree.leaves(carry), strict=True):
        shape = getattr(leaf, "shape", None)
        if shape is None:
            place = f" as its leaf {name!r}" if name else ""
            raise TypeError(f"carry must consist of arrays [B, ...], got {leaf!r}{place}.")
        if shape[:1] != (batch_size,):
            raise ValueError(
                f"carry must have the batch size of the inputs, B = {batch_size}, got {_place(name)} of shape "
                f"{shape}: use cell.initialize_carry((B, D)) or the last carry of a run with B examples."
            )


def check_begin(cell: nnx.RNNCellBase, input_shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a cell begins sequences of inputs `(B, D)` with leaves `[B, ...]`."""
    start = jax.eval_shape(lambda: begin_carry(cell, input_shape))
    for name, leaf in zip(leaf_names(start), jax.tree.leaves(start), strict=True):
        if leaf.shape[:1] != input_shape[:1]:
            raise ValueError(
                f"{type(cell).__name__}.initialize_carry must return leaves with the batch size of the inputs, "
                f"B = {input_shape[0]}, got {repr(name) if name else 'an array'} of shape {leaf.shape}: make it "
                "[B, ...]."
            )


def check_has_memory(cell: nnx.RNNCellBase, xs: Steps) -> None:
    """Raises ValueError if a sequence has flags about the memory, and the cell's carry has no node of a memory."""
    given = [name for name in ("reset_controller", "fork_memory") if getattr(xs, name) is not None]
    if not given:
        return
    carry = jax.eval_shape(lambda: begin_carry(cell, (1, xs.inputs.shape[2])))
    nodes = [node for node in jax.tree.leaves(carry, is_leaf=is_memory) if is_memory(node)]
    if isinstance(cell, MemoryCell):
        state = jax.eval_shape(lambda: cell.memory.start(cell.memory_params.get_value(), 1))
        kinds = lambda tree: {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)}  # noqa: E731
        if not kinds(state) <= kinds(nodes):
            raise ValueError(
                f"{given[0]} must find the memory in the carry, but the state of {type(cell.memory).__name__} is a "
                f"{type(state).__name__}: make it a node with of_memory = True, see Memory.start."
            )
    if not nodes:
        kind = type(cell).__name__
        raise ValueError(f"{given[0]} needs a cell with a neural memory in its carry, and {kind} has none.")


def lacking_members(cell: nnx.RNNCellBase, features: int) -> list[str]:
    """Returns the members of `MemoryCell` that a cell is without, although its carry has a `MemoryState`.

    Args:
      cell: any cell.
      features: the number of input features `D`.
    """
    lacking = [name for name in (*MemoryCell.__annotations__, "linear_maps") if not hasattr(cell, name)]
    carry = jax.eval_shape(lambda: begin_carry(cell, (1, features)))
    nodes = jax.tree.leaves(carry, is_leaf=is_memory)
    return lacking if any(isinstance(node, MemoryState) for node in nodes) else []


def explain_carry(cell: nnx.RNNCellBase, carry: Any | None, inputs: Array) -> str | None:
    """Returns the reason why a run failed if its carry does not fit cell and inputs `[T, B, D]`; None if it fits."""
    kind, now = type(cell).__name__, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    cast = "cast inputs and carry to the cell's dtype, or build the cell with another dtype."
    try:
        first = jax.eval_shape(lambda: begin_carry(cell, now.shape))
        carry = first if carry is None else carry
        wanted: Any = jax.tree.structure(first)
        found: Any = jax.tree.structure(carry)
        if wanted != found:
            for a, b in zip(*(jax.tree.leaves(tree, is_leaf=is_memory) for tree in (first, carry)), strict=False):
                if is_memory(a) and is_memory(b) and type(a) is not type(b):
                    here, there = type(a).__name__, type(b).__name__
                    return (
                        f"carry must have the memory of {kind}, a {here}, got a {there}, which is of another kind of "
                        "memory, or of one with other write options: use a carry of this cell."
                    )
            names, own = leaf_names(first), leaf_names(carry)
            # With the same leaves in nodes of other types, the message of the cell or of the form is clearer.
            same = sorted(names) == sorted(own)
            return None if same else f"carry must have the leaves {names} as of {kind}, got {own}."
        if change := first_change(first, carry):
            remedy = cast if _same_shapes(first, carry) else "use a carry from its initialize_carry or an earlier call."
            return f"carry must have the types of {kind}.initialize_carry, but {change}; {remedy}"
        results = jax.eval_shape(lambda carry, now: cell(carry, now), first, now)
        step = f"a step of {kind}"
        if not isinstance(results, tuple | list) or len(results) != 2:
            found = f"{len(results)} results" if isinstance(results, tuple | list) else _kind(results)
            return f"{step} must return (carry, outputs), got {found}."
        new = results[0]
        found = jax.tree.structure(new)
        if wanted != found:
            return f"{step} must return a carry with the structure of initialize_carry: {_difference(first, new)}."
        if change := first_change(first, new):
            remedy = cast if _same_shapes(first, new) else "return (carry, outputs), the carry in its first shapes."
            return f"{step} with inputs in {now.dtype} changes the carry: {change}; {remedy}"
    except (TypeError, ValueError, AttributeError, NotImplementedError, errors.FlaxError):
        pass  # the cell fails by itself
    return None


def first_change(expected: Any, found: Any) -> str | None:
    """Returns a description of the first leaf whose shape or dtype differs."""
    for name, a, b in zip(leaf_names(expected), jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{repr(name) if name else 'it'} is {b.dtype}{[*b.shape]} instead of {a.dtype}{[*a.shape]}"
    return None


def _same_shapes(a: Any, b: Any) -> bool:
    """Returns whether the leaves of two trees of the same structure have the same shapes."""
    return jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, a, b))


def _place(name: str) -> str:
    """Returns the name of a leaf of the carry for a message; a carry that is a single array has no leaf names."""
    return f"its leaf {name!r}" if name else "an array"


def _kind(tree: Any) -> str:
    """Returns the type of a node, for a message."""
    return "an array" if isinstance(tree, jax.ShapeDtypeStruct) else f"{type(tree).__name__}"


def _difference(expected: Any, found: Any) -> str:
    """Returns in which way the structure of a tree differs: its root, the names of its leaves, or inner nodes."""
    if type(expected) is not type(found):
        return f"{_kind(expected)}, got {_kind(found)}"
    names, own = leaf_names(expected), leaf_names(found)
    if names != own:
        return f"leaves {names}, got {own}"
    return f"{jax.tree.structure(expected)}, got {jax.tree.structure(found)}"
