"""Algorithmic tasks after the Neural Turing Machine: vectors of bits in, vectors of bits out, one task per file."""

from tasks.algorithmic.associative_recall import AssociativeRecall
from tasks.algorithmic.copy import Copy
from tasks.algorithmic.double_copy import DoubleCopy
from tasks.algorithmic.pairs import Pairs
from tasks.algorithmic.priority_sort import PrioritySort
from tasks.algorithmic.repeat_copy import RepeatCopy

__all__ = ["AssociativeRecall", "Copy", "DoubleCopy", "Pairs", "PrioritySort", "RepeatCopy"]
