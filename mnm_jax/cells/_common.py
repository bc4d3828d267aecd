"""What the cells share: their output, and the checks on what a user hands them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax.memory import Memory
from mnm_jax.memory._options import FORGET_LITTLE

Array = jax.Array


class MemoryTrace(NamedTuple):
    """What went into and out of a memory in one step, for memory maps (figure 5 of the paper).

    write_keys, read_keys: `[B, H, K]`. write_values, read_values: `[B, H, V]`. rate: `[B]`, the write rate beta.
    """

    write_keys: Array
    write_values: Array
    read_keys: Array
    read_values: Array
    rate: Array


class CellOutput(NamedTuple):
    """Output of a cell with a memory.

    features: `[B, F]` what goes on to the next layer.
    meta_loss: `[B]` the step's term of the meta objective (equation 5), or None for a memory that has none.
    write: `WriteInfo`, or None for a memory that is no network.
    trace: keys, values and rate of the step.
    """

    features: Array
    meta_loss: Array | None
    write: Any
    trace: MemoryTrace


def split_output(outputs: Any) -> tuple[Array, Array | None]:
    """(features, meta loss or None) of any cell's outputs: a plain array is all features."""
    if isinstance(outputs, CellOutput):
        return outputs.features, outputs.meta_loss
    return outputs, None


def output_features(cell: nnx.RNNCellBase) -> int:
    """Number of features a cell puts out; flax's own cells put out their hidden state."""
    return getattr(cell, "out_features", None) or cell.hidden_features


# The hidden state of a fresh LSTM is small: a gain above one keeps the keys from shrinking with it. Small keys all look
# alike to the memory, each write overwrites the one before, and learning waits.
interaction_init = nnx.initializers.variance_scaling(3.0**2, "fan_in", "truncated_normal")


def make_gates(in_features: int, memory: Memory, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """The linear map to the write rate and the memory's other gates, before their sigmoid."""
    linear = nnx.Linear(in_features, 1 + len(memory.gates), param_dtype=dtype, rngs=rngs)
    if "forget" in memory.gates:
        linear.bias[...] = linear.bias[...].at[1 + memory.gates.index("forget")].set(FORGET_LITTLE)
    return linear


def split_gates(memory: Memory, gates: Array) -> tuple[Array, dict[str, Array]]:
    """The write rate `[B]` and the memory's other gates by name, from `[B, 1 + their number]`."""
    return gates[:, 0], {name: gates[:, 1 + place] for place, name in enumerate(memory.gates)}


def orthogonal_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """An orthogonal matrix of any dtype; the QR decomposition behind it has no half precision, so it is cast last."""
    drawn_in = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    return jax.nn.initializers.orthogonal()(key, shape, drawn_in).astype(dtype)


def check_sizes(**sizes: int) -> None:
    """Raises ValueError unless every named size is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}.")


def check_inputs(inputs: Array, in_features: int) -> None:
    """Raises ValueError unless inputs are `[B, in_features]`."""
    if inputs.ndim != 2 or inputs.shape[1] != in_features:
        raise ValueError(f"inputs must have shape [B, {in_features}], got {inputs.shape}.")
