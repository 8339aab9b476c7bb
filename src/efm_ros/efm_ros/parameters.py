"""ROS parameters, declared once as a frozen dataclass.

    @dataclasses.dataclass(frozen=True)
    class JudgeParameters:
        threshold: float = param(-1.0, description="Success threshold.", unit="control steps")

    parameters = declare(node, JudgeParameters)

Every field becomes one parameter with type, description and range in its descriptor. Parameters are read-only
unless they say otherwise. What rclpy ignores is refused here: an override whose name nobody declared, so that
a typing mistake in a YAML file ends the start with the nearest name instead of running with a default. A
`__post_init__` of the dataclass may check rules between fields; it raises `BadRequest`, at start and at every
later set.
Left out: nested parameters and parameters that are declared later than the node's construction.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from efm_core.errors import BadRequest, EfmError, nearest

Parameters = TypeVar("Parameters")

_TYPES: dict[Any, Parameter.Type] = {
    bool: Parameter.Type.BOOL,
    bool | None: Parameter.Type.BOOL,  # None: not given; then something else decides, for example a file.
    int: Parameter.Type.INTEGER,
    float: Parameter.Type.DOUBLE,
    str: Parameter.Type.STRING,
    tuple[bool, ...]: Parameter.Type.BOOL_ARRAY,
    tuple[int, ...]: Parameter.Type.INTEGER_ARRAY,
    tuple[float, ...]: Parameter.Type.DOUBLE_ARRAY,
    tuple[str, ...]: Parameter.Type.STRING_ARRAY,
}
# Parameters with these beginnings are declared by rclpy itself, some of them after the node's construction.
_OF_ROS = ("use_sim_time", "start_type_description_service", "qos_overrides.")


def param(
    default: Any = dataclasses.MISSING,
    *,
    description: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    read_only: bool = True,
) -> Any:
    """Describes one field of a parameter dataclass.

    Args:
        default: Value when nothing else is given. Without it the parameter has to be given.
        description: One sentence for people; shown by `ros2 param describe`.
        unit: Unit of a number, appended to the description.
        low: Smallest value (of every entry, for arrays). None: no bound.
        high: Greatest value. None: no bound.
        choices: The only values allowed, for strings and arrays of strings.
        read_only: False lets it be set while the node runs.
    """
    about = {"description": description, "unit": unit, "low": low, "high": high, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata={**about, "read_only": read_only})


def declare(
    node: Node, cls: type[Parameters], changed: Callable[[Parameters, Collection[str]], None] | None = None
) -> Parameters:
    """Declares every field of a dataclass as a parameter of a node and reads the values.

    Args:
        node: Node that owns the parameters.
        cls: Frozen dataclass whose fields were made with `param`.
        changed: Called after settable parameters were set, with a new instance (the old one keeps its
            values) and their names.

    Returns:
        The values that hold now.

    Raises:
        BadRequest: All that is wrong with the overrides, in one message: unknown names (with the nearest
            one), wrong types, values out of range, missing ones, broken rules between fields.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    types = {
        name: _parameter_type(cls, name, hint)
        for name, hint in typing.get_type_hints(cls).items()
        if name in fields
    }
    overrides: dict[str, Parameter] = node._parameter_overrides
    problems = _unknown(node, overrides, fields)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        override = overrides.get(name)
        if override is None and field.default is dataclasses.MISSING:
            problems.append(f"parameter '{name}' has to be given: {field.metadata['description']}")
            continue
        try:
            value = field.default if override is None else _read(name, override, types[name])
            values[name] = _checked(name, value, field)
        except BadRequest as error:
            problems.append(str(error))
    current = None
    if not problems:
        try:
            current = cls(**values)
        except BadRequest as error:
            problems.append(str(error))
    if problems or current is None:
        raise BadRequest(f"parameters of node '{node.get_fully_qualified_name()}': " + "; ".join(problems))
    for name, field in fields.items():
        value = list(values[name]) if isinstance(values[name], tuple) else values[name]
        node._parameter_overrides.pop(name, None)
        if value is None:
            descriptor = _descriptor(field, types[name])
            descriptor.dynamic_typing = True  # The only way to declare a parameter that is not set.
            node.declare_parameter(name, None, descriptor)
            continue
        # The value read above is declared, since an override of 1 for a float or [] for an array has another
        # type.
        parameter = Parameter(name, types[name], value)
        node.declare_parameter(
            name, parameter.value if value != [] else types[name], _descriptor(field, types[name])
        )
        if value == []:
            node._parameters[name] = parameter  # rclpy cannot infer the type of an empty list.
    _watch(node, cls, fields, types, current, changed)
    return current


