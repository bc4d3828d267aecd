"""A task and a model that compile in a second; the answer at every later step is the class shown first."""

import dataclasses
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax.training import Batch, Mean, TrainConfig

T, D, H, C = 5, 4, 8, 3


class Output(NamedTuple):
    logits: jax.Array
    meta_loss: jax.Array | None
    cell: None = None


class Cell(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        shapes = [(D, H), (H, H)]
        self.weights = nnx.List([nnx.Param(0.5 * jax.random.normal(rngs.params(), shape)) for shape in shapes])

    def __call__(self, inputs, mask, fork=None):
        def step(hidden, now):
            x, unmasked, forked = now
            new = jnp.tanh(x @ self.weights[0][...] + hidden @ self.weights[1][...])
            new = jnp.where(unmasked[:, None], new, hidden)
            return new if forked is None else jnp.where(forked[:, None], hidden, new), new

        start = jnp.zeros((inputs.shape[1], H), inputs.dtype)
        return jax.lax.scan(step, start, (inputs, mask, fork))[1]


class Model(nnx.Module):
    """A plain recurrent network. Its meta loss is a norm, whose gradient at zero inputs is not finite."""

    def __init__(self, rngs: nnx.Rngs, memory: bool = True):
        self.memory = memory
        self.cell = Cell(rngs)
        self.head = nnx.Param(0.5 * jax.random.normal(rngs.params(), (H, C)))

    def __call__(self, inputs, mask, fork=None):
        hidden = self.cell(inputs, mask, fork)
        norm = jnp.sqrt(jnp.sum((inputs @ self.cell.weights[0][...]) ** 2, axis=-1))
        return Output(hidden @ self.head[...], norm if self.memory else None)


def draw(key, batch_size, step=None):
    del step  # no curriculum
    numbers = jax.random.uniform(key, (batch_size, T * D + 2))  # one draw, since each takes a second to compile
    classes = jnp.floor(C * numbers[:, 0]).astype(jnp.int32)
    lengths = 2 + jnp.floor((T - 1) * numbers[:, 1]).astype(jnp.int32)  # unequal counts on the devices
    inputs = 0.2 * (numbers[:, 2:].reshape(batch_size, T, D).swapaxes(0, 1) - 0.5)
    inputs = inputs.at[0].add(jax.nn.one_hot(classes, D))
    time = jnp.arange(T, dtype=jnp.int32)[:, None]
    mask = time < lengths[None]
    targets = jnp.broadcast_to(classes, (T, batch_size))
    return Batch(inputs, targets, (mask & (time > 0)).astype(inputs.dtype), mask)


_compiled_draw = jax.jit(draw, static_argnums=1)


def draw_numpy(seed, batch_size):
    return jax.device_get(_compiled_draw(jax.random.key(seed), batch_size))


def draw_forks(seed, batch_size):
    """Returns a batch in which every other example has forks at steps 1 and 3, if it is that long."""
    batch = draw_numpy(seed, batch_size)
    time, example = np.ogrid[:T, :batch_size]
    return batch._replace(fork=batch.mask & (time % 2 == 1) & (example % 2 == 0))


class RecallLoader:
    """Draws batch n from n; `before(n, batch)` is called first and may return another batch."""

    def __init__(self, seed, batch_size, before):
        self.seed, self.batch_size, self.before, self.position = seed, batch_size, before, 0

    def __next__(self):
        position, self.position = self.position, self.position + 1
        batch = draw_numpy(1000 * self.seed + position, self.batch_size)
        return self.before(position, batch) or batch

    def __iter__(self):
        return self

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@dataclasses.dataclass(frozen=True)
class Recall:
    """The task. reads: whether a loader yields the batches; before: see `RecallLoader`; on_evaluate: gets the split."""

    reads: bool = False
    before: Callable = lambda position, batch: None
    on_evaluate: Callable = lambda split: None
    name: str = "recall"
    input_features: int = D
    output_features: int = C

    @property
    def sample(self):
        return None if self.reads else draw

    @property
    def loader(self):
        return (lambda seed, batch_size: RecallLoader(seed, batch_size, self.before)) if self.reads else None

    def evaluations(self, split, batch_size):
        self.on_evaluate(split)
        first = {"valid": 10**6, "test": 2 * 10**6}[split]
        # The last batch is smaller, and not a multiple of the number of devices.
        return {
            "": lambda: [draw_numpy(first + i, batch_size if i < 2 else 3) for i in range(3)],
            "noise=0": lambda: [draw_forks(first + 10, batch_size)],
        }

    def loss(self, logits, batch):
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return Mean(jnp.sum(errors * batch.loss_mask), jnp.sum(batch.loss_mask))

    def metrics(self, logits, batch):
        right = jnp.where(jnp.argmax(logits, -1).astype(batch.targets.dtype) == batch.targets, batch.loss_mask, 0)
        return {"accuracy": Mean(jnp.sum(right), jnp.sum(batch.loss_mask))}

    def render(self, batch, index):
        return ""


def config(**changes):
    run = {"steps": 12, "batch_size": 8, "seed": 3, "seeds": 2, "optimizer": "sgd", "learning_rate": 0.1}
    pace = {"meta_weight": 0.5, "log_every": 3, "eval_every": 4, "checkpoint_seconds": 1e9}
    return TrainConfig(**run | pace | changes)


@pytest.fixture
def tiny():
    names = {"draw": draw, "draw_numpy": draw_numpy, "draw_forks": draw_forks}
    return types.SimpleNamespace(Recall=Recall, Model=Model, config=config, **names)
