"""The nodes that look on: markers and frames of a fleet, and pictures that cost nothing unless seen."""

import time

import numpy as np
import pytest
import yaml
from fake_robot import FakeRobot
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header
from visualization_msgs.msg import Marker, MarkerArray

from efm_bringup.annotate_node import AnnotateNode
from efm_bringup.config import share_folder
from efm_bringup.frames import WORLD
from efm_bringup.markers import EFFECTOR, TARGET, TEXT
from efm_bringup.robot_feed import RobotFeed
from efm_bringup.view_node import ViewNode
from efm_core.embodiment import load_embodiment
from efm_core.episode import EpisodeWriter
from efm_core.errors import BadRequest
from efm_core.image import encode_image
from efm_core.summary import Actor, Outcome
from efm_msgs.msg import EpisodeSummary, Instruction, PolicyStep, StepsToGo
from efm_ros.conversion import image_to_rgb, ns_to_stamp
from efm_ros.qos import COMMANDS, EVENTS, IMAGES, LATCHED

ROBOTS = ["robot_1", "robot_2"]
SECOND = 1_000_000_000


def given(**parameters):
    parameters = {"robots": ROBOTS, "embodiment": "table", **parameters}
    return [Parameter(name, value=value) for name, value in parameters.items()]


@pytest.fixture
def world(run):
    return run(Node("world"))


@pytest.fixture
def robots(world):
    embodiment = load_embodiment("table")
    return [FakeRobot(world, embodiment, robot) for robot in ROBOTS]


def started(spinner, run, node):
    run(node)
    spinner.until(lambda: node.is_active or node.failure, "an active node")
    assert node.failure is None
    return node


def subscribe(world, kind, topic, qos):
    heard = []
    return heard, world.create_subscription(kind, topic, heard.append, qos)


def listens_to(node, topic):
    return any(subscription.topic_name == topic for subscription in node.subscriptions)


def test_a_feed_tells_the_story_of_an_episode(world, robots, spinner):
    feed = RobotFeed(world, robots[0].embodiment, "robot_1")
    robot = robots[0]
    assert feed.look().control == "idle"
    assert feed.state() is None

    robot.begin("e1", "push the star")
    robot.observe(5 * SECOND, 0.1, -0.1)
    robot.act("e1", 3, 0.01, 0.02)
    for expectation in (40.0, 30.0):
        robot.judge("e1", expectation, reward=10.0)
    spinner.until(lambda: len(feed.look().curve) == 2 and feed.look().step == 4, "two judgements and a step")
    look = feed.look()
    assert (look.instruction, look.actor, look.bundle_id) == (
        "push the star",
        Actor.POLICY,
        "0123456789abcdef",
    )
    assert (look.steps_to_go, look.threshold, look.reward, look.greatest) == (30.0, 5.0, 10.0, 100.0)
    assert feed.state() == (5 * SECOND, {"effector_x": pytest.approx(0.1), "effector_y": pytest.approx(-0.1)})
    assert feed.command() == {"effector_dx": 0.01, "effector_dy": 0.02}

    robot.judge("e1", 1.0, success=True, held=3)
    robot.end(episode_id="e1", outcome=1, instruction="push the star")
    spinner.until(lambda: not feed.look().running and feed.look().success, "the end")
    # What was last seen stays on the screen until the next episode begins.
    assert (feed.look().outcome, feed.look().step, len(feed.look().curve)) == (Outcome.SUCCESS, 4, 3)
    assert feed.command() == {}

    robot.begin("e2", "push the moon")
    spinner.until(lambda: feed.look().episode_id == "e2", "the next episode")
    assert (feed.look().curve, feed.look().judged, feed.look().step) == ((), False, 0)
    for time_ns, expectation in ((9 * SECOND, 40.0), (2 * SECOND, 39.0)):
        robot.judge("e2", expectation, header=Header(stamp=ns_to_stamp(time_ns)))
    spinner.until(lambda: feed.look().curve == (39.0,), "a bag in a loop, which begins anew")
    robot.take_over(True)
    spinner.until(lambda: feed.look().takeover, "a takeover")
    feed.close()


