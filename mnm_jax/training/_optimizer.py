"""Builds the optimiser, an optax chain, from named settings."""

import functools
from typing import Any

import jax
import optax

from mnm_jax._checks import check_choice, check_not_negative, check_positive, check_sizes

_OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "nadam": optax.nadam, "sgd": optax.sgd}
_SCHEDULES = ("constant", "cosine", "trapezoid")
_FALL = 0.2  # fraction of a run over which "trapezoid" falls


def make_schedule(learning_rate: float, steps: int, schedule: str, warmup_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates made; arguments as in `make_optimizer`."""
    after = steps - warmup_steps
    if schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, after)
    elif schedule == "trapezoid":
        fall = min(max(1, round(_FALL * steps)), after)
        rate = optax.linear_schedule(learning_rate, 0.0, fall, transition_begin=after - fall)
    else:
        rate = optax.constant_schedule(learning_rate)
    if warmup_steps:
        rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([rise, rate], [warmup_steps])
    return rate


def make_optimizer(
    *,
    name: str = "adam",
    learning_rate: float,
    steps: int,
    schedule: str = "constant",
    warmup_steps: int = 0,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns an optax optimiser with a learning rate schedule and a limit on the norm of the gradient.

    Args:
      name: "adam", "adamw", "nadam" or "sgd".
      learning_rate: the rate after the warm-up.
      steps: number of updates of the run, at the end of which "cosine" and "trapezoid" reach 0.
      schedule: "constant", "cosine", or "trapezoid": constant, then linear to 0 over the last fifth of the updates.
      warmup_steps: number of updates over which the rate rises linearly from 0.
      clip_norm: largest global norm of the gradient; a larger gradient is scaled down. None: no limit.
      weight_decay: decoupled weight decay (Loshchilov and Hutter, 2019); "adamw" only.
      epsilon: added to the root of the second moment by "adam", "adamw" and "nadam"; ignored by "sgd".

    Raises:
      TypeError: if a value is of the wrong kind; every message is one line.
      ValueError: if a name is unknown or a value is out of range.
    """
    check_choice("optimizer", name, _OPTIMIZERS)
    check_choice("schedule", schedule, _SCHEDULES)
    check_sizes(steps=steps)
    check_sizes(least=0, warmup_steps=warmup_steps)
    if warmup_steps >= steps:
        raise ValueError(f"warmup_steps must be less than steps, got {warmup_steps=}, {steps=}.")
    check_positive(learning_rate=learning_rate, epsilon=epsilon)
    if clip_norm is not None:
        check_positive(clip_norm=clip_norm)
    check_not_negative(weight_decay=weight_decay)
    if weight_decay and name != "adamw":
        raise ValueError(f"weight_decay needs the optimizer adamw, got {name!r} with {weight_decay=}.")

    rate = make_schedule(learning_rate, steps, schedule, warmup_steps)
    make = _OPTIMIZERS[name] if name == "sgd" else functools.partial(_OPTIMIZERS[name], eps=epsilon)
    if name == "adamw":  # optax's default is 1e-4; here it is 0
        make = functools.partial(make, weight_decay=weight_decay)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    chain = optax.chain(clip, make(rate))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # optax mixes its integer count with floats, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
