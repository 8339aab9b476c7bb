"""What is drawn of a robot: markers for RViz and annotated pictures, made of a `Look`."""

import dataclasses
import math

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from visualization_msgs.msg import Marker

from efm_bringup.annotation import annotate, tile
from efm_bringup.frames import fixed_frames, moving_frames
from efm_bringup.look import GREEN, RED, WHITE, YELLOW, Look
from efm_bringup.markers import ARROW, BAR_LEFT, EFFECTOR, GOAL, TARGET, TEXT, THRESHOLD, TRAIL, RobotMarkers
from efm_bringup.scene import Scene, load_scene
from efm_core.embodiment import load_embodiment
from efm_core.summary import Actor, Outcome

STATE = {"effector_x": 0.1, "effector_y": 0.0}
COMMAND = {"effector_dx": 0.0, "effector_dy": 0.03}
ACTING = Look(
    robot="robot_1",
    instruction="push the red moon to the blue cube",
    episode_id="e1",
    step=20,
    actor=Actor.POLICY,
    steps_to_go=30.0,
    spread=4.0,
    threshold=6.0,
    reward=0.7,
    curve=(60.0, 45.0, 30.0),
    greatest=100.0,
    bundle_id="0123456789abcdef",
)


@pytest.fixture
def table():
    return load_scene("", load_embodiment("table"))


@pytest.fixture
def drawn(table):
    return RobotMarkers("robot_1", table)


def by_id(markers: list[Marker]) -> dict[int, Marker]:
    found = {marker.id: marker for marker in markers}
    assert len(found) == len(markers), "two markers with one id"
    return found


def test_markers_stand_in_the_frames_that_they_are_about(drawn):
    markers = by_id(drawn.make(ACTING, STATE, COMMAND))
    assert markers[EFFECTOR].header.frame_id == "robot_1/effector"
    assert markers[TARGET].header.frame_id == "robot_1/base"
    target = markers[TARGET].pose.position
    assert (target.x, target.y, target.z) == pytest.approx((0.1, 0.03, 0.028))
    assert markers[ARROW].points[0].y == pytest.approx(0.0)
    assert markers[ARROW].points[1].y == pytest.approx(0.03)
    assert {marker.ns for marker in markers.values()} == {"robot_1"}
    assert any(marker.header.frame_id == "robot_1/top_optical" for marker in markers.values())


def test_text_and_bar_tell_how_far_it_is(drawn):
    markers = by_id(drawn.make(ACTING, STATE, COMMAND))
    lines = markers[TEXT].text.splitlines()
    assert lines == ["robot_1", ACTING.instruction, "30.0 +- 4 steps to go", "policy acts"]
    full = by_id(drawn.make(dataclasses.replace(ACTING, steps_to_go=60.0), STATE, {}))[BAR_LEFT].scale.y
    assert markers[BAR_LEFT].scale.y == pytest.approx(0.5 * full)
    assert markers[THRESHOLD].action == Marker.ADD


def test_what_is_not_known_is_deleted_not_left_standing(drawn):
    markers = by_id(drawn.make(Look(robot="robot_1"), None, {}))
    gone = {number for number, marker in markers.items() if marker.action == Marker.DELETE}
    assert {TARGET, ARROW, BAR_LEFT, THRESHOLD} <= gone
    assert TEXT not in gone


def test_the_trail_is_of_one_episode(drawn):
    def trail(look, x):
        return by_id(drawn.make(look, {**STATE, "effector_x": x}, {}))[TRAIL]

    trail(ACTING, 0.0)
    assert [point.x for point in trail(ACTING, 0.1).points] == pytest.approx([0.0, 0.1])
    ended = dataclasses.replace(ACTING, episode_id="")
    assert len(trail(ended, 0.2).points) == 2
    again = dataclasses.replace(ACTING, step=0)
    assert trail(again, 0.0).action == Marker.DELETE, "a bag in a loop begins anew"
    trail(again, 0.1)
    assert trail(dataclasses.replace(ACTING, episode_id="e2"), 0.3).action == Marker.DELETE


def test_the_goal_of_the_point_mass_lies_where_the_state_says():
    scene = load_scene("", load_embodiment("pointmass"))
    state = {"x": 0.0, "y": 0.0, "goal_x": 0.5, "goal_y": -0.25}
    goal = by_id(RobotMarkers("", scene).make(ACTING, state, {}))[GOAL]
    assert (goal.pose.position.x, goal.pose.position.y, goal.scale.x) == pytest.approx((0.5, -0.25, 0.3))
    assert goal.header.frame_id == "base"


