"""Writes `docs/reference/` from the code: `.venv/bin/python scripts/reference.py`; `--check` compares.

Messages, services and actions come from the interface files, parameters and settings from the dataclasses
that declare them, arguments from the stacks, and topics from the nodes, which are made for a moment (see
`reference_graph`). Written by hand are only sentences for topics whose type does not say it all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import reference_graph
import yaml
from rosidl_adapter.parser import (
    MessageSpecification,
    parse_action_file,
    parse_message_file,
    parse_service_file,
)

from efm_bringup.stacks import STACKS, nodes_of

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "reference"
INTERFACES = ROOT / "src" / "efm_msgs"
HEADING = "<!-- Made from the code by scripts/reference.py; change the code and run it again. -->\n"

# Dataclasses that hold settings: page -> (title, introduction, "module:class" ...).
SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "embodiment": (
        "Embodiment files",
        "Keys of `config/embodiments/<name>.yaml`. [Bring your robot](../bring_your_robot.md) writes one "
        "step by step. A key without a default has to be given; an unknown key is refused.",
        (
            "efm_core.embodiment:Embodiment",
            *(
                f"efm_core.embodiment_parts:{name}"
                for name in (
                    "Camera",
                    "State",
                    "StateEntry",
                    "Action",
                    "ActionDimension",
                    "StepsToGo",
                    "Reset",
                )
            ),
        ),
    ),
    "settings": (
        "Settings of training, practice and experts",
        "`efm sft --set NAME=VALUE` sets what is under SftConfig, with dots for what is inside: "
        "`--set mixture.censored=0.3`. The practice settings are parameters of the learner. "
        "`expert_changes:=` takes ExpertStyle as JSON.",
        (
            "efm_learner.sft_config:SftConfig",
            "efm_learner.batches:Mixture",
            "efm_learner.samples:Labelling",
            "efm_learner.calibrate:CalibrationSettings",
            "efm_learner.backbones.small:SmallSettings",
            "efm_learner.backbones.state:StateSettings",
            "efm_learner.backbones.vlm:VlmSettings",
            "efm_learner.practice:PracticeSettings",
            "efm_learner.guard:GuardSettings",
            "efm_sim.expert:ExpertStyle",
        ),
    ),
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return plain(re.sub(r"\s+", " ", text).strip().replace("|", "\\|"))


def plain(text: str) -> str:
    """Returns text in which nothing outside of code reads as an HTML tag."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def code(value: object) -> str:
    """Returns a value as code; nothing for an empty text."""
    return f"`{value}`" if str(value) else ""


# Messages, services, actions ------------------------------------------------------------------------------


def interface_page(kind: str) -> str:
    """Returns the page of all interfaces of one kind: msg, srv or action."""
    title, parse, names = {
        "msg": ("Messages", lambda package, path: [parse_message_file(package, path)], ("",)),
        "srv": ("Services", _parse_service, ("Request", "Response")),
        "action": ("Actions", _parse_action, ("Goal", "Result", "Feedback")),
    }[kind]
    parts = [f"# {title} of efm_msgs\n"]
    for path in sorted(INTERFACES.glob(f"{kind}/*.{kind}")):
        specifications = parse("efm_msgs", str(path))
        parts.append(f"## {path.stem}\n\n{plain(purpose(kind, path.stem))}\n")
        for name, specification in zip(names, specifications, strict=True):
            parts.append((f"**{name}**\n\n" if name else "") + _members(specification))
    return "\n".join(parts)


def purpose(folder: str, name: str) -> str:
    """Returns an interface file's first comment, which says what it is for."""
    lines = (INTERFACES / folder / f"{name}.{folder}").read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ").rstrip() for line in comment)


def _parse_service(package: str, path: str) -> list[MessageSpecification]:
    service = parse_service_file(package, path)
    return [service.request, service.response]


def _parse_action(package: str, path: str) -> list[MessageSpecification]:
    action = parse_action_file(package, path)
    return [action.goal, action.result, action.feedback]


