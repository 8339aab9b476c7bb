"""The interface files are the manual: every field and constant of efm_msgs says what it is."""

from pathlib import Path

import pytest
from rosidl_adapter.parser import parse_action_file, parse_message_file, parse_service_file

INTERFACES = Path(__file__).resolve().parent.parent / "src" / "efm_msgs"
FILES = sorted(path for kind in ("msg", "srv", "action") for path in INTERFACES.glob(f"{kind}/*.{kind}"))


def message_parts(path: Path) -> list:
    """The messages that a file defines: one, or those of a service or an action."""
    if path.suffix == ".msg":
        return [parse_message_file("efm_msgs", str(path))]
    if path.suffix == ".srv":
        service = parse_service_file("efm_msgs", str(path))
        return [service.request, service.response]
    action = parse_action_file("efm_msgs", str(path))
    return [action.goal, action.result, action.feedback]


def undocumented(path: Path) -> list[str]:
    """The names of the fields and constants without a comment."""
    members = [member for part in message_parts(path) for member in [*part.constants, *part.fields]]
    return [
        member.name
        for member in members
        if not any(line.strip() for line in member.annotations.get("comment", []))
    ]


def test_there_are_interfaces():
    wanted = {
        "PolicyStep",
        "StepsToGo",
        "ModelInfo",
        "ModelStatus",
        "EpisodeSummary",
        "SubmitEpisode",
        "GetBundle",
    }
    assert wanted | {"RunEpisodes", "Act"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_and_constant_has_a_comment(path):
    assert undocumented(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_opens_with_its_purpose(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_constants_of_one_group_differ(path):
    for part in message_parts(path):
        seen = [(constant.name.split("_")[0], constant.value) for constant in part.constants]
        assert len(seen) == len(set(seen))


def test_the_check_sees_a_bare_field(tmp_path):
    path = tmp_path / "Bare.msg"
    path.write_text(
        "# A message that says what it is for.\n\n# Said.\nuint8 said\nuint8 bare\nuint8 LATER=1 # Said.\n"
    )
    assert undocumented(path) == ["bare"]
