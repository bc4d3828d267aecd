"""Builds the optimiser, an optax chain, from named settings."""

import functools
from typing import Any

import jax
import optax
import optax.contrib

from mnm_jax._checks import check_choice, check_not_negative, check_positive, check_sizes
from mnm_jax._params import leaf_names

_DECAYING = ("adamw", "muon")
_OF_MUON = "cell"  # the part of a `SequenceModel`, or of a model that contains one, whose matrices Muon updates
_RMS = 0.2  # root mean square of the entries of an update, divided by the learning rate: about that of Adam
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


def _muon(rate: optax.Schedule, *, eps: float, weight_decay: float) -> optax.GradientTransformation:
    """Returns Muon for the matrices of the cell, and optax's AdamW for all other parameters."""

    def all_axes(params: Any) -> Any:
        leaves, structure = jax.tree.flatten(params)
        chosen = [
            optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 and _OF_MUON in name.split(".") else None
            for leaf, name in zip(leaves, leaf_names(params), strict=True)
        ]
        if not any(chosen):
            raise ValueError("muon updates the matrices of the model's part `cell`, and there are none: use adamw.")
        return jax.tree.unflatten(structure, chosen)

    return optax.contrib.muon(
        rate,
        eps=eps,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        consistent_rms=_RMS,
        muon_weight_dimension_numbers=all_axes,
    )


_OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "muon": _muon, "nadam": optax.nadam, "sgd": optax.sgd}


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
      name: "adam", "adamw", "muon", "nadam" or "sgd". "muon" replaces the averaged gradient of a matrix by an
        approximation of the nearest orthogonal matrix, scaled as in Liu et al.: the entries of an update have a root
        mean square of about 0.2 times the learning rate, as with Adam, so that values tuned for "adamw" can be kept.
        It updates the parameters with two axes of `SequenceModel.cell`, whether or not they multiply a vector; AdamW
        with Nesterov's momentum updates all other parameters.
      learning_rate: the rate after the warm-up.
      steps: number of updates of the run, at the end of which "cosine" and "trapezoid" reach 0.
      schedule: "constant", "cosine", or "trapezoid": constant, then linear to 0 over the last fifth of the updates.
      warmup_steps: number of updates over which the rate rises linearly from 0.
      clip_norm: largest global norm of the gradient; a larger gradient is scaled down. None: no limit.
      weight_decay: decoupled weight decay (Loshchilov and Hutter, 2019); "adamw" and "muon" only.
      epsilon: added to the root of the second moment by "adam", "adamw" and "nadam"; "muon" adds it to the
        norm of a matrix too; ignored by "sgd".

    Raises:
      TypeError: if a value is of the wrong kind; every message is one line.
      ValueError: if a name is unknown or a value is out of range; at `init`, if "muon" finds no matrix of a cell.

    References:
      Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024. Liu et al., Muon is scalable for LLM
      training, 2025, section 2.2: the root mean square.
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
    if weight_decay and name not in _DECAYING:
        raise ValueError(f"weight_decay needs the optimizer adamw or muon, got {name!r} with {weight_decay=}.")

    rate = make_schedule(learning_rate, steps, schedule, warmup_steps)
    make = _OPTIMIZERS[name] if name == "sgd" else functools.partial(_OPTIMIZERS[name], eps=epsilon)
    if name in _DECAYING:  # optax's default is 1e-4; here it is 0
        make = functools.partial(make, weight_decay=weight_decay)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    chain = optax.chain(clip, make(rate))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # optax mixes its integer count with floats, which strict dtype promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(updates, state, params)

    return optax.GradientTransformation(chain.init, update)
