"""Message types without ROS: the same definitions, hashes and constants as with it."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from efm_core import schemas
from efm_core.errors import BadRequest, EpisodeInvalid
from efm_core.ids import check_name, new_episode_id
from efm_core.summary import Actor, EndReason, Mode, Outcome


@pytest.mark.parametrize(
    ("kind", "type_name", "prefix"),
    [
        (Mode, "EpisodeSummary", "MODE_"),
        (Outcome, "EpisodeSummary", "OUTCOME_"),
        (EndReason, "EpisodeSummary", "END_"),
        (Actor, "PolicyStep", "ACTOR_"),
    ],
)
def test_enums_have_the_constants_of_the_message(kind: type, type_name: str, prefix: str) -> None:
    constants, _ = schemas.typestore().fielddefs[f"efm_msgs/msg/{type_name}"]
    expected = {name.removeprefix(prefix): value for name, _, value in constants if name.startswith(prefix)}
    assert {item.name: item.value for item in kind} == expected


def test_type_hashes_are_those_of_the_built_interfaces() -> None:
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    files = [path for prefix in prefixes for path in Path(prefix, "share/efm_msgs/msg").glob("*.json")]
    if not files:
        pytest.skip("efm_msgs is not built")
    for path in files:
        for entry in json.loads(path.read_text())["type_hashes"]:
            assert schemas.typestore().hash_rihs01(entry["type_name"]) == entry["hash_string"]


def test_messages_survive_bytes_and_other_bytes_are_refused() -> None:
    header = schemas.make_header(1_500_000_007, "base")
    again = schemas.deserialize(schemas.serialize(header), "std_msgs/msg/Header")
    assert schemas.stamp_to_ns(again.stamp) == 1_500_000_007 and again.frame_id == "base"
    for data in (b"", b"\x00\x01\x00\x00", b"\x07\x07\x07\x07" + bytes(20), bytes(200)):
        with pytest.raises(EpisodeInvalid, match="expected a message of type std_msgs/msg/Header"):
            schemas.deserialize(data, "std_msgs/msg/Header")


def test_ids_sort_by_time_and_are_names_of_folders() -> None:
    rng = np.random.default_rng(1)
    start = datetime(2026, 11, 22, 14, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    first = new_episode_id(start, rng)
    assert first.startswith("20261122T120102Z-") and len(first) == 25
    assert new_episode_id(start, rng) != first
    assert new_episode_id(start + timedelta(seconds=1), rng) > first
    assert check_name(first, "id") == first
    with pytest.raises(ValueError, match="time zone"):
        new_episode_id(datetime(2026, 1, 1), rng)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a b", "a\n", "x" * 129, "é"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="episode id: expected"):
        check_name(name, "episode id")
