"""Reads settings from YAML, JSON or a command line into frozen dataclasses; wrong types are told."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from efm_core.errors import BadRequest, nearest

Settings = TypeVar("Settings")


def read_settings(cls: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """Makes a settings dataclass.

    Args:
        cls: Its fields are scalars, tuples of one type, mappings, other settings, or one of these or None.
        values: By name; lists become tuples, mappings become settings where such are wanted, and texts such
            as 1e-3, which YAML does not take for numbers, become numbers.
        where: What the settings are of, for errors.

    Raises:
        BadRequest: An unknown name, with the nearest known one; or a value of another type.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise BadRequest(
                f"{where}: unknown setting {key!r}{nearest(key, known)}; choices: {', '.join(known)}"
            )
        read[key] = _typed(hints[key], value, f"{where}: {key}")
    return cls(**read)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Returns a value in the type of its hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        wanted = next(item for item in arguments if item is not type(None))
        return None if value is None else _typed(wanted, value, where)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return read_settings(typing.cast("type[Any]", hint), value, where.rpartition(" ")[2])
        return _checked(isinstance(value, typing.cast("type[Any]", hint)), "settings", value, where)
    if origin is tuple:
        _checked(isinstance(value, (list, tuple)), "a list", value, where)
        return tuple(_typed(arguments[0], item, where) for item in value)
    if hint is float:
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                return float(value)
        return _checked(isinstance(value, float), "a number", value, where)
    if hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        _checked(fits, "a whole number", value, where)
        return _checked(abs(value) < 2**63, "a whole number below 2^63", value, where)
    if hint is bool:
        return _checked(isinstance(value, bool), "true or false", value, where)
    if hint is str:
        return _checked(isinstance(value, str), "a text", value, where)
    return _checked(isinstance(value, Mapping), "a mapping, such as {name: value}", value, where)


def _checked(fits: bool, expected: str, value: Any, where: str) -> Any:
    if not fits:
        raise BadRequest(f"{where}: expected {expected}, found {value!r:.60}")
    return value
