r"""The tasks of the Neural Turing Machine: five tasks, six models.

    python -m launch.train --config=launch/configs/algorithmic.py:copy/mnm-p --workdir=runs/algorithmic/copy/mnm-p

The colon is followed by TASK/MODEL: copy, repeat_copy, double_copy, associative_recall, priority_sort with mnm-p,
mnm-g, lstm-salu, ntm, dnc, lstm. `python -m launch.compare --suite=algorithmic` trains them all.

Tasks have the sizes of Graves et al., 2014 (bits, lengths, repeats), and a curriculum over the first updates. The
controller is an LSTM of 100 units in every model with a memory, as in that paper. NTM and DNC have 20 numbers per slot,
as in that paper, but 64 slots instead of 128, since the DNC's time grows with the square of their number. The networks
of mnm-p and mnm-g have two layers of 64. Optimiser, batch size and number of updates are ours, the same for all models
of a task. They were chosen by the validation accuracy of one or two seeds of mnm-p and mnm-g: the learning rate on
copy, the limit of the gradient's norm on repeat copy (with 10, each new number of repeats erased what had been
learned), the batch size on associative recall.

With keys that can be rotated keys of the previous step, mnm-p copies sequences of twice the trained length: 99.2% of
the bits are right at 40 vectors, 96.3% at 50 (RESULTS.md; 3 seeds, 36 minutes on a core that was shared).

    python -m launch.train --config=launch/configs/algorithmic.py:copy/mnm-p \
      --workdir=runs/algorithmic/copy/mnm-p-follow --config.model.follow_keys=True --config.model.memory_layers=1 \
      --config.model.memory_features=128 --config.task.lengths="(30,40,50,120)" --config.task.curriculum=1500 \
      --config.training.steps=6000 --config.training.seeds=3

Expected (RESULTS.md; 5 seeds, one core of a shared CPU), test accuracy of mnm-p, mnm-g, lstm: copy 0.9996, 0.992,
0.844; repeat copy 1.0000, 0.9997, 0.793; double copy 0.982, 0.952, 0.779; associative recall 0.995, 0.996, 0.926;
priority sort 0.785, 0.753, 0.675. A memory takes 5 to 13 minutes for 3,000 updates, and 20 for associative recall.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section
from mnm_jax._checks import check_choice


class Setting(NamedTuple):
    """The settings of a task.

    Attributes:
      task: arguments of the task.
      steps: updates of the run.
      curriculum: updates until the task has its full size.
      batch_size: `B`.
    """

    task: dict[str, int]
    steps: int = 3000
    curriculum: int = 1500
    batch_size: int = 16


TASKS = {
    "copy": Setting(task={"length": 20}),
    "repeat_copy": Setting(task={"length": 10, "repeats": 10}, curriculum=2000),
    "double_copy": Setting(task={"length": 20}),
    "associative_recall": Setting(task={"length": 6}, steps=8000, curriculum=1000, batch_size=32),
    "priority_sort": Setting(task={"length": 20}),
}
_MEMORY: Settings = {
    "hidden_features": 100,
    "heads": 1,
    "memory_features": 64,
    "memory_layers": 2,
    "step_size": "normalised",
}
_SLOTS: Settings = {"hidden_features": 100, "slots": 64, "memory_features": 20}
MODELS: dict[str, Settings] = {
    "mnm-p": _MEMORY,
    "mnm-g": _MEMORY,
    "lstm-salu": {"hidden_features": 100, "slots": 64, "memory_features": 32},
    "ntm": _SLOTS,
    "dnc": _SLOTS,
    "lstm": {"hidden_features": 256},
}


def get_config(which: str = "copy/mnm-p") -> ConfigDict:
    """Returns the config of TASK/MODEL."""
    task, _, model = which.partition("/")
    check_choice("the recipe's task", task, TASKS)
    setting = TASKS[task]
    return ConfigDict(
        {
            "task": {"name": task, "curriculum": setting.curriculum, "evaluation_batches": 16, **setting.task},
            "model": choose_model(MODELS, model),
            "training": training_section(
                steps=setting.steps,
                batch_size=setting.batch_size,
                learning_rate=3e-3,
                schedule="cosine",
                warmup_steps=100,
                clip_norm=0.2,
                meta_weight=0.1,
                seeds=5,
                log_every=50,
                eval_every=250,
            ),
        }
    )
