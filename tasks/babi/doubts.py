"""Reasons to doubt an answer: in which respects a question and its answer differ from all of training."""

from collections.abc import Collection, Mapping, Sequence

from tasks.babi.parser import Words
from tasks.babi.symmetry import kinds

# Every question begins with one of these words, and no sentence does.
QUESTION_WORDS = ("does", "how", "is", "what", "where", "who", "why")

# The people whom a pronoun means. Only stories of tasks 11 and 13 have pronouns.
PRONOUNS = {"he": ("daniel", "john"), "she": ("mary", "sandra"), "they": ("daniel", "john", "mary", "sandra")}

# The words of questions that name nothing of a story: a question can be answered in a story without them.
_GRAMMAR = (
    "above before below bigger carrying color did do does east fit from gave get give go how in is left many north "
    "objects of received right south than the to was west what where who why will you"
)
_UNNAMED = frozenset(_GRAMMAR.split())
_SINGULAR = {"mice": "mouse", "cats": "cat", "wolves": "wolf"}
_KINDS = {frozenset(kind) for task in range(1, 21) for kind in kinds(task)}
_NAMES = frozenset().union(*_KINDS, _SINGULAR.values(), ["sheep"])


def question_form(question: Words) -> str:
    """Returns a question with "*" for each word that names something of its story.

    Examples:
      >>> question_form(("is", "the", "red", "square", "below", "the", "triangle"))
      'is the * * below the *'
    """
    return " ".join(word if word in _UNNAMED else "*" for word in question)


def find_doubts(
    question: Words,
    answer: str,
    story: Sequence[Words],
    forms: Collection[str],
    answers: Collection[str],
    shown: Mapping[str, str] | None = None,
) -> tuple[list[str], bool]:
    """Returns notes on how a question differs from all of training, and whether its answer can only be a guess.

    Every question of training has one of a few forms, and asks about names that its story has. Two exceptions: "is mary
    in the garden" has the answer "no" in a story without a garden, and "where will mary go" may have a new place as its
    answer. If the answer is a name, the question does not contain it, and sentences link it to every name in the
    question: one sentence has both, or a chain of sentences does in which each shares a name with the next.

    Args:
      question: its words.
      answer: the most probable answer.
      story: the words of each sentence before the question.
      forms: `question_form` of each question of training; empty: not known.
      answers: all answers that the model can give.
      shown: how notes show a word, if not as it is.
    """
    show = lambda word: repr((shown or {}).get(word, word))  # noqa: E731
    form = question_form(question)
    if forms and form not in forms:
        return [f"training has no question of the form {form!r}"], True
    story = [tuple(_SINGULAR.get(word, word) for word in row) for row in story]
    told = {word for row in story for word in row}
    named = list(dict.fromkeys(word for word in question if word not in _UNNAMED))
    absent = [word for word in named if word not in told]
    notes = [f"the story does not mention {show(word)}" for word in absent]
    if absent and (absent[0] == named[0] or form != "is * in the *"):
        return notes, True
    found = [name for name in answer.split(",") if name in _NAMES]
    if form.startswith("where will"):
        return notes, False
    for name in found:
        if name not in told:
            return [*notes, f"the story does not mention the answer {show(name)}"], True
        if name in named:
            return [*notes, f"the question names the answer {show(name)}"], True
        for other in sorted(_alternatives(name, named, story) - set(answers)):
            return [*notes, f"the model cannot give the answer {show(other)}"], True
    named = [name for name in named if name in _NAMES]
    if form.startswith("how do you go"):  # the answer is a path between the places of the question
        found = named[:1]
    for name in found:
        for other in sorted(set(named) - _linked_names(name, story)):
            return [*notes, f"no sentences link {show(other)} and {show(name)}"], True
    return notes, False


def _alternatives(name: str, named: Sequence[str], story: Sequence[Words]) -> set[str]:
    """Returns the names of the same kind in sentences that have a word of the question."""
    beside = {word for row in story if not set(named).isdisjoint(row) for word in row}
    return {other for kind in _KINDS if name in kind for other in kind & beside}


def _linked_names(name: str, story: Sequence[Words]) -> set[str]:
    """Returns the names that a chain of sentences links to a name, itself included.

    A sentence with a pronoun counts as one with the last sentence before it that has a person whom it can mean.
    """
    groups: list[set[str]] = []
    for row in story:
        names = set(_NAMES.intersection(row))
        meant = [people for pronoun, people in PRONOUNS.items() if pronoun in row]
        before = [group for group in groups if meant and not group.isdisjoint(meant[0])]
        if before:
            before[-1] |= names
        else:
            groups.append(names)
    linked = {name}
    for _ in groups:
        for names in groups:
            if not linked.isdisjoint(names):
                linked |= names
    return linked
