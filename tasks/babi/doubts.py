"""Reasons to doubt an answer: in which respects a question and its answer differ from all of training."""

from collections.abc import Collection, Sequence

from tasks.babi.parser import Words
from tasks.babi.symmetry import kinds

# Every question begins with one of these words, and no sentence does.
QUESTION_WORDS = ("does", "how", "is", "what", "where", "who", "why")

# The words of questions that name nothing of a story: a question can be answered in a story without them.
_GRAMMAR = (
    "above before below bigger carrying color did do does east fit from gave get give go how in is left many north "
    "objects of received right south than the to was west what where who why will you"
)
_UNNAMED = frozenset(_GRAMMAR.split())
_PRONOUNS = frozenset(("he", "she", "they"))
_SINGULAR = {"mice": "mouse", "cats": "cat", "wolves": "wolf"}
_KINDS = [frozenset(kind) for task in range(1, 21) for kind in kinds(task)]
_NAMES = frozenset().union(*_KINDS, _SINGULAR.values(), ["sheep"])


def question_form(question: Words) -> str:
    """Returns a question with "*" for each word that names something of its story.

    Examples:
      >>> question_form(("is", "the", "red", "square", "below", "the", "triangle"))
      'is the * * below the *'
    """
    return " ".join(word if word in _UNNAMED else "*" for word in question)


def find_doubts(
    question: Words, answer: str, story: Sequence[Words], forms: Collection[str], answers: Collection[str]
) -> tuple[list[str], bool]:
    """Returns notes on how a question differs from all of training, and whether its answer can only be a guess.

    Every question of training has one of a few forms, and asks about names that its story has. Two exceptions: "is mary
    in the garden" has the answer "no" in a story without a garden, and "where will mary go" may have a new place as its
    answer. A name of the story that answers a question is not in the question, and is linked to each name that is: by a
    sentence that has both, or by a chain of sentences of which each has a name of the next.

    Args:
      question: its words.
      answer: the most probable answer.
      story: the words of each sentence before the question.
      forms: `question_form` of each question of training; empty: not known.
      answers: all answers that the model can give.
    """
    form = question_form(question)
    if forms and form not in forms:
        return [f"training has no question of the form {form!r}"], True
    story = [tuple(_SINGULAR.get(word, word) for word in row) for row in story]
    told = {word for row in story for word in row}
    named = list(dict.fromkeys(word for word in question if word not in _UNNAMED))
    absent = [word for word in named if word not in told]
    notes = [f"the story does not mention {word!r}" for word in absent]
    if absent and (absent[0] == named[0] or form != "is * in the *"):
        return notes, True
    reason = _find_reason(form, named, [name for name in answer.split(",") if name in _NAMES], story, answers)
    return ([*notes, reason], True) if reason else (notes, False)


def _find_reason(
    form: str, named: Sequence[str], found: Sequence[str], story: Sequence[Words], answers: Collection[str]
) -> str:
    """Returns why an answer with the names `found` can only be a guess, or an empty text."""
    told = {word for row in story for word in row}
    new = [name for name in found if name not in told]
    if form.startswith("where will"):
        return ""
    if new:
        return f"the story does not mention the answer {new[0]!r}"
    for name in found:
        if name in named:
            return f"the question names the answer {name!r}"
        others = sorted(other for kind in _KINDS if name in kind for other in kind & told if other not in answers)
        if others:
            return f"the model cannot give the answer {others[0]!r}"
    named = [name for name in named if name in _NAMES]
    if form.startswith("how do you go"):  # the answer is a path between the places of the question
        found = named[:1]
    for name in found:
        others = sorted(set(named) - _linked_names(name, story))
        if others:
            return f"no sentences link {others[0]!r} and {name!r}"
    return ""


def _linked_names(name: str, story: Sequence[Words]) -> set[str]:
    """Returns the names that a chain of sentences links to a name, itself included.

    The person that a pronoun means is in a sentence before it, so that the sentences count as one.
    """
    groups: list[set[str]] = []
    for row in story:
        names = _NAMES.intersection(row)
        if groups and not _PRONOUNS.isdisjoint(row):
            groups[-1] |= names
        else:
            groups.append(names)
    linked = {name}
    for _ in groups:
        for names in groups:
            if not linked.isdisjoint(names):
                linked |= names
    return linked
