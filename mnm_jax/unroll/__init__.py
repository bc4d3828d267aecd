"""Time: how a cell is run over a sequence; the execution forms."""

from mnm_jax.unroll.forms import FORMS, choose_form
from mnm_jax.unroll.unroll import unroll

__all__ = ["FORMS", "choose_form", "unroll"]
