"""Changes of single settings of a config."""

import copy
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from launch.runs.build import build_parts
from launch.runs.plain import plain_config


def apply(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a recipe's config with some settings changed, such as `{"model.heads": 2}`.

    A setting that the recipe leaves out can be changed too.

    Raises:
      ValueError: if there is no such setting, or a value is of another type than that of the recipe.
    """
    changed = copy.deepcopy(config)  # with the types that `define_config` allows
    absent = False
    for name, value in changes.items():
        section, *keys = name.split(".")
        if len(keys) != 1:
            raise ValueError(f"a setting is named SECTION.KEY, such as model.heads, got {name!r}.")
        (key,) = keys
        if section not in changed:
            raise ValueError(f"the recipe has no section {section!r}, got the setting {name!r}.")
        absent |= key not in changed[section]
        try:
            with changed[section].unlocked():
                changed[section][key] = value
        except TypeError as error:
            raise ValueError(f"{name} of the recipe is {changed[section][key]!r}, got {value!r}.") from error
    if absent:
        build_parts(plain_config(changed))  # refuses unknown keys
    return changed
