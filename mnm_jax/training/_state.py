"""The state of training: parameters, optimiser state, random key and counters, for several seeds at once.

Shape letter: `S` seeds, the leading axis of every leaf of a run's `TrainState`. The functions are written for one seed
and mapped over the seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnm_jax._checks import check_sizes
from mnm_jax._params import leaf_names

Array = jax.Array


class TrainState(NamedTuple):
    """State of training; the leaves of a run are `[S, ...]`.

    Attributes:
      params: `nnx.State` of the model's `nnx.Param`s.
      opt_state: state of the optimiser.
      key: typed random key; update `n` draws its batch from `fold_in(key, n)`.
      step: number of updates made, int32.
      fault_step: the first update, counted from 1, with a number that is not finite; -1 for none, int32. The seed is
        frozen after it: all other fields keep their values from before that update.
      fault_leaf: the first check that failed, an index into `fault_names(state)`; int32.
      carry: for a task with `carries`, the model's carry after the last batch, `[S, B, ...]`; else None.
    """

    params: Any
    opt_state: Any
    key: Array
    step: Array
    fault_step: Array
    fault_leaf: Array
    carry: Any = None


def split_model(make_model: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """Returns the structure of a model without its parameters: `nnx.merge(graphdef, params)` is the model.

    Raises:
      ValueError: if the model has state other than `nnx.Param` (such as the keys of dropout or the averages of batch
        normalisation), which training would not update.
    """
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    names = leaf_names(states[1])
    if names:
        raise ValueError(f"a model may hold nnx.Param only; make {names[0]} an nnx.Param or compute it in the call.")
    return graphdef


def merge_model(graphdef: nnx.GraphDef, params: Any, index: int = 0) -> Any:
    """Returns the model with the parameters of one seed of `params` `[S, ...]`; `index` counts from 0.

    Raises:
      ValueError: if there is no such seed.
    """
    check_sizes(least=0, index=index)
    seeds = len(jax.tree.leaves(params)[0])
    if index >= seeds:
        raise ValueError(f"index must be < {seeds}, the number of seeds, got {index}.")
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), params))


def check_seeds(seed: Any, seeds: Any) -> None:
    """Checks that the seeds `seed, seed + 1, ..., seed + seeds - 1` are int32 numbers from 0."""
    check_sizes(seeds=seeds)
    check_sizes(least=0, seed=seed)
    if seed + seeds > 2**31 - 1:
        raise ValueError(f"seed + seeds must be < 2**31, got seed={seed} and seeds={seeds}.")


def init_state(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    seeds: int,
    streams: int = 0,
) -> TrainState:
    """Returns the state before the first update, for the seeds `seed, seed + 1, ..., seed + seeds - 1`.

    A seed's parameters and random keys do not depend on the other seeds.

    Args:
      make_model: called as `make_model(rngs)` for each seed.
      optimizer: the optimiser.
      seed: the first seed.
      seeds: `S`.
      streams: for a task with `carries`, `B`, the number of streams whose carry `model.start(B)` begins; else 0.

    Raises:
      TypeError: for a seed or a number of seeds or streams that is no integer.
      ValueError: for a negative seed or number of streams, or a number of seeds below 1.
    """
    check_seeds(seed, seeds)
    check_sizes(least=0, streams=streams)

    def init(key: Array) -> TrainState:
        params_key, data_key = jax.random.split(key)
        model: Any = make_model(nnx.Rngs(params_key))
        params = nnx.state(model, nnx.Param)
        return TrainState(
            params=params,
            opt_state=optimizer.init(params),
            key=data_key,
            step=jnp.int32(0),
            fault_step=jnp.int32(-1),
            fault_leaf=jnp.int32(-1),
            carry=model.start(streams) if streams else None,
        )

    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    return jax.jit(jax.vmap(init))(keys)
