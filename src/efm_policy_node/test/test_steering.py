"""What a gamepad means for a robot, without ROS."""

import numpy as np
import pytest
from policy_fakes import embodiment_of

from efm_core.errors import BadRequest
from efm_policy_node.keyboard import BUTTONS, Keys, run, split_keys
from efm_policy_node.steering import Pad, Steering, Switches, read_control

PERIOD_S = 0.05


def steering(controls=(), hold_still="measured", **changes):
    action = embodiment_of(action={"hold_still": hold_still}).action
    return Steering(action, controls, **{"speed": 1.0, "deadzone": 0.1, "period_s": PERIOD_S} | changes)


def test_speeds_follow_the_deflection_and_stop_with_it():
    stick = steering(("axis 0", "axis 1 reversed"), hold_still="zero", speed=0.5)
    assert stick.begin(None)
    assert stick.step(Pad((1.0, 0.5))).tolist() == [0.5, -0.25]
    assert stick.step(Pad((0.05, 0.0))).tolist() == [0.0, 0.0]  # within the dead zone


def test_places_move_away_from_where_the_robot_is_and_stay_when_the_stick_is_let_go():
    stick = steering()
    assert stick.begin(np.array([0.5, -0.5]))
    for _ in range(3):
        wanted = stick.step(Pad((1.0, -1.0)))
    assert wanted == pytest.approx([0.5 + 3 * 2.0 * PERIOD_S, -0.5 - 3 * 1.0 * PERIOD_S])
    assert stick.step(Pad((0.0, 0.0))) == pytest.approx(wanted)
    for _ in range(100):
        wanted = stick.step(Pad((1.0, 1.0)))
    assert wanted == pytest.approx([1.0, 1.0])  # its bounds


def test_places_cannot_be_steered_from_nowhere():
    assert not steering().begin(None)


def test_buttons_and_toggles():
    stick = steering(("buttons 4 5", "toggle 6"))
    stick.begin(np.array([0.0, -1.0]))
    assert stick.step(Pad(buttons=(0, 0, 0, 0, 1, 0, 1)))[1] == -1.0  # held when steering began: no press
    assert stick.step(Pad(buttons=(0, 0, 0, 0, 0, 1, 1)))[0] == pytest.approx(0.0)  # down, then up again
    assert stick.step(Pad())[1] == -1.0
    assert stick.step(Pad(buttons=(0, 0, 0, 0, 0, 0, 1)))[1] == 1.0
    assert stick.step(Pad(buttons=(0, 0, 0, 0, 0, 0, 1)))[1] == 1.0  # once for a press
    stick.step(Pad())
    assert stick.step(Pad(buttons=(0, 0, 0, 0, 0, 0, 1)))[1] == -1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes 1", "did you mean 'axis'"),
        ("axis", "expected 1 number"),
        ("buttons 4", "expected 2 number"),
        ("axis 1 revresed", "did you mean 'reversed'"),
        ("", "expected one of"),
    ],
)
def test_words_that_mean_nothing_are_refused(text, words):
    with pytest.raises(BadRequest, match=words):
        read_control(text)


def test_every_dimension_needs_its_control():
    with pytest.raises(BadRequest, match=r"2 dimensions \(one, two\), found 1"):
        steering(("axis 0",))


def test_a_switch_is_pressed_once_however_long_it_is_held():
    switches = Switches({"takeover": 7, "estop": 6, "start": -1})
    held = Pad(buttons=[0] * 6 + [1, 1])
    assert switches.pressed(held) == ["takeover", "estop"]
    assert switches.pressed(held) == []
    assert switches.pressed(Pad()) == [] and switches.pressed(held) == ["takeover", "estop"]


def test_keys_become_sticks_and_buttons_for_a_moment():
    keys = Keys()
    assert keys.press("\x1b[C", 10.0) == "axis 0" and keys.press("t", 10.0) and keys.press("?", 10.0) == ""
    assert keys.pad(10.05).axes[0] == 1.0 and keys.pad(10.05).buttons[7] == 1
    later = keys.pad(11.0)
    assert not any(later.axes) and not any(later.buttons)


def test_what_a_terminal_sends_is_split_into_keys():
    assert split_keys("\x1b[Ca \x1b[A") == ["\x1b[C", "a", " ", "\x1b[A"]


def test_the_keyboard_shows_every_key_and_ends_with_ctrl_c():
    typed, shown, pads = iter(["t", "?", "", "\x03"]), [], []
    run(lambda timeout_s: next(typed), pads.append, shown.append)
    assert shown == ["take over, and give back", "no meaning"]
    assert pads and len(pads[0].buttons) == BUTTONS
