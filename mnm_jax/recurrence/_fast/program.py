"""A cell with a neural memory, run by `adjoint.run`: the memory is taken out of the carry and goes beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.memory import MemoryState
from mnm_jax.memory._types import Storage
from mnm_jax.recurrence._checkpoints import scan_chunks
from mnm_jax.recurrence._fast.adjoint import Inputs, Program, Start, run
from mnm_jax.recurrence._fast.tape import RULE_MAP, Recorder, Replay
from mnm_jax.recurrence._forms import keeps_dense_cotangent
from mnm_jax.recurrence._masking import select, who_stays

Array = jax.Array


class _Carry(NamedTuple):
    """How a carry is put together: all leaves but the memory are small."""

    tree: Any
    place: int

    def split(self, carry: Any) -> tuple[list[Array], Storage]:
        leaves = self.tree.flatten_up_to(carry)
        return leaves[: self.place] + leaves[self.place + 1 :], leaves[self.place]

    def join(self, small: list[Array], memory: Storage) -> Any:
        return jax.tree.unflatten(self.tree, [*small[: self.place], memory, *small[self.place :]])


def unroll_by_hand(cell: nnx.RNNCellBase, carry: Any | None, xs: Inputs, form: str, every: int | None):
    """(the last carry, outputs) as `unroll` gives them; `every`: steps between two sets of weights that are kept."""
    batch_size = xs.inputs.shape[1]
    begin = cell.initialize_carry((1, xs.inputs.shape[2]))
    leaves, tree = jax.tree.flatten(begin, is_leaf=_is_memory)
    shape = _Carry(tree, next(i for i, leaf in enumerate(leaves) if _is_memory(leaf)))
    begin, memory = shape.split(begin)
    shared = tuple(w[0] for w in memory.weights)
    if carry is None:
        small = [jnp.broadcast_to(x, (batch_size, *x.shape[1:])) for x in begin]
        start = Start(shared, None)
    else:
        small, memory = shape.split(carry)
        start = Start(None if xs.reset is None else shared, memory.weights)
    factored = form == "factored"
    program = Program(_step(shape), factored, not factored, _kernels, _add_kernels)
    theta = (cell, begin)
    turned = program.turn(theta)
    if every is None or every >= xs.inputs.shape[0]:
        small, own, outputs = run(program, theta, turned, small, start, xs)
        return shape.join(small, MemoryState(own)), outputs

    own = start.own or tuple(jnp.broadcast_to(w, (batch_size, *w.shape)) for w in shared)
    home = None if xs.reset is None else shared
    if factored and xs.reset is None and keeps_dense_cotangent():
        program = program._replace(dense_cotangent=True)

    def chunk(carry, xs):
        small, own, outputs = run(program, theta, turned, carry[0], Start(home, carry[1]), xs)
        return (small, own), outputs

    if not factored:
        chunk = jax.checkpoint(chunk, prevent_cse=False)  # what its steps keep is computed again, too
    (small, own), outputs = scan_chunks(chunk, (small, own), xs, every)
    return shape.join(small, MemoryState(own)), outputs


def _step(shape: _Carry):
    def step(theta: Any, small: list[Array], memory: Storage, x: Inputs):
        cell, begin = _copy(theta)
        for index, linear in enumerate(cell.linear_maps()):
            linear.dot_general = memory.dot_general(index)
        if x.reset is not None:
            small = select(x.reset, begin, small)
        # A masked input is replaced before it is used: a gradient of zero times NaN would still be NaN.
        inputs = x.inputs if x.keep is None else jnp.where(x.keep[:, None], x.inputs, 0)
        carry, outputs = cell(shape.join(small, memory), inputs)
        new, memory = shape.split(carry)
        stays = who_stays(x.keep, x.fork)
        if stays is not None:
            new = select(stays, new, small)
        if x.keep is not None:
            outputs = select(x.keep, outputs, jax.tree.map(jnp.zeros_like, outputs))
        return new, memory, outputs

    return step


def _kernels(theta: Any) -> list[Array]:
    cell = theta[0]
    kernels = [linear.kernel.get_value() for linear in cell.linear_maps()]
    targets = cell.memory_params.get_value().targets
    return kernels if targets is None else [*kernels, targets.kernel]


def _add_kernels(theta: Any, additions: dict[int, Array]) -> Any:
    theta = _copy(theta)
    cell = theta[0]
    for index, linear in enumerate(cell.linear_maps()):
        if index in additions:
            linear.kernel.set_value(linear.kernel.get_value() + additions[index])
    if RULE_MAP in additions:
        params = cell.memory_params.get_value()
        kernel = params.targets.kernel + additions[RULE_MAP]
        cell.memory_params.set_value(params._replace(targets=params.targets._replace(kernel=kernel)))
    return theta


def _copy(theta: Any) -> Any:
    """Modules made at this trace level, which alone may be changed here."""
    return jax.tree.map(lambda leaf: leaf, theta)


def _is_memory(leaf: Any) -> bool:
    return isinstance(leaf, MemoryState | Recorder | Replay)
