"""Episodes through real nodes, processes and DDS: what is recorded, and what becomes of a run when nodes
die.
"""

import signal
import time

import numpy as np
import pytest
from sensor_msgs.msg import JointState

from efm_core.episode import check_episode, read_episode, read_summary
from efm_core.episode_file import read_episode_file
from efm_core.errors import Reason
from efm_core.summary import EndReason, Mode, Outcome
from efm_msgs.msg import EpisodeStatus, LearnerStatus
from efm_ros.conversion import stamp_to_ns
from efm_ros.qos import IMAGES, LATCHED
from efm_ros.testing import PATIENCE_S


def test_demonstrations_of_an_expert_are_recorded_whole(stack):
    stack.start_sim()
    stack.start_episodes()
    result = stack.run(Mode.COLLECT, episodes=5, seed=1)
    assert (result.reason, result.episodes) == (Reason.OK, 5), result.message
    folders = stack.episodes()
    assert sorted(folder.name for folder in folders) == sorted(result.episode_ids)
    for folder in folders:
        assert check_episode(folder) == []
        episode = read_episode(folder)
        assert episode.summary.steps == len(episode) - 1
        assert np.isfinite(episode.actions[:-1]).all()
        assert np.isnan(episode.actions[-1]).all()
        assert (np.diff(episode.stamps) == 100_000_000).all()
        assert episode.instruction == "reach the goal"
        assert episode.summary.end_reason is EndReason.ACTOR_DONE
    stack.until(lambda: len(stack.summaries) == 5, "five summaries")
    assert stack.feedback[-1].feedback.episodes == 5


def test_a_world_in_lockstep_waits_for_a_recorder_that_has_fallen_behind(stack):
    steps = 1500
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(stall_timeout_s=60.0)
    seen = []
    topic = "/robot_1/joint_states"
    stack.node.create_subscription(JointState, topic, lambda state: seen.append(state.header.stamp), IMAGES)
    run = stack.begin(Mode.COLLECT, episodes=1, actor="policy", max_steps=steps)
    stack.until_acting(100)
    stack.processes["episodes"].send_signal(signal.SIGSTOP)
    seen.clear()
    # An observation that is shown again: the policy has answered it, and the world waits.
    stack.until(lambda: len(seen) > 4 and len(set(map(stamp_to_ns, seen[-3:]))) == 1, "a world that waits")
    newest_ns = stamp_to_ns(seen[-1])
    stack.processes["episodes"].send_signal(signal.SIGCONT)
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.reason == Reason.OK, run.result().result.message
    (folder,) = stack.episodes()
    episode = read_episode(folder)
    assert len(episode) == steps + 1 and check_episode(folder) == []
    assert newest_ns < episode.stamps[-1], "nobody waited"


def test_the_same_seeds_give_the_same_demonstrations(stack):
    stack.start_sim()
    stack.start_episodes()
    first = stack.run(Mode.COLLECT, episodes=2, seed=7).episode_ids
    second = stack.run(Mode.COLLECT, episodes=2, seed=7).episode_ids
    by_name = {folder.name: read_episode(folder) for folder in stack.episodes()}
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(by_name[one].state, by_name[other].state)


def test_practice_ends_at_the_detector_and_its_bags_never_hold_the_truth(stack):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes()
    result = stack.run(Mode.PRACTICE, episodes=3, seed=1)
    assert (result.reason, result.successes) == (Reason.OK, 3), result.message
    for folder in stack.episodes():
        topics = read_episode_file(folder).topics
        assert "ground_truth" not in topics
        assert {"policy_step", "steps_to_go", "instruction", "commands", "joint_states"} <= set(topics)
        episode = read_episode(folder)
        summary = episode.summary
        assert (summary.end_reason, summary.outcome) == (EndReason.SUCCESS_DETECTED, Outcome.SUCCESS)
        assert (summary.policy_bundle_id, summary.policy_version, summary.reward_bundle_id) == (
            "policy0",
            3,
            "reward0",
        )
        assert episode.steps_to_go[-1] <= 2.0
        assert np.isfinite(episode.steps_to_go).all()
        assert summary.steps == len(episode) - 1


