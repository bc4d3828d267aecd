"""Tests that all execution forms compute the same values and gradients, for every rule and option."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from mnm_jax import ChainCell, LSTMCell, MNMCell, WriteOptions, choose_form, gradient_memory, local_memory, unroll
from mnm_jax.recurrence._forms import choose_checkpoints
from mnm_jax.recurrence._textbook import unroll_textbook

T, B, D = 7, 3, 4
SLOW = pytest.mark.slow  # a further case of a property that a faster test covers
# Linear memories compile in half the time; mnm-p among the cells runs "deep" in every form.
RULES = {"local": (local_memory, ()), "deep": (local_memory, (5,)), "gradient": (gradient_memory, (5,))}
FLAGS = ("mask", "reset", "fork", "reset_controller", "fork_memory")
MASK = np.random.default_rng(0).random((T, B)) > 0.3
RESET = np.random.default_rng(1).random((T, B)) > 0.6
FORK = np.random.default_rng(2).random((T, B)) > 0.6
RESET_CONTROLLER = np.random.default_rng(3).random((T, B)) > 0.5
FORK_MEMORY = np.random.default_rng(4).random((T, B)) > 0.5
CONTROLLER = {"reset_controller": RESET_CONTROLLER, "fork_memory": FORK_MEMORY}


def make(rule, heads=2, dtype=jnp.float64, step_size="normalised", use_bias=False, **options):
    factory, hidden = RULES[rule]
    memory = factory(4, 3, hidden_sizes=hidden, step_size=step_size, use_bias=use_bias, param_dtype=dtype)
    return MNMCell(D, 6, memory, heads=heads, param_dtype=dtype, rngs=nnx.Rngs(0), **options)


def evaluate(run, cell, carry, x, **options):
    """Returns carry and outputs, and the gradients of a function of them in cell, first carry (or None) and inputs."""

    def loss(arguments):
        result = run(*arguments, **options)
        return sum(jnp.sum(jnp.sin((i + 1) * leaf)) for i, leaf in enumerate(jax.tree.leaves(result))), result

    (_, result), gradients = jax.value_and_grad(loss, has_aux=True)((cell, carry, x))
    return result, gradients


@jax.jit
def evaluate_plain(cell, carry, x, flags):
    return evaluate(functools.partial(unroll, form="plain"), cell, carry, x, **flags)


def assert_forms_agree(cell, tolerance=1e-9, *, fresh=True, **options):
    """Compares all forms, including the textbook form unless resets or checkpoints are used, which it does not have."""
    forms = ("reversible", "factored", "textbook")
    if "reset" in options:  # "reversible" runs as "factored"
        forms = ("reversible",)
    elif "checkpoint_every" in options:
        forms = ("reversible", "factored")
    x = jax.random.normal(jax.random.key(0), (T, B, cell.in_features), cell.dtype)
    carry = None
    if not fresh:
        carry = jax.tree.map(
            lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype),
            cell.initialize_carry((B, cell.in_features)),
        )
    # All flags are given as arrays, so that cases share a program.
    flags = {name: np.full((T, B), name == "mask") for name in FLAGS}
    expected = evaluate_plain(cell, carry, x, {name: options.get(name, flags[name]) for name in flags})
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected[1]))
    assert largest > 0.1
    for form in forms:
        run = unroll_textbook if form == "textbook" else functools.partial(unroll, form=form)
        result = jax.jit(functools.partial(evaluate, run, **options))(cell, carry, x)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("rule", "step_size"),
    [
        ("gradient", "normalised"),
        pytest.param("local", "paper", marks=SLOW),
        pytest.param("deep", "normalised", marks=SLOW),
        pytest.param("deep", "sum", marks=SLOW),
        pytest.param("deep", "paper", marks=SLOW),
        pytest.param("gradient", "sum", marks=SLOW),
        pytest.param("gradient", "paper", marks=SLOW),
    ],
)
def test_step_sizes(rule, step_size, x64):
    assert_forms_agree(make(rule, step_size=step_size, use_bias=step_size == "sum"), mask=MASK)


# The rules alternate here and below: options, masks, forks and chunks do not depend on the rule.
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("local", {"heads": 1}),
        ("local", {"meta_window": 3, "follow_keys": True}),
        pytest.param("local", {"meta_window": 3}, marks=SLOW),
        pytest.param("local", {"follow_keys": True}, marks=SLOW),
        pytest.param("deep", {"follow_keys": True, "read_first": True}, marks=SLOW),
        pytest.param("gradient", {"follow_keys": True}, marks=SLOW),
        pytest.param("deep", {"meta_window": 3}, marks=SLOW),
        pytest.param("deep", {"read_first": True}, marks=SLOW),
        pytest.param("gradient", {"out_features": 2}, marks=SLOW),
        pytest.param("gradient", {"heads": 1}, marks=SLOW),
        pytest.param("gradient", {"meta_window": 3}, marks=SLOW),
        pytest.param("gradient", {"read_first": True}, marks=SLOW),
        pytest.param("deep", {"out_features": 2}, marks=SLOW),
    ],
    ids=str,
)
def test_options_of_the_cell(rule, options, x64):
    assert_forms_agree(make(rule, **options))


@pytest.mark.parametrize(
    ("rule", "hops", "options"),
    [
        ("local", 2, {"fork": FORK, "mask": MASK, "fresh": False}),
        pytest.param("deep", 3, {"fork": FORK, "mask": MASK, "fresh": False}, marks=SLOW),
        pytest.param("gradient", 3, {"fork": FORK, "mask": MASK, "fresh": False}, marks=SLOW),
        pytest.param("gradient", 3, {}, marks=SLOW),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_the_chained_cell(rule, hops, options, x64):
    factory, hidden = RULES[rule]
    memory = factory(9, 3, hidden_sizes=hidden, param_dtype=jnp.float64)
    cell = ChainCell(6, 6, memory, entities=2, heads=2, hops=hops, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assert_forms_agree(cell, **options)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        pytest.param("gradient", {"reset": RESET}, marks=SLOW),
        pytest.param("local", {"reset": RESET, "mask": MASK, "fresh": False}, marks=SLOW),
        pytest.param("gradient", {"reset": RESET, "mask": MASK, "checkpoint_every": 3}, marks=SLOW),
        pytest.param("deep", {"reset": RESET, "mask": MASK, "fresh": False}, marks=SLOW),
        pytest.param("deep", {"fresh": False}, marks=SLOW),
        pytest.param("deep", {"mask": MASK, "checkpoint_every": 3}, marks=SLOW),
        pytest.param("gradient", {"fresh": False, "checkpoint_every": 2}, marks=SLOW),
        pytest.param("gradient", {"fork": FORK}, marks=SLOW),
        # One chunk with all steps, as in "auto" for few steps of a wide memory; others fold the writes of each step.
        ("local", {"mask": MASK, "checkpoint_every": T}),
        ("local", {"reset": RESET, "mask": MASK, "checkpoint_every": T}),
        ("local", {"reset": RESET, "fresh": False, "checkpoint_every": 3}),
        ("local", {"fork": FORK, "mask": MASK, "reset": RESET, "fresh": False}),
        ("gradient", {"fork": FORK, "mask": MASK, "reset": RESET, "fresh": False}),
        pytest.param("deep", {"fork": FORK, "mask": MASK, "reset": RESET, "fresh": False}, marks=SLOW),
        pytest.param("deep", {"fork": FORK, "mask": MASK, "checkpoint_every": 3}, marks=SLOW),
        ("local", {"fork": FORK, "mask": MASK, "checkpoint_every": 3} | CONTROLLER),
        pytest.param("gradient", {"fork": FORK, "mask": MASK} | CONTROLLER, marks=SLOW),
        pytest.param("deep", {"fork": FORK, "mask": MASK, "checkpoint_every": 3} | CONTROLLER, marks=SLOW),
        pytest.param("deep", {"reset": RESET, "fresh": False} | CONTROLLER, marks=SLOW),
        pytest.param("deep", {"reset_controller": RESET_CONTROLLER, "fresh": False}, marks=SLOW),
        pytest.param("deep", {"fork_memory": FORK_MEMORY}, marks=SLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_masks_resets_chunks_and_a_carry(rule, options, x64):
    assert_forms_agree(make(rule, follow_keys=rule == "local"), **options)


def loop(cell, carry, x, **flags):
    """Returns carry and outputs as `unroll` does, from single steps and the definitions of the flags."""

    @jax.jit  # compiled once for all steps
    def step(cell, start, carry, x, mask, fork, reset_controller, fork_memory):
        where = lambda flag, a, b: jax.tree.map(jax.vmap(jnp.where), *(jax.tree.map(lambda _: flag, a), a, b))  # noqa: E731
        # The recent writes of `meta_window` belong to the memory.
        begun = where(reset_controller, start, carry)._replace(memory=carry.memory, recent=carry.recent)
        new, outputs = cell(begun, x)
        kept = where(fork | fork_memory | ~mask, carry, new)
        carry = where(fork | ~mask, carry, new)._replace(memory=kept.memory, recent=kept.recent)
        return carry, where(mask, outputs, jax.tree.map(jnp.zeros_like, outputs))

    start, every = cell.initialize_carry((B, D)), []
    for t in range(len(x)):
        carry, outputs = step(cell, start, carry, x[t], **{name: flag[t] for name, flag in flags.items()})
        every.append(outputs)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


@pytest.mark.parametrize("options", [{}, {"meta_window": 2, "read_first": True}], ids=str)
def test_the_controller_begins_anew_and_writes_are_discarded(options, x64):
    """Value and gradient equal the results of a loop of single steps, from a given carry, with a mask and forks."""
    cell = make("local", **options)
    flags = {"reset_controller": RESET_CONTROLLER, "fork_memory": FORK_MEMORY, "fork": FORK, "mask": MASK}
    carry = jax.tree.map(lambda leaf: leaf + 0.1, cell.initialize_carry((B, D)))
    x = jax.random.normal(jax.random.key(0), (T, B, D), jnp.float64)
    expected = evaluate(loop, cell, carry, x, **flags)
    found = evaluate_plain(cell, carry, x, flags | {"reset": np.zeros((T, B), bool)})
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_gated_memory_is_kept_where_the_controller_begins_anew():
    memory = local_memory(4, 3, hidden_sizes=(), options=WriteOptions(forget=True))
    cell = MNMCell(D, 6, memory, rngs=nnx.Rngs(0))
    x, everywhere = jnp.ones((3, B, D)), jnp.ones((3, B), bool)
    run = jax.jit(functools.partial(unroll, cell))
    last, _ = run(None, x, reset_controller=everywhere, fork_memory=everywhere.at[0].set(False))
    first, _ = run(None, x[:1])
    jax.tree.map(np.testing.assert_array_equal, last.memory, first.memory)
    again, _ = run(cell.initialize_carry((B, D))._replace(memory=first.memory), x[:1])
    np.testing.assert_allclose(last.read, again.read, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "rule"),
    [
        ("plain", "local"),
        pytest.param("plain", "gradient", marks=SLOW),
        ("factored", "gradient"),
        pytest.param("factored", "deep", marks=SLOW),
        ("reversible", "local"),
        pytest.param("reversible", "gradient", marks=SLOW),
    ],
)
def test_a_step_on_a_fork_answers_as_at_the_end_and_leaves_no_trace(rule, form, x64):
    """A question on a fork gets the answer that it gets at the end of its story, and does not change the carry."""
    cell = make(rule)
    x = jax.random.normal(jax.random.key(0), (T, B, D), jnp.float64)
    run = jax.jit(functools.partial(unroll, form=form))
    carry, outputs = run(cell, None, x, fork=FORK)
    told = ~FORK
    alone, _ = run(cell, None, x, mask=told)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), carry, alone)
    for t in np.flatnonzero(FORK.any(axis=1)):
        until = (np.arange(T) < t)[:, None] & told
        until[t] = True
        _, answers = run(cell, None, x, mask=until)
        for a, expected in zip(jax.tree.leaves(outputs), jax.tree.leaves(answers), strict=True):
            np.testing.assert_allclose(a[t], expected[t], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("rule", "interaction"),
    [
        ("local", "tanh"),
        pytest.param("deep", "tanh", marks=SLOW),
        pytest.param("gradient", "layer_norm", marks=SLOW),
    ],
)
def test_single_precision(rule, interaction):
    assert_forms_agree(make(rule, dtype=jnp.float32, interaction=interaction), tolerance=1e-4, mask=MASK)


@pytest.mark.parametrize(
    ("form", "every"),
    [
        pytest.param("plain", None, marks=SLOW),
        pytest.param("factored", None, marks=SLOW),
        ("reversible", None),
        pytest.param("reversible", 3, marks=SLOW),
        ("factored", 3),
    ],
)
def test_examples_may_be_divided_over_devices_by_shard_map(form, every, x64):
    """With its default checks: value and gradient on two devices are those on one."""
    graphdef, params = nnx.split(make("local", heads=1))
    x = jax.random.normal(jax.random.key(0), (T, 4, D), jnp.float64)
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))

    def loss(params, x):
        _, outputs = unroll(nnx.merge(graphdef, params), None, x, form=form, checkpoint_every=every)
        return jnp.mean(outputs.features**2) + jnp.mean(outputs.meta_loss)

    divided = jax.shard_map(
        jax.value_and_grad(lambda params, x: jax.lax.pmean(loss(params, x), "batch")),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, "batch")),
        out_specs=PartitionSpec(),
    )
    expected = jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params, x))
    for a, b in zip(jax.tree.leaves(jax.jit(divided)(params, x)), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", ["reversible", "factored"])
def test_shard_map_without_jit(form, x64):
    memory = local_memory(2, 2, hidden_sizes=(), param_dtype=jnp.float64)
    cell = MNMCell(2, 2, memory, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = np.cos(np.arange(8.0)).reshape(2, 2, 2)
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    run = lambda x: unroll(cell, None, x, form=form)[1].features  # noqa: E731
    divided = jax.shard_map(
        run, mesh=mesh, in_specs=PartitionSpec(None, "batch"), out_specs=PartitionSpec(None, "batch")
    )
    np.testing.assert_allclose(divided(x), jax.jit(run)(x), rtol=1e-12)


@pytest.mark.parametrize("form", ["plain", "reversible"])
def test_batch_major_sequences(form, x64):
    """If the first two axes of the inputs are swapped, the outputs' are as well, and the carry is unchanged."""
    cell = make("local")
    x = jax.random.normal(jax.random.key(0), (T, B, D), jnp.float64)
    run = jax.jit(unroll, static_argnames=("form", "time_major"))
    carry, outputs = run(cell, None, x, mask=jnp.asarray(MASK), fork=jnp.asarray(FORK), form=form)
    swapped = run(
        cell, None, jnp.swapaxes(x, 0, 1), mask=MASK.T.copy(), fork=FORK.T.copy(), form=form, time_major=False
    )
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(swapped[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(swapped[1]), strict=True):
        np.testing.assert_array_equal(a, jnp.swapaxes(b, 0, 1))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("plain", {"reset": RESET, "checkpoint_every": 2}),
        ("reversible", {"checkpoint_every": 2}),
        ("factored", {"reset": RESET}),
    ],
)
def test_empty_sequences_and_batches(form, options, x64):
    """Without steps the carry is the first carry, and other gradients are zero. Without examples results are empty."""
    cell = make("local")
    start = cell.initialize_carry((B, D))
    options = {"mask": MASK, "fork": FORK} | options

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @functools.partial(jax.grad, has_aux=True)
    def run(cell, steps, batch):
        given = {name: x[:steps, :batch] if name != "checkpoint_every" else x for name, x in options.items()}
        carry, outputs = unroll(cell, None, jnp.ones((steps, batch, D)), form=form, **given)
        return jnp.sum(carry.memory.weights[0]) + jnp.sum(outputs.features), (carry, outputs)

    gradient, (carry, outputs) = run(cell, 0, B)
    jax.tree.map(np.testing.assert_array_equal, carry, start)
    assert outputs.features.shape == (0, B, 9)
    np.testing.assert_array_equal(gradient.memory_params.get_value().weights[0], np.full((4, 3), B))
    np.testing.assert_array_equal(gradient.rate.kernel[...], 0)
    gradient, (carry, outputs) = run(cell, 3, 0)
    assert outputs.features.shape == (3, 0, 9) and carry.memory.weights[0].shape == (0, 4, 3)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_seeds_may_be_mapped(x64):
    """`vmap` over cells returns the gradient of each cell."""
    cells = [make("local"), jax.tree.map(lambda p: 0.9 * np.asarray(p), make("local"))]
    x = np.random.default_rng(0).normal(size=(T, B, D))
    leaves, tree = zip(*map(jax.tree.flatten, cells), strict=True)

    def gradient(leaves):
        def loss(leaves):
            _, outputs = unroll(jax.tree.unflatten(tree[0], leaves), None, x, form="reversible")
            return jnp.sum(outputs.features**2)

        return jax.grad(loss)(leaves)

    together = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *leaf: np.stack(leaf), *leaves))
    for i, alone in enumerate(leaves):
        for a, b in zip(together, jax.jit(gradient)(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-11)


def test_auto_never_chooses_factors_on_a_gpu_without_resets(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    wide = MNMCell(D, 6, local_memory(64, 64, hidden_sizes=()), rngs=nnx.Rngs(0))
    assert [choose_form(wide, steps) for steps in (1, 2, 64)] == ["reversible"] * 3
    assert choose_form(wide, 1, reset=True) == "factored"


def test_auto_chooses_by_length_resets_and_cell():
    cell = make("deep", dtype=jnp.float32)  # widest layer 5, two heads
    wide = MNMCell(D, 6, local_memory(64, 64, hidden_sizes=()), heads=2, rngs=nnx.Rngs(0))
    assert choose_form(cell, 100) == choose_form(cell, 1) == "reversible"  # one step of two heads exceeds 5 / 16 rows
    assert [choose_form(wide, steps) for steps in (2, 3)] == ["factored", "reversible"]
    assert choose_form(cell, 100, reset=True) == choose_form(cell, 100, form="reversible", reset=True) == "factored"
    assert choose_form(cell, 100, form="plain", reset=True) == "plain"
    assert choose_form(LSTMCell(3, 4, rngs=nnx.Rngs(0)), 100) == "plain"
    assert [choose_checkpoints(steps) for steps in (1023, 1024)] == [None, 256]
