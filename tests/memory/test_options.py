"""Tests each option of a write against the paper's memory, numpy or optax, and all of them in a cell."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnm_jax import MNMCell, WriteOptions, choose_form, gradient_memory, local_memory, matrix_memory, unroll
from mnm_jax.memory._pair_memory import _square
from mnm_jax.testing._contract import assert_derivatives
from tests.compiled import compiled

B, H, K, V = 3, 2, 5, 4
FACTORIES = {"mnm-g": gradient_memory, "mnm-p": local_memory}
RATE, FORGET, MOMENTUM = np.array([0.2, 0.5, 0.9]), np.array([0.3, 0.0, 0.6]), np.array([0.9, 0.4, 0.0])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def make(rule, options, hidden=(6, 7), **more):
    memory = compiled(FACTORIES[rule](K, V, hidden_sizes=hidden, param_dtype=jnp.float64, options=options, **more))
    params = memory.init(jax.random.key(0))
    return memory, params, memory.start(params, B)


def pairs(steps, heads=H):
    return zip(normal(1, steps, B, heads, K), normal(2, steps, B, heads, V), strict=True)


def change_at_rate_one(rule, params, weights, keys, values):
    """Returns G of one write of the paper's memory, one array per layer."""
    memory, _, state = make(rule, WriteOptions())
    new, _ = memory.write(params, state._replace(weights=weights), keys, values, np.ones(B))
    return [np.asarray(old) - w for old, w in zip(weights, new.weights, strict=True)]


def along(gate, w):
    return np.asarray(gate).reshape(-1, *[1] * (w.ndim - 1))


