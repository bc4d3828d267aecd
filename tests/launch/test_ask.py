"""Tests `launch.ask` with the weights of the repository: answers follow from a given story, without the data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.ask import load_babi
from launch.reporting.draw import report_run
from launch.runs.build import build_parts
from launch.runs.evaluate import evaluate_run
from launch.runs.workdir import read_config, write_json
from mnm_jax import MNMCell, local_memory
from mnm_jax.analysis import memory_maps
from mnm_jax.training import SequenceModel, save_params
from tasks.babi import Babi
from tasks.babi.asking import Conversation, converse, format_answer, sentence_words
from tasks.babi.language import VOCABULARY, Language, find_language, read_language, write_language
from tasks.babi.vocabulary import Vocabulary

SUMMARY = dict.fromkeys(("seeds", "steps", "seconds", "parameters"), 1) | {"metrics": {}}
SUMMARY |= {"task": "babi", "model": "chain-p", "command": "launch.train"}
RUN = pathlib.Path(__file__).parents[2] / "results/babi/15_epochs/chain-p/seed_0"


@pytest.fixture(scope="module")
def reader():
    return load_babi(RUN)


@pytest.fixture(scope="module")
def conversation(reader):
    """A conversation whose program is compiled once; every test begins a new story."""
    return Conversation(*reader)


@pytest.fixture
def tell(conversation):
    def tell(*lines):
        """Returns the answers to the questions of a new story."""
        conversation.tell("/new")
        return [answer for line in lines if (answer := conversation.tell(line)) is not None]

    return tell


def test_answers_follow_the_story_in_any_spelling(tell):
    lines = ["Mary moved to the bathroom.", "", "3 Where is Mary?\tgarden\t1", "  MARY, travelled to the KITCHEN!"]
    first, second = tell(*lines, "where is mary?")
    assert [answer.answers[0][0] for answer in (first, second)] == ["bathroom", "kitchen"]
    assert not first.guessed and not first.notes
    assert first.answers[0][1] > 0.9 and second.answers[0][1] > 0.9
    # Only sentences before the question are compared with it.
    assert [text for _, _, text in first.sentences] == ["Mary moved to the bathroom."]
    assert {number for _, number, _ in second.sentences} == {1, 2}
    assert [alike for alike, _, _ in second.sentences] == sorted((s[0] for s in second.sentences), reverse=True)


def test_the_weights_of_the_paper_s_cell_follow_a_thing_and_its_places():
    """Tasks 2 and 3: the place of a thing is that of the person who carries it, now and before."""
    conversation = Conversation(*load_babi(RUN.parents[2] / "muon/mnm-p/seed_1"))
    for line in (
        "Mary got the milk.",
        "John went to the office.",
        "Mary went to the kitchen.",
        "Mary went to the garden.",
    ):
        conversation.tell(line)
    questions = ("Where is the milk?", "Where was the milk before the garden?", "Where is John?")
    found = [conversation.tell(question).answers[0] for question in questions]
    assert [answer for answer, _ in found] == ["garden", "kitchen", "office"]
    assert min(probability for _, probability in found) > 0.9


def test_a_question_does_not_change_the_story(tell):
    story = ["Mary went to the garden.", "John went to the office.", "Where is Mary?"]
    after = tell(story[0], "Where is Mary?", *story[1:])[-1]
    (alone,) = tell(*story)
    np.testing.assert_allclose([p for _, p in after.answers], [p for _, p in alone.answers], rtol=1e-5)


def test_a_model_with_think_steps_answers_at_the_last_one():
    """The reference is computed step by step, every row from a new controller and with the writes that it keeps."""
    task = Babi(think_steps=2, controller="sentence", embedding_features=5)
    task.use_vocabulary(Vocabulary(words=("is", "left", "mary", "where"), answers=("garden", "home", "office")))
    rngs = nnx.Rngs(0)
    cell = MNMCell(5, 4, local_memory(4, 4, hidden_sizes=()), rngs=rngs)
    model = SequenceModel(task.encoder(rngs), cell, 3, rngs=rngs)
    conversation = Conversation(task, model, lambda: Language(task.vocabulary, {}))
    assert conversation.tell("Mary left.") is None
    answer = conversation.tell("Where is Mary?")
    rows = np.zeros((4, 12), np.int32)
    rows[0, :2], rows[1, :3], rows[1:, 11] = (3, 2), (4, 1, 3), (5, 6, 7)  # "?" and the think steps are words, too
    start = carry = model.start(1)
    for step, row in enumerate(rows):
        begun = carry if step > 1 else start._replace(memory=carry.memory)
        new, logits = model.step(begun, jnp.asarray(row)[None])
        carry = new if step == 0 else new._replace(memory=carry.memory)
    expected = jax.nn.softmax(logits[0])
    assert len(answer.answers) == 3 and np.ptp(expected) > 1e-3
    for name, probability in answer.answers:
        np.testing.assert_allclose(probability, expected[task.answers.index(name)], rtol=1e-5)
    assert [text for _, _, text in answer.sentences] == ["Mary left."]


def test_sentences_with_think_steps_are_shown_by_their_best_step():
    """The reference takes the cosines of the read keys of the question's steps and the write keys of all others."""
    task = Babi(think_steps=2, sentence_think_steps=1, controller="sentence", embedding_features=5)
    task.use_vocabulary(Vocabulary(words=("is", "john", "left", "mary", "where"), answers=("garden", "home")))
    rngs = nnx.Rngs(0)
    cell = MNMCell(5, 4, local_memory(4, 4, hidden_sizes=()), rngs=rngs)
    model = SequenceModel(task.encoder(rngs), cell, 2, rngs=rngs)
    conversation = Conversation(task, model, lambda: Language(task.vocabulary, {}))
    story = ("Mary left.", "John left.", "Where is John?")
    shown = [conversation.tell(line) for line in story][-1].sentences
    rows = task.encode([sentence_words(line) for line in story])
    example = task.layout.arrange({"words": rows, "answers": np.array([-1, -1, 0])})
    batch = jax.tree.map(lambda leaf: leaf[:, None], example)
    trace = model(batch.inputs, **batch.flags).cell.trace
    keys = memory_maps(jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), trace)).keys
    expected = [keys[4:, :2].max(), keys[4:, 2:4].max()]  # steps 0 and 1, 2 and 3, and 4 to 6 for the question
    assert abs(expected[0] - expected[1]) > 1e-3 and len(shown) == 2
    for similarity, number, text in shown:
        np.testing.assert_allclose(similarity, expected[number - 1], rtol=1e-4)
        assert text == story[number - 1]


