"""The programs of the suite "accelerator": value and gradient of our cells, of the layer and of softmax attention.

Shape letters: `T` steps, `B` batch, `D` features.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from launch.bench.accelerator.peaks import count_bytes
from launch.bench.attention import Attention
from launch.bench.layer import MEMORIES
from launch.bench.measure import Program, compile_timed
from mnm_jax import (
    LSTMCell,
    Memory,
    MNMCell,
    NeuralMemoryLayer,
    ParamTree,
    gradient_memory,
    local_memory,
    unroll,
    unroll_memory,
)

Array = jax.Array

# Tokens of a chunk per form of the layer; fewer in the kernel, whose registers also hold the weights of a head.
CHUNKS = {"chunks": 64, "pallas": 16}
MNM = {"MNM-p": local_memory, "MNM-g": gradient_memory}
GIVEN_KEYS = "memory: local, given keys"
_LAYERS = 3


class GivenKeys(nnx.Module):
    """The memory of MNM-p with keys, values and rates that are linear in the inputs, computed for all steps at once."""

    def __init__(self, width: int, heads: int, backend: str, dtype: Any, rngs: nnx.Rngs):
        self.memory = nnx.static(_memory(local_memory, width))
        self.memory_params = ParamTree(self.memory.init(rngs.params()))
        self.heads, self.backend, self.dtype = heads, backend, dtype
        self.to_vectors = nnx.Linear(width, 3 * heads * width + 1, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        """Returns the reads `[T, B, H, V]` of inputs `[T, B, D]`, and the mean of the meta loss."""
        vectors = self.to_vectors(inputs)
        by_head = vectors[..., 1:].reshape(*inputs.shape[:2], self.heads, -1)
        keys, values, read_keys = jnp.split(by_head, 3, -1)
        given = keys, values, jax.nn.sigmoid(vectors[..., 0]), read_keys
        _, info, reads = unroll_memory(self.memory, self.memory_params.get_value(), None, *given, backend=self.backend)
        return reads, jnp.mean(info.loss_after.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its sizes; one row is measured per form.

    The parameters are random numbers from NumPy: compiling the initialisers would take longer than the measurement.

    Attributes:
      fields: model, heads, steps, batch, width and dtype of the rows.
    """

    fields: Mapping[str, Any]

    @property
    def model(self) -> Any:
        """The model, with shapes instead of arrays."""
        return self.model_in("chunks")

    def model_in(self, form: str) -> Any:
        """Returns the model for a form, since a kernel is chosen in the constructor of its model.

        Raises:
          ValueError: for a layer that has no kernel.
        """
        fields = (self.fields[name] for name in ("model", "heads", "width", "dtype"))
        return _abstract_model(*fields, form if form in CHUNKS else "chunks")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape `[T, B, D]` of the inputs."""
        return self.fields["steps"], self.fields["batch"], self.fields["width"]

    @functools.cached_property
    def params(self) -> Any:
        """NumPy arrays: matrices ~ N(0, 1 / fan_in), and vectors of zeros."""
        draw = np.random.default_rng(0).standard_normal

        def fill(leaf: Any) -> np.ndarray:
            numbers = draw(leaf.shape) / leaf.shape[-2] ** 0.5 if len(leaf.shape) > 1 else np.zeros(leaf.shape)
            return numbers.astype(leaf.dtype)

        return jax.tree.map(fill, nnx.state(self.model, nnx.Param))

    @functools.cached_property
    def inputs(self) -> np.ndarray:
        """Standard normal, `[T, B, D]`, float32."""
        return np.random.default_rng(1).standard_normal(self.shape, np.float32)

    @functools.cached_property
    def on_device(self) -> dict[jax.Device, Any]:
        """The arguments per device, shared by the forms; filled by `program`."""
        return {}

    def value_and_grad(self, form: str) -> Callable[[Any, Array], tuple[Array, Any]]:
        """Returns `(params, inputs) -> (loss, gradients)`.

        The loss is the mean square of the outputs, plus the mean of the meta loss if there is one.
        """
        graphdef = nnx.graphdef(self.model_in(form))

        def loss(params: Any, inputs: Array) -> Array:
            model = nnx.merge(graphdef, params)
            outputs, meta_loss = _run(model, inputs.astype(model.dtype), form)
            return jnp.mean(jnp.square(outputs.astype(jnp.float32))) + meta_loss

        return jax.value_and_grad(loss)

    def flops(self, form: str) -> float | None:
        """Returns the operations of value and gradient, as XLA counts them in the program before its optimisation.

        XLA counts the body of a loop once. Cells are therefore counted in the form "plain" over one step, the layer
        over one chunk, and the result is multiplied by their number. None: XLA cannot count here.
        """
        if form == "pallas":
            form = "chunks"  # with equal counts, the rates of both forms can be compared
        form = form if isinstance(self.model, NeuralMemoryLayer) else "xla"
        if form not in self._flops:
            self._flops[form] = self._count_flops(form)
        return self._flops[form]

    @functools.cached_property
    def _flops(self) -> dict[str, float | None]:
        return {}

    def _count_flops(self, form: str) -> float | None:
        steps = self.shape[0]
        unit = steps if isinstance(self.model, Attention) else CHUNKS.get(form, 1)
        form = "plain" if isinstance(self.model, nnx.RNNCellBase) else form
        inputs = jax.ShapeDtypeStruct((unit, *self.shape[1:]), jnp.float32)
        try:
            # Lowered for a TPU, since on a CPU some products are loops; nothing is compiled.
            with jax.default_device(jax.devices("cpu")[0]), jax.numpy_dtype_promotion("standard"):
                shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
                traced = jax.jit(self.value_and_grad(form)).trace(shapes, inputs)
                cost = traced.lower(lowering_platforms=("tpu",)).cost_analysis()
        except RuntimeError:
            return None
        return cost["flops"] * steps / unit if cost else None

    def bytes_moved(self, form: str) -> float:
        """Returns the bytes that value and gradient move at least; see `count_bytes`."""
        return count_bytes(self.model_in(form), form, self.shape)

    def program(self, form: str, device: jax.Device) -> Program:
        """Compiles value and gradient for a device; the arguments are copied there at the first run."""
        place = SingleDeviceSharding(device)
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), (self.params, self.inputs)
        )
        precision = "highest" if self.fields["dtype"].endswith("highest") else "default"
        # JAX's own attention relies on the standard promotion of dtypes.
        with jax.default_matmul_precision(precision), jax.numpy_dtype_promotion("standard"):
            compiled, temp_bytes, seconds = compile_timed(jax.jit(self.value_and_grad(form)), shapes, 1)

        def run() -> Any:
            if device not in self.on_device:
                self.on_device[device] = jax.device_put((self.params, self.inputs), place)
            return jax.block_until_ready(compiled(*self.on_device[device]))

        return Program(run, temp_bytes, seconds)


@functools.lru_cache(32)
def _abstract_model(name: str, heads: int, width: int, dtype: str, form: str) -> nnx.Module:
    """Returns a model with shapes instead of arrays; `form`, of `CHUNKS`, applies to models with a kernel."""

    def make() -> nnx.Module:
        settings: Any = {"dtype": jnp.bfloat16 if dtype == "bfloat16" else jnp.float32, "rngs": nnx.Rngs(0)}
        if name == "LSTM":
            return LSTMCell(width, width, **settings)
        if name == "attention":
            return Attention(width, heads, **settings)
        if name in MNM:
            return MNMCell(width, width, _memory(MNM[name], width), heads=heads, **settings)
        backend = "pallas" if form == "pallas" else "xla"
        if name == GIVEN_KEYS:
            return GivenKeys(width, heads, backend, **settings)
        settings |= MEMORIES[name.removeprefix("layer: ")]
        return NeuralMemoryLayer(width, heads=heads, chunk=CHUNKS[form], backend=backend, **settings)

    return nnx.eval_shape(make)


def _memory(factory: Any, width: int) -> Memory:
    return factory(width, width, hidden_sizes=(width,) * (_LAYERS - 1))


def _run(model: Any, inputs: Array, form: str) -> tuple[Array, Array]:
    """Returns the outputs `[T, B, ...]`, and the mean of the meta loss or zero."""
    zero = jnp.zeros((), jnp.float32)
    if isinstance(model, GivenKeys):
        return model(inputs)
    if isinstance(model, Attention):
        return model(inputs, form), zero
    if isinstance(model, NeuralMemoryLayer):
        if form in CHUNKS:
            return model(None, inputs)[1], zero
        return jax.lax.scan(model.step, model.initialize_carry(inputs.shape[1:]), inputs)[1], zero
    _, outputs = unroll(model, None, inputs, form=form)
    if isinstance(model, MNMCell):
        return outputs.features, jnp.mean(outputs.meta_loss.astype(jnp.float32))
    return outputs, zero
