"""Answers questions about a story with a trained model of bAbI or catbAbI.

    python -m launch.ask --workdir=results/babi/15_epochs/chain-p/seed_0 --story=story.txt
    python -m launch.ask --workdir=results/babi/15_epochs/chain-p/seed_0

A story has one sentence per line, of at most 11 words; capitals and punctuation do not matter. A line with a question
mark is a question; text after the mark is ignored, so that lines of the bAbI files may be given as they are:

    Mary moved to the bathroom.
    Alice went to the hallway!
    Where is Alice?

A line that begins with the number 1, as in the bAbI files, or the line `/new` ends the story and begins a new one;
blank lines are ignored. Without --story the lines are read from stdin; on a terminal each question is answered at once.

The program prints each question with its most probable answers and with the sentences whose write keys are most similar
to its read key (cosine, mean over heads: a row of the memory map). A percentage is the probability of an answer among
all answers of training, provided that the story determines the answer. Every training story does: the model has no
answer "unknown", and can give a high probability to a guess. The program therefore prints "unknown" and a guess without
a percentage, with the reason, if

* no question of training has the form of this one,
* the story does not mention a name in the question, or the name that is the answer,
* no sentences link the answer to the names in the question, as after "Mary went to the garden. John took the milk."
  garden and milk are not linked,
* the question itself has the name that is the answer, or
* the model has no such answer, as after "Daniel gave the milk to Mary. Who gave the milk?".

It cannot detect every question without an answer: after "John went to the garden. John gave the milk to Mary." Mary
and garden are linked, and a model may be sure that she is there.

An unseen word is read as a name that is not in the story, if it stands where such names stand (Alice as Daniel, say; an
adjective may be read as a colour), with a note; otherwise it is refused. A question sees at most as many sentences as
in training (70, or 130 for a model of task 3).

A model of catbAbI reads the lines as one endless conversation: its memory is never emptied, not even at a new story,
and its most probable answer is the next word that it reads, as the right answer is in training. It accepts only words
of training, and no sentences are printed with its answers. Only the lines since the last new story count for the
reasons above.

The words come from `vocabulary.json` in the run's folder, if it is there and --data_dir is not given. Otherwise they
are read from the bAbI archive, in --data_dir, else in the folder that the run's config names, else in the folder that
the environment variable MNM_BABI_DIR names; --save_vocabulary then writes the file.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, cast

from absl import flags

from launch.command import run_command
from launch.runs.load import load_trained
from mnm_jax.training import SequenceModel, Task
from tasks.babi import Babi, BabiStream
from tasks.babi.asking import NEW_STORY, Conversation, Teller, converse
from tasks.babi.language import Language, find_language, read_language, write_language
from tasks.babi.stream_asking import StreamConversation


class Reader(NamedTuple):
    """A trained model of bAbI or catbAbI, and the language of its data, which questions about a user's story need.

    Attributes:
      task: the task of the run.
      model: the model.
      language: returns words, answers and contexts of names in the data; reads them at the first call.
    """

    task: Babi | BabiStream
    model: SequenceModel
    language: Callable[[], Language]

    def conversation(self) -> Teller:
        """Returns a new conversation with the model."""
        if isinstance(self.task, BabiStream):
            return StreamConversation(self.task, self.model, self.language)
        return Conversation(self.task, self.model, self.language)


def load_babi(workdir: str | os.PathLike, seed: int | None = None, data_dir: str | None = None) -> Reader:
    """Returns the trained model of a run of bAbI or catbAbI; arguments and errors as in `load_trained`.

    The data set is not read if the folder of the run has a `vocabulary.json` and `data_dir` is None.

    Raises:
      ValueError: if the run belongs to another task, or its `vocabulary.json` is damaged.
    """
    language = read_language(workdir) if data_dir is None else None

    def prepare(task: Task) -> None:
        if not isinstance(task, Babi | BabiStream):
            raise ValueError(
                f"{workdir} is a run of the task {task.name}; only a model of babi or catbabi can answer questions: "
                "give the folder of its run as --workdir."
            )
        if language is not None:
            task.use_vocabulary(language.vocabulary)

    trained = load_trained(workdir, seed, data_dir, prepare)
    task = cast(Babi | BabiStream, trained.task)
    return Reader(task, trained.model, functools.cache(lambda: language or find_language(task)))


def main() -> None:
    reader = load_babi(_WORKDIR.value, _SEED.value, _DATA_DIR.value)
    if _SAVE_VOCABULARY.value:
        print(f"written: {write_language(_WORKDIR.value, reader.language())}")
        return
    on_terminal = _STORY.value is None and sys.stdin.isatty()
    if on_terminal:
        print(f"One sentence per line, questions with a question mark; {NEW_STORY} begins a new story, Ctrl-D ends.")
    print("Percentages: the probabilities of answers, if the story determines the answer.")
    story = sys.stdin if _STORY.value is None else open(_STORY.value, encoding="utf-8-sig", errors="replace")  # noqa: SIM115
    with story as lines:
        for text in converse(reader.conversation(), lines, keep_on=on_terminal):
            print(f"{text}\n", flush=True)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    _STORY = flags.DEFINE_string("story", None, "File with stories and questions; stdin if not given.")
    _SEED = flags.DEFINE_integer("seed", None, "One of the run's seeds; without it the first.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the bAbI archive, instead of the one in the config.")
    _SAVE_VOCABULARY = flags.DEFINE_bool("save_vocabulary", False, "Write vocabulary.json into the folder and stop.")
    run_command(main, "give the story as --story=FILE.")
