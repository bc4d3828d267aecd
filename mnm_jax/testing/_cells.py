"""Checks all contracts of a cell."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.testing import _cell_programs as programs
from mnm_jax.testing import _cell_time as time

# The contracts of a cell in each dtype. Comparisons of derivatives need double precision.
SINGLE_CONTRACTS = (
    time.check_cell_carry,
    time.check_cell_extremes,
    time.check_cell_stream,
    programs.check_cell_donation,
)
DOUBLE_CONTRACTS = (
    time.check_cell_unroll,
    time.check_cell_masking,
    time.check_cell_resets,
    time.check_cell_causality,
    time.check_cell_isolation,
    time.check_cell_flax_rnn,
    time.check_cell_empty,
    programs.check_cell_devices,
    programs.check_cell_export,
    programs.check_cell_pickle,
    programs.check_cell_forms,
    programs.check_cell_derivatives,
)


def check_cell(make_cell: Callable[..., nnx.RNNCellBase]) -> None:
    """Checks all contracts of a recurrent cell; each of them can also be called separately.

    ========================  ======================================================================================
    contract                  statement
    ========================  ======================================================================================
    `check_cell_dtypes`       parameters and gradients have `param_dtype`, and carry and outputs `dtype`
    `check_cell_carry`        shapes and dtypes of the carry are constant under a step, `lax.cond` and `vmap`
    `check_cell_unroll`       two runs joined by the carry equal a loop over steps, in values and gradients
    `check_cell_masking`      padding changes nothing and gets exactly zero gradient
    `check_cell_resets`       packed sequences give the results of separate runs
    `check_cell_causality`    features depend on every input up to their step, and on no later one
    `check_cell_isolation`    a change of one example leaves the others bit-equal
    `check_cell_extremes`     values and gradients are finite for extreme inputs and parameters
    `check_cell_stream`       carry and features stay finite over 1,000 steps
    `check_cell_empty`        no steps, and no examples, give empty results
    `check_cell_flax_rnn`     the cell gives the same features inside `nnx.RNN`
    `check_cell_compilation`  new numbers and a second, equal cell cause no recompilation
    `check_cell_devices`      a batch divided over devices, by `jax.shard_map` too, gives the numbers of one device
    `check_cell_export`       a step exported for cpu, cuda and tpu gives the same numbers
    `check_cell_pickle`       a run continues bit-equal after parameters and carry were pickled
    `check_cell_donation`     a fresh carry can be donated
    `check_cell_forms`        all execution forms agree in values and gradients
    `check_cell_derivatives`  derivatives of first and second order agree with finite differences
    ========================  ======================================================================================

    Compilation takes most of the time, up to a minute for a cell with a neural memory. Small sizes are enough.

    Args:
      make_cell: `make_cell(dtype=..., param_dtype=...)` returns a new cell at each call: an `nnx.RNNCellBase` with
        `in_features`, with equal parameters. It is called with float32, bfloat16 and float64. `check_cell_dtypes` and
        `check_cell_compilation` take `make_cell`, the other contracts take a cell.

    Raises:
      AssertionError: if a contract does not hold; the message begins with the contract's name.

    Examples:
      >>> from mnm_jax import LSTMCell
      >>> check_cell(lambda **dtypes: LSTMCell(3, 4, **dtypes, rngs=nnx.Rngs(0)))
    """
    time.check_cell_dtypes(make_cell)
    programs.check_cell_compilation(make_cell)
    cell = make_cell(dtype=jnp.float32, param_dtype=jnp.float32)
    for check in SINGLE_CONTRACTS:
        check(cell)
    time.check_cell_extremes(make_cell(dtype=jnp.bfloat16, param_dtype=jnp.float32))
    with jax.enable_x64(True):
        cell = make_cell(dtype=jnp.float64, param_dtype=jnp.float64)
        for check in DOUBLE_CONTRACTS:
            check(cell)
