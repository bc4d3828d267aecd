r"""A search space for dictionary inference: learning rate, clipping, and the shape of the memory.

    python -m launch.sweep --config=launch/configs/dictionary.py --space=launch/configs/dictionary_space.py \
        --num_trials=8
"""

SPACE = {
    "product": [
        {"training.learning_rate": [1.5e-3, 3e-3, 6e-3], "training.clip_norm": [0.2, 1.0]},
        {
            "zip": [
                {"model.memory_features": [32, 48, 64]},
                {"model.memory_layers": [3, 2, 2]},
            ]
        },
    ]
}
