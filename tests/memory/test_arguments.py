"""Tests that wrong arguments of a memory raise a ValueError or TypeError that names the argument."""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnm_jax import unroll_memory
from mnm_jax.memory import Pair, WriteOptions, custom_memory, gradient_memory, local_memory, matrix_memory, rule_memory

B, H, K, V = 2, 2, 4, 3


def hebb(network, weights, keys, values):
    return (Pair(network.layer_inputs(keys), -values),), weights.product(0, network.layer_inputs(keys))


def init(key):
    return jnp.eye(K, V)


def apply(weights, key):
    return jnp.sum(key) * weights[0]  # for keys of any size, since errors of a user's functions pass unchanged


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


SHARED = {"learn_initial": True, "options": WriteOptions(), "param_dtype": jnp.float32}
LAYERS = {"activation": jnp.tanh, "use_bias": False, "initial_gain": 1.0}
STEP = {"step_size": "normalised", "epsilon": 1e-3, "hidden_sizes": (5,)}
FACTORIES = {
    gradient_memory: {**SHARED, **LAYERS, **STEP},
    local_memory: {**SHARED, **LAYERS, **STEP, "condition_on_key": False},
    matrix_memory: {**SHARED, "rule": "delta"},
    rule_memory: {**SHARED, **LAYERS, "rule": hebb, "hidden_sizes": ()},
    custom_memory: {
        **{name: SHARED[name] for name in ("learn_initial", "options")},
        **{"init": init, "apply": apply, "step_size": "sum", "epsilon": 1e-3},
    },
}
OPTIONS = {
    **{"key_norm": "l2", "max_norm": 1.0, "inner_steps": 1, "momentum": True, "forget": True},
    "never_worse": False,
    "optimizer": optax.sgd(0.1),
}
WRITE = {
    **{"keys": zeros(B, H, K), "values": zeros(B, H, V), "rate": zeros(B), "read_keys": zeros(B, 1, K)},
    **{"forget": zeros(B), "momentum": zeros(B)},
}
VALUES = [
    *(None, True, False, 0, 1, 2, -1, 3.5, -0.5, 0.0, 1e-9, np.nan, np.inf, -np.inf, 1j, 10**12, np.float32(2)),
    *("", "tanh", "l2", "layer", "sum", "float16", (), (3,), [2, 0], [2.0], ["a"], {}, object(), int, jnp.float32),
    *(np.bool_(True), np.int8(3), b"x", range(2), len, jnp.bfloat16, np.nan * zeros(B), zeros(B, dtype=int)),
    *(zeros(B, H, K, dtype=int),),
    *(zeros(), zeros(B), zeros(B, 1), zeros(K), zeros(H, K), zeros(B, 0, K), zeros(B, H, V), zeros(B + 1, H, K)),
    *(zeros(B, H, K, dtype=complex), zeros(B, H, K, dtype=bool), zeros(B, H, K).tolist(), jax.random.key(0)),
]
NO_FUNCTIONS = [value for value in VALUES if not callable(value)]


@functools.cache
def gated_memory():
    return gradient_memory(K, V, hidden_sizes=(5,), options=WriteOptions(forget=True, momentum=True))


def write(memory, **given):
    """Writes and reads abstractly."""

    def run():
        params = memory.init(jax.random.key(0))
        state = memory.start(params, B)
        state, info, values = memory.write_read(params, state, **given)
        return state, info, values, memory.read(params, state, given["keys"])

    return jax.eval_shape(run)


def attempt(draw: random.Random, used: set) -> tuple[list[str], str | None]:
    """Replaces one or two arguments of a call by random values; returns their names and the message of the error."""
    kind = draw.randrange(3)
    if kind == 0:
        factory = draw.choice(list(FACTORIES))
        given = {"key_size": K, "value_size": V, **FACTORIES[factory]}
    elif kind == 1:
        factory, given = local_memory, dict(OPTIONS)
    else:
        factory, given = None, dict(WRITE)
    names = draw.sample(list(given), draw.choice((1, 1, 2)))
    for name in names:  # errors of a user's functions pass unchanged
        given[name] = draw.choice(NO_FUNCTIONS if name in ("init", "apply", "rule", "activation") else VALUES)
    try:
        if factory is None:
            if draw.random() < 0.5:
                write(gated_memory(), **given)
            else:
                params = gated_memory().init(jax.random.key(0))
                del given["read_keys"]
                jax.eval_shape(lambda: gated_memory().write(params, gated_memory().start(params, B), **given))
            return names, None
        if kind == 1:
            given = {"key_size": K, "value_size": V, "hidden_sizes": (), "options": WriteOptions(**given)}
        memory = factory(**given)
        small = max(memory.key_size, memory.value_size, memory.options.inner_steps) < 10
        if small and repr(memory) not in used:
            used.add(repr(memory))
            gates = {name: zeros(B) for name in memory.gates}
            sizes = {"keys": zeros(B, H, memory.key_size), "values": zeros(B, H, memory.value_size)}
            write(memory, **sizes, read_keys=sizes["keys"], rate=zeros(B), **gates)
    except (TypeError, ValueError) as error:
        return names, str(error)
    return names, None


