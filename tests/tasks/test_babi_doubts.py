"""Tests how lines become words, and which questions differ from all questions of training."""

import pathlib

import pytest

from tasks.babi.archive import read_files
from tasks.babi.asking import sentence_words, split_line
from tasks.babi.doubts import QUESTION_WORDS, find_doubts
from tasks.babi.language import read_language
from tasks.babi.parser import parse

RUN = pathlib.Path(__file__).parents[2] / "results/babi/15_epochs/chain-p/seed_0"
FORMS = {"where is *", "where is the *", "is * in the *", "where will * go", "why did * go to the *"}
STORY = [("mary", "went", "to", "the", "garden"), ("mary", "took", "the", "milk")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Mary,then  to the KITCHEN!!", ("mary", "then", "to", "the", "kitchen")),
        ("“Mary” went — slowly — to the garden…", ("mary", "went", "slowly", "to", "the", "garden")),
        ("7 Jean-Luc's (old) box;", ("jean-luc's", "old", "box")),
        ("Where's the milk?", ("where", "is", "the", "milk")),
        ("3 Where is Mary ??\tgarden\t1", ("where", "is", "mary")),
    ],
)
def test_punctuation_does_not_matter(line, words):
    assert sentence_words(split_line(line)[1]) == words


@pytest.mark.parametrize(
    ("question", "answer", "notes", "guessed"),
    [
        ("where is mary", "garden", [], False),
        ("where is mary", "office", ["the story does not mention the answer 'office'"], True),
        ("where is fred", "office", ["the story does not mention 'fred'"], True),
        ("where will mary go", "office", [], False),
        ("why did mary go to the office", "hungry", ["the story does not mention 'office'"], True),
        ("is mary in the office", "no", ["the story does not mention 'office'"], False),
        ("is fred in the garden", "no", ["the story does not mention 'fred'"], True),
        ("where is the apple", "apple,milk", ["the story does not mention 'apple'"], True),
        ("who is mary", "garden", ["training has no question of the form 'who is *'"], True),
    ],
)
def test_a_question_that_the_story_cannot_answer_is_a_guess(question, answer, notes, guessed):
    assert find_doubts(tuple(question.split()), answer, STORY, FORMS, ("garden",)) == (notes, guessed)


@pytest.mark.parametrize(
    ("story", "question", "answer", "note"),
    [
        ("mary went to the garden; john took the milk", "where is the milk", "garden", "link 'milk' and 'garden'"),
        ("mary went to the garden; she took the milk", "where is the milk", "garden", ""),
        ("john took the milk; john gave the milk to mary; mary is in the office", "where is the milk", "office", ""),
        ("lily is white; brian is a frog", "what color is brian", "white", "no sentences link 'brian' and 'white'"),
        ("lily is white; lily is a frog; brian is a frog", "what color is brian", "white", ""),
        (
            "mice are afraid of wolves; gertrude is a cat",
            "what is gertrude afraid of",
            "wolf",
            "link 'gertrude' and 'wolf'",
        ),
        ("mice are afraid of wolves; gertrude is a mouse", "what is gertrude afraid of", "wolf", ""),
        (
            "mary went to the garden; mary went to the office",
            "where was mary before the office",
            "office",
            "the question names the answer 'office'",
        ),
        (
            "the garden is north of the office; the kitchen is west of the bedroom",
            "how do you go from the garden to the kitchen",
            "n,n",
            "no sentences link 'kitchen' and 'garden'",
        ),
        (
            "the garden is north of the office; the kitchen is west of the office",
            "how do you go from the garden to the kitchen",
            "s,w",
            "",
        ),
        ("john gave the milk to mary", "who gave the milk", "mary", "the model cannot give the answer 'john'"),
        ("bill gave the milk to mary", "who gave the milk", "bill", ""),
        ("mary gave the milk to bill; daniel went to the garden", "who gave the milk", "mary", ""),
        (
            "mary went to the garden; john went to the office; she took the milk",
            "where is the milk",
            "garden",
            "",
        ),
    ],
)
def test_an_answer_that_no_sentences_link_to_the_question_is_a_guess(story, question, answer, note):
    rows = [tuple(row.split()) for row in story.split("; ")]
    answers = ("bill", "garden", "mary", "n,n", "office", "s,w", "white", "wolf")
    notes, guessed = find_doubts(tuple(question.split()), answer, rows, (), answers)
    assert guessed == bool(note) and len(notes) == guessed and note in "".join(notes)


def test_a_run_without_forms_of_questions_accepts_all_of_them():
    assert find_doubts(("who", "is", "mary"), "garden", STORY, (), ("garden",)) == ([], False)


def test_no_question_of_the_data_is_a_guess(babi_dir):
    language = read_language(RUN)
    files = read_files(babi_dir, "1k", range(1, 21))
    for task in range(1, 21):
        file = files[task, "test"]
        for item in parse(file.data, file.path, task):
            doubts = find_doubts(item.question, item.answer, item.story, language.forms, language.vocabulary.answers)
            assert not doubts[1], (item.question, doubts)
            assert item.question[0] in QUESTION_WORDS and all(row[0] not in QUESTION_WORDS for row in item.story)
