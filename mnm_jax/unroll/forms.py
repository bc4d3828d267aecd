"""Which execution form when: the one table of crossovers."""

import jax
from flax import nnx

FORMS = ("auto", "plain", "factored", "reversible")

# Rows written, steps times H, up to which factors are cheaper than dense weights of d x d, as a part of d.
_FACTORED_UP_TO = {"cpu": 1 / 16, "gpu": 1 / 2, "tpu": 1 / 2}


def choose_form(cell: nnx.RNNCellBase, steps: int, *, form: str = "auto", reset: bool = False) -> str:
    """The form in which `unroll` runs a cell over so many steps.

    | sequence | form |
    |---|---|
    | a cell without a neural memory | plain |
    | with resets, over which weights cannot be computed back | factored |
    | T H <= d / 16 on a CPU (measured), d / 2 elsewhere (on paper) | factored |
    | longer | reversible |

    with H rows a write and d the width of the memory's widest layer. "reversible" asked for with resets is "factored".
    """
    if not hasattr(cell, "linear_maps"):
        return "plain"
    if form == "plain":
        return form
    if reset:
        return "factored"
    if form != "auto":
        return form
    return "factored" if steps <= choose_fold(cell) else "reversible"


def choose_fold(cell: nnx.RNNCellBase) -> int:
    """Steps after which dense weights are cheaper than factors, which are then folded into weights."""
    width = max(max(w.shape) for w in cell.memory_params.get_value().weights)
    return max(1, int(width * _FACTORED_UP_TO.get(jax.default_backend(), 1 / 2)) // cell.heads)
