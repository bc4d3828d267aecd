"""Tests how often, and when, the bAbI task draws the stories of a task in training."""

import collections
import dataclasses
import itertools

import pytest

pytest.importorskip("grain")

from tasks.babi import Babi  # noqa: E402
from tests.tasks.test_babi_task import LONGER, write_data  # noqa: E402


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Returns tasks 1 (20 stories of two questions, 18 for training) and 6 (10 stories of one question, 9)."""
    root = tmp_path_factory.mktemp("babi")
    write_data(root, {1: (LONGER * 20, LONGER), 6: ("1 Mary left.\n2 Is Mary here?\tno\t1\n" * 10, LONGER)})
    return Babi(tasks=(1, 6), data_dir=str(root), size="1k", cache_dir=str(root / "cache"), embedding_features=5)


def test_oversampled_tasks_are_drawn_more_often(task):
    """An epoch has 18 stories of task 1, with five rows, and 9 of task 6, with two rows that are padded to three."""
    plain, often = task.loader(0, 4), dataclasses.replace(task, oversampled=(6, 6)).loader(0, 4)
    for loader, draws in ((plain, 1), (often, 3)):
        batches = itertools.islice(loader, loader.batches)
        drawn = collections.Counter(len(batch.mask) for batch in batches for _ in range(int(batch.mask[0].sum())))
        assert drawn[5] == 16, drawn  # two batches of eight stories; the last two stories do not fill a batch
        assert drawn[3] == 9 * draws // 8 * 8, drawn


def test_the_first_epochs_draw_the_first_tasks_alone(task):
    """Epochs of one batch of task 6, then of two of task 1 and one of task 6, also after a restart at any batch."""
    curriculum = dataclasses.replace(task, first_tasks=(6,), first_epochs=2)
    running, lengths, states = curriculum.loader(0, 4), [], []
    for _ in range(8):
        states.append(running.get_state())
        lengths.append(len(next(running).mask))
    assert lengths[:2] == [3, 3] and sorted(lengths[2:5]) == sorted(lengths[5:]) == [3, 5, 5]
    for begin in (1, 2, 4):
        resumed = curriculum.loader(0, 4)
        resumed.set_state(states[begin])
        assert [len(next(resumed).mask) for _ in range(8 - begin)] == lengths[begin:]
    with pytest.raises(ValueError, match=r"the saved loader has first_epochs=None, this one first_epochs=\[2, "):
        curriculum.loader(0, 4).set_state(task.loader(0, 4).get_state())
    position = task.loader(0, 4).get_state()
    del position["first_epochs"]  # as saved by earlier versions
    task.loader(0, 4).set_state(position)
    with pytest.raises(ValueError, match=r"the saved loader has first_epochs=\[2, .* this one first_epochs=None"):
        task.loader(0, 4).set_state(curriculum.loader(0, 4).get_state())
