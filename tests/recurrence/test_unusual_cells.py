"""Tests cells that drop writes, read older states or change their kernels: every form computes the same."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from mnm_jax import (
    MNMCell,
    NeuralMemoryLayer,
    gradient_memory,
    local_memory,
    matrix_memory,
    rule_memory,
    unroll,
    value_and_grad,
)
from mnm_jax.memory._rules import LocalRule
from mnm_jax.recurrence._fast import adjoint

T, B, F = 5, 2, 3


class ReadsOlderState(MNMCell):
    """Reads the state before the write once more after it."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        params, keys = self.memory_params.get_value(), outputs.trace.write_keys
        older = self.memory.read(params, carry.memory, keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(older, (1, 2))[:, None])


class DropsWrite(MNMCell):
    """Writes and reads in a state that it then drops, before or after the write that it keeps."""

    after = False

    def __call__(self, carry, inputs):
        params, key = self.memory_params.get_value(), jnp.tanh(inputs[:, None] @ jnp.ones((F, 4)) * 0.3)
        new, outputs = super().__call__(carry, inputs)
        base = new.memory if self.after else carry.memory
        dropped, _ = self.memory.write(params, base, key, key, outputs.trace.rate)
        answer = self.memory.read(params, dropped, outputs.trace.read_keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2))[:, None])


class DropsLaterWrite(DropsWrite):
    after = True


class DropsWiderWrite(MNMCell):
    """Drops a write of three keys, and keeps one of one key."""

    def __call__(self, carry, inputs):
        params, key = self.memory_params.get_value(), jnp.tanh(inputs[:, None] @ jnp.eye(F, 4))
        new, outputs = super().__call__(carry, inputs)
        keys = jnp.concatenate([jnp.roll(key, shift, -1) for shift in range(3)], 1)
        dropped, _ = self.memory.write(params, carry.memory, keys, keys, outputs.trace.rate)
        answer = self.memory.read(params, dropped, outputs.trace.read_keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2))[:, None])


class Reparametrised(nnx.Linear):
    """Multiplies by the tanh of its kernel."""

    def __call__(self, x):
        return (
            self.dot_general(x, jnp.tanh(self.kernel.get_value()), (((x.ndim - 1,), (0,)), ((), ())))
            + self.bias[...][None]
        )


class Transposed(nnx.Linear):
    """Multiplies by the transposed kernel."""

    def __call__(self, x):
        return self.dot_general(x, self.kernel.get_value(), (((x.ndim - 1,), (1,)), ((), ()))) + self.bias[...][None]


def doubled(x, kernel, *args, **kwargs):
    return 2 * jax.lax.dot_general(x, kernel, *args, **kwargs)


class SquashedTargets(LocalRule):
    """The local rule, with the tanh of its target maps."""

    def pairs(self, network, targets, weights, keys, values):
        squashed = targets._replace(kernel=jnp.tanh(targets.kernel))
        return super().pairs(network, squashed, weights, keys, values)


class WithOtherLeaves(MNMCell):
    """Has leaves that have no derivative: a table of integers, and the random keys of a dropout."""

    def __init__(self, *args, rngs, **options):
        super().__init__(*args, rngs=rngs, **options)
        self.table = nnx.Variable(jnp.array([1, 0, 2]))
        self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)

    def __call__(self, carry, inputs):
        return super().__call__(carry, self.dropout(inputs[:, self.table[...]]))


def make_cell(change):
    double = {"param_dtype": jnp.float64}
    if change is SquashedTargets:
        memory = rule_memory(4, 4, SquashedTargets("normalised", 1e-3), hidden_sizes=(4,), **double)
        return MNMCell(F, 6, memory, **double, rngs=nnx.Rngs(0))
    memory = local_memory(4, 4, hidden_sizes=(4,), **double)
    if isinstance(change, type):
        return change(F, 6, memory, **double, rngs=nnx.Rngs(0))
    return change(MNMCell(F, 6, memory, out_features=10, **double, rngs=nnx.Rngs(0)))


