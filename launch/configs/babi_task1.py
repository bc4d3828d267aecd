"""bAbI task 1 (one supporting fact) alone, 10,000 training questions.

    python -m launch.train --config=launch/configs/babi_task1.py --workdir=runs/babi_task1

Needs the official archive in `--config.task.data_dir` and `pip install '.[train,data]'`. The model is MNM-p. A colon
selects another model: `--config=launch/configs/babi_task1.py:mnm-g`, `:lstm`, `:lstm-salu`.

The paper (Munkhdalai et al., NeurIPS 2019) trains one model on all 20 tasks jointly and reports a mean error of 0.55%
for MNM-p; this recipe is not comparable with that number.

Expected with `--config.task.apart=True`, with which the run was made (RESULTS.md; 1 seed, 1,000 updates of 128
questions, one core of a shared CPU): mnm-p answers all 1,000 test questions correctly, and all validation questions
from the first validation at 200 updates; 15 minutes. As it is, the recipe reads each story once, which has not been
timed.
"""

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section

_MEMORY: Settings = {
    "hidden_features": 96,
    "heads": 2,
    "memory_features": 96,
    "memory_layers": 2,
    "step_size": "normalised",
}
_MODELS: dict[str, Settings] = {
    "mnm-p": _MEMORY,
    "mnm-g": _MEMORY,
    "lstm": {"hidden_features": 96},
    "lstm-salu": {"hidden_features": 96, "memory_features": 96, "slots": 70},
}


def get_config(model: str = "mnm-p") -> ConfigDict:
    """Returns the config of a model."""
    return ConfigDict(
        {
            "task": {
                "name": "babi",
                "tasks": (1,),
                "data_dir": "",  # the environment variable MNM_BABI_DIR
                "size": "10k",
                "embedding_features": 96,
            },
            "model": choose_model(_MODELS, model),
            "training": training_section(
                steps=1000,
                batch_size=128,
                learning_rate=2e-3,
                schedule="cosine",
                warmup_steps=50,
                clip_norm=5.0,
                meta_weight=0.1,
                log_every=50,
                eval_every=200,
            ),
        }
    )
