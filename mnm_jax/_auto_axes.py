"""Runs a function with mesh axes of the type Auto, also where a caller's mesh has axes of the type Explicit."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

Array = jax.Array


def with_auto_axes(run: Callable[..., tuple[Any, Any]], inputs: Array, axes: int = 2) -> Callable[..., tuple[Any, Any]]:
    """Returns `run`, `(*args) -> (carry, outputs)`, within which the compiler decides about the placement of arrays.

    With axes of the type Explicit, the type of an array includes its placement, and the products and scans of a
    recurrent cell would each have to state theirs. Carry `[B, ...]` and outputs are placed as the inputs are.

    Args:
      run: the function; all arrays that are placed on the mesh are among its arguments.
      inputs: its inputs, `[T, B, ...]`, or `[B, ...]` for one step.
      axes: number of leading axes that outputs share with the inputs: 2, or 1 for one step.
    """

    def run_anywhere(*args: Any) -> tuple[Any, Any]:
        shardings = (jax.typeof(leaf).sharding for leaf in jax.tree.leaves(args))
        placed = [sharding for sharding in shardings if any(axis is not None for axis in sharding.spec)]
        if not placed:  # axes of other types are no part of an array's type
            return run(*args)
        mesh, spec = placed[0].mesh, jax.typeof(inputs).sharding.spec
        kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
        explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
        carry, outputs = jax.eval_shape(run, *shapes)
        batch, of_inputs = P(*spec[axes - 1 : axes]), P(*spec[:axes])
        places = jax.tree.map(lambda _: batch, carry), jax.tree.map(lambda _: of_inputs, outputs)
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(run, axes=explicit, out_sharding=places)(*args)

    return run_anywhere