def _members(specification: MessageSpecification) -> str:
    fields = [(code(f.name), code(f.type), _comment(f)) for f in specification.fields]
    constants = [(code(c.name), c.value, _comment(c)) for c in specification.constants]
    text = table(("field", "type", "meaning"), fields) if fields else "No fields.\n"
    return text + ("\n" + table(("constant", "value", "meaning"), constants) if constants else "")


def _comment(member: Any) -> str:
    text = " ".join(line.strip() for line in member.annotations.get("comment", []) if line.strip())
    unit = member.annotations.get("unit")  # The parser has cut it out of the comment.
    return f"{text} [{unit}]" if unit else text


# Parameters -----------------------------------------------------------------------------------------------


def parameters_page() -> str:
    """Returns the page of the parameters of all nodes."""
    parts = [
        "# Parameters\n",
        "Files in `config/` hold what is tuned; arguments of the [stacks](stacks.md) hold where and what. An "
        "unknown name and a value out of range end the start with the nearest name. *Settable* parameters "
        "can be set while the node runs. Another value in the file in `config/` stands in brackets.\n",
    ]
    for cls in reference_graph.node_classes():
        parameters = cls.Parameters  # type: ignore[attr-defined]
        spec = spec_of(cls)
        about = f"Package `{cls.__module__.partition('.')[0]}`"
        if spec:
            about = f"Node `{spec.name}`, started by `ros2 run {spec.package} {spec.executable}`"
        name = spec.config if spec else f"{cls.__name__.removesuffix('Node').lower()}.yaml"
        tuned = {}
        if (ROOT / "config" / name).is_file():
            about += f", tuned in `config/{name}`"
            tuned = yaml.safe_load((ROOT / "config" / name).read_text())["/**"]["ros__parameters"]
        hints = typing.get_type_hints(parameters)
        rows = [
            _parameter_row(field, hints[field.name], tuned.get(field.name))
            for field in sorted(dataclasses.fields(parameters), key=lambda field: field.name == "autostart")
        ]
        parts += [f"## {cls.__name__}\n", about + ".\n"]
        parts.append(table(("parameter", "type", "default", "range", "meaning"), rows))
    return "\n".join(parts)


def spec_of(cls: type) -> Any:
    """Returns how the stacks start a node; None where none of them does."""
    needed = {"policy": "p", "reward": "r"}
    for stack in STACKS.values():
        known = {argument.name for argument in stack.arguments}
        for spec in nodes_of(stack.name, {k: v for k, v in needed.items() if k in known}):
            path = ROOT / "src" / spec.package / Path(*spec.module.split(".")).with_suffix(".py")
            if path.exists() and re.search(rf"\b{cls.__name__}\b", path.read_text()):
                return spec
    return None


def _parameter_row(field: dataclasses.Field, hint: Any, tuned: object) -> tuple[str, ...]:
    about = field.metadata
    default = "required" if field.default is dataclasses.MISSING else _default(field.default)
    if tuned is not None and tuned != field.default and tuned != _plain(field.default):
        default += f" ({_default(tuned)})"
    settable = "" if about["read_only"] else " *Settable.*"
    bounds = ", ".join(f"`{c}`" for c in about["choices"] if c) or _bounds(about["low"], about["high"])
    bounds = f"{bounds} {about['unit']}".strip()
    return code(field.name), type_name(hint), default, bounds, about["description"] + settable


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _default(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(repr(entry) for entry in value)}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(low: object, high: object) -> str:
    if low is not None and high is not None:
        return f"{low} … {high}"
    return f"≥ {low}" if low is not None else (f"≤ {high}" if high is not None else "")


