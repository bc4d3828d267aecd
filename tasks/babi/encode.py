"""A question as a sequence of sentences, each a row of word ids.

Shape letters: `T` sentences of the story that are kept, plus one for the question; `W` words of a sentence.
"""

from collections.abc import Mapping

import numpy as np

from tasks.babi.parse import Question
from tasks.babi.vocabulary import PADDING

WORDS = 11  # the longest sentence of the 20 tasks


def encode_question(question: Question, word_ids: Mapping[str, int], max_sentences: int) -> np.ndarray:
    """int32 `[T, W]`: the last `max_sentences` sentences of the story, then the question; short rows end in 0.

    Raises:
        ValueError: a sentence is longer than `W` = 11 words.
    """
    sentences = [*question.story[-max_sentences:], question.question]
    encoded = np.full((len(sentences), WORDS), PADDING, np.int32)
    for row, sentence in zip(encoded, sentences, strict=True):
        if len(sentence) > WORDS:
            raise ValueError(
                f"task {question.task}, story {question.story_index}: a sentence of {len(sentence)} words, "
                f"at most {WORDS} can be encoded: {' '.join(sentence)!r}."
            )
        row[: len(sentence)] = [word_ids[word] for word in sentence]
    return encoded
