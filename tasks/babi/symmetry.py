"""Renaming of people, places and things: exact symmetries of the generators of the tasks.

A story in which Mary and John have exchanged names, in sentences, questions and answers alike, is as likely as the
original story. Names without such a symmetry are not changed: the places of task 20, in which hungry people go to the
kitchen, and sheep, whose singular and plural are the same word.

Shape letters: `T` rows of a reading, `W` words of a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.babi.encode import NO_QUESTION
from tasks.babi.vocabulary import Vocabulary

Entity = tuple[str, ...]  # all words for one thing

_PEOPLE = ("daniel", "john", "mary", "sandra")
_OTHERS = ("bill", "fred", "julie", "mary")
_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_TOWN = ("bedroom", "cinema", "kitchen", "office", "park", "school")
_THINGS = ("apple", "football", "milk")
_COMPASS = (("north", "n"), ("east", "e"), ("south", "s"), ("west", "w"))

# For each task, groups of names that may be exchanged freely.
_FREE: dict[int, list[Sequence[str | Entity]]] = {
    **{task: [_PEOPLE, _ROOMS] for task in (1, 9, 12, 13)},
    **{task: [_PEOPLE, _ROOMS, _THINGS] for task in (2, 3, 6, 7, 8)},
    **{task: [_OTHERS, _TOWN] for task in (10, 14)},
    4: [_ROOMS],
    5: [("bill", "fred", "jeff", "mary"), _ROOMS, _THINGS],
    11: [("mary", "sandra"), ("daniel", "john"), _ROOMS],  # pronouns: she, he
    15: [("emily", "gertrude", "jessica", "winona"), (("mouse", "mice"), ("cat", "cats"), ("wolf", "wolves"))],
    16: [
        ("bernhard", "brian", "greg", "julius", "lily"),
        ("frog", "lion", "rhino", "swan"),
        ("gray", "green", "white", "yellow"),
    ],
    17: [("left", "right"), ("above", "below")],
    18: [],
    19: [_ROOMS],
    20: [("antoine", "jason", "sumit", "yann")],
}
# Quarter turns and reflections: north may become east, and opposite directions stay opposite.
_TURNED = {4: _COMPASS, 19: _COMPASS}


def kinds(task: int) -> list[tuple[str, ...]]:
    """Returns the groups of single words that may be exchanged in a task, such as its people; not directions."""
    if task == 17:
        return []
    single = [tuple(name for name in group if isinstance(name, str)) for group in _FREE[task]]
    return [names for names, group in zip(single, _FREE[task], strict=True) if len(names) == len(group)]


class Renaming:
    """Draws a renaming for a reading and applies it to its record.

    Args:
      vocabulary: the vocabulary of the records.
      tasks: tasks whose names are checked.

    Raises:
      ValueError: if the vocabulary has some but not all names of a group whose names a task exchanges.

    Examples:
      >>> words = ("bathroom", "bedroom", "is", "john", "mary", "where")
      >>> renaming = Renaming(Vocabulary(words=words, answers=("bathroom", "bedroom")))
      >>> record = {"words": np.array([[6, 3, 5]]), "answers": np.array([0]), "task": 1, "story_index": 0}
      >>> names = {"mary": "john", "john": "mary", "bathroom": "bedroom", "bedroom": "bathroom"}
      >>> renamed = renaming.apply(record, names)  # "where is mary" becomes "where is john"
      >>> renamed["words"].tolist(), renamed["answers"].tolist()
      ([[6, 3, 4]], [1])
    """

    def __init__(self, vocabulary: Vocabulary, tasks: Sequence[int] = ()):
        self._ids = vocabulary.word_ids()
        for task in tasks:
            groups = [{word for entity in group for word in _words(entity)} for group in _FREE[task]]
            groups += [set(names) for names in zip(*_TURNED.get(task, ()), strict=True)]
            for group in groups:
                missing = sorted(group - self._ids.keys())
                if missing and len(missing) < len(group):
                    lack = f"the files lack {', '.join(missing)}"
                    raise ValueError(f"renaming needs all names of task {task}, but {lack}: set renaming=False.")
        self._size = vocabulary.size
        self._answers = [tuple(answer.split(",")) for answer in vocabulary.answers]
        self._classes = {answer: place for place, answer in enumerate(self._answers)}

    def draw(self, task: int, rng: np.random.Generator) -> dict[str, str]:
        """Returns the new name of each old one, uniform over the symmetries of the task."""
        names: dict[str, str] = {}
        for group in _FREE[task]:
            for old, place in zip(group, rng.permutation(len(group)), strict=True):
                names.update(zip(_words(old), _words(group[place]), strict=True))
        if task in _TURNED:
            turn, mirror = rng.integers(4), rng.integers(2)
            for place, directions in enumerate(_TURNED[task]):
                new = _TURNED[task][(turn + (-place if mirror else place)) % 4]
                names.update(zip(directions, new, strict=True))
        return names

    def apply(self, record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        """Returns the record with words `[T, W]` and answers `[T]` renamed; unchanged if an answer has no class."""
        answers = np.array(record["answers"])
        for row in np.flatnonzero(answers != NO_QUESTION):
            renamed = tuple(names.get(word, word) for word in self._answers[answers[row]])
            if renamed not in self._classes:
                return dict(record)
            answers[row] = self._classes[renamed]
        table = np.arange(self._size, dtype=np.int32)
        for old, new in names.items():
            if old in self._ids:
                table[self._ids[old]] = self._ids[new]
        return {**record, "words": table[record["words"]], "answers": answers}

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the record under a renaming drawn for its task."""
        return self.apply(record, self.draw(int(record["task"]), rng))


def _words(entity: str | Entity) -> Entity:
    return (entity,) if isinstance(entity, str) else entity
