"""Search spaces as plain data, and the trials that they describe.

A space consists of mappings and lists, so that it can be written as JSON:

    {"training.learning_rate": [1e-3, 3e-3], "model.heads": [1, 2]}    every combination: four trials
    {"product": [A, B]}    every trial of A with every trial of B
    {"zip": [A, B]}        the first trial of A with the first of B, the second with the second, ...
    {"chain": [A, B]}      the trials of A, then the trials of B
    {"seeds": 3}           training.seed 0, 1, 2
"""

import ast
import hashlib
import itertools
import json
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from launch.runs.changes import apply
from launch.runs.plain import plain_config, plain_value

Changes = dict[str, Any]  # values of settings by name, such as "training.learning_rate"
DEFAULT = "recipe"


class PlannedTrial(NamedTuple):
    """A trial that is ready to start.

    Attributes:
      name: a hash of the changes, so that a trial keeps its folder in a larger sweep; `DEFAULT` without changes.
      changes: settings that differ from the recipe.
      command: words of the command line.
      config: the whole config, of plain values.
    """

    name: str
    changes: Changes
    command: list[str]
    config: dict[str, Any]


def expand(space: Mapping[str, Any]) -> list[Changes]:
    """Returns the settings of every trial of a space; the setting that is named last varies fastest.

    Raises:
      ValueError: if the space is malformed, a setting is given twice for one trial, or JSON does not have a value.

    Examples:
      >>> expand({"chain": [{"model.heads": [1, 2]}, {"product": [{"model.heads": [4]}, {"seeds": 2}]}]})[1:]
      [{'model.heads': 2}, {'model.heads': 4, 'training.seed': 0}, {'model.heads': 4, 'training.seed': 1}]
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"a search space is a mapping of settings, or of one of {_known()}, got {space!r}.")
    if not all(isinstance(name, str) for name in space):
        raise ValueError(f"the names of a search space are texts, got {', '.join(map(repr, space))}.")
    if all("." in name for name in space):
        return _merge(itertools.product(*(_values(name, values) for name, values in space.items())))
    if len(space) > 1:
        raise ValueError(f"a search space has settings (SECTION.KEY) or one of {_known()}, got {', '.join(space)}.")
    ((operator, content),) = space.items()
    if operator == "seeds":
        if not isinstance(content, int) or isinstance(content, bool) or content < 1:
            raise ValueError(f"seeds must be a whole number >= 1, got {content!r}.")
        return [{"training.seed": seed} for seed in range(content)]
    if operator not in _OPERATORS:
        raise ValueError(f"{operator!r} is no setting (SECTION.KEY), nor one of {_known()}.")
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise ValueError(f"{operator} takes a list of search spaces, got {content!r}.")
    return _OPERATORS[operator]([expand(part) for part in content])


def choose_trials(trials: Sequence[Changes], number: int | None) -> list[Changes]:
    """Returns `{}`, the recipe, then `number` trials drawn at random (all for None) in the order of the space.

    The draw is always the same, and a larger number only adds trials to it.

    Raises:
      ValueError: if the number is not from 1 to the number of trials, or two trials are the same.
    """
    seen: set[str] = set()
    for changes in trials:
        if (name := _name(changes)) in seen:
            raise ValueError(f"the space has a trial twice: {changes}; remove one of the two.")
        seen.add(name)
    if number is not None and not 1 <= number <= len(trials):
        raise ValueError(f"num_trials must be from 1 to {len(trials)}, the trials of the space, got {number}.")
    order = random.Random(0).sample(range(len(trials)), len(trials))
    chosen = [trials[index] for index in sorted(order[:number])]
    return [{}, *filter(None, chosen)]


def plan(changes: Changes, config: ConfigDict, words: Sequence[str], workdir: pathlib.Path) -> PlannedTrial:
    """Returns a trial that is ready to start; raises as `apply`.

    Args:
      changes: settings that differ from the recipe.
      config: the config of the recipe.
      words: words of the command line that choose and change the recipe, see `recipe_flags`.
      workdir: folder of the sweep.
    """
    name, changed = _name(changes), apply(config, changes)
    settings = {f"config.{setting}": value for setting, value in changes.items()}
    # A setting is named once: absl joins the values of a tuple that is named twice.
    words = [word for word in words if word.partition("=")[0].removeprefix("--") not in settings]
    words += [_word(setting, value) for setting, value in settings.items()]
    command = ["python", "-m", "launch.train", *words, f"--workdir={workdir / 'trials' / name}"]
    return PlannedTrial(name=name, changes=changes, command=command, config=plain_config(changed))


def recipe_flags(flag: flags.Flag) -> list[str]:
    """Returns the words that give a command the same config: `--config=FILE`, then `--config.KEY=VALUE` per override.

    They are written from the values that absl parsed, however the command line or a flag file gave them.

    Args:
      flag: the parsed flag of a config file, `FLAGS["config"]`.
    """
    words = [f"--{flag.name}={config_flags.get_config_filename(flag)}"]
    overrides = config_flags.get_override_values(flag)
    return words + [_word(f"{flag.name}.{key}", value) for key, value in overrides.items()]


def _word(name: str, value: Any) -> str:
    """Returns `--NAME=VALUE` with a value that is read as a Python literal, or else as a text (`define_config`)."""
    plain = value.to_dict() if isinstance(value, ConfigDict) else value
    return f"--{name}={plain if isinstance(plain, str) and not _is_literal(plain) else repr(plain)}"


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text in ("true", "false")  # read as bools
    return True


def _name(changes: Changes) -> str:
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8] if changes else DEFAULT


def _values(name: str, values: Any) -> list[Changes]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"{name} takes a list of values, got {values!r}.")
    return [{name: plain_value(value, name)} for value in values]


def _product(parts: list[list[Changes]]) -> list[Changes]:
    return _merge(itertools.product(*parts))


def _zip(parts: list[list[Changes]]) -> list[Changes]:
    sizes = [len(part) for part in parts]
    if len(set(sizes)) > 1:
        raise ValueError(f"zip takes search spaces of equally many trials, got {', '.join(map(str, sizes))}.")
    return _merge(zip(*parts, strict=True))


def _chain(parts: list[list[Changes]]) -> list[Changes]:
    return list(itertools.chain.from_iterable(parts))


def _merge(rows: Iterable[Sequence[Changes]]) -> list[Changes]:
    merged = []
    for row in rows:
        names = [name for changes in row for name in changes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice for one trial; put the two under chain, or drop one.")
        merged.append({name: value for changes in row for name, value in changes.items()})
    return merged


_OPERATORS: dict[str, Callable[[list[list[Changes]]], list[Changes]]] = {
    "product": _product,
    "zip": _zip,
    "chain": _chain,
}


def _known() -> str:
    return ", ".join([*_OPERATORS, "seeds"])