def fuzz(draws: int, seed: int) -> None:
    draw, used, refused = random.Random(seed), set(), 0
    for _ in range(draws):
        state = draw.getstate()
        names, message = attempt(draw, used)
        refused += message is not None
        if message is not None and not any(name in message for name in names):
            draw.setstate(state)
            pytest.fail(f"the arguments {names} are wrong, but the message does not name them: {message}")
    assert refused > draws / 2


def test_random_arguments_pass_or_are_named():
    fuzz(800, 0)


@pytest.mark.slow
def test_more_random_arguments_pass_or_are_named():
    fuzz(5000, 1)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"keys": zeros(K)}, ValueError, r"^keys must have shape \[B, H, K\] = \[[2B], H, 4\], got"),
        ({"keys": zeros(B, 0, K), "values": zeros(B, 0, V)}, ValueError, "^keys must have at least one head"),
        ({"keys": None}, TypeError, "^keys must be an array .* got None"),
        ({"keys": [[[0.0] * K]]}, TypeError, "^keys must be an array .* of type list: use jnp.asarray"),
        ({"keys": zeros(B, H, K, dtype=int)}, TypeError, "^keys must be an array of floating-point numbers, got dtype"),
        ({"keys": zeros(B, H, K, dtype=complex)}, TypeError, "^keys must be an array of floating-point numbers, got"),
        ({"values": zeros(B, 1, V)}, ValueError, r"^values must have shape \[B, H, V\] = \[2, 2, 3\], got \(2, 1, 3\)"),
        ({"rate": 0.5}, TypeError, r"^rate must be an array \[B\], got 0.5 of type float: use jnp.full\(2, 0.5\)"),
        ({"rate": 1}, TypeError, r"^rate must be an array \[B\], got 1 of type int: use jnp.full\(2, 1.0\)"),
        ({"rate": [0.5] * B}, TypeError, r"^rate must be an array \[B\], got .* of type list: use jnp.asarray"),
        (
            {"rate": np.float32(1)},
            ValueError,
            r"^rate must have shape \[B\] = \[2\], got \(\): use jnp.full\(2, rate\)",
        ),
        ({"rate": np.full(B, np.nan)}, ValueError, "^rate must be finite, got"),
        ({"rate": jnp.full(B, np.inf)}, ValueError, "^rate must be finite, got"),
        ({"forget": np.full(B, np.nan)}, ValueError, "^forget must be finite, got"),
    ],
)
@pytest.mark.parametrize("method", ["write", "write_read"])
def test_a_write_names_the_wrong_argument(changed, error, message, method):
    memory = gated_memory()
    params = memory.init(jax.random.key(0))
    given = {**WRITE, **changed}
    if method == "write":
        del given["read_keys"]
    with pytest.raises(error, match=message):
        getattr(memory, method)(params, memory.start(params, B), **given)


@pytest.mark.parametrize(
    ("factory", "changed", "error", "message"),
    [
        (local_memory, {"epsilon": np.nan}, ValueError, "^epsilon must be finite, got nan"),
        (gradient_memory, {"initial_gain": np.inf}, ValueError, "^initial_gain must be finite, got inf"),
        (gradient_memory, {"activation": "tanh"}, TypeError, "^activation must be a function, got 'tanh'"),
        (gradient_memory, {"activation": jnp.sum}, ValueError, r"^activation must return .* got \(\)"),
        (local_memory, {"hidden_sizes": 5}, TypeError, "^hidden_sizes must be a sequence of sizes such as .* got 5"),
        (local_memory, {"hidden_sizes": (5.0,)}, TypeError, r"^hidden_sizes\[0\] must be an integer"),
        (local_memory, {"condition_on_key": 1}, TypeError, "^condition_on_key must be True or False"),
        (matrix_memory, {"param_dtype": int}, TypeError, "^param_dtype must be a floating-point dtype"),
        (matrix_memory, {"key_size": True}, TypeError, "^key_size must be an integer"),
        (custom_memory, {"epsilon": np.inf}, ValueError, "^epsilon must be finite, got inf"),
        (custom_memory, {"loss": None}, TypeError, "^loss must be a function, got None"),
    ],
)
def test_a_factory_names_the_wrong_argument(factory, changed, error, message):
    with pytest.raises(error, match=message):
        factory(**{"key_size": K, "value_size": V, **FACTORIES[factory], **changed})


