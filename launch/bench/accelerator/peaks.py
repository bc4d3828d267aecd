"""Peak rates of devices, and the bytes that a training step moves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mnm_jax import NeuralMemoryLayer
from mnm_jax.recurrence import MemoryCell
from mnm_jax.recurrence._forms import choose_fold


class Peaks(NamedTuple):
    """Peak rates of a device: operations per second of dense matrix products, and bytes per second of its memory.

    Attributes:
      float32: with the default precision, which is TF32 on NVIDIA's devices and bfloat16 on TPUs.
      bfloat16: with bfloat16 operands.
      exact: float32 with the precision "highest": without tensor cores on NVIDIA's devices, as six bfloat16 products
        on TPUs.
      bandwidth: of the device's memory.
    """

    float32: float
    bfloat16: float
    exact: float
    bandwidth: float

    def rate(self, dtype: str) -> float:
        """Returns the peak rate of a dtype of the suite: "float32", "bfloat16" or "float32 highest"."""
        return {"float32": self.float32, "bfloat16": self.bfloat16, "float32 highest": self.exact}[dtype]


def _tpu(bfloat16: float, bandwidth: float) -> Peaks:
    return Peaks(float32=bfloat16, bfloat16=bfloat16, exact=bfloat16 / 6, bandwidth=bandwidth)


# The vendors' data sheets, without sparsity. The keys are JAX's names of the devices.
_H100 = Peaks(float32=495e12, bfloat16=989e12, exact=67e12, bandwidth=3.35e12)
_A100 = Peaks(float32=156e12, bfloat16=312e12, exact=19.5e12, bandwidth=2.04e12)
_PEAKS = {
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H100._replace(bandwidth=4.8e12),
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-SXM4-40GB": _A100._replace(bandwidth=1.56e12),
    "TPU v4": _tpu(275e12, 1.23e12),
    "TPU v5 lite": _tpu(197e12, 0.82e12),
    "TPU v5e": _tpu(197e12, 0.82e12),
    "TPU v5": _tpu(459e12, 2.77e12),
    "TPU v5p": _tpu(459e12, 2.77e12),
    "TPU v6 lite": _tpu(918e12, 1.64e12),
    "TPU v6e": _tpu(918e12, 1.64e12),
}


def find_peaks(device_kind: str) -> Peaks | None:
    """Returns the peak rates of a device; None for a device that the table does not have."""
    return _PEAKS.get(device_kind)


def count_bytes(model: nnx.Module, form: str, shape: tuple[int, int, int]) -> float:
    """Returns the bytes that value and gradient move at least, if weights travel to the device's memory at every step.

    N is the number of fast weights per example, and A the number of activations per step and example: the inputs and
    the outputs of every linear map. An activation is written and read in the forward pass and read in the backward
    pass, and its cotangent is written and read.

    ==================================  ===============================================================================
    cell with a memory, dense weights   12 N per step and example: 4 forward (read for the write, update, read), 8
                                        backward (undo the write, products, products with and update of the cotangent)
    the same, form "factored"           10 R (I + O) per layer, step and example, with R rows in the buffers on average
    memory with given keys              as a cell with dense weights
    the same, form "pallas"             5 A as above, A including the results of three products per head and layer
    layer, in chunks                    6 N per chunk and example, and 5 A per step and example
    the same, form "pallas"             2 N per chunk and example (written forward, read backward), and 5 A as above
    layer, step by step                 12 N and 5 A per step and example
    other cells                         2 P per step, for P parameters, and 5 A per step and example
    attention                           5 A per step and example
    ==================================  ===============================================================================

    Args:
      model: a cell, `NeuralMemoryLayer`, or the suite's attention or memory with given keys; may be abstract.
      form: the form of the row; PyTorch's has dense weights.
      shape: `[T, B, D]` of the inputs.
    """
    steps, batch, features = shape
    tokens = steps * batch
    if isinstance(model, MemoryCell):
        weights = model.memory_params.get_value().weights
        if form == "factored":
            rows = model.heads * min(steps, choose_fold(model)) / 2
            size = jnp.dtype(model.dtype).itemsize  # type: ignore[attr-defined]  # every cell of ours has it
            return tokens * 10 * rows * sum(sum(w.shape) for w in weights) * size
        return tokens * 12 * _bytes(weights)
    maps = [part for _, part in nnx.iter_graph(model) if isinstance(part, nnx.Linear)]
    numbers = features + sum(part.out_features for part in maps)
    activations = tokens * 5 * numbers * jnp.dtype(model.dtype).itemsize  # type: ignore[attr-defined]
    if hasattr(model, "memory_params") and not isinstance(model, NeuralMemoryLayer):
        weights = model.memory_params.get_value().weights
        if form != "pallas":
            return tokens * 12 * _bytes(weights)
        results = 3 * model.heads * sum(w.shape[1] for w in weights)  # type: ignore[attr-defined]
        return activations * (numbers + results) / numbers
    if isinstance(model, NeuralMemoryLayer):
        weights = model.memory_params.get_value().weights  # of all heads
        per_chunk = 2 if form == "pallas" else 6
        moved = 12 * steps if form == "steps" else per_chunk * steps / model.chunk
        return activations + moved * batch * _bytes(weights)
    reread = 2 * steps * _bytes(nnx.state(model, nnx.Param)) if isinstance(model, nnx.RNNCellBase) else 0
    return activations + reread


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