def test_collected_bags_never_hold_the_truth_even_after_an_evaluation(stack):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes()
    assert stack.run(Mode.EVALUATE, episodes=2, seed=5).episodes == 2
    assert stack.run(Mode.COLLECT, episodes=2, seed=5).episodes == 2
    for folder in stack.episodes(".evaluation"):
        assert "ground_truth" in read_episode_file(folder).topics
        assert read_summary(folder).mode is Mode.EVALUATE
    assert len(stack.episodes(".evaluation")) == 2
    for folder in stack.episodes():
        assert "ground_truth" not in read_episode_file(folder).topics


def test_an_evaluation_can_end_at_the_worlds_own_success(stack):
    stack.start_sim()
    stack.start_models(reward=False)
    stack.start_episodes()
    result = stack.run(Mode.EVALUATE, episodes=2, seed=5, end_on_truth=True)
    assert (result.reason, result.successes) == (Reason.OK, 2), result.message
    assert {read_summary(folder).end_reason for folder in stack.episodes(".evaluation")} == {EndReason.TRUTH}


def test_a_simulator_that_dies_ends_the_episode_as_a_fault_and_the_run_goes_on(stack):
    stack.start_sim()
    stack.start_models(slow_s=0.5)
    stack.start_episodes(impatient=True)
    run = stack.begin(Mode.PRACTICE, episodes=2, seed=1)
    stack.until_acting()
    stack.kill("sim")
    stack.until_said("is repeated")
    before = stack.summaries[-1].header.stamp if stack.summaries else None
    stack.start_sim()
    stack.until(run.done, "the end of the run", 200)
    result = run.result().result
    assert (result.reason, result.episodes) == (Reason.OK, 2), result.message
    faulty = [read_summary(folder) for folder in stack.episodes(".faulty")]
    assert faulty and {summary.end_reason for summary in faulty} == {EndReason.FAULT}
    assert not {summary.episode_id for summary in faulty} & set(result.episode_ids)
    stamps = sorted((s.start_ns, s.stamp_ns) for s in map(read_summary, stack.episodes()))
    last_before = max(summary.stamp_ns for summary in faulty)
    assert before is None or stamps[-1][0] > last_before, "stamps rise over the restart"


def test_a_robot_whose_clock_was_set_back_is_recorded_again(stack):
    tomorrow_ns = time.time_ns() + 86_400 * 10**9
    (stack.folder / "tomorrow").write_text(str(tomorrow_ns))
    stack.start_sim(clock_file=str(stack.folder / "tomorrow"))
    stack.start_models()
    stack.start_episodes(impatient=True)
    run = stack.begin(Mode.PRACTICE, episodes=0)
    stack.until(lambda: stack.summaries, "an episode", 200)
    assert stamp_to_ns(stack.summaries[0].start) > tomorrow_ns
    stack.until_acting()
    stack.kill("sim")
    stack.start_sim(clock_file=str(stack.folder / "today"))
    today = lambda: [one for one in stack.summaries if stamp_to_ns(one.start) < tomorrow_ns]  # noqa: E731
    stack.until(lambda: len(today()) >= 2, "episodes of today", 200)
    assert stack.call("stop").success
    stack.until(run.done, "the end of the run")
    for folder in stack.episodes():
        assert check_episode(folder) == []


def test_a_policy_that_dies_ends_the_episode_as_a_fault_and_the_run_goes_on(stack):
    stack.start_sim()
    stack.start_models("policy", reward=False, slow_s=0.5)
    stack.start_models("reward", policy=False)
    stack.start_episodes(impatient=True)
    run = stack.begin(Mode.PRACTICE, episodes=1, seed=1)
    stack.until_acting()
    stack.kill("policy")
    stack.until_said("is repeated")
    stack.start_models("policy", reward=False)
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.reason == Reason.OK, run.result().result.message
    assert [read_summary(folder).end_reason for folder in stack.episodes()] == [EndReason.SUCCESS_DETECTED]


