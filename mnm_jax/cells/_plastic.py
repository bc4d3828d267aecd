"""Recurrent networks whose connections change as their ends are active together, a baseline."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.cells._common import check_inputs, check_sizes, orthogonal_init

Array = jax.Array

_ALPHA = 0.01  # standard deviation of the first alpha
_ETA = 0.1  # the first eta


class PlasticCarry(NamedTuple):
    """hidden: h `[B, N]`. trace: Hebb `[B, N, N]`, from unit (second) to unit (third)."""

    hidden: Array
    trace: Array


class PlasticCell(nnx.RNNCellBase):
    """A tanh RNN with a plastic part in every recurrent connection.

        h_t = tanh(A x_t + a + h_{t-1} (W + alpha o Hebb_{t-1}))
        Hebb_t = (1 - eta) Hebb_{t-1} + eta h_{t-1} (x) h_t

    or, `modulated`, the network decides itself when its connections change, and how much those into each unit:

        Hebb_t = clip(Hebb_{t-1} + m_t o (h_{t-1} (x) h_t), -1, 1),    m_t = f tanh(b . h_t + b_0)

    W, alpha `[N, N]` and eta, or b and the fan-out f `[N]`, are learned. h and Hebb start every sequence at zero.

    Args:
      in_features: `D`. hidden_features: `N`.
      modulated: the second rule.
      dtype: of parameters and carry.

    Raises:
      ValueError: for a size below 1, or inputs of another shape than `[B, D]`.

    Source: Miconi et al., 2018 (arXiv 1804.02464), equations 1 and 2; modulated: Miconi et al., 2019 (arXiv
    2002.10585), section 3.1. First values of alpha and eta are ours.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        modulated: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(in_features=in_features, hidden_features=hidden_features)
        self.in_features = in_features
        self.hidden_features = self.out_features = hidden_features
        self.modulated = modulated
        self.dtype = dtype
        square = (hidden_features, hidden_features)
        self.input = nnx.Linear(in_features, hidden_features, param_dtype=dtype, rngs=rngs)
        self.recurrent = nnx.Param(orthogonal_init(rngs.params(), square, dtype))
        self.alpha = nnx.Param(_ALPHA * jax.random.normal(rngs.params(), square, dtype))
        if modulated:
            self.modulator = nnx.Linear(hidden_features, 1, param_dtype=dtype, rngs=rngs)
            self.fan_out = nnx.Param(jnp.ones(hidden_features, dtype))
        else:
            self.eta = nnx.Param(jnp.full((), _ETA, dtype))

    @property
    def num_feature_axes(self) -> int:
        return 1

    def initialize_carry(self, input_shape, rngs=None, carry_init=None) -> PlasticCarry:
        """The carry at the start of sequences of inputs shaped `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        batch, units = input_shape[0], self.hidden_features
        return PlasticCarry(jnp.zeros((batch, units), self.dtype), jnp.zeros((batch, units, units), self.dtype))

    def __call__(self, carry: PlasticCarry, inputs: Array) -> tuple[PlasticCarry, Array]:
        """One step: inputs `[B, D]`; the features put out are h `[B, N]`."""
        check_inputs(inputs, self.in_features)
        before = carry.hidden
        # In this order a matrix times a vector for each example, which a CPU is faster at than all three at once.
        plastic = jnp.einsum("bi,bij->bj", before, self.alpha.get_value()[None] * carry.trace)
        hidden = jnp.tanh(self.input(inputs) + before @ self.recurrent.get_value() + plastic)
        together = before[:, :, None] * hidden[:, None]
        if self.modulated:
            much = self.fan_out.get_value()[None] * jnp.tanh(self.modulator(hidden))
            trace = jnp.clip(carry.trace + much[:, None] * together, -1, 1)
        else:
            eta = self.eta.get_value()
            trace = (1 - eta) * carry.trace + eta * together
        return PlasticCarry(hidden, trace), hidden
