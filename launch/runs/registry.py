"""Registries of the models and tasks that a config may name; no other place lists them.

A new model is an entry of `MODELS`, a new task an entry of `TASKS`. Tables and figures take names, colours and formulas
from here; `launch/runs/build.py` makes the objects. A config may also name a factory as MODULE:FACTORY (`own.py`).
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from flax import nnx

from launch.runs.memory_cells import chain_cell, mnm_cell
from launch.runs.own import is_place, load
from launch.runs.stack import layer_stack
from mnm_jax.cells import DNCCell, LSTMCell, NTMCell, PlasticCell, RNNCell, SALUCell
from mnm_jax.memory import gradient_memory, local_memory
from mnm_jax.training import Task


class TaskEntry(NamedTuple):
    """A task that a config may name; its key in `TASKS` is the value of `task.name`.

    Attributes:
      place: MODULE:CLASS; the module is imported when a config names the task, not before.
      small: settings of a small instance, with which the tests check the contract of the task.
      formula: what a sequence of the task is, as one line of text.
    """

    place: str
    small: Mapping[str, Any]
    formula: str


class ModelEntry(NamedTuple):
    """A model that a config may name; its key in `MODELS` is the value of `model.name`.

    Attributes:
      make: `(*, features, ..., rngs) -> cell`, or a layer as `SequenceModel` takes it; its other arguments are the
        settings of the config, except `entities` and `entity_features`, which the task provides. A setting annotated as
        `int` must be >= 1 (`int | None`: or None), one annotated as `bool` True or False.
      settings: sizes for a recipe that has none of its own for this model.
      colour: colour in all figures, distinguishable for the colour-blind.
      formula: the update of the memory, or of the hidden state, in one step, as one line of text.
    """

    make: Callable[..., nnx.Module]
    settings: Mapping[str, Any]
    colour: str
    formula: str


TASKS: dict[str, TaskEntry] = {
    "dictionary": TaskEntry(
        place="tasks.dictionary:Dictionary",
        small={"evaluation_batches": 2},
        formula="pairs of strings (k_1, v_1) … (k_S, v_S), then k → its translation, letter by letter",
    ),
    "babi": TaskEntry(
        place="tasks.babi:Babi",
        small={"tasks": (1, 6), "size": "1k", "embedding_features": 5},
        formula="sentences s_1 … s_n with questions between them, question → answer",
    ),
    "catbabi": TaskEntry(
        place="tasks.babi:BabiStream",
        small={"tasks": (1, 6), "size": "1k", "window": 40, "embedding_features": 5},
        formula="endless words of stories with their questions, “?” → the answer, which is the next word",
    ),
    "copy": TaskEntry(
        place="tasks.algorithmic.copy:Copy",
        small={"length": 5, "lengths": (7,), "evaluation_batches": 2},
        formula="x_1 … x_L → x_1 … x_L",
    ),
    "repeat_copy": TaskEntry(
        place="tasks.algorithmic.repeat_copy:RepeatCopy",
        small={"length": 3, "repeats": 3, "lengths": (4,), "evaluation_batches": 2},
        formula="x_1 … x_L, N → N times x_1 … x_L, end",
    ),
    "double_copy": TaskEntry(
        place="tasks.algorithmic.double_copy:DoubleCopy",
        small={"length": 4, "lengths": (6,), "evaluation_batches": 2, "curriculum": 10},
        formula="x_1 … x_L → x_1 … x_L x_1 … x_L",
    ),
    "associative_recall": TaskEntry(
        place="tasks.algorithmic.associative_recall:AssociativeRecall",
        small={"length": 3, "lengths": (4,), "evaluation_batches": 2},
        formula="items x_1 … x_L, then x_i → x_{i+1}",
    ),
    "priority_sort": TaskEntry(
        place="tasks.algorithmic.priority_sort:PrioritySort",
        small={"length": 6, "lengths": (8,), "evaluation_batches": 2},
        formula="(x_1, p_1) … (x_L, p_L) → the x of the highest 4/5 of p, highest first",
    ),
    "pairs": TaskEntry(
        place="tasks.algorithmic.pairs:Pairs",
        small={"length": 5, "lengths": (8,), "evaluation_batches": 2},
        formula="(k_1, v_1) … (k_L, v_L), then k → the v written last with k",
    ),
    "recall": TaskEntry(
        place="tasks.league:Recall",
        small={"vocabulary": 12, "pairs": 3, "length": 12, "more_pairs": (5,), "evaluation_batches": 2},
        formula="k_1 v_1 … k_P v_P, then k_i → v_i at random steps",
    ),
    "selective_copy": TaskEntry(
        place="tasks.league:SelectiveCopy",
        small={"vocabulary": 4, "items": 3, "length": 6, "lengths": (8,), "evaluation_batches": 2},
        formula="x_1 … x_N at random steps between fillers → x_1 … x_N",
    ),
    "noisy_recall": TaskEntry(
        place="tasks.league:NoisyRecall",
        small={"vocabulary": 3, "length": 12, "lengths": (16,), "evaluation_batches": 2},
        formula="k v pairs of one map and noise, k → v",
    ),
    "parity": TaskEntry(
        place="tasks.league:Parity",
        small={"length": 6, "lengths": (9,), "evaluation_batches": 2},
        formula="b_1 … b_t → b_1 + … + b_t mod 2",
    ),
    "s3": TaskEntry(
        place="tasks.league:S3",
        small={"length": 6, "lengths": (9,), "evaluation_batches": 2},
        formula="g_1 … g_t → g_1 ⋯ g_t, permutations of three",
    ),
    "maze": TaskEntry(
        place="tasks.maze:MazeTask",
        small={"size": 5, "episode_steps": 9, "evaluation_batches": 2},
        formula="(o_t, a_{t−1}, r_{t−1}) → a_t, with a teleport to a random cell after each visit of the reward",
    ),
    "gymnax": TaskEntry(
        place="tasks.gymnax_env:GymnaxTask",
        small={"episode_steps": 5, "parameters": {"memory_length": 3}, "evaluation_batches": 2},
        formula="o_t → a_t",
    ),
}


def load_task(name: str, folder: str | None = None) -> Callable[..., Task]:
    """Returns the function or class that makes a task from the settings of a config.

    Args:
      name: a key of `TASKS`, or MODULE:FACTORY.
      folder: folder of a module that is not on `sys.path`.
    """
    return load(name, folder) if is_place(name) else load(TASKS[name].place)


def _plain(cell: Callable[..., nnx.RNNCellBase]) -> Callable[..., nnx.RNNCellBase]:
    def make(*, features: int, hidden_features: int, rngs: nnx.Rngs) -> nnx.RNNCellBase:
        return cell(features, hidden_features, rngs=rngs)

    return make


def _salu(*, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs) -> SALUCell:
    return SALUCell(features, hidden_features, slots=slots, memory_features=memory_features, rngs=rngs)


def _ntm(
    *, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs, heads: int = 1
) -> NTMCell:
    return NTMCell(
        features,
        hidden_features,
        slots=slots,
        memory_features=memory_features,
        read_heads=heads,
        write_heads=heads,
        rngs=rngs,
    )


def _dnc(
    *, features: int, hidden_features: int, memory_features: int, slots: int, rngs: nnx.Rngs, heads: int = 1
) -> DNCCell:
    return DNCCell(features, hidden_features, slots=slots, memory_features=memory_features, read_heads=heads, rngs=rngs)


_MEMORY = {"hidden_features": 100, "heads": 1, "memory_features": 64, "memory_layers": 2, "step_size": "normalised"}
_SLOTS = {"hidden_features": 100, "slots": 64, "memory_features": 32}
_HOPS = {"hidden_features": 128, "heads": 2, "hops": 3, "relation_features": 8, "step_size": "normalised"}

# Colours: Okabe and Ito's palette, then Tol's.
MODELS: dict[str, ModelEntry] = {
    "mnm-p": ModelEntry(
        make=mnm_cell(local_memory),
        settings=_MEMORY,
        colour="#0072B2",
        formula="W_l ← W_l − β Σ_h x_h ⊗ (z_h − G_l v_h), z = tanh(W_l x), in the last layer W_l x",
    ),
    "mnm-g": ModelEntry(
        make=mnm_cell(gradient_memory),
        settings=_MEMORY,
        colour="#D55E00",
        formula="W ← W − β ∇_W Σ_h |f(k_h; W) − v_h|²",
    ),
    "chain-p": ModelEntry(
        make=chain_cell(local_memory),
        settings=_HOPS,
        colour="#56B4E9",
        formula="r_n = f(r_{n−1} ⊗ c_n; W), written as mnm-p",
    ),
    "chain-g": ModelEntry(
        make=chain_cell(gradient_memory),
        settings=_HOPS,
        colour="#E69F00",
        formula="r_n = f(r_{n−1} ⊗ c_n; W), written as mnm-g",
    ),
    "lstm": ModelEntry(
        make=_plain(LSTMCell),
        settings={"hidden_features": 128},
        colour="#000000",
        formula="c ← f ∘ c + i ∘ g, h = o ∘ tanh(c)",
    ),
    "lstm-salu": ModelEntry(
        make=_salu,
        settings=_SLOTS,
        colour="#009E73",
        formula="slot t mod N ← (k, v),  read softmax(q · k_n / √K) v_n",
    ),
    "ntm": ModelEntry(
        make=_ntm,
        settings=_SLOTS,
        colour="#CC79A7",
        formula="M ← M ∘ (1 − w ⊗ e) + w ⊗ a,  w by content and by shift",
    ),
    "dnc": ModelEntry(
        make=_dnc,
        settings=_SLOTS,
        colour="#661100",
        formula="M ← M ∘ (1 − w ⊗ e) + w ⊗ v,  w by content and by free slots",
    ),
    "rnn": ModelEntry(
        make=_plain(RNNCell),
        settings={"hidden_features": 128},
        colour="#888888",
        formula="h ← tanh(A x + W h)",
    ),
    "plastic": ModelEntry(
        make=_plain(PlasticCell),
        settings={"hidden_features": 100},
        colour="#DDCC77",
        formula="h' = tanh(A x + (W + α ∘ E) h),  E ← (1 − η) E + η h ⊗ h'",
    ),
    "neuromodulated": ModelEntry(
        make=_plain(partial(PlasticCell, modulated=True)),
        settings={"hidden_features": 100},
        colour="#AA4499",
        formula="h' = tanh(A x + (W + α ∘ E) h),  E ← clip(E + m ∘ (h ⊗ h'))",
    ),
}
_STACK = {"stack_features": 64, "block_parameters": 50_000}
_STATES = {"lstm": 128, "attention": 2 * 64 * 512}  # values per layer; all others 1024
_STACKS = {  # the mixer of the stack: colour and formula
    "hebbian": ("#BBCC33", "W ← W + β k ⊗ v"),
    "delta": ("#225555", "W ← W − β k ⊗ (k W − v),  |k| = 1"),
    "delta-normalised": ("#44BB99", "W ← W − β k ⊗ (k W − v) / |k|²"),
    "delta-gated": ("#99DDFF", "W ← (1 − α) W − β k ⊗ (k W − v),  |k| = 1"),
    "deep-before": ("#77AADD", "as mnm-p, |k| = 1"),
    "deep-after": ("#004488", "as mnm-p, layer by layer, |k| = 1"),
    "deep-gradient": ("#EE8866", "as mnm-g, linearised per chunk, |k| = 1"),
    "deep-stale": ("#BB5566", "S ← m S − β ∇ |f(k; W) − v|² at the chunk's beginning,  W ← (1 − α) W + S"),
    "lstm": ("#555555", "as lstm"),
    "attention": ("#EECC66", "Σ_s softmax(q_t · k_s / √K) v_s"),
}
for _mixer, (_colour, _formula) in _STACKS.items():
    MODELS[f"layer-{_mixer}"] = ModelEntry(
        make=layer_stack(_mixer),
        settings=_STACK | {"state": _STATES.get(_mixer, 1024)},
        colour=_colour,
        formula=_formula,
    )
_FOREIGN_COLOURS = ("#332288", "#F0E442", "#44AA99", "#882255", "#999933", "#BBBBBB")


def model_colours(names: Iterable[str]) -> dict[str, str]:
    """Returns a colour for every model.

    A model of the registry has its own colour. Any other model gets a colour that depends on its name, the same in
    every figure unless another model of the figure has that colour.

    Args:
      names: names of models, such as all models of one figure.

    Examples:
      >>> model_colours(["lstm", "transformer", "mnm-g"])
      {'lstm': '#000000', 'mnm-g': '#D55E00', 'transformer': '#F0E442'}
    """
    colours: dict[str, str] = {}
    for name in sorted(set(names)):
        if name in MODELS:
            colours[name] = MODELS[name].colour
            continue
        start = zlib.crc32(name.encode()) % len(_FOREIGN_COLOURS)
        order = _FOREIGN_COLOURS[start:] + _FOREIGN_COLOURS[:start]
        colours[name] = next((colour for colour in order if colour not in colours.values()), order[0])
    return colours
