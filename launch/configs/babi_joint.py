"""bAbI, all 20 tasks trained jointly, 10,000 training questions each: the table of the paper.

    python -m launch.train --config=launch/configs/babi_joint.py --workdir=runs/babi/chain-p

Needs the official archive in `--config.task.data_dir` and `pip install '.[train,data]'`. The model is the chained
memory cell with the learned local rule. A colon selects another model: `--config=launch/configs/babi_joint.py:chain-g`,
`:lstm`, `:lstm-salu`. A batch has about 128 questions, whatever the number of stories; an epoch is 1,366 updates.

People, places and things are renamed in training (`renaming`, an exact symmetry of the stories, see
`tasks/babi/symmetry.py`); as far as we know, published results were trained without it. The memory is linear: a write
with the normalised step is then exact from the first update, whereas the layers of a deeper memory must first be
trained. The encoder selects four words of every sentence, the entities that the chained cell writes and reads.

Expected (RESULTS.md; 20,490 updates, one core of a shared CPU), mean test error: chain-p 0.07 +- 0.01% (3 seeds, 55
to 96 minutes each; 0.21 +- 0.09% without renaming, 3 seeds), chain-g 0.035% (1 seed, 45 minutes), lstm 12.5% (40),
lstm-salu 13.9% (68).
"""

from ml_collections import ConfigDict

from launch.configs import Settings, choose_model, training_section

CHAIN: Settings = {
    "hidden_features": 128,
    "heads": 2,
    "hops": 3,
    "relation_features": 8,
    "step_size": "normalised",
    "readout_features": 128,
}
_MODELS: dict[str, Settings] = {
    "chain-p": CHAIN,
    "chain-g": CHAIN,
    "lstm": {"hidden_features": 256},
    "lstm-salu": {"hidden_features": 128, "memory_features": 96, "slots": 135},
}


def get_config(model: str = "chain-p") -> ConfigDict:
    """Returns the config of a model."""
    return ConfigDict(
        {
            "task": {
                "name": "babi",
                "tasks": tuple(range(1, 21)),
                "data_dir": "",  # the environment variable MNM_BABI_DIR
                "size": "10k",
                "embedding_features": 128,
                "renaming": True,
                "hidden_features": 256,
                "entities": 4,
                "entity_features": 48,
            },
            "model": choose_model(_MODELS, model),
            "training": training_section(
                steps=20490,
                batch_size=128,
                learning_rate=1e-3,
                schedule="cosine",
                warmup_steps=200,
                clip_norm=5.0,
                meta_weight=0.1,
                log_every=50,
                eval_every=1366,
                checkpoint_seconds=240.0,
            ),
        }
    )
