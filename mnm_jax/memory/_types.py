"""The pytrees that a memory, its rule and its storage exchange.

Shape letters: `B` examples, `H` heads, `K` key features, `V` value features, `I`/`O` inputs and outputs of a layer.
"""

from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array


class TargetMaps(NamedTuple):
    """The target maps of the local rule: one linear map for all layers, `[t_1; ...; t_L] = v^w M + b`.

    Attributes:
      kernel: `[V, sum O]`, or `[V + K, sum O]` if the targets depend on the write key too (value first).
      bias: `[sum O]`.
    """

    kernel: Array
    bias: Array


class MemoryParams(NamedTuple):
    """Slow parameters of a memory, learned by the outer optimiser.

    Attributes:
      weights: the initial weights phi_0, one `[I, O]` per layer (a bias is the last row, multiplied by a constant
        input of one); for `custom_memory` the pytree that its `init` returns.
      targets: the parameters of the write rule: the `TargetMaps` of the local rule, the pytree that the `init` of your
        own `Rule` returns, or None.
    """

    weights: Any
    targets: Any


class Pair(NamedTuple):
    """The factors of a write to one layer, `W -= sum_h x_h (x) delta_h`.

    Attributes:
      inputs: x, `[B, H, I]`.
      delta: delta, `[B, H, O]`.
    """

    inputs: Array
    delta: Array


class Storage(Protocol):
    """The fast weights phi_t of every example. Rules, reads and writes access them only through these members."""

    @property
    def batch_size(self) -> int:
        """The number of examples `B`."""

    def product(self, layer: int, x: Array) -> Array:
        """Returns x W_l: `[B, H, I] -> [B, H, O]`."""

    def product_transposed(self, layer: int, c: Array) -> Array:
        """Returns c W_l^T: `[B, H, O] -> [B, H, I]`."""

    def subtract(self, pairs: tuple[Pair, ...]) -> "Storage":
        """Returns the storage after a write, `W_l - sum_h x_{l,h} (x) delta_{l,h}` in every layer."""

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """Returns x M with a slow map M `[I, O]` of the rule, in the dtype of x: `[B, H, I] -> [B, H, O]`.

        It does not depend on the weights; it is a method because the fast execution forms record it, as they record the
        products with the weights.
        """


class WriteInfo(NamedTuple):
    """Measures of a write, `[B]` each, in at least float32.

    Attributes:
      loss_before: mean over heads and features of `(f(k^w) - v^w)^2` with the weights before the write.
      loss_after: the same with the weights after it: the term of the meta objective (equation 5).
      update_norm: Frobenius norm of the change of all layers together.
    """

    loss_before: Array
    loss_after: Array
    update_norm: Array
