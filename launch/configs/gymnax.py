"""An environment of gymnax: one update per batch of whole episodes (`pip install '.[train,rl]'`).

    python -m launch.train --config=launch/configs/gymnax.py:MemoryChain-bsuite --workdir=runs/chain/mnm-p
    python -m launch.train --config=launch/configs/gymnax.py:MetaMaze-misc/lstm --workdir=runs/meta_maze/lstm

The colon is followed by ENVIRONMENT or ENVIRONMENT/MODEL, with any environment of gymnax that has discrete actions; the
model is mnm-p by default. `--config.task.episode_steps=20` sets the length of an episode,
`--config.task.parameters.NAME=VALUE` a parameter of the environment, `--config.task.arguments.NAME=VALUE` an argument
of its constructor.

MemoryChain shows one bit at the first step and pays 1 if the last action repeats it, else -1. With `memory_length` 8 an
episode has 9 steps. MetaMaze is the maze of Miconi et al., 2019, with the same cells as `maze.py` with
`size = maze_size + 2`. It differs in its teleport, which may lead to the cell of the reward; this ends the episode.

Expected: MemoryChain of length 8, reward 1 per test episode for every model after 600 updates, within a minute
(`docs/results/gymnax.md`). MetaMaze has not been trained.
"""

from typing import Any

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section

_MEMORY: Settings = {
    "hidden_features": 48,
    "heads": 1,
    "memory_features": 16,
    "memory_layers": 2,
    "step_size": "normalised",
}
_MODELS: dict[str, Settings] = {"mnm-p": _MEMORY, "mnm-g": _MEMORY, "lstm": {"hidden_features": 48}}
_TASKS: dict[str, dict[str, Any]] = {
    "MemoryChain-bsuite": {"episode_steps": 9, "parameters": {"memory_length": 8}, "arguments": {"num_bits": 1}},
    "MetaMaze-misc": {
        "episode_steps": 200,
        "parameters": {"reward": 10.0, "punishment": 0.0, "normalize_time": True},
        "arguments": {"maze_size": 9, "rf_size": 3},
    },
}
_STEPS = {"MemoryChain-bsuite": 600}


def get_config(which: str = "MemoryChain-bsuite/mnm-p") -> ConfigDict:
    """Returns the config of ENVIRONMENT or ENVIRONMENT/MODEL."""
    env_id, _, model = which.partition("/")
    settings = _TASKS.get(env_id, {"episode_steps": 200, "parameters": {}, "arguments": {}})
    return ConfigDict(
        {
            "task": {
                "name": "gymnax",
                "env_id": env_id,
                **settings,
                "discount": 0.9,
                "value_weight": 0.1,
                "concentration_weight": 0.01,
                "evaluation_batches": 4,
            },
            "model": choose_model(_MODELS, model or "mnm-p"),
            "training": training_section(
                steps=_STEPS.get(env_id, 4000),
                batch_size=32,
                learning_rate=3e-3,
                schedule="cosine",
                clip_norm=1.0,
                meta_weight=0.1,
                seeds=3,
                log_every=50,
                eval_every=100,
            ),
        }
    )
