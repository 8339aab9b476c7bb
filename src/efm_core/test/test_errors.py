"""Every reason has one code, the one of the interface file, and every error class has one of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efm_core import errors
from efm_core.errors import EfmError, Reason, nearest, reason_of

REASON_MSG = Path(__file__).parents[2] / "efm_msgs/msg/Reason.msg"


def error_classes() -> list[type[EfmError]]:
    known = [item for item in vars(errors).values() if isinstance(item, type)]
    return [item for item in known if issubclass(item, EfmError) and item is not EfmError]


def test_reasons_are_those_of_the_interface_file():
    found = re.findall(r"^uint16 REASON_(\w+) = (\d+)", REASON_MSG.read_text(), re.MULTILINE)
    assert {name: int(code) for name, code in found} == {item.name: item.value for item in Reason}


def test_every_error_class_has_a_code_of_its_own():
    codes = [item.reason for item in error_classes()]
    assert len(set(codes)) == len(codes)
    assert Reason.UNSET not in codes and Reason.OK not in codes and Reason.INTERNAL not in codes


def test_every_code_of_a_refusal_has_an_error_class():
    without_class = {
        Reason.UNSET,
        Reason.OK,
        Reason.CANCELLED,
        Reason.NOT_ACTIVE,
        Reason.BUSY,
        Reason.INTERNAL,
    }
    assert {item.reason for item in error_classes()} == set(Reason) - without_class


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_the_code_of_an_error_is_that_of_its_class(kind):
    assert reason_of(kind("expected this, found that")) is Reason(kind.reason)


def test_an_error_that_nobody_foresaw_is_internal():
    assert reason_of(KeyError("x")) is Reason.INTERNAL


def test_the_nearest_name_is_suggested_and_a_far_one_is_not():
    assert nearest("widthx", ["width", "height"]) == ", did you mean 'width'?"
    assert nearest("TOP", ["top", "wrist"]) == ", did you mean 'top'?"
    assert nearest("banana", ["width", "height"]) == ""
    assert nearest(None, []) == ""
