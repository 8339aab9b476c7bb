"""Demonstrations: simulated worlds (or robots that are there) and the nodes that record them.

ros2 launch efm_bringup collect.launch.py world:=table robots:=2
efm collect --episodes 100                          # in another terminal
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("collect"), nodes_from("collect")])
