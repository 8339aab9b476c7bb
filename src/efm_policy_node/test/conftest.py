"""Lets the tests of this package import the helpers that lie beside them, and gives the smallest ones."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import loop_cell
import policy_fakes


@pytest.fixture
def embodiment():
    return policy_fakes.embodiment_of()


@pytest.fixture
def robot():
    return loop_cell.FakeRobot()
