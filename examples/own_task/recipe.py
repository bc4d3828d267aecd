"""A recipe outside the package: its task and its cells are in the two modules next to this file.

    python -m launch.train --config=examples/own_task/recipe.py --workdir=runs/variables

A colon selects the model: `recipe.py:delta`, or `recipe.py:mnm-p` for a cell of the package. A flag changes a setting,
as in `--config.task.variables=6`. The run is evaluated and drawn by `launch.evaluate` and `launch.report` as any other.

Expected (one core of a shared CPU): test accuracy 1.000 of the models gated and delta, in half a minute.
"""

from ml_collections import ConfigDict

MODELS = {
    "gated": {"name": "variables_cells:make_gated", "hidden_features": 64},
    "delta": {"name": "variables_cells:make_delta", "hidden_features": 32, "memory_features": 16},
    "mnm-p": {"name": "mnm-p", "hidden_features": 32, "memory_features": 16, "memory_layers": 2},
}


def get_config(model="gated"):
    return ConfigDict(
        {
            "task": {"name": "variables_task:Variables", "variables": 3, "values": 4, "assignments": 6, "questions": 3},
            "model": MODELS[model],
            "training": {
                "steps": 600,
                "batch_size": 32,
                "learning_rate": 3e-3,
                "meta_weight": 0.1,
                "log_every": 50,
                "eval_every": 200,
            },
        }
    )
