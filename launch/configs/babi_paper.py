"""bAbI, all 20 tasks trained jointly, with the memory cell as the paper has it: one read, after the write.

    python -m launch.train --config=launch/configs/babi_paper.py --workdir=runs/babi/mnm-p

Needs `pip install mnm_jax[data]` and the official archive, in the folder of `--config.task.data_dir` or, without it, of
the environment variable MNM_BABI_DIR. The gradient rule is chosen after a colon:
`--config=launch/configs/babi_paper.py:mnm-g`.

From the paper (Munkhdalai et al., NeurIPS 2019): the cell, its memory of three tanh layers without biases, the meta
objective, 10,000 questions a task, one model for all tasks, no augmentation. Not known, and so chosen here: widths,
heads, optimiser, batch, number of updates, and the sentence as one step (the protocol of TPR-RNN and STM). The step is
"normalised", as in all recipes here. Nothing is tuned: mnm-p ends at 11.8% mean test error, seven tasks failed (one
seed, 36 minutes on one core; qa3 train = 1,925 genuine + 8,075 simulated questions). The recipe that is tuned is
`babi_joint.py`.
"""

from ml_collections import ConfigDict

from launch.configs import babi_joint, choose_model

_MEMORY = {"hidden_features": 128, "heads": 2, "memory_features": 128, "memory_layers": 3, "step_size": "normalised"}


def get_config(model: str = "mnm-p") -> ConfigDict:
    config = babi_joint.get_config("lstm")
    config.model = choose_model({"mnm-p": _MEMORY, "mnm-g": _MEMORY}, model)
    config.task.update({"renaming": False, "hidden_features": 0, "entities": 0})
    return config
