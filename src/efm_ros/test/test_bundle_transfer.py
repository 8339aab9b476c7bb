"""Bundles get to the robots whatever is cut, away or broken in between (real services)."""

import threading

import numpy as np
import pytest
from rclpy.node import Node
from transfer_learner import quick

from efm_core.archive import MAX_PART_BYTES
from efm_core.bundle import BundleManifest, load_bundle, write_bundle
from efm_core.embodiment import Embodiment
from efm_core.errors import BundleUnknown, TransferCorrupt, WaitTimeout
from efm_msgs.msg import ModelInfo
from efm_ros.qos import MODELS
from efm_ros.transfer import BundleFetcher

LARGE = int(2.5 * MAX_PART_BYTES)
EMBODIMENT = Embodiment.from_dict(
    {
        "name": "one_wheel",
        "control_rate_hz": 10.0,
        "max_steps": 10,
        "state": {
            "topic": "state",
            "interface": "float64_multi_array",
            "entries": [{"name": "place", "unit": "m", "low": -1.0, "high": 1.0}],
        },
        "action": {
            "interface": "float64_multi_array",
            "topic": "command",
            "dimensions": [
                {
                    "name": "speed",
                    "low": -1.0,
                    "high": 1.0,
                    "bins": 3,
                    "unit": "m/s",
                    "max_rate": float("inf"),
                }
            ],
        },
        "steps_to_go": {"bins": 5, "width": 1},
        "reset": {"method": "none"},
    }
)


def make_bundle(folder, size=LARGE, seed=0):
    manifest = BundleManifest(
        kind="reward",
        embodiment=EMBODIMENT.to_dict(),
        inputs={"observation.state": {"shape": ["B", 1], "dtype": "float32"}},
        outputs={"steps_to_go_logits": {"shape": ["B", 1, 5], "dtype": "float32"}},
        opset=18,
        version=3,
    )
    files = {"model.onnx": b"graph", "model.onnx.data": np.random.default_rng(seed).bytes(size)}
    return write_bundle(folder, manifest, files)


class Fetching:
    """Runs a fetch in a thread, since the test spins the nodes."""

    def __init__(self, fetcher, info, **options):
        self.path = self.error = None
        self._arguments = (info.bundle_id, info.archive_size, info.archive_sha256), options
        self._fetcher = fetcher
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        positional, options = self._arguments
        try:
            self.path = self._fetcher.fetch(*positional, **options)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def result(self, spinner):
        spinner.until(lambda: not self.thread.is_alive(), "the end of the fetch")
        if self.error is not None:
            raise self.error
        return self.path


@pytest.fixture
def fetcher(robot, tmp_path):
    fetcher = BundleFetcher(robot, tmp_path / "cache", "/learner", quick())
    yield fetcher
    fetcher.stop()
    fetcher.destroy()


@pytest.fixture
def announced(learner):
    learner.set_up()
    bundle = make_bundle(learner.folder / "bundles")
    return learner.bundles.announce(bundle)


def test_a_late_joiner_hears_of_a_bundle_and_fetches_it_whole(announced, robot, fetcher, spinner, learner):
    heard = []
    robot.create_subscription(ModelInfo, "/learner/models", heard.append, MODELS)
    spinner.until(lambda: heard, "the announcement")
    info = heard[0]
    assert (info.kind, info.version, info.embodiment_digest) == (ModelInfo.KIND_REWARD, 3, EMBODIMENT.digest)
    path = Fetching(fetcher, info).result(spinner)
    assert load_bundle(path).id == info.bundle_id
    assert [item.name for item in (path.parent / ".fetching.robot_1.episodes").iterdir()] == []


def test_a_fetch_goes_on_where_it_was_cut(announced, fetcher, spinner, learner, tmp_path):
    fetching = Fetching(fetcher, announced)
    own = tmp_path / "cache" / ".fetching.robot_1.episodes"

    def size():
        return sum(part.stat().st_size for part in own.glob(".*.part"))

    spinner.until(lambda: size() >= MAX_PART_BYTES, "the first part")
    learner.take_down()
    kept = size()
    learner.set_up()
    offsets = []
    serve = learner.bundles.service.callback
    learner.bundles.service.callback = lambda request, answer: (
        offsets.append(request.offset) or serve(request, answer)
    )
    assert load_bundle(fetching.result(spinner)).id == announced.bundle_id
    assert min(offsets) >= kept


def test_a_bundle_that_is_there_already_is_not_fetched_again(announced, fetcher, spinner, learner):
    path = Fetching(fetcher, announced).result(spinner)
    learner.take_down()
    assert fetcher.fetch(announced.bundle_id, announced.archive_size, announced.archive_sha256) == path


def test_two_nodes_can_share_one_cache(announced, fetcher, robot, spinner, tmp_path):
    other = BundleFetcher(Node("other", context=robot.context), tmp_path / "cache", "/learner", quick())
    spinner.executor.add_node(other._asker._node)
    both = [Fetching(fetcher, announced), Fetching(other, announced)]
    paths = {fetching.result(spinner) for fetching in both}
    assert paths == {tmp_path / "cache" / announced.bundle_id}
    other._asker._node.destroy_node()


def test_a_bundle_that_the_learner_does_not_have_is_unknown(announced, fetcher, spinner):
    announced.bundle_id = "0" * 16
    with pytest.raises(BundleUnknown, match="expected a bundle's folder, found none"):
        Fetching(fetcher, announced).result(spinner)


def test_other_bytes_than_announced_are_given_up_after_a_few_attempts(announced, fetcher, spinner):
    announced.archive_sha256 = "0" * 64
    with pytest.raises(TransferCorrupt, match="expected an archive of"):
        Fetching(fetcher, announced).result(spinner)


def test_a_fetch_ends_at_its_deadline_and_when_the_node_stops(announced, fetcher, spinner, learner):
    learner.take_down()
    with pytest.raises(WaitTimeout, match="was not fetched"):
        Fetching(fetcher, announced, deadline_s=0.2).result(spinner)
    endless = Fetching(fetcher, announced)
    fetcher.stop()
    with pytest.raises(WaitTimeout):
        endless.result(spinner)
