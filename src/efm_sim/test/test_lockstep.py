"""A world as a robot: stamps, answers, experts and what it refuses; without ROS."""

import dataclasses

import numpy as np
import pytest

from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest, EmbodimentMismatch
from efm_sim.expert import STYLES
from efm_sim.lockstep import RESERVE_NS, SimulatedClock, SimulatedRobot, check_embodiment, default_clock_file
from efm_sim.world import make_world

PERIOD_NS = 100_000_000
WALL_NS = 1_795_000_000_000_000_000
EMBODIMENT = load_embodiment("pointmass")


def make_robot(clock, seed=1, embodiment=EMBODIMENT):
    return SimulatedRobot(make_world("pointmass"), embodiment, clock, np.random.default_rng(seed))


@pytest.fixture
def clock():
    return SimulatedClock(None, WALL_NS)


@pytest.fixture
def robot(clock):
    return make_robot(clock)


def test_every_observation_is_stamped_one_control_period_after_the_last(robot):
    first, _ = robot.reset(5, "")
    stamps = [first.stamp_ns] + [robot.step(np.zeros(2)).stamp_ns for _ in range(3)]
    assert first.stamp_ns > WALL_NS
    assert np.diff(stamps).tolist() == [PERIOD_NS] * 3
    again, _ = robot.reset(5, "")
    assert again.stamp_ns > stamps[-1]


def test_only_the_command_that_answers_the_newest_observation_moves_the_world(robot):
    first, _ = robot.reset(5, "")
    second = robot.answer(np.ones(2), first.stamp_ns)
    assert second is not None and robot.steps == 1
    assert robot.answer(np.ones(2), first.stamp_ns) is None, "a late answer"
    assert robot.answer(np.ones(2), second.stamp_ns + 1) is None, "an answer to nothing"
    assert (robot.steps, robot.ignored) == (1, 2)
    assert robot.answer(np.ones(2), None) is not None, "somebody who does not know stamps"


def test_what_cannot_be_a_command_is_refused_and_the_world_does_not_move(robot):
    first, _ = robot.reset(5, "")
    for values in (np.array([np.nan, 0.0]), np.zeros(3)):
        with pytest.raises(BadRequest):
            robot.answer(values, first.stamp_ns)
    assert robot.pending is first and robot.steps == 0


def test_nothing_moves_before_the_first_reset(robot):
    assert robot.answer(np.zeros(2), None) is None
    for move in (lambda: robot.step(np.zeros(2)), robot.idle):
        with pytest.raises(BadRequest, match="service 'reset' first"):
            move()


def test_the_same_seeds_give_the_same_episodes(clock):
    runs = []
    for robot in (make_robot(clock), make_robot(clock)):
        states = []
        for _ in range(2):
            snapshot, seed = robot.reset(0, "")
            act = robot.expert(STYLES["imperfect"], 0, 0)
            states.append(snapshot.observation.state)
            while not act.finished:
                states.append(act.step().after.observation.state)
        runs.append((seed, np.array(states)))
    assert runs[0][0] == runs[1][0]
    assert np.array_equal(runs[0][1], runs[1][1])


def test_an_expert_answers_every_observation_and_rests_past_its_success(robot):
    first, _ = robot.reset(3, "")
    act = robot.expert(STYLES["perfect"], 3, 0)
    steps, successes = [], []
    while not act.finished:
        steps.append(act.step())
        successes.append(steps[-1].after.truth.success)
    assert steps[0].stamp_ns == first.stamp_ns
    assert [step.stamp_ns for step in steps[1:]] == [step.after.stamp_ns for step in steps[:-1]]
    rest = len(successes) - successes.index(True) - 1
    assert 5 <= rest <= 8
    assert act.success


def test_an_expert_that_fails_on_purpose_does_not_claim_success(robot):
    robot.reset(4, "")
    act = robot.expert(dataclasses.replace(STYLES["perfect"], fail=1.0), 4, 0)
    while not act.finished:
        act.step()
    assert not act.success


