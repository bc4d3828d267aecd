"""Names that a model has not seen: each is read as a spare name of the kind that stands in the same places.

A model has no code for an unseen word, but names of one kind are exchangeable (`tasks.babi.symmetry`): a story about
Alice is a story about Mary under another name.
"""

import collections
import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

from tasks.babi.parser import Words
from tasks.babi.symmetry import kinds

Context = str  # two words before a word and one after it, as in "to the $"; "*": a name, "^", "$": the ends
Contexts = Mapping[Words, Collection[Context]]  # the contexts of each kind of names

# Every question begins with one of these words, and no sentence does.
QUESTION_WORDS = ("does", "how", "is", "what", "where", "who", "why")

# The words of questions that name nothing of a story: a question can be answered in a story without them.
_GRAMMAR = (
    "above before below bigger carrying color did do does east fit from gave get give go how in is left many north "
    "objects of received right south than the to was west what where who why will you"
)
_UNNAMED = frozenset(_GRAMMAR.split())
_NAMES = frozenset(name for task in range(1, 21) for kind in kinds(task) for name in kind)


def find_contexts(rows: Iterable[tuple[int, Words]]) -> dict[Words, set[Context]]:
    """Returns the contexts of each kind of names in sentences and questions, given with their tasks.

    Examples:
      >>> find_contexts([(1, ("mary", "went", "to", "the", "garden"))])[("daniel", "john", "mary", "sandra")]
      {'^ ^ went'}
    """
    found: dict[Words, set[Context]] = collections.defaultdict(set)
    for task, row in rows:
        for kind in kinds(task):
            found[kind].update(context for word, context in _contexts(row, _NAMES) if word in kind)
    return {kind: contexts for kind, contexts in found.items() if contexts}


def read_unseen(rows: Sequence[Words], words: Collection[str], contexts: Contexts) -> dict[str, str]:
    """Returns, for each unseen word of a story, the word of the vocabulary as which it is read.

    Args:
      rows: words of the sentences and questions of one story.
      words: the vocabulary.
      contexts: from `find_contexts`.

    Raises:
      ValueError: a word stands where no kind of names stands, or all names of the kind are in the story.
    """
    used = {word for row in rows for word in row}
    unseen = dict.fromkeys(word for row in rows for word in row if word not in words)
    found: dict[str, set[Context]] = {word: set() for word in unseen}
    for row in rows:
        for word, context in _contexts(row, _NAMES, unseen):
            if word in unseen:
                found[word].add(context)
    assigned: dict[str, str] = {}
    for word in unseen:
        # Kinds of which the story has names come first: Bill and Julie are of one kind, Mary and John of another.
        fitting = [kind for kind, places in contexts.items() if all(_fits(context, places) for context in found[word])]
        fitting.sort(key=lambda kind: -len(used.intersection(kind)))
        spare = [name for kind in fitting for name in kind if name in words and name not in used]
        if not spare:
            raise ValueError(_refusal(word, fitting, next(row for row in rows if word in row), words))
        assigned[word] = spare[0]
        used.add(spare[0])
    return assigned


def question_form(question: Words) -> str:
    """Returns a question with "*" for each word that names something of its story.

    Examples:
      >>> question_form(("is", "the", "red", "square", "below", "the", "triangle"))
      'is the * * below the *'
    """
    return " ".join(word if word in _UNNAMED else "*" for word in question)


def find_doubts(question: Words, answer: str, story: Collection[str], forms: Collection[str]) -> tuple[list[str], bool]:
    """Returns notes on how a question differs from all of training, and whether its answer can only be a guess.

    Every question of training has one of a few forms, and asks about names that its story has. Two exceptions: "is mary
    in the garden" has the answer "no" in a story without a garden, and "where will mary go" may have a new place as its
    answer.

    Args:
      question: its words.
      answer: the most probable answer.
      story: the words of the sentences before the question.
      forms: `question_form` of each question of training; empty: not known.
    """
    form = question_form(question)
    if forms and form not in forms:
        return [f"training has no question of the form {form!r}"], True
    named = [word for word in question if word not in _UNNAMED]
    absent = [word for word in dict.fromkeys(named) if word not in story]
    notes = [f"the story does not mention {word!r}" for word in absent]
    guessed = bool(absent) and (absent[0] == named[0] or form != "is * in the *")
    new = [name for name in answer.split(",") if name in _NAMES and name not in story]
    if new and not form.startswith("where will") and not guessed:
        return [*notes, f"the story does not mention the answer {new[0]!r}"], True
    return notes, guessed


def _contexts(row: Words, names: Collection[str], unseen: Collection[str] = ()) -> list[tuple[str, Context]]:
    """Returns each word with its context; "*" stands for a name, "?" for an unseen word."""
    shown = ["^", "^", *("?" if word in unseen else "*" if word in names else word for word in row), "$"]
    return [(word, f"{shown[i]} {shown[i + 1]} {shown[i + 3]}") for i, word in enumerate(row)]


def _fits(context: Context, places: Collection[Context]) -> bool:
    """Returns whether a context is among others; an unseen word in it may be any word."""
    parts = context.split()
    return any(all(part in ("?", there) for part, there in zip(parts, place.split(), strict=True)) for place in places)


def _refusal(word: str, fitting: Sequence[Words], row: Words, words: Collection[str]) -> str:
    if fitting:
        names = ", ".join(fitting[0])
        return f"the model has no name left for {word!r} in {' '.join(row)!r}: all of {names} are in the story."
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    hint = f"near words are {', '.join(near)}" if near else "no word is near"
    return f"the word {word!r} in {' '.join(row)!r} is not in the vocabulary, and no name stands there; {hint}."
