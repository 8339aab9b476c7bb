"""A learner for the transfer tests: it only takes episodes and gives bundles."""

from rclpy.node import Node

from efm_core.archive import PartSource
from efm_ros.transfer import BackOff
from efm_ros.transfer_server import BundleServer, EpisodeReceiver


def quick():
    return BackOff(first_s=0.02, longest_s=0.05)


class Learner:
    """A learner that only takes episodes and gives bundles, and can be taken down and set up again."""

    def __init__(self, folder, spinner):
        self.folder, self.spinner = folder, spinner
        self.taken, self.requests = [], []
        self.accepting, self.refuse, self.node = True, None, None

    def set_up(self):
        self.node = Node("learner", namespace="/learner")
        self.receiver = EpisodeReceiver(self.node, self.folder / "inbox", self._take, lambda: self.accepting)
        serve = self.receiver.service.callback

        def count(request, answer):
            self.requests.append((request.episode_id, request.offset, len(request.data)))
            return serve(request, answer)

        self.receiver.service.callback = count
        self.bundles = BundleServer(self.node, self.folder / "bundles")
        self.spinner.executor.add_node(self.node)

    def take_down(self):
        self.spinner.executor.remove_node(self.node)
        self.node.destroy_node()
        self.node = None

    def _take(self, folder, robot):
        if self.refuse is not None:
            raise self.refuse
        self.taken.append((folder.name, robot, PartSource(folder).sha256()))
