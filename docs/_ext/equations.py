r"""Translates the plain-text equations of docstrings into LaTeX.

The notation is that of the docstrings: `phi_{t-1}`, `k^w_t`, `sum_h`, `grad_phi`, `(x)` for an outer product, ` o ` for
an elementwise product, `<-` for an assignment, words for text. Two spaces or more separate columns.

>>> print(to_latex("W_l <- W_l - beta c sum_h x_{l,h} (x) delta_h   (learned)"))
W_{l} &\leftarrow W_{l} - \beta c \sum_{h} x_{l,h} \otimes \delta_{h} \qquad ( \text{learned} )
"""

import re

_GREEK = re.compile(r"alpha|beta|gamma|delta|epsilon|eta|theta|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|psi|omega")
_NAMES = {"sum": r"\sum", "prod": r"\prod", "grad": r"\nabla"}
_SYMBOLS = {"<-": r"\leftarrow", "->": r"\to", "<=": r"\le", ">=": r"\ge", "...": r"\dots", "*": r"\cdot"}
_SYMBOLS |= {"%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TOKEN = re.compile(r"\s+|`[^`]*`|\"[^\"]*\"|[A-Za-z]+|\d+(?:[.,]\d+)*|<-|->|<=|>=|\.\.\.|.")
_CODE = re.compile(r"[A-Za-z_)]\.[A-Za-z]|==|#|\bimport\b|--|>>>|\|\s*$")
_EQUALS = re.compile(r"\s(=|<-)\s")


def is_equations(lines: list[str]) -> bool:
    """Returns whether an indented block of a docstring holds equations, not code or a drawing."""
    filled = [line for line in lines if line.strip()]
    equal = sum(bool(_EQUALS.search(line)) for line in filled)
    return 2 * equal >= len(filled) > 0 and not any(_CODE.search(line) for line in filled)


def to_math(lines: list[str]) -> str:
    """Returns a block of equations as LaTeX, aligned at each line's first equals sign."""
    rows = [to_latex(line) for line in lines if line.strip()]
    return " \\\\\n".join(rows) if len(rows) > 1 else re.sub(r"(?<!\\)&", "", rows[0])


def to_latex(line: str) -> str:
    """Returns one line as LaTeX, with the alignment mark `&` before its first equals sign."""
    line = line.strip()
    relation = next((m for m in _EQUALS.finditer(line) if _depth(line[: m.start()]) == 0), None)
    if relation is None:
        return "& " + _convert(line)
    before, after = line[: relation.start()].rstrip(), line[relation.end() :]
    return f"{_convert(before)} &{_SYMBOLS.get(relation[1], relation[1])} {_convert(after)}"


def _depth(text: str) -> int:
    return sum(text.count(c) for c in "([{") - sum(text.count(c) for c in ")]}")


def _convert(text: str, script: bool = False) -> str:
    tokens = _TOKEN.findall(text)
    parts: list[str] = []
    i = 0
    while i < len(tokens):
        part, i = _next(tokens, i, script)
        if part.startswith(r"\text{ ") and parts and parts[-1].startswith(r"\text{ "):
            part = parts.pop()[:-1] + part[len(r"\text{ ") :]  # one text of several words
        if part:
            parts.append(part)
    glue = "" if script else " "
    latex = re.sub(r" ?([_^]\{)", r"\1", glue.join(parts))
    return re.sub(r"([(\[] \\text\{) ", r"\1", re.sub(r" \}( [,;)\]])", r"}\1", latex))  # no space inside brackets


def _next(tokens: list[str], i: int, script: bool) -> tuple[str, int]:
    """Returns the LaTeX that begins at token i, and the index after it."""
    token, after = tokens[i], tokens[i + 1] if i + 1 < len(tokens) else ""
    if token.isspace():
        return (r"\qquad" if len(token) > 1 else ""), i + 1
    if token in "_^":
        end = _closing(tokens, i + 1) if after == "{" else i + 2
        inner = "".join(tokens[i + 2 : end - 1] if after == "{" else tokens[i + 1 : end])
        content = r"\top" if (token, inner) == ("^", "T") else _convert(inner, script=True)
        return f"{token}{{{content}}}", end
    if token[0] in '`"' and len(token) > 1:
        return rf"\texttt{{{token.strip('`')}}}", i + 1
    if token == "sqrt" and after == "(":
        end = _closing(tokens, i + 1)
        return rf"\sqrt{{{_convert(''.join(tokens[i + 2 : end - 1]))}}}", end
    if token == "(" and tokens[i : i + 3] == ["(", "x", ")"] and i and tokens[i - 1].isspace():
        return r"\otimes", i + 3
    if token == "o" and after.isspace() and i and tokens[i - 1].isspace():
        return r"\odot", i + 1
    if token == "." and after.isspace() and i and tokens[i - 1].isspace():
        return r"\cdot", i + 1
    if token.isalpha():
        return _word(tokens, i, script)
    return _SYMBOLS.get(token, token), i + 1


def _word(tokens: list[str], i: int, script: bool) -> tuple[str, int]:
    word = tokens[i]
    following = [*tokens[i + 1 : i + 3], "", ""]
    if following[0] == ":":
        return rf"\text{{{word}:}}\quad", i + 2
    if word in _NAMES or _GREEK.fullmatch(word):
        return _NAMES.get(word, rf"\{word}") + (" " if script else ""), i + 1
    if len(word) == 1:
        return word, i + 1
    if following[0] == "_" and following[1].isalpha() and len(following[1]) > 1 and not _GREEK.fullmatch(following[1]):
        end = i + 1  # an identifier, such as max_norm
        while end < len(tokens) and (tokens[end] == "_" or tokens[end].isalnum()):
            end += 1
        return rf"\texttt{{{''.join(tokens[i:end])}}}", end
    if following[0] in ("(", "_", "^", "["):
        return rf"\operatorname{{{word}}}", i + 1
    return rf"\mathrm{{{word}}}" if script else rf"\text{{ {word} }}", i + 1


def _closing(tokens: list[str], i: int) -> int:
    """Returns the index after the bracket that closes the one at token i."""
    pairs = {"(": ")", "{": "}"}
    depth = 0
    for j in range(i, len(tokens)):
        depth += (tokens[j] == tokens[i]) - (tokens[j] == pairs[tokens[i]])
        if depth == 0:
            return j + 1
    return len(tokens)
