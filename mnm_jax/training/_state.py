"""Everything a run trains: parameters, optimiser, random key and step, for several seeds at once.

Shape letter: `S` seeds. Every leaf of a run's `TrainState` leads with `S`, and the programs are written for one seed
and mapped over the seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnm_jax._params import leaf_names

Array = jax.Array


class TrainState(NamedTuple):
    """State of training; the leaves of a run lead with `S`.

    params: `nnx.State` of the model's `nnx.Param`s.
    opt_state: state of the optimiser.
    key: typed random key; step `n` draws its batch from `fold_in(key, n)`.
    step: steps finished, int32.
    fault_step: the first step (counted from 1) that met a number that is not finite, -1 for none, int32. From then on
        the seed stands still: everything above is as it was before that step.
    fault_leaf: which check failed first, an index into `step.fault_names(params)`; int32.
    """

    params: Any
    opt_state: Any
    key: Array
    step: Array
    fault_step: Array
    fault_leaf: Array


def split_model(make_model: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """The structure of a model without its numbers: `nnx.merge(graphdef, params)` is the model.

    Raises:
        ValueError: the model keeps state that is no `nnx.Param` (dropout's keys, batch norm's averages), which the
            training program would not carry along.
    """
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(model, nnx.Param, ...)
    names = leaf_names(rest)
    if names:
        raise ValueError(f"a model may hold nnx.Param only; make {names[0]} an nnx.Param or compute it in the call.")
    return graphdef


def init_state(
    make_model: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, seed: int, seeds: int
) -> TrainState:
    """The state before the first step, of the seeds `seed, seed + 1, ..., seed + seeds - 1`.

    A seed's numbers do not depend on which other seeds run beside it.
    """

    def init(key: Array) -> TrainState:
        params_key, data_key = jax.random.split(key)
        params = nnx.state(make_model(nnx.Rngs(params_key)), nnx.Param)
        none = jnp.int32(-1)
        return TrainState(params, optimizer.init(params), data_key, jnp.int32(0), none, none)

    keys = jax.vmap(jax.random.key)(jnp.arange(seed, seed + seeds))
    return jax.jit(jax.vmap(init))(keys)
