"""`efm practice`: what the command line says reaches the stack."""

import argparse
import json
from pathlib import Path

import pytest

from efm_bringup.practice_command import arguments_of, main, refuse_company
from efm_core.errors import BadRequest
from efm_msgs.msg import LearnerStatus


def options(iterations, *arguments):
    return argparse.Namespace(
        world="table",
        robots="2",
        policy="policy",
        reward="reward",
        verifier="",
        run=Path("runs/practice"),
        iterations=iterations,
        arguments=list(arguments),
    )


def test_the_number_of_iterations_holds_beside_other_settings_of_the_learner():
    """It was dropped without a word, and practice went on for ever."""
    made = arguments_of(options(2, 'learning:={"updates": 3}', "lockstep:=false"))
    assert json.loads(made["learning"]) == {"iterations": 2, "updates": 3}
    assert made["lockstep"] == "false" and made["spool"] == "runs/practice/spool"
    assert json.loads(arguments_of(options(0, 'learning:={"iterations": 3}'))["learning"]) == {
        "iterations": 3
    }


def test_two_numbers_of_iterations_are_refused():
    with pytest.raises(BadRequest, match="found --iterations 2 and 3 in learning"):
        arguments_of(options(2, 'learning:={"iterations": 3}'))


@pytest.mark.parametrize("option", ["--minutes=nan", "--minutes=inf", "--minutes=-1", "--iterations=-1"])
def test_a_budget_that_is_none_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["--policy", "policy", "--reward", "reward", option])
    assert "expected numbers of 0 or more" in capsys.readouterr().err


def test_the_learner_of_another_run_is_not_taken_for_this_ones():
    """Its numbers were printed as the result of a run that had not begun."""
    refuse_company(argparse.Namespace(learner=None), seconds=0.1)
    with pytest.raises(BadRequest, match="found one, of another run"):
        refuse_company(argparse.Namespace(learner=LearnerStatus()), seconds=0.1)
