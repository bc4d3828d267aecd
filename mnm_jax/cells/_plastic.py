"""Recurrent networks with Hebbian plasticity, a baseline."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_sizes
from mnm_jax.cells._common import CarryRngs, Cell, cast_inputs, orthogonal_init

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
      ValueError: for a size below 1, or inputs whose shape is not `[B, D]`.

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
        check_sizes(in_features=in_features, hidden_features=hidden_features)
        self.in_features = in_features
        self.hidden_features = self.out_features = hidden_features
        self.modulated = modulated
        self.dtype = param_dtype if dtype is None else dtype
        self.param_dtype = param_dtype
        square = (hidden_features, hidden_features)
        self.input = nnx.Linear(in_features, hidden_features, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        self.recurrent = nnx.Param(orthogonal_init(rngs.params(), square, param_dtype))
        self.alpha = nnx.Param(_ALPHA * jax.random.normal(rngs.params(), square, param_dtype))
        if modulated:
            self.modulator = nnx.Linear(hidden_features, 1, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
            self.fan_out = nnx.Param(jnp.ones(hidden_features, param_dtype))
        else:
            self.eta = nnx.Param(jnp.full((), _ETA, param_dtype))

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: CarryRngs = None, carry_init: nnx.Initializer | None = None
    ) -> PlasticCarry:
        """Returns the carry at the start of sequences of inputs `input_shape = (B, D)`: zeros."""
        del rngs, carry_init
        batch, units = input_shape[0], self.hidden_features
        return PlasticCarry(
            hidden=jnp.zeros((batch, units), self.dtype), trace=jnp.zeros((batch, units, units), self.dtype)
        )

    def __call__(self, carry: PlasticCarry, inputs: Array) -> tuple[PlasticCarry, Array]:
        """Returns the carry and the features h `[B, N]` after one step with inputs `[B, D]`."""
        inputs = cast_inputs(inputs, self.in_features, self.dtype)
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
