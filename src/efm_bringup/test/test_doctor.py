"""`efm doctor`: every fault is named with what was expected, what was found, and what to do."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
import time

import pytest
from fake_robot import FakeRobot, meanwhile
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from efm_bringup.findings import Finding, Level
from efm_bringup.graph_checks import examine
from efm_bringup.graph_look import GraphLook
from efm_bringup.graph_snapshot import Diagnosis, Endpoint, Robot, Samples, Snapshot, Topic
from efm_core.embodiment import load_embodiment
from efm_ros.qos import COMMANDS, EVENTS, IMAGES, LATCHED

LOOK_S = 4.0  # Longer than a busy machine keeps a process waiting.
EFM = [sys.executable, "-m", "efm_bringup.efm"]
CAMERA, STATE, COMMAND = "/robot_1/camera/top/image_raw", "/robot_1/joint_states", "/robot_1/commands"
IMAGE, JOINTS = "sensor_msgs/msg/Image", "sensor_msgs/msg/JointState"
ARRAY, CLOCK = "std_msgs/msg/Float64MultiArray", "rosgraph_msgs/msg/Clock"
EPISODES = "/robot_1/episodes"


def healthy() -> Snapshot:
    """A real robot whose driver, controller, policy and episode node are all well."""
    robot = Robot("robot_1", load_embodiment("table"))
    good = {"count": 30, "rate_hz": 10.0, "stamps": True, "oldest_s": 0.05, "newest_s": 0.01}
    own = {"embodiment": "table", "use_sim_time": False}
    nodes = {"/policy": {**own, "robots": ["robot_1"], "learner": "/learner"}, "/robot_1/episodes": own}
    return Snapshot(
        seconds=3.0,
        robots=[robot],
        nodes={**nodes, "/driver": {}, "/controller": {}, "/resetter": {}},
        topics={
            CAMERA: Topic(
                [Endpoint("/driver", IMAGE, IMAGES)],
                [Endpoint("/policy", IMAGE, IMAGES)],
                Samples(**good, width=96, height=96, encoding="rgb8"),
            ),
            STATE: Topic(
                [Endpoint("/driver", JOINTS, EVENTS)],
                [Endpoint("/policy", JOINTS, IMAGES)],
                Samples(**good, joints=("effector_y", "effector_x")),
            ),
            COMMAND: Topic(
                [Endpoint("/policy", ARRAY, COMMANDS), Endpoint("/robot_1/teleop", ARRAY, COMMANDS)],
                [Endpoint("/controller", ARRAY, COMMANDS)],
            ),
        },
        services={"/robot_1/reset"},
        diagnoses=[
            Diagnosis("", "policy: lifecycle", 0, "active"),
            Diagnosis("robot_1", "episodes: lifecycle", 0, "active"),
            Diagnosis("", "policy: model", 0, "ready", {"provider": "CPU", "bundle_id": "0123456789abcdef"}),
        ],
        disks={"/data": (100 << 30, "episodes of /robot_1/episodes")},
        environment={"FASTRTPS_DEFAULT_PROFILES_FILE": "fastdds.xml"},
    )


def simulated() -> Snapshot:
    """The same with a world in lockstep, whose expert may command as well."""
    found = healthy()
    for name in ("/policy", "/robot_1/episodes"):
        found.nodes[name] = {**found.nodes[name], "use_sim_time": True, "lockstep": True}
    found.nodes["/sim"] = {"embodiment": "table", "use_sim_time": False, "lockstep": True}
    found.diagnoses.append(Diagnosis("", "sim: lifecycle", 0, "active"))
    found.topics["/clock"] = Topic([Endpoint("/sim", CLOCK, COMMANDS)], [], Samples(count=100))
    found.topics[COMMAND].publishers.append(Endpoint("/sim", ARRAY, COMMANDS))
    found.topics[COMMAND].subscribers = [Endpoint("/sim", ARRAY, COMMANDS)]
    for name in (CAMERA, STATE):
        found.topics[name].samples.rate_hz = 2.0  # Pending observations, shown again.
        found.topics[name].samples.oldest_s = 60.0
    return found


def bad(snapshot: Snapshot) -> list[Finding]:
    return [finding for finding in examine(snapshot) if finding.level is not Level.OK]


def in_real_time() -> Snapshot:
    """A simulation by the clock, whose /clock comes after the first inputs of its time."""
    found = simulated()
    found.nodes = {name: {**values, "lockstep": False} for name, values in found.nodes.items()}
    samples = Samples(count=30, stamps=True, rate_hz=10.0, newest_s=-0.1)
    found.topics[CAMERA].samples = found.topics[STATE].samples = samples
    return found


@pytest.mark.parametrize("made", [healthy, simulated, in_real_time])
def test_a_healthy_graph_is_left_alone(made):
    assert bad(made()) == []
    assert {finding.about for finding in examine(made())} >= {"robot_1", "/data", "policy: model", "nodes"}


def samples(name, **changes):
    def damage(snapshot):
        topic = snapshot.topics[name]
        topic.samples = dataclasses.replace(topic.samples, **changes)

    return damage


def publisher(name, node, kind, qos=COMMANDS):
    return lambda snapshot: snapshot.topics[name].publishers.append(Endpoint(node, kind, qos))


SECOND_DRIVER = publisher(CAMERA, "/other", IMAGE, IMAGES)


def subscriber(name, node, kind, qos=COMMANDS):
    return lambda snapshot: snapshot.topics[name].subscribers.append(Endpoint(node, kind, qos))


def renamed(name, other):
    return lambda snapshot: snapshot.topics.update({other: snapshot.topics.pop(name)})


def parameters(node, **changes):
    return lambda snapshot: snapshot.nodes[node].update(changes)


def diagnosis(name, level, message, **values):
    return lambda snapshot: snapshot.diagnoses.append(Diagnosis("robot_1", name, level, message, values))


def nothing(snapshot):
    snapshot.robots, snapshot.nodes, snapshot.topics, snapshot.diagnoses = [], {"/rviz": {}}, {}, []


def silent(snapshot):
    snapshot.diagnoses = [each for each in snapshot.diagnoses if not each.name.startswith("episodes")]


def clockless(snapshot):
    for node in ("/policy", "/robot_1/episodes"):
        snapshot.nodes[node]["use_sim_time"] = True


def clocked(snapshot):
    snapshot.topics["/clock"] = Topic([Endpoint("/bag", CLOCK, COMMANDS)], [], Samples(count=9))


def two_clocks(snapshot):
    clockless(snapshot)
    publishers = [Endpoint("/sim", CLOCK, COMMANDS), Endpoint("/bag", CLOCK, COMMANDS)]
    snapshot.topics["/clock"] = Topic(publishers, [], Samples(count=9))


def stopped_clock(snapshot):
    clockless(snapshot)
    snapshot.topics["/clock"] = Topic([Endpoint("/sim", CLOCK, COMMANDS)], [], Samples())


def no_controller(snapshot):
    snapshot.nodes["/robot_1/episodes"]["spool"] = "/data"
    names = ("/robot_1/teleop", "/robot_1/episodes")
    snapshot.topics[COMMAND].subscribers = [Endpoint(name, ARRAY, COMMANDS) for name in names]


W, O = Level.WRONG, Level.ODD  # noqa: E741
FAULTS = [
    (nothing, W, "graph", "no node of EFM among 1 nodes", "start a stack"),
    (lambda s: s.doubles.append("/policy"), W, "/policy", "two nodes have this name", "stop one"),
    (lambda s: s.refusals.update({"/policy": "no embodiment 'tabel'"}), W, "/policy", "tabel", "embodiment"),
    (lambda s: s.environment.clear(), O, "middleware", "not set here", "config/fastdds.xml"),
    (
        clockless,
        W,
        "/clock",
        "nobody publishes it, and /policy, /robot_1/episodes wait",
        "start the simulator",
    ),
    (two_clocks, W, "/clock", "2 nodes publish it: /bag, /sim", "publish_clock"),
    (stopped_clock, W, "/clock", "silent for 3 s", "simulator's log"),
    (
        clocked,
        W,
        "clocks",
        "/clock is published, and /policy, /robot_1/episodes do not use it",
        "use_sim_time:=true",
    ),
    (parameters("/policy", use_sim_time=True), W, "clocks", "/policy go by /clock", "same use_sim_time"),
    (renamed(CAMERA, "/robot_1/camera/top/image"), W, CAMERA, "nobody publishes it, did you mean", "driver"),
    (renamed(CAMERA, "/x"), W, CAMERA, "of that type there are /x", "remap"),
    (
        lambda s: s.topics[CAMERA].publishers.__setitem__(0, Endpoint("/driver", JOINTS, IMAGES)),
        W,
        CAMERA,
        f"expected {IMAGE}, /driver publish {JOINTS}",
        "transport",
    ),
    (SECOND_DRIVER, O, CAMERA, "2 nodes publish it: /driver, /other", "stop one"),
    (samples(CAMERA, count=0), W, CAMERA, "nothing came for 3 s", "driver's log"),
    (samples(CAMERA, rate_hz=4.0), W, CAMERA, "expected 10 Hz (control_rate_hz), found 4.0 Hz", "more often"),
    (samples(CAMERA, oldest_s=0.4), W, CAMERA, "up to 0.40 s old at arrival, allowed are 0.2 s", "NTP"),
    (samples(CAMERA, newest_s=-0.3), W, CAMERA, "stamps 0.30 s ahead of the clock", "NTP"),
    (samples(CAMERA, zero_stamps=30), W, CAMERA, "messages without a stamp", "stamp them"),
    (samples(CAMERA, problem="unknown encoding bayer"), W, CAMERA, "unknown encoding bayer", "rgb8"),
    (
        samples(CAMERA, problem="step 3", read=30, faulty=4),
        W,
        CAMERA,
        "in 4 of 30 messages: step 3",
        "whole pictures",
    ),
    (
        samples(STATE, joints=("effector_y",), problem="no effector_x", read=30, faulty=1),
        W,
        STATE,
        "in 1 of 30 messages: no joint 'effector_x'",
        "correct `joint`",
    ),
    (
        samples(CAMERA, width=64, height=64),
        O,
        CAMERA,
        "64 x 64 are smaller than the model's 96 x 96",
        "larger",
    ),
    (samples(CAMERA, width=640, height=480), O, CAMERA, "640 x 480 have another shape", "crop"),
    (samples(STATE, joints=("effector_x", "efector_y")), W, STATE, "did you mean 'efector_y'?", "joint"),
    (samples(STATE, problem="found NaN"), W, STATE, "found NaN", "driver"),
    (
        publisher(COMMAND, "/old_policy", ARRAY),
        W,
        COMMAND,
        "2 nodes command the robot: /old_policy",
        "stop all",
    ),
    (
        diagnosis("policy: control", 1, "a dry run: nothing is sent"),
        O,
        "robot_1 policy: control",
        "a dry run",
        "dry_run:=false",
    ),
    (
        parameters(EPISODES, spool="/", mode="evaluate"),
        W,
        "/robot_1/policy_step",
        "no policy node acts",
        "log",
    ),
    (parameters(EPISODES, spool="/", mode="practice"), W, "/robot_1/steps_to_go", "no reward node", "log"),
    (no_controller, W, COMMAND, "nobody takes the robot's commands", "start its controller"),
    (
        subscriber(COMMAND, "/arm", "std_msgs/msg/Float32"),
        W,
        COMMAND,
        f"expected {ARRAY}, /arm uses",
        "interface",
    ),
    (lambda s: s.services.clear(), W, "/robot_1/reset", "nobody offers the reset", "start the simulator"),
    (subscriber(CAMERA, "/viewer", IMAGE, COMMANDS), W, CAMERA, "cannot hear /driver: Best effort", "QoS"),
    (subscriber(STATE, "/late", JOINTS, LATCHED), W, STATE, "/late cannot hear /driver", "QoS"),
    (silent, W, "/robot_1/episodes", "said nothing on /diagnostics for 3 s", "see its log"),
    (
        diagnosis("reward: lifecycle", 1, "inactive"),
        W,
        "robot_1 reward: lifecycle",
        "is inactive",
        "activate",
    ),
    (
        diagnosis("policy: control", 2, "holding still"),
        W,
        "robot_1 policy: control",
        "holding still",
        "values",
    ),
    (
        diagnosis("policy: control", 2, "the e-stop is pressed"),
        W,
        "robot_1 policy: control",
        "the e-stop is pressed",
        "key e of efm watch",
    ),
    (
        parameters("/robot_1/episodes", learner="/learner", spool="/data"),
        W,
        "/learner",
        "/robot_1/episodes hand episodes over to a learner that is not there",
        "efm up learner",
    ),
    (diagnosis("policy: control", 1, "slow"), O, "robot_1 policy: control", "slow", "values"),
    (
        lambda s: setattr(s, "gpu", True),
        O,
        "policy: model",
        "on the CPU of a machine with a GPU",
        "onnxruntime-gpu",
    ),
    (lambda s: s.disks.update({"/spool": (2 << 30, "episodes")}), O, "/spool", "2.0 GB free", "make room"),
    (lambda s: s.disks.update({"/spool": (1 << 20, "episodes")}), W, "/spool", "0.0 GB free", "make room"),
]


@pytest.mark.parametrize(("damage", "level", "about", "text", "advice"), FAULTS)
def test_a_fault_is_named_with_what_to_do(damage, level, about, text, advice):
    snapshot = healthy()
    damage(snapshot)
    found = bad(snapshot)
    named = [
        finding
        for finding in found
        if (finding.level, finding.about) == (level, about)
        and text in finding.text
        and advice in finding.advice
    ]
    assert named, found
    assert all(finding.advice for finding in found), "every line says what to do"


def test_the_worst_comes_first():
    snapshot = healthy()
    snapshot.environment.clear()
    snapshot.services.clear()
    levels = [finding.level for finding in examine(snapshot)]
    assert levels == sorted(levels, key=[W, O, Level.OK].index)


def alive(robot: FakeRobot, spinner, clock_ns=time.time_ns, places=()):
    """A robot that streams and answers while a block runs in this thread."""
    places = itertools.chain(places, itertools.repeat(0.1))

    def stream():
        robot.observe(clock_ns(), next(places), 0.2)
        spinner.executor.spin_once(timeout_sec=0.05)

    return meanwhile(stream)


@pytest.fixture
def robot(run):
    node = run(Node("driver"))
    node.create_subscription(Float64MultiArray, COMMAND, lambda message: None, COMMANDS)
    return FakeRobot(node, load_embodiment("table"), "robot_1")


def test_a_live_robot_is_looked_at_without_any_node_of_efm(robot, spinner):
    with alive(robot, spinner), GraphLook(load_embodiment("table"), ["robot_1"]) as look:
        snapshot = look.take(LOOK_S)
    assert [(found.name, found.embodiment.name) for found in snapshot.robots] == [("robot_1", "table")]
    camera, state = snapshot.topics[CAMERA].samples, snapshot.topics[STATE].samples
    assert (camera.width, camera.height, camera.encoding, camera.problem) == (96, 96, "rgb8", "")
    assert camera.rate_hz > 1.0
    assert state.joints == ("effector_x", "effector_y")
    assert -0.1 < state.newest_s <= state.oldest_s < 10.0
    assert snapshot.nodes["/driver"] == {"use_sim_time": False}
    assert "/efm_doctor" not in snapshot.nodes
    missing = {finding.about for finding in examine(snapshot) if finding.level is W}
    assert "/robot_1/reset" in missing, "this robot cannot reset itself"


def test_messages_without_a_stamp_are_seen(robot, spinner):
    with alive(robot, spinner, lambda: 0), GraphLook(load_embodiment("table"), ["robot_1"]) as look:
        snapshot = look.take(LOOK_S)
    assert snapshot.topics[STATE].samples.zero_stamps > 0
    assert any("messages without a stamp" in finding.text for finding in examine(snapshot))


def test_a_fault_in_a_few_messages_is_found_whichever_comes_last(robot, spinner):
    places = itertools.cycle([0.1, math.nan, 0.1])
    with (
        alive(robot, spinner, places=places),
        GraphLook(load_embodiment("table"), ["robot_1"]) as look,
    ):
        snapshot = look.take(LOOK_S)
    told = [finding.text for finding in examine(snapshot) if finding.about == STATE]
    assert any(" messages: " in text and "NaN or infinity in ['effector_x']" in text for text in told), told
    found = snapshot.topics[STATE].samples
    assert 0 < found.faulty < found.read == found.count


def test_the_command_tells_people_and_programs(robot, spinner):
    command = [*EFM, "doctor", "--embodiment", "table", "--robots", "robot_1", "--seconds", "1.5"]
    with alive(robot, spinner):
        told = subprocess.run(command, capture_output=True, text=True, timeout=100)
        listed = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=100)
    assert told.returncode == listed.returncode == 1
    finding = "wrong /robot_1/reset: nobody offers the reset that the embodiment names\n      -> start"
    assert finding in told.stdout
    findings = json.loads(listed.stdout)
    assert {"level", "about", "text", "advice"} == set(findings[0])
    assert "/robot_1/reset" in {finding["about"] for finding in findings if finding["level"] == "wrong"}


def test_an_empty_graph_is_wrong():
    empty = subprocess.run([*EFM, "doctor", "--seconds", "1"], capture_output=True, text=True, timeout=100)
    assert empty.returncode == 1
    assert "no node of EFM" in empty.stdout
