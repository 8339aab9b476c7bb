"""The composition of batches: even, repeatable, divisible, and honest about negatives."""

from dataclasses import replace

import dots
import numpy as np
import pytest
import torch

from efm_core.errors import BadRequest
from efm_learner.batches import BatchMaker, Mixture, foreign_instructions, shifted, shifted_on_device
from efm_learner.network import build_network
from efm_learner.objectives import HORIZONS
from efm_learner.samples import Labelling, make_table

LABELLING = Labelling(rest_steps=dots.REST, censored_margin=9)


def maker(
    mixture=None, successful=6, unsuccessful=3, processes=1, frames=2, backbone="small", foresight=False
):
    embodiment = dots.embodiment(frames=frames)
    table = make_table(dots.episodes(successful, unsuccessful), embodiment, LABELLING)
    network = build_network(embodiment, {"name": backbone})
    return BatchMaker(table, network, mixture or Mixture(batch_size=32), LABELLING, 5, processes, foresight)


def test_a_batch_is_split_evenly_over_the_objectives():
    plan = maker().plan(0)
    assert len(plan.clone) == len(plan.judge) == 16 and len(plan.tell) == 0
    plan = maker(Mixture(batch_size=32, instruction=True)).plan(0)
    assert len(plan.clone) == len(plan.judge) == len(plan.tell) == 10


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = maker(), maker()
    other.plan(3)
    first, second = one.tensors(one.plan(7)), other.tensors(other.plan(7))
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
    assert torch.equal(first[1].bins, second[1].bins)
    assert not torch.equal(first[1].tokens, one.tensors(one.plan(8))[1].tokens)


def test_the_parts_of_two_processes_make_up_the_batch():
    whole = maker(Mixture(batch_size=32, mismatched=0.2), processes=2)
    plan = whole.plan(2)
    parts = [plan.part(index, 2) for index in range(2)]
    for name in ("clone", "judge", "bound", "instruction"):
        together = np.concatenate([getattr(part, name) for part in parts])
        assert sorted(together) == sorted(getattr(plan, name))
    assert len({len(part.shifts) for part in parts}) == 1


def test_unsuccessful_episodes_are_bounds_in_the_share_that_was_asked_for():
    made = maker(Mixture(batch_size=64, censored=0.25))
    plan = made.plan(0)
    assert plan.censored.sum() == 8
    assert (plan.bound[plan.censored] >= 9).all()
    assert not made.table.success[made.table.episode[plan.judge[plan.censored]]].any()


def test_later_states_are_those_of_the_same_demonstration_and_stop_at_its_end():
    made = maker(foresight=True)
    plan = made.plan(0)
    later, state = made.tensors(plan)[1].later.numpy(), made.table.state
    assert later.shape == (16, len(HORIZONS), 1)
    for row, told in zip(plan.clone, later[..., 0], strict=True):
        last = made.table.last[made.table.episode[row]]
        expected = np.array([state[min(row + steps, last), 0] for steps in HORIZONS])
        assert told == pytest.approx((expected - state.mean()) / state.std(), abs=1e-5)
    assert maker().tensors(plan)[1].later.shape == (16, 0, 0)


def test_an_entry_of_the_state_that_never_changes_is_told_as_zero():
    embodiment = dots.embodiment()
    still = [replace(episode, state=np.full_like(episode.state, 1000.1)) for episode in dots.episodes(4, 0)]
    table = make_table(still, embodiment, LABELLING)
    network = build_network(embodiment, {"name": "small"})
    made = BatchMaker(table, network, Mixture(batch_size=8), LABELLING, 5, foresight=True)
    assert made.tensors(made.plan(0))[1].later.abs().max() < 1e-3


def test_a_single_unsuccessful_episode_is_not_shown_over_and_over():
    made = maker(Mixture(batch_size=64, censored=0.5), successful=30, unsuccessful=1)
    share = len(made.censored_rows) / (len(made.censored_rows) + len(made.goal_rows))
    assert made.plan(0).censored.sum() == round(32 * 3 * share)


def aiming(successful=4, unsuccessful=2, share=0.5, **goals):
    """Dots whose state names a goal as well; where it is, no hindsight can know."""
    entries = [{"name": name, "unit": "m", "low": 0.0, "high": 16.0} for name in ("x", "goal_x")]
    state = {"topic": "joint_states", "interface": "joint_states", "entries": entries}
    embodiment = dots.embodiment(state=state)
    episodes = [
        replace(e, state=np.hstack([e.state, np.full_like(e.state, 99)]))
        for e in dots.episodes(successful, unsuccessful)
    ]
    labelling = replace(LABELLING, hindsight_goals=goals or {"goal_x": "x"})
    table = make_table(episodes, embodiment, labelling)
    network = build_network(embodiment, {"name": "state"})
    mixture = Mixture(batch_size=64, censored=0.0, hindsight=share)
    return BatchMaker(table, network, mixture, labelling, 5)