def assert_equal_weights(state, expected):
    for w, e in zip(state.weights, expected, strict=True):
        np.testing.assert_allclose(w, e, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize(("forget", "momentum"), [(True, True), (True, False), (False, True)])
def test_forgetting_and_momentum_are_those_of_titans(rule, forget, momentum, x64):
    memory, params, state = make(rule, WriteOptions(forget=forget, momentum=momentum))
    gates = {"forget": FORGET} if forget else {}
    gates |= {"momentum": MOMENTUM} if momentum else {}
    assert memory.gates == tuple(gates)
    weights, surprise = [np.asarray(w) for w in state.weights], [0.0] * 3
    for keys, values in pairs(3):
        old = weights
        changes = change_at_rate_one(rule, params, tuple(weights), keys, values)
        past = [along(MOMENTUM, s) * s if momentum and np.ndim(s) else 0 for s in surprise]
        surprise = [p - along(RATE, g) * g for p, g in zip(past, changes, strict=True)]
        kept = [along(1 - FORGET, w) * w if forget else w for w in weights]
        weights = [w + s for w, s in zip(kept, surprise, strict=True)]
        state, info = memory.write(params, state, keys, values, RATE, **gates)
        assert_equal_weights(state, weights)
        moved = np.sqrt(sum(np.sum((w - o) ** 2, (1, 2)) for w, o in zip(weights, old, strict=True)))
        np.testing.assert_allclose(info.update_norm, moved, rtol=1e-9)


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("forget", [True, False])
def test_max_norm_bounds_the_change_at_rate_one(rule, forget, x64):
    keys, values = next(pairs(1))
    _, params, start = make(rule, WriteOptions())
    changes = change_at_rate_one(rule, params, start.weights, keys, values)
    size = np.sqrt(sum(np.sum(g**2, (1, 2)) for g in changes))
    bound = float(np.sort(size)[1])  # one example is above, one at and one below it
    memory, params, state = make(rule, WriteOptions(max_norm=bound, forget=forget))
    written, _ = memory.write(params, state, keys, values, RATE, **({"forget": np.zeros(B)} if forget else {}))
    factor = np.asarray(RATE) * np.minimum(1, bound / size)
    assert np.sum(bound < size) == 1
    assert_equal_weights(written, [w - along(factor, g) * g for w, g in zip(state.weights, changes, strict=True)])


@pytest.mark.parametrize(("dtype", "heads"), [(jnp.float32, 1), (jnp.float32, 4), (jnp.bfloat16, 2)])
def test_never_worse_shortens_the_gradient_writes_that_would_increase_their_loss(dtype, heads):
    """Without the option a step of first order through hidden layers can overshoot, most often for short keys."""
    rng = np.random.default_rng(heads)
    lengths, draws = (1e-3, 0.1, 0.3, 1.0, 10.0, 100.0, 1e4), 8
    keys = rng.normal(size=(2, len(lengths), draws, heads, K))
    keys[1] = keys[1, ..., :1, :] + 0.1 * keys[1]  # nearly equal
    keys *= np.asarray(lengths)[:, None, None, None] / np.linalg.norm(keys, axis=-1, keepdims=True)
    keys = jnp.asarray(keys.reshape(-1, heads, K), dtype)
    values, rate = jnp.asarray(rng.normal(size=(len(keys), heads, 8)), dtype), jnp.ones(len(keys), dtype)

    def worse(**options):
        memory = compiled(gradient_memory(K, 8, hidden_sizes=(6,), param_dtype=dtype, options=WriteOptions(**options)))
        params = memory.init(jax.random.key(0))
        _, info = memory.write(params, memory.start(params, len(keys)), keys, values, rate)
        before, after = (np.asarray(x, np.float32).reshape(2, len(lengths), draws) for x in info[:2])
        return np.mean(after > before * (1 + 4 * float(jnp.finfo(dtype).eps)), axis=-1)

    assert np.max(worse()[:, 1]) > 0.3, "keys of length 0.1"
    assert np.max(worse(never_worse=True)) == 0


@pytest.mark.parametrize("rule", FACTORIES)
def test_never_worse_takes_the_longest_of_five_writes(rule, x64):
    keys, values = next(pairs(1))
    plain, params, state = make(rule, WriteOptions(), (6,))
    keys = keys * np.array([1.0, 0.2, 0.06])[:, None, None]
    rate, tried = np.array([1.0, 0.7, 1.0]), [1.0, 1 / 4, 1 / 16, 1 / 64, 0.0]
    each = jax.device_get([plain.write(params, state, keys, values, a * rate) for a in tried])
    memory, _, _ = make(rule, WriteOptions(never_worse=True), (6,))
    written, info = jax.device_get(memory.write(params, state, keys, values, rate))
    best = [next(n for n, (_, info) in enumerate(each) if info.loss_after[b] <= info.loss_before[b]) for b in range(B)]
    assert len(set(best)) > 1
    for b, n in enumerate(best):
        np.testing.assert_allclose(info.loss_after[b], each[n][1].loss_after[b], rtol=1e-9)
        for w, expected in zip(written.weights, each[n][0].weights, strict=True):
            np.testing.assert_allclose(w[b], expected[b], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("others", "names"), [({"forget": True}, "forget"), ({"optimizer": optax.sgd(0.1)}, "optimizer")]
)
def test_never_worse_refuses_options_that_change_more_than_the_write(others, names):
    with pytest.raises(ValueError, match=f"never_worse must be False with {names}, got True"):
        make("mnm-g", WriteOptions(never_worse=True, **others))


@pytest.mark.parametrize("rule", ["mnm-p", pytest.param("mnm-g", marks=pytest.mark.slow)])
def test_inner_steps_are_writes_one_after_the_other(rule, x64):
    keys, values = next(pairs(1))
    plain, params, expected = make(rule, WriteOptions())
    first = expected
    for _ in range(3):
        expected, info = plain.write(params, expected, keys, values, RATE)
    memory, params, state = make(rule, WriteOptions(inner_steps=3))
    written, several = memory.write(params, state, keys, values, RATE)
    assert_equal_weights(written, expected.weights)
    np.testing.assert_allclose(several.loss_after, info.loss_after)
    moved = [np.sum((np.asarray(a) - b) ** 2, (1, 2)) for a, b in zip(expected.weights, first.weights, strict=True)]
    np.testing.assert_allclose(several.update_norm, np.sqrt(sum(moved)), rtol=1e-9)


def test_of_several_inner_steps_the_first_alone_forgets(x64):
    keys, values = next(pairs(1))
    memory, params, state = make("mnm-g", WriteOptions(inner_steps=4, forget=True))
    written, _ = memory.write(params, state, keys, values, np.zeros(B), forget=FORGET)
    assert_equal_weights(written, [along(1 - FORGET, w) * w for w in state.weights])


@pytest.mark.parametrize("rule", FACTORIES)
@pytest.mark.parametrize("norm", ["l2", "layer"])
def test_normalised_keys_are_normalised_wherever_they_go_in(rule, norm, x64):
    keys, values = next(pairs(1))
    asked = normal(3, B, 4, K)
    plain, params, state = make(rule, WriteOptions())
    memory, _, _ = make(rule, WriteOptions(key_norm=norm))

    def by_hand(k):
        k = np.asarray(k)
        if norm == "l2":
            return k / np.linalg.norm(k, axis=-1, keepdims=True)
        return (k - k.mean(-1, keepdims=True)) / k.std(-1, keepdims=True)

    written, _ = memory.write(params, state, keys, values, RATE)
    expected, _ = plain.write(params, state, by_hand(keys), values, RATE)
    assert_equal_weights(written, expected.weights)
    np.testing.assert_allclose(
        memory.read(params, written, 5 * asked), plain.read(params, expected, by_hand(asked)), rtol=1e-9
    )


@pytest.mark.parametrize("norm", ["l2", "layer"])
def test_zero_and_constant_keys_have_finite_derivatives(norm):
    options = WriteOptions(key_norm=norm, max_norm=1.0, momentum=True)
    memory = compiled(gradient_memory(K, V, hidden_sizes=(6,), options=options))
    params = memory.init(jax.random.key(0))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradient_of(params, keys, values):
        state, info = memory.write(params, memory.start(params, B), keys, values, jnp.ones(B), momentum=jnp.ones(B))
        return jnp.sum(memory.read(params, state, keys) ** 2) + jnp.sum(info.update_norm)

    for keys in (np.zeros((B, H, K), np.float32), np.ones((B, H, K), np.float32)):
        gradients = gradient_of(params, keys, np.zeros((B, H, V), np.float32))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("rule", ["mnm-p", pytest.param("mnm-g", marks=pytest.mark.slow)])
def test_an_optax_optimiser_moves_every_example_on_its_own(rule, x64):
    optimizer = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(0.1, eps_root=1e-8))
    memory, params, state = make(rule, WriteOptions(optimizer=optimizer))
    weights = tuple(map(np.asarray, state.weights))
    begin, update = jax.jit(optimizer.init), jax.jit(optimizer.update)
    with jax.numpy_dtype_promotion("standard"):
        each = [begin([w[b] for w in weights]) for b in range(B)]
    for keys, values in pairs(3):
        changes = change_at_rate_one(rule, params, weights, keys, values)
        new = []
        for b in range(B):
            with jax.numpy_dtype_promotion("standard"):
                updates, each[b] = update([g[b] for g in changes], each[b], [w[b] for w in weights])
            new.append([w[b] + RATE[b] * np.asarray(u) for w, u in zip(weights, updates, strict=True)])
        weights = tuple(np.stack(layer) for layer in zip(*new, strict=True))
        state, _ = memory.write(params, state, keys, values, RATE)
        assert_equal_weights(state, weights)