def test_a_reward_node_that_dies_ends_the_episode_as_a_fault_and_the_run_goes_on(stack):
    stack.start_sim()
    stack.start_models("policy", reward=False, slow_s=0.5)
    stack.start_models("reward", policy=False)
    stack.start_episodes(impatient=True)
    run = stack.begin(Mode.PRACTICE, episodes=1, seed=1)
    stack.until_acting()
    stack.kill("reward")  # The episode goes on for 40 s without it; nobody waits so long.
    stack.until_said("reward node")
    stack.start_models("reward", policy=False)
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.reason == Reason.OK, run.result().result.message
    assert "reward node" in read_summary(stack.episodes(".faulty")[0]).message


def test_missing_nodes_are_named_and_the_run_ends_at_the_deadline(stack):
    stack.start_sim()
    stack.start_episodes(ready_timeout_s=2.0)
    result = stack.run(Mode.PRACTICE)
    assert result.reason == Reason.TIMEOUT
    assert "policy/act" in result.message and "reward node" in result.message
    stack.until_phase(EpisodeStatus.PHASE_FAULT)


def test_who_ends_episodes_on_the_truth_waits_for_it(stack):
    stack.start_models(reward=False)
    stack.start(
        "sim",
        "-m",
        "efm_sim.main",
        *("--ros-args", "-p", "world:=pointmass", "-p", 'robots:=["robot_1"]'),
        *("-r", "/robot_1/ground_truth:=/robot_1/hidden"),
    )
    stack.start_episodes(ready_timeout_s=2.0)
    result = stack.run(Mode.EVALUATE, end_on_truth=True)
    assert result.reason == Reason.TIMEOUT
    assert "for topic /robot_1/ground_truth" in result.message


def test_a_killed_episode_node_leaves_no_half_episode_and_its_successor_goes_on(stack):
    stack.start_sim()
    stack.start_models(slow_s=0.3)
    stack.start_episodes()
    stack.begin(Mode.PRACTICE, episodes=0)
    stack.until(lambda: stack.summaries, "the first episode")
    stack.until_acting()
    stack.kill("episodes")
    whole = stack.episodes()
    assert [check_episode(folder) for folder in whole] == [[]] * len(whole)
    partial = list((stack.folder / "spool").glob(".*.partial"))
    assert len(partial) == 1
    stack.statuses.clear()
    # The policy still acts for the dead node; the new one begins all the same.
    stack.start_episodes(autorun=True, mode="practice")
    stack.until(lambda: stack.statuses and stack.statuses[-1].episodes_done >= 1, "an episode", 200)
    assert not list((stack.folder / "spool").glob(f"{partial[0].name}"))
    assert list((stack.folder / "spool" / ".broken").iterdir()), "the broken recording is kept aside"
    assert stack.call("stop").success
    stack.until_phase(EpisodeStatus.PHASE_IDLE)
    assert all(check_episode(folder) == [] for folder in stack.episodes())


def test_two_nodes_cannot_have_one_spool(stack):
    stack.start_episodes()
    stack.until(lambda: stack.statuses, "the first node")
    stack.start_episodes("second", namespace="/robot_2")
    assert stack.processes["second"].wait(PATIENCE_S) == 1
    stack.processes.pop("second")
    assert "expected it free, found it owned by process" in stack.log("second")
    assert stack.stop("episodes") == 0


def test_a_detector_that_fires_at_once_pauses_practice(stack):
    stack.start_sim()
    stack.start_models(instant=True)
    stack.start_episodes()
    run = stack.begin(Mode.PRACTICE, episodes=5)
    stack.until_said("fired right after the reset in 3 episodes in a row")
    stack.until_phase(EpisodeStatus.PHASE_PAUSED)
    assert stack.episodes() == []
    assert stack.call("stop").success
    stack.until(run.done, "the end of the run")
    assert run.result().result.reason == Reason.CANCELLED


