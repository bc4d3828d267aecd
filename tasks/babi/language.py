"""The part of the data that questions about a user's own story need; kept in the folder of a run."""

import json
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from mnm_jax._files import whole_file
from tasks.babi.doubts import QUESTION_WORDS, question_form
from tasks.babi.names import Contexts, find_contexts
from tasks.babi.stream import BabiStream
from tasks.babi.task import Babi
from tasks.babi.vocabulary import Vocabulary

VOCABULARY = "vocabulary.json"

_STORIES = 300  # of each task, in which the contexts of names are looked up


class Language(NamedTuple):
    """The part of the data that questions about a user's own story need.

    Attributes:
      vocabulary: words and answers.
      contexts: contexts of names, see `tasks.babi.names`.
      forms: forms of questions, see `tasks.babi.doubts.question_form`; empty if not known.
    """

    vocabulary: Vocabulary
    contexts: Contexts
    forms: Collection[str] = ()


def find_language(task: Babi | BabiStream) -> Language:
    """Returns the language of a task's data; a stream's language has no contexts, so that unseen names are refused."""
    rows = list(task.training_rows(_STORIES))
    forms = {question_form(row) for _, row in rows if row[0] in QUESTION_WORDS}
    contexts = {} if isinstance(task, BabiStream) else find_contexts(rows)
    return Language(task.vocabulary, contexts, forms)


def write_language(workdir: str | os.PathLike, language: Language) -> pathlib.Path:
    """Writes the language of a run's data into its folder, so that its model can be used without the data."""
    path = pathlib.Path(workdir) / VOCABULARY
    contexts = {" ".join(kind): sorted(places) for kind, places in language.contexts.items()}
    content = {**language.vocabulary._asdict(), "contexts": contexts, "forms": sorted(language.forms)}
    with whole_file(path) as file:
        file.write(json.dumps(content, separators=(",", ":")) + "\n")
    return path


def read_language(workdir: str | os.PathLike) -> Language | None:
    """Returns the language that was written into the folder of a run, or None.

    Raises:
      ValueError: if the file is damaged.
    """
    path = pathlib.Path(workdir) / VOCABULARY
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = Vocabulary(tuple(content["words"]), tuple(content["answers"]))
        contexts = {tuple(kind.split()): set(found) for kind, found in content["contexts"].items()}
        return Language(vocabulary, contexts, set(content.get("forms", ())))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); restore or delete it, and give --data_dir.") from error
