"""From a YAML file and `key=value` words to nested plain values, and the one error type for what is wrong in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A config that cannot be used. The message names the file or the command line, the key, the value, the remedy."""

    exit_status = 2

    def __init__(self, source: str | Path, problem: str, *, key: str = "", remedy: str) -> None:
        where = f"{source}: {key}" if key else f"{source}"
        super().__init__(f"{where}: {problem}; {remedy}")
        self.key = key


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-5 is a number (YAML 1.1 reads text), a key given twice an error (PyYAML: the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`; raises ConstructorError for a repeated key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", mark)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def find_config(path: Path, shipped: Path) -> Path:
    """`path` itself where it is a file, else the config of that name in the folder `shipped`, ".yaml" added or not.

    Raises ConfigError naming those that are shipped.
    """
    if path.exists() and not path.is_dir():
        return path
    for name in (path.name, f"{path.name}.yaml"):
        if (shipped / name).is_file() and path.parent == Path():
            return shipped / name
    there = [found.stem for found in sorted(shipped.glob("*.yaml"))]
    problem = "is a folder" if path.is_dir() else "is not there"
    raise ConfigError(path, problem, remedy=f"give the path of a YAML file; shipped: {', '.join(there)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file at `path`. Raises ConfigError if there is no file, no valid YAML or no mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"cannot be read ({error})", remedy="give the path of a YAML file") from error
    except yaml.YAMLError as error:
        problem = f"is not valid YAML: {' '.join(str(error).split())}"
        raise ConfigError(path, problem, remedy="mend that line") from error
    if not isinstance(values, dict):
        raise ConfigError(path, f"holds {type(values).__name__}, not a mapping", remedy="write `key: value` lines")
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> frozenset[str]:
    """Set `stages.0.steps=10` and the like in `values`, in place; the right side is read as YAML.

    Mappings that are missing on the way are made; a position in a list must exist. Returns the dotted keys it set.
    """
    keys = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(COMMAND_LINE, f"{word!r} is not key=value", remedy="write for example stages.0.steps=10")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            problem = f"{text!r} is not valid YAML ({' '.join(str(error).split())})"
            raise ConfigError(COMMAND_LINE, problem, key=key, remedy="quote the word for the shell") from error
        _set(values, key, value)
        keys.append(key)
    return frozenset(keys)


def select_stages(values: dict[str, Any], source: str | Path) -> None:
    """Keep of `stages` those that `use_stages` names, in its order, in place; all where there is no such key.

    So one file can hold several ways through its stages. Raises ConfigError for a name that no stage has.
    """
    if "use_stages" not in values:
        return
    wanted, stages = values.pop("use_stages"), values.get("stages")
    rows = {row.get("name"): row for row in stages if isinstance(row, dict)} if isinstance(stages, list) else {}
    for name in wanted if isinstance(wanted, list) else [wanted]:
        if not isinstance(wanted, list) or not isinstance(name, str) or name not in rows:
            there = ", ".join(map(str, rows)) or "none"
            raise ConfigError(source, f"{name!r} names no stages", key="use_stages", remedy=f"give a list of: {there}")
    values["stages"] = [rows[name] for name in wanted]


def _set(values: dict[str, Any], key: str, value: object) -> None:
    *way, last = key.split(".")
    place: Any = values
    for part in way:
        place = place[_position(place, part, key)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, dict | list):
            remedy = "give a key that leads through mappings and lists"
            raise ConfigError(
                COMMAND_LINE, f"{part!r} is the value {place!r}, with nothing below it", key=key, remedy=remedy
            )
    place[_position(place, last, key) if isinstance(place, list) else last] = value


def _position(items: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        remedy = f"use a position from 0 to {len(items) - 1}" if items else "give the whole list"
        raise ConfigError(COMMAND_LINE, f"{part!r} is no position in a list of {len(items)}", key=key, remedy=remedy)
    return int(part)


def nearest_name(word: str, names: Sequence[str]) -> str:
    """A remedy for an unknown `word`: the nearest of `names`, or all of them when none is near."""
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(names))}"
