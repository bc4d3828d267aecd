"""Tasks on tokens on which layers of sequence models are compared: recall, copying and the tracking of a state."""

from tasks.league.noisy_recall import NoisyRecall
from tasks.league.recall import Recall
from tasks.league.selective_copy import SelectiveCopy
from tasks.league.words import S3, Parity

__all__ = ["S3", "NoisyRecall", "Parity", "Recall", "SelectiveCopy"]
