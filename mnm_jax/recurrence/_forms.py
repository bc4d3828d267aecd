"""The choice of an execution form, by measured crossovers."""

from typing import Any

import jax
from flax import nnx

from mnm_jax._checks import check_choice, check_flags, check_sizes
from mnm_jax.recurrence._protocol import MemoryCell

FORMS = ("auto", "plain", "factored", "reversible")

# Largest T H for which the factored form is faster, as a fraction of the layer width d. CPU: measured. GPU: the
# form was slower in every measurement, of 32 steps and more, since it has more small kernels per step. TPU: estimated.
_FACTORED_UP_TO = {"cpu": 1 / 16, "gpu": 0, "tpu": 1 / 2}
# (smallest number of steps with checkpoints, steps between two checkpoints), measured: at that length, page faults of
# new memory cost as much as computing the steps again.
_CHECKPOINTS = {"cpu": (1024, 256)}
# Rows, as a fraction of d, after which the form "factored" folds them into dense weights.
_FOLD_AT = {"cpu": 1 / 8, "gpu": 1 / 2, "tpu": 1 / 2}


def choose_form(cell: nnx.RNNCellBase, steps: int, *, form: str = "auto", reset: bool = False) -> str:
    """Returns the execution form in which `unroll` runs a cell.

    ==================================================================  =============================================
    sequence                                                            form
    ==================================================================  =============================================
    no neural memory, or one that is not written only in pairs          plain
    with resets, over which weights cannot be computed back             factored
    `T H <= d / 16` on a CPU (measured), `d / 2` on a TPU (estimated)   factored
    other sequences, on a CPU up to 1,023 steps                         reversible
    at least 1,024 steps on a CPU (measured)                            reversible, with a checkpoint every 256 steps
    ==================================================================  =============================================

    The first row that applies decides. H is the number of heads, and d the width of the memory's widest layer. A memory
    with forgetting, momentum or an inner optimiser, or from `custom_memory`, is not written only in pairs. `unroll`
    with "auto" runs "plain" for a step that the fast forms cannot follow, see `MemoryCell`.

    Args:
      cell: any cell.
      steps: `T`.
      form: the requested form. With resets, "reversible" becomes "factored", which differs only in memory and time.
      reset: whether the sequence has resets.

    Returns:
      "plain", "factored" or "reversible".

    Raises:
      TypeError: for steps that are no integer, or a reset that is no bool.
      ValueError: for an unknown form, or negative steps.

    Examples:
      >>> from mnm_jax import MNMCell, local_memory
      >>> cell = MNMCell(3, 4, local_memory(64, 64, hidden_sizes=()), rngs=nnx.Rngs(0))
      >>> choose_form(cell, 4), choose_form(cell, 100), choose_form(cell, 100, reset=True)
      ('factored', 'reversible', 'factored')
    """
    check_choice("form", form, FORMS)
    check_sizes(least=0, steps=steps)
    check_flags(reset=reset)
    if form == "plain" or not has_forms(cell):
        return "plain"
    if reset:
        return "factored"
    if form != "auto":
        return form
    return "factored" if steps <= _steps_for_rows(cell, _FACTORED_UP_TO) else "reversible"


def has_forms(cell: nnx.RNNCellBase) -> bool:
    """Returns whether the hand-written backward passes apply: the cell's memory is written only in pairs."""
    return isinstance(cell, MemoryCell) and cell.memory.pairs_only


def choose_checkpoints(steps: int) -> int | None:
    """Returns the steps between two checkpoints if "auto" has chosen the form "reversible"; None: no checkpoints."""
    least, every = _CHECKPOINTS.get(jax.default_backend(), (steps + 1, None))
    return every if steps >= least else None


def choose_fold(cell: Any) -> int:
    """Returns the number of steps after which a `MemoryCell`'s factors are folded into dense weights."""
    return max(1, _steps_for_rows(cell, _FOLD_AT))


def keeps_dense_cotangent() -> bool:
    """Returns whether the cotangent of factored weights is kept as matrices if the weights are folded.

    Per step the cotangent grows by three times as many rows as the weights. On a CPU, a product with so many rows costs
    more than keeping matrices.
    """
    return jax.default_backend() == "cpu"


def _steps_for_rows(cell: Any, fractions: dict[str, float]) -> int:
    """Returns the number of steps in which a `MemoryCell` writes d times the backend's fraction of rows."""
    width = max(max(w.shape) for w in cell.memory_params.get_value().weights)
    return int(width * fractions.get(jax.default_backend(), 1 / 2)) // cell.heads
