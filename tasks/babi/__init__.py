"""bAbI question answering: the task, and the parser of the data set's text format."""

from tasks.babi.parser import BabiFormatError, Question, parse
from tasks.babi.task import Babi

__all__ = ["Babi", "BabiFormatError", "Question", "parse"]
