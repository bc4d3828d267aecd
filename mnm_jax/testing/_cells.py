"""Checks all contracts of a cell."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.testing._cell_programs import (
    check_compilation,
    check_derivatives,
    check_devices,
    check_export,
    check_forms,
    check_pickle,
)
from mnm_jax.testing._cell_time import (
    check_carry,
    check_causality,
    check_dtypes,
    check_extremes,
    check_flax_rnn,
    check_isolation,
    check_masking,
    check_resets,
    check_unroll,
)

# The contracts of a cell in single precision, and those whose comparisons need double precision.
SINGLE_CONTRACTS = (check_carry, check_extremes, check_export, check_pickle)
DOUBLE_CONTRACTS = (
    check_unroll,
    check_masking,
    check_resets,
    check_causality,
    check_isolation,
    check_flax_rnn,
    check_devices,
    check_forms,
    check_derivatives,
)


def check_cell(make_cell: Callable[..., nnx.RNNCellBase]) -> None:
    """Checks all contracts of a recurrent cell; each of them can also be called separately.

    ===================  ==========================================================================================
    contract             statement
    ===================  ==========================================================================================
    `check_dtypes`       parameters have `param_dtype`, and carry and outputs `dtype`, to which inputs are cast
    `check_carry`        shapes and dtypes of the carry are constant under a step, `lax.cond` and `vmap`
    `check_unroll`       one run, a loop over steps, and two runs joined by the carry agree
    `check_masking`      padding changes nothing and gets exactly zero gradient
    `check_resets`       packed sequences give the features of separate runs
    `check_causality`    features depend on every input up to their step, and on no later one
    `check_isolation`    a change of one example leaves the others bit-equal
    `check_extremes`     values and gradients are finite for extreme inputs and parameters
    `check_flax_rnn`     the cell gives the same features inside `nnx.RNN`
    `check_compilation`  new numbers and a second, equal cell cause no recompilation
    `check_devices`      a batch divided over all devices gives the numbers of one device
    `check_export`       an exported step gives the same numbers
    `check_pickle`       a run continues bit-equal after parameters and carry were pickled
    `check_forms`        all execution forms agree in values and gradients
    `check_derivatives`  derivatives of first and second order agree with finite differences
    ===================  ==========================================================================================

    Compilation takes most of the time, up to a minute for a cell with a neural memory. Small sizes are enough.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns the cell: an `nnx.RNNCellBase` with `in_features`, with
        equal parameters at each call. It is called with float32, bfloat16 and float64. `check_dtypes` and
        `check_compilation` take `make_cell`, the other contracts take a cell.

    Raises:
      AssertionError: if a contract does not hold; the message begins with the contract's name.

    Examples:
      >>> from mnm_jax import LSTMCell
      >>> check_cell(lambda **dtypes: LSTMCell(3, 4, **dtypes, rngs=nnx.Rngs(0)))
    """
    check_dtypes(make_cell)
    check_compilation(make_cell)
    cell = make_cell(dtype=jnp.float32, param_dtype=jnp.float32)
    for check in SINGLE_CONTRACTS:
        check(cell)
    with jax.enable_x64(True):
        cell = make_cell(dtype=jnp.float64, param_dtype=jnp.float64)
        for check in DOUBLE_CONTRACTS:
            check(cell)
