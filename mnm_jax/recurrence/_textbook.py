"""The reversible backward pass on one page.

A step of a memory cell maps a small carry s (the controller's state, say) and the fast weights W to new ones. It
changes the weights only by subtracting pairs, for every layer of the memory

    (s_t, W_t, y_t) = step(theta; s_{t-1}, W_{t-1}, x_t),      W_t = W_{t-1} - X_t^T D_t

with X_t `[H, I]` and D_t `[H, O]`. Reverse-mode differentiation needs s_{t-1} and W_{t-1} of every step. Storing the
weights takes `T I O` numbers per example and layer. Storing the pairs takes `T H (I + O)`, and the weights follow from
them backwards in time:

    W_{t-1} = W_t + X_t^T D_t

So the forward pass saves the small carries, the pairs and the last weights. The backward pass goes from t = T to 1. It
carries the cotangents of s_t and W_t and the sum of the cotangents of theta, and at each step

1. computes W_{t-1} from W_t and the pairs,
2. runs the step again from (s_{t-1}, W_{t-1}), with `jax.vjp`,
3. applies the vjp to the cotangents of (s_t, W_t, y_t).

`unroll(form="reversible")` computes the same with less work per step; see `docs/derivation.md`. Read this module before
the fast forms; the tests compare them with it. Since it consists of ordinary JAX operations, it can be differentiated
again, with the memory use of the plain form.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax._masking import Steps, check_steps, mask_pairs
from mnm_jax.memory import MemoryState, Pair
from mnm_jax.recurrence._carry import CarryLayout

Array = jax.Array
Pairs = tuple[Pair, ...]
Carry = tuple[list[Any], MemoryState]  # the small leaves and the fast weights


def unroll_textbook(
    cell: nnx.RNNCellBase,
    carry: Any | None,
    inputs: Array,
    *,
    mask: Array | None = None,
    fork: Array | None = None,
    reset_controller: Array | None = None,
    fork_memory: Array | None = None,
) -> tuple[Any, Any]:
    """Runs a memory cell over time as `unroll` does, but without resets.

    Weights cannot be computed back over a reset.

    Args:
      cell: a `MemoryCell` whose memory is written only in pairs.
      carry: the first carry; None begins a new sequence.
      inputs: `[T, B, D]`.
      mask: `[T, B]` bool, False = padding.
      fork: `[T, B]` bool, True = the step's carry is discarded.
      reset_controller: `[T, B]` bool, True = the carry except the memory is reset at this step.
      fork_memory: `[T, B]` bool, True = the step's memory is discarded.

    Returns:
      The last carry and the outputs `[T, B, ...]`.

    Raises:
      ValueError: for shapes that do not agree.
    """
    xs = Steps(inputs, mask=mask, fork=fork, reset_controller=reset_controller, fork_memory=fork_memory)
    check_steps(xs)
    if carry is None:
        carry = cell.initialize_carry(inputs.shape[1:])
    layout = CarryLayout.of(carry)
    last, outputs = _run(layout, cell, layout.split(carry), xs)
    return layout.join(*last), outputs


class _Recorder(NamedTuple):
    """A `Storage` that computes as `memory` does and records the pairs that are subtracted from it."""

    memory: MemoryState
    pairs: Pairs | None = None

    @property
    def batch_size(self) -> int:
        return self.memory.batch_size

    def product(self, layer: int, x: Array) -> Array:
        return self.memory.product(layer, x)

    def product_transposed(self, layer: int, c: Array) -> Array:
        return self.memory.product_transposed(layer, c)

    def slow_product(self, x: Array, kernel: Array) -> Array:
        return self.memory.slow_product(x, kernel)

    def subtract(self, pairs: Pairs) -> "_Recorder":
        joined = pairs if self.pairs is None else jax.tree.map(lambda a, b: jnp.append(a, b, 1), self.pairs, pairs)
        return _Recorder(self.memory.subtract(pairs), joined)


def _step(layout: CarryLayout, cell: nnx.RNNCellBase, carry: Carry, x: Steps) -> tuple[Carry, Any, Pairs]:
    """Returns the carry, the outputs and the pairs by which the carry's weights have changed."""
    (small, memory), inputs = x.enter(carry, None)
    if x.reset_controller is not None:
        small = x.begin(small, layout.split(cell.initialize_carry((1, inputs.shape[1])))[0])
    new, outputs = cell(layout.join(small, _Recorder(memory)), inputs)
    small, recorder = layout.split(new)
    new_carry, outputs = x.leave((small, recorder.memory), carry, outputs)
    pairs = mask_pairs(recorder.pairs, x.carried)
    return new_carry, outputs, pairs if x.fork_memory is None else mask_pairs(pairs, ~x.fork_memory)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(layout: CarryLayout, cell: nnx.RNNCellBase, carry: Carry, xs: Steps) -> tuple[Carry, Any]:
    return _forward(layout, cell, carry, xs)[0]


def _forward(layout: CarryLayout, cell: nnx.RNNCellBase, carry: Carry, xs: Steps) -> tuple[tuple[Carry, Any], Any]:
    def body(carry: Carry, x: Steps) -> tuple[Carry, Any]:
        new, outputs, pairs = _step(layout, cell, carry, x)
        return new, (outputs, (carry[0], pairs))

    last, (outputs, saved) = jax.lax.scan(body, carry, xs)
    return (last, outputs), (cell, xs, saved, last[1])


def _backward(layout: CarryLayout, residuals: Any, cotangents: tuple[Carry, Any]) -> tuple[Any, Carry, Steps]:
    cell, xs, saved, memory = residuals
    carry_ct, outputs_ct = cotangents

    def body(state: Any, at_step: Any) -> tuple[Any, Array]:
        memory, cell_ct, carry_ct = state
        x, (small, pairs), outputs_ct = at_step
        memory = memory.subtract(tuple(Pair(p.inputs, -p.delta) for p in pairs))

        def step(cell: nnx.RNNCellBase, carry: Carry, inputs: Array) -> tuple[Carry, Any]:
            return _step(layout, cell, carry, x._replace(inputs=inputs))[:2]

        _, vjp = jax.vjp(step, cell, (small, memory), x.inputs)
        cell_ct_now, carry_ct, inputs_ct = vjp((carry_ct, outputs_ct))
        return (memory, jax.tree.map(jnp.add, cell_ct, cell_ct_now), carry_ct), inputs_ct

    state = (memory, jax.tree.map(jnp.zeros_like, cell), carry_ct)
    (_, cell_ct, carry_ct), inputs_ct = jax.lax.scan(body, state, (xs, saved, outputs_ct), reverse=True)
    return cell_ct, carry_ct, Steps(inputs_ct)


_run.defvjp(_forward, _backward)
