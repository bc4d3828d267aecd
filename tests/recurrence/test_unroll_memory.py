"""Tests `unroll_memory` against single writes: values and gradients, its kernel, and programs for GPUs and TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mnm_jax import (
    WriteOptions,
    custom_memory,
    gradient_memory,
    local_memory,
    matrix_memory,
    rule_memory,
    unroll_memory,
)
from mnm_jax.memory import Pair
from mnm_jax.memory._kernels import dots, on_chip, sequence, writes
from mnm_jax.memory._kernels.steps import steps
from mnm_jax.memory._rules import DeltaRule
from mnm_jax.recurrence import _unroll_memory
from tests.layers.test_pallas import DERIVATIVES

T, B, K, V = 5, 2, 6, 3
SLOW = pytest.mark.slow
MASK = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [1, 0]], bool)
RESET = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [0, 0]], bool)


def make_tokens(heads, reads, dtype=jnp.float64, sizes=(K, V), gates=()):
    """Returns keys, values, rate and read keys, and the gates by name."""
    rng = np.random.default_rng(0)
    shapes = ((heads, sizes[0]), (heads, sizes[1]), (), (reads, sizes[0]))
    keys, values, rate, read_keys = (rng.normal(size=(T, B, *shape)) for shape in shapes)
    keys[3] = keys[2]  # a key written twice
    tokens = (jnp.asarray(x, dtype) for x in (keys, values, 1 / (1 + np.exp(-rate)), read_keys))
    return *tokens, {name: jnp.asarray(rng.random((T, B)), dtype) for name in gates}


def by_writes(memory, params, state, *tokens, mask=None, reset=None):
    """Returns what `unroll_memory` returns, from single writes."""
    *tokens, gates = tokens
    mask = jnp.ones((T, B), bool) if mask is None else mask
    reset = jnp.zeros((T, B), bool) if reset is None else reset
    start = memory.start(params, B)

    def select(flags, a, b):
        return jax.tree.map(lambda a, b: jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b), a, b)

    def step(state, now):
        tokens, gates, mask, reset = now
        tokens, gates = jax.tree.map(lambda x: select(mask, x, jnp.zeros_like(x)), (tokens, gates))
        state = select(reset, start, state)
        new, *results = memory.write_read(params, state, *tokens, **gates)
        return select(mask, new, state), select(mask, results, jax.tree.map(jnp.zeros_like, results))

    state, (info, reads) = jax.lax.scan(step, state, (tokens, gates, mask, reset))
    return state, info, reads


def by_unroll(memory, params, state, *tokens, **options):
    *tokens, gates = tokens
    return unroll_memory(memory, params, state, *tokens, **gates, **options)


def by_kernel(memory, params, state, *tokens, mask=None):
    """Runs the kernel without the checks, which refuse what compiles for no device, such as float64."""
    return sequence.write_read_all(memory, params, state, *tokens[:-1], mask)


def evaluate(run, memory, *tokens, **options):
    """Returns value, results and gradients of a function of all results, from a state that has been written."""
    params = memory.init(jax.random.key(0))

    def loss(params, state, *tokens):
        results = run(memory, params, state, *tokens, **options)
        return sum(jnp.sum(jnp.sin((i + 1) * leaf)) for i, leaf in enumerate(jax.tree.leaves(results))), results

    def program(params, *tokens):
        state = jax.tree.map(lambda w: w + 0.1 * jnp.cos(w), memory.start(params, B))
        return jax.value_and_grad(loss, tuple(range(2 + len(tokens))), has_aux=True)(params, state, *tokens)

    return jax.tree.leaves(jax.jit(program)(params, *tokens))


def assert_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.max(np.abs(y), initial=0)))


def hide_padding(tokens):
    """Returns tokens with NaN where masked."""
    return jax.tree.map(lambda x: jnp.where(MASK.reshape(T, B, *[1] * (x.ndim - 2)), x, jnp.nan), tokens)


@pytest.mark.parametrize(
    ("memory", "heads", "reads"),
    [
        (functools.partial(local_memory, hidden_sizes=()), 1, 1),
        pytest.param(functools.partial(gradient_memory, hidden_sizes=(5,)), 2, 0, marks=SLOW),
        (functools.partial(matrix_memory, options=WriteOptions(forget=True, momentum=True)), 1, 2),
    ],
)
def test_all_steps_are_single_writes_with_padding_and_resets(memory, heads, reads, x64):
    memory = memory(K, V, param_dtype=jnp.float64)
    tokens = hide_padding(make_tokens(heads, reads, gates=memory.gates))
    found, expected = (evaluate(run, memory, *tokens, mask=MASK, reset=RESET) for run in (by_unroll, by_writes))
    assert_close(found, expected, 1e-10)


KERNELS = {
    "one head": (functools.partial(local_memory, hidden_sizes=(5,), activation=jax.nn.silu), 1, 2),
    "two heads": (functools.partial(local_memory, hidden_sizes=(5, 4)), 2, 0),
    "four heads": (functools.partial(local_memory, hidden_sizes=(8,)), 4, 4),
    "linear": (functools.partial(gradient_memory, hidden_sizes=(), options=WriteOptions("l2")), 2, 2),
    "gradient": (functools.partial(gradient_memory, hidden_sizes=(5, 4)), 1, 1),
    "gradient, two heads": (functools.partial(gradient_memory, hidden_sizes=(5, 4)), 2, 1),
    "gradient, sum": (functools.partial(gradient_memory, hidden_sizes=(5,), step_size="sum"), 2, 0),
    "paper": (functools.partial(local_memory, hidden_sizes=(5,), step_size="paper", condition_on_key=True), 2, 1),
    "sum": (functools.partial(local_memory, hidden_sizes=(), step_size="sum"), 1, 1),
    "delta": (matrix_memory, 1, 1),
}


@pytest.mark.parametrize("name", [next(iter(KERNELS)), *(pytest.param(name, marks=SLOW) for name in [*KERNELS][1:])])
def test_the_kernel_is_single_writes_with_padding(name, x64):
    memory, heads, reads = KERNELS[name]
    memory = memory(K, V, param_dtype=jnp.float64)
    tokens = hide_padding(make_tokens(heads, reads))
    found, expected = (evaluate(run, memory, *tokens, mask=MASK) for run in (by_kernel, by_writes))
    assert_close(found, expected, 1e-10)


@pytest.mark.parametrize("heads", [2, 4, 8])
def test_the_pair_of_heads_that_are_written_together_is_that_of_the_rule(heads, x64):
    """One key is short, so that its write fades out, and two keys are nearly equal."""
    rule = gradient_memory(K, V, hidden_sizes=()).rule
    rng = np.random.default_rng(0)
    x, errors, weights = (jnp.asarray(rng.normal(size=size)) for size in ((heads, 2 * K), (heads, V), (2 * K, V)))
    x = x.at[heads - 1].set(x[0] + 1e-3 * x[heads - 1])
    x = x.at[1].multiply(1e-3) if heads > 2 else x

    def loss(by, x, errors):  # X^T D does not depend on the rows in which the pair is given
        rows, delta = by(x, errors)
        change = rows.T @ delta
        return jnp.sum(weights * change), change

    def by_rule(x, errors):
        ((rows, delta),) = rule.steps([x[None]], [errors[None]])
        return rows[0], delta[0]

    found, expected = (
        jax.jit(jax.value_and_grad(functools.partial(loss, by), (0, 1), has_aux=True))(x, errors)
        for by in (functools.partial(steps, dots.PRODUCTS, rule), by_rule)
    )
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), 1e-8)


@SLOW
def test_the_backends_agree_in_single_precision():
    memory = local_memory(16, 16, hidden_sizes=(16,), activation=jax.nn.sigmoid)
    tokens = make_tokens(2, 1, jnp.float32, (16, 16))
    with jax.default_matmul_precision("highest"):  # a GPU or TPU would round the factors of products
        found, expected = (
            evaluate(functools.partial(by_unroll, backend=backend), memory, *tokens, mask=MASK)
            for backend in ("pallas", "auto")
        )
    assert_close(found, expected, 1e-5)


@pytest.fixture
def measured_gpu(monkeypatch):
    """Makes "auto" choose as on a GPU, also for short sequences and small layers."""
    monkeypatch.setattr(_unroll_memory, "on_measured_gpu", lambda keys: True)
    monkeypatch.setattr(sequence, "_LEAST_STEPS", T)
    monkeypatch.setattr(sequence, "_SIZES", ((16,) * 3,))


def uses_kernel(memory, *tokens, **options):
    params = jax.eval_shape(memory.init, jax.random.key(0))
    return "pallas_call" in str(jax.make_jaxpr(lambda p: by_unroll(memory, p, None, *tokens, **options))(params))


def test_auto_takes_the_kernel_where_it_was_measured_to_win(measured_gpu):
    memory, tokens = local_memory(16, 16, hidden_sizes=(16,)), make_tokens(1, 1, jnp.float32, (16, 16))
    assert uses_kernel(memory, *tokens) and not uses_kernel(memory, *tokens, backend="xla")
    found, expected = (
        evaluate(functools.partial(by_unroll, backend=backend), memory, *tokens) for backend in ("auto", "xla")
    )
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("memory", "heads", "options"),
    [
        (local_memory(16, 16, hidden_sizes=(32,)), 1, {}),
        (gradient_memory(16, 16, hidden_sizes=(16,)), 1, {}),
        (local_memory(16, 16, hidden_sizes=(16,), options=WriteOptions(never_worse=True)), 1, {}),
        (local_memory(16, 16, hidden_sizes=(16,)), 2, {}),
        (local_memory(16, 16, hidden_sizes=(16,)), 1, {"reset": RESET}),
    ],
    ids=["sizes", "rule", "options", "heads", "resets"],
)
def test_auto_takes_xla_elsewhere(memory, heads, options, measured_gpu):
    tokens = make_tokens(heads, 1, jnp.float32, (16, 16))
    assert not uses_kernel(memory, *tokens, **options)


@SLOW
def test_the_kernel_for_gpus_computes_the_same(x64, monkeypatch):
    """Runs the steps for GPUs, and the loop over them, in interpret mode."""

    def scan(step, carry, xs, *, reverse=False, on_gpu):
        return on_chip._call(on_gpu, carry, xs, reverse=reverse, in_loop=True, interpret=True)

    memory = local_memory(K, V, hidden_sizes=(5,), param_dtype=jnp.float64)
    expected = evaluate(by_kernel, memory, *make_tokens(2, 1))
    monkeypatch.setattr(writes, "scan_on_chip", scan)
    jax.clear_caches()
    assert_close(evaluate(by_kernel, memory, *make_tokens(2, 1)), expected, 1e-10)


@pytest.mark.parametrize("small", [0, 100])
def test_products_by_sums_are_products(small, monkeypatch):
    monkeypatch.setattr(dots, "_SMALL", small)
    rng = np.random.default_rng(0)
    x, c, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5), (3, 4), (5, 4)))
    for of in (dots.SUMS, dots.PRODUCTS):
        found = jax.jit(lambda of=of: (of.times(x, w), of.times_transposed(c, w), of.outer(x, c)))()
        assert_close(found, (x @ w, c @ w.T, x.T @ c), 1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")  # JAX 0.11
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("memory", "heads", "hidden"),
    [
        (local_memory, 2, ()),
        pytest.param(local_memory, 4, (32,), marks=SLOW),
        pytest.param(gradient_memory, 2, (32,), marks=SLOW),
    ],
)
def test_value_and_gradient_are_lowered_for_accelerators(memory, heads, hidden, platform):
    memory = memory(16, 16, hidden_sizes=hidden)
    tokens = make_tokens(heads, 1, jnp.float32, (16, 16))
    triton = "__gpu$xla.gpu.triton"
    checks = [export.DisabledSafetyCheck.custom_call(triton)] if platform == "cuda" else []

    def loss(leaves, *tokens):  # of the parameters, whose type cannot be serialised
        params = jax.tree.unflatten(structure, leaves)
        state, info, reads = unroll_memory(memory, params, None, *tokens, mask=MASK, backend="pallas")
        return sum(jnp.sum(x) for x in (*state.weights, info.loss_after, reads))

    leaves, structure = jax.tree.flatten(jax.eval_shape(memory.init, jax.random.key(0)))
    given = leaves, *tokens[:-1]
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))
    exported = export.export(gradient, platforms=[platform], disabled_checks=checks)(*given)
    call = triton if platform == "cuda" else "tpu_custom_call"
    assert exported.mlir_module().count(f"@{call}(") == 2  # forward and backward
    assert exported.serialize()


def given(memory=None, heads=1, reads=1, sizes=(16, 16), dtype=jnp.float32, **options):
    """Returns arguments of `unroll_memory` without the gates, for a small local memory unless another is given."""
    memory = local_memory(*sizes, hidden_sizes=(16,)) if memory is None else memory
    *tokens, _ = make_tokens(heads, reads, dtype, sizes)
    params = jax.eval_shape(memory.init, jax.random.key(0))
    names = ("memory", "params", "state", "keys", "values", "rate", "read_keys")
    return dict(zip(names, (memory, params, None, *tokens), strict=True)) | options


def with_options(**options):
    return {"memory": local_memory(16, 16, hidden_sizes=(16,), options=WriteOptions(**options))}


def custom():
    read = lambda weights, keys: keys @ weights  # noqa: E731
    return custom_memory(16, 16, init=lambda key: jnp.zeros((16, 16)), apply=read)


class OwnRule(DeltaRule):
    def steps(self, inputs, errors):
        return tuple(Pair(pair.inputs, 2 * pair.delta) for pair in super().steps(inputs, errors))


REFUSED = {
    "custom": ({"memory": custom()}, "a memory that is written in pairs, got CustomMemory"),
    "rule": (
        {"memory": matrix_memory(16, 16, "hebbian")},
        "a memory with LocalRule or DeltaRule or GradientRule, got HebbianRule",
    ),
    "own rule": (
        {"memory": rule_memory(16, 16, OwnRule())},
        "a memory with LocalRule or DeltaRule or GradientRule, got OwnRule",
    ),
    "through": (
        {"memory": local_memory(16, 16, hidden_sizes=(16,), write_through=True)},
        "a memory with write_through=False, got write_through=True",
    ),
    "bias": ({"memory": local_memory(16, 16, hidden_sizes=(), use_bias=True)}, "a memory without biases, got use_bias"),
    "inner_steps": (with_options(inner_steps=2), "a memory with inner_steps=1, got inner_steps=2"),
    "max_norm": (with_options(max_norm=1.0), "a memory with max_norm=None, got max_norm=1.0"),
    "never_worse": (with_options(never_worse=True), "a memory with never_worse=False, got never_worse=True"),
    "checkpoints": (
        {"checkpoint_every": 4},
        "checkpoint_every=None, got 4: leave it out, or pass backend='auto'",
    ),
    "reset": ({"reset": RESET}, "reset=None, got resets: change this setting, or pass backend='auto'"),
    "heads": ({"heads": 3}, r"keys to have 1, 2, 4 or 8 heads, got shape \(5, 2, 3, 16\)"),
    "reads": ({"reads": 3}, r"read_keys to have 0, 1, 2, 4 or 8 rows, got shape \(5, 2, 3, 16\)"),
    "size": (
        {"memory": local_memory(16, 24, hidden_sizes=()), "sizes": (16, 24)},
        "value_size to be 16, 32, 64 or a higher power of 2, got 24",
    ),
    "dtype": ({"dtype": jnp.bfloat16}, "dtype=float32, got bfloat16"),
    "activation": ({"memory": local_memory(16, 16, hidden_sizes=(16,), activation=jnp.sin)}, "among tanh, relu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_cannot_do_is_refused_by_name(name):
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"backend='pallas' needs .*{message}"):
        unroll_memory(**given(**settings), backend="pallas")


@pytest.mark.parametrize("name", ["forget", "momentum"])
def test_gates_are_refused_by_name(name):
    gate = {name: jnp.zeros((T, B))}
    with pytest.raises(ValueError, match=f"needs a memory without .*{name}.*, got {name}=True"):
        unroll_memory(**given(**with_options(**{name: True})), **gate, backend="pallas")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"memory": local_memory}, TypeError, "memory must be a Memory"),
        ({"params": None}, TypeError, "params must be MemoryParams, got NoneType: use the memory's init"),
        ({"state": 1}, TypeError, "state must be from start or a write, got int: use the memory's start"),
        ({"keys": jnp.ones((5, 2, 16))}, ValueError, r"keys must have shape \[T, B, H, K\] = \[T, B, H, 16\], got \(5"),
        ({"keys": jnp.ones((5, 2, 0, 16))}, ValueError, "keys must have at least one head"),
        ({"values": jnp.ones((5, 2, 2, 16))}, ValueError, r"values must have shape \[T, B, H, V\] = \[5, 2, 1, 16\]"),
        ({"rate": jnp.ones(5)}, ValueError, r"rate must have shape \[T, B\] = \[5, 2\], got \(5,\)"),
        ({"rate": jnp.ones((5, 2), jnp.bfloat16)}, ValueError, "rate must have the dtype of keys, float32, got bfloat"),
        ({"mask": MASK.T}, ValueError, r"mask must have shape \[T, B\] = \[5, 2\], got \(2, 5\)"),
        ({"reset": 1 * RESET}, TypeError, "reset must be an array of bools"),
        ({"forget": jnp.ones((5, 2))}, ValueError, r"this memory's write takes the gates \(\), got \(forget\)"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be >= 1, got 0"),
        ({"backend": "triton"}, ValueError, "backend must be one of 'auto', 'xla', 'pallas', got 'triton'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        unroll_memory(**(given() | change))


@pytest.mark.parametrize("backend", ["auto", "xla", "pallas"])
def test_the_state_of_another_memory_is_refused(backend):
    memories = [local_memory(16, 16, hidden_sizes=(width,)) for width in (16, 32)]
    params, others = (memory.init(jax.random.key(0)) for memory in memories)
    state = memories[1].start(others, 2)
    with pytest.raises(
        TypeError, match=r"state must be from this memory's start .*'weights\[0\]' is float32\[2, 16, 32"
    ):
        unroll_memory(**(given() | {"params": params, "state": state, "backend": backend}))


def test_a_state_of_another_batch_is_refused():
    arguments = given()
    state = jax.eval_shape(lambda params: arguments["memory"].start(params, 3), arguments["params"])
    with pytest.raises(ValueError, match="state must have the batch size of keys, 2, got 3"):
        unroll_memory(**(arguments | {"state": state}))


@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_a_state_of_a_memory_with_other_options_is_refused(backend):
    arguments = given()
    forgets = local_memory(16, 16, hidden_sizes=(16,), options=WriteOptions(momentum=True))
    arguments["params"] = params = jax.jit(forgets.init)(jax.random.key(0))
    with pytest.raises(TypeError, match=r"state must be from this memory's start or write, with the leaves weights"):
        unroll_memory(**(arguments | {"state": forgets.start(params, B)}), backend=backend)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_other_derivatives_of_the_kernel_are_refused_by_name(name):
    memory = matrix_memory(16, 16)
    keys, *others, _ = make_tokens(1, 1, jnp.float32, (16, 16))
    params = memory.init(jax.random.key(0))

    def loss(scale):
        return jnp.sum(unroll_memory(memory, params, None, scale * keys, *others, backend="pallas")[2])

    with pytest.raises(TypeError, match="backend='pallas'.* has no second derivatives .* pass backend='xla'"):
        jax.jit(DERIVATIVES[name](loss))(jnp.ones(()))
