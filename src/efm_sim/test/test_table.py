"""The table: its sentences, its bodies, its physics and what the pusher can do with them."""

import mujoco
import numpy as np
import pytest

from efm_sim.expert import STYLES, ExpertStyle, run_expert_episode
from efm_sim.table import MIN_START_DISTANCE, SUCCESS_DISTANCE, TableWorld
from efm_sim.table_expert import steer
from efm_sim.table_language import PLACES, PREPOSITIONS, VERBS, Task
from efm_sim.table_scene import BANANA, BLOCK_RADIUS, BLOCKS, BOARD_HALF, EFFECTOR_HALF, outline


@pytest.fixture(scope="module")
def table():
    world = TableWorld()
    yield world
    world.close()


@pytest.fixture(scope="module")
def banana_table():
    world = TableWorld(blocks=4, family=("block_to_block", "banana_to_place"))
    yield world
    world.close()


def put(world: TableWorld, name: str, x: float, y: float) -> None:
    start = 2 + 3 * world.bodies.index(name)
    world._data.qpos[start : start + 2] = x, y
    mujoco.mj_forward(world._model, world._data)


def test_every_verb_preposition_and_ordered_pair_of_blocks_has_a_sentence(table):
    assert len(table.spec.instructions) == len(VERBS) * len(PREPOSITIONS) * 8 * 7
    assert "push the red moon close to the blue cube" in table.spec.instructions


@pytest.mark.parametrize("count", [2, 4])
def test_the_smaller_sets_share_no_colour_and_no_shape(count):
    colours, shapes = zip(*(name.split() for name in BLOCKS[:count]), strict=True)
    assert len(set(colours)) == len(set(shapes)) == count


def test_bodies_start_apart_and_away_from_their_goal():
    world = TableWorld(family=("block_to_block", "block_to_place"), image_size=16)
    for seed in range(40):
        world.reset(seed)
        assert world.truth().distance >= MIN_START_DISTANCE
        centres = np.array([world.position(name) for name in world.bodies])
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2)[np.triu_indices(len(centres), 1)]
        assert gaps.min() >= MIN_START_DISTANCE
    world.close()


def test_success_is_centres_nearer_than_five_centimetres(table):
    table.reset(0, "put the red moon to the blue cube")
    x, y = table.position("blue cube")
    for distance in (SUCCESS_DISTANCE * 1.01, SUCCESS_DISTANCE * 0.99):
        put(table, "red moon", x + distance, y)
        assert table.truth().distance == pytest.approx(distance)
        assert table.truth().success == (distance < SUCCESS_DISTANCE)


def test_any_two_touching_blocks_are_near_enough_for_success():
    for name in BLOCKS:
        assert np.linalg.norm(outline(name).drawn, axis=1).max() <= BLOCK_RADIUS + 1e-9
    assert 2.0 * BLOCK_RADIUS < SUCCESS_DISTANCE


def test_an_action_moves_the_effector_by_itself_and_zero_holds_it():
    table = TableWorld(blocks=2, image_size=16)
    table.reset(3)
    table._data.qpos[:2] = 0.0
    put(table, "red moon", 0.15, 0.15)  # out of the way
    put(table, "blue cube", 0.15, -0.15)
    for action in ([-0.03, 0.0], [0.0, 0.02], [0.01, -0.03]):
        before = table.effector()
        table.step(np.array(action))
        table.step(np.zeros(2))
        assert table.effector() - before == pytest.approx(action, abs=1e-3)
    still = table.effector()
    table.step(np.zeros(2))
    assert table.effector() == pytest.approx(still, abs=1e-4)


def test_the_effector_stays_within_reach_and_blocks_stay_within_the_rim(table):
    table.reset(5)
    rng = np.random.default_rng(0)
    for _ in range(30):
        heading = rng.choice([-0.03, 0.03], 2)
        for _ in range(12):
            table.step(heading)
    assert np.abs(table.effector()).max() < EFFECTOR_HALF + 0.005
    assert max(np.abs(table.position(name)).max() for name in table.bodies) < BOARD_HALF


def test_a_block_in_a_corner_can_be_brought_back():
    world = TableWorld(blocks=1, family="block_to_place", image_size=16)
    for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        world.reset(0, "push the red moon to the center")
        edge = BOARD_HALF - BLOCK_RADIUS
        put(world, "red moon", corner[0] * edge, corner[1] * edge)
        world._data.qpos[:2] = 0.0
        expert = world.expert(ExpertStyle(), 0)
        for _ in range(world.spec.max_steps):
            if expert.finished:
                break
            world.step(expert.act())
        assert world.truth().success, corner
    world.close()


def test_a_step_that_diverges_is_taken_back_and_never_counts_as_success(table):
    table.reset(3)
    places = {name: table.position(name) for name in table.bodies}
    table._data.qvel[0] = np.nan
    table.step(np.array([0.01, 0.0]))
    assert {name: table.position(name).tolist() for name in table.bodies} == {
        name: place.tolist() for name, place in places.items()
    }
    assert not table.truth().success
    effector = table.effector()
    table.step(np.array([-0.01, 0.0]))
    assert table.effector()[0] == pytest.approx(effector[0] - 0.01, abs=2e-3)


