"""bAbI, all 20 tasks trained jointly, with the memory cell of the paper: one read per step, after the write.

    python -m launch.train --config=launch/configs/babi_paper.py --workdir=runs/babi/mnm-p

Needs the official archive in `--config.task.data_dir` and `pip install mnm_jax[data]`. A colon selects the gradient
rule: `--config=launch/configs/babi_paper.py:mnm-g`.

From the paper (Munkhdalai et al., NeurIPS 2019): the cell, its memory of three tanh layers without biases, the meta
objective, 10,000 questions per task, one model for all tasks, no augmentation. The paper does not state widths, heads,
optimiser, batch and number of updates; these, and the sentence as one step (the protocol of TPR-RNN and STM), are
chosen here. The step size is "normalised", as in all recipes. Nothing is tuned; the tuned recipe is `babi_joint.py`.

Expected: mnm-p 11.8% mean test error, seven tasks failed (1 seed, 36 minutes on one core of a shared CPU; qa3 train =
1,925 genuine + 8,075 simulated questions). The gradient rule has not been trained.
"""

from ml_collections import ConfigDict

from launch.configs import babi_joint, choose_model

_MEMORY = {"hidden_features": 128, "heads": 2, "memory_features": 128, "memory_layers": 3, "step_size": "normalised"}


def get_config(model: str = "mnm-p") -> ConfigDict:
    """Returns the config of a model."""
    config = babi_joint.get_config("lstm")
    config.model = choose_model({"mnm-p": _MEMORY, "mnm-g": _MEMORY}, model)
    config.task.update({"renaming": False, "hidden_features": 0, "entities": 0})
    return config
