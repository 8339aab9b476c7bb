"""Embodiments: what is right is read as it is, and every fault is reported with its file and key."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from example_robots import NOTHING, TABLE, arm_robot, table, table_robot

from efm_core.embodiment import Embodiment, embodiment_folders, load_embodiment
from efm_core.errors import EmbodimentInvalid

SHIPPED = sorted((Path(__file__).parents[3] / "config/embodiments").glob("*.yaml"))
TWIST = {
    "action__interface": "twist_stamped",
    "action__frame_id": "base_link",
    "action__dimensions__0__name": "linear.x",
    "action__dimensions__1": NOTHING,
}

# What is changed in TABLE -> what the error must say.
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"namex": "x"}, "table.yaml:namex: unknown key, did you mean 'name'?"),
    ({"cameras__0__widthx": 3}, "cameras[0].widthx: unknown key, did you mean 'width'?"),
    ({"zzz": 1}, "zzz: unknown key; the keys are name, control_rate_hz"),
    (
        {"cameras__0__width": NOTHING},
        "cameras[0].width: expected a whole number >= 1 and <= 4096, found nothing",
    ),
    ({"action": NOTHING}, "action: expected a mapping with the keys interface, topic"),
    ({"action": None}, "action: expected a mapping with the keys interface, topic"),
    ({"cameras": {"top": 1}}, "cameras: expected a list, found a mapping"),
    ({"cameras__0": "top"}, "cameras[0]: expected a mapping with the keys name, topic"),
    (
        {"name": 3},
        "name: expected a name of letters, digits and _ that begins with a letter, found 3 (put it in",
    ),
    ({"name": "a/b"}, "name: expected a name of letters"),
    ({"name": ""}, "name: expected a name of letters"),
    ({"control_rate_hz": "1e1"}, "(YAML reads a number with an exponent only with a point in it: 1.0e-3)"),
    ({"control_rate_hz": True}, "control_rate_hz: expected a finite number > 0 and <= 1000, found true"),
    ({"control_rate_hz": 0}, "control_rate_hz: expected a finite number > 0 and <= 1000, found 0"),
    ({"control_rate_hz": math.inf}, "control_rate_hz: expected a finite number > 0 and <= 1000, found inf"),
    ({"control_rate_hz": math.nan}, "control_rate_hz: expected a finite number > 0 and <= 1000, found nan"),
    ({"control_rate_hz": None}, "control_rate_hz: expected a finite number"),
    ({"max_steps": 1.5}, "max_steps: expected a whole number >= 1 and <= 1000000, found 1.5"),
    ({"max_steps": 0}, "max_steps: expected a whole number"),
    ({"dry_run": "yes"}, "dry_run: expected true or false, found the text 'yes'"),
    ({"dry_run": 1}, "dry_run: expected true or false, found 1"),
    ({"watchdog_periods": -1}, "watchdog_periods: expected a finite number > 0"),
    ({"cameras__0__frames": 0}, "cameras[0].frames: expected a whole number >= 1"),
    ({"cameras__0__max_age_s": 0}, "cameras[0].max_age_s: expected a finite number > 0"),
    (
        {"cameras__0__transport": "RAW"},
        "expected one of raw, compressed, found the text 'RAW', did you mean 'raw'?",
    ),
    ({"cameras__0__topic": "a b"}, "cameras[0].topic: expected a ROS name such as camera/top/image_raw"),
    ({"cameras__0__topic": "camera/"}, "cameras[0].topic: expected a ROS name"),
    ({"cameras__0__topic": "top/compressed"}, "cameras[0].topic: expected the base name"),
    ({"cameras": TABLE["cameras"] * 2}, "cameras[1].name: duplicate: 'top' is cameras[0] already"),
    ({"cameras": TABLE["cameras"] * 2}, "cameras[1].topic: expected a topic of its own"),
    (
        {"state__topic": "/commands"},
        "action.topic: expected a topic of its own, found that of state.topic",
    ),
    ({"cameras": [], "state": None}, "cameras: expected a camera or a state, found neither"),
    ({"state__entries": []}, "state.entries: expected at least one entry"),
    ({"state__entries__1__name": "x"}, "state.entries[1].name: duplicate: 'x' is entries[0] already"),
    (
        {"state__entries__1__joint": "x"},
        "state.entries[1].joint: duplicate: 'x (position)' is entries[0] already",
    ),
    ({"state__entries__0__unit": "deg"}, "state.entries[0].unit: expected one of 1, m, rad"),
    ({"action__dimensions__1__unit": 1}, "action.dimensions[1].unit: expected one of 1, m, rad"),
    ({"action__dimensions__1__unit": 1}, "found 1 (put it in quotes)"),
    (
        {"state__entries__0__low": 0.3},
        "state.entries[0].low: expected low < high, found low 0.3, high 0.3 ('x')",
    ),
    ({"state__entries__0__low": 1e308}, "state.entries[0].low: expected a finite number, found 1e+308"),
    ({"state__entries__0__field": "speed"}, "field: expected one of position, velocity, effort"),
    (
        {"state__interface": "float64_multi_array", "state__entries__0__joint": "j"},
        "state.entries[0].joint: has a meaning only with joint_states",
    ),
    ({"action__interface": "joint_trajectories"}, "did you mean 'joint_trajectory'?"),
    ({"action__dimensions": []}, "action.dimensions: expected at least one dimension, found none"),
    (
        {"action__dimensions__0__name": "grip"},
        "dimensions[1].name: duplicate: 'grip' is dimensions[0] already",
    ),
    (
        {"action__dimensions__0__bins": 1},
        "dimensions[0].bins: expected a whole number >= 2 and <= 65535, found 1",
    ),
    ({"action__dimensions__0__bins": 70000}, "dimensions[0].bins: expected a whole number"),
    (
        {"action__dimensions__1__bins": 3},
        "dimensions[1].bins: expected 2 for a gripper (closed, open), found 3",
    ),
    (
        {"action__dimensions__0__high": -1},
        "dimensions[0].low: expected low < high, found low -0.03, high -1 ('dx')",
    ),
    (
        {"action__dimensions__0__low": 0.01},
        "dimensions[0].low: expected bounds with 0 between them",
    ),
    ({"action__dimensions__0__max_rate": 0}, "max_rate: expected a number > 0 or .inf, found 0"),
    ({"action__dimensions__0__max_rate": -math.inf}, "max_rate: expected a number > 0 or .inf, found -inf"),
    ({"action__dimensions__0__max_rate": math.nan}, "max_rate: expected a number > 0 or .inf, found nan"),
    ({"action__execute": 2}, "action.execute: expected at most chunk = 1, found 2"),
    (
        {"action__interface": "joint_trajectory"},
        "action.hold_still: expected measured or last for joint positions",
    ),
    ({"action__hold_still": "measured"}, "action.hold_still: measured needs the position of 'dx'"),
    ({**TWIST, "action__frame_id": ""}, "action.frame_id: expected a frame such as base_link"),
    (
        {"action__hold_still": "last", "action__dimensions__0__unit": "m/s"},
        "action.hold_still: expected zero, as 'dx' is in m/s; found the text 'last', with which",
    ),
    ({**TWIST, "action__hold_still": "last"}, "action.hold_still: expected zero for velocities"),
    ({**TWIST, "action__dimensions__0__name": "lin.x"}, "found the text 'lin.x', did you mean 'linear.x'?"),
    ({"steps_to_go__bins": 1}, "steps_to_go.bins: expected a whole number >= 2"),
    ({"steps_to_go__width": 0}, "steps_to_go.width: expected a whole number >= 1"),
    (
        {"reset__method": "teleport"},
        "reset.method: expected one of service, person, trajectory, policy, none",
    ),
    (
        {"reset__method": "trajectory"},
        "reset.points: expected at least one point for method trajectory, found 0",
    ),
    ({"reset__points": [[0, 0]]}, "reset.points: expected none for method service, found 1"),
    (
        {"reset": {"method": "trajectory", "points": [[0], [0.5, 0]]}},
        "reset.points[0]: expected 2 numbers, one per action dimension, found 1",
    ),
    (
        {"reset": {"method": "trajectory", "points": [[0.5, 0]]}},
        "reset.points[0]: expected 'dx' within -0.03 .. 0.03, found 0.5",
    ),
    (
        {"reset": {"method": "trajectory", "points": [["a", 0]]}},
        "reset.points[0][0]: expected a finite number",
    ),
    ({"reset__service": "a-b"}, "reset.service: expected a ROS name"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS, ids=[f"{item[1][:60]}" for item in FAULTS])
def test_a_fault_is_reported_with_its_key(changes, message):
    with pytest.raises(EmbodimentInvalid) as caught:
        table_robot(**changes)
    assert message in str(caught.value)


def test_all_faults_are_reported_at_once():
    with pytest.raises(EmbodimentInvalid) as caught:
        table_robot(namex=1, cameras__0__widthx=3, action__dimensions__0__bins=1, state__entries__0__low=9)
    lines = str(caught.value).splitlines()
    assert lines[0] == "table.yaml: 4 faults"
    assert all(line.startswith("  table.yaml:") for line in lines[1:])


def test_a_robot_is_read_as_it_is_written():
    robot = table_robot()
    assert (robot.name, robot.control_rate_hz, robot.max_steps, robot.dry_run) == ("table", 10.0, 200, False)
    assert (robot.state_size, robot.action_size) == (2, 2)
    assert robot.camera("top").frames == 2
    assert robot.action.dimensions[0].max_rate == math.inf
    assert robot.action.dimensions[1].gripper
    assert robot.watchdog_periods == 2.0  # The default.


def test_a_real_robot_is_dry_unless_it_says_otherwise():
    assert table_robot(dry_run=NOTHING).dry_run


def test_robots_without_cameras_or_without_state_are_robots():
    assert table_robot(cameras=NOTHING).cameras == ()
    assert table_robot(state=NOTHING).state is None
    assert table_robot(state=None).state_size == 0


def test_twists_and_trajectories_are_accepted():
    assert table_robot(**TWIST).action.interface == "twist_stamped"
    points = [[0, 1], [0.03, 0]]
    reset = table_robot(reset={"method": "trajectory", "points": points}).reset
    assert reset.points == ((0.0, 1.0), (0.03, 0.0))


def test_plain_values_and_json_give_back_an_equal_robot():
    robot = table_robot()
    text = json.dumps(robot.to_dict(), allow_nan=False)
    again = Embodiment.from_dict(json.loads(text))
    assert again == robot and again.digest == robot.digest and hash(again) == hash(robot)


def test_the_digest_stays_the_same_between_machines_and_versions():
    # Bundles and episodes in the field carry it: a change here makes them all unusable.
    assert table_robot().digest == "52857a0b13ba1be3"


@pytest.mark.parametrize(
    "changes",
    [
        {"cameras__0__width": 9},
        {"cameras__0__frames": 1},
        {"cameras__0__name": "side"},
        {"state__entries__0__low": -1},
        {"state__entries__0__unit": "rad"},
        {"state__entries__0__field": "velocity"},
        {"action__dimensions__0__bins": 5},
        {"action__dimensions__0__high": 0.04},
        {"action__chunk": 5},
        {"steps_to_go__width": 5},
        {"control_rate_hz": 20},
    ],
    ids=str,
)
def test_the_digest_changes_with_what_a_model_depends_on(changes):
    assert table_robot(**changes).digest != table_robot().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"cameras__0__topic": "elsewhere"},
        {"cameras__0__transport": "compressed"},
        {"state__entries__0__joint": "left_x"},
        {"action__dimensions__0__max_rate": 0.1},
        {"watchdog_periods": 3},
        {"dry_run": True},
        {"reset": {"method": "person"}},
        {"control_rate_hz": 10},
    ],
    ids=str,
)
def test_the_digest_is_the_same_for_other_wiring_and_tighter_limits(changes):
    assert table_robot(**changes).digest == table_robot().digest


def test_a_robot_made_in_python_is_checked_as_strictly():
    robot = table_robot()
    with pytest.raises(EmbodimentInvalid, match=r"embodiment 'table':control_rate_hz: expected"):
        dataclasses.replace(robot, control_rate_hz=-1.0)
    faster = dataclasses.replace(robot, control_rate_hz=20, cameras=list(robot.cameras))
    assert isinstance(faster.control_rate_hz, float) and isinstance(faster.cameras, tuple)


def test_an_unknown_camera_suggests_the_nearest():
    with pytest.raises(EmbodimentInvalid, match=r"no camera 'topp', did you mean 'top'\?"):
        table_robot().camera("topp")


def test_topics_of_images_follow_the_transport():
    camera = table_robot(cameras__0__transport="compressed", cameras__0__topic="/top").camera("top")
    assert (camera.subscribed_topic, camera.recorded_topic) == ("/top/compressed", "top/compressed")
    assert table_robot().camera("top").subscribed_topic == "camera/top/image_raw"


def test_positions_are_found_by_joint_name_and_never_by_order():
    assert arm_robot().measured_indices() == (1, 0, None)
    assert table_robot().measured_indices() == (None, None)


# Files


# Nine levels of nine: written out, it would fill any memory.
ALIASES = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
ALIASES += "cameras: {top: *x9}\nname: *x9\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "robot.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_read_and_its_faults_name_it(tmp_path):
    path = write(tmp_path, yaml.safe_dump(TABLE))
    assert load_embodiment(path) == table_robot()
    path = write(tmp_path, yaml.safe_dump(table(max_steps="many")))
    with pytest.raises(EmbodimentInvalid) as caught:
        load_embodiment(str(path))
    assert str(caught.value).startswith(f"{path}:max_steps: expected a whole number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "the key 'name' of line 1 again"),
        ("action:\n  topic: a\n  topic: b\n", "the key 'topic' of line 2 again"),
        ("name: [", "expected YAML in UTF-8"),
        (b"name: \xff\xfe", "expected YAML in UTF-8"),
        ("name: !!python/object/apply:os.system ['true']", "expected YAML in UTF-8"),
        ("", "expected a mapping with the keys name"),
        ("- a\n- b\n", "expected a mapping with the keys name"),
        ("? [a, b]\n: 1\n", "expected YAML in UTF-8"),
        ("[" * 5000, "expected YAML in UTF-8"),
        ("1: 2\n", "1: unknown key"),
        ("name: 2026-99-99\n", "expected YAML in UTF-8"),
        (f"max_steps: {'9' * 5000}\n", "expected YAML in UTF-8"),
        (f"max_steps: {'9' * 400}\n", "max_steps: expected a whole number >= 1 and <= 1000000, found 99999"),
        (f"name: {'9' * 4000}\n", "found 99999"),
        (f"{'k' * 900}: 1\n", f"{'k' * 60}: unknown key"),
        (ALIASES, "cameras: expected a list, found a mapping"),
        ("cameras: &a [*a]\n", "cameras[0]: expected a mapping"),
        (" " * (1 << 20) + "a", "at most 1048576 bytes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_broken_file_is_refused_with_a_reason(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(EmbodimentInvalid) as caught:
        load_embodiment(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_flood_of_faults_is_cut_short():
    with pytest.raises(EmbodimentInvalid) as caught:
        table_robot(cameras=["x"] * 1000)
    lines = str(caught.value).splitlines()
    assert lines[0] == "table.yaml: 1000 faults" and lines[-1] == "  and 980 more" and len(lines) == 22


def test_no_name_at_all_lists_the_names():
    with pytest.raises(EmbodimentInvalid, match="no embodiment ''; there are"):
        load_embodiment("")


def test_merged_keys_of_yaml_are_not_duplicates(tmp_path):
    text = yaml.safe_dump(table(action=NOTHING)) + (
        "action: {interface: float64_multi_array, topic: commands, dimensions: [\n"
        "  &d {name: dx, low: -1, high: 1, bins: 3, unit: m, max_rate: .inf}, {<<: *d, name: dy}]}\n"
    )
    assert [item.name for item in load_embodiment(write(tmp_path, text)).action.dimensions] == ["dx", "dy"]


def test_a_missing_file_or_folder_is_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(EmbodimentInvalid, match=str(path)):
            load_embodiment(path if path.suffix else f"{path}/")


def test_a_bare_name_is_looked_for_in_the_installed_and_the_source_tree(tmp_path, monkeypatch):
    installed = tmp_path / "share/efm_bringup/config/embodiments"
    installed.mkdir(parents=True)
    (installed / "my_table.yaml").write_text(yaml.safe_dump(TABLE))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert embodiment_folders()[0] == installed
    assert load_embodiment("my_table") == table_robot()
    with pytest.raises(EmbodimentInvalid, match=r"no embodiment 'my_tabel', did you mean 'my_table'\?"):
        load_embodiment("my_tabel")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_embodiment_is_valid_and_named_as_its_file(path):
    robot = load_embodiment(path)
    assert robot.name == path.stem
    assert Embodiment.from_dict(json.loads(json.dumps(robot.to_dict()))) == robot
    assert load_embodiment(path.stem) == robot


def test_embodiments_are_shipped():
    assert SHIPPED
