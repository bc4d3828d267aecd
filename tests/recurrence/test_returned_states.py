"""Tests cells that return the state of the memory in another place than the memory's place of the carry."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnm_jax import MNMCell, local_memory, unroll

T, B, F = 5, 2, 3


class ReturnsMemory(MNMCell):
    """Returns the memory after every step among the outputs."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        return new, outputs._replace(trace=new.memory)


class TwoMemories(NamedTuple):
    """The memory, an older one, and the rest of an `MNMCarry`."""

    memory: Any
    older: Any
    rest: Any


class CarriesOlderState(MNMCell):
    """Reads the memory of the previous step, too."""

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        start = super().initialize_carry(input_shape)
        return TwoMemories(start.memory, start.memory, start._replace(memory=None))

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry.rest._replace(memory=carry.memory), inputs)
        answer = self.memory.read(self.memory_params.get_value(), carry.older, outputs.trace.read_keys)
        outputs = outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2))[:, None])
        return TwoMemories(new.memory, carry.memory, new._replace(memory=None)), outputs


class StartsAgain(MNMCell):
    """Begins every step with the initial weights."""

    def __call__(self, carry, inputs):
        start = self.memory.start(self.memory_params.get_value(), inputs.shape[0])
        return super().__call__(carry._replace(memory=start), inputs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", [ReturnsMemory, CarriesOlderState, StartsAgain])
def test_a_step_that_returns_the_memory_elsewhere_runs_plain(kind, masked):
    cell = kind(F, 6, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (T, B, F))
    flags = {"mask": jnp.ones((T, B), bool).at[3:, 1].set(False)} if masked else {}
    run = lambda form: unroll(cell, None, inputs, form=form, **flags)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, run("auto"), run("plain"))
    for form in ("reversible", "factored"):
        with pytest.raises(ValueError, match=r"other than through read.* use unroll\(\.\.\., form='plain'\)"):
            run(form)