def test_a_robot_with_frames_of_its_own_keeps_them():
    scene = Scene(base="base_link", effectors=(dataclasses.replace(_effector(), frame="tool0"),))
    markers = by_id(RobotMarkers("left", scene).make(ACTING, {}, {}))
    assert markers[EFFECTOR].header.frame_id == "left/tool0"
    assert markers[TEXT].header.frame_id == "left/base_link"
    assert fixed_frames(("left",), scene, 1.0, Time()) == []
    assert moving_frames("left", scene, {}, Time()) == []


def _effector():
    from efm_bringup.scene import Effector

    return Effector()


def test_a_fleet_stands_side_by_side(table):
    robots = ("robot_1", "robot_2", "robot_3")
    frames = {frame.child_frame_id: frame for frame in fixed_frames(robots, table, 2.0, Time())}
    places = [frames[f"{robot}/base"].transform.translation for robot in robots]
    assert [(place.x, place.y) for place in places] == [(0.0, 0.0), (0.0, -2.0), (-2.0, 0.0)]
    assert {frames[f"{robot}/base"].header.frame_id for robot in robots} == {"world"}
    assert frames["robot_2/top_optical"].header.frame_id == "robot_2/base"
    (moving,) = moving_frames("robot_2", table, STATE, Time(sec=3))
    assert (moving.header.frame_id, moving.child_frame_id) == ("robot_2/base", "robot_2/effector")
    assert moving.transform.translation.x == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("look", "words", "colour"),
    [
        (ACTING, "policy acts", WHITE),
        (dataclasses.replace(ACTING, held=1), "policy acts", YELLOW),
        (dataclasses.replace(ACTING, success=True), "policy acts", GREEN),
        (dataclasses.replace(ACTING, takeover=True), "a person has control", WHITE),
        (dataclasses.replace(ACTING, takeover=True, estop=True), "E-STOP", WHITE),
        (dataclasses.replace(ACTING, episode_id="", outcome=Outcome.FAILURE), "idle", RED),
        (dataclasses.replace(ACTING, episode_id="", outcome=Outcome.SUCCESS), "idle", GREEN),
    ],
)
def test_colours_and_words_say_who_acts_and_whether_it_is_done(look, words, colour):
    assert (look.control, look.success_colour) == (words, colour)


def test_pictures_stay_whole_above_the_words():
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    image = annotate([picture], ACTING, 480)
    assert image.dtype == np.uint8
    assert image.shape[1] == 480
    assert image.shape[0] > 480
    # A pixel of the picture is a block of 5 x 5 equal ones.
    assert (image[5 * 40 + 2, 5 * 50 + 2] == picture[40, 50]).all()
    assert (image[0, 0] == WHITE).all(), "the edge has the colour of success"


def test_cameras_of_different_shapes_share_the_width():
    wide, tall = np.zeros((60, 120, 3), np.uint8), np.full((90, 60, 3), 255, np.uint8)
    image = annotate([wide, tall], Look(), 320)
    assert image.shape[1] == 320
    assert image[20, 40].max() == 0
    assert image[20, 300].min() == 255


@pytest.mark.parametrize(
    "look",
    [
        Look(),
        dataclasses.replace(ACTING, curve=()),
        dataclasses.replace(ACTING, curve=(math.nan, 3.0)),
        dataclasses.replace(ACTING, steps_to_go=math.inf, threshold=math.nan),
        dataclasses.replace(ACTING, instruction="schiebe den Würfel " * 20),
        dataclasses.replace(ACTING, curve=tuple(range(2000))),
    ],
)
@pytest.mark.parametrize("width", [160, 480])
def test_anything_can_be_drawn(look, width):
    assert annotate([], look, width).shape[1] == width


def test_the_curve_falls_in_the_picture_as_in_the_numbers():
    falling = annotate(
        [], dataclasses.replace(ACTING, curve=tuple(range(100, 0, -1)), threshold=math.nan), 480
    )
    rows, columns = np.nonzero((falling > 200).all(axis=2))
    plot = (rows > falling.shape[0] - 75) & (rows < falling.shape[0] - 12)  # Without the edge.
    left, right = (
        rows[plot & (columns > low) & (columns < high)].mean() for low, high in ((40, 80), (400, 440))
    )
    assert right > left + 20


def test_a_fleet_is_one_sheet():
    images = [np.full((100 + 10 * index, 160, 3), index + 1, np.uint8) for index in range(3)]
    sheet = tile(images)
    assert sheet.shape == (240, 320, 3)
    assert [sheet[5, 5, 0], sheet[5, 165, 0], sheet[125, 5, 0], sheet[125, 165, 0]] == [1, 2, 3, 0]
