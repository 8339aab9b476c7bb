"""What stands around a reward node in tests: robots that show images, and a gate that makes a model slow."""

import threading

from judged_world import TASK, picture, stamp
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from efm_msgs.msg import Instruction, ModelStatus, StepsToGo
from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.names import in_robot
from efm_ros.qos import EVENTS, IMAGES, LATCHED, MODELS
from efm_ros.testing import PATIENCE_S


class Robot:
    """What a robot and its episode node publish, and what they hear of the reward node."""

    def __init__(self, node, name, spinner):
        self.name, self.spinner, self.node = name, spinner, node
        self.labels, self.statuses, self.judge_node = [], [], None
        self.camera = node.create_publisher(Image, in_robot(name, "camera/top/image_raw"), IMAGES)
        self.instruction = node.create_publisher(Instruction, in_robot(name, "instruction"), LATCHED)
        node.create_subscription(StepsToGo, in_robot(name, "steps_to_go"), self.labels.append, EVENTS)
        node.create_subscription(ModelStatus, in_robot(name, "model_status"), self.statuses.append, MODELS)

    @property
    def live(self):
        """This robot inside the reward node."""
        return next(one for one in self.judge_node._live.robots if one.name == self.name)

    @property
    def stream(self):
        return self.live.stream

    def is_heard(self):
        return self.camera.get_subscription_count() and self.instruction.get_subscription_count()

    def begin(self, episode_id, first, text=TASK, wait=True):
        message = Instruction(episode_id=episode_id, text=text)
        message.header.stamp = ns_to_stamp(stamp(first))
        self.instruction.publish(message)
        if not wait:
            return
        self.spinner.until(
            lambda: self.stream.course is not None and self.stream.course.episode_id == episode_id,
            f"the begin of episode {episode_id}",
        )

    def end(self):
        self.instruction.publish(Instruction())
        self.spinner.until(lambda: self.stream.course is None, "the end of the episode")

    def show(self, step, brightness):
        self.camera.publish(rgb_to_image(picture(brightness), Header(stamp=ns_to_stamp(stamp(step)))))

    def until_judged(self, count):
        self.spinner.until(lambda: len(self.labels) >= count, f"{count} labels of robot '{self.name}'")

    def judge(self, brightnesses, first=0):
        """Shows one image after the other, each after the label of the one before: none can be lost."""
        for step, brightness in enumerate(brightnesses, start=first):
            count = len(self.labels)
            self.show(step, brightness)
            self.until_judged(count + 1)
        return self.labels[-len(brightnesses) :]

    def states(self, bundle):
        return [status.state for status in self.statuses if status.bundle_id == bundle.id]

    def until_state(self, bundle, state):
        self.spinner.until(lambda: state in self.states(bundle), f"state {state} of bundle {bundle.id}")


class Gate:
    """Holds a model's inferences back until it is opened; remembers how many observations came in each."""

    def __init__(self, model):
        self.batches = []
        self._open = threading.Event()
        self._judge = model.judge
        model.judge = self.judge

    def judge(self, observations, instructions):
        self.batches.append(len(observations))
        assert self._open.wait(PATIENCE_S)
        return self._judge(observations, instructions)

    def open(self):
        self._open.set()


def values(labels, field):
    return [getattr(label, field) for label in labels]
