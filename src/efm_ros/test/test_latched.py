"""What counts on a latched topic with several publishers."""

import time

from efm_ros.latched import newest_only

NOW_NS = time.time_ns()
HOUR_NS = 3600 * 10**9


def told(*messages, **options):
    heard = []
    take = newest_only(heard.append, **options)
    for value, stamp_ns in messages:
        take(value, {"source_timestamp": stamp_ns})
    return heard


def test_what_was_published_last_counts_in_whatever_order_it_comes():
    assert told((True, NOW_NS - 5), (False, NOW_NS - 9), (False, NOW_NS - 2)) == [True, False]


def test_an_urgent_message_counts_though_the_clock_of_its_machine_is_behind():
    # A press of the e-stop had been lost after a release that came from a machine with a later time.
    ahead, behind = NOW_NS + 3 * HOUR_NS, NOW_NS + HOUR_NS
    messages = (False, ahead), (True, behind), (False, behind + 1)
    assert told(*messages) == [False]
    assert told(*messages, urgent=bool) == [False, True, False], "and can be taken back there"


def test_an_old_urgent_message_does_not_count():
    assert told((False, NOW_NS - 2), (True, NOW_NS - 9), urgent=bool) == [False]