def test_rviz_sees_a_fleet(world, robots, spinner, run):
    heard, _ = subscribe(world, MarkerArray, "/view/markers", COMMANDS)
    started(spinner, run, ViewNode(parameter_overrides=given()))

    def shown(robot):
        return {marker.id: marker for marker in heard[-1].markers if marker.ns == robot} if heard else {}

    robots[1].begin("e1", "push the star")
    robots[1].judge("e1", 12.0)

    def act():
        robots[1].observe(time.monotonic_ns(), 0.05, 0.0)
        robots[1].act("e1", 0, 0.03, 0.0)
        target = shown("robot_2").get(TARGET)
        return target is not None and target.action == Marker.ADD

    spinner.until(act, "markers of robot_2")
    assert shown("robot_2")[TARGET].pose.position.x == pytest.approx(0.08)
    spinner.until(lambda: "12.0 +- 1 steps to go" in shown("robot_2")[TEXT].text, "the judgement")
    assert shown("robot_1")[EFFECTOR].header.frame_id == "robot_1/effector"


def test_frames_reach_who_joins_while_robots_rest(world, robots, spinner, run):
    tf2 = pytest.importorskip("tf2_msgs.msg", reason="tf2_msgs comes with a full ROS 2")
    started(spinner, run, ViewNode(parameter_overrides=given()))
    fixed, _ = subscribe(world, tf2.TFMessage, "/tf_static", LATCHED)
    spinner.until(lambda: fixed, "frames that stand still")
    assert {frame.child_frame_id for frame in fixed[0].transforms} == {
        f"{robot}/{name}" for robot in ROBOTS for name in ("base", "top_optical")
    }
    first, _ = subscribe(world, tf2.TFMessage, "/tf", EVENTS)

    def moved():
        robots[0].observe(7 * SECOND, 0.05, 0.0)
        return first

    spinner.until(moved, "a moving frame")
    assert first[0].transforms[0].child_frame_id == "robot_1/effector"
    assert first[0].transforms[0].header.stamp.sec == 7
    late, _ = subscribe(world, tf2.TFMessage, "/tf", EVENTS)
    spinner.until(lambda: late, "the same frame, for a newcomer")


def test_nothing_is_drawn_while_nobody_looks(world, robots, spinner, run):
    node = started(spinner, run, AnnotateNode(parameter_overrides=given(width=160)))
    camera = "/robot_1/camera/top/image_raw"
    assert not listens_to(node, camera)
    heard, subscription = subscribe(world, Image, "/robot_1/annotated", IMAGES)

    def seen():
        robots[0].observe(time.monotonic_ns(), 0.0, 0.0, grey=123)
        return heard

    spinner.until(seen, "an annotated picture")
    picture = image_to_rgb(heard[-1])
    assert picture.shape[1] == 160
    assert (picture[80, 80] == 123).all()
    assert listens_to(node, camera)
    assert not listens_to(node, "/robot_2/camera/top/image_raw")
    world.destroy_subscription(subscription)
    spinner.until(lambda: not listens_to(node, camera), "an end of listening")


def test_the_whole_fleet_is_on_one_sheet(world, robots, spinner, run):
    started(spinner, run, AnnotateNode(parameter_overrides=given(width=160)))
    heard, _ = subscribe(world, Image, "/annotate/fleet", COMMANDS)

    def seen():
        for index, robot in enumerate(robots):
            robot.observe(time.monotonic_ns(), 0.0, 0.0, grey=50 + 100 * index)
        return heard and image_to_rgb(heard[-1]).shape[1] == 320

    spinner.until(seen, "a sheet of two")
    sheet = image_to_rgb(heard[-1])
    assert [sheet[80, 80, 0], sheet[80, 240, 0]] == [50, 150]


def test_an_episode_that_is_played_back_is_seen_too(world, spinner, run):
    # A bag has compressed pictures only, in the root namespace.
    player = world.create_publisher(CompressedImage, "/camera/top/image_raw/compressed", 10)
    started(spinner, run, AnnotateNode(parameter_overrides=given(robots=[""], width=160)))
    heard, _ = subscribe(world, Image, "/annotated", COMMANDS)
    coded = encode_image(np.full((96, 96, 3), 77, np.uint8), "png")

    def seen():
        player.publish(CompressedImage(format="png", data=coded))
        return heard

    spinner.until(seen, "an annotated picture")
    assert (image_to_rgb(heard[-1])[80, 80] == 77).all()