def type_name(hint: Any) -> str:
    """Returns a type as people say it."""
    if hint in (bool, int, float, str):
        return {bool: "bool", int: "integer", float: "number", str: "text"}[hint]
    origin, arguments = typing.get_origin(hint), [a for a in typing.get_args(hint) if a is not Ellipsis]
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in arguments if a is not type(None))
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if dataclasses.is_dataclass(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return "mapping" if origin is not None else str(getattr(hint, "__name__", hint))


# Settings -------------------------------------------------------------------------------------------------


def settings_page(name: str) -> str:
    """Returns a page of `SETTINGS`."""
    title, introduction, classes = SETTINGS[name]
    parts = [f"# {title}\n", introduction + "\n"]
    for place in classes:
        module, _, attribute = place.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        hints, meanings = typing.get_type_hints(cls), attributes_of(cls)
        fields = dataclasses.fields(cls)
        missing = {field.name for field in fields} - meanings.keys()
        if missing:
            raise SystemExit(f"{place}: the docstring's Attributes say nothing of {sorted(missing)}")
        rows = [
            (code(f.name), type_name(hints[f.name]), _field_default(f), _limits(f), meanings[f.name])
            for f in fields
        ]
        parts += [f"## {attribute}\n", f"{cls.__doc__.partition(chr(10))[0]}\n"]
        parts.append(table(("key", "type", "default", "range", "meaning"), rows))
    return "\n".join(parts)


def attributes_of(cls: type) -> dict[str, str]:
    """Returns what a class's docstring says under `Attributes:`, by name."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name, found[entry[1]] = entry[1], entry[2]
        elif line.startswith(" " * 8) and name:
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return found


def _field_default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return _default(field.default)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default_factory()
    return "see below" if dataclasses.is_dataclass(value) else f"`{value}`"


def _limits(field: dataclasses.Field) -> str:
    about = field.metadata
    if about.get("meaning"):
        return str(about["meaning"])
    text = _bounds(about.get("low"), about.get("high"))
    if about.get("above") is not None:
        text = f"> {about['above']}" + (f", ≤ {about['high']}" if about.get("high") is not None else "")
    return text + (", or `.inf`" if about.get("infinite") else "")


# Stacks and the whole -------------------------------------------------------------------------------------


def stacks_page() -> str:
    """Returns the page of the stacks: their arguments and nodes."""
    parts = [
        "# Stacks and their arguments\n",
        "`ros2 launch efm_bringup STACK.launch.py NAME:=VALUE` and `efm up STACK NAME:=VALUE` start the same "
        "nodes. An empty default means that the nodes decide.\n",
    ]
    for stack in STACKS.values():
        rows = [
            (code(a.name), _default(a.default), ", ".join(code(c) for c in a.choices if c), a.description)
            for a in stack.arguments
        ]
        parts += [
            f"## {stack.name}\n",
            stack.description + "\n",
            table(("argument", "default", "choices", "meaning"), rows),
        ]
    return "\n".join(parts)


def pages() -> dict[str, str]:
    """Returns all pages: file name -> text."""
    found = {
        "messages.md": interface_page("msg"),
        "services.md": interface_page("srv"),
        "actions.md": interface_page("action"),
        "parameters.md": parameters_page(),
        "stacks.md": stacks_page(),
        **{f"{name}.md": settings_page(name) for name in SETTINGS},
        "topics.md": reference_graph.topics_page(table, code, purpose),
    }
    index = [
        (f"[{name}]({name})", text.partition("\n")[0].lstrip("# ")) for name, text in sorted(found.items())
    ]
    found["README.md"] = "# Reference\n\nMade from the code.\n\n" + table(("page", "what"), index)
    return {name: HEADING + "\n" + text.rstrip("\n") + "\n" for name, text in found.items()}


def main() -> int:
    """Writes the pages, or says which differ from the code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a page is out of date"
    )
    check = parser.parse_args().check
    made = pages()
    present = {path.name: path.read_text() for path in OUT.glob("*.md")}
    old = sorted(name for name in made.keys() | present.keys() if made.get(name) != present.get(name))
    if check:
        for name in old:
            print(f"docs/reference/{name} is out of date; run .venv/bin/python scripts/reference.py")
        return 1 if old else 0
    OUT.mkdir(parents=True, exist_ok=True)
    for name in old:
        if name in made:
            (OUT / name).write_text(made[name])
        else:
            (OUT / name).unlink()
        print(f"docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
