"""catbAbI: endless streams of words from all 20 bAbI tasks, over which the memory is never reset.

    python -m launch.train --config=launch/configs/catbabi.py --workdir=runs/catbabi/question/chain-p
    python -m launch.train --config=launch/configs/catbabi.py:lm/mnm-p --workdir=runs/catbabi/language/mnm-p

Needs the official archive in `--config.task.data_dir` and `pip install '.[train,data]'`. After the colon: a model,
`chain-p` (default), `chain-g`, `mnm-p`, `mnm-g`, `lstm`, `lstm-salu` or `dnc`, with `lm/` before it for the language
mode; `lm` alone is `lm/chain-p`. The metric is the share of right answers, in both modes.

From the protocol (Schlag, Munkhdalai and Schmidhuber, ICLR 2021, see `tasks/babi/stream.py`): the stream, 32 parallel
streams in training and one in the test, windows of 200 words, Adam with a learning rate of 1e-3, 50,000 updates; for
mnm-p and mnm-g also an LSTM of 256 units. Chosen here: validation on a tenth of the training stories, the test of the
last update, clipping, warm-up, meta weight, and the sizes of the other models. Not of the protocol:

* The chained cells get the words of the sentence so far at every step (`reads="sentence"`), from which the encoder
  picks four words; their embeddings and LSTM have 128 features.
* mnm-p and mnm-g have embeddings of 128 features, one head, 8,192 fast weights and `equal_keys`, and are trained with
  Muon and weight decay. The write of mnm-p has two options that the paper does not have: `write_through` and
  `pre_activation` (`docs/deviations.md`).

Published test accuracy, question / language mode: fast weight memory (FWM) 96.75 / 93.04%, Transformer-XL 87.66 /
90.23%, MNM-p 88.97 / 69.3%, AWD-LSTM 80.88 / 80.15%.

Expected of chain-p with `--config.training.steps=6000 --config.training.schedule=trapezoid`: 94.5% of the test answers
(seed 1: 96.5%), 90% of the validation answers after 4,000 updates (seed 1: 2,500); seed 0 continued with
`--config.training.steps=13000`: 96.6%; and then with 17000: 96.8% (1 seed; 133, another 133 and 71 minutes on one core
of a CPU whose other core was busy; qa3 train = 1,925 genuine + 8,075 simulated questions). Of mnm-p with
`--config.training.steps=7000` and the same schedule: 90.2% (1 seed, 76 minutes); of lm/mnm-p with 6000: 76.6% (1 seed,
61 minutes); of mnm-g with 6000: 87.0% (1 seed, 84 minutes beside other work); of lstm and dnc with 6000: 78.5% and
77.1% (1 seed each). No model has been trained for all 50,000 updates; the other models have not been trained.
"""

from ml_collections import ConfigDict

from launch.configs import Settings, babi_joint, choose_model, training_section

_MEMORY: Settings = {
    "hidden_features": 256,
    "heads": 1,
    "memory_features": 64,
    "memory_layers": 2,
    "step_size": "normalised",
    "equal_keys": True,
}
MODELS: dict[str, Settings] = {  # 0.6 to 1.1 million parameters each
    "mnm-p": _MEMORY | {"write_through": True, "pre_activation": True},
    "mnm-g": _MEMORY,
    "chain-p": babi_joint.CHAIN,
    "chain-g": babi_joint.CHAIN,
    "lstm": {"hidden_features": 384},
    "lstm-salu": {"hidden_features": 256, "memory_features": 64, "slots": 64},
    "dnc": {"hidden_features": 256, "memory_features": 64, "slots": 64},
}


def get_config(which: str = "chain-p") -> ConfigDict:
    """Returns the config of a model, in the language mode after "lm/"."""
    language = which.split("/")[0] == "lm"
    model = choose_model(MODELS, which.removeprefix("lm").removeprefix("/") or "chain-p" if language else which)
    words = {"embedding_features": 256, "reads": "word", "entities": 0}
    optimizer: Settings = {"optimizer": "adam", "weight_decay": 0.0}
    if model["name"] in ("chain-p", "chain-g"):
        words = {"embedding_features": 128, "hidden_features": 256, "reads": "sentence", "entities": 4}
    if model["name"] in ("mnm-p", "mnm-g"):
        words["embedding_features"] = 128
        optimizer = {"optimizer": "muon", "weight_decay": 0.01}
    return ConfigDict(
        {
            "task": {
                "name": "catbabi",
                "tasks": tuple(range(1, 21)),
                "data_dir": "",  # the environment variable MNM_BABI_DIR
                "size": "10k",
                "window": 200,
                "mode": "language" if language else "question",
                **words,
            },
            "model": model,
            "training": training_section(
                steps=50000,
                batch_size=32,
                learning_rate=1e-3,
                warmup_steps=200,
                clip_norm=5.0,
                meta_weight=0.1,
                log_every=50,
                eval_every=500,
                checkpoint_seconds=240.0,
                **optimizer,
            ),
        }
    )
