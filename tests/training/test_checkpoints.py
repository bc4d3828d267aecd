"""Tests checkpoints: round trips, and files that are refused; tests/faults has damaged and unfinished checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnm_jax.training import _weights, init_state, load_model, load_params, make_placement, save_params
from mnm_jax.training import restore_checkpoint as restore
from mnm_jax.training import save_checkpoint as save


@pytest.fixture(scope="module")
def states():
    """Returns three states of one structure and one of three seeds, with typed keys and a NamedTuple of optax."""
    from tests.training.conftest import Model

    optimizer = optax.adam(0.1)
    return [init_state(Model, optimizer, seed, seeds) for seed, seeds in ((0, 2), (5, 2), (9, 2), (0, 3))]


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_a_saved_state_is_restored_exactly(tmp_path, states):
    run = {"seconds": 1.5, "loader": {"position": 7, "names": ["a"]}}
    assert restore(tmp_path, states[0]) is None
    assert save(tmp_path, 10, states[0], run) == tmp_path / "checkpoints" / "10"
    step, state, found = restore(tmp_path, jax.eval_shape(lambda: states[0]))
    assert (step, found) == (10, run)
    assert_equal(state, states[0])
    # The key also draws the same numbers.
    np.testing.assert_array_equal(jax.random.normal(state.key[1], (3,)), jax.random.normal(states[0].key[1], (3,)))


def test_the_newest_two_are_kept(tmp_path, states):
    for step in (9, 10, 100):
        save(tmp_path, step, states[0], {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "100"]
    assert restore(tmp_path, states[0]).step == 100


def test_a_second_state_of_the_same_update_is_refused_and_a_damaged_one_written_again(tmp_path, states):
    path = save(tmp_path, 5, states[0], {})
    assert save(tmp_path, 5, states[0], {"ignored": 1}) == path  # equal states: nothing is written
    assert restore(tmp_path, states[0]).notes == {}
    other = states[0]._replace(step=states[0].step + 1)
    with pytest.raises(FileExistsError, match=r"5 holds another state of update 5: take another workdir"):
        save(tmp_path, 5, other, {})
    assert_equal(restore(tmp_path, states[0]).state, states[0])
    max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size).write_bytes(b"")
    save(tmp_path, 5, other, {})
    assert_equal(restore(tmp_path, states[0]).state, other)
    assert (path.parent / "5.damaged").is_dir()


def test_parameters_of_a_stopped_run_have_the_number_of_updates_before_the_fault(tmp_path, states):
    """A fault at update 8 is noticed at 10, when the run is next logged; the other seed may have continued."""
    faulty = states[0]._replace(fault_step=jnp.int32([8, 8]))
    save(tmp_path / "both", 10, faulty, {})
    params, steps = load_params(tmp_path / "both", make_model())
    assert steps == 7
    assert_equal(params, states[0].params)
    save(tmp_path / "one", 10, faulty._replace(fault_step=jnp.int32([8, -1])), {})
    with pytest.raises(ValueError, match=r"one stopped at a fault, and its seeds have \[7, 10\] updates"):
        load_params(tmp_path / "one", make_model())
    model = load_model(tmp_path / "one", make_model(), 1)
    np.testing.assert_array_equal(model.head, states[0].params["head"][1])


@pytest.mark.parametrize("there, here", [(8, 1), (1, 8)])
def test_a_run_resumes_with_another_number_of_devices(tmp_path, states, there, here):
    saved, wanted = (make_placement(jax.local_devices()[:count]).replicated for count in (there, here))
    save(tmp_path, 1, jax.device_put(states[0], saved), {})
    state = jax.device_put(restore(tmp_path, states[0]).state, wanted)
    assert len(state.step.sharding.device_set) == here
    assert_equal(state, states[0])


def make_model():
    from tests.training.conftest import Model

    return Model


def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path, states):
    save(tmp_path, 10, states[0], {})
    sgd = states[0]._replace(opt_state=optax.sgd(0.1).init(states[0].params))
    for like, message in (
        (states[3], r"number of seeds: .* is float32\[2, .* there, float32\[3, "),
        (sgd, "another model or optimizer: it has opt_state"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            restore(tmp_path, like)
        assert "\n" not in str(caught.value)
    assert restore(tmp_path, states[0]).step == 10


def test_parameters_alone(tmp_path, states):
    with pytest.raises(
        FileNotFoundError,
        match="no checkpoint in .*, and no params.npz or .* beside it: check the workdir, or train",
    ):
        load_params(tmp_path, make_model())
    save(tmp_path, 10, states[3], {})
    params, step = load_params(tmp_path, make_model())
    assert step == 10
    assert_equal(params, states[3].params)


def test_parameters_alone_are_loaded_where_there_is_no_checkpoint(tmp_path, states):
    path = save_params(tmp_path, states[1].params, 70)
    params, step = load_params(tmp_path, make_model())
    assert step == 70
    assert_equal(params, states[1].params)
    save(tmp_path, 10, states[0], {})  # a checkpoint takes precedence over the shipped file
    params, step = load_params(tmp_path, make_model())
    assert step == 10
    assert_equal(params, states[0].params)
    assert path.exists()


def test_parameters_in_bfloat16_are_stored_as_they_are(tmp_path, states):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), states[1].params)
    path = save_params(tmp_path, params, 70)
    found, step = _weights.read_params(tmp_path)[1:]
    assert step == 70 and path.name == "params.npz"
    for (name, array), leaf in zip(found.items(), jax.tree.leaves(params), strict=True):
        assert name.startswith("params.") and array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, leaf)


def test_a_state_with_an_empty_array_is_saved(tmp_path, states):
    state = states[0]._replace(opt_state={"moments": states[0].step, "none": jnp.zeros((1, 0), jnp.bfloat16)})
    save(tmp_path, 10, state, {})
    assert_equal(restore(tmp_path, state).state, state)
    save(tmp_path, 10, state, {})  # recognised as equal


def test_parameters_in_half_precision_are_loaded_as_float32(tmp_path, states):
    params = jax.tree.map(lambda leaf: leaf + 1e-3, states[1].params)
    path = save_params(tmp_path, params, 70, half=True)
    assert path.name == "params.safetensors"
    found, step = load_params(tmp_path, make_model())
    assert step == 70
    assert_equal(found, jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), params))
    save_params(tmp_path, params, 80)  # the file of full precision takes precedence
    found, step = load_params(tmp_path, make_model())
    assert step == 80
    assert_equal(found, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaf: leaf.at[:1].set(1e5), r"must be at most 65504.0 with half=True, got 100000"),
        (lambda leaf: leaf.at[:1].set(np.nan), r"must be at most 65504.0 with half=True, got nan"),
        (lambda leaf: leaf.astype("bfloat16"), r"must be float32 with half=True, got bfloat16"),
    ],
)
def test_numbers_without_a_value_in_half_precision_are_refused(tmp_path, states, change, message):
    with pytest.raises(ValueError, match=rf"^params\..* {message}"):
        save_params(tmp_path, jax.tree.map(change, states[1].params), 70, half=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("damage_file", [lambda data: data[:-30], lambda data: data[:100], lambda data: b""])
def test_a_damaged_file_of_parameters_is_refused_in_one_line(tmp_path, states, damage_file, half):
    path = save_params(tmp_path, states[1].params, 70, half=half)
    path.write_bytes(damage_file(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged") as caught:
        load_params(tmp_path, make_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("half", [False, True])
def test_every_changed_byte_of_the_numbers_is_noticed(tmp_path, states, half):
    path = save_params(tmp_path, states[1].params, 70, half=half)
    data = bytearray(path.read_bytes())
    place = len(data) - 2 if half else data.index(b"params.") + 60  # within an array
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        load_params(tmp_path, make_model())


def test_a_changed_number_of_updates_in_half_precision_is_noticed(tmp_path, states):
    path = save_params(tmp_path, states[1].params, 70, half=True)
    path.write_bytes(path.read_bytes().replace(b'"70"', b'"71"'))
    with pytest.raises(ValueError, match=r"params.safetensors is damaged \(wrong checksum\)"):
        load_params(tmp_path, make_model())
