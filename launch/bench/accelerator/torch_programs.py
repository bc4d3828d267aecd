"""The same models in PyTorch, run eagerly: the MNM-p cell, an LSTM and softmax attention, with given parameters.

Shape letters: `T` steps, `B` batch, `H` heads, `K`/`V` key and value features.
"""

import contextlib
import itertools
from typing import Any

import numpy as np
import torch
from flax import nnx
from torch import Tensor
from torch.nn import functional as F

from launch.bench.accelerator.programs import Case
from launch.bench.attention import HEAD_SIZE
from launch.bench.measure import Program

EPSILON = 1e-3  # the default of a memory with hidden layers


class MNM(torch.nn.Module):
    """MNM-p with the normalised step, written as a user of PyTorch would: a loop over steps, and batched products."""

    def __init__(self, cell: Any):
        super().__init__()
        params = cell.memory_params.get_value()
        self.heads, self.sizes = cell.heads, [w.shape[1] for w in params.weights]
        self.controller = torch.nn.LSTMCell(cell.controller.in_features, cell.hidden_features)
        _copy_lstm(cell.controller, self.controller, "")
        self.interaction = _linear(cell.interaction)
        self.rate = _linear(cell.rate)
        self.targets = torch.nn.Linear(*params.targets.kernel.shape)
        _set(self.targets.weight, params.targets.kernel.T)
        _set(self.targets.bias, params.targets.bias)
        self.initial = torch.nn.ParameterList([torch.nn.Parameter(_tensor(w)) for w in params.weights])

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the loss of inputs `[T, B, D]`."""
        batch = inputs.shape[1]
        weights = [w.expand(batch, *w.shape) for w in self.initial]
        key_size, value_size = self.initial[0].shape[0], self.sizes[-1]
        hidden = cell = inputs.new_zeros(batch, self.controller.hidden_size)
        read = inputs.new_zeros(batch, value_size)
        squares, meta = [], []
        for x in inputs:
            hidden, cell = self.controller(torch.cat([x, read], -1), (hidden, cell))
            u = torch.tanh(self.interaction(hidden))
            rate = torch.sigmoid(self.rate(u[:, :key_size]))[..., None]
            vectors = u[:, key_size:].view(batch, self.heads, 2 * key_size + value_size)
            keys, values, read_keys = vectors.split([key_size, value_size, key_size], -1)
            weights = self.write(weights, keys, values, rate)
            answers = _answers(weights, torch.cat([keys, read_keys], 1))
            kept, found = answers.split(self.heads, 1)
            read = found.mean(1)
            squares.append(torch.cat([hidden, read], -1).float().square().mean())
            meta.append((kept - values).float().square().mean())
        return torch.stack(squares).mean() + torch.stack(meta).mean()

    def write(self, weights: list[Tensor], keys: Tensor, values: Tensor, rate: Tensor) -> list[Tensor]:
        """Returns the weights after a write of keys `[B, H, K]` and values `[B, H, V]` at a rate `[B, 1, 1]`."""
        targets = self.targets(values).split(self.sizes, -1)
        z, written = keys, []
        for layer, (w, target) in enumerate(zip(weights, targets, strict=True)):
            x, z = z, torch.bmm(z, w.to(z.dtype))
            z = torch.tanh(z) if layer < len(weights) - 1 else z
            written.append(w - torch.bmm((rate * x).transpose(1, 2), _normalised(x, z - target)))
        return written


class LSTM(torch.nn.Module):
    """`torch.nn.LSTM`."""

    def __init__(self, cell: Any):
        super().__init__()
        self.lstm = torch.nn.LSTM(cell.in_features, cell.hidden_features)
        _copy_lstm(cell, self.lstm, "_l0")

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the loss of inputs `[T, B, D]`."""
        return self.lstm(inputs)[0].float().square().mean()