def with_readout(layer):
    def change(cell):
        cell.readout = layer(10, 10, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
        return cell

    return change


def with_doubled_product(cell):
    cell.readout = nnx.Linear(10, 10, dot_general=doubled, param_dtype=jnp.float64, rngs=nnx.Rngs(1))
    return cell


class Rematerialised(nnx.Linear):
    """A map that JAX computes again in the backward pass."""

    def __call__(self, x):
        return jax.checkpoint(lambda kernel: self.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))))(
            self.kernel.get_value()
        )


class LooksForStorage(MNMCell):
    """Reads from the `storage` of the state if it has one, as that of a gated memory does."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        weights = getattr(new.memory, "storage", new.memory)
        answer = weights.product(0, outputs.trace.read_keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2))[:, None])


KINDS = {
    "looks for a storage": LooksForStorage,
    "map in a transformation": with_readout(Rematerialised),
    "reads an older state": ReadsOlderState,
    "drops a write": DropsWrite,
    "drops a later write": DropsLaterWrite,
    "drops a wider write": DropsWiderWrite,
    "reparametrised map": with_readout(Reparametrised),
    "transposed map": with_readout(Transposed),
    "product of its own": with_doubled_product,
    "changed kernel of the rule": SquashedTargets,
    "leaves without a derivative": WithOtherLeaves,
}


@functools.partial(jax.jit, static_argnames=("graphdef", "form"))
def differentiate(graphdef, params, others, inputs, form, flags):
    def loss(params, inputs):
        carry, outputs = unroll(nnx.merge(graphdef, params, others), None, inputs, form=form, **flags)
        return jnp.sum(jnp.sin(outputs.features)) + sum(jnp.sum(w**2) for w in carry.memory.weights)

    return jax.value_and_grad(loss, (0, 1))(params, inputs)


def value_and_gradient(cell, form, **flags):
    graphdef, params, others = nnx.split(cell, nnx.Param, ...)
    return differentiate(graphdef, params, others, np.random.default_rng(1).normal(size=(T, B, F)), form, flags)


CELLS = {kind: functools.cache(functools.partial(make_cell, change)) for kind, change in KINDS.items()}


# The fast suite runs these in "factored" only. "reversible" differs in that it recomputes the pairs without weights,
# which the other kinds cover.
IN_ONE_FORM = ("looks for a storage", "leaves without a derivative")
CASES = [
    pytest.param(kind, form, marks=[pytest.mark.slow] * (form == "reversible" and kind in IN_ONE_FORM))
    for kind in KINDS
    for form in ("reversible", "factored")
]


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_every_form_computes_the_same(x64, kind, form):
    cell = CELLS[kind]()
    none, every = np.zeros((T, B), bool), np.ones((T, B), bool)
    fork, mask = none.copy(), every.copy()
    fork[2, 0], mask[3:, 1] = True, False
    for flags in ({}, {"fork": fork, "mask": mask}):
        # With all flags as arrays, "plain" is one program per cell.
        expected = value_and_gradient(cell, "plain", **{"fork": none, "mask": every} | flags)
        found = value_and_gradient(cell, form, **flags)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), found, expected)


def test_a_wider_write_may_be_dropped_in_a_sequence_with_resets(x64):
    cell, reset = make_cell(DropsWiderWrite), jnp.zeros((T, B), bool).at[2, 0].set(True)
    expected, found = (value_and_gradient(cell, name, reset=reset) for name in ("plain", "auto"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rule", [local_memory, gradient_memory])
def test_the_gradients_of_all_maps_of_a_cell_are_one_product_per_sequence(monkeypatch, rule, dtype):
    """Also if a map casts its kernel: a kernel in doubt would be differentiated step by step, at a higher cost."""
    traced = []
    make = adjoint._Shapes
    monkeypatch.setattr(adjoint, "_Shapes", lambda **fields: traced.append(fields) or make(**fields))
    memory = rule(4, 4, hidden_sizes=(4,))
    cell = MNMCell(F, 6, memory, out_features=10, follow_keys=True, dtype=dtype, rngs=nnx.Rngs(0))
    jax.eval_shape(lambda: unroll(cell, None, jnp.zeros((T, B, F), dtype), form="reversible"))
    (shapes,) = traced
    assert shapes["plain"] == [True] * (len(cell.linear_maps()) + (rule is local_memory))


def test_a_cell_that_drops_its_only_write_runs_plain():
    class OnlyReads(MNMCell):
        def __call__(self, carry, inputs):
            new, outputs = super().__call__(carry, inputs)
            return new._replace(memory=carry.memory), outputs

    cell = OnlyReads(F, 6, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(0), (T, B, F))
    with pytest.raises(ValueError, match=r"has no write: use unroll\(\.\.\., form='plain'\)"):
        unroll(cell, None, inputs, form="reversible")
    for found, expected in zip(
        *(jax.tree.leaves(unroll(cell, None, inputs, form=f)) for f in ("auto", "plain")), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


class Checkpointed(MNMCell):
    """Reads once more, in a program that JAX computes again in the backward pass."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        params = self.memory_params.get_value()
        answer = jax.checkpoint(lambda keys: self.memory.read(params, new.memory, keys))(outputs.trace.read_keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2))[:, None])


