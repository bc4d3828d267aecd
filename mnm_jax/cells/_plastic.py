"""Recurrent networks with Hebbian plasticity, a baseline."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_flags
from mnm_jax.cells._common import Cell, check_step, orthogonal_init

Array = jax.Array

_ALPHA = 0.01  # standard deviation of the initial alpha
_ETA = 0.1  # initial eta


class PlasticCarry(NamedTuple):
    """Carry of a `PlasticCell`.

    Attributes:
      hidden: h, `[B, N]`.
      trace: Hebb, `[B, N, N]`, from unit (second axis) to unit (third axis).
    """

    hidden: Array
    trace: Array


class PlasticCell(Cell):
    """A tanh RNN with a plastic part in every recurrent connection.

        h_t = tanh(A x_t + a + h_{t-1} (W + alpha o Hebb_{t-1}))
        Hebb_t = (1 - eta) Hebb_{t-1} + eta h_{t-1} (x) h_t

    With `modulated`, the network itself computes how much the connections into each unit change at each step:

        Hebb_t = clip(Hebb_{t-1} + m_t o (h_{t-1} (x) h_t), -1, 1),    m_t = f tanh(b . h_t + b_0)

    W, alpha `[N, N]` and eta, or b and the fan-out f `[N]`, are learned. h and Hebb start every sequence at zero. The
    initial values of alpha and eta are not from the papers.

    Args:
      in_features: `D`.
      hidden_features: `N`.
      modulated: whether to use the second rule.
      dtype: dtype of the computation and the carry; None takes `param_dtype`.
      param_dtype: dtype of the parameters.
      rngs: random keys of the initial parameters.

    Raises:
      TypeError: for an argument of the wrong type, or a carry of another type or dtype.
      ValueError: for a size below 1, inputs whose shape is not `[B, D]`, or a carry of another batch size.

    References:
      Miconi et al., 2018 (arXiv 1804.02464), equations 1 and 2; modulated: Miconi et al., 2019 (arXiv 2002.10585),
      section 3.1.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        modulated: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_flags(modulated=modulated)
        linear = self._set_up(dtype, param_dtype, rngs, in_features=in_features, hidden_features=hidden_features)
        self.out_features = hidden_features
        self.modulated = modulated
        square = (hidden_features, hidden_features)
        self.input = linear(in_features, hidden_features)
        self.recurrent = nnx.Param(orthogonal_init(rngs.params(), square, param_dtype))
        self.alpha = nnx.Param(_ALPHA * jax.random.normal(rngs.params(), square, param_dtype))
        if modulated:
            self.modulator = linear(hidden_features, 1)
            self.fan_out = nnx.Param(jnp.ones(hidden_features, param_dtype))
        else:
            self.eta = nnx.Param(jnp.full((), _ETA, param_dtype))

    def _start(self, batch_size: int) -> PlasticCarry:
        zeros = lambda *shape: jnp.zeros((batch_size, *shape), self.dtype)  # noqa: E731
        units = self.hidden_features
        return PlasticCarry(hidden=zeros(units), trace=zeros(units, units))

    def __call__(self, carry: PlasticCarry, inputs: Array) -> tuple[PlasticCarry, Array]:
        """Returns the carry and the features h `[B, N]` after one step with inputs `[B, D]`."""
        inputs = check_step(self, carry, PlasticCarry, inputs)
        before = carry.hidden
        # In this order: one matrix-vector product per example, which is faster on a CPU than one einsum of all three.
        plastic = jnp.einsum("bi,bij->bj", before, self._value(self.alpha)[None] * carry.trace)
        hidden = jnp.tanh(self.input(inputs) + before @ self._value(self.recurrent) + plastic)
        together = before[:, :, None] * hidden[:, None]
        if self.modulated:
            signal = self._value(self.fan_out)[None] * jnp.tanh(self.modulator(hidden))
            trace = jnp.clip(carry.trace + signal[:, None] * together, -1, 1)
        else:
            eta = self._value(self.eta)
            trace = (1 - eta) * carry.trace + eta * together
        return PlasticCarry(hidden=hidden, trace=trace), hidden

    def _value(self, parameter: nnx.Param) -> Array:
        return parameter.get_value().astype(self.dtype)
