"""How the experts of Meta-World fail on purpose."""

import numpy as np
import pytest

from efm_sim.expert import ExpertStyle, run_expert_episode
from efm_sim.world import make_world

HAND, PUCK, GOAL = slice(0, 2), slice(4, 6), slice(36, 38)


@pytest.fixture(scope="module")
def failures():
    pytest.importorskip("metaworld", reason="Meta-World is not installed")
    world = make_world("metaworld:push-v3", images=False, state="full")
    yield [run_expert_episode(world, ExpertStyle(fail=1.0), seed) for seed in range(40)]
    world.close()


def ends(episode, one, other):
    return float(np.linalg.norm(episode.states[-1][one] - episode.states[-1][other]))


def test_some_failures_end_with_the_hand_at_the_goal_and_the_object_elsewhere(failures):
    lost = [e for e in failures if ends(e, HAND, GOAL) < 0.05 and ends(e, PUCK, GOAL) > 0.1]
    assert 5 <= len(lost) <= 25


def test_hardly_a_failure_succeeds_after_all(failures):
    assert not any(e.intends_success for e in failures)
    assert sum(e.success.any() for e in failures) <= 4
