"""A cell between an encoder and a linear read-out: the model that the training program trains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from mnm_jax.cells import output_features, split_output
from mnm_jax.unroll import unroll

Array = jax.Array


class SequenceOutput(NamedTuple):
    """logits `[T, B, C]`; meta_loss `[T, B]`, or None for a cell without a memory; cell: all outputs of the cell."""

    logits: Array
    meta_loss: Array | None
    cell: Any


class SequenceModel(nnx.Module):
    """logits = head(cell(encoder(inputs))), time first.

    encoder: `[T, B, ...] -> [T, B, D]`; cell: any `nnx.RNNCellBase` of this library.
    """

    def __init__(self, encoder: Callable, cell: nnx.RNNCellBase, classes: int, *, rngs: nnx.Rngs):
        self.encoder = encoder
        self.cell = cell
        self.head = nnx.Linear(output_features(cell), classes, rngs=rngs)

    def __call__(
        self,
        inputs: Array,
        mask: Array | None = None,
        fork: Array | None = None,
        *,
        form: str = "auto",
        checkpoint_every: int | None = None,
    ) -> SequenceOutput:
        features = self.encoder(inputs)
        how = {"form": form, "checkpoint_every": checkpoint_every}
        _, outputs = unroll(self.cell, None, features, mask=mask, fork=fork, **how)
        hidden, meta_loss = split_output(outputs)
        return SequenceOutput(self.head(hidden), meta_loss, outputs)
