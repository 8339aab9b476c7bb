"""A process for the middleware test: sends 20 images of 640x480, best effort, 20 ms apart, to a listener."""

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
for index in range(20):
    publisher.publish(rgb_to_image(np.full((480, 640, 3), index, np.uint8), Header(stamp=ns_to_stamp(index))))
    time.sleep(0.02)
sys.stdin.read()  # Best effort: nothing is sent again, so the process stays until all was heard.
node.destroy_node()
rclpy.try_shutdown()