def test_an_unseen_name_is_read_as_a_spare_one_and_answers_with_its_own(tell):
    story = ["Mary went to the garden.", "Alice went to the pub.", "Alice picked up the lamp."]
    where, who, lamp = tell(*story, "Where is Alice?", "Is Alice in the garden?", "Where is the lamp?")
    assert [answer.answers[0][0] for answer in (where, who, lamp)] == ["pub", "no", "pub"]
    assert where.notes[0] == "'alice' is new, and read as 'daniel'"  # not Mary, whom the story has
    assert not who.notes and not lamp.notes  # a name is noted once
    story = ["Mary went to the garden.", "Daniel went to the bathroom.", "Daniel picked up the apple."]
    (known,) = tell(*story, "Where is Daniel?")
    np.testing.assert_allclose(where.answers[0][1], known.answers[0][1], rtol=1e-5)


def test_a_name_before_a_pronoun_is_read_as_one_that_the_pronoun_means(tell):
    (she,) = tell("Alice went to the garden.", "Then she went to the kitchen.", "Where is Alice?")
    assert she.notes == ["'alice' is new, and read as 'mary'"] and she.answers[0][0] == "kitchen"
    (he,) = tell("Alan went to the garden.", "Then he went to the kitchen.", "Where is Alan?")
    assert he.notes == ["'alan' is new, and read as 'daniel'"] and he.answers[0][0] == "kitchen"


