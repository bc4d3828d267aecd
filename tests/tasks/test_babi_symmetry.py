"""Tests renaming: the words that it changes and keeps, and that the answers still follow from the story."""

import numpy as np
import pytest

from tasks.babi.encode import encode_reading
from tasks.babi.readings import Reading
from tasks.babi.symmetry import _FREE, Renaming, _words
from tasks.babi.vocabulary import Vocabulary, build_vocabulary

READINGS = {
    1: Reading(
        tuple(tuple(s.split()) for s in ("mary went to the garden", "john left", "where is mary")),
        (None, None, "garden"),
        1,
        0,
    ),
    8: Reading((("mary", "got", "milk"), ("what", "has", "mary")), (None, "milk,football"), 8, 0),
    15: Reading(
        tuple(tuple(s.split()) for s in ("mice fear wolves", "sheep fear cats", "what is a mouse afraid of")),
        (None, None, "wolf"),
        15,
        0,
    ),
    19: Reading((("garden", "is", "north", "of", "office"), ("from", "office", "to", "garden")), (None, "n,w"), 19, 0),
    20: Reading((("sumit", "is", "hungry"), ("where", "to")), (None, "kitchen"), 20, 0),
}


def vocabulary():
    names = {word for groups in _FREE.values() for group in groups for entity in group for word in _words(entity)}
    compass = {"north", "east", "south", "west"}
    known = build_vocabulary(READINGS.values())
    pairs = [f"{a},{b}" for a in "nesw" for b in "nesw"]
    answers = sorted({*known.answers, *names, *pairs, "football,milk", "milk,apple"})
    return Vocabulary(tuple(sorted({*known.words, *names, *compass})), tuple(answers))


VOCABULARY = vocabulary()
RENAMING = Renaming(VOCABULARY)


def record(task):
    return encode_reading(READINGS[task], VOCABULARY.word_ids(), VOCABULARY.answer_ids())


def told(record):
    """Returns (sentences, answer at the end) of a record, as text."""
    rows = [" ".join(VOCABULARY.words[word - 1] for word in row if word) for row in record["words"]]
    return rows, VOCABULARY.answers[record["answers"][-1]]


def test_by_hand():
    names = {"mary": "john", "john": "mary", "garden": "office", "office": "garden"}
    renamed = RENAMING.apply(record(1), names)
    assert told(renamed) == (["john went to the office", "mary left", "where is john"], "office")
    assert renamed["answers"].tolist()[:2] == [-1, -1] and renamed["task"] == 1
    names = {"mouse": "wolf", "mice": "wolves", "wolf": "mouse", "wolves": "mice"}
    rows, answer = told(RENAMING.apply(record(15), names))
    assert rows == ["wolves fear mice", "sheep fear cats", "what is a wolf afraid of"] and answer == "mouse"


def test_the_record_that_was_given_is_left_as_it_is():
    given = record(1)
    before = {name: np.copy(value) for name, value in given.items()}
    RENAMING(given, np.random.default_rng(0))
    assert all(np.array_equal(given[name], before[name]) for name in before)


def test_an_answer_that_is_no_class_keeps_the_story():
    same = RENAMING.apply(record(8), {"milk": "apple", "apple": "milk"})  # "apple,football" is no class here
    assert told(same) == told(record(8))
    other = RENAMING.apply(record(8), {"milk": "football", "football": "milk"})
    assert told(other) == (["mary got football", "what has mary"], "football,milk")


@pytest.mark.parametrize("task", sorted(_FREE))
def test_a_renaming_is_a_permutation_of_the_names_of_the_task(task):
    rng = np.random.default_rng(task)
    drawn = [RENAMING.draw(task, rng) for _ in range(50)]
    for names in drawn:
        assert sorted(names) == sorted(names.values())
    everything = {word for group in _FREE[task] for entity in group for word in _words(entity)}
    assert everything <= set(drawn[0])
    assert all(len({names[word] for names in drawn}) > 1 for word in everything)
    assert not {"sheep", "hungry", "went", "he", "she"} & set(drawn[0])


def test_opposites_stay_opposite_and_letters_follow_words():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        names = RENAMING.draw(19, rng)
        order = ["north", "east", "south", "west"]
        turned = [order.index(names[word]) for word in order]
        assert {abs(turned[0] - turned[2]), abs(turned[1] - turned[3])} == {2}
        assert all(names[word[0]] == names[word][0] for word in order)
        seen.add(tuple(turned))
    assert len(seen) == 8


def test_she_stays_a_woman_and_the_hungry_go_to_the_kitchen():
    rng = np.random.default_rng(0)
    for _ in range(20):
        names = RENAMING.draw(11, rng)
        assert {names["mary"], names["sandra"]} == {"mary", "sandra"}
        assert told(RENAMING(record(20), rng))[1] == "kitchen"


def test_files_without_a_name_of_a_task_are_refused():
    for lost, tasks in (("sandra", (16, 1)), ("west", (1, 4))):
        few = Vocabulary(tuple(word for word in VOCABULARY.words if word != lost), VOCABULARY.answers)
        with pytest.raises(
            ValueError, match=f"^renaming needs all names of task {tasks[1]}, but the files lack {lost}"
        ):
            Renaming(few, tasks)
        Renaming(few, tasks[:1])