def test_parameters_and_states_of_another_kind_are_refused():
    memory, other = local_memory(K, V, hidden_sizes=()), gradient_memory(K, V, hidden_sizes=())
    params = memory.init(jax.random.key(0))
    state = memory.start(params, B)
    given = {name: WRITE[name] for name in ("keys", "values", "rate")}
    with pytest.raises(TypeError, match="^params must be MemoryParams, got NoneType: use the memory's init"):
        memory.start(None, B)
    with pytest.raises(TypeError, match="^batch_size must be an integer >= 0, got 2.0"):
        memory.start(params, 2.0)
    with pytest.raises(TypeError, match="^state must be from start or a write, got NoneType"):
        memory.write(params, None, **given)
    with pytest.raises(ValueError, match="^params must have the target maps of the local rule"):
        memory.write(other.init(jax.random.key(0)), state, **given)
    with pytest.raises(TypeError, match="^params must be MemoryParams, got dict: use the memory's init"):
        memory.write(params._asdict(), state, **given)


def test_parameters_that_are_integers_are_refused_by_name():
    memory = local_memory(K, V, hidden_sizes=())
    own = custom_memory(K, V, init=lambda key: {"w": jnp.eye(K, V)}, apply=lambda w, k: k @ w["w"])
    params, of_own = memory.init(jax.random.key(0)), own.init(jax.random.key(0))
    integers = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.int32), tree)  # noqa: E731
    for given, name in (
        (integers(params), r"weights\[0\]"),
        (params._replace(targets=integers(params.targets)), "tar"),
    ):
        with pytest.raises(
            TypeError, match=rf"^params.{name}.* must be floating-point numbers, got dtype int32: use as"
        ):
            memory.start(given, B)
    with pytest.raises(TypeError, match=r"^params.weights\['w'\] must be floating-point numbers, got dtype int32"):
        own.start(integers(of_own), B)


def test_parameters_of_a_memory_of_other_sizes_are_refused():
    memory, wider = (local_memory(K, V, hidden_sizes=(width,)) for width in (3, 5))
    params = memory.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"^this memory has layers of the shapes \[.* 3\), .*, got params with \[.* 5\)"
    ):
        memory.start(wider.init(jax.random.key(0)), B)
    other = local_memory(K, V, hidden_sizes=(3,), condition_on_key=True)
    given = {name: WRITE[name] for name in ("keys", "values", "rate")}
    with pytest.raises(ValueError, match=r"^the target maps of this memory's rule have a kernel of shape \["):
        other.write(params, other.start(params, B), **given)


@pytest.mark.parametrize("make", [local_memory, gradient_memory])
def test_numbers_of_numpy_in_float64_are_those_in_float32(make):
    """Without a warning, which the tests' settings raise."""
    memory = make(K, V, hidden_sizes=(3,))
    params = memory.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    keys, values, rate = rng.normal(size=(B, H, K)), rng.normal(size=(B, H, V)), rng.uniform(size=B)
    found = memory.write(params, memory.start(params, B), keys, values, rate)
    single = (jnp.asarray(x, jnp.float32) for x in (keys, values, rate))
    expected = memory.write(params, memory.start(params, B), *single)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(
        memory.read(params, found[0], keys), memory.read(params, found[0], jnp.asarray(keys, jnp.float32))
    )
    sequence = [np.stack([x, 2 * x]) for x in (keys, values, rate)]
    _, _, reads = unroll_memory(memory, params, None, *sequence, sequence[0])
    assert reads.dtype == jnp.float32


def test_no_random_key_is_used_twice():
    with jax.debug_key_reuse(True):
        for make in (local_memory, gradient_memory):
            make(K, V, hidden_sizes=(3,)).init(jax.random.key(0))


def test_states_of_other_write_options_are_refused():
    given = {name: WRITE[name] for name in ("keys", "values", "rate")}
    options = [WriteOptions(forget=True, momentum=momentum) for momentum in (False, True)]
    options += [WriteOptions(), WriteOptions(forget=True, optimizer=optax.sgd(0.1, 0.9))]
    memories = [local_memory(K, V, hidden_sizes=(), options=how) for how in options]
    params = memories[0].init(jax.random.key(0))
    for memory, theirs in itertools.product(memories, memories):
        gates = dict.fromkeys(memory.gates, WRITE["rate"])
        state = theirs.start(params, B)
        if theirs is memory:
            memory.write(params, state, **given, **gates)
            continue
        with pytest.raises(TypeError, match="^this memory does not take this (Memory|Gated)State, which is of"):
            memory.write(params, state, **given, **gates)
        with pytest.raises(TypeError, match="^this memory does not take"):
            memory.read(params, state, given["keys"])


def test_the_state_of_a_memory_of_other_sizes_is_refused():
    """Its surplus layers would be left out of a read without a word."""
    deep, flat = local_memory(4, 6, hidden_sizes=(6,)), gradient_memory(4, 6, hidden_sizes=())
    params = flat.init(jax.random.key(0))
    state = deep.start(deep.init(jax.random.key(0)), B)
    with pytest.raises(ValueError, match=r"layers of the shapes \[\(4, 6\)\], got a state with \[\(4, 6\), \(6, 6\)\]"):
        flat.read(params, state, zeros(B, H, 4))
