"""Worlds are made by name, those of other packages too."""

from importlib.metadata import EntryPoint

import pytest

from efm_sim import world as world_module
from efm_sim.pointmass import PointMassWorld
from efm_sim.world import ENTRY_POINT_GROUP, WorldSpec, make_world, world_names


def test_unknown_names_and_options_list_the_choices():
    with pytest.raises(ValueError, match="did you mean 'table'.*pointmass"):
        make_world("tabel")
    with pytest.raises(ValueError, match="no option 'block'; choices: blocks, family, image_size"):
        make_world("table", block=4)
    with pytest.raises(ValueError, match="pointmass has no tasks"):
        make_world("pointmass:fast")


def test_an_id_that_gymnasium_does_not_know_is_told_in_its_words():
    pytest.importorskip("gymnasium", reason="Gymnasium is not installed")
    with pytest.raises(ValueError, match="gym:Pendulun-v1: .*Did you mean: `Pendulum`"):
        make_world("gym:Pendulun-v1")


def test_a_world_of_another_package_is_found_by_its_entry_point(monkeypatch):
    mine = EntryPoint("mine", "efm_sim.pointmass:make", ENTRY_POINT_GROUP)
    monkeypatch.setattr(world_module.metadata, "entry_points", lambda group: [mine])
    assert isinstance(make_world("mine"), PointMassWorld)
    assert set(world_names()) == {"pointmass", "table", "metaworld", "aloha", "gym", "mine"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"action_low": (0.0,)}, "differ in length"),
        ({"action_low": (1.0, 2.0)}, "finite low < high"),
        ({"action_high": (float("inf"), 1.0)}, "finite low < high"),
        ({"instructions": ()}, "at least one instruction"),
        ({"control_rate_hz": 0.0}, "must be positive"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, says):
    values = {
        "name": "x",
        "cameras": {},
        "state_names": ("a",),
        "action_names": ("a", "b"),
        "action_low": (0.0, 0.0),
        "action_high": (1.0, 1.0),
        "control_rate_hz": 10.0,
        "instructions": ("go",),
        "max_steps": 10,
    }
    WorldSpec(**values)
    with pytest.raises(ValueError, match=says):
        WorldSpec(**{**values, **change})