def test_gradients_through_every_option_are_those_of_finite_differences(x64):
    options = WriteOptions("l2", 0.7, 2, optax.adam(0.3, eps_root=1e-2), momentum=True, forget=True)
    memory, params, _ = make("mnm-g", options, hidden=(3,))

    def loss(given):
        params, keys, values, rate = given
        state = memory.start(params, B)
        for step in range(2):
            gates = {"forget": rate / 3, "momentum": rate / 2}
            state, info = memory.write(params, state, keys[step], values[step], rate, **gates)
        return jnp.sum(jnp.sin(memory.read(params, state, keys[0]))) + jnp.sum(info.loss_after)

    given = (params, normal(1, 2, B, H, K), normal(2, 2, B, H, V), RATE)
    assert_derivatives(loss, given, order=1)


def test_the_delta_rule_is_deltanet(x64):
    memory = compiled(matrix_memory(K, V, options=WriteOptions(key_norm="l2"), param_dtype=jnp.float64))
    params = memory.init(jax.random.key(0))
    state, expected = memory.start(params, B), np.zeros((B, V, K))
    for keys, values in pairs(6, heads=1):
        for b in range(B):  # S <- S (I - beta k k^T) + beta v k^T, with values as columns
            k, v = np.asarray(keys[b, 0]), np.asarray(values[b, 0])
            k = k / np.sqrt(np.sum(k * k))
            beta = float(RATE[b])
            expected[b] = expected[b] @ (np.eye(K) - beta * np.outer(k, k)) + beta * np.outer(v, k)
        state, _ = memory.write(params, state, keys, values, RATE)
        np.testing.assert_allclose(state.weights[0], expected.swapaxes(1, 2), rtol=1e-9, atol=1e-12)


