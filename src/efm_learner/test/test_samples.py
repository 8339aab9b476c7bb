"""What a table of samples says about successful, unsuccessful and partly imitated episodes."""

from dataclasses import replace

import dots
import numpy as np
import pytest
import torch

from efm_core.episode import history_stack
from efm_core.errors import EpisodeInvalid
from efm_learner.backbones import image_input
from efm_learner.samples import DeviceFrames, Frames, Labelling, make_table

SPEC = {"kind": "hashed_words", "buckets": 1024, "length": 16}


def test_a_demonstration_counts_down_to_its_rest_and_stays_at_zero():
    table = make_table([dots.episode(0)], dots.embodiment(), Labelling(rest_steps=dots.REST))
    steps = table.steps_to_go
    assert steps[0] == len(table) - 1 - dots.REST
    assert (np.diff(steps[: -dots.REST]) == -1).all() and (steps[-dots.REST - 1 :] == 0).all()
    assert not table.censored.any()


def test_an_unsuccessful_episode_gives_lower_bounds_and_nothing_to_imitate():
    table = make_table([dots.episode(0, success=False)], dots.embodiment(), Labelling(censored_margin=7))
    assert table.censored.all() and not table.imitate.any()
    assert table.steps_to_go[-1] == 7 and table.steps_to_go[0] == len(table) - 1 + 7
    assert (table.tokens == -1).all()


def test_only_steps_of_a_demonstrator_are_imitated():
    episode = dots.episode(1)
    imitate = episode.imitate.copy()
    imitate[2] = False
    table = make_table([replace(episode, imitate=imitate)], dots.embodiment(), Labelling())
    assert table.imitate.tolist() == imitate.tolist() and not table.imitate[-1]
    assert (table.tokens[2] == -1).all() and (table.tokens[3] >= 0).all()


def test_rest_is_left_out_of_imitation_on_request():
    kept = make_table([dots.episode(0)], dots.embodiment(), Labelling(dots.REST, imitate_rest=True))
    left = make_table([dots.episode(0)], dots.embodiment(), Labelling(dots.REST, imitate_rest=False))
    assert kept.imitate.sum() - left.imitate.sum() == dots.REST


def test_chunks_hold_the_next_actions_and_end_with_the_episode():
    table = make_table([dots.episode(0), dots.episode(1)], dots.embodiment(chunk=3), Labelling())
    single = make_table([dots.episode(0), dots.episode(1)], dots.embodiment(), Labelling()).tokens[:, 0]
    assert (table.tokens[0] == single[:3]).all()
    last = int(table.last[0])
    assert (table.tokens[last - 1, 0] == single[last - 1]).all() and (table.tokens[last - 1, 1:] == -1).all()


def test_history_is_that_of_the_observation_assembler():
    embodiment = dots.embodiment(frames=3)
    episodes = [dots.episode(0), dots.episode(3)]
    table = make_table(episodes, embodiment, Labelling())
    inputs = table.inputs(np.arange(len(table)), embodiment, [image_input("top")], SPEC)
    found = inputs[image_input("top")].numpy()
    wanted = np.concatenate([e.images["top"][history_stack(len(e), 3)] for e in episodes])
    assert (found == wanted).all()


def test_reversed_history_shows_the_oldest_frame_last():
    embodiment = dots.embodiment()
    table = make_table([dots.episode(0)], embodiment, Labelling())
    rows = np.array([3, 3])
    shown = table.inputs(rows, embodiment, [image_input("top")], SPEC, backwards=np.array([False, True]))
    forward, backward = shown[image_input("top")].numpy()
    assert (forward[::-1] == backward).all() and (forward != backward).any()


def test_frames_of_several_blocks_are_found_by_row():
    blocks = [np.full((2, 1, 1, 3), 1, np.uint8), np.full((3, 1, 1, 3), 2, np.uint8)]
    assert Frames(blocks).take(np.array([4, 0, 2]))[:, 0, 0, 0].tolist() == [2, 1, 2]
    assert Frames(blocks, np.array([4, 0])).take(np.array([0, 1]))[:, 0, 0, 0].tolist() == [2, 1]


def test_frames_on_a_device_are_those_of_the_table():
    frames = Frames([np.full((count, 2, 2, 3), count % 7, np.uint8) for count in (3, 5000, 2)])
    rows = np.array([5004, 0, 4999, 2, 3])
    copied = DeviceFrames(frames, torch.device("cpu"))
    assert len(copied) == len(frames)
    assert np.array_equal(copied.take(rows).numpy(), frames.take(rows))


def test_without_an_accelerator_frames_stay_where_they_are():
    table = make_table([dots.episode(0)], dots.embodiment(), Labelling())
    assert table.on(torch.device("cpu")) is table


def test_an_episode_of_the_wrong_shape_names_all_that_is_wrong():
    episode = replace(dots.episode(0), state=None, actions=np.zeros((3, 2), np.float32))
    with pytest.raises(EpisodeInvalid, match=r"episode_000: imitate: expected .* state: expected"):
        make_table([episode], dots.embodiment(), Labelling())
    with pytest.raises(EpisodeInvalid, match="at least one episode"):
        make_table([], dots.embodiment(), Labelling())
