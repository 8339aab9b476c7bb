"""The learner's process: how soon it leaves."""

import threading
from types import SimpleNamespace

import pytest

from efm_learner.learner_main import leave_early


@pytest.mark.parametrize(("opening", "codes"), [(True, [0]), (False, [])])
def test_told_to_stop_the_process_leaves_at_once_while_it_opens_the_run_and_else_in_order(opening, codes):
    left: list[int] = []
    node = SimpleNamespace(ending=threading.Event(), opening=opening)
    waiting = threading.Thread(target=leave_early, args=(node, left.append))
    waiting.start()
    assert not left
    node.ending.set()
    waiting.join()
    assert left == codes
