"""Names that a model has not seen: each is read as a spare name of the kind that stands in the same places.

A model has no code for an unseen word, but names of one kind are exchangeable (`tasks.babi.symmetry`): a story about
Alice is a story about Mary under another name.
"""

import collections
import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

from tasks.babi.doubts import PRONOUNS
from tasks.babi.parser import Words
from tasks.babi.symmetry import kinds
from tasks.babi.vocabulary import Vocabulary

Context = str  # two words before a word and one after it, as in "to the $"; "*": a name, "^", "$": the ends
Contexts = Mapping[Words, Collection[Context]]  # the contexts of each kind of names

_NO_NAMES = frozenset(("everyone", "her", "him", "i", "it", "nobody", "them", "we"))  # may stand where names stand
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


def read_unseen(rows: Sequence[Words], vocabulary: Vocabulary, contexts: Contexts) -> dict[str, str]:
    """Returns, for each unseen word of a story, the word of the vocabulary as which it is read.

    Args:
      rows: words of the sentences of a story, and of a question about it if there is one, as the last row. If it begins
        with "who", names that are answers are taken first; if a row is followed by "she" or "he", names of such people.
      vocabulary: the words and answers of the model.
      contexts: from `find_contexts`.

    Raises:
      ValueError: a word stands where no kind of names stands, or all names of the kind are in the story.
    """
    words = frozenset(vocabulary.words)
    answers = frozenset(vocabulary.answers) if rows[-1][:1] == ("who",) else frozenset()
    used = {word for row in rows for word in row}
    unseen = dict.fromkeys(word for row in rows for word in row if word not in words)
    found: dict[str, set[Context]] = {word: set() for word in unseen}
    for row in rows:
        for word, context in _contexts(row, _NAMES, unseen):
            if word in unseen:
                found[word].add(context)
    assigned: dict[str, str] = {}
    for word in unseen:
        if word in _NO_NAMES:
            raise ValueError(_refusal(word, next(row for row in rows if word in row), words, ()))
        # Kinds of which the story has names come first: Bill and Julie are of one kind, Mary and John of another.
        fitting = [kind for kind, places in contexts.items() if all(_fits(context, places) for context in found[word])]
        fitting.sort(key=lambda kind: -len(used.intersection(kind)))
        names = [name for kind in fitting for name in kind if name in words]
        preferred = answers or _meant(word, rows)
        spare = sorted((name for name in names if name not in used), key=lambda name: name not in preferred)
        if not spare:
            raise ValueError(_refusal(word, next(row for row in rows if word in row), words, names))
        assigned[word] = spare[0]
        used.add(spare[0])
    return assigned


def near_words(word: str, words: Collection[str]) -> str:
    """Returns a clause that names the words of a vocabulary that are spelled like a word."""
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"near words are {', '.join(near)}" if near else "no word is near"


def _meant(word: str, rows: Sequence[Words]) -> Words:
    """Returns the names that a pronoun in the row after one with the word can mean; empty: there is none."""
    after = {pronoun for row, following in itertools.pairwise(rows) if word in row for pronoun in following}
    return next((people for pronoun, people in PRONOUNS.items() if pronoun in after), ())


def _contexts(row: Words, names: Collection[str], unseen: Collection[str] = ()) -> list[tuple[str, Context]]:
    """Returns each word with its context; "*" stands for a name, "?" for an unseen word."""
    shown = ["^", "^", *("?" if word in unseen else "*" if word in names else word for word in row), "$"]
    return [(word, f"{shown[i]} {shown[i + 1]} {shown[i + 3]}") for i, word in enumerate(row)]


def _fits(context: Context, places: Collection[Context]) -> bool:
    """Returns whether a context is among others; an unseen word in it may be any word."""
    parts = context.split()
    return any(all(part in ("?", there) for part, there in zip(parts, place.split(), strict=True)) for place in places)


def _refusal(word: str, row: Words, words: Collection[str], names: Sequence[str]) -> str:
    """Returns why a word of a row cannot be read: all `names` that could stand for it are used, or there are none."""
    where = f"{word!r} in {' '.join(row)!r}"
    if names:
        used = ", ".join(dict.fromkeys(names))
        return f"the model has no name left for {where}: all of {used} are in the story, or stand for other new names."
    return f"the word {where} is not in the vocabulary, and no name stands there; {near_words(word, words)}."
