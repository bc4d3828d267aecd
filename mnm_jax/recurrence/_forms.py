"""Which execution form when: the one table of crossovers."""

import jax
from flax import nnx

from mnm_jax.recurrence._protocol import MemoryCell

FORMS = ("auto", "plain", "factored", "reversible")

# Rows written, steps times H, up to which factors are cheaper than dense weights of d x d, as a part of d.
_FACTORED_UP_TO = {"cpu": 1 / 16, "gpu": 1 / 2, "tpu": 1 / 2}
# Checkpoints: from how many steps on, and steps between two. There, fresh memory is as dear as computing again.
_CHECKPOINTS = {"cpu": (1024, 256)}
# Rows after which the form "factored", where it is asked for, forms dense weights of them.
_FOLD_AT = {"cpu": 1 / 8, "gpu": 1 / 2, "tpu": 1 / 2}


def choose_form(cell: nnx.RNNCellBase, steps: int, *, form: str = "auto", reset: bool = False) -> str:
    """The form in which `unroll` runs a cell over so many steps.

    | sequence | form |
    |---|---|
    | a cell without a neural memory, or whose memory forgets or has an optimiser | plain |
    | with resets, over which weights cannot be computed back | factored |
    | T H <= d / 16 on a CPU (measured), d / 2 elsewhere (on paper) | factored |
    | longer | reversible |
    | 1,024 steps or more on a CPU (measured) | reversible, with a checkpoint every 256 steps |

    with H rows a write and d the width of the memory's widest layer. "reversible" asked for with resets is "factored".
    """
    if not has_forms(cell):
        return "plain"
    if form == "plain":
        return form
    if reset:
        return "factored"
    if form != "auto":
        return form
    return "factored" if steps <= _rows(cell, _FACTORED_UP_TO) else "reversible"


def has_forms(cell: nnx.RNNCellBase) -> bool:
    """Whether a cell has a neural memory whose writes the hand-written backward passes can follow."""
    return isinstance(cell, MemoryCell) and cell.memory.pairs_only


def choose_checkpoints(steps: int) -> int | None:
    """Steps between two checkpoints of the form "reversible" where "auto" chose it; None: no checkpoints."""
    least, every = _CHECKPOINTS.get(jax.default_backend(), (steps + 1, None))
    return every if steps >= least else None


def choose_fold(cell: nnx.RNNCellBase) -> int:
    """Steps after which factors are folded into dense weights."""
    return _rows(cell, _FOLD_AT)


def keeps_dense_cotangent() -> bool:
    """Whether the cotangent of weights that are folded every few steps is better kept as matrices.

    It takes three times as many rows a step as the weights. On a CPU their bookkeeping costs more than the matrices.
    """
    return jax.default_backend() == "cpu"


def _rows(cell: nnx.RNNCellBase, parts: dict[str, float]) -> int:
    """Steps that write a part of d rows, by backend."""
    width = max(max(w.shape) for w in cell.memory_params.get_value().weights)
    return max(1, int(width * parts.get(jax.default_backend(), 1 / 2)) // cell.heads)
