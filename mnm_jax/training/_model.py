"""The model for training: an encoder, a cell and a read-out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_array, check_fraction, check_functions, check_sizes
from mnm_jax._linear import dot_general
from mnm_jax._masking import Steps
from mnm_jax.cells import output_features, split_output
from mnm_jax.recurrence import unroll
from mnm_jax.recurrence._carry import begin_carry, check_has_memory

Array = jax.Array


class SequenceOutput(NamedTuple):
    """Output of a `SequenceModel`.

    Attributes:
      logits: `[T, B, C]`.
      meta_loss: `[T, B]`, or None for a cell without a memory.
      cell: all outputs of the cell.
      carry: the cell's carry after the last step.
    """

    logits: Array
    meta_loss: Array | None
    cell: Any
    carry: Any


class SequenceModel(nnx.Module):
    """Computes logits = head(cell(encoder(inputs))), time first.

        head(y) = A y + a       with hidden units:  A y + a + C relu(D y + d)

    In place of a cell it takes a layer or a stack of layers: an `nnx.Module` that, like `NeuralMemoryLayer`, has the
    methods `initialize_carry((B, D))`, `step` and `(carry, inputs [T, B, D], mask=...) -> (carry, outputs)`, in which
    the carry None begins new sequences, and the attributes `in_features` and `out_features`.

    Args:
      encoder: a map `[T, B, ...] -> [T, B, D]`.
      cell: any `nnx.RNNCellBase` that `unroll` can run, or a layer.
      classes: `C`, number of logits.
      readout_features: number of hidden units of the head; 0: none.
      dropout: fraction of the features that training sets to zero, both of the encoder and of the cell. Each example
        draws its features once for all steps; the others are divided by 1 - `dropout`.
      dtype: dtype of the head's computation, to which the cell's features are cast; None for `param_dtype`.
      param_dtype: dtype of the head's parameters; encoder and cell have their own.
      rngs: random keys.

    Raises:
      TypeError: for an encoder that is no function, or a size that is no integer.
      ValueError: for `classes` below 1, negative `readout_features`, or `dropout` outside [0, 1).

    References:
      Dropout with one draw per sequence: Gal and Ghahramani, NeurIPS 2016.
    """

    def __init__(
        self,
        encoder: Callable,
        cell: nnx.Module,
        classes: int,
        readout_features: int = 0,
        *,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        check_functions(encoder=encoder)
        check_sizes(classes=classes)
        check_sizes(least=0, readout_features=readout_features)
        check_fraction(dropout=dropout)
        if dropout == 1:
            raise ValueError("dropout must be < 1, got 1: no feature would be left.")
        self.dropout = float(dropout)
        features = output_features(cell)
        self.encoder = encoder
        self.cell: Any = cell
        self.dtype = jnp.dtype(param_dtype if dtype is None else dtype)
        linear = partial(nnx.Linear, dot_general=dot_general, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)
        self.head = linear(features, classes)
        into = linear(features, readout_features) if readout_features else None
        out = linear(readout_features, classes, use_bias=False) if readout_features else None
        self.into, self.out = nnx.data(into), nnx.data(out)

    def __call__(
        self,
        inputs: Array,
        *,
        mask: Array | None = None,
        noise: Array | None = None,
        carry: Any = None,
        **options: Any,
    ) -> SequenceOutput:
        """Returns the outputs for inputs `[T, B, ...]`.

        Args:
          inputs: `[T, B, ...]`.
          mask: see `unroll`.
          noise: `[B]` uint32, seeds of the dropout of each example; None, as in evaluation: no dropout.
          carry: the cell's carry after earlier inputs, `[B, ...]`; None begins new sequences.
          **options: other arguments of `unroll`, such as `form` or `fork`; none for a layer.

        Raises:
          ValueError: for an option with a layer.
        """
        if mask is not None:
            check_array("mask", mask, "T B", jnp.bool_, T=inputs.shape[0], B=inputs.shape[1])
        inputs = Steps(inputs, mask=mask).masked_inputs  # masked inputs may be NaN, which the encoder would pass on
        features = self._drop(self.encoder(inputs), noise, 0)
        carry, outputs = self._run(carry, features, mask, options)
        hidden, meta_loss = split_output(outputs)
        logits = self._read_out(self._drop(hidden, noise, 1))
        return SequenceOutput(logits=logits, meta_loss=meta_loss, cell=outputs, carry=carry)

    def start(self, batch_size: int) -> Any:
        """Returns the carry before the first step of a sequence or of an endless stream."""
        shape = (batch_size, self.cell.in_features)
        return self.cell.initialize_carry(shape) if _is_layer(self.cell) else begin_carry(self.cell, shape)

    def step(self, carry: Any, inputs: Array, *, reset_controller: Array | None = None) -> tuple[Any, Array]:
        """Returns the carry and the logits `[B, C]` after one step with inputs `[B, ...]`.

        Args:
          carry: the carry before the step.
          inputs: `[B, ...]`.
          reset_controller: `[B]` bool, see `unroll`; None for a layer.

        Raises:
          ValueError: for `reset_controller` with a layer or a cell without a neural memory.
        """
        features = self.encoder(inputs[None])[0]
        if reset_controller is not None:
            self._check_options({"reset_controller": reset_controller})
            check_array("reset_controller", reset_controller, "B", jnp.bool_, B=features.shape[0])
            now = Steps(features, reset_controller=reset_controller)
            check_has_memory(self.cell, Steps(features[None], reset_controller=reset_controller))
            carry = now.begin(carry, self.start(1))
        run = self.cell.step if _is_layer(self.cell) else self.cell
        carry, outputs = run(carry, features)
        return carry, self._read_out(split_output(outputs)[0])

    def _run(self, carry: Any, features: Array, mask: Array | None, options: dict[str, Any]) -> tuple[Any, Any]:
        """Returns the last carry and the outputs `[T, B, ...]` of the cell or the layer."""
        if not _is_layer(self.cell):
            return unroll(self.cell, carry, features, mask=mask, **options)
        self._check_options(options)
        return self.cell(carry, features, mask=mask)

    def _check_options(self, options: dict[str, Any]) -> None:
        """Raises ValueError for an option with a layer."""
        given = [name for name, value in options.items() if value is not None]
        if given and _is_layer(self.cell):
            raise ValueError(
                f"{given[0]} needs a cell, which runs step by step, got a layer, {type(self.cell).__name__}: leave it "
                "out, or take a cell such as MNMCell."
            )

    def _drop(self, features: Array, noise: Array | None, place: int) -> Array:
        """Returns features `[T, B, F]` with dropout; `place` distinguishes the draws of one seed."""
        if noise is None or not self.dropout:
            return features

        def keep(seed: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(seed), place)
            return jax.random.bernoulli(key, 1 - self.dropout, features.shape[2:])

        return jnp.where(jax.vmap(keep)(noise)[None], features / (1 - self.dropout), 0)

    def _read_out(self, hidden: Array) -> Array:
        hidden = hidden.astype(self.dtype)
        logits = self.head(hidden)
        if self.into is None or self.out is None:
            return logits
        return logits + self.out(jax.nn.relu(self.into(hidden)))


def _is_layer(cell: Any) -> bool:
    """Returns whether a module runs over sequences by itself."""
    return not isinstance(cell, nnx.RNNCellBase) and hasattr(cell, "step")
