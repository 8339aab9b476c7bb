"""New bundles while robots act: fetched, swapped in at an act's boundary, refused, rolled back."""

import shutil

import pytest
from policy_cell import Cell
from policy_fakes import bundle_of, embodiment_of
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from efm_core.errors import Reason
from efm_msgs.msg import ModelStatus
from efm_ros.model_supply import BURST_S
from efm_ros.transfer_server import BundleServer


class FakeLearner:
    """Announces and serves bundles, as the learner does."""

    def __init__(self, ros, cell, folder):
        self.node = ros.create_node("learner", namespace=f"{cell.namespace}/learner")
        cell.spinner.executor.add_node(self.node)
        self.folder = folder
        self.server = BundleServer(self.node, folder)

    def announce(self, bundle):
        self.server.announce(bundle)


@pytest.fixture
def cell(ros, tmp_path):
    embodiment = embodiment_of(control_rate_hz=50.0)
    cell = Cell(ros, tmp_path, embodiment)
    cell.learner = FakeLearner(ros, cell, tmp_path / "learner")
    cell.make = lambda **changes: bundle_of(embodiment, tmp_path / "learner", **changes)
    yield cell
    cell.close()
    cell.learner.node.destroy_node()


def start(cell, **parameters):
    cell.start(**{"lockstep": True, "learner": f"{cell.namespace}/learner"} | parameters)


def states_of(cell, bundle_id):
    return [status.state for status in cell.robot.statuses if status.bundle_id == bundle_id]


def wait_for(cell, bundle, state):
    cell.until(lambda: state in states_of(cell, bundle.id), f"{bundle.id} to get to state {state}")
    return next(s for s in reversed(cell.robot.statuses) if s.bundle_id == bundle.id and s.state == state)


def test_without_a_bundle_acts_are_refused_and_the_first_announced_one_is_fetched_and_used(cell):
    start(cell)
    refused = cell.episode()
    assert refused.result().reason == Reason.BUNDLE_UNKNOWN and "/learner/models" in refused.result().message
    bundle = cell.make(version=4)
    cell.learner.announce(bundle)
    status = wait_for(cell, bundle, ModelStatus.STATE_ACTIVE)
    assert status.node == "policy" and status.robot == cell.namespace[1:] and status.stall < 0.05
    assert states_of(cell, bundle.id)[0] == ModelStatus.STATE_FETCHING
    result = cell.episode(max_steps=3).result()
    assert (result.reason, result.bundle_id, result.version) == (Reason.OK, bundle.id, 4)


def test_an_act_keeps_its_model_and_the_next_one_takes_the_new(cell):
    old, new = cell.make(seed=1), cell.make(seed=2, version=1)
    start(cell, bundle=str(old.path))
    goal = cell.episode()
    cell.until(lambda: len(cell.robot.steps) > 3, "some steps")
    cell.learner.announce(new)
    wait_for(cell, new, ModelStatus.STATE_READY)
    count = len(cell.robot.steps)
    cell.until(lambda: len(cell.robot.steps) > count + 20, "the act to go on")
    assert ModelStatus.STATE_ACTIVE not in states_of(cell, new.id)
    result = goal.cancel()
    assert result.bundle_id == old.id and {step.bundle_id for step in cell.robot.steps} == {old.id}
    wait_for(cell, new, ModelStatus.STATE_ACTIVE)
    assert cell.episode(max_steps=3).result().bundle_id == new.id


def test_of_a_burst_of_announcements_only_the_newest_is_taken(cell):
    bundles = [cell.make(seed=k, version=k) for k in range(6)]
    for bundle in bundles:
        cell.learner.announce(bundle)
    start(cell)
    wait_for(cell, bundles[-1], ModelStatus.STATE_ACTIVE)
    # A busy machine may let the burst come in two pieces.
    assert sum(bool(states_of(cell, bundle.id)) for bundle in bundles[:-1]) <= 1


def test_a_bundle_of_another_embodiment_is_refused_without_being_fetched(cell):
    good = cell.make()
    start(cell, bundle=str(good.path))
    wait_for(cell, good, ModelStatus.STATE_ACTIVE)
    other = bundle_of(embodiment_of(control_rate_hz=5.0), cell.folder / "learner")
    cell.learner.announce(other)
    status = wait_for(cell, other, ModelStatus.STATE_REFUSED)
    assert status.reason == Reason.EMBODIMENT_MISMATCH
    assert ModelStatus.STATE_FETCHING not in states_of(cell, other.id)
    assert cell.episode(max_steps=2).result().bundle_id == good.id


