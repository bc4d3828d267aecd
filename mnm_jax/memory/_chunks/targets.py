"""The targets of a chunk of writes, which must not depend on the fast weights.

Shape letters: `B` memories, `C` tokens, `O` outputs of a layer.
"""

from typing import cast

import jax

from mnm_jax.memory._network import Network
from mnm_jax.memory._rules import ErrorRule
from mnm_jax.memory._storage.products import shared_times
from mnm_jax.memory._types import Storage, TargetMaps

Array = jax.Array


class _NoWeights:
    """The storage with which targets are computed, before the weights of a token are known."""

    def product(self, layer: int, x: Array) -> Array:
        """Raises ValueError."""
        raise ValueError(
            "memory must have a rule whose layer_targets do not depend on the fast weights, which are not known before "
            "the targets of a chunk: run this memory step by step in MNMCell."
        )

    product_transposed = product

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """See `Storage`."""
        return shared_times(x, kernel)


def compute_targets(
    network: Network, rule: ErrorRule, maps: TargetMaps | None, keys: Array, values: Array
) -> tuple[Array, ...]:
    """Returns the targets of every layer, `[B, C, O]`."""
    return rule.layer_targets(network, maps, cast(Storage, _NoWeights()), keys, values)
