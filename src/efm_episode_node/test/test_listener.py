"""What the listener makes of commands that come from outside EFM."""

import numpy as np
import pytest

from efm_episode_node.listener import Periods

PERIOD_NS = 100_000_000


@pytest.mark.parametrize("rate_hz", [5, 10, 20, 50, 125, 1000])
def test_commands_of_any_rate_are_counted_once_a_control_period(rate_hz):
    """At 50 Hz an episode of 200 steps of 0.1 s once ended after 4 s, as a failure."""
    periods, rng = Periods(PERIOD_NS), np.random.default_rng(0)
    times = (np.arange(20 * rate_hz) + rng.uniform(-0.2, 0.2, 20 * rate_hz)) / rate_hz + 5.0
    counted = sum(periods.begins_with(round(time * 1e9)) for time in times)
    assert counted == pytest.approx(20 * min(rate_hz, 10), abs=2)


def test_counting_goes_on_after_the_clock_was_set_back():
    periods = Periods(PERIOD_NS)
    for start_s in (100.0, 3.0):
        stamps = [round(start_s * 1e9) + step * PERIOD_NS // 2 for step in range(20)]
        assert sum(map(periods.begins_with, stamps)) == 10
