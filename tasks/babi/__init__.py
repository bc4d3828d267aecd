"""bAbI question answering: the tasks `Babi` and `BabiStream`, and the parser of the data set's text format."""

from tasks.babi.parser import BabiFormatError, Question, parse
from tasks.babi.stream import BabiStream
from tasks.babi.task import Babi

__all__ = ["Babi", "BabiFormatError", "BabiStream", "Question", "parse"]
