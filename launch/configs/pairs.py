"""Capacity: recall of random pairs of 16 and 8 bits after one pass, and of the second value of a key.

    python -m launch.train --config=launch/configs/pairs.py:mnm-p --workdir=runs/pairs/mnm-p

Models are trained on 1 to 16 writes and tested with up to 32 pairs; half of the training sequences write keys twice.
The colon is followed by one of the six models of `algorithmic.py`. Each carries about 1,024 numbers from step to step,
not counting the controller of a model with a memory. `python -m launch.compare --suite=capacity` trains them all, at
equal state and at equal parameters, and mnm-p and mnm-g with other widths, layers, heads and step sizes.

Expected (RESULTS.md; 5 seeds, 2,000 updates, one core of a shared CPU), test accuracy at equal state: mnm-p 0.938,
mnm-g 0.930, lstm-salu 0.909, lstm 0.797, dnc 0.762, ntm 0.639; 2 to 5 minutes, lstm 18.
"""

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section

_MEMORY: Settings = {
    "hidden_features": 100,
    "heads": 1,
    "memory_features": 32,
    "memory_layers": 1,
    "step_size": "normalised",
}
MODELS: dict[str, Settings] = {
    "mnm-p": _MEMORY,  # 32 * 32
    "mnm-g": _MEMORY,
    "lstm-salu": {"hidden_features": 100, "slots": 16, "memory_features": 32},  # 16 * (32 + 32)
    "ntm": {"hidden_features": 100, "slots": 32, "memory_features": 32},  # 32 * 32
    "dnc": {"hidden_features": 100, "slots": 20, "memory_features": 31},  # 20 * 31 + 20 * 20 of links, roughly
    "lstm": {"hidden_features": 512},  # 2 * 512
}


def get_config(model: str = "mnm-p") -> ConfigDict:
    """Returns the config of a model."""
    steps = 2000
    return ConfigDict(
        {
            "task": {
                "name": "pairs",
                "length": 16,
                "lengths": (1, 2, 4, 8, 12, 16, 20, 24, 32),
                "overwriting": 0.5,
                "curriculum": steps // 2,
                "evaluation_batches": 16,
            },
            "model": choose_model(MODELS, model),
            "training": training_section(
                steps=steps,
                batch_size=32,
                learning_rate=3e-3,
                schedule="cosine",
                warmup_steps=100,
                clip_norm=10.0,
                meta_weight=0.1,
                seeds=5,
                log_every=50,
                eval_every=200,
            ),
        }
    )
