"""Tests `nnx.tabulate` on cells whose carry is a named tuple."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mnm_jax import MNMCell, local_memory

Array = jax.Array


class Carry(NamedTuple):
    h: Array


def test_a_cell_is_tabulated_with_its_carry_given_by_name():
    cell, x = MNMCell(3, 4, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0)), jnp.ones((2, 3))
    call = MNMCell.__call__
    carry = cell.initialize_carry(x.shape)
    table = nnx.tabulate(cell, carry=carry, inputs=x, row_filter=lambda row: row.path)
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(cell, nnx.Param)))
    assert "controller" in table and f"Total Parameters: {size:,}" in table
    assert MNMCell.__call__ is call


@pytest.mark.xfail(strict=True, raises=TypeError, reason="flax 0.12 indexes a list with the names of a named tuple")
def test_flax_tabulates_named_tuples_by_position():
    """When this passes, remove the entry of docs/faq.md and the remark in WORKSPACE.md."""

    class Own(nnx.Module):
        def __call__(self, carry: Carry, x: Array) -> Array:
            return carry.h + x

    nnx.tabulate(Own(), Carry(jnp.ones(2)), jnp.ones(2))