def _parameter_type(cls: type, name: str, hint: Any) -> Parameter.Type:
    if hint not in _TYPES:
        raise TypeError(f"{cls.__name__}.{name}: expected one of {[str(t) for t in _TYPES]}, found {hint}")
    return _TYPES[hint]


def _unknown(node: Node, overrides: dict[str, Parameter], fields: dict[str, Any]) -> list[str]:
    """Names the overrides that nobody declares."""
    known = [*fields, *(name for name in overrides if name.startswith(_OF_ROS) or node.has_parameter(name))]
    return [
        f"unknown parameter '{name}'{nearest(name, fields) or f', known are {sorted(fields)}'}"
        for name in overrides
        if name not in known
    ]


def _read(name: str, parameter: Parameter, wanted: Parameter.Type) -> Any:
    """Gives an override's value in the wanted type; whole numbers are fine where numbers are wanted."""
    found, value = parameter.type_, parameter.value
    is_array = wanted.name.endswith("_ARRAY")
    if found is Parameter.Type.NOT_SET and is_array:  # How rcl reads an empty list.
        return ()
    if found is Parameter.Type.INTEGER and wanted is Parameter.Type.DOUBLE:
        return float(value)
    if found is Parameter.Type.INTEGER_ARRAY and wanted is Parameter.Type.DOUBLE_ARRAY:
        return tuple(float(entry) for entry in value)
    if found is not wanted:
        expected = wanted.name.lower().replace("_", " ")
        raise BadRequest(
            f"parameter '{name}': expected {expected}, found {found.name.lower().replace('_', ' ')} {value!r}"
        )
    return tuple(value) if is_array else value


def _checked(name: str, value: Any, field: dataclasses.Field) -> Any:
    """Gives the value if it keeps the field's bounds and choices; raises BadRequest."""
    about = field.metadata
    for entry in value if isinstance(value, tuple) else (value,):
        if isinstance(entry, float) and math.isnan(entry):
            raise BadRequest(f"parameter '{name}': expected a number, found NaN")
        low, high = about["low"], about["high"]
        if (low is not None and entry < low) or (high is not None and entry > high):
            raise BadRequest(f"parameter '{name}': expected {_bounds(field)}, found {entry}")
        if about["choices"] and entry not in about["choices"]:
            known = ", ".join(about["choices"])
            near = nearest(entry, about["choices"])
            raise BadRequest(f"parameter '{name}': expected one of {known}, found '{entry}'{near}")
    return value


def _bounds(field: dataclasses.Field) -> str:
    low, high, unit = field.metadata["low"], field.metadata["high"], field.metadata["unit"]
    text = f"{low} to {high}" if None not in (low, high) else (f">= {low}" if high is None else f"<= {high}")
    return f"{text} {unit}".rstrip()


def _descriptor(field: dataclasses.Field, wanted: Parameter.Type) -> ParameterDescriptor:
    about = field.metadata
    low, high = about["low"], about["high"]
    unit = f" [{about['unit']}]" if about["unit"] else ""
    constraints = f"one of {', '.join(about['choices'])}" if about["choices"] else ""
    descriptor = ParameterDescriptor(
        name=field.name, description=about["description"] + unit, read_only=about["read_only"]
    )
    if None not in (low, high) and wanted is Parameter.Type.INTEGER:
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
    elif None not in (low, high) and wanted is Parameter.Type.DOUBLE:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
        ]
    elif low is not None or high is not None:  # ROS knows ranges with two ends and of single numbers only.
        constraints = _bounds(field)
    descriptor.additional_constraints = constraints
    return descriptor


def _watch(
    node: Node,
    cls: type[Parameters],
    fields: dict[str, dataclasses.Field],
    types: dict[str, Parameter.Type],
    first: Parameters,
    changed: Callable[[Parameters, Collection[str]], None] | None,
) -> None:
    """Checks every later set, and tells `changed` about those that took effect."""
    current = first

    def values_of(parameters: list[Parameter]) -> dict[str, Any]:
        return {
            parameter.name: _checked(
                parameter.name,
                _read(parameter.name, parameter, types[parameter.name]),
                fields[parameter.name],
            )
            for parameter in parameters
            if parameter.name in fields
        }

    def check(parameters: list[Parameter]) -> SetParametersResult:
        try:
            dataclasses.replace(current, **values_of(parameters))  # type: ignore[type-var]
        except EfmError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def take(parameters: list[Parameter]) -> None:
        nonlocal current
        values = values_of(parameters)
        if values:
            current = dataclasses.replace(current, **values)  # type: ignore[type-var]
            if changed is not None:
                changed(current, values.keys())

    node.add_on_set_parameters_callback(check)
    node.add_post_set_parameters_callback(take)
