"""Records a step's products with the memory's weights, and the pairs that the step writes.

A step uses the fast weights only in products, and changes them only by subtracting pairs. So the backward pass can run
a step again without any weights: the results of its products are stored by the forward pass and replayed
(`replay.py`), and the derivative of each product takes one product with the transposed weights.

Shape letters: `B` examples, `Q` rows of one product, `H` rows written, `I`/`O` a layer's inputs and outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from mnm_jax._masking import mask_pairs
from mnm_jax.memory import MemoryState, Pair, Storage

Array = jax.Array
Pairs = tuple[Pair, ...]

RULE_MAP = -1  # index of the write rule's slow map
TRANSFORMED = (
    "a step of the cell, or its memory's write rule, uses the memory's state other than through read, write and "
    "write_read, or inside a transformation of JAX, such as jax.jit, jax.checkpoint, jax.vmap, jax.grad, jax.lax.scan, "
    "jax.lax.cond or jax.lax.stop_gradient: use unroll(..., form='plain')."
)
CLOSED_OVER = (
    "a step of the cell uses a traced value that is not among the cell's parameters, such as one that the memory's "
    "write rule or activation closes over, and that would get no gradient in this form: use unroll(..., form='plain')."
)


class StepError(ValueError):
    """The hand-derived backward pass cannot follow a step of the cell."""


class Product(NamedTuple):
    """A product with the fast weights: x W_l, or c W_l^T if transposed. Static."""

    layer: int
    transposed: bool


class Products(NamedTuple):
    """The products of one step in their order, or arrays of the same shapes.

    Attributes:
      memory: one array per product with fast weights, `[B, Q, ...]` each.
      maps: one array per product with a slow linear map.
    """

    memory: list[Array]
    maps: list[Array]


class Written(NamedTuple):
    """The writes of a step that lead to a storage. A state that the step drops has writes of its own.

    Attributes:
      pairs: the pairs subtracted, `()` before the first write; zero for examples whose step is masked or forked.
      visible: the pairs that products with the storage include; zero for examples whose step is masked.
    """

    pairs: Pairs = ()
    visible: Pairs = ()

    def add(self, pairs: Pairs, mask: Array | None, discarded: Array | None) -> tuple["Written", Pairs, Pairs]:
        """Returns the writes including a new one, and the new pairs as this step and as later steps see them."""
        visible = mask_pairs(pairs, mask)
        carried = visible if discarded is None else mask_pairs(visible, ~discarded)
        joined = join_pairs(self.pairs, carried)
        all_visible = joined if discarded is None else join_pairs(self.visible, visible)
        return Written(pairs=joined, visible=all_visible), visible, carried


class StepLog:
    """The products of one step, in their order.

    Attributes:
      products: the products with the fast weights.
      maps: for each product with a slow map, the map's index in the cell's `linear_maps()`, or `RULE_MAP`.
      operands: the left operands of all products.
      results: the results of all products.
      kernels: for each call of a slow map, in a trace that has to find out which of them can be logged, the kernel that
        it was called with; None for a product along other axes or inside a transformation of JAX.
      writes: number of writes of the step, also of those that lead to a storage that the step drops.

    Args:
      plain: whether each call of a slow map is an ordinary product with the registered kernel. Other calls are not
        logged, but differentiated like everything else. None: all are logged, with their kernels.
    """

    def __init__(self, plain: Sequence[bool] | None = None) -> None:
        self.products: list[Product] = []
        self.maps: list[int] = []
        self.operands = Products([], [])
        self.results = Products([], [])
        self.kernels: list[Array | None] = []
        self.writes = 0
        self._plain = plain
        self._calls = 0
        self._trace = _current_trace()
        self._dtype: jnp.dtype | None = None

    def check_dtype(self, *rows: Array) -> None:
        """Raises StepError unless the rows of all products and pairs have one dtype, as the buffers require."""
        for x in rows:
            self._dtype = self._dtype or x.dtype
            if x.dtype != self._dtype:
                raise StepError(
                    "a step of the cell, or its memory's write rule, multiplies or writes the memory's weights with "
                    f"rows in {self._dtype} and in {x.dtype}: use astype to give them one dtype, or "
                    "unroll(..., form='plain')."
                )

    def logs_call(self) -> bool:
        """Returns whether this call of a slow map is logged; to be asked once per call."""
        self._calls += 1
        return self._plain is None or self._plain[self._calls - 1]

    def add_product(self, product: Product, operand: Array, result: Array) -> Array:
        """Logs a product with the fast weights and returns its result.

        Raises:
          StepError: within a transformation of JAX, whose arrays must not leave it.
        """
        if not self.is_outermost():
            raise StepError(TRANSFORMED)
        self.products.append(product)
        self.operands.memory.append(operand)
        self.results.memory.append(result)
        return result

    def add_map(self, index: int, operand: Array, kernel: Array | None, result: Array) -> Array:
        """Logs a product with a slow map and returns its result."""
        self.maps.append(index)
        self.kernels.append(kernel)
        self.operands.maps.append(operand)
        self.results.maps.append(result)
        return result

    def is_outermost(self) -> bool:
        """Returns whether the program is in no other transformation of JAX than when the log was made."""
        return _current_trace() == self._trace


def _current_trace() -> Any:
    return get_opaque_trace_state(convention="flax")


class Recorder(NamedTuple):
    """A `Storage` that computes with another storage and logs products and writes.

    Attributes:
      base: the storage with which it computes. (A state of a gated memory has a `storage`, which a cell may look for.)
      log: the log of the step.
      mask: `[B]` bool, False = nothing is written; None: no padding.
      discarded: `[B]` bool, True = the writes affect this step only; None: nowhere.
      join_writes: whether `close` adds all writes of the step to the storage as one. Factored storage holds one write
        per step, in buffers with the rows of the one that the step keeps.
      outside: the pairs of this step that products include and the storage does not hold.
      written: the writes of this step that led here.
    """

    base: Storage
    log: StepLog
    mask: Array | None
    discarded: Array | None = None
    join_writes: bool = False
    outside: Pairs = ()
    written: Written = Written()

    def __getattr__(self, name: str) -> Any:
        if hasattr(MemoryState, name):  # no AttributeError, which `getattr` with a default would hide
            raise StepError(f"{TRANSFORMED} Here it reads {name!r} of the state.")
        raise AttributeError(f"{MemoryState.__name__!r} object has no attribute {name!r}")

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.base.batch_size

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        self.log.check_dtype(x)
        result = self.base.product(layer, x)
        if self.outside:
            result = result - _low_rank_product(x, *self.outside[layer])
        return self.log.add_product(Product(layer, False), x, result)

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        self.log.check_dtype(c)
        result = self.base.product_transposed(layer, c)
        if self.outside:
            result = result - _low_rank_product(c, *self.outside[layer][::-1])
        return self.log.add_product(Product(layer, True), c, result)

    def dot_general(self, index: int) -> Callable[..., Array]:
        """Returns the `lax.dot_general` of the slow map with this index."""

        def logged(x: Array, kernel: Array, dimension_numbers: Any, *args: Any, **kwargs: Any) -> Array:
            result = jax.lax.dot_general(x, kernel, dimension_numbers, *args, **kwargs)
            ordinary = dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())) and self.log.is_outermost()
            return self.log.add_map(index, x, kernel if ordinary else None, result) if self.log.logs_call() else result

        return logged

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        result = self.base.slow_product(x, kernel)
        known = kernel if self.log.is_outermost() else None
        return self.log.add_map(RULE_MAP, x, known, result) if self.log.logs_call() else result

    def subtract(self, pairs: Pairs) -> "Recorder":
        """See `Storage`."""
        self.log.check_dtype(*jax.tree.leaves(pairs))
        written, visible, carried = self.written.add(pairs, self.mask, self.discarded)
        self.log.writes += 1
        if self.join_writes:
            return self._replace(outside=join_pairs(self.outside, visible), written=written)
        after = self._replace(base=self.base.subtract(carried), written=written)
        if self.discarded is None:
            return after
        # A write on a fork is never subtracted and added back, which would leave rounding errors in the weights.
        return after._replace(outside=join_pairs(self.outside, mask_pairs(visible, self.discarded)))

    def close(self) -> Storage:
        """Returns the storage after the step."""
        return self.base.subtract(self.written.pairs) if self.join_writes else self.base


def join_pairs(a: Pairs, b: Pairs) -> Pairs:
    """Returns the rows of both, layer by layer; `a` may be `()`, no pairs."""
    return b if not a else jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), a, b)


def _low_rank_product(x: Array, inputs: Array, delta: Array) -> Array:
    """Returns x X^T D: `[B, Q, I] -> [B, Q, O]`."""
    return jnp.einsum("bqh,bho->bqo", jnp.einsum("bqi,bhi->bqh", x, inputs), delta)
