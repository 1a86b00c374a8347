"""Settings from a .yaml or .toml file, and the checks they share with settings from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ldadam.spelling import did_you_mean
from ldadam.training.errors import UsageError
from ldadam.training.run_config import RunConfig, fields_of, plain_types


def parse_value(kind: type[RunConfig], name: str, value: Any, *, where: str) -> Any:
    """`value` as the type of field `name` of `kind`; YAML's `1e-3` arrives as a string and is a number all the same."""
    types = plain_types(kind, name)
    if value is None or (isinstance(value, bool) and bool in types):
        return value
    if not isinstance(value, bool):
        if str in types and isinstance(value, str):
            return check_choice(kind, name, value, where=where)
        for number in types:
            if number in (int, float) and (converted := _number(value, number)) is not None:
                return converted
    expected = " or ".join(one.__name__ for one in types)
    raise UsageError(f"{name} must be {expected}, got {value!r} in {where}")


def _number(value: Any, kind: type) -> int | float | None:
    """`value` as `kind` when nothing is lost by it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None


def check_choice(kind: type[RunConfig], name: str, value: str, *, where: str) -> str:
    """`value` if the field has no fixed choices or this is one of them."""
    choices = fields_of(kind)[name].metadata["choices"]
    if choices and value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r} in {where}")
    return value


def read_config_file(path: Path, kind: type[RunConfig]) -> dict[str, Any]:
    """The settings in a .yaml or .toml file, checked; names are the fields' of `kind` (dashes count as underscores)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read config file {path}: {error}") from error
    values = _parse_file(path, text)
    if not isinstance(values, dict):
        raise UsageError(f"config file {path} must hold names and values, got {type(values).__name__}")
    settings = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields_of(kind):
            raise UsageError(f"unknown key {key!r} in {path}{_closest(kind, name)}")
        settings[name] = parse_value(kind, name, value, where=str(path))
    return settings


def _parse_file(path: Path, text: str) -> Any:
    """The file's content, by its suffix."""
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if path.suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
    raise UsageError(f"config file {path} must end in .yaml or .toml")


def _closest(kind: type[RunConfig], name: str) -> str:
    names = fields_of(kind)
    return ": " + did_you_mean(name, names, otherwise=f"expected one of {', '.join(names)}", similarity=0.5)
