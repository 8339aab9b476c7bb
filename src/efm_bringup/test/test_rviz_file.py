"""The RViz file is one that RViz 14 (Jazzy) understands, which leaves out in silence what it does not know.

Names of classes and properties and choices of values are compared with the lists below, which hold what the
file uses of RViz.
"""

from typing import Any

import pytest
import yaml
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

from efm_bringup.config import share_folder
from efm_ros.qos import COMMANDS

# Property -> its children, or what it may be: a type or the choices.
Known = dict[str, Any]
VECTOR: Known = {axis: float for axis in "XYZ"}
TOPIC: Known = {
    "Value": str,
    "Depth": int,
    "History Policy": ("System Default", "Keep Last", "Keep All"),
    "Reliability Policy": ("System Default", "Reliable", "Best Effort"),
    "Durability Policy": ("System Default", "Transient Local", "Volatile"),
}
DISPLAY: Known = {"Class": str, "Name": str, "Enabled": bool, "Value": bool}
DISPLAYS: dict[str, Known] = {
    "rviz_default_plugins/Grid": {
        "Alpha": float,
        "Cell Size": float,
        "Color": str,
        "Line Style": {"Line Width": float, "Value": ("Lines", "Billboards")},
        "Normal Cell Count": int,
        "Offset": VECTOR,
        "Plane": ("XY", "XZ", "YZ"),
        "Plane Cell Count": int,
        "Reference Frame": str,
    },
    "rviz_default_plugins/MarkerArray": {"Namespaces": {}, "Topic": TOPIC},
    "rviz_default_plugins/TF": {
        "Filter (blacklist)": str,
        "Filter (whitelist)": str,
        "Frame Timeout": float,
        "Frames": {"All Enabled": bool},
        "Marker Scale": float,
        "Show Arrows": bool,
        "Show Axes": bool,
        "Show Names": bool,
        "Tree": {},
        "Update Interval": float,
    },
    "rviz_default_plugins/Image": {
        "Max Value": float,
        "Median window": int,
        "Min Value": float,
        "Normalize Range": bool,
        "Topic": TOPIC,
    },
}
TOOLS: dict[str, Known] = {
    "rviz_default_plugins/Interact": {"Hide Inactive Objects": bool},
    "rviz_default_plugins/MoveCamera": {},
    "rviz_default_plugins/Select": {},
    "rviz_default_plugins/FocusCamera": {},
    "rviz_default_plugins/Measure": {"Line color": str},
}
PANELS: dict[str, Known] = {
    "rviz_common/Displays": {
        "Help Height": int,
        "Tree Height": int,
        "Property Tree Widget": {"Expanded": list, "Splitter Ratio": float},
    },
}
ORBIT: Known = {
    "Class": str,
    "Name": str,
    "Value": ("Orbit (rviz)",),
    "Distance": float,
    "Enable Stereo Rendering": {
        "Stereo Eye Separation": float,
        "Stereo Focal Distance": float,
        "Swap Stereo Eyes": bool,
        "Value": bool,
    },
    "Focal Point": VECTOR,
    "Focal Shape Fixed Size": bool,
    "Focal Shape Size": float,
    "Invert Z Axis": bool,
    "Near Clip Distance": float,
    "Pitch": float,
    "Target Frame": str,
    "Yaw": float,
}
GLOBAL: Known = {"Background Color": str, "Fixed Frame": str, "Frame Rate": int}


def misfits(found: Any, known: Any, where: str) -> list[str]:
    """What RViz would not understand, with where it stands."""
    if isinstance(known, dict):
        if not isinstance(found, dict):
            return [f"{where}: expected properties, found {found!r}"]
        return [
            problem
            for name, value in found.items()
            for problem in (
                misfits(value, known[name], f"{where}/{name}")
                if name in known
                else [f"{where}: unknown property {name!r}"]
            )
        ]
    if isinstance(known, tuple):
        return [] if found in known else [f"{where}: expected one of {known}, found {found!r}"]
    kinds = (int, float) if known is float else known
    fits = isinstance(found, kinds) and (known is bool or not isinstance(found, bool))
    return [] if fits else [f"{where}: expected {known.__name__}, found {found!r}"]


def of_class(entry: dict[str, Any], classes: dict[str, Known]) -> list[str]:
    name = entry["Class"]
    return misfits(entry, DISPLAY | classes[name], name) if name in classes else [f"unknown class {name}"]


@pytest.fixture(scope="module")
def file() -> dict[str, Any]:
    return yaml.safe_load((share_folder("rviz") / "efm.rviz").read_text())


def test_rviz_knows_every_class_and_property_of_the_file(file):
    manager = file["Visualization Manager"]
    problems = [
        *(problem for display in manager["Displays"] for problem in of_class(display, DISPLAYS)),
        *(problem for tool in manager["Tools"] for problem in of_class(tool, TOOLS)),
        *(problem for panel in file["Panels"] for problem in of_class(panel, PANELS)),
        *misfits(manager["Global Options"], GLOBAL, "Global Options"),
        *misfits(manager["Views"]["Current"], ORBIT, "Current View"),
    ]
    assert problems == []
    assert manager["Views"]["Current"]["Class"] == "rviz_default_plugins/Orbit"
    assert manager["Transformation"] == {"Current": {"Class": "rviz_default_plugins/TF"}}
    assert {"Panels", "Visualization Manager", "Window Geometry"} == set(file)


def test_every_display_and_panel_has_a_name_of_its_own_in_the_window(file):
    names = [entry["Name"] for entry in [*file["Visualization Manager"]["Displays"], *file["Panels"]]]
    assert len(set(names)) == len(names)
    sizes = {"Width", "Height", "X", "Y", "Hide Left Dock", "Hide Right Dock", "QMainWindow State"}
    assert set(file["Window Geometry"]) - sizes <= set(names)


def test_the_state_of_the_window_places_what_is_in_it_and_leaves_most_of_it_to_the_robots(file):
    window = file["Window Geometry"]
    state = bytes.fromhex(window["QMainWindow State"])
    for name in ("Displays", "What they see"):
        assert name.encode("utf-16-be") in state
    assert int.from_bytes(state[17:21], "big") < window["Width"] / 2


def test_rviz_hears_what_the_nodes_send(file):
    for display in file["Visualization Manager"]["Displays"]:
        if topic := display.get("Topic"):
            asked = QoSProfile(
                depth=topic["Depth"],
                reliability=ReliabilityPolicy[topic["Reliability Policy"].upper().replace(" ", "_")],
                durability=DurabilityPolicy[topic["Durability Policy"].upper().replace(" ", "_")],
            )
            assert qos_check_compatible(COMMANDS, asked)[0] != QoSCompatibility.ERROR


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"Class": "rviz/Grid"}, "unknown class rviz/Grid"),
        ({"Class": "rviz_default_plugins/Image", "Topik": {}}, "unknown property 'Topik'"),
        ({"Class": "rviz_default_plugins/Grid", "Plane": "XX"}, "found 'XX'"),
        ({"Class": "rviz_default_plugins/Grid", "Alpha": True}, "expected float, found True"),
        ({"Class": "rviz_default_plugins/Image", "Topic": "/a"}, "expected properties, found '/a'"),
    ],
)
def test_what_rviz_does_not_know_is_found(entry, problem):
    assert problem in of_class(entry, DISPLAYS)[0]