def test_a_bundle_that_was_tampered_with_is_refused_and_the_old_one_stays(cell):
    good, bad = cell.make(seed=1), cell.make(seed=2)
    start(cell, bundle=str(good.path))
    wait_for(cell, good, ModelStatus.STATE_ACTIVE)
    with (bad.path / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"XXXX")
    cell.learner.announce(bad)
    status = wait_for(cell, bad, ModelStatus.STATE_REFUSED)
    assert status.reason == Reason.BUNDLE_TAMPERED and "SHA-256" in status.message
    assert cell.episode(max_steps=2).result().bundle_id == good.id


def test_a_model_that_does_not_run_is_refused_and_the_old_one_stays(cell):
    good, bad = cell.make(seed=1), cell.make(seed=2, nan_above=-1.0)
    start(cell, bundle=str(good.path))
    wait_for(cell, good, ModelStatus.STATE_ACTIVE)
    cell.learner.announce(bad)
    status = wait_for(cell, bad, ModelStatus.STATE_REFUSED)
    assert status.reason == Reason.BUNDLE_UNUSABLE and "finite" in status.message
    assert cell.episode(max_steps=2).result().bundle_id == good.id


def test_a_model_that_fails_while_it_acts_is_rolled_back(cell):
    good, bad = cell.make(seed=1), cell.make(tokens=(20, 5), nan_above=0.3)
    start(cell, bundle=str(good.path))
    wait_for(cell, good, ModelStatus.STATE_ACTIVE)
    cell.learner.announce(bad)
    wait_for(cell, bad, ModelStatus.STATE_ACTIVE)
    result = cell.episode().result()
    assert result.reason == Reason.BUNDLE_UNUSABLE and result.bundle_id == bad.id
    assert wait_for(cell, bad, ModelStatus.STATE_REFUSED).message.endswith(f"went back to {good.id}")
    assert cell.episode(max_steps=2).result().bundle_id == good.id


def test_a_bundle_that_is_gone_is_refused_and_a_later_one_is_taken(cell):
    start(cell)
    cell.until(lambda: cell.learner.server.publisher.get_subscription_count() == 1, "the node")
    gone, later = cell.make(seed=9), cell.make(seed=10)
    cell.learner.announce(gone)
    shutil.rmtree(gone.path)
    assert wait_for(cell, gone, ModelStatus.STATE_REFUSED).reason == Reason.BUNDLE_UNKNOWN
    refused = cell.episode().result()
    assert refused.reason == Reason.BUNDLE_UNKNOWN and "refused" in refused.message
    cell.learner.announce(later)
    wait_for(cell, later, ModelStatus.STATE_ACTIVE)


def set_parameter(cell, name, **value):
    client = cell.node.create_client(SetParameters, "policy/set_parameters")
    parameter = ParameterMessage(name=name, value=ParameterValue(**value))
    assert cell.spinner.call(client, SetParameters.Request(parameters=[parameter])).results[0].successful


def test_a_bundle_can_be_set_as_a_parameter(cell):
    old, new = cell.make(seed=1), cell.make(seed=2)
    start(cell, bundle=str(old.path), follow_models=False)
    wait_for(cell, old, ModelStatus.STATE_ACTIVE)
    set_parameter(cell, "bundle", type=ParameterType.PARAMETER_STRING, string_value=str(new.path))
    wait_for(cell, new, ModelStatus.STATE_ACTIVE)
    assert cell.episode(max_steps=2).result().bundle_id == new.id


def test_another_parameter_does_not_bring_the_first_bundle_back(cell):
    """Setting the temperature once sent a robot that had followed the learner back to Stage 1."""
    first, newer = cell.make(seed=1), cell.make(seed=2, version=1)
    start(cell, bundle=str(first.path))
    wait_for(cell, first, ModelStatus.STATE_ACTIVE)
    cell.learner.announce(newer)
    wait_for(cell, newer, ModelStatus.STATE_ACTIVE)
    heard = list(states_of(cell, first.id))
    set_parameter(cell, "temperature", type=ParameterType.PARAMETER_DOUBLE, double_value=0.5)
    cell.spin(3 * BURST_S)
    assert states_of(cell, first.id) == heard
    assert cell.episode(max_steps=2).result().bundle_id == newer.id
