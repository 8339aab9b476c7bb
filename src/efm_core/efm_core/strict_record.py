"""Reads plain data (YAML, JSON) into frozen dataclasses and back, strictly, and finds all faults at once.

A dataclass declares every field once: its type, and with `setting` its bounds. `read_record` then refuses
unknown and missing keys, wrong types and broken bounds, each with the key where it is. Rules between fields
are the business of the dataclass: its method `contradictions`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from efm_core.errors import nearest

Record = TypeVar("Record")

GREATEST_NUMBER = 1e300
MAX_FILE_BYTES = 1 << 20  # Larger than any sane settings file; protects from reading a bag by mistake.


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault in a record: `key` like cameras[0].width, and `text` with what was expected and found."""

    key: str
    text: str


def setting(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    infinite: bool = False,
    pattern: str | None = None,
    meaning: str = "",
) -> Any:
    """Declares a field of a record.

    Args:
        default: value of a key that is not there; without it the key is required.
        low: least value.
        high: greatest value.
        above: greatest value that is too small.
        infinite: +infinity is a value too. NaN never is.
        pattern: regular expression that the whole text must match.
        meaning: what a text that matches is called in errors, for example "a ROS name".
    """
    bounds = {"low": low, "high": high, "above": above, "infinite": infinite}
    return dataclasses.field(default=default, metadata={**bounds, "pattern": pattern, "meaning": meaning})


def read_record(cls: type[Record], data: Any, key: str, faults: list[Fault]) -> Record | None:
    """Makes a record of class `cls` from a mapping.

    A class may have a method `contradictions()` that yields a Fault for values that do not go together; it is
    asked as soon as the record's own values are right.

    Args:
        cls: a dataclass whose fields are scalars, Literals, other such dataclasses, tuples of these, or None.
        data: what YAML or JSON gave.
        key: where `data` is; empty at the top.
        faults: every fault is appended here.

    Returns:
        The record, or None where there were faults.
    """
    before = len(faults)
    values = read_values(cls, data, key, faults)
    if len(faults) > before:
        return None
    record = cls(**values)
    for fault in getattr(record, "contradictions", tuple)():
        faults.append(Fault(_join(key, fault.key), fault.text))
    return record if len(faults) == before else None


def read_values(cls: Any, data: Any, key: str, faults: list[Fault]) -> dict[str, Any]:
    """As `read_record`, but returns the values of the fields; of use only where no fault was added."""
    if not isinstance(data, Mapping):
        faults.append(Fault(key, f"expected a mapping with the keys {_names(cls)}, found {_show(data)}"))
        return {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            name = str(name)[:60]
            near = nearest(name, fields) or f"; the keys are {_names(cls)}"
            faults.append(Fault(_join(key, name), f"unknown key{near}"))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(_hints(cls)[name], data[name], _join(key, name), field.metadata, faults)
        elif field.default is dataclasses.MISSING:
            expected = _expected(_hints(cls)[name], field.metadata)
            faults.append(Fault(_join(key, name), f"expected {expected}, found nothing: the key is missing"))
    return values


def to_plain(value: Any) -> Any:
    """Returns a record as dicts, lists and scalars for JSON and YAML; infinity becomes the text inf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    return "inf" if isinstance(value, float) and value == math.inf else value


def read_yaml(path: Path) -> Any:
    """Reads one YAML file with the safe loader.

    Raises:
        ValueError: the file is missing, too large, no UTF-8, no YAML, or holds a key twice; says where.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: expected a YAML file of at most {MAX_FILE_BYTES} bytes, found more")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or no such date.
        raise ValueError(f"{path}: expected YAML in UTF-8, found: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, but a key that is there twice is an error and does not silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if isinstance(key, str) and key != "<<" and seen.setdefault(key, line) != line:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' of line {seen[key]} again", key_node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def _read(hint: Any, value: Any, key: str, rules: Mapping[str, Any], faults: list[Fault]) -> Any:
    """Converts one value to its type hint; a fault is appended, and None returned, where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # The only union in use is "T | None".
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _read(inner, value, key, rules, faults)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            faults.append(Fault(key, f"expected a list, found {_show(value)}"))
            return None
        pairs = enumerate(value)
        return tuple(_read(arguments[0], item, f"{key}[{index}]", rules, faults) for index, item in pairs)
    if dataclasses.is_dataclass(hint):
        return read_record(typing.cast("type[Any]", hint), value, key, faults)
    fitting, converted = _scalar(hint, origin, arguments, value, rules)
    if not fitting:
        text = f"expected {_expected(hint, rules)}, found {_show(value)}{_advice(hint, arguments, value)}"
        faults.append(Fault(key, text))
    return converted


def _scalar(hint: Any, origin: Any, choices: tuple[Any, ...], value: Any, rules: Mapping[str, Any]) -> Any:
    """Returns (whether it fits, the value in its type)."""
    if origin is typing.Literal:
        return isinstance(value, str) and value in choices, value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is str:
        pattern = rules.get("pattern")
        fitting = isinstance(value, str) and (pattern is None or re.fullmatch(pattern, value) is not None)
        return fitting, value
    if rules.get("infinite") and value == "inf":  # How `to_plain` writes it; JSON has no infinity.
        value = math.inf
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        return False, value
    # Beyond this an integer has no float, and the width of a range may be infinite.
    if not abs(value) <= GREATEST_NUMBER and value != math.inf:
        return False, value
    infinite_ok = bool(rules.get("infinite"))
    low, high, above = rules.get("low"), rules.get("high"), rules.get("above")
    fitting = (
        (value != math.inf or infinite_ok)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )
    return fitting, hint(value) if fitting else value


def _expected(hint: Any, rules: Mapping[str, Any]) -> str:
    """Returns in words what a field takes."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _expected(next(item for item in arguments if item is not type(None)), rules)
    if origin is typing.Literal:
        return "one of " + ", ".join(str(item) for item in arguments)
    if origin is tuple:
        return "a list"
    if dataclasses.is_dataclass(hint):
        return f"a mapping with the keys {_names(hint)}"
    if hint is str:
        return rules.get("meaning") or "a text"
    if hint is bool:
        return "true or false"
    words = ["a whole number" if hint is int else "a finite number"]
    if rules.get("infinite"):
        words = ["a number"]
    bounds = [f"{sign} {rules[name]:.9g}" for name, sign in _SIGNS if rules.get(name) is not None]
    return " ".join([*words, " and ".join(bounds)]).rstrip() + (" or .inf" if rules.get("infinite") else "")


_SIGNS = (("low", ">="), ("above", ">"), ("high", "<="))


def _advice(hint: Any, choices: tuple[Any, ...], value: Any) -> str:
    """Returns the next step for the mistakes that people make most."""
    if isinstance(value, str):
        if hint in (int, float) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
            return " (YAML reads a number with an exponent only with a point in it: 1.0e-3)"
        return nearest(value, [str(choice) for choice in choices]) if choices else ""
    quotable = hint is str or bool(choices)
    return " (put it in quotes)" if quotable and isinstance(value, (bool, int, float)) else ""


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _names(cls: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cls))


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


# Cuts what is long, deep or contains itself, which YAML can.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def _show(value: Any) -> str:
    """Returns a value for a message: its kind and a short form."""
    if value is None:
        return "nothing"
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else _SHORT.repr(value)
    kinds: dict[type, str] = {str: "the text", list: "a list", tuple: "a list", dict: "a mapping"}
    kind = kinds.get(type(value), "the value")
    return f"{kind} {_SHORT.repr(value)}"