def test_in_hindsight_the_goal_is_what_the_episode_reached_that_many_steps_later():
    made = aiming()
    plan = made.plan(1)
    inputs, targets = made.tensors(plan)
    rows, table = np.concatenate([plan.clone, plan.judge]), made.table
    later = plan.goal >= 0
    assert later[:32].sum() == later[32:].sum() == 16 and not targets.censored.any()
    assert (table.episode[plan.goal[later]] == table.episode[rows[later]]).all()
    state = inputs["observation.state"].numpy()
    np.testing.assert_array_equal(state[later, 1], table.state[plan.goal[later], 0])
    np.testing.assert_array_equal(state[~later, 1], np.full((~later).sum(), 99))
    np.testing.assert_array_equal(plan.bound[later[32:]], (plan.goal - rows)[32:][later[32:]])
    assert (table.state[:, 1] == 99).all(), "the table keeps what was recorded"


def test_failed_episodes_teach_in_hindsight_how_far_it_was_to_where_they_got():
    made = aiming(successful=1, unsuccessful=8)
    plan = made.plan(0)
    judged = plan.judge[plan.goal[32:] >= 0]
    assert not made.table.success[made.table.episode[judged]].all()
    assert made.table.success[made.table.episode[plan.clone]].all()


def test_hindsight_without_a_goal_in_the_state_is_refused():
    with pytest.raises(BadRequest, match="needs labelling.hindsight_goals and a state"):
        maker(Mixture(batch_size=32, hindsight=0.2))
    with pytest.raises(BadRequest, match="found 'gaol_x', did you mean 'goal_x'"):
        aiming(gaol_x="x")


def test_mismatched_rows_get_an_instruction_of_another_meaning():
    made = maker(Mixture(batch_size=64, censored=0.0, mismatched=0.5))
    plan = made.plan(0)
    own = made.table.episode_instruction[made.table.episode[plan.judge]]
    assert (plan.instruction != own).sum() == plan.censored.sum() == 16
    assert (plan.bound[plan.censored] == LABELLING.censored_margin).all()


def test_rewound_rows_see_the_past_and_are_bounded_by_it():
    made = maker(Mixture(batch_size=64, censored=0.0, rewound=0.5))
    plan = made.plan(0)
    rewound = plan.judge[plan.backwards]
    assert len(rewound) == 16 and (plan.bound[plan.backwards] == made.table.steps_to_go[rewound] + 1).all()
    assert (made.table.steps_to_go[rewound] > 0).all()


def test_the_instruction_to_be_told_is_not_shown():
    made = maker(Mixture(batch_size=30, instruction=True))
    inputs, targets = made.tensors(made.plan(0))
    assert len(inputs["instruction"]) == 40
    assert (inputs["instruction"][20:] == 0).all() and (targets.words != 0).any(dim=1).all()


def test_what_the_data_cannot_give_is_refused_with_what_was_found():
    with pytest.raises(BadRequest, match=r"2 frames or more; found 9 episodes, 6 of them successful"):
        maker(Mixture(rewound=0.1), frames=1)
    with pytest.raises(BadRequest, match="needs successful demonstrations"):
        maker(successful=0)
    with pytest.raises(BadRequest, match="backbone with instructions"):
        maker(Mixture(mismatched=0.1), backbone="state")
    with pytest.raises(BadRequest, match="sum to less than 1"):
        Mixture(censored=0.5, mismatched=0.5)


def test_shifted_images_move_and_repeat_their_edges():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4, 1).expand(3, 1, 4, 4, 3)
    moved = shifted(image, np.array([[0, 0], [1, 0], [0, -1]]))
    assert torch.equal(moved[0], image[0])
    assert moved[1, 0, :, 0, 0].tolist() == [0, 0, 4, 8]
    assert moved[2, 0, 0, :, 0].tolist() == [1, 2, 3, 3]


def test_an_accelerator_shifts_images_as_the_cpu_does():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (16, 2, 12, 20, 3), np.uint8))
    shifts = rng.integers(-4, 5, (16, 2))
    assert torch.equal(shifted_on_device(images, torch.from_numpy(shifts)), shifted(images, shifts))


def test_instructions_mean_the_same_whatever_the_verb_and_the_order():
    sentences = [
        "push the red moon to the blue cube",
        "put the blue cube next to the red moon",
        "push the red star to the blue cube",
    ]
    others = foreign_instructions(sentences)
    assert [item.tolist() for item in others] == [[2], [2], [0, 1]]
