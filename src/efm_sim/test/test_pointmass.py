"""The point mass: the vectorised world and the single one are the same world."""

import time

import numpy as np
import pytest

from efm_sim.expert import STYLES, run_expert_episode
from efm_sim.pointmass import (
    MAX_STEPS,
    NOTEBOOK_STYLE,
    SUCCESS_RADIUS,
    PointMassBatch,
    PointMassWorld,
    run_expert_episodes,
)


@pytest.mark.parametrize("style", [NOTEBOOK_STYLE, STYLES["imperfect"], STYLES["sloppy"]])
def test_episodes_run_together_are_those_run_one_by_one(style):
    together = run_expert_episodes(style, range(12))
    world = PointMassWorld()
    for seed, episode in enumerate(together):
        alone = run_expert_episode(world, style, seed)
        for name in ("states", "actions", "success", "distance"):
            assert np.array_equal(getattr(alone, name), getattr(episode, name)), name
        assert alone.intends_success == episode.intends_success


def test_the_notebooks_demonstrators_need_about_70_steps_and_a_direct_push_about_10():
    episodes = run_expert_episodes(NOTEBOOK_STYLE, range(300))
    assert np.mean([episode.succeeded for episode in episodes]) > 0.97
    assert 60 < np.mean([len(episode.actions) for episode in episodes]) < 85

    batch = PointMassBatch(300)
    batch.reset(range(300))
    steps_needed = np.full(300, MAX_STEPS)
    for step in range(1, 40):
        offset = batch.goal - batch.position
        batch.step(offset / np.abs(offset).max(axis=1, keepdims=True))
        steps_needed[batch.successes()] = np.minimum(steps_needed[batch.successes()], step)
    assert 8 < steps_needed.mean() < 13


def test_success_is_the_distance_to_the_goal_and_nothing_else():
    batch = PointMassBatch(2)
    batch.reset([0, 1])
    batch.position = batch.goal + [[SUCCESS_RADIUS * 0.99, 0.0], [0.0, SUCCESS_RADIUS * 1.01]]
    batch.velocity[:] = 1.0
    assert batch.successes().tolist() == [True, False]


def test_some_robots_are_reset_while_the_others_go_on():
    batch = PointMassBatch(3)
    batch.reset([1, 2, 3])
    batch.step(np.ones((3, 2)))
    before = batch.states()
    after = batch.reset([9], robots=[1])
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert np.array_equal(after[1], PointMassBatch(1).reset([9])[0])


def test_walls_stop_the_mass():
    batch = PointMassBatch(1)
    batch.reset([0])
    for _ in range(60):
        batch.step(np.array([[1.0, 0.0]]))
    assert batch.position[0, 0] == 1.0
    assert batch.velocity[0, 0] == 0.0


def test_a_batch_refuses_actions_of_another_shape_or_without_a_value():
    batch = PointMassBatch(2)
    batch.reset([0, 1])
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        batch.step(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        batch.step(np.full((2, 2), np.nan))


def test_a_batch_makes_far_more_than_20000_steps_a_second():
    batch = PointMassBatch(64)
    batch.reset(range(64))
    actions = np.zeros((64, 2))
    begin = time.process_time()
    for _ in range(300):
        batch.step(actions)
    assert 300 * 64 / (time.process_time() - begin) > 20_000
