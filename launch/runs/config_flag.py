"""The flag `--config`: a recipe, or the `config.json` of a run; `--config.SECTION.KEY=VALUE` changes a setting."""

import importlib.machinery
import json
import pathlib
import sys
import traceback
import types
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from launch.runs.own import FOLDER, add_folder

_RECIPES = pathlib.Path(__file__).parents[1] / "configs"
_HELP = "The recipe: a Python file with get_config(), such as those of launch/configs, or the config.json of a run."


def define_config() -> flags.FlagHolder:
    """Defines the required flag `--config` and returns its holder, whose value is a `ConfigDict`.

    A value is a Python literal, or else a string; the objects that the config describes check its type. Keys that the
    recipe leaves out can be set.
    """
    holder = config_flags.DEFINE_config_file("config", help_string=_HELP, lock_config=False, accept_new_attributes=True)
    flags.FLAGS["config"].parser = _Parser()
    flags.mark_flag_as_required("config")
    return holder


class _Parser(flags.ArgumentParser):
    """Reads the config; absl reports a ValueError with the flag."""

    def parse(self, path: str) -> ConfigDict:
        file, *choice = path.split(":", 1)
        if not pathlib.Path(file).is_file():
            raise ValueError(f"there is no file {file!r}; name a recipe, or the config.json of a run.")
        if not file.endswith(".json"):
            return _run(file, choice)
        if choice:
            raise ValueError("a config.json has no choices; leave out the colon and what follows.")
        return _loosened(_read(file))


def _run(file: str, choice: list[str]) -> ConfigDict:
    """Returns what `get_config` of a recipe returns; an error other than a wrong choice is reported with its line.

    The config of a recipe outside this package gets the key "folder"; the recipe may import and name
    modules of this folder.
    """
    folder = pathlib.Path(file).absolute().parent
    is_own = folder.resolve() != _RECIPES.resolve()
    if is_own:
        add_folder(str(folder))
    loader = importlib.machinery.SourceFileLoader("_recipe", file)  # a name of its own: a recipe may import recipe.py
    module = types.ModuleType(loader.name)
    module.__file__ = file
    sys.modules[loader.name] = module  # as for any import; dataclasses look their module up
    try:
        loader.exec_module(module)
        config = module.get_config(*choice)
    except ValueError:
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f"line {lines[-1]}: " if lines else ""
        raise ValueError(f"{where}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() must return a ConfigDict, got a value of type {type(config).__name__}.")
    config = _loosened(config)
    if is_own and FOLDER not in config:
        config[FOLDER] = str(folder)
    return config


def _read(file: str) -> ConfigDict:
    try:
        content = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the file is damaged ({error}); restore it, or name the recipe.") from error
    if not isinstance(content, dict):
        raise ValueError("the file holds no JSON object; name the config.json of a run.")
    return ConfigDict(content)


def _loosened(config: ConfigDict) -> ConfigDict:
    """Returns a copy in which every setting may take a value of any type, as None in place of a number.

    Lists become tuples, for which JSON has no syntax. A setting that is a tuple must stay one, since ml_collections
    accepts more spellings of a tuple on the command line than Python literals.
    """
    loose: dict[str, Any] = {}
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            loose[key] = _loosened(value)
        elif isinstance(value, tuple | list):
            loose[key] = tuple(value)
        else:
            loose[key] = value if isinstance(value, FieldReference) else FieldReference(value, field_type=object)
    return ConfigDict(loose)
