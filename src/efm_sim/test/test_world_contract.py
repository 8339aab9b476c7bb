"""What every world must do, whoever wrote it; EFM_WORLDS="rail" adds worlds of other packages, by name."""

import gc
import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from efm_sim.expert import STYLES, ExpertStyle, run_expert_episode
from efm_sim.world import Observation, World, make_world


@dataclass(frozen=True)
class Case:
    """One world and what its expert is good for.

    `seeds` are the fixed starts of the expert's test, `least_successes` how many of them must end well;
    0 seeds mean that the world has no expert.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5
    least_successes: int = 5

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


WORLDS = [
    Case("pointmass", seeds=20, least_successes=20),
    Case("table", seeds=8, least_successes=8),
    Case("table", {"blocks": 2, "family": "block_to_place", "image_size": (64, 80)}),
    Case("metaworld:reach-v3"),
    Case("metaworld:push-v3", {"state": "full", "images": False}, least_successes=4),
    Case("aloha:insertion", seeds=0),
    Case("gym:Pendulum-v1", seeds=0),
]


def case_of(name: str) -> Case:
    """A case for a world of which only the name is known."""
    world = make_world(name)
    world.reset(0)
    try:
        world.expert(ExpertStyle(), 0)
    except NotImplementedError:
        return Case(name, seeds=0)
    finally:
        world.close()
    return Case(name)


WORLDS += [case_of(name) for name in os.environ.get("EFM_WORLDS", "").split()]


def make(case: Case) -> World:
    family = case.name.partition(":")[0]
    if family == "aloha":
        pytest.importorskip("gym_aloha", reason="gym-aloha and Meta-World need different versions of mujoco")
    if family == "metaworld":
        pytest.importorskip("metaworld", reason="Meta-World is not installed")
    if family == "gym":
        pytest.importorskip("gymnasium", reason="Gymnasium is not installed")
    return make_world(case.name, **case.options)


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def world(case):
    made = make(case)
    yield made
    made.close()


@pytest.fixture
def acting_world(case, world):
    if not case.seeds:
        pytest.skip(f"{case.name} has no scripted expert")
    return world


def random_actions(world: World, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.uniform(world.spec.action_low, world.spec.action_high, (count, len(world.spec.action_low)))


def assert_fits(world: World, observation: Observation) -> None:
    assert dict(world.spec.cameras).keys() == observation.images.keys()
    for name, (height, width) in world.spec.cameras.items():
        assert observation.images[name].shape == (height, width, 3)
        assert observation.images[name].dtype == np.uint8
    assert observation.state.shape == (len(world.spec.state_names),)
    assert observation.state.dtype == np.float32
    assert np.isfinite(observation.state).all()


def test_it_has_the_methods_of_the_protocol(world):
    assert isinstance(world, World)


def test_its_spec_is_the_same_object_for_life(world):
    spec = world.spec
    world.reset(0)
    assert world.spec is spec


def test_observations_fit_the_spec_and_count_steps(world):
    assert_fits(world, world.reset(0))
    assert world.reset(0).step == 0
    for step, action in enumerate(random_actions(world, 3), start=1):
        observation = world.step(action)
        assert_fits(world, observation)
        assert observation.step == step


def test_an_observation_is_the_callers_to_keep(world):
    first = world.reset(0)
    images = {name: image.copy() for name, image in first.images.items()}
    state = first.state.copy()
    for action in random_actions(world, 3):
        world.step(action)
    assert np.array_equal(first.state, state)
    assert all(np.array_equal(first.images[name], image) for name, image in images.items())


def test_pictures_show_something(world):
    for image in world.reset(0).images.values():
        assert image.std() > 10.0


def test_two_runs_of_one_seed_are_equal_bit_for_bit_whatever_ran_before(case, world):
    other = make(case)
    world.reset(11)
    world.step(random_actions(world, 1)[0])
    for left, right in zip(_run(world, 5), _run(other, 5), strict=True):
        assert np.array_equal(left.state, right.state)
        assert all(np.array_equal(left.images[name], right.images[name]) for name in left.images)
    assert (world.instruction, world.truth().success) == (other.instruction, other.truth().success)
    assert np.array_equal(world.truth().distance, other.truth().distance, equal_nan=True)
    other.close()


def _run(world: World, seed: int) -> list[Observation]:
    return [world.reset(seed), *(world.step(action) for action in random_actions(world, 6))]


def test_other_seeds_begin_elsewhere(case, world):
    if case.name.startswith("aloha"):
        pytest.skip("the arms begin in one pose and only the objects, which the state leaves out, differ")
    starts = []
    for seed in range(3):
        first = world.reset(seed)
        starts.append(np.concatenate([first.state, *(image.ravel() for image in first.images.values())]))
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(starts, 2))


def test_actions_beyond_the_bounds_are_clipped(world):
    high = np.asarray(world.spec.action_high)
    world.reset(2)
    at_the_bound = world.step(high)
    world.reset(2)
    beyond = world.step(high + 100.0)
    assert np.array_equal(at_the_bound.state, beyond.state)


def test_bad_actions_are_refused_and_the_world_has_not_moved(world):
    size = len(world.spec.action_low)
    world.reset(3)
    for bad in (np.full(size, np.nan), np.full(size, np.inf), np.zeros(size + 1), np.zeros((1, size))):
        with pytest.raises(ValueError, match="action"):
            world.step(bad)
    expected = world.step(np.asarray(world.spec.action_high)).state
    world.reset(3)
    assert np.array_equal(world.step(np.asarray(world.spec.action_high)).state, expected)


def test_step_before_the_first_reset_is_refused(case):
    fresh = make(case)
    assert fresh.instruction == ""
    with pytest.raises(RuntimeError, match="reset"):
        fresh.step(np.zeros(len(fresh.spec.action_low)))
    fresh.close()


def test_an_instruction_is_sampled_by_the_seed_or_taken_as_given(world):
    world.reset(4)
    sampled = world.instruction
    assert sampled in world.spec.instructions
    world.reset(4)
    assert world.instruction == sampled
    world.reset(4, world.spec.instructions[-1])
    assert world.instruction == world.spec.instructions[-1]


def test_an_unknown_instruction_suggests_the_nearest(world):
    known = world.spec.instructions[0]
    with pytest.raises(ValueError, match=known):
        world.reset(0, known[:-1] + "#")


def test_an_episode_does_not_begin_in_success(world):
    for seed in range(5):
        world.reset(seed)
        truth = world.truth()
        assert isinstance(truth.success, bool)
        assert not truth.success
        assert np.isnan(truth.distance) or truth.distance > 0.0


def test_close_may_be_called_twice(case):
    fresh = make(case)
    fresh.reset(0)
    fresh.close()
    fresh.close()
    gc.collect()


def test_it_has_an_expert_or_says_that_it_has_none(case, world):
    world.reset(0)
    if case.seeds:
        assert not world.expert(ExpertStyle(), 0).finished
        return
    with pytest.raises(NotImplementedError, match="expert"):
        world.expert(ExpertStyle(), 0)


def test_the_perfect_expert_succeeds_from_fixed_starts_and_rests(case, acting_world):
    style = STYLES["perfect"]
    episodes = [run_expert_episode(acting_world, style, seed) for seed in range(case.seeds)]
    good = [episode for episode in episodes if episode.succeeded]
    assert len(good) >= case.least_successes
    for episode in good:
        rest = int(episode.success[::-1].argmin())  # steps in a row, at the end, that are inside success
        assert rest >= style.rest_steps[0]
        # After the last action comes an observation more.
        assert len(episode.success) == len(episode.actions) + 1 == len(episode.states)


def test_an_imperfect_expert_errs_within_bounds_and_by_its_seed(acting_world):
    style = STYLES["sloppy"]
    episodes = [run_expert_episode(acting_world, style, 1, max_steps=25) for _ in range(2)]
    perfect = run_expert_episode(acting_world, STYLES["perfect"], 1, max_steps=25)
    assert np.array_equal(episodes[0].actions, episodes[1].actions)
    assert np.array_equal(episodes[0].states, episodes[1].states)
    assert not np.array_equal(episodes[0].actions[:5], perfect.actions[:5])
    low, high = (np.float32(bound) for bound in (acting_world.spec.action_low, acting_world.spec.action_high))
    assert (episodes[0].actions >= low).all()
    assert (episodes[0].actions <= high).all()


def test_deliberate_failures_fail_and_come_to_an_end(acting_world):
    style = ExpertStyle(fail=1.0)
    episodes = [run_expert_episode(acting_world, style, seed) for seed in range(4)]
    assert not any(episode.intends_success for episode in episodes)
    assert sum(episode.succeeded for episode in episodes) <= 1
    assert all(len(episode.actions) < acting_world.spec.max_steps for episode in episodes)
