"""The LSTM: the controller of the memory cells, and a baseline without memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._masking import Steps
from mnm_jax.cells._common import Cell, check_step, orthogonal_init
from mnm_jax.recurrence._scan_chunks import scan_chunks

Array = jax.Array
Carry = tuple[Array, Array]

# Steps whose inputs are one product. With more, the products fill memory that no cache holds: on a CPU, its page faults
# cost more than the products.
_CHUNK = 32


class LSTMCell(Cell):
    """A long short-term memory, with the parameters and results of flax's `OptimizedLSTMCell`.

        [i ; f ; o]_t = sigmoid(A x_t + W h_{t-1} + a),      g_t = tanh(B x_t + U h_{t-1} + b)
        c_t = f_t o c_{t-1} + i_t o g_t,      h_t = o_t o tanh(c_t)

    The carry is (c, h), zeros `[B, hidden_features]` at the start of a sequence; the output is h. `unroll` computes
    the products with the inputs, and the gradients of A, W, B and U, as one product each per 32 steps.

    Args:
      in_features: `D`.
      hidden_features: size of c and h.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    References:
      Hochreiter and Schmidhuber, Neural Computation 1997; forget gate: Gers et al., Neural Computation 2000.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        linear = self._set_up(dtype, param_dtype, rngs, in_features=in_features, hidden_features=hidden_features)
        self.out_features = hidden_features
        self.dense_i = linear(in_features, 4 * hidden_features, use_bias=False)
        self.dense_h = linear(hidden_features, 4 * hidden_features, kernel_init=orthogonal_init)

    def _start(self, batch_size: int) -> Carry:
        zeros = lambda: jnp.zeros((batch_size, self.hidden_features), self.dtype)  # noqa: E731
        return zeros(), zeros()

    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """Returns the carry and the features h `[B, hidden]` after one step with inputs `[B, D]`."""
        inputs = check_step(self, carry, tuple, inputs)
        new = _advance(carry[0], self.dense_i(inputs) + self.dense_h(carry[1]))
        return new, new[1]

    def _scan_steps(self, carry: Carry, xs: Steps) -> tuple[Carry, Array]:
        """Returns the last carry and all features; the inputs of a chunk of steps are multiplied in one product."""
        check_step(self, carry, tuple, xs.inputs[0])

        def chunk(carry: Carry, xs: Steps) -> tuple[Carry, Array]:
            projected = self.dense_i(xs.masked_inputs.astype(self.dtype))
            return _scan(self.dense_h, carry, xs._replace(inputs=projected))

        return chunk(carry, xs) if len(xs.inputs) <= _CHUNK else scan_chunks(chunk, carry, xs, _CHUNK)


class _Slopes(NamedTuple):
    """Derivatives of one step (c, a) -> (c', h'), where a are the gates before their nonlinearity.

    Attributes:
      gates: derivatives of c' with respect to a_i, a_f and a_g, and of h' with respect to a_o, `[B, 4 hidden]`.
      forget: derivative of c' with respect to c, `[B, hidden]`.
      output: derivative of h' with respect to c', `[B, hidden]`.
    """

    gates: Array
    forget: Array
    output: Array

    def push(self, c: Array, gates: Array) -> Carry:
        """Returns the tangents of (c', h') from the tangents of c and a."""
        i, f, g, o = jnp.split(self.gates * gates, 4, axis=-1)
        c = self.forget * c + (i + f + g)
        return c, self.output * c + o


def _linearize(c: Array, gates: Array) -> tuple[Carry, _Slopes]:
    """Returns (c', h') for c and a, and the derivatives; autodiff would store twice as many numbers."""
    # On a CPU, two functions of all gates are faster than one function per slice, which XLA does not vectorise.
    (i, f, _, o), (_, _, g, _) = (jnp.split(x, 4, axis=-1) for x in (jax.nn.sigmoid(gates), jnp.tanh(gates)))
    slopes = [g * i * (1 - i), c * f * (1 - f), i * (1 - g * g)]
    c = f * c + i * g
    squashed = jnp.tanh(c)
    slopes.append(squashed * o * (1 - o))
    return (c, o * squashed), _Slopes(jnp.concatenate(slopes, axis=-1), f, o * (1 - squashed * squashed))


@jax.custom_jvp
def _advance(c: Array, gates: Array) -> Carry:
    """Returns (c', h') from c and a."""
    return _linearize(c, gates)[0]


@_advance.defjvp
def _advance_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Carry, Carry]:
    new, slopes = _linearize(*primals)
    return new, slopes.push(*tangents)


def _loop(dense_h: nnx.Module, carry: Carry, xs: Steps) -> tuple[Carry, tuple[Array, Array, _Slopes]]:
    """Returns the last carry and, per step, the features, h before the step, and the derivatives."""
    start = _zeros(carry)

    def step(carry: Carry, x: Steps) -> tuple[Carry, tuple[Array, Array, _Slopes]]:
        carry, projected = x.enter(carry, start)
        new, slopes = _linearize(carry[0], projected + dense_h(carry[1]))
        left, features = x.leave(new, carry, new[1])
        return left, (features, carry[1], slopes)

    return jax.lax.scan(step, carry, xs)


@jax.custom_jvp
def _scan(dense_h: nnx.Module, carry: Carry, xs: Steps) -> tuple[Carry, Array]:
    """Returns the last carry and the features; the inputs of `xs` are the input products `[T, B, 4 hidden]`.

    Its reverse-mode derivative, the transpose of `_scan_jvp`, has one product per step, and one over all steps for the
    gradients of `dense_h`.
    """
    last, (features, *_) = _loop(dense_h, carry, xs)
    return last, features


@_scan.defjvp
def _scan_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (dense_h, carry, xs), (dense_tangent, carry_tangent, xs_tangent) = primals, tangents
    last, (features, h, slopes) = _loop(dense_h, carry, xs)
    _, moved = jax.jvp(lambda dense_h: dense_h(h), (dense_h,), (dense_tangent,))
    start = _zeros(carry)

    def step(carry: Carry, given: tuple[Steps, Array, _Slopes]) -> tuple[Carry, Array]:
        x, h, slopes = given
        carry, gates = x.enter(carry, start)
        _, recurrent = jax.jvp(dense_h, (h,), (carry[1],))
        new = slopes.push(carry[0], gates + recurrent)
        return x.leave(new, carry, new[1])

    given = xs._replace(inputs=xs_tangent.inputs + moved), h, slopes
    return (last, features), jax.lax.scan(step, carry_tangent, given)


def _zeros(carry: Carry) -> Carry:
    """Returns zeros for a batch of one: the carry at the start of a sequence, and its tangent."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, shape=(1, *leaf.shape[1:])), carry)
