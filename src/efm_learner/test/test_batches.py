"""The composition of batches: even, repeatable, divisible, and honest about negatives."""

import dots
import numpy as np
import pytest
import torch

from efm_core.errors import BadRequest
from efm_learner.batches import BatchMaker, Mixture, foreign_instructions, shifted
from efm_learner.network import build_network
from efm_learner.samples import Labelling, make_table

LABELLING = Labelling(rest_steps=dots.REST, censored_margin=9)


def maker(mixture=None, successful=6, unsuccessful=3, processes=1, frames=2, backbone="small"):
    embodiment = dots.embodiment(frames=frames)
    table = make_table(dots.episodes(successful, unsuccessful), embodiment, LABELLING)
    network = build_network(embodiment, {"name": backbone})
    return BatchMaker(table, network, mixture or Mixture(batch_size=32), LABELLING, 5, processes)


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


def test_a_single_unsuccessful_episode_is_not_shown_over_and_over():
    made = maker(Mixture(batch_size=64, censored=0.5), successful=30, unsuccessful=1)
    share = len(made.censored_rows) / (len(made.censored_rows) + len(made.goal_rows))
    assert made.plan(0).censored.sum() == round(32 * 3 * share)


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


def test_instructions_mean_the_same_whatever_the_verb_and_the_order():
    sentences = [
        "push the red moon to the blue cube",
        "put the blue cube next to the red moon",
        "push the red star to the blue cube",
    ]
    others = foreign_instructions(sentences)
    assert [item.tolist() for item in others] == [[2], [2], [0, 1]]
