"""Renders a sequence as text."""

from collections.abc import Sequence


def time_line(tokens: Sequence[str], answers: Sequence[str], titles: tuple[str, str] = ("input", "answer")) -> str:
    """Returns two rows, the input of each step and below it the answer that counts there.

    Args:
      tokens: input of each step.
      answers: target of each step; "" where `loss_mask` is 0.
      titles: names of the two rows.

    Examples:
      >>> print(time_line(["e9", "b4", "|", ".", "."], ["", "", "", "e9", "b4"]))
      input   e9 b4 | .  .
      answer          e9 b4
    """
    columns = list(zip(tokens, answers, strict=True))
    rows = (" ".join(column[row].ljust(max(map(len, column))) for column in columns) for row in (0, 1))
    return "\n".join(f"{title:8}{row}".rstrip() for title, row in zip(titles, rows, strict=True))