class WritesOrNot(MNMCell):
    """Selects the memory after or before the write, for all examples at once."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        memory = jax.lax.cond(jnp.sum(inputs) > 0, lambda: new.memory, lambda: carry.memory)
        return new._replace(memory=memory), outputs


class Stopped(MNMCell):
    """Takes the memory as a constant."""

    def __call__(self, carry, inputs):
        return super().__call__(carry._replace(memory=jax.lax.stop_gradient(carry.memory)), inputs)


class Mapped(MNMCell):
    """Reads with one key after the other by `jax.vmap`."""

    def __call__(self, carry, inputs):
        new, outputs = super().__call__(carry, inputs)
        params, keys = self.memory_params.get_value(), outputs.trace.read_keys
        answer = jax.vmap(lambda key: self.memory.read(params, new.memory, key[:, None]), 1, 1)(keys)
        return new, outputs._replace(features=outputs.features + jnp.sum(answer, (1, 2, 3))[:, None])


class ReadsWeights(MNMCell):
    """Uses the norm of the weights themselves."""

    def __call__(self, carry, inputs):
        norm = sum(jnp.sum(w**2, (1, 2)) for w in carry.memory.weights)
        return super().__call__(carry, inputs + norm[:, None])


class LooksForWeights(MNMCell):
    """Uses the norm of the weights if the state has any, as code that accepts every kind of memory may do."""

    def __call__(self, carry, inputs):
        weights = getattr(carry.memory, "weights", ())
        norm = sum((jnp.sum(w**2, (1, 2)) for w in weights), start=jnp.zeros(inputs.shape[0], inputs.dtype))
        return super().__call__(carry, inputs + norm[:, None])


@pytest.mark.parametrize("kind", [Checkpointed, Mapped, WritesOrNot, Stopped, ReadsWeights, LooksForWeights])
def test_a_step_that_transforms_the_memory_runs_plain(x64, kind):
    cell = make_cell(kind)
    expected, found = (value_and_gradient(cell, form) for form in ("plain", "auto"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)
    for form in ("reversible", "factored"):
        with pytest.raises(ValueError, match=r"transformation of JAX.* use unroll\(\.\.\., form='plain'\)"):
            value_and_gradient(cell, form)


@pytest.mark.parametrize("kind", [nnx.GRUCell, nnx.LSTMCell])
def test_cells_of_flax_begin_sequences_by_themselves(kind):
    cell = kind(F, 4, rngs=nnx.Rngs(0))
    inputs, reset = jax.random.normal(jax.random.key(0), (T, B, F)), jnp.zeros((T, B), bool).at[3].set(True)
    _, outputs = unroll(cell, None, inputs, reset=reset)
    for part in (slice(0, 3), slice(3, T)):
        _, expected = unroll(cell, cell.initialize_carry((B, F), nnx.Rngs(1)), inputs[part])
        np.testing.assert_allclose(outputs[part], expected, atol=1e-6)


def low_rank(cell):
    return nnx.LoRA(
        6, 2, cell.interaction.out_features, base_module=cell.interaction, param_dtype=jnp.float64, rngs=nnx.Rngs(1)
    )


@pytest.mark.parametrize("form", ["auto", "reversible", "factored"])
@pytest.mark.parametrize(
    ("name", "replace"),
    [("interaction", low_rank), ("readout", lambda cell: nnx.Sequential(cell.readout, nnx.tanh))],
)
def test_a_module_in_place_of_a_map_is_differentiated_step_by_step(x64, form, name, replace):
    memory = local_memory(4, 4, hidden_sizes=(4,), param_dtype=jnp.float64)
    cell = MNMCell(F, 6, memory, out_features=10, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    setattr(cell, name, nnx.data(replace(cell)))
    if name == "interaction":
        cell.interaction.lora_b[...] = jax.random.normal(jax.random.key(3), cell.interaction.lora_b.shape)
    expected, found = (value_and_gradient(cell, form) for form in ("plain", form))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), found, expected)


@pytest.mark.parametrize("form", ["reversible", "factored"])
def test_a_search_for_leaked_tracers_finds_none(form):
    cell = MNMCell(F, 5, local_memory(4, 4, hidden_sizes=(5,)), rngs=nnx.Rngs(0))

    def loss(cell, x):
        return jnp.sum(unroll(cell, None, x, form=form)[1].features)

    # The search visits every object of the process, except frozen ones: without this it takes minutes.
    gc.collect()
    gc.freeze()
    with jax.check_tracer_leaks():
        jax.eval_shape(jax.grad(loss, 1), cell, jnp.ones((T, B, F)))


def test_a_sequence_of_symbolic_length_runs_plain():
    cell = MNMCell(F, 5, local_memory(4, 4, hidden_sizes=()), rngs=nnx.Rngs(0))
    steps, batch = export.symbolic_shape("t, b")
    shape = jax.ShapeDtypeStruct((steps, batch, F), jnp.float32)
    file = export.export(jax.jit(lambda x: unroll(cell, None, x)[1].features))(shape)
    for size in ((3, 2, F), (5, 1, F)):
        x = jax.random.normal(jax.random.key(0), size)
        np.testing.assert_allclose(file.call(x), unroll(cell, None, x)[1].features, atol=1e-6)
    with pytest.raises(ValueError, match="form='reversible' needs a number of steps, got the symbolic size t"):
        export.export(jax.jit(lambda x: unroll(cell, None, x, form="reversible")[1].features))(shape)
    with pytest.raises(ValueError, match="checkpoint_every=2 needs a number of steps, got the symbolic size t: omit"):
        export.export(jax.jit(lambda x: unroll(cell, None, x, checkpoint_every=2)[1].features))(shape)
    layer = NeuralMemoryLayer(F, matrix_memory(2, 2), chunk=2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a layer needs a number of tokens, got the symbolic size t: use step"):
        export.export(jax.jit(lambda x: layer(None, x)[1]))(shape)
    gradient = value_and_grad(lambda w, x: jnp.sum(x * w), batch_axis=1, reduction="sum", micro_batch=2)
    with pytest.raises(ValueError, match="micro_batch and devices need a number of examples, got the symbolic size b"):
        export.export(jax.jit(lambda x: gradient(jnp.float32(1), x)))(shape)


def test_a_map_without_a_product_of_its_own_is_differentiated_step_by_step(x64):
    class Kernel(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (10, 10), jnp.float64))

        def __call__(self, x):
            return x @ self.kernel[...]

    memory = local_memory(4, 4, hidden_sizes=(4,), param_dtype=jnp.float64)
    cell = MNMCell(F, 6, memory, out_features=10, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.readout = Kernel()
    expected, found = (value_and_gradient(cell, form) for form in ("plain", "reversible"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), found, expected)
