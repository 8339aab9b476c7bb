"""Parameters are declared once, and nothing that is wrong with them passes in silence."""

import dataclasses

import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter

from efm_core.errors import BadRequest
from efm_ros.parameters import declare, param


@dataclasses.dataclass(frozen=True)
class CameraParameters:
    robots: tuple[str, ...] = param(("",), description="Robots.")
    rate: float = param(10.0, description="Rate.", unit="Hz", low=0, high=100)
    retries: int = param(3, description="Retries.", low=1)
    stage: str = param("full", description="Stage.", choices=("full", "shadow"), read_only=False)
    gain: float = param(0.5, description="Gain.", low=0, high=1, read_only=False)
    offsets: tuple[float, ...] = param((), description="Offsets.", read_only=False)

    def __post_init__(self):
        if self.stage == "shadow" and self.gain > 0.8:
            raise BadRequest("gain: expected at most 0.8 in stage shadow")


@dataclasses.dataclass(frozen=True)
class NeedyParameters:
    embodiment: str = param(description="Name or file.")


@dataclasses.dataclass(frozen=True)
class UndecidedParameters:
    dry_run: bool | None = param(None, description="Not given: the embodiment decides.")


@pytest.fixture
def make_node(ros):
    nodes = []

    def make(*overrides, arguments=()):
        nodes.append(Node("camera", parameter_overrides=list(overrides), cli_args=["--ros-args", *arguments]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def refusal_of(node, cls=CameraParameters):
    with pytest.raises(BadRequest) as error:
        declare(node, cls)
    return str(error.value)


def test_without_overrides_the_defaults_hold(make_node):
    node = make_node()
    assert declare(node, CameraParameters) == CameraParameters()
    assert node.get_parameter("offsets").type_ is Parameter.Type.DOUBLE_ARRAY


def test_a_flag_that_nobody_gave_is_told_from_one_that_is_false(make_node):
    node = make_node()
    assert declare(node, UndecidedParameters).dry_run is None
    assert node.get_parameter("dry_run").type_ is Parameter.Type.NOT_SET
    given = make_node(Parameter("dry_run", Parameter.Type.BOOL, False))
    assert declare(given, UndecidedParameters).dry_run is False
    assert "expected bool" in refusal_of(make_node(Parameter("dry_run", value=1)), UndecidedParameters)


def test_overrides_of_the_command_line_and_a_file_arrive(make_node, tmp_path):
    file = tmp_path / "camera.yaml"
    file.write_text("/**:\n  ros__parameters:\n    robots: [a, b]\n    gain: 1\n    offsets: []\n")
    node = make_node(arguments=["--params-file", str(file), "-p", "rate:=5", "-p", "use_sim_time:=true"])
    found = declare(node, CameraParameters)
    assert found == CameraParameters(robots=("a", "b"), gain=1.0, rate=5.0)


def test_an_override_that_nobody_declares_is_refused_with_the_nearest_name(make_node):
    """rclpy itself ignores it, and the node runs with a default."""
    text = refusal_of(make_node(arguments=["-p", "robot:=a", "-p", "flavour:=b"]))
    assert "unknown parameter 'robot', did you mean 'robots'?" in text
    assert "unknown parameter 'flavour', known are ['gain'" in text


def test_all_faults_are_told_at_once_with_what_was_expected(make_node):
    text = refusal_of(
        make_node(arguments=["-p", "rate:=500", "-p", "retries:=0", "-p", "stage:=ful", "-p", "gain:=a"])
    )
    assert "'rate': expected 0 to 100 Hz, found 500.0" in text
    assert "'retries': expected >= 1, found 0" in text
    assert "expected one of full, shadow, found 'ful', did you mean 'full'?" in text
    assert "'gain': expected double, found string 'a'" in text


def test_nan_is_no_value(make_node):
    assert "found NaN" in refusal_of(make_node(Parameter("gain", value=float("nan"))))


def test_a_parameter_without_a_default_has_to_be_given(make_node):
    assert "'embodiment' has to be given: Name or file." in refusal_of(make_node(), NeedyParameters)


def test_parameters_that_ros_itself_declares_are_not_called_unknown(make_node):
    node = make_node(
        arguments=["-p", "qos_overrides./image.subscription.depth:=3", "-p", "use_sim_time:=false"]
    )
    declare(node, CameraParameters)


def test_the_descriptor_tells_range_unit_and_choices(make_node):
    node = make_node()
    declare(node, CameraParameters)
    rate = node.describe_parameter("rate")
    assert (rate.description, rate.read_only, rate.type) == ("Rate. [Hz]", True, 3)
    assert (rate.floating_point_range[0].from_value, rate.floating_point_range[0].to_value) == (0.0, 100.0)
    assert node.describe_parameter("stage").additional_constraints == "one of full, shadow"
    assert node.describe_parameter("retries").additional_constraints == ">= 1"


def test_a_read_only_parameter_cannot_be_set(make_node):
    node = make_node()
    declare(node, CameraParameters)
    result = node.set_parameters([Parameter("rate", value=20.0)])[0]
    assert not result.successful
    assert "read-only" in result.reason


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("gain", 2.0, "out of range"),
        ("gain", float("nan"), "nan"),
        ("gain", "a", "Wrong parameter type"),
        ("stage", "shado", "did you mean 'shadow'"),
    ],
)
def test_a_bad_value_is_refused_when_set_and_the_old_one_stays(make_node, name, value, reason):
    told = []
    node = make_node()
    declare(node, CameraParameters, lambda *words: told.append(words))
    before = node.get_parameter(name).value
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert reason in result.reason
    assert node.get_parameter(name).value == before
    assert told == []


def test_a_good_value_is_told_with_all_the_others_unchanged(make_node):
    told = []
    node = make_node(Parameter("rate", value=20.0))
    declare(node, CameraParameters, lambda values, names: told.append((values, set(names))))
    assert node.set_parameters([Parameter("gain", value=0.75)])[0].successful
    assert told == [(CameraParameters(rate=20.0, gain=0.75), {"gain"})]


def test_a_rule_between_fields_holds_at_start_and_for_every_later_set(make_node):
    high, shadow = Parameter("gain", value=0.9), Parameter("stage", value="shadow")
    assert "at most 0.8" in refusal_of(make_node(high, shadow))
    node = make_node(high)
    declare(node, CameraParameters)
    assert "at most 0.8" in node.set_parameters([shadow])[0].reason
    assert node.set_parameters_atomically([shadow, Parameter("gain", value=0.5)]).successful


def test_a_field_of_a_type_that_ros_does_not_have_is_a_mistake_in_the_code(make_node):
    broken = dataclasses.make_dataclass("Broken", [("a", dict, param(None, description="A."))], frozen=True)
    with pytest.raises(TypeError, match=r"Broken\.a"):
        declare(make_node(), broken)