def test_an_act_of_an_expert_ends_at_the_greatest_length(robot):
    robot.reset(3, "")
    act = robot.expert(STYLES["perfect"], 3, 2)
    act.step(), act.step()
    assert act.finished and not act.success


def test_without_commands_speeds_become_zero_and_places_are_held(clock):
    places = dataclasses.replace(EMBODIMENT, action=dataclasses.replace(EMBODIMENT.action, hold_still="last"))
    for embodiment, expected in ((EMBODIMENT, [0.0, 0.0]), (places, [0.5, -0.5])):
        robot = make_robot(clock, embodiment=embodiment)
        still, _ = robot.reset(5, "")
        idle = robot.idle()
        assert np.array_equal(idle.observation.state, still.observation.state), "a body at rest stays there"
        assert idle.stamp_ns == still.stamp_ns + PERIOD_NS
        robot.step(np.array([0.5, -0.5]))
        twin = make_world("pointmass")
        twin.reset(5)
        twin.step(np.array([0.5, -0.5]))
        expected_state = twin.step(np.array(expected)).state
        if embodiment is EMBODIMENT:
            assert np.array_equal(robot.idle().observation.state, expected_state)
        else:
            assert np.allclose(robot.idle().observation.state, expected_state)


def test_robots_of_one_process_are_level_after_a_reset(clock):
    one, other = make_robot(clock), make_robot(clock, seed=2)
    one.reset(1, "")
    other.reset(1, "")
    for _ in range(50):
        one.step(np.zeros(2))
    late, _ = other.reset(2, "")
    assert late.stamp_ns > one.pending.stamp_ns
    assert clock.now_ns == late.stamp_ns


def test_stamps_rise_over_the_death_of_the_process(tmp_path):
    file = tmp_path / "clock"
    robot = make_robot(SimulatedClock(file, WALL_NS))
    robot.reset(1, "")
    for _ in range(100):
        last = robot.step(np.zeros(2))
    after_a_kill = SimulatedClock(file, WALL_NS + 1)
    assert last.stamp_ns < after_a_kill.now_ns <= last.stamp_ns + RESERVE_NS
    after_a_kill.close()
    in_order = SimulatedClock(file, WALL_NS + 2)
    assert after_a_kill.now_ns < in_order.now_ns <= after_a_kill.now_ns + 1


def test_a_long_run_reserves_more_time_before_it_is_used(tmp_path):
    file = tmp_path / "clock"
    clock = SimulatedClock(file, WALL_NS)
    clock.advance(WALL_NS + 3 * RESERVE_NS)
    assert int(file.read_text()) > WALL_NS + 3 * RESERVE_NS


def test_a_clock_file_that_is_damaged_or_too_late_is_named(tmp_path):
    file = tmp_path / "clock"
    file.write_text("yesterday")
    with pytest.raises(BadRequest, match="expected nanoseconds as digits, found 'yesterday'"):
        SimulatedClock(file, WALL_NS)
    file.write_text(str(2**31 * 10**9))
    with pytest.raises(BadRequest, match="before the year 2038"):
        SimulatedClock(file, WALL_NS)


def test_every_node_and_domain_has_a_clock_file_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_HOME", str(tmp_path))
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    assert default_clock_file("/cell/sim") == tmp_path / "efm_sim" / "clock-7-cell-sim"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"control_rate_hz": 20.0}, "control_rate_hz: expected 10, found 20"),
        (
            {"state": dataclasses.replace(EMBODIMENT.state, entries=EMBODIMENT.state.entries[::-1])},
            "state.entries",
        ),
        (
            {"action": dataclasses.replace(EMBODIMENT.action, dimensions=EMBODIMENT.action.dimensions[:1])},
            "action.dimensions: expected",
        ),
    ],
)
def test_an_embodiment_of_another_world_is_refused_with_what_differs(change, words):
    with pytest.raises(EmbodimentMismatch, match=words):
        check_embodiment(make_world("pointmass").spec, dataclasses.replace(EMBODIMENT, **change))
