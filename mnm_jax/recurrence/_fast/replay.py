"""Runs a step again in the backward pass, from the stored results of its products and without its weights.

Shape letters: `B` examples, `Q` rows of one product, `H` rows written, `I`/`O` a layer's inputs and outputs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnm_jax.memory import Pair, Storage
from mnm_jax.memory._storage.products import mix_rows, shared_times
from mnm_jax.recurrence._fast.record import RULE_MAP, Pairs, Product, Products, StepLog, Written

Array = jax.Array


class Replay(NamedTuple):
    """A `Storage` that returns stored results, with the derivatives of products with the weights.

    `log`, `mask`, `discarded` and `written` are as in `Recorder`.

    Attributes:
      base: the weights before the step, used in the derivatives of the results; they get no cotangent here. None:
        the results are constants of the step.
      results: the results of the forward pass.
      probes: zeros that are added to the results; their cotangents are the cotangents of the results.
      kernels: the kernels of the slow linear maps by their index, transposed.
    """

    base: Storage | None
    log: StepLog
    mask: Array | None
    discarded: Array | None
    results: Products
    probes: Products
    kernels: dict[int, Array]
    written: Written = Written()

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.results.memory[0].shape[0]

    def product(self, layer: int, x: Array) -> Array:
        """See `Storage`."""
        return self._product(Product(layer, False), x)

    def product_transposed(self, layer: int, c: Array) -> Array:
        """See `Storage`."""
        return self._product(Product(layer, True), c)

    def dot_general(self, index: int) -> Callable[..., Array]:
        """Returns the `lax.dot_general` of the slow map with this index."""

        def replayed(x: Array, kernel: Array, *args: Any, **kwargs: Any) -> Array:
            if self.log.logs_call():  # the forward pass has computed the result
                return self._map(index, x)
            return jax.lax.dot_general(x, kernel, *args, **kwargs)

        return replayed

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return self._map(RULE_MAP, x) if self.log.logs_call() else shared_times(x, kernel)

    def subtract(self, pairs: Pairs) -> "Replay":
        """See `Storage`."""
        return self._replace(written=self.written.add(pairs, self.mask, self.discarded)[0])

    def _map(self, index: int, x: Array) -> Array:
        place = len(self.log.maps)
        result = self.results.maps[place]
        if self.base is not None:
            result = _known_map(x, self.kernels[index], result)
        return self.log.add_map(index, x, None, result + self.probes.maps[place])

    def _product(self, product: Product, x: Array) -> Array:
        place = len(self.log.products)
        result = self.results.memory[place]
        if self.base is not None:
            written = self.written.visible[product.layer] if self.written.visible else None
            result = _known_product(product, self.base, x, written, result)
        return self.log.add_product(product, x, result + self.probes.memory[place])


def growth(products: list[Product], operands: list[Array], cotangents: list[Array], layers: int) -> Pairs:
    """Returns the rows that a step adds to the cotangent of the weights, q^T (cotangent of q W) for each product.

    `operands` are the q. The result is one pair per layer, in the format of `Storage.subtract`.
    """
    rows: list[list[Pair]] = [[] for _ in range(layers)]
    for product, x, ct in zip(products, operands, cotangents, strict=True):
        rows[product.layer].append(Pair(ct, -x) if product.transposed else Pair(x, -ct))
    return tuple(jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *layer) for layer in rows)


@jax.custom_vjp
def _known_map(x: Array, kernel_transposed: Array, result: Array) -> Array:
    """Returns result = x M. The cotangent of M is computed after the loop of the backward pass."""
    del x, kernel_transposed
    return result


_known_map.defvjp(
    lambda x, kernel_transposed, result: (result, kernel_transposed),
    lambda kernel_transposed, ct: (ct @ kernel_transposed.astype(ct.dtype), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known_product(product: Product, storage: Storage, x: Array, written: Pair | None, result: Array) -> Array:
    """Returns result = x (W - X^T D), with W in `storage` and the pair (X, D) written earlier in the same step."""
    del product, storage, x, written
    return result


def _known_product_forward(
    product: Product, storage: Storage, x: Array, written: Pair | None, result: Array
) -> tuple[Array, tuple]:
    del product
    return result, (storage, x, written)


def _known_product_backward(product: Product, saved: tuple, ct: Array) -> tuple[None, Array, Pair | None, None]:
    storage, x, written = saved
    times_transpose = storage.product if product.transposed else storage.product_transposed
    x_ct = times_transpose(product.layer, ct)
    if written is None:
        return None, x_ct, None, None
    inputs, delta = written[::-1] if product.transposed else written
    scores = jnp.einsum("bqi,bhi->bqh", x, inputs)
    scores_ct = jnp.einsum("bqo,bho->bqh", ct, delta)
    x_ct = x_ct - jnp.einsum("bqh,bhi->bqi", scores_ct, inputs)
    inputs_ct = -mix_rows(scores_ct, x)
    delta_ct = -mix_rows(scores, ct)
    return None, x_ct, Pair(*((delta_ct, inputs_ct) if product.transposed else (inputs_ct, delta_ct))), None


_known_product.defvjp(_known_product_forward, _known_product_backward)
