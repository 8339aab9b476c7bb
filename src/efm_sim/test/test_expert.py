"""Styles of experts and the schedule of their faults."""

import numpy as np
import pytest

from efm_sim.expert import ACT, PAUSE, SLIP, STYLES, ExpertStyle, FaultSchedule, StyledExpert
from efm_sim.pointmass import SPEC
from efm_sim.world import Observation, Truth


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slip": 1.5}, "slip must be a probability"),
        ({"fail": -0.1}, "fail must be a probability"),
        ({"noise": -1.0}, "noise must be a fraction"),
        ({"noise": float("nan")}, "noise must be a fraction"),
        ({"wander": -1}, "wander must be a whole number"),
        ({"pause_length": 0}, "pause_length must be 1 step or more"),
        ({"rest_steps": (8, 5)}, "rest_steps must be"),
    ],
)
def test_a_style_refuses_values_that_mean_nothing(change, says):
    with pytest.raises(ValueError, match=says):
        ExpertStyle(**change)


def test_presets_are_found_by_name_and_may_be_changed():
    assert ExpertStyle.named("imperfect", fail=0.5).fail == 0.5
    with pytest.raises(ValueError, match="did you mean 'perfect'.*sloppy"):
        ExpertStyle.named("prefect")
    with pytest.raises(ValueError, match="unknown ExpertStyle field 'slips'; choices: wander"):
        ExpertStyle.named("perfect", slips=0.5)


def test_a_perfect_style_draws_no_faults():
    faults = FaultSchedule.draw(STYLES["perfect"], SPEC, np.random.default_rng(0))
    assert (faults.mode == ACT).all()
    assert (faults.noise == 0.0).all()
    assert not faults.fails


def test_faults_come_as_often_and_last_as_long_as_the_style_says():
    style = ExpertStyle(pause=0.01, pause_length=4, slip=0.01, slip_length=7, noise=0.1, fail=0.5)
    drawn = [FaultSchedule.draw(style, SPEC, np.random.default_rng(seed)) for seed in range(200)]
    modes = np.stack([faults.mode for faults in drawn])
    assert np.mean(modes == PAUSE) == pytest.approx(0.04, abs=0.01)
    assert np.mean(modes == SLIP) == pytest.approx(0.07, abs=0.015)
    noise = np.stack([faults.noise for faults in drawn])
    assert noise.std() == pytest.approx(0.1 * 2.0, rel=0.05)  # of the range, which is 2
    assert np.mean([faults.fails for faults in drawn]) == pytest.approx(0.5, abs=0.12)
    assert {faults.rest_steps for faults in drawn} == {5, 6, 7, 8}


class Line:
    """A world on a line: the state is the action's sum, success lies beyond 1."""

    spec = SPEC
    instruction = "reach the goal"

    def __init__(self) -> None:
        self.place = 0.0

    def step(self, action: np.ndarray) -> Observation:
        self.place += float(action[0])
        return Observation({}, np.zeros(6, np.float32), 1)

    def truth(self) -> Truth:
        return Truth(self.place > 1.0, max(0.0, 1.0 - self.place))


class Walk:
    """Walks by 0.6 a step; what it does when it holds is up to the test."""

    given_up = False

    def __init__(self, hold: float) -> None:
        self._hold = hold

    def act(self) -> np.ndarray:
        return np.array([0.6, 0.0])

    def hold(self) -> np.ndarray:
        return np.array([self._hold, 0.0])

    def slip(self) -> np.ndarray:
        return np.array([-1.0, 0.0])


def run_line(hold: float, rest_steps: int) -> tuple[Line, StyledExpert, list[bool]]:
    line = Line()
    faults = FaultSchedule(np.zeros(50, np.int8), np.zeros((50, 2)), fails=False, rest_steps=rest_steps)
    expert = StyledExpert(line, Walk(hold), faults)
    truths = []
    while not expert.finished and len(truths) < 30:
        line.step(expert.act())
        truths.append(line.truth().success)
    return line, expert, truths


def test_an_expert_rests_for_its_rest_steps_past_the_first_success():
    _, _, truths = run_line(hold=0.0, rest_steps=5)
    assert truths == [False, *[True] * 6]


def test_an_expert_whose_hold_undoes_success_comes_back_and_stays():
    _, expert, truths = run_line(hold=-0.5, rest_steps=5)
    assert expert.finished
    assert truths[-6:] == [True] * 6
    assert truths.index(False, 2) > truths.index(True)  # it did lose success in between
