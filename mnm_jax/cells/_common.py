"""The outputs, the base class and the checks that the cells share.

Shape letters: `B` examples, `D` input features, `F` output features, `H` heads, `K`/`V` key and value features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._checks import check_dtypes, check_input_shape, check_inputs, check_rngs, check_sizes, is_kind
from mnm_jax._linear import dot_general
from mnm_jax._params import set_bias
from mnm_jax._precision import wide_dtype
from mnm_jax.memory import Memory, WriteInfo
from mnm_jax.memory._options import gate_biases

Array = jax.Array
ARRAY = jax.Array | np.ndarray
CarryRngs = nnx.Rngs | nnx.RngStream | None

_FLAX_CELLS = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell, nnx.GRUCell)


class MemoryTrace(NamedTuple):
    """Inputs and answers of a memory in one step, for memory maps (figure 5 of the paper).

    Attributes:
      write_keys: `[B, H, K]`.
      write_values: `[B, H, V]`.
      read_keys: `[B, H, K]`.
      read_values: `[B, H, V]`.
      rate: `[B]`, the write rate beta.
    """

    write_keys: Array
    write_values: Array
    read_keys: Array
    read_values: Array
    rate: Array


class CellOutput(NamedTuple):
    """Outputs of a cell with a memory.

    Attributes:
      features: `[B, F]`, the input of the next layer.
      meta_loss: `[B]`, the step's term of the meta objective (equation 5 of the paper), in at least float32; None for
        cells without a neural memory.
      write: measures of the write; None for cells without a neural memory.
      trace: keys, values and write rate of the step.
    """

    features: Array
    meta_loss: Array | None
    write: WriteInfo | None
    trace: MemoryTrace


class Cell(nnx.RNNCellBase):
    """Base class of the cells, with their sizes and dtypes.

    Attributes:
      in_features: `D`.
      hidden_features: features of the controller's hidden state.
      out_features: `F`.
      dtype: dtype of the computation, the outputs and the carry.
      param_dtype: dtype of the parameters.
    """

    in_features: int
    hidden_features: int
    out_features: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    def _set_up(
        self, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs, **sizes: int
    ) -> Callable[..., nnx.Linear]:
        """Checks dtypes, keys and sizes, sets the attributes, and returns `nnx.Linear` with the dtypes and keys."""
        check_sizes(**sizes)
        for name, size in sizes.items():
            setattr(self, name, size)
        self.dtype, self.param_dtype = check_dtypes(dtype, param_dtype), param_dtype
        check_rngs(rngs)
        return partial(nnx.Linear, dot_general=dot_general, dtype=self.dtype, param_dtype=param_dtype, rngs=rngs)

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of the inputs: 1."""
        return 1

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: CarryRngs = None, carry_init: nnx.Initializer | None = None
    ) -> Any:
        """Returns the carry at the start of sequences of inputs `input_shape = (B, D)`; needs no random key."""
        del rngs, carry_init
        return self._start(check_input_shape(input_shape))

    def _start(self, batch_size: int) -> Any:
        """Returns the carry at the start of `batch_size` sequences, with a buffer of its own for every leaf."""
        raise NotImplementedError

    def __call__(self, carry: Any, inputs: Array) -> tuple[Any, Any]:
        """Returns the carry and the outputs after one step with inputs `[B, D]`."""
        raise NotImplementedError


def split_output(outputs: Any) -> tuple[Array, Array | None]:
    """Returns the features and the meta loss of any cell's outputs; an array is features without a meta loss."""
    if isinstance(outputs, CellOutput):
        return outputs.features, outputs.meta_loss
    return outputs, None


def output_features(cell: Any) -> int:
    """Returns the number of output features of a cell, its `out_features`.

    The cells of flax do not have the attribute; their output is their hidden state, of size `hidden_features`.

    Raises:
      TypeError: if a cell is not one of flax's and has no `out_features`.
    """
    if type(cell) in _FLAX_CELLS:
        return cell.hidden_features
    try:
        return cell.out_features
    except AttributeError:
        name = type(cell).__name__
        raise TypeError(f"{name} has no out_features: set it to the number of features of its outputs.") from None


# The hidden state of an untrained LSTM is small. With a gain of one the keys would be small and nearly parallel: each
# write would overwrite the previous one, and learning would start late.
interaction_init = nnx.initializers.variance_scaling(3.0**2, "fan_in", "truncated_normal")


def make_gates(linear: Callable[..., nnx.Linear], in_features: int, memory: Memory) -> nnx.Linear:
    """Returns the linear map to the write rate and the memory's other gates, before their sigmoid."""
    gates = linear(in_features, 1 + len(memory.gates))
    set_bias(gates, jnp.asarray(gate_biases(memory.gates), gates.param_dtype))
    return gates


def split_gates(memory: Memory, gates: Array) -> tuple[Array, dict[str, Array]]:
    """Splits gates `[B, 1 + G]` into the write rate `[B]` and the memory's `G` other gates by name, `[B]` each."""
    return gates[:, 0], {name: gates[:, 1 + place] for place, name in enumerate(memory.gates)}


def orthogonal_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Returns a random orthogonal matrix of any dtype; the QR decomposition runs in float32 or float64."""
    return jax.nn.initializers.orthogonal()(key, shape, wide_dtype(dtype)).astype(dtype)


def check_step(cell: Any, carry: Any, kind: Any, inputs: Array, *, apart: tuple[str, ...] = ()) -> Array:
    """Checks the arguments of a step, and returns the inputs in the dtype of the computation.

    Args:
      cell: the cell, of which sizes and dtype are read.
      carry: the carry.
      kind: the type of the carry.
      inputs: `[B, D]`.
      apart: fields of which only the batch size is checked: the state of a neural memory, whose write checks the rest.

    Raises:
      TypeError: for inputs that are no real numbers, or a carry of another type or dtype.
      ValueError: for inputs that are not `[B, D]`, or a carry of another batch size.
    """
    check_inputs(inputs, "B D", D=cell.in_features)
    use = f"use initialize_carry(({inputs.shape[0]}, {inputs.shape[1]}))"
    if not isinstance(carry, kind) or (kind is tuple and len(carry) != 2):
        name = {tuple: "a pair (c, h)", ARRAY: "an array [B, hidden]"}.get(kind, getattr(kind, "__name__", ""))
        raise TypeError(f"carry must be {name}, got one of type {type(carry).__name__}: {use}.")
    shapes = [(f".{field}", getattr(getattr(carry, field), "batch_size", None)) for field in apart]
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry._replace(**dict.fromkeys(apart)) if apart else carry):
        name = jax.tree_util.keystr(path)
        shapes.append((name, (*jnp.shape(leaf), None)[0]))
        if is_kind(leaf, jnp.floating) and leaf.dtype != cell.dtype:
            raise TypeError(f"carry{name} must have the cell's dtype {jnp.dtype(cell.dtype)}, got {leaf.dtype}: {use}.")
    for name, size in shapes:
        if size is not None and size != inputs.shape[0]:
            raise ValueError(f"carry{name} must have the inputs' batch size, {inputs.shape[0]}, got {size}: {use}.")
    return inputs.astype(cell.dtype)
