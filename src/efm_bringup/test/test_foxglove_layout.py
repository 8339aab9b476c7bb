"""The Foxglove layout: whole, and every topic, field and service in it is one that the stack has.

What the stack has is read from the reference pages, which are made from the nodes themselves.
"""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efm_bringup.config import config_file
from efm_bringup.operator_keys import KEYS

ROOT = Path(__file__).resolve().parents[3]
ROBOT = "/robot_1"
WINDOW_PX = 900  # Height of the panels on a screen of 1080 lines.
# Kinds of panels -> the settings that each knows; what they do not know, Foxglove and Lichtblick leave out in
# silence. The titles are both there, since each reads its own.
TITLES = {"foxglovePanelTitle", "lichtblickPanelTitle"}
PANELS = {
    "3D": {"followTf", "followMode", "cameraState", "scene", "topics", "transforms", "layers"},
    "Image": {"imageMode"},
    "Plot": {
        *("paths", "xAxisVal", "isSynced", "followingViewWidth", "minYValue", "maxYValue"),
        *("showLegend", "legendDisplay", "showPlotValuesInLegend", "sidebarDimension"),
        *("showXAxisLabels", "showYAxisLabels"),
    },
    "StateTransitions": {"paths", "isSynced"},
    "Indicator": {"path", "rules", "style", "fallbackColor", "fallbackLabel"},
    "CallService": {
        *("serviceName", "requestPayload", "layout", "editingMode"),
        *("buttonText", "buttonTooltip", "buttonColor"),
    },
    "DiagnosticSummary": {
        *("topicToRender", "minLevel", "pinnedIds", "hardwareIdFilter"),
        *("sortByLevel", "secondsUntilStale"),
    },
}
NEEDED = {
    "3D": {"followTf", "cameraState", "topics"},
    "Image": {"imageMode"},
    "Plot": {"paths", "xAxisVal"},
    "StateTransitions": {"paths"},
    "Indicator": {"path", "rules", "style"},
    "CallService": {"serviceName", "requestPayload", "buttonText"},
    "DiagnosticSummary": {"topicToRender", "minLevel"},
}


@pytest.fixture(scope="module")
def layout() -> dict[str, Any]:
    return json.loads(config_file("foxglove.json").read_text())


@pytest.fixture(scope="module")
def panels(layout) -> list[tuple[str, dict[str, Any]]]:
    return [(name.partition("!")[0], settings) for name, settings in layout["configById"].items()]


@pytest.fixture(scope="module")
def stack() -> dict[str, str]:
    """Full name of each topic and service of robot_1 -> its type."""
    page = (ROOT / "docs" / "reference" / "topics.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", page, re.M)
    return {name.replace("<robot>", ROBOT): kind for name, kind in rows}


def interface(kind: str) -> Any:
    package, folder, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.{folder}"), name)


def leaves(node: str | dict[str, Any]) -> Iterator[str]:
    """The panels of a layout tree."""
    if isinstance(node, str):
        yield node
        return
    assert node["direction"] in ("row", "column")
    assert 5 <= node["splitPercentage"] <= 95, "no panel may be squeezed away"
    yield from leaves(node["first"])
    yield from leaves(node["second"])


def shares(node: str | dict[str, Any], share: float = 1.0) -> Iterator[tuple[str, float]]:
    """The panels of a layout tree with their share of its height."""
    if isinstance(node, str):
        yield node, share
        return
    split = node["splitPercentage"] / 100
    first, second = (split, 1.0 - split) if node["direction"] == "column" else (1.0, 1.0)
    yield from shares(node["first"], share * first)
    yield from shares(node["second"], share * second)


def paths(kind: str, settings: dict[str, Any]) -> list[str]:
    """The message paths (topic.field) of a panel."""
    if kind == "Indicator":
        return [settings["path"]]
    return [path["value"] for path in settings["paths"]] if "paths" in settings else []


def test_every_panel_has_a_place_and_what_it_needs(layout, panels):
    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    assert {kind for kind, _ in panels} == set(PANELS)
    for kind, settings in panels:
        assert NEEDED[kind] | TITLES <= settings.keys() <= PANELS[kind] | TITLES
        assert settings["foxglovePanelTitle"] == settings["lichtblickPanelTitle"]


def test_a_button_has_room_beside_the_fields_that_lichtblick_shows_above_it(layout, panels):
    assert all(s["layout"] == "horizontal" and not s["editingMode"] for k, s in panels if k == "CallService")
    heights = {name: share for name, share in shares(layout["layout"]) if name.startswith("CallService")}
    assert min(heights.values()) * WINDOW_PX > 150


def test_every_topic_is_one_that_the_stack_has(panels, stack):
    topics = {topic for kind, settings in panels if kind == "3D" for topic in settings["topics"]} | {
        settings["imageMode"]["imageTopic"] for kind, settings in panels if kind == "Image"
    }
    assert topics == {"/view/markers", f"{ROBOT}/annotated", "/annotate/fleet"}
    assert topics <= stack.keys()
    (diagnostics,) = (s["topicToRender"] for kind, s in panels if kind == "DiagnosticSummary")
    assert stack[diagnostics] == "diagnostic_msgs/msg/DiagnosticArray"


def test_every_path_leads_to_a_field_of_the_topic_s_type(panels, stack):
    found = [path for kind, settings in panels for path in paths(kind, settings)]
    for path in found:
        topic, _, field = path.partition(".")
        assert topic in stack, path
        assert field in interface(stack[topic]).get_fields_and_field_types(), path
    assert {f"{ROBOT}/steps_to_go.expectation", f"{ROBOT}/steps_to_go.threshold"} <= set(found)


def test_a_lamp_has_a_rule_for_every_value(panels, stack):
    for settings in (settings for kind, settings in panels if kind == "Indicator"):
        topic, _, field = settings["path"].partition(".")
        message = interface(stack[topic])
        values = {rule["rawValue"] for rule in settings["rules"]}
        if message.get_fields_and_field_types()[field] == "boolean":
            assert values == {"true", "false"}
        else:
            prefix = f"{field.upper()}_"
            constants = {getattr(message, name) for name in dir(message) if name.startswith(prefix)}
            assert values == {str(value) for value in constants if value}


def test_every_button_asks_a_service_in_words_that_it_takes(panels, stack):
    buttons = [settings for kind, settings in panels if kind == "CallService"]
    for button in buttons:
        request = interface(stack[button["serviceName"]]).Request
        payload = json.loads(button["requestPayload"])
        assert set(payload) == set(request.get_fields_and_field_types())
        request(**payload)
    assert len({button["buttonText"] for button in buttons}) == len(buttons)
    # What keys do in `efm watch`, buttons do here.
    assert {button["serviceName"] for button in buttons} == {
        f"{ROBOT}/{key.service}" for key in KEYS.values()
    }
    switches = {key.service for key in KEYS.values() if key.turned_on is not None}
    for service in switches:
        asked = {b["requestPayload"] for b in buttons if b["serviceName"] == f"{ROBOT}/{service}"}
        assert asked == {'{"data": true}', '{"data": false}'}
