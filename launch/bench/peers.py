"""Benchmarks against other libraries.

Suite "peers": both read the same stream of inputs and compute keys and values by linear maps. The rule is the gradient
step on the mean of squares, with one head and three layers. The loss is the mean square of the values read plus the
memory's loss before each write. `titans-pytorch` differs in its activation and in a learned decay of the weights.

Suite "lstm": `LSTMCell` in `unroll`, and `torch.nn.LSTM` with the same parameters.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from launch.bench.accelerator.programs import Case
from launch.bench.forms import compile_step
from launch.bench.measure import Candidate, Group, Program, with_ratios
from mnm_jax import ParamTree, gradient_memory
from mnm_jax.memory import Memory, MemoryState

Array = jax.Array

_LAYERS = 3


def peers(
    devices: Sequence[jax.Device], *, steps: Sequence[int] = (32, 128), batch: int = 64, width: int = 128
) -> Iterator[Group]:
    """Yields a group per length: value and gradient by two of our forms, and by titans-pytorch if it is installed."""
    titans = importlib.util.find_spec("titans_pytorch") is not None
    if not titans:
        print("titans-pytorch is left out: it is not installed; pip install titans-pytorch.", file=sys.stderr)
    for t in steps:
        shape = (t, batch, width)
        makers = {form: partial(_ours, form, shape, devices) for form in ("plain", "auto")}
        if titans:
            makers["titans-pytorch"] = partial(_titans, shape, 1)
            # Eight writes computed from the same weights are a cheaper rule.
            makers["titans-pytorch, chunks of 8"] = partial(_titans, shape, 8)
        sizes = {"steps": t, "batch": batch, "width": width}
        candidates = [
            Candidate({"peer": name} | sizes, prepare, {"packages": _packages(name)})
            for name, prepare in makers.items()
        ]
        yield Group(candidates, partial(with_ratios, field="peer", reference="plain"))


def lstm(
    devices: Sequence[jax.Device], *, steps: Sequence[int] = (32, 128), batch: int = 64, width: int = 128
) -> Iterator[Group]:
    """Yields a group per length: value and gradient of our LSTM, and of `torch.nn.LSTM` if PyTorch is installed.

    Ours runs as one program on the first device, and with the batch divided over all devices, as in training.
    """
    torch = importlib.util.find_spec("torch") is not None
    if not torch:
        print("torch.nn.LSTM is left out: PyTorch is not installed; pip install torch.", file=sys.stderr)
    for t in steps:
        sizes = {"steps": t, "batch": batch, "width": width}
        case = Case({"model": "LSTM", "heads": None, "dtype": "float32"} | sizes)
        makers = {"unroll": partial(_our_lstm, case, devices[:1])}
        if len(devices) > 1:
            makers[f"unroll, {len(devices)} devices"] = partial(_our_lstm, case, devices)
        if torch:
            makers["torch.nn.LSTM"] = partial(_torch_lstm, case, devices[0].platform)
        candidates = [
            Candidate({"peer": name} | sizes, prepare, {"packages": _packages(name)})
            for name, prepare in makers.items()
        ]
        yield Group(candidates, partial(with_ratios, field="peer", reference="torch.nn.LSTM"))


class StreamOutput(NamedTuple):
    """Output of a step.

    Attributes:
      features: the value read, `[B, V]`.
      meta_loss: the loss of the memory before the write, `[B]`.
    """

    features: Array
    meta_loss: Array


class StreamCell(nnx.RNNCellBase):
    """A memory without a controller: keys, values and the write rate are linear in the input."""

    heads = 1

    def __init__(self, features: int, memory: Memory, *, rngs: nnx.Rngs):
        self.memory = nnx.static(memory)
        self.memory_params = ParamTree(memory.init(rngs.params()))
        self.maps = nnx.Linear(features, 2 * memory.key_size + memory.value_size, use_bias=False, rngs=rngs)
        self.rate = nnx.Linear(features, 1, rngs=rngs)

    @property
    def num_feature_axes(self) -> int:
        return 1

    def linear_maps(self) -> list[nnx.Linear]:
        return [self.maps, self.rate]

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> MemoryState:
        del rngs, carry_init
        return self.memory.start(self.memory_params.get_value(), input_shape[0])

    def __call__(  # type: ignore[override]  # outputs are a tuple
        self, carry: MemoryState, inputs: Array
    ) -> tuple[MemoryState, StreamOutput]:
        key_size, value_size = self.memory.key_size, self.memory.value_size
        vectors = jnp.split(self.maps(inputs)[:, None], [key_size, key_size + value_size], axis=-1)
        write_keys, write_values, read_keys = vectors
        rate = jax.nn.sigmoid(self.rate(inputs))[:, 0]
        params = self.memory_params.get_value()
        carry, info, read = self.memory.write_read(params, carry, write_keys, write_values, rate, read_keys)
        return carry, StreamOutput(read[:, 0], info.loss_before)


def _packages(peer: str) -> dict[str, str]:
    """Returns the versions of the packages that a peer needs besides this library."""
    needed = ("titans-pytorch", "torch") if peer.startswith("titans") else ("torch",) * peer.startswith("torch")
    return {name: importlib.metadata.version(name) for name in needed}


def _our_lstm(case: Case, devices: Sequence[jax.Device]) -> Program:
    cell = nnx.merge(nnx.graphdef(case.model), jax.tree.map(jnp.asarray, case.params))
    return compile_step(cell, "auto", jnp.asarray(case.inputs), devices)


def _torch_lstm(case: Case, platform: str) -> Program:
    from launch.bench.accelerator.torch_programs import torch_program  # imports PyTorch

    return torch_program(case, platform)


def _ours(form: str, shape: tuple[int, int, int], devices: Sequence[jax.Device]) -> Program:
    width = shape[2]
    memory = gradient_memory(width, width, hidden_sizes=(width,) * (_LAYERS - 1), step_size="paper")
    cell = StreamCell(width, memory, rngs=nnx.Rngs(0))
    return compile_step(cell, form, jax.random.normal(jax.random.key(0), shape), devices)


def _titans(shape: tuple[int, int, int], chunk: int) -> Program:
    """Returns the program of titans-pytorch; writes of `chunk` tokens are computed from the same weights."""
    import titans_pytorch
    import torch

    steps, batch, width = shape
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    torch.manual_seed(0)
    memory = titans_pytorch.NeuralMemory(
        dim=width,
        chunk_size=chunk,
        batch_size=chunk,
        momentum=False,
        pre_rmsnorm=False,
        mem_model_norm_add_residual=False,
        default_model_kwargs={"depth": _LAYERS, "expansion_factor": 1.0},
    ).to(device)
    stream = torch.randn(batch, steps, width, device=device)

    def run() -> None:
        memory.zero_grad()
        read, _, (loss, _) = memory(stream, return_surprises=True)
        (read.square().mean() + loss.mean()).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return Program(run)