def record(folder):
    """An episode of the table, as an episode node writes it; gives its folder."""
    stamp_ns = 9 * SECOND
    header = Header(stamp=ns_to_stamp(stamp_ns))
    step = PolicyStep(header=header, episode_id="e1", bundle_id="0123456789abcdef", actor=1)
    step.command = step.action = [0.0, 0.03]
    messages = {
        "instruction": Instruction(header=header, episode_id="e1", text="push the star"),
        "joint_states": JointState(header=header, name=["effector_x", "effector_y"], position=[0.1, 0.0]),
        "policy_step": step,
        "steps_to_go": StepsToGo(header=header, episode_id="e1", expectation=12.0, spread=1.0, threshold=5.0),
    }
    writer = EpisodeWriter(folder, "e1", load_embodiment("table"))
    for topic, message in messages.items():
        package, kind = type(message).__module__.partition(".")[0], type(message).__name__
        if isinstance(message, JointState):
            message.velocity = message.effort = [0.0, 0.0]
        writer.write(topic, f"{package}/msg/{kind}", stamp_ns, serialize_message(message))
    writer.write_image("top", stamp_ns, np.full((96, 96, 3), 77, np.uint8))
    return writer.close(
        {
            "episode_id": "e1",
            "start_ns": stamp_ns,
            "stamp_ns": stamp_ns,
            "outcome": 1,
            "end_reason": 1,
            "steps": 1,
        }
    )


def player(node, folder):
    """Sends an episode's messages as `ros2 bag play` does, with the QoS that the bag names; call it again."""
    kinds = (Instruction, JointState, PolicyStep, StepsToGo, CompressedImage, EpisodeSummary)
    with Reader(folder) as reader:
        sent = [(connection, bytes(data)) for connection, _, data in reader.messages()]
        publishers = {}
        for connection in reader.connections:
            latched = any(q.durability.name == "TRANSIENT_LOCAL" for q in connection.ext.offered_qos_profiles)
            (kind,) = (kind for kind in kinds if connection.msgtype.endswith(f"/{kind.__name__}"))
            publishers[connection.topic] = node.create_publisher(
                kind, connection.topic, LATCHED if latched else 10
            )

    def play(*topics):
        for connection, data in sent:
            if connection.topic in topics:
                publishers[connection.topic].publish(data)

    return play


def test_a_bag_that_is_played_back_is_shown_whole(world, spinner, run, tmp_path):
    play = player(world, record(tmp_path))
    play("instruction")  # Once, at its beginning, before the view has even started.
    started(spinner, run, ViewNode(parameter_overrides=given(robots=[""])))
    heard, _ = subscribe(world, MarkerArray, "/view/markers", COMMANDS)

    def shown():
        play("joint_states", "policy_step", "steps_to_go")
        markers = {marker.id: marker for marker in heard[-1].markers} if heard else {}
        return TARGET in markers and markers[TARGET].action == Marker.ADD and "12.0" in markers[TEXT].text

    spinner.until(shown, "target, instruction and judgement of the bag")
    markers = {marker.id: marker for marker in heard[-1].markers}
    assert markers[TARGET].pose.position.y == pytest.approx(0.03)
    assert markers[TEXT].text.splitlines() == ["push the star", "12.0 +- 1 steps to go", "policy acts"]
    assert {marker.header.frame_id for marker in markers.values()} == {"base", "effector", "top_optical"}


def test_rviz_is_told_of_topics_that_there_are(spinner, run):
    config = yaml.safe_load((share_folder("rviz") / "efm.rviz").read_text())["Visualization Manager"]
    displays = [display for display in config["Displays"] if "Topic" in display]
    published: dict[str, type] = {}
    for kind in (ViewNode, AnnotateNode):
        node = started(spinner, run, kind(parameter_overrides=given()))
        published |= {publisher.topic_name: publisher.msg_type for publisher in node.publishers}
    for display in displays:
        assert published[display["Topic"]["Value"]].__name__ == display["Class"].rpartition("/")[2]
    assert len(displays) == 2
    assert config["Global Options"]["Fixed Frame"] == WORLD


def test_a_scene_that_does_not_fit_refuses_the_start(spinner, run, tmp_path):
    scene = tmp_path / "scene.yaml"
    scene.write_text("effectors: [{position: [elbow, '', '']}]")
    node = run(ViewNode(parameter_overrides=given(scene=str(scene))))
    spinner.until(lambda: node.failure, "a refusal")
    assert isinstance(node.failure, BadRequest)
    assert "no state entry 'elbow'" in str(node.failure)
