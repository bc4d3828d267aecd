"""The maze: seven agents, three sizes; one update per batch of 30 episodes of 200 steps.

    python -m launch.train --config=launch/configs/maze.py:9x9/mnm-g --workdir=runs/maze/9x9/mnm-g

The colon is followed by SIZE/MODEL: 9x9, 11x11, 13x13 with mnm-p, mnm-g, lstm, lstm-salu, rnn, plastic,
neuromodulated. `python -m launch.compare --suite=maze` trains them all.

Batch, episodes, coefficients of the loss and the limit of the gradient's norm are taken from Miconi et al., 2019, whose
agents have about 100 units. Their 100,000 updates at a learning rate of 1e-4 take days on a CPU, so learning rate,
schedule and number of updates are ours, the same for every agent.

Expected (RESULTS.md; 3 seeds, 4,000 updates, one core of a shared CPU), reward per test episode in 9x9: mnm-g 340,
mnm-p 335, lstm-salu 321, neuromodulated 312, plastic 291, lstm 262, rnn 152. The seeds together take 24 to 33 minutes
with a memory, 9 for lstm, 7 for rnn, 94 to 111 for the plastic networks.
"""

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section
from mnm_jax._checks import check_choice

SIZES = {"9x9": 9, "11x11": 11, "13x13": 13}
_MEMORY: Settings = {
    "hidden_features": 100,
    "heads": 1,
    "memory_features": 32,
    "memory_layers": 2,
    "step_size": "normalised",
}
MODELS: dict[str, Settings] = {
    "mnm-p": _MEMORY,
    "mnm-g": _MEMORY,
    "lstm": {"hidden_features": 100},
    "lstm-salu": {"hidden_features": 100, "slots": 64, "memory_features": 32},
    "rnn": {"hidden_features": 139},
    "plastic": {"hidden_features": 101},
    "neuromodulated": {"hidden_features": 100},
}


def get_config(which: str = "9x9/mnm-p") -> ConfigDict:
    """Returns the config of SIZE/MODEL."""
    size, _, model = which.partition("/")
    check_choice("the recipe's size", size, SIZES)
    return ConfigDict(
        {
            "task": {
                "name": "maze",
                "size": SIZES[size],
                "penalty": 0.0,
                "episode_steps": 200,
                "discount": 0.9,
                "value_weight": 0.1,
                "concentration_weight": 0.03,
                "first_baseline": False,
                "evaluation_batches": 4,
            },
            "model": choose_model(MODELS, model),
            "training": training_section(
                steps=4000,
                batch_size=30,
                learning_rate=1e-3,
                epsilon=1e-4,
                clip_norm=4.0,
                meta_weight=0.1,
                seeds=3,
                log_every=50,
                eval_every=200,
            ),
        }
    )