def test_a_name_is_of_the_kind_of_the_others(tell):
    (answer,) = tell("Bill went to the cinema yesterday.", "Zoe went to the pub this morning.", "Is Zoe in the pub?")
    assert answer.notes == ["'zoe' is new, and read as 'fred'", "'pub' is new, and read as 'bedroom'"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Mary jorneyed to the garden."], "'jorneyed' in 'mary jorneyed to the garden' .* near words are journeyed"),
        (["Alice flew to the pub."], "the word 'flew' in 'alice flew to the pub' is not in the vocabulary"),
        (["Mary xyzzyxed to the garden."], "no name stands there; no word is near"),
        (["to " * 12], "a sentence of 12 words, 1 to 11 can be encoded"),
        (["1 Mary xyzzyxed to the garden."], "the word 'xyzzyxed'"),
        (["?"], "a sentence of 0 words"),
        (["Alice went to the garden.", "?"], "a sentence of 0 words"),
        (["Mary took the milk.", "It is in the garden."], "the word 'it' in 'it is in the garden' is not in"),
        (["John went to the office. Where is Mary?"], "a line must have one sentence, got 'John went"),
        (["John went to the office.Daniel left."], "a line must have one sentence, got 'John went"),
        (["Where is Mary? Where is John?"], "a line must have one question, got 'Where is Mary"),
        (
            ["Where is Mary"],
            "no sentence begins with 'where', got 'Where is Mary': end a question with a question mark",
        ),
        (
            ["Brian is a frog.", "Greg is a lion.", "Lily is a rhino.", "Julius is a swan.", "Bernhard is a unicorn."],
            "no name left for 'unicorn' in 'bernhard is a unicorn': all of frog, lion, rhino, swan are in the story",
        ),
    ],
)
def test_a_line_that_cannot_be_read_is_named_and_changes_nothing(tell, conversation, lines, message):
    tell("Mary went to the garden.", *lines[:-1])
    with pytest.raises(ValueError, match=message):
        conversation.tell(lines[-1])
    assert conversation.tell("Where is Mary?").answers[0][0] in ("garden", "office")


def test_stories_do_not_merge(conversation, tell):
    tell("1 Mary went to the garden.", "2 John went to the office.")
    number = conversation.story
    texts = list(converse(conversation, ["1 Daniel went to the office.", "2 Where is Daniel?\toffice\t1"]))
    assert texts[0] == f"--- story {number + 1}"
    assert "1 Daniel went to the office." in texts[1] and "Mary" not in texts[1]
    (text,) = converse(conversation, ["/new", "Mary went to the garden."], keep_on=True)
    assert text == f"--- story {number + 2}"
    with pytest.raises(ValueError, match="the story has no question: end a line with a question mark"):
        list(converse(conversation, ["Mary went to the garden."]))
    with pytest.raises(ValueError, match="^line 2: the story: a sentence of 0 words"):
        list(converse(conversation, ["Mary went to the garden.", "?"]))
    (text,) = converse(conversation, ["to " * 12], keep_on=True)
    assert text.startswith("left out: the story: a sentence of 12 words")


def test_a_question_about_a_name_that_the_story_lacks_has_no_probability(tell):
    john, kitchen = tell("Mary went to the garden.", "Where is John?", "Is Mary in the kitchen?")
    assert john.guessed and john.notes == ["the story does not mention 'john'"]
    assert format_answer(john).splitlines()[1].startswith("= unknown; a guess is ") and "%" not in format_answer(john)
    assert not kitchen.guessed and kitchen.answers[0][0] == "no"
    assert format_answer(kitchen).splitlines()[:3] == [
        "? Is Mary in the kitchen?",
        f"= {'   '.join(f'{text} {p:.1%}' for text, p in kitchen.answers)}",
        "  ! the story does not mention 'kitchen'",
    ]


def test_a_question_or_an_answer_unlike_in_training_has_no_probability(tell):
    (place,) = tell("Mary picked up the milk.", "Where is the milk?")
    assert place.guessed and place.notes == [f"the story does not mention the answer {place.answers[0][0]!r}"]
    who, why = tell("Mary went to the office.", "Who is Mary?", "Why did Mary go to the kitchen?")
    assert who.guessed and who.notes == ["training has no question of the form 'who is *'"]
    assert why.guessed and why.notes == ["the story does not mention 'kitchen'"]


def test_a_question_with_who_reads_unseen_people_as_names_that_can_be_answers(tell):
    who, receiver = tell("Alice gave the milk to Bob.", "Who gave the milk?", "Who received the milk?")
    assert who.notes == ["'alice' is new, and read as 'mary'", "'bob' is new, and read as 'bill'"]
    assert [answer.answers[0][0] for answer in (who, receiver)] == ["alice", "bob"]
    assert not who.guessed and not receiver.guessed
    (receiver,) = tell("Mary gave the milk to Alice.", "Who received the milk?")
    assert receiver.answers[0][0] == "alice" and not receiver.guessed
    (who,) = tell("Brian is a tiger.", "Fred gave the milk to Bill.", "Who gave the milk?")
    assert who.answers[0][0] == "fred" and who.notes == ["'tiger' is new, and read as 'frog'"]
    (giver,) = tell("Daniel gave the milk to Mary.", "Who gave the milk?")  # Daniel is no answer of training
    assert giver.guessed and giver.notes == ["the model cannot give the answer 'daniel'"]


def test_a_doubt_names_the_words_of_the_story(tell):
    (where,) = tell("Alice went to the pub.", "Where is Zoe?")
    assert where.guessed and where.notes[-1] == "the story does not mention 'zoe'"


