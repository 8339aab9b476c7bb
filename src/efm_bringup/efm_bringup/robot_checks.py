"""Judges the topics of one robot after another: what it shows, and who commands it. See `graph_checks`."""

from __future__ import annotations

from collections.abc import Iterator

from efm_bringup.findings import Finding, Level
from efm_bringup.graph_snapshot import Robot, Samples, Snapshot, Topic, node_names
from efm_core.embodiment import Camera
from efm_core.errors import nearest
from efm_ros.commands import message_type

SLOW = 0.8  # Share of the control rate below which an input is too slow.
AHEAD_S = 0.05  # Clocks of two machines differ by less when they are kept by NTP.
KNOWN_COMMANDERS = ("teleop", "sim")  # They wait for their turn; see `known_commanders` of the policy node.
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, ARRAY = "sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray"


def check_inputs(snapshot: Snapshot) -> Iterator[Finding]:
    """Do cameras and states come, as the embodiment says, fresh and fast enough?"""
    for robot in snapshot.robots:
        fine = True
        inputs = [
            (
                camera.subscribed_topic,
                COMPRESSED if camera.transport == "compressed" else IMAGE,
                camera.max_age_s,
            )
            for camera in robot.embodiment.cameras
        ]
        state = robot.embodiment.state
        if state is not None:
            inputs.append(
                (state.topic, JOINTS if state.interface == "joint_states" else ARRAY, state.max_age_s)
            )
        rates = []
        for name, kind, max_age_s in inputs:
            topic = snapshot.topic(robot.topic(name))
            for finding in _input(snapshot, robot, name, kind, max_age_s):
                fine = False
                yield finding
            rates.append(topic.samples.rate_hz if topic.samples is not None else 0.0)
        for camera in robot.embodiment.cameras:
            for finding in _picture(snapshot, robot, camera):
                fine = False
                yield finding
        for finding in _joints(snapshot, robot):
            fine = False
            yield finding
        if fine and inputs:
            how = "in lockstep" if snapshot.lockstep else f"at {min(rates):.1f} Hz or more"
            yield Finding(Level.OK, robot.name or "robot", f"{len(inputs)} inputs come, {how}")


def _input(snapshot: Snapshot, robot: Robot, name: str, kind: str, max_age_s: float) -> Iterator[Finding]:
    full = robot.topic(name)
    topic, rate_hz = snapshot.topic(full), robot.embodiment.control_rate_hz
    if not topic.publishers:
        alike = [
            other for other, seen in snapshot.topics.items() if any(p.kind == kind for p in seen.publishers)
        ]
        there = f"; of that type there are {', '.join(alike[:5])}" if alike else ""
        yield Finding(
            Level.WRONG,
            full,
            f"expected {kind}, nobody publishes it{nearest(full, alike) or there}",
            f"start the driver, remap its topic, or correct the embodiment '{robot.embodiment.name}'",
        )
        return
    if wrong := [endpoint for endpoint in topic.publishers if endpoint.kind != kind]:
        yield Finding(
            Level.WRONG,
            full,
            f"expected {kind}, {node_names(wrong)} publish {wrong[0].kind}",
            f"correct interface or transport in the embodiment '{robot.embodiment.name}'",
        )
        return
    if len(topic.publishers) > 1:
        yield Finding(
            Level.ODD,
            full,
            f"{len(topic.publishers)} nodes publish it: {node_names(topic.publishers)}",
            "stop one",
        )
    samples = topic.samples
    if samples is None:
        return
    if not samples.count:
        yield Finding(
            Level.WRONG,
            full,
            f"published by {node_names(topic.publishers)}, but nothing came for {snapshot.seconds:.0f} s",
            "see the driver's log; does the device stream, and does the middleware let it through (firewall, "
            "FASTRTPS_DEFAULT_PROFILES_FILE)?",
        )
        return
    if samples.zero_stamps:
        yield Finding(
            Level.WRONG,
            full,
            "messages without a stamp: nobody can tell how old they are",
            "let the driver stamp them when the data was taken",
        )
        return
    if snapshot.lockstep:
        return
    if samples.rate_hz < SLOW * rate_hz:
        yield Finding(
            Level.WRONG,
            full,
            f"expected {rate_hz:g} Hz (control_rate_hz), found {samples.rate_hz:.1f} Hz",
            "let the driver send more often, or lower control_rate_hz and train anew",
        )
    if samples.stamps and samples.oldest_s > max_age_s:
        yield Finding(
            Level.WRONG,
            full,
            f"stamps up to {samples.oldest_s:.2f} s old at arrival, allowed are {max_age_s:g} s (max_age_s)",
            "look for a slow network or driver, keep the machines' clocks with NTP, or raise max_age_s",
        )
    # /clock may come after what was taken at that time.
    ahead_s = AHEAD_S + (1.0 / rate_hz if snapshot.simulated else 0.0)
    if samples.stamps and samples.newest_s < -ahead_s:
        yield Finding(
            Level.WRONG,
            full,
            f"stamps {-samples.newest_s:.2f} s ahead of the clock",
            "keep the machines' clocks with NTP; is use_sim_time the same everywhere?",
        )