def test_the_hebbian_rule_with_forgetting_is_that_of_fast_weights(x64):
    memory = compiled(matrix_memory(K, V, "hebbian", options=WriteOptions(forget=True), param_dtype=jnp.float64))
    params = memory.init(jax.random.key(0))
    state, expected = memory.start(params, B), np.zeros((B, K, V))
    for keys, values in pairs(6):
        for b in range(B):  # A <- lambda A + eta sum_h k_h v_h^T
            added = sum(np.outer(keys[b, h], values[b, h]) for h in range(H))
            expected[b] = (1 - FORGET[b]) * expected[b] + RATE[b] * added
        state, _ = memory.write(params, state, keys, values, RATE, forget=FORGET)
        np.testing.assert_allclose(state.weights[0], expected, rtol=1e-9, atol=1e-12)


def test_the_delta_rule_with_unit_keys_is_the_normalised_gradient_of_a_matrix(x64):
    """A Hebbian write is the part of the delta write that does not depend on the weights."""
    unit = WriteOptions(key_norm="l2")
    delta = compiled(matrix_memory(K, V, options=unit, param_dtype=jnp.float64))
    gradient = compiled(gradient_memory(K, V, hidden_sizes=(), epsilon=0.0, options=unit, param_dtype=jnp.float64))
    hebbian = compiled(matrix_memory(K, V, "hebbian", options=unit, param_dtype=jnp.float64))
    params = delta.init(jax.random.key(0))
    states = [delta.start(params, B)] * 2
    for keys, values in pairs(3, heads=1):
        states = [m.write(params, s, keys, values, RATE)[0] for m, s in zip((delta, gradient), states, strict=True)]
    assert_equal_weights(states[0], states[1].weights)
    first = [m.write(params, m.start(params, B), keys, values, RATE)[0] for m in (delta, hebbian)]
    assert_equal_weights(first[0], first[1].weights)


CELL_OPTIONS = {
    "pairs": WriteOptions(key_norm="layer", max_norm=0.5, inner_steps=2),
    "gates": WriteOptions(forget=True, momentum=True),
    "adam": WriteOptions(optimizer=optax.adam(0.1, eps_root=1e-8)),
}


def make_cell(options, factory=gradient_memory):
    memory = factory(4, 3, hidden_sizes=(5,), options=options, param_dtype=jnp.float64)
    return MNMCell(4, 6, memory, heads=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["gates", "adam"])
def test_in_a_cell_padding_leaves_no_trace_and_a_reset_begins_anew(name, x64):
    cell, x = make_cell(CELL_OPTIONS[name]), normal(0, 6, B, 4)
    run = jax.jit(unroll)
    mask = np.array([True, False, True, True, False, True])[:, None].repeat(B, 1)
    padded = run(cell, None, np.where(mask[..., None], x, np.nan), mask=mask)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)  # noqa: E731
    jax.tree.map(close, padded[0], run(cell, None, x[mask[:, 0]])[0])
    reset = np.arange(6)[:, None].repeat(B, 1) == 2
    packed, _ = run(cell, None, x, reset=reset)
    jax.tree.map(close, packed, run(cell, None, x[2:])[0])


@pytest.mark.slow
def test_the_forms_follow_what_is_written_in_pairs(x64):
    """Compares values and gradients of several inner steps with bounded norms and normalised keys with autodiff."""
    x = normal(0, 5, B, 4)
    cell = make_cell(CELL_OPTIONS["pairs"])
    flags = np.random.default_rng(0).random((3, 5, B)) > 0.4
    flags = {"mask": flags[0], "fork": ~flags[1], "reset": ~flags[2]}

    def compare(forms, **flags):
        def loss(cell, form):
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(unroll(cell, None, x, form=form, **flags)))

        run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        expected = run(cell, "plain")
        for form in forms:
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)  # noqa: E731
            jax.tree.map(close, run(cell, form), expected)

    compare(["factored", "reversible"])
    compare(["factored"], **flags)