class Attention(torch.nn.Module):
    """Causal attention by `scaled_dot_product_attention`."""

    def __init__(self, attention: Any):
        super().__init__()
        self.heads = attention.heads
        self.to_vectors = _linear(attention.to_vectors)
        self.to_output = _linear(attention.to_output)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the loss of inputs `[T, B, D]`."""
        steps, batch, _ = inputs.shape
        vectors = self.to_vectors(inputs).view(steps, batch, 3, self.heads, HEAD_SIZE)
        queries, keys, values = vectors.permute(2, 1, 3, 0, 4)
        read = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.to_output(read.permute(2, 0, 1, 3).flatten(2)).float().square().mean()


def torch_program(case: Case, platform: str) -> Program:
    """Returns value and gradient of a case in PyTorch; a run returns the loss and the gradients by name.

    Raises:
      RuntimeError: if PyTorch does not see the GPU.
    """
    if platform == "gpu" and not torch.cuda.is_available():
        raise RuntimeError("this installation of PyTorch sees no GPU.")
    device = "cuda" if platform == "gpu" else "cpu"
    make: Any = {"MNM-p": MNM, "LSTM": LSTM, "attention": Attention}[case.fields["model"]]
    model = make(nnx.merge(nnx.graphdef(case.model), case.params)).to(device)
    inputs = torch.from_numpy(case.inputs).to(device)
    dtype = case.fields["dtype"]
    # TF32 for float32, as XLA does by default.
    torch.set_float32_matmul_precision("highest" if dtype.endswith("highest") else "high")
    mixed = dtype == "bfloat16"
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16) if mixed else contextlib.nullcontext():
            loss = model(inputs)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), {name: leaf.grad for name, leaf in model.named_parameters()}

    def inspect(result: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return {"value": float(result[0]), "peak_bytes": peak}

    return Program(run, inspect=inspect)


def _normalised(x: Tensor, error: Tensor) -> Tensor:
    """Returns (X X^T)^-1 E for X `[B, H, I]` and E `[B, H, O]`, regularised by a ridge r = eps^0.55.

    It computes M (I + r M), with M of `mnm_jax.memory._step_size`, whose own filter has one more factor.
    """
    square = x.float().square().sum(-1, keepdim=True)
    fading = square * EPSILON**-1.5
    scale = torch.where(square > EPSILON, square.clamp(min=EPSILON).rsqrt(), fading)
    scaled = scale * error.float()
    if x.shape[1] == 1:
        return (scale * scaled).to(error.dtype)
    unit = torch.eye(x.shape[1], device=x.device)
    ridge = torch.finfo(error.dtype).eps ** 0.55
    gram = scale * torch.bmm(x.float(), x.float().transpose(1, 2)) * scale.transpose(1, 2)
    system = torch.where(unit > 0, 1 + ridge, gram)
    once = torch.linalg.solve(system, scaled)
    return (scale * (once + ridge * torch.linalg.solve(system, once))).to(error.dtype)


def _answers(weights: list[Tensor], keys: Tensor) -> Tensor:
    z = keys
    for layer, w in enumerate(weights):
        z = torch.bmm(z, w.to(z.dtype))
        z = torch.tanh(z) if layer < len(weights) - 1 else z
    return z


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _set(parameter: Tensor, array: Any) -> None:
    with torch.no_grad():
        parameter.copy_(_tensor(array))


def _linear(linear: nnx.Linear) -> torch.nn.Linear:
    copy = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    _set(copy.weight, linear.kernel.get_value().T)
    if linear.bias is not None:
        _set(copy.bias, linear.bias.get_value())
    return copy


def _copy_lstm(cell: Any, lstm: torch.nn.Module, ending: str) -> None:
    """Copies the parameters of our LSTM, whose gates have PyTorch's order."""
    kernels = {"ih": cell.dense_i.kernel.get_value().T, "hh": cell.dense_h.kernel.get_value().T}
    biases = {"ih": 0 * cell.dense_h.bias.get_value(), "hh": cell.dense_h.bias.get_value()}
    for (kind, arrays), part in itertools.product({"weight": kernels, "bias": biases}.items(), ("ih", "hh")):
        _set(getattr(lstm, f"{kind}_{part}{ending}"), arrays[part])
