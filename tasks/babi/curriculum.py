"""The first epochs of a training, which draw only a part of the training stories."""

import zlib
from typing import NamedTuple

import numpy as np


class Curriculum(NamedTuple):
    """The records and the number of the first epochs of a training.

    Attributes:
      drawn: places in the split of the records of each of these epochs, `[n]`.
      epochs: their number.
    """

    drawn: np.ndarray
    epochs: int


def fingerprint(first: Curriculum | None) -> list[int] | None:
    """Returns what a saved position records of the first epochs; JSON can hold it."""
    return None if first is None else [first.epochs, zlib.crc32(first.drawn.tobytes())]
