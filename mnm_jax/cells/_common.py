"""The outputs, the base class and the input checks that the cells share.

Shape letters: `B` examples, `D` input features, `F` output features, `H` heads, `K`/`V` key and value features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mnm_jax._params import set_bias
from mnm_jax.memory import Memory, WriteInfo
from mnm_jax.memory._options import FORGET_LITTLE

Array = jax.Array
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
      meta_loss: `[B]`, the step's term of the meta objective (equation 5 of the paper); None for cells without a neural
        memory.
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

    @property
    def num_feature_axes(self) -> int:
        """The number of feature axes of the inputs: 1."""
        return 1

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: CarryRngs = None, carry_init: nnx.Initializer | None = None
    ) -> Any:
        """Returns the carry at the start of sequences of inputs `input_shape = (B, D)`; needs no random key."""
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


def make_gates(linear: Callable[[int, int], nnx.Linear], in_features: int, memory: Memory) -> nnx.Linear:
    """Returns the linear map to the write rate and the memory's other gates, before their sigmoid."""
    size = 1 + len(memory.gates)
    gates = linear(in_features, size)
    if "forget" in memory.gates:
        zeros = jnp.zeros(size, gates.param_dtype)
        set_bias(gates, zeros.at[1 + memory.gates.index("forget")].set(FORGET_LITTLE))
    return gates


def split_gates(memory: Memory, gates: Array) -> tuple[Array, dict[str, Array]]:
    """Splits gates `[B, 1 + G]` into the write rate `[B]` and the memory's `G` other gates by name, `[B]` each."""
    return gates[:, 0], {name: gates[:, 1 + place] for place, name in enumerate(memory.gates)}


def orthogonal_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Returns a random orthogonal matrix of any dtype; the QR decomposition runs in float32 or float64."""
    drawn_in = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    return jax.nn.initializers.orthogonal()(key, shape, drawn_in).astype(dtype)


def cast_inputs(inputs: Array, in_features: int, dtype: DTypeLike) -> Array:
    """Returns inputs in the dtype of the computation.

    Raises:
      ValueError: unless their shape is `[B, in_features]`.
    """
    if inputs.ndim != 2 or inputs.shape[1] != in_features:
        raise ValueError(f"inputs must have shape [B, {in_features}], got {inputs.shape}.")
    return inputs.astype(dtype)
