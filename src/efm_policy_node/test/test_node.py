"""The real node in a process of its own, over real DDS, with a fake robot that waits for each command."""

import re

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from policy_cell import Cell, Process
from policy_fakes import bundle_of, embodiment_of
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import SetBool

from efm_core.errors import EfmError, Reason
from efm_core.observation import Observation
from efm_core.safety import Gate
from efm_core.summary import Actor
from efm_msgs.action import Act
from efm_policy_node.node import PolicyNode
from efm_policy_node.onnx_policy import Request, load_policy
from efm_ros.conversion import ns_to_stamp
from efm_ros.qos import COMMANDS, LATCHED
from efm_ros.testing import PATIENCE_S


@pytest.fixture(scope="module")
def cell(ros, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cell")
    embodiment = embodiment_of(control_rate_hz=50.0)
    cell = Cell(ros, folder, embodiment)
    cell.bundle = bundle_of(embodiment, folder)
    cell.start(bundle=str(cell.bundle.path), lockstep=True, follow_models=False)
    yield cell
    cell.close()


def test_every_observation_is_answered_with_its_own_stamp_and_recorded(cell):
    result = cell.episode(max_steps=20, episode_id="ep", seed=3).result()
    robot = cell.robot
    cell.until(lambda: len(robot.steps) == 20, "20 steps")
    assert (result.reason, result.steps, result.bundle_id) == (Reason.OK, 20, cell.bundle.id)
    stamps = list(robot.answers)
    assert stamps == sorted(stamps) and len(stamps) == 20
    recorded = [
        (step.header.stamp.sec * 10**9 + step.header.stamp.nanosec, step.step) for step in robot.steps
    ]
    assert recorded == list(zip(stamps, range(20), strict=True))
    for step, command in zip(robot.steps, robot.answers.values(), strict=True):
        assert step.command.tolist() == command.tolist()
        assert step.episode_id == "ep"
        assert step.actor == Actor.POLICY and step.bundle_id == cell.bundle.id and len(step.tokens) == 2
        assert step.log_prob < 0 and step.temperature == 1.0 and 0 < step.latency < 30


def test_the_same_seed_takes_the_same_actions_and_they_are_those_of_the_bundle(cell):
    def tokens_of(seed):
        cell.episode(max_steps=15, seed=seed).result()
        cell.until(lambda: len(cell.robot.steps) == 15, "15 steps")
        return [step.tokens.tolist() for step in cell.robot.steps], list(cell.robot.steps)

    first, steps = tokens_of(11)
    # Brightness differs between episodes, so the policy is asked again offline with what it saw.
    policy = load_policy(cell.bundle.path, cell.embodiment, robots=1)
    rng = np.random.default_rng(11)
    state = np.zeros(2)
    for step, tokens in zip(steps, first, strict=True):
        stamp_ns = step.header.stamp.sec * 10**9 + step.header.stamp.nanosec
        brightness = stamp_ns // cell.robot.period_ns % 256
        seen = Observation(
            stamp_ns, {"top": np.full((1, 6, 8, 3), brightness, np.uint8)}, state.astype(np.float32)
        )
        decision = policy.decide([Request(seen, "", 1.0, rng)])[0]
        assert decision.tokens[0].tolist() == tokens
        assert step.log_prob == pytest.approx(float(decision.log_prob[0]), abs=1e-4)
        state = np.array(step.command)
    assert tokens_of(12)[0] != first


def test_a_seed_that_nobody_gave_is_drawn_and_reported(cell):
    assert cell.episode(max_steps=1).result().seed > 0


def test_a_negative_temperature_is_greedy(cell):
    cell.episode(max_steps=3, temperature=-1.0).result()
    cell.until(lambda: len(cell.robot.steps) == 3, "3 steps")
    assert [step.temperature for step in cell.robot.steps] == [0.0] * 3


def test_cancelling_ends_in_order_and_holding_still_is_the_last_command(cell):
    goal = cell.episode()
    cell.until(lambda: len(cell.robot.steps) > 5, "some steps")
    result = goal.cancel()
    assert goal.status == GoalStatus.STATUS_CANCELED and result.reason == Reason.CANCELLED
    cell.until(cell.robot.is_held, "the last command")


def test_an_act_whose_client_is_gone_ends_and_the_robot_is_held(cell):
    robot, heard = cell.robot, []
    cell.until(robot.act.server_is_ready, "the node")
    start = ns_to_stamp(robot.reset())
    robot.act.send_goal_async(Act.Goal(episode_id="e", start=start), heard.append)
    cell.until(lambda: heard, "feedback")
    robot.act.destroy()
    try:
        cell.until(lambda: "is gone from the graph" in cell.process.log, "the end of the act")
        cell.until(robot.is_held, "holding still")
    finally:
        robot.act = ActionClient(cell.node, Act, "policy/act")


def test_a_goal_is_refused_while_another_act_runs_and_that_one_goes_on(cell):
    goal = cell.episode()
    second = cell.goal(episode_id="second")
    assert second.result().reason == Reason.BUSY and "'e'" not in second.result().message
    assert second.status == GoalStatus.STATUS_ABORTED
    count = len(cell.robot.steps)
    cell.until(lambda: len(cell.robot.steps) > count + 5, "the first act to go on")
    goal.cancel()


def test_the_estop_holds_ends_the_act_and_refuses_others_until_it_is_released(cell):
    goal = cell.episode()
    cell.until(lambda: len(cell.robot.steps) > 3, "some steps")
    cell.robot.estop.publish(Bool(data=True))
    assert goal.result().reason == Reason.ESTOP and goal.status == GoalStatus.STATUS_ABORTED
    assert cell.goal().result().reason == Reason.ESTOP
    assert cell.spinner.call(cell.robot.estop_set, SetBool.Request(data=False)).success
    assert cell.episode(max_steps=2).result().reason == Reason.OK
    assert cell.spinner.call(cell.robot.estop_set, SetBool.Request(data=True)).success
    assert cell.goal().result().reason == Reason.ESTOP
    cell.robot.estop.publish(Bool(data=False))
    cell.until(lambda: cell.episode(max_steps=2).result().reason == Reason.OK, "the release")


def test_a_person_takes_over_steers_and_gives_back(cell):
    robot = cell.robot
    goal = cell.episode()
    cell.until(lambda: len(robot.steps) > 3, "some steps")
    robot.takeover.publish(Bool(data=True))

    def steer_until(count):
        def look():
            robot.steer((0.3, -0.4))
            return sum(step.actor == Actor.HUMAN for step in robot.steps) >= count

        return look

    cell.until(steer_until(10), "steps of the person")
    human = [step for step in robot.steps if step.actor == Actor.HUMAN]
    first = [step.actor for step in robot.steps].index(Actor.HUMAN)
    before, after = (step.command[0] for step in robot.steps[first - 1 : first + 1])
    assert all(step.action.tolist() == [0.3, -0.4] and step.bundle_id == "" for step in human)
    assert all(len(step.tokens) == 0 and np.isnan(step.log_prob) for step in human)
    assert after <= before + 2.0 / 50 + 1e-9  # 2 rad/s at 50 Hz: a little at a time
    assert cell.spinner.call(robot.takeover_set, SetBool.Request(data=False)).success
    count = len(robot.steps)
    cell.until(lambda: len(robot.steps) > count + 30, "the policy to go on")
    assert robot.steps[-1].actor == Actor.POLICY
    commands = np.array([step.command for step in robot.steps[count - 1 : count + 10]])
    assert np.abs(np.diff(commands[:, 0])).max() < 2.0 / 50 + 1e-9
    goal.cancel()


def test_a_second_commander_is_refused_reported_and_forgotten_when_it_has_gone(cell, ros):
    intruder = ros.create_node("intruder", namespace=cell.namespace)
    try:
        intruder.create_publisher(Float64MultiArray, "commands", COMMANDS)
        cell.until(lambda: cell.node.count_publishers("commands") == 2, "the intruder")
        cell.until(lambda: "/intruder" in cell.diagnosis("control").message, "the diagnostics")
        assert cell.diagnosis("control").level == DiagnosticStatus.ERROR
        goal = cell.episode()
        assert goal.result().reason == Reason.BUSY and "/intruder" in goal.result().message
        assert not cell.robot.commands
    finally:
        intruder.destroy_node()
    cell.until(lambda: cell.node.count_publishers("commands") == 1, "the intruder to leave")
    cell.until(lambda: cell.episode(max_steps=2).result().reason == Reason.OK, "acts to be allowed again")


def test_a_commander_that_turns_up_later_stops_the_act(cell, ros):
    goal = cell.episode()
    intruder = ros.create_node("latecomer", namespace=cell.namespace)
    try:
        intruder.create_publisher(Float64MultiArray, "commands", COMMANDS)
        assert goal.result().reason == Reason.BUSY and "/latecomer" in goal.result().message
    finally:
        intruder.destroy_node()
    cell.until(lambda: cell.node.count_publishers("commands") == 1, "the latecomer to leave")
    cell.until(lambda: cell.episode(max_steps=2).result().reason == Reason.OK, "acts to be allowed again")


def test_of_several_latched_publishers_the_last_word_counts_for_a_late_joiner(ros, tmp_path):
    embodiment = embodiment_of(control_rate_hz=50.0)
    cell = Cell(ros, tmp_path, embodiment)
    try:
        others = [cell.node.create_publisher(Bool, "estop", LATCHED) for _ in range(6)]
        for number, publisher in enumerate(others):
            publisher.publish(Bool(data=number % 2 == 0))
        others[2].publish(Bool(data=True))  # the last word, by one that is neither first nor last
        cell.start(bundle=str(bundle_of(embodiment, tmp_path).path), lockstep=True, follow_models=False)
        cell.until(lambda: cell.diagnosis("control").message == "the e-stop is pressed", "the e-stop")
        assert cell.episode().result().reason == Reason.ESTOP
        others[3].publish(Bool(data=False))
        cell.until(lambda: cell.episode(max_steps=2).result().reason == Reason.OK, "the release")
    finally:
        cell.close()


def test_two_policy_nodes_of_one_name_do_not_fight_over_the_robot(cell):
    another = bundle_of(cell.embodiment, cell.folder, seed=5)
    said = {}  # By each of the two, told apart by its bundle.

    def hear(array):
        parts = {part.name: part for part in array.status if part.hardware_id == cell.namespace[1:]}
        if "policy: control" in parts:
            bundle = next(pair.value for pair in parts["policy: model"].values if pair.key == "bundle_id")
            said[bundle] = parts["policy: control"].message

    ear = cell.node.create_subscription(DiagnosticArray, "/diagnostics", hear, 10)
    twin = Process(
        cell.folder,
        cell.namespace,
        embodiment=str(cell.file),
        bundle=str(another.path),
        lockstep=True,
        follow_models=False,
    )
    try:
        cell.until(lambda: cell.node.count_publishers("commands") == 2, "the twin")
        cell.until(
            lambda: len(said) == 2 and all("other commanders" in words for words in said.values()),
            "each to know of the other",
        )
        goal = cell.episode()  # both serve it
        assert goal.result().reason == Reason.BUSY
        cell.spinner.until(goal.handle.cancel_goal_async().done, "both to refuse it")
        assert not cell.robot.commands
    finally:
        twin.end()
        cell.node.destroy_subscription(ear)
    cell.until(lambda: cell.node.count_publishers("commands") == 1, "the twin to leave")
    cell.until(lambda: cell.episode(max_steps=2).result().reason == Reason.OK, "acts to be allowed again")


def test_the_simulators_own_expert_is_no_rival(cell):
    own = cell.node.create_publisher(Float64MultiArray, "commands", COMMANDS)
    cell.until(lambda: cell.node.count_publishers("commands") == 2, "the expert's topic")
    assert cell.episode(max_steps=2).result().reason == Reason.OK
    cell.node.destroy_publisher(own)


def test_inputs_that_make_no_sense_are_ignored_in_clear_words_and_the_robot_stays(cell):
    robot = cell.robot
    cell.episode(max_steps=3).result()
    cell.until(robot.is_held, "the last command")
    robot.forget()
    goal = cell.goal(start=cell.node.get_clock().now().to_msg())
    robot.lockstep = False
    robot.state = np.array([np.nan, 0.0])
    robot.stamp_ns = cell.node.get_clock().now().nanoseconds

    def complained():
        robot.show()  # Again, since nobody repeats an image that was lost.
        return "NaN or infinity in ['one']" in cell.process.log

    cell.until(complained, "the complaint")
    assert not robot.commands
    robot.state = np.zeros(2)
    goal.cancel()


def test_diagnostics_tell_rhythm_model_and_provider(cell):
    cell.episode(max_steps=30).result()

    def values(name):
        return {value.key: value.value for value in cell.diagnosis(name).values}

    cell.until(lambda: float(values("control").get("rate_hz", 0)) > 0, "diagnostics")
    control, model = values("control"), values("model")
    assert float(control["latency_p99_ms"]) > 0 and float(control["rate_hz"]) > 0
    assert model["bundle_id"] == cell.bundle.id and model["provider"] == "CPUExecutionProvider"


def test_an_inactive_node_refuses_and_an_act_that_runs_at_deactivation_ends(cell):
    change = cell.node.create_client(ChangeState, "policy/change_state")

    def transition(number):
        request = ChangeState.Request(transition=Transition(id=number))
        assert cell.spinner.call(change, request).success

    goal = cell.episode()
    cell.until(lambda: len(cell.robot.steps) > 3, "some steps")
    transition(Transition.TRANSITION_DEACTIVATE)
    result = goal.result()
    assert result.reason == Reason.NOT_ACTIVE
    cell.until(cell.robot.is_held, "the last command")
    refused = cell.goal()
    assert refused.result().reason == Reason.NOT_ACTIVE and "activate" in refused.result().message
    transition(Transition.TRANSITION_ACTIVATE)
    assert cell.episode(max_steps=2).result().reason == Reason.OK


def test_the_temperature_can_be_set_while_it_runs_and_a_bad_one_is_refused(cell):
    client = cell.node.create_client(SetParameters, "policy/set_parameters")

    def set_to(value):
        number = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
        request = SetParameters.Request(parameters=[ParameterMessage(name="temperature", value=number)])
        return cell.spinner.call(client, request).results[0]

    assert set_to(0.5).successful
    cell.episode(max_steps=1).result()
    cell.until(lambda: cell.robot.steps, "a step")
    assert cell.robot.steps[0].temperature == 0.5
    refused = set_to(-3.0)
    assert not refused.successful and "temperature" in refused.reason
    assert set_to(1.0).successful


WRONG = [
    ({"bundle": "/nowhere/0123456789abcdef"}, "expected a bundle's folder"),
    ({"bundle": "", "follow_models": False}, "expected a bundle, or follow_models"),
    ({"stage": "shadows"}, "did you mean 'shadow'"),
    ({"temprature": 1.0}, "did you mean 'temperature'"),
    ({"embodiment": "tabel"}, "did you mean 'table'"),
    ({"infer_ahead": 5}, "infer_ahead"),
    ({"embodiment": "table"}, "was made for embodiment 'mini'"),
    ({"robots": ["a", "a"]}, "each once"),
]


@pytest.mark.parametrize(("parameters", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_parameter_is_refused_at_the_start_in_clear_words(cell, parameters, words):
    given = {"embodiment": str(cell.file), "bundle": str(cell.bundle.path)} | parameters
    overrides = [Parameter(name, value=value) for name, value in given.items()]
    with pytest.raises(EfmError, match=re.escape(words)):
        node = PolicyNode(parameter_overrides=overrides, namespace="/wrong")
        try:
            node.acquire()
        finally:
            node.stop_and_release()
            node.destroy_node()


def test_a_node_that_cannot_start_exits_with_code_1(cell):
    process = Process(cell.folder, "/wrong", embodiment=str(cell.file), bundle="/nowhere")
    assert process.process.wait(PATIENCE_S) == 1
    process.end()
    assert process.log.count("expected a bundle's folder") == 1, "once is enough"


def test_a_dry_run_decides_and_records_and_says_that_it_sends_nothing(ros, tmp_path):
    embodiment = embodiment_of(dry_run=True)
    cell = Cell(ros, tmp_path, embodiment)
    try:
        cell.start(bundle=str(bundle_of(embodiment, tmp_path).path), follow_models=False)
        cell.until(cell.robot.act.server_is_ready, "the node")
        cell.robot.run(20.0, lambda: cell.node.get_clock().now().nanoseconds)
        result = cell.goal(max_steps=10).result()
        cell.until(lambda: len(cell.robot.steps) == 10, "10 steps")
        assert result.reason == Reason.OK and not cell.robot.commands
        assert all(step.gate & Gate.DRY_RUN for step in cell.robot.steps)
        assert "dry run" in cell.process.log
        cell.until(lambda: cell.diagnosis("control").message.startswith("a dry run"), "the diagnostics")
        assert cell.diagnosis("control").level == DiagnosticStatus.WARN
    finally:
        cell.close()


def test_one_node_serves_three_robots_each_with_its_own_answers(ros, tmp_path):
    embodiment = embodiment_of(control_rate_hz=50.0)
    names = ("robot_1", "robot_2", "robot_3")
    cell = Cell(ros, tmp_path, embodiment, names)
    try:
        cell.start(bundle=str(bundle_of(embodiment, tmp_path).path), lockstep=True, follow_models=False)
        goals = [
            cell.episode(robot, max_steps=40, seed=k + 1) for k, robot in enumerate(cell.robots.values())
        ]
        assert [goal.result().reason for goal in goals] == [Reason.OK] * 3
        for robot in cell.robots.values():
            cell.until(lambda robot=robot: len(robot.steps) == 40, "40 steps")
            assert len(robot.answers) == 40
        tokens = [[step.tokens.tolist() for step in robot.steps] for robot in cell.robots.values()]
        assert tokens[0] != tokens[1] != tokens[2]
        cell.until(lambda: cell.diagnosis("robot_2 control").values, "diagnostics of each robot")
        assert cell.diagnosis("robot_2 control").hardware_id.endswith("robot_2")
    finally:
        cell.close()