def test_a_question_sees_as_many_sentences_as_in_training(reader, monkeypatch):
    monkeypatch.setattr(type(reader.task), "longest_story", 3)
    conversation = Conversation(*reader)
    for line in ("Mary went to the garden.", *["John went to the office."] * 3):
        conversation.tell(line)
    answer = conversation.tell("Where is Mary?")
    assert answer.guessed and answer.notes[-1] == "the question sees the last 3 of 4 sentences, as in training"
    assert {number for _, number, _ in answer.sentences} == {2, 3, 4}


def test_the_limit_is_that_of_the_longest_task():
    limits = {"max_sentences": 7, "max_sentences_task3": 9}
    assert [Babi(tasks=tasks, **limits).longest_story for tasks in ((1, 2), (3,), (1, 3))] == [7, 9, 9]


def test_a_language_is_kept_in_a_file(tmp_path, reader):
    write_language(tmp_path, reader.language())
    assert read_language(tmp_path) == reader.language()
    assert read_language(tmp_path / "elsewhere") is None
    (tmp_path / VOCABULARY).write_text('{"words": []}')
    with pytest.raises(ValueError, match=r"vocabulary\.json is damaged"):
        load_babi(tmp_path)


def test_a_seed_or_a_run_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="seed must be one of the run's seeds, 0, in .*seed_0, got seed=1"):
        load_babi(RUN, seed=1)
    with pytest.raises(FileNotFoundError, match="no run in"):
        load_babi(tmp_path)


def test_data_that_is_named_takes_the_place_of_the_kept_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="no bAbI data in .*nowhere"):
        load_babi(RUN, data_dir=str(tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_run_without_kept_words_reads_them_from_the_data_wherever_it_is(tmp_path, capsys):
    for package in ("array_record", "grain", "tensorflow_datasets"):
        pytest.importorskip(package)
    folder = tmp_path / "data/tasks_1-20_v1-2/en"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        story = "1 Mary went to the garden.\n2 Where is Mary?\tgarden\t1\n3 Mary went to the office.\n"
        (folder / f"qa1_name_{split}.txt").write_text(story + "4 Where is Mary?\toffice\t3\n")
    task = {"name": "babi", "size": "1k", "data_dir": str(tmp_path / "nowhere"), "cache_dir": str(tmp_path / "cache")}
    model = {"name": "chain-p", "hidden_features": 4, "relation_features": 2, "heads": 1, "hops": 1}
    config = {
        "task": task | {"entities": 2, "entity_features": 3, "embedding_features": 4},
        "model": model,
        "training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-2},
    }
    write_json(tmp_path / "config.json", config)
    write_json(tmp_path / "summary.json", SUMMARY)
    data = str(tmp_path / "data")
    parts = build_parts(read_config(tmp_path, data))
    params = jax.tree.map(lambda leaf: leaf[None], nnx.state(parts.make_model(nnx.Rngs(0)), nnx.Param))
    save_params(tmp_path, params, 1)

    for use in (load_babi, evaluate_run):
        with pytest.raises(FileNotFoundError, match="no bAbI data in .*nowhere"):
            use(tmp_path)
    report_run(tmp_path)
    assert "no memory map" in capsys.readouterr().err and not list((tmp_path / "figures").glob("memory_map*"))
    report_run(tmp_path, data)
    assert "no memory map" not in capsys.readouterr().err and list((tmp_path / "figures").glob("memory_map*"))
    assert 0 <= evaluate_run(tmp_path, data)[0]["test/accuracy"] <= 1
    reader = load_babi(tmp_path, data_dir=data)
    (answer,) = converse(Conversation(*reader), ["Alice went to the garden.", "Where is Alice?"])
    assert answer.startswith("? Where is Alice?\n= ") and "! 'alice' is new, and read as 'mary'" in answer
    write_language(tmp_path, reader.language())
    assert load_babi(tmp_path).task.vocabulary == reader.task.vocabulary


def test_the_words_of_the_repository_are_those_of_the_data(babi_dir, tmp_path, reader):
    for package in ("array_record", "grain", "tensorflow_datasets"):
        pytest.importorskip(package)
    data = Babi(tasks=(1, 6), size="1k", data_dir=str(babi_dir), cache_dir=str(tmp_path))
    found = find_language(data)
    assert set(found.vocabulary.words) < set(reader.task.vocabulary.words)
    for kind, contexts in found.contexts.items():
        assert contexts <= reader.language().contexts[kind]
    assert found.forms and found.forms <= reader.language().forms
