"""The memory's interface: four pure functions and the pytrees that pass between them.

Shape letters: `B` examples, `H` heads, `K` key features, `V` value features, `I`/`O` a layer's inputs and outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array


class TargetMaps(NamedTuple):
    """The backward functions of the local rule, one linear map for all layers: [t_1; ...; t_L] = v^w M + b.

    kernel: `[V, sum O]`, or `[V + K, sum O]` when conditioned on the write key (value first). bias: `[sum O]`.
    """

    kernel: Array
    bias: Array


class MemoryParams(NamedTuple):
    """Slow parameters, learned over many sequences.

    weights: the initial memory phi_0, one `[I, O]` a layer (a bias is a last row, met by an input of one); of
        `custom_memory` whatever its `init` makes.
    targets: the local rule's backward functions; None for other rules.
    """

    weights: Any
    targets: TargetMaps | None


class Pair(NamedTuple):
    """The factors of one layer's write, W -= sum_h x_h (x) delta_h. inputs: `[B, H, I]`; delta: `[B, H, O]`."""

    inputs: Array
    delta: Array


class Storage(Protocol):
    """How the fast weights phi_t of every example are kept. Rules, reads and writes see them through this alone."""

    batch_size: int

    def product(self, layer: int, x: Array) -> Array:
        """x W_l: `[B, H, I] -> [B, H, O]`."""

    def product_transposed(self, layer: int, c: Array) -> Array:
        """c W_l^T: `[B, H, O] -> [B, H, I]`."""

    def subtract(self, pairs: tuple[Pair, ...]) -> "Storage":
        """W_l -= sum_h x_{l,h} (x) delta_{l,h} in every layer."""

    def slow_product(self, x: Array, kernel: Array) -> Array:
        """x M with the slow map M `[I, O]` of the rule, in the dtype of x: `[B, H, I] -> [B, H, O]`.

        It has nothing to do with the weights; who logs what a step asks for wants to know of it too.
        """


class WriteInfo(NamedTuple):
    """What a write did, `[B]` each.

    loss_before, loss_after: mean over heads and features of (f(k^w) - v^w)^2 with the old and the new weights;
        loss_after is the term of the meta objective (equation 5).
    update_norm: Frobenius norm of the change of all layers together.
    """

    loss_before: Array
    loss_after: Array
    update_norm: Array


class ReadPath(NamedTuple):
    """How a write key and value depend on the memory itself, through the read that came before them.

    keys: `[B, H, K]` the read keys of that read, from the same phi that is now written to.
    pull_back: `(d k^w [B, H, K], d v^w [B, H, V]) -> d f(k^r) [B, H, V]`, derivatives handed back to its answer.
    """

    keys: Array
    pull_back: Callable[[Array, Array], Array]


class Memory(NamedTuple):
    """A neural memory as a bundle of pure functions.

    init: `(key) -> MemoryParams`; the key is consumed.
    start: `(params, batch_size) -> MemoryState`, the fast weights at the start of a sequence.
    read: `(params, state, keys [B, H, K]) -> values [B, H, V]`.
    write: `(params, state, keys [B, H, K], values [B, H, V], rate [B], path=None) -> (state, WriteInfo)`; with a
        `ReadPath` the gradient rule takes the total derivative, else keys and values count as constants.
    write_read: as `write`, with `read_keys [B, R, K]` after the rate, and `-> (state, WriteInfo, values [B, R, V])`: a
        write and then a read, in one pass through the network less than the two apart.
    key_size, value_size: `K` and `V`.
    gates: names of further numbers in (0, 1) that a write is given by keyword, `[B]` each; see `WriteOptions`.
    pairs_only: a write does nothing to the weights but subtract pairs, which all execution forms can follow.
    """

    init: Callable[[Array], MemoryParams]
    start: Callable[[MemoryParams, int], Storage]
    read: Callable[[MemoryParams, Storage, Array], Array]
    write: Callable[..., tuple[Storage, WriteInfo]]
    write_read: Callable[..., tuple[Storage, WriteInfo, Array]]
    key_size: int
    value_size: int
    gates: tuple[str, ...] = ()
    pairs_only: bool = True
