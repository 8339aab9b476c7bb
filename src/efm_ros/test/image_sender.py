"""A process for the middleware test: sends images of 640x480, best effort, one for each line on its input.

It says "ready" when there is a listener.
"""

import sys
import time

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from efm_ros.conversion import ns_to_stamp, rgb_to_image
from efm_ros.qos import IMAGES
from efm_ros.testing import PATIENCE_S

rclpy.init()
node = Node("sender")
publisher = node.create_publisher(Image, "image", IMAGES)
deadline = time.monotonic() + PATIENCE_S
while publisher.get_subscription_count() == 0:
    if time.monotonic() > deadline:
        sys.exit("nobody listens")
    time.sleep(0.01)
print("ready", flush=True)
for index, _ in enumerate(sys.stdin):
    publisher.publish(rgb_to_image(np.full((480, 640, 3), index, np.uint8), Header(stamp=ns_to_stamp(index))))
node.destroy_node()
rclpy.try_shutdown()
