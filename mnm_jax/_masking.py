"""The meaning of mask, reset and fork in one step, shared by all execution forms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_array
from mnm_jax.memory import Pair

Array = jax.Array


class Steps(NamedTuple):
    """Inputs and flags of one step; or of a sequence, with a leading axis `T`. See `unroll` for their meaning.

    Attributes:
      inputs: `[B, D]`.
      mask: `[B]` bool, False = padding; None: no padding.
      reset: `[B]` bool, True = a new sequence begins at this step; None: no resets.
      fork: `[B]` bool, True = the new carry is discarded after this step; None: no forks.
    """

    inputs: Array
    mask: Array | None = None
    reset: Array | None = None
    fork: Array | None = None

    @property
    def carried(self) -> Array | None:
        """The examples whose new carry is passed to the next step, `[B]` bool; None: all of them."""
        if self.fork is None:
            return self.mask
        return ~self.fork if self.mask is None else self.mask & ~self.fork

    def enter(self, carry: Any, start: Any) -> tuple[Any, Array]:
        """Returns the carry and the inputs with which the cell is called, from the carry after the previous step.

        `start` is the carry at the start of a sequence, for a batch of one; it is not used without resets.
        """
        if self.reset is not None:
            carry = select(self.reset, start, carry)
        # A masked input is replaced before it is used: a cotangent of zero times NaN would still be NaN.
        return carry, self.inputs if self.mask is None else jnp.where(self.mask[:, None], self.inputs, 0)

    def leave(self, new: Any, old: Any, outputs: Any) -> tuple[Any, Any]:
        """Returns the carry and the outputs of a step, from the carry `old` before it and the cell's results."""
        carried = self.carried
        if carried is not None:
            new = select(carried, new, old)
        if self.mask is not None:
            outputs = select(self.mask, outputs, jax.tree.map(jnp.zeros_like, outputs))
        return new, outputs


def check_steps(steps: Steps, *, time_major: bool = True) -> None:
    """Checks that the inputs are `[T, B, D]` numbers and the flags `[T, B]` bool; see `check_array` for the errors."""
    axes = "T B" if time_major else "B T"
    integers = jnp.issubdtype(getattr(steps.inputs, "dtype", float), jnp.integer)  # cells cast them
    check_array("inputs", steps.inputs, f"{axes} D", jnp.integer if integers else jnp.floating)
    sizes = dict(zip(axes.split(), steps.inputs.shape, strict=False))
    for name in ("mask", "reset", "fork"):
        if (flags := getattr(steps, name)) is not None:
            check_array(name, flags, axes, jnp.bool_, **sizes)


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """Applies `jnp.where` leaf by leaf, with a condition `[B]` and leaves `[B, ...]`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, on_true, on_false)


def mask_pairs(pairs: tuple[Pair, ...], mask: Array | None) -> tuple[Pair, ...]:
    """Returns the pairs with delta zero for masked examples, so that their weights stay bit-equal."""
    if mask is None:
        return pairs
    return tuple(Pair(p.inputs, jnp.where(mask[:, None, None], p.delta, 0)) for p in pairs)
