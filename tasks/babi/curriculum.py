"""The first epochs of a training, which draw only a part of the training stories."""

import zlib
from typing import NamedTuple

import numpy as np


class Curriculum(NamedTuple):
    """First epochs that draw only some of the training stories.

    Attributes:
      drawn: indices of the stories that each of these epochs draws, `[n]`.
      epochs: number of these epochs.
    """

    drawn: np.ndarray
    epochs: int


def fingerprint(first: Curriculum | None) -> list[int] | None:
    """Returns the number of first epochs and a checksum of their stories, for a saved position; None without them."""
    return None if first is None else [first.epochs, zlib.crc32(first.drawn.tobytes())]
