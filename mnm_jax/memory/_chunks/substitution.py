"""Forward substitution through an activation, for the hidden layers of a chunk.

    a_t = known_t - sum_{s < t} N_ts (act(a_s) - T_s)

N_ts is the effect of token s on token t, T are the targets, and known is the part of a that does not depend on the
chunk's own writes. Without the activation this is a triangular system. With it, a loop runs over the tokens of a block,
and products of matrices connect the blocks.

Shape letters: `N` memories, `C` tokens of a chunk, `O` outputs of a layer.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mnm_jax._vary import vary_alike

Array = jax.Array
Activation = Callable[[Array], Array]
_BLOCK = 16  # tokens per block; smaller ones need more products, larger ones touch more numbers per token


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def substitute(activation: Activation, below: Array, known: Array, targets: Array) -> Array:
    """Returns a, `[N, C, O]`; it can be differentiated any number of times, forward and backward.

    Args:
      activation: act, of rows `[N, O]`.
      below: N, `[N, C, C]`, with zeros on and above the diagonal.
      known: `[N, C, O]`.
      targets: T, `[N, C, O]`.
    """
    return known + _sweep(lambda s, known, target: activation(known + s) - target, below, (known, targets))


@substitute.defjvp
def _substitute_jvp(activation: Activation, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The derivative x = da solves x + N act'(a) x = right. Its transpose is solved from the last token to the first.
    below, known, targets = primals
    of_below, of_known, of_targets = tangents
    a = substitute(activation, below, known, targets)
    right = of_known - of_below @ (activation(a) - targets) + below @ of_targets
    a, below, right = vary_alike((a, below, right))

    def forward(x: Array, a: Array) -> Array:
        return jax.jvp(activation, (a,), (x,))[1]

    def backward(x: Array, a: Array) -> Array:
        return jax.vjp(activation, a)[1](x)[0]

    def solve(_: Callable, right: Array) -> Array:
        return right + _sweep(lambda s, right, a: forward(right + s, a), below, (right, a))

    def solve_transposed(_: Callable, right: Array) -> Array:
        above = jnp.swapaxes(below, 1, 2)
        return right + backward(_sweep(lambda s, right, a: right + backward(s, a), above, (right, a), reverse=True), a)

    return a, jax.lax.custom_linear_solve(lambda x: x + below @ forward(x, a), right, solve, solve_transposed)


def _sweep(function: Callable[..., Array], matrix: Array, rows: tuple[Array, ...], *, reverse: bool = False) -> Array:
    """Returns S = - M E, `[N, C, O]`, where e_t = function(s_t, rows of t) for one token after the other.

    Args:
      function: of arrays `[N, O]`.
      matrix: M, `[N, C, C]`, strictly lower triangular; strictly upper triangular in reverse.
      rows: arguments of the function, `[N, C, O]` each.
      reverse: whether the last token comes first.
    """
    matrix, rows = vary_alike((matrix, rows))
    tokens = matrix.shape[1]
    size = max(_BLOCK, -(-tokens // 8))  # at most 8 blocks, each of which is compiled separately
    places = [slice(begin, min(begin + size, tokens)) for begin in range(0, tokens, size)]
    sums: list[Array] = []
    done: list[Array] = []
    for place in places[::-1] if reverse else places:
        here = tuple(row[:, place] for row in rows)
        start = jnp.zeros_like(here[0])
        if done:
            others = slice(place.stop, None) if reverse else slice(0, place.start)
            start = -matrix[:, place, others] @ jnp.concatenate(done, 1)
        block = _sweep_block(function, matrix[:, place, place], start, here, reverse)
        errors = jax.vmap(function, 1, 1)(block, *here)
        if reverse:
            sums, done = [block, *sums], [errors, *done]
        else:
            sums, done = [*sums, block], [*done, errors]
    return jnp.concatenate(sums, 1)


def _sweep_block(
    function: Callable[..., Array], matrix: Array, start: Array, rows: tuple[Array, ...], reverse: bool
) -> Array:
    """Returns `start` - M E within one block; the loop subtracts each token's e_t from the sums of later tokens."""

    def step(sums: Array, now: tuple) -> tuple[Array, None]:
        place, column, rows = now
        error = function(jax.lax.dynamic_index_in_dim(sums, place, 1, keepdims=False), *rows)
        return sums - column[:, :, None] * error[:, None], None

    tokens = jnp.arange(matrix.shape[1], dtype=jnp.int32)
    columns, rows = jnp.moveaxis(matrix, 2, 0), tuple(jnp.swapaxes(row, 0, 1) for row in rows)
    start, each = vary_alike((start, (tokens, columns, rows)))
    return jax.lax.scan(step, start, each, reverse=reverse)[0]