def test_what_is_not_written_in_pairs_runs_plain(x64):
    for name, form in {"pairs": "reversible", "gates": "plain", "adam": "plain"}.items():
        assert choose_form(make_cell(CELL_OPTIONS[name]), 1) == form
    with pytest.raises(ValueError, match="not written only in pairs, so it cannot run in form='reversible'"):
        unroll(make_cell(CELL_OPTIONS["adam"]), None, jnp.zeros((2, B, 4)), form="reversible")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_norm": "rms"}, "key_norm must be one of .* got 'rms'"),
        ({"max_norm": 0.0}, "max_norm must be > 0, got 0.0"),
        ({"inner_steps": 0}, "inner_steps must be >= 1, got 0"),
        ({"optimizer": "adam"}, "optimizer must be an optax.GradientTransformation, got str"),
    ],
    ids=str,
)
def test_options_out_of_range(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gradient_memory(K, V, hidden_sizes=(), options=WriteOptions(**options))


def test_a_write_names_the_gates_it_lacks(x64):
    keys, values = next(pairs(1))
    memory, params, state = make("mnm-p", WriteOptions(forget=True))
    with pytest.raises(ValueError, match=r"takes the gates \(forget\), got \(momentum\)"):
        memory.write(params, state, keys, values, RATE, momentum=RATE)
    with pytest.raises(ValueError, match=r"forget must have shape \[B\] = \[3\], got \(\)"):
        memory.write(params, state, keys, values, RATE, forget=jnp.array(0.5))
    with pytest.raises(ValueError, match="rule must be one of 'delta', 'hebbian', got 'oja'"):
        matrix_memory(K, V, "oja")


CANCELLING = {"equal": (1, 1, 1, 1), "opposite": (1, -1, 1, -1), "lengths": (1, -1e-3, 1e3, -1)}


@pytest.mark.parametrize(
    ("factory", "heads"),
    [
        *((matrix_memory, heads) for heads in (1, 2, 4)),
        (gradient_memory, 2),
        (local_memory, 4),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in itertools.product(FACTORIES.values(), (1, 2, 4))
            if given not in ((gradient_memory, 2), (local_memory, 4))
        ),
    ],
)
def test_max_norm_bounds_and_update_norm_measures_the_sum_of_pairs_that_cancel(factory, heads):
    """In float32, against the change of the dense weights; with saturated gates and with a bound below and above it."""
    hidden = () if factory is matrix_memory else (6, 7)
    rows = np.random.default_rng(0).normal(size=(2, B, 4, K)).astype(np.float32)
    keys = np.concatenate([rows[0, :, :1] * np.asarray(s, np.float32)[None, :heads, None] for s in CANCELLING.values()])
    keys = np.concatenate([keys, rows[0, :, :heads], 50 * rows[0, :, :1] + 0.01 * rows[1, :, :heads]])
    values = np.random.default_rng(1).normal(size=(*keys.shape[:2], V)).astype(np.float32)
    ones = np.ones(len(keys), np.float32)
    for max_norm, forget in ((None, False), (0.5, False), (0.5, True)):
        options = WriteOptions(max_norm=max_norm, forget=forget, momentum=forget)
        memory = compiled(factory(K, V, options=options, **({"hidden_sizes": hidden} if hidden else {})))
        params = memory.init(jax.random.key(0))
        state = memory.start(params, len(keys))
        gates = dict.fromkeys(memory.gates, 0 * ones)
        written, info = memory.write(params, state, keys, values, ones, **gates)
        changes = [np.asarray(a, np.float64) - b for a, b in zip(written.weights, state.weights, strict=True)]
        moved = np.sqrt(sum(np.sum(g**2, (1, 2)) for g in changes))
        np.testing.assert_allclose(info.update_norm, moved, rtol=2e-3, atol=2e-3)
        if max_norm is not None:
            assert np.all(moved <= max_norm * 1.002 + 1e-5)


def test_the_norm_of_pairs_by_hand_and_its_derivatives(x64):
    """x_1 (x) (1, 0) + x_2 (x) (-1, 2) with x_1 = (3, 4), x_2 = (3, 4): the sum is x_1 (x) (0, 2), of norm 10."""
    square = jax.jit(_square)
    x, delta = np.array([[[3.0, 4.0], [3.0, 4.0]]]), np.array([[[1.0, 0.0], [-1.0, 2.0]]])
    np.testing.assert_allclose(square(x, delta), [100.0], rtol=1e-12)
    np.testing.assert_array_equal(square(x, delta * np.array([[[1.0, 0.0]]])), [0.0])
    x, delta = normal(0, B, 3, K), normal(1, B, 3, V)
    np.testing.assert_allclose(square(x, delta), np.sum(np.einsum("bhi,bho->bio", x, delta) ** 2, (1, 2)), rtol=1e-12)
    assert_derivatives(lambda given: jnp.sum(jnp.sin(_square(*given) / 50)), (x, delta))