def test_the_banana_is_neither_shown_nor_mentioned_unless_named(table, banana_table):
    assert BANANA not in table.bodies
    assert not any(BANANA in sentence for sentence in table.spec.instructions)
    sentences = [sentence for sentence in banana_table.spec.instructions if BANANA in sentence]
    assert "push the banana to the center" in sentences
    banana_table.reset(0, sentences[0])
    assert banana_table.task.body == BANANA


def test_the_banana_starts_inside_the_rim_and_clear_of_the_blocks(banana_table):
    reach = np.linalg.norm(outline(BANANA).drawn, axis=1).max()
    for seed in range(40):
        banana_table.reset(seed)
        centre = banana_table.position(BANANA)
        assert np.abs(centre).max() + reach < BOARD_HALF
        distances = [np.linalg.norm(banana_table.position(name) - centre) for name in banana_table.blocks]
        assert min(distances) > reach + BLOCK_RADIUS


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_where_its_name_says(place):
    x, y = PLACES[place]
    assert (x > 0) == ("top" in place)
    assert (x < 0) == ("bottom" in place)
    assert (y > 0) == ("left" in place)
    assert (y < 0) == ("right" in place)


def test_up_in_the_picture_is_plus_x_and_left_is_plus_y(table):
    table.reset(0)
    rows_and_columns = []
    for x, y in ((0.15, 0.15), (-0.15, -0.15)):
        table._data.qpos[:2] = x, y
        for name in table.bodies:
            put(table, name, 0.0, 0.0)
        image = table._observation().images["top"].astype(int)
        magenta = (image[..., 0] > 120) & (image[..., 2] > 120) & (image[..., 1] < 110)
        rows_and_columns.append(np.argwhere(magenta).mean(axis=0))
    (row, column), (other_row, other_column) = rows_and_columns
    assert row < 48 < other_row
    assert column < 48 < other_column


def test_each_colour_covers_enough_of_the_picture_to_be_seen(table):
    image = table.reset(1).images["top"].astype(int)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    seen = {
        "red": (red > 140) & (green < 70) & (blue < 70),
        "blue": (blue > 140) & (red < 70),
        "green": (green > 110) & (red < 70) & (blue < 90),
        "yellow": (red > 140) & (green > 120) & (blue < 70),
    }
    assert {colour: int(mask.sum()) for colour, mask in seen.items() if mask.sum() < 50} == {}


def test_the_imperfect_expert_recovers_from_its_slips():
    world = TableWorld(blocks=4, image_size=16)
    style = ExpertStyle.named("imperfect", slip=0.1, fail=0.0)
    episodes = [run_expert_episode(world, style, seed) for seed in range(8)]
    assert sum(episode.succeeded for episode in episodes) >= 6
    world.close()


def test_a_failure_of_the_wrong_body_leaves_the_asked_one_alone():
    world = TableWorld(blocks=4, image_size=16)
    done = set()
    for seed in range(12):
        world.reset(seed)
        start = world.truth().distance
        expert = world.expert(ExpertStyle(fail=1.0), seed)
        wrong = expert._skill._task
        while not expert.finished and expert._step < world.spec.max_steps:
            world.step(expert.act())
        assert not world.truth().success
        kind = "short" if wrong == world.task else "body" if wrong.goal == world.task.goal else "goal"
        done.add(kind)
        if kind == "short":
            assert world.truth().distance < start
    assert done == {"short", "body", "goal"}
    world.close()


def test_what_is_in_the_way_is_passed_on_its_nearer_side():
    obstacles, clearance = np.array([[0.1, 0.01]]), np.array([0.05])
    heading = steer(np.zeros(2), np.array([0.3, 0.0]), obstacles, clearance)
    assert heading[0] > 0.0
    assert heading[1] < 0.0  # the obstacle lies to the left, so pass it on the right
    assert np.linalg.norm(heading) == pytest.approx(1.0)
    # What holds the goal is not avoided, and what lies behind is nobody's business.
    assert steer(np.zeros(2), np.array([0.12, 0.0]), obstacles, clearance) == pytest.approx([1.0, 0.0])
    assert steer(np.zeros(2), np.array([-0.3, 0.0]), obstacles, clearance) == pytest.approx([-1.0, 0.0])


def test_unknown_blocks_and_families_list_the_choices():
    with pytest.raises(ValueError, match="red moon"):
        TableWorld(blocks=["red mon", "blue cube"])
    with pytest.raises(ValueError, match="block_to_place"):
        TableWorld(family="block_to_plate")
    with pytest.raises(ValueError, match="at least 2"):
        TableWorld(blocks=1)
    with pytest.raises(ValueError, match="twice"):
        TableWorld(blocks=["red moon", "red moon"])


def test_a_task_is_about_the_bodies_that_its_sentence_names(table):
    table.reset(0, "slide the green star next to the yellow pentagon")
    assert table.task == Task("green star", "yellow pentagon")


def test_most_attempts_of_the_default_style_succeed(table):
    # Without pictures this is 50 ms an episode.
    episodes = [run_expert_episode(table, STYLES["imperfect"], seed, max_steps=200) for seed in range(10)]
    assert sum(episode.succeeded for episode in episodes if episode.intends_success) >= 7
