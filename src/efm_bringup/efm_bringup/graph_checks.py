"""Judges a snapshot of a ROS graph: what is missing or odd, and what to do about it.

Each check is a function from the snapshot to findings; `examine` runs them all. Left out: looking
(`graph_look`), and what one robot shows and who commands it (`robot_checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rclpy.qos import QoSCompatibility, qos_check_compatible

from efm_bringup.findings import Finding, Level
from efm_bringup.graph_snapshot import Snapshot, node_names
from efm_bringup.robot_checks import check_commands, check_inputs

LITTLE_BYTES, TOO_LITTLE_BYTES = 5 << 30, 1 << 30

# What to do about what nodes say of themselves: a piece of their words, and the advice.
ADVICE = (
    ("e-stop", "when it is safe, release it: key e of efm watch, or the service estop_set with data: false"),
    ("stale input", "see what is said of that input above, and the log of its driver"),
    ("other commanders", "stop them, or name those that wait for their turn in known_commanders"),
    ("a dry run", "start it with dry_run:=false where the robot shall move"),
    ("a command takes", "use a smaller model, infer_ahead, or a GPU"),
    ("ignored what came", "see what is said of that topic, and the driver's log"),
    ("room for", "start the learner that takes the episodes, move them away, or raise quota_bytes"),
    ("free for the run", "make room on that disk"),
    ("confirm", "do what it says, then press r in efm watch, or call episodes/reset_done"),
)


def examine(snapshot: Snapshot) -> list[Finding]:
    """Returns all findings, the worst first."""
    found = [finding for check in CHECKS for finding in check(snapshot)]
    return sorted(found, key=lambda finding: (-list(Level).index(finding.level), finding.about))


def check_presence(snapshot: Snapshot) -> Iterator[Finding]:
    """Is anything there?"""
    domain = snapshot.environment.get("ROS_DOMAIN_ID") or "0"
    if not snapshot.robots and not snapshot.own_nodes():
        yield Finding(
            Level.WRONG,
            "graph",
            f"no node of EFM among {len(snapshot.nodes)} nodes in ROS_DOMAIN_ID {domain}",
            "start a stack (efm up collect), set the ROS_DOMAIN_ID of the stack that runs, or check a robot "
            "before that with --embodiment NAME --robots NAMES",
        )
    for name in snapshot.doubles:
        yield Finding(
            Level.WRONG,
            name,
            "two nodes have this name",
            "stop one; after a kill the old one stays in the graph for 10 to 20 s",
        )
    for node, words in snapshot.refusals.items():
        yield Finding(Level.WRONG, node, words, "correct its parameter 'embodiment'")
    if not snapshot.environment.get("FASTRTPS_DEFAULT_PROFILES_FILE"):
        yield Finding(
            Level.ODD,
            "middleware",
            "FASTRTPS_DEFAULT_PROFILES_FILE is not set here: with Fast DDS's defaults images are lost",
            "export it with the path of config/fastdds.xml for every process, ros2 CLI and drivers included",
        )


def check_clock(snapshot: Snapshot) -> Iterator[Finding]:
    """Do all nodes go by one clock, and does somebody keep it?"""
    publishers = snapshot.topic("/clock").publishers
    sim_time = {name: bool(values.get("use_sim_time")) for name, values in snapshot.own_nodes().items()}
    keepers = {endpoint.node for endpoint in publishers}
    # Who keeps the clock, and a learner, which is off the robots, go by the machine's own.
    judged = {
        name: flag
        for name, flag in sim_time.items()
        if name not in keepers and "run" not in snapshot.nodes[name]
    }
    simulated = sorted(name for name, flag in judged.items() if flag)
    real = sorted(name for name, flag in judged.items() if not flag)
    if simulated and not publishers:
        yield Finding(
            Level.WRONG,
            "/clock",
            f"nobody publishes it, and {', '.join(simulated)} wait for it (use_sim_time)",
            "start the simulator, or start the stack with use_sim_time:=false",
        )
    if len(publishers) > 1:
        yield Finding(
            Level.WRONG,
            "/clock",
            f"{len(publishers)} nodes publish it: {node_names(publishers)}",
            "let one publish it: set publish_clock of the others to false",
        )
    if simulated and real:
        yield Finding(
            Level.WRONG,
            "clocks",
            f"{', '.join(simulated)} go by /clock, {', '.join(real)} by the machine's clock",
            "give all nodes of a robot the same use_sim_time",
        )
    elif publishers and real:
        yield Finding(
            Level.WRONG,
            "clocks",
            f"/clock is published, and {', '.join(real)} do not use it",
            "start the stack with use_sim_time:=true",
        )
    if publishers and (samples := snapshot.topic("/clock").samples) and not samples.count:
        yield Finding(
            Level.WRONG,
            "/clock",
            f"silent for {snapshot.seconds:.0f} s",
            "see the simulator's log; is it active?",
        )


def check_qos(snapshot: Snapshot) -> Iterator[Finding]:
    """Can every subscription hear every publisher of its topic?"""
    for name, topic in snapshot.topics.items():
        for publisher in topic.publishers:
            for subscriber in topic.subscribers:
                if publisher.node == subscriber.node:
                    continue
                verdict, reason = qos_check_compatible(publisher.qos, subscriber.qos)
                if verdict == QoSCompatibility.ERROR:
                    why = reason.replace("ERROR: ", "").strip().rstrip(";")
                    yield Finding(
                        Level.WRONG,
                        name,
                        f"{subscriber.node} cannot hear {publisher.node}: {why}",
                        "change the QoS of one of them (qos_overrides of cameras and states are parameters)",
                    )


def check_diagnostics(snapshot: Snapshot) -> Iterator[Finding]:
    """What do the nodes say of themselves, and are they alive and active?"""
    speaking = {diagnosis.name.partition(":")[0] for diagnosis in snapshot.diagnoses}
    active = [diagnosis for diagnosis in snapshot.diagnoses if diagnosis.message == "active"]
    if active:
        nodes = sorted(" ".join(filter(None, (each.robot, each.name.partition(":")[0]))) for each in active)
        yield Finding(Level.OK, "nodes", f"{', '.join(nodes)} active")
    for name in snapshot.own_nodes():
        if name.rpartition("/")[2] not in speaking:
            yield Finding(
                Level.WRONG,
                name,
                f"said nothing on /diagnostics for {snapshot.seconds:.0f} s",
                "it hangs or has died; see its log",
            )
    for diagnosis in snapshot.diagnoses:
        about = " ".join(filter(None, (diagnosis.robot, diagnosis.name)))
        if diagnosis.name.endswith(": lifecycle") and diagnosis.message != "active":
            node = diagnosis.name.partition(":")[0]
            yield Finding(
                Level.WRONG,
                about,
                f"is {diagnosis.message}",
                f"activate it (ros2 lifecycle set .../{node} activate), or start it with autostart:=true; "
                "its log says why it refused",
            )
        elif diagnosis.level:
            level = Level.ODD if diagnosis.level == 1 else Level.WRONG
            advice = next((text for words, text in ADVICE if words in diagnosis.message), "")
            yield Finding(
                level, about, diagnosis.message, advice or "see its values on /diagnostics and its log"
            )


def check_learner(snapshot: Snapshot) -> Iterator[Finding]:
    """Is the learner there that robots hand their episodes to?"""
    there = {name for name, values in snapshot.nodes.items() if "run" in values}
    given = {
        name: str(values.get("learner", "")) for name, values in snapshot.nodes.items() if "spool" in values
    }
    for wanted in sorted(set(given.values()) - {""}):
        givers = sorted(name for name, learner in given.items() if learner == wanted)
        if not any(name.rpartition("/")[0] == wanted.rstrip("/") for name in there):
            yield Finding(
                Level.WRONG,
                wanted,
                f"{', '.join(givers)} hand episodes over to a learner that is not there",
                "start it (efm up learner policy:=... reward:=...), or see its log; episodes wait until then",
            )


def check_actors(snapshot: Snapshot) -> Iterator[Finding]:
    """Are the nodes there that act and judge, where episodes need them?"""
    for name, values in sorted(snapshot.nodes.items()):
        if "spool" not in values or values.get("mode") not in ("practice", "evaluate"):
            continue
        space = name.rpartition("/")[0]
        for topic, missing in (("policy_step", "policy node acts"), ("steps_to_go", "reward node judges")):
            if not snapshot.topic(f"{space}/{topic}").publishers:
                yield Finding(
                    Level.WRONG,
                    f"{space}/{topic}",
                    f"nobody publishes it: {name} is there to {values['mode']}, and no {missing}",
                    "see that node's log, where it refuses to start it says why; or start it",
                )


def check_models(snapshot: Snapshot) -> Iterator[Finding]:
    """Does the model run on what the machine has?"""
    for diagnosis in snapshot.diagnoses:
        provider = diagnosis.values.get("provider", "")
        if not diagnosis.name.endswith(": model") or not provider:
            continue
        if provider.startswith("CPU") and snapshot.gpu:
            has = any(not name.startswith(("CPU", "Azure")) for name in snapshot.providers)
            yield Finding(
                Level.ODD,
                diagnosis.name,
                "runs on the CPU of a machine with a GPU",
                "set the node's parameter provider" if has else "install onnxruntime-gpu beside it",
            )
        else:
            bundle = diagnosis.values.get("bundle_id", "")[:8]
            yield Finding(Level.OK, diagnosis.name, f"bundle {bundle} on {provider}")


def check_disks(snapshot: Snapshot) -> Iterator[Finding]:
    """Is there room for what is recorded and learned?"""
    for folder, (free, purpose) in snapshot.disks.items():
        text = f"{free / (1 << 30):.1f} GB free for {purpose}"
        if free < LITTLE_BYTES:
            level = Level.WRONG if free < TOO_LITTLE_BYTES else Level.ODD
            yield Finding(level, folder, text, "make room, or choose another folder")
        else:
            yield Finding(Level.OK, folder, text)


CHECKS: tuple[Callable[[Snapshot], Iterator[Finding]], ...] = (
    check_presence,
    check_clock,
    check_inputs,
    check_commands,
    check_qos,
    check_diagnostics,
    check_learner,
    check_actors,
    check_models,
    check_disks,
)
