"""The tasks of the Neural Turing Machine and their kin: bits in, bits out, one task a file."""

from tasks.algorithmic.associative_recall import AssociativeRecall
from tasks.algorithmic.copy import Copy
from tasks.algorithmic.double_copy import DoubleCopy
from tasks.algorithmic.pairs import Pairs
from tasks.algorithmic.priority_sort import PrioritySort
from tasks.algorithmic.repeat_copy import RepeatCopy

__all__ = ["AssociativeRecall", "Copy", "DoubleCopy", "Pairs", "PrioritySort", "RepeatCopy"]