def _picture(snapshot: Snapshot, robot: Robot, camera: Camera) -> Iterator[Finding]:
    full = robot.topic(camera.subscribed_topic)
    samples = snapshot.topic(full).samples
    if samples is None or not samples.count:
        return
    if samples.problem:
        yield Finding(
            Level.WRONG,
            full,
            f"{_share(samples)}{samples.problem}",
            "let the driver send whole pictures of rgb8 or bgr8",
        )
    elif samples.width:
        size, wanted = f"{samples.width} x {samples.height}", f"{camera.width} x {camera.height}"
        if samples.width < camera.width or samples.height < camera.height:
            yield Finding(
                Level.ODD,
                full,
                f"pictures of {size} are smaller than the model's {wanted}: they are blown up",
                "let the camera send larger ones, or train with smaller ones",
            )
        elif abs(samples.width * camera.height / (samples.height * camera.width) - 1.0) > 0.02:
            yield Finding(
                Level.ODD,
                full,
                f"pictures of {size} have another shape than the model's {wanted}: they are squeezed",
                "crop in the driver to the shape that the model was trained with",
            )


def _joints(snapshot: Snapshot, robot: Robot) -> Iterator[Finding]:
    state = robot.embodiment.state
    if state is None or state.interface != "joint_states":
        return
    full = robot.topic(state.topic)
    samples = snapshot.topic(full).samples
    if samples is None or not samples.joints:
        return
    missing = sorted({entry.joint_name for entry in state.entries} - set(samples.joints))
    for name in missing:
        near = nearest(name, samples.joints) or f"; it has {', '.join(samples.joints)}"
        yield Finding(
            Level.WRONG,
            full,
            f"{_share(samples)}no joint '{name}'{near}",
            f"correct `joint` of that entry in the embodiment '{robot.embodiment.name}', or the driver",
        )
    if not missing and samples.problem:
        yield Finding(Level.WRONG, full, f"{_share(samples)}{samples.problem}", "see the driver's log")


def _share(samples: Samples) -> str:
    """Says how many messages have the fault, where not all do."""
    return f"in {samples.faulty} of {samples.read} messages: " if samples.faulty < samples.read else ""


def check_commands(snapshot: Snapshot) -> Iterator[Finding]:
    """Does exactly one node command each robot, and does the robot listen?"""
    for robot in snapshot.robots:
        action = robot.embodiment.action
        full = robot.topic(action.topic)
        topic = snapshot.topic(full)
        kind = _type_name(message_type(action))
        listeners = {endpoint.node for endpoint in topic.subscribers}
        commanders = sorted({endpoint.node for endpoint in topic.publishers} - listeners)
        rivals = [name for name in commanders if name.rpartition("/")[2] not in KNOWN_COMMANDERS]
        if len(rivals) > 1:
            yield Finding(
                Level.WRONG,
                full,
                f"{len(rivals)} nodes command the robot: {', '.join(rivals)}",
                "stop all but one; they would fight over it",
            )
        elif topic.publishers:
            yield Finding(Level.OK, full, f"can be commanded by {node_names(topic.publishers)}")
        if action.interface != "follow_joint_trajectory" and not _is_taken(snapshot, topic):
            yield Finding(
                Level.WRONG,
                full,
                "nobody takes the robot's commands",
                "start its controller (ros2 control list_controllers), or correct action.topic in the "
                f"embodiment '{robot.embodiment.name}'",
            )
        for endpoint in [*topic.publishers, *topic.subscribers]:
            if endpoint.kind != kind:
                yield Finding(
                    Level.WRONG,
                    full,
                    f"expected {kind}, {endpoint.node} uses {endpoint.kind}",
                    f"correct action.interface in the embodiment '{robot.embodiment.name}'",
                )
        service = robot.topic(robot.embodiment.reset.service)
        if robot.embodiment.reset.method == "service" and service not in snapshot.services:
            yield Finding(
                Level.WRONG,
                service,
                "nobody offers the reset that the embodiment names",
                "start the simulator, or choose another reset method (parameter reset of the episode node)",
            )


def _is_taken(snapshot: Snapshot, topic: Topic) -> bool:
    """Whether somebody listens who could move: recorders and people's devices only look on."""
    listeners = {endpoint.node for endpoint in topic.subscribers}
    recorders = {name for name, values in snapshot.nodes.items() if "spool" in values}
    return any(name.rpartition("/")[2] != "teleop" for name in listeners - recorders)


def _type_name(kind: type) -> str:
    package, folder = kind.__module__.split(".")[:2]
    return f"{package}/{folder}/{kind.__name__}"
