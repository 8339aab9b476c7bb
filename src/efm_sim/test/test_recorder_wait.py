"""A world in lockstep waits for who records it, and for nobody else, and not for ever."""

import pytest

from efm_sim.recorder_wait import PATIENCE_S, WINDOW_STEPS, RecorderWait

PERIOD_NS = 100_000_000
START_NS = 50 * PERIOD_NS


class Bench:
    def __init__(self):
        self.time, self.warnings = 100.0, []
        self.wait = RecorderWait(PERIOD_NS, self.warnings.append, lambda: self.time)

    def steps_ahead(self):
        """How many steps the world may take ahead of the recorder."""
        return next(n for n in range(1000) if self.wait.must_wait(START_NS + (n + 1) * PERIOD_NS))


@pytest.fixture
def bench():
    return Bench()


def test_nobody_is_waited_for_where_nobody_records(bench):
    assert not bench.wait.must_wait(START_NS + 10**6 * PERIOD_NS)


def test_a_world_goes_so_far_and_waits_until_the_recorder_has_come_nearer(bench):
    bench.wait.told(START_NS)
    assert bench.steps_ahead() == WINDOW_STEPS
    far_ns = START_NS + (WINDOW_STEPS + 1) * PERIOD_NS
    bench.wait.told(START_NS + PERIOD_NS)
    assert not bench.wait.must_wait(far_ns)


def test_the_window_is_small_where_pictures_are_large(bench):
    bench.wait.told(START_NS)
    bench.wait.shown(640 * 480 * 3)
    assert bench.steps_ahead() == 6
    bench.wait.shown(20 << 20)
    assert bench.steps_ahead() == 4
    bench.wait.shown(96 * 96 * 3)
    assert bench.steps_ahead() == WINDOW_STEPS


def test_a_recorder_that_does_not_come_back_holds_nobody_up_for_ever(bench):
    bench.wait.told(START_NS)
    far_ns = START_NS + 500 * PERIOD_NS
    assert bench.wait.must_wait(far_ns)
    bench.time += PATIENCE_S
    assert not bench.wait.must_wait(far_ns)
    assert not bench.wait.must_wait(far_ns + PERIOD_NS)
    assert bench.warnings == ["waited 10 s for the recorder, which is 500 steps behind; goes on"]


def test_the_end_of_a_recording_lets_the_world_go(bench):
    bench.wait.told(START_NS)
    assert bench.wait.must_wait(START_NS + 500 * PERIOD_NS)
    bench.wait.told(0)
    assert not bench.wait.must_wait(START_NS + 500 * PERIOD_NS)
