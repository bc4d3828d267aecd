"""The meaning of the flags of one step, such as mask, reset and fork, shared by all execution forms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_array, check_inputs
from mnm_jax._params import leaf_names
from mnm_jax.memory import MemoryState, Pair
from mnm_jax.memory._gated import GatedState

Array = jax.Array


class Steps(NamedTuple):
    """Inputs and flags of one step; or of a sequence, with a leading axis `T`. See `unroll` for their meaning.

    Attributes:
      inputs: `[B, D]`.
      mask: `[B]` bool, False = padding; None: no padding.
      reset: `[B]` bool, True = a new sequence begins at this step; None: no resets.
      fork: `[B]` bool, True = the new carry is discarded after this step; None: no forks.
      reset_controller: `[B]` bool, True = the carry except the memory is reset at this step; None: nowhere.
      fork_memory: `[B]` bool, True = the new memory is discarded after this step; None: nowhere.
    """

    inputs: Array
    mask: Array | None = None
    reset: Array | None = None
    fork: Array | None = None
    reset_controller: Array | None = None
    fork_memory: Array | None = None

    @property
    def carried(self) -> Array | None:
        """The examples whose new carry is passed to the next step, `[B]` bool; None: all of them."""
        if self.fork is None:
            return self.mask
        return ~self.fork if self.mask is None else self.mask & ~self.fork

    @property
    def discarded(self) -> Array | None:
        """The examples whose writes are discarded after this step, `[B]` bool; None: none of them."""
        if self.fork is None or self.fork_memory is None:
            return self.fork_memory if self.fork is None else self.fork
        return self.fork | self.fork_memory

    @property
    def masked_inputs(self) -> Array:
        """The inputs of one step or of a sequence, zero where masked."""
        # A masked input is replaced before it is used: a cotangent of zero times NaN would still be NaN.
        if self.mask is None:
            return self.inputs
        return select(self.mask, self.inputs, jnp.zeros_like(self.inputs))

    def enter(self, carry: Any, start: Any) -> tuple[Any, Array]:
        """Returns the carry before this step, and the inputs of the cell, from the carry after the previous step.

        `start` is the carry at the start of a sequence, for a batch of one; it is not used without resets.
        """
        if self.reset is not None:
            carry = select(self.reset, start, carry)
        return carry, self.masked_inputs

    def begin(self, carry: Any, start: Any) -> Any:
        """Returns the carry with which the cell is called, from the first result of `enter`; `start` as there."""
        if self.reset_controller is None:
            return carry
        begun = select(self.reset_controller, start, carry)
        return jax.tree.map(lambda a, b: b if is_memory(b) else a, begun, carry, is_leaf=is_memory)

    def leave(self, new: Any, old: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns the carry and the outputs of a step, from the carry `old` before it and the cell's results."""
        carried = self.carried
        if carried is not None:
            _check_examples("the carry that a step returns", new, carried)
            new = select(carried, new, old)
        if self.fork_memory is not None:
            keep = lambda a, b: select(self.fork_memory, b, a) if is_memory(a) else a  # noqa: E731
            new = jax.tree.map(keep, new, old, is_leaf=is_memory)
        return new, self.mask_outputs(outputs)

    def mask_outputs(self, outputs: Any) -> Any:
        """Returns the outputs of one step or of a sequence, zero where masked."""
        if self.mask is None:
            return outputs
        _check_examples("the outputs", outputs, self.mask)
        return select(self.mask, outputs, jax.tree.map(jnp.zeros_like, outputs))


def check_steps(steps: Steps, features: int | None = None, *, time_major: bool = True) -> None:
    """Checks that the inputs are `[T, B, D]` numbers and the flags `[T, B]` bool; see `check_array` for the errors.

    Args:
      steps: the inputs and flags.
      features: `D`; None: any.
      time_major: whether time is the first axis; otherwise it is the second.
    """
    axes = "T B" if time_major else "B T"
    check_inputs(steps.inputs, f"{axes} D", **({} if features is None else {"D": features}))
    sizes = dict(zip(axes.split(), steps.inputs.shape, strict=False))
    for name in Steps._fields[1:]:
        if (flags := getattr(steps, name)) is not None:
            check_array(name, flags, axes, jnp.bool_, **sizes)


def is_memory(node: Any) -> bool:
    """Returns whether a node of a carry is the state of a neural memory, or belongs to it (`of_memory`)."""
    return isinstance(node, MemoryState | GatedState) or getattr(node, "of_memory", False)


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """Applies `jnp.where` leaf by leaf, with a condition `[B]` and leaves `[B, ...]`, or `[T, B]` and `[T, B, ...]`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(jnp.expand_dims(condition, range(condition.ndim, a.ndim)), a, b)

    return jax.tree.map(pick, on_true, on_false)


def _check_examples(place: str, tree: Any, flags: Array) -> None:
    """Raises ValueError unless every leaf begins with the axes of the flags, to which `select` would broadcast it."""
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        shape = jnp.shape(leaf)
        if shape[: flags.ndim] != flags.shape:
            raise ValueError(
                f"{place} must have the batch size of the inputs, B = {flags.shape[-1]}, got "
                f"{repr(name) if name else 'an array'} of shape {shape}: return it as [B, ...]; do not "
                "sum or average over examples."
            )


def swap_axes(tree: Any) -> Any:
    """Returns leaves `[B, T, ...]` as `[T, B, ...]`, and vice versa."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)


def mask_pairs(pairs: tuple[Pair, ...], mask: Array | None) -> tuple[Pair, ...]:
    """Returns the pairs with delta zero for masked examples, so that their weights stay bit-equal."""
    if mask is None:
        return pairs
    return tuple(Pair(p.inputs, jnp.where(mask[:, None, None], p.delta, 0)) for p in pairs)
