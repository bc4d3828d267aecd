"""Answers questions about a story with a trained bAbI model.

    python -m launch.ask --workdir=runs/babi/chain-p --story=story.txt
    python -m launch.ask --workdir=runs/babi/chain-p < story.txt

The story has one sentence per line. A line with a question mark is a question; text after the mark is ignored, so that
lines of the bAbI files may be given as they are:

    Mary moved to the bathroom.
    John went to the hallway.
    Where is Mary?

The program prints each question with its most probable answers and with the sentences whose write keys are most similar
to its read key (cosine, mean over heads: a row of the memory map). The story may continue after a question.

The vocabulary is built from the bAbI archive, which is read from --data_dir, else from the folder that the run's config
names, else from the folder that the environment variable MNM_BABI_DIR names.
"""

import os
import sys

from absl import flags

from launch.command import run_command
from launch.runs.load import load_model
from mnm_jax.training import SequenceModel
from tasks.babi import Babi
from tasks.babi.asking import ask, format_answer


def load_babi(workdir: str | os.PathLike, seed: int = 0, data_dir: str | None = None) -> tuple[Babi, SequenceModel]:
    """Returns the task and the trained model of a bAbI run; arguments and errors as in `load_model`.

    Raises:
      ValueError: if the run belongs to another task.
    """
    task, model = load_model(workdir, seed, data_dir)
    if not isinstance(task, Babi):
        raise ValueError(f"{workdir} is a run of the task {task.name}; only a model of babi can answer questions.")
    return task, model


def _read_story(path: str | None) -> list[str]:
    if path is not None:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    if sys.stdin.isatty():
        print("One sentence per line, questions with a question mark; end with Ctrl-D.", file=sys.stderr)
    return sys.stdin.read().splitlines()


def main() -> None:
    task, model = load_babi(_WORKDIR.value, _SEED.value, _DATA_DIR.value)
    print("\n\n".join(map(format_answer, ask(task, model, _read_story(_STORY.value)))))


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _STORY = flags.DEFINE_string("story", None, "File with the story and its questions; stdin if not given.")
    _SEED = flags.DEFINE_integer("seed", 0, "Index of the seed in the run, from 0.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the bAbI archive, instead of the one in the config.")
    run_command(main, "give the story as --story=FILE.")