def test_the_learner_pauses_practice_and_a_dead_learner_does_not(stack):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner")
    status = stack.node.create_publisher(LearnerStatus, "/learner/learner_status", LATCHED)
    status.publish(LearnerStatus(phase=LearnerStatus.PHASE_UPDATING, accepting=False, message="takes steps"))
    stack.until(lambda: status.get_subscription_count() == 1, "the episode node")
    stack.until(lambda: stack.statuses, "a status")
    run = stack.begin(Mode.PRACTICE, episodes=1)
    stack.until_said("the learner takes no episodes now: takes steps")
    stack.node.destroy_publisher(status)
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.episodes == 1


def test_practice_waits_for_its_learner_but_not_for_ever(stack):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(learner="/learner", learner_timeout_s=4.0)
    run = stack.begin(Mode.PRACTICE, episodes=1)
    stack.until_said("waits at most 4 s for the learner /learner")
    assert stack.statuses[-1].phase == EpisodeStatus.PHASE_PAUSED and stack.episodes() == []
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.episodes == 1 and len(stack.episodes()) == 1
    assert "practises all the same, with the policy that is there" in stack.log("episodes")


def test_people_can_do_everything_with_triggers(stack):
    stack.start_sim()
    stack.start_models(slow_s=1.0)  # An episode is long enough for calls that take their time.
    stack.start_episodes(mode="practice", max_steps=100)
    stack.until(lambda: stack.statuses, "the episode node")
    assert not stack.call("mark_success").success, "nothing runs"
    assert stack.call("start").success
    assert not stack.call("start").success, "a run is on"
    stack.until_acting()
    assert stack.call("pause", True).success
    assert stack.call("mark_failure").success
    stack.until(lambda: stack.summaries, "a summary")
    assert stack.summaries[-1].end_reason == EndReason.PERSON
    assert stack.summaries[-1].outcome == Outcome.FAILURE
    stack.until_phase(EpisodeStatus.PHASE_PAUSED)
    assert "paused by a person" in stack.statuses[-1].message
    assert stack.call("pause", False).success
    stack.until_acting(steps=1)  # The slow policy may refuse at first, while it still ends what was marked.
    assert stack.call("discard").success
    stack.until(lambda: stack.summaries[-1].outcome == Outcome.DISCARDED, "the discarded episode")
    assert stack.call("stop").success
    stack.until_phase(EpisodeStatus.PHASE_IDLE)
    assert not stack.call("stop").success
    assert len(stack.episodes()) == 1


def test_a_person_resets_where_the_embodiment_says_so(stack):
    stack.start_sim()
    stack.start_models()
    stack.start_episodes(reset="person")
    run = stack.begin(Mode.PRACTICE, episodes=1, instructions=["reach the goal"])
    stack.until_phase(EpisodeStatus.PHASE_WAITING)
    assert "reset_done" in stack.statuses[-1].message and "reach the goal" in stack.statuses[-1].message
    assert stack.call("reset_done").success
    stack.until(run.done, "the end of the run", 200)
    assert run.result().result.reason == Reason.OK, run.result().result.message


def test_a_second_goal_and_a_nonsense_goal_are_refused_with_a_reason(stack):
    stack.start_sim()
    stack.start_models(slow_s=0.3)
    stack.start_episodes()
    assert stack.run(9).reason == Reason.BAD_REQUEST
    stack.begin(Mode.PRACTICE, episodes=0)
    assert stack.run(Mode.COLLECT).reason == Reason.BUSY
    stack.handle.cancel_goal_async()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_node_ends_in_order_in_the_middle_of_an_episode(stack, number):
    stack.start_sim()
    stack.start_models(slow_s=0.3)
    stack.start_episodes()
    stack.begin(Mode.PRACTICE, episodes=0)
    stack.until_acting()
    assert stack.stop("episodes", number) == 0, stack.log("episodes")
    assert not list((stack.folder / "spool").glob(".*.partial")), "the cut episode is dropped"
