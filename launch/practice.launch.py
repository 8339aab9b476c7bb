"""The closed loop: simulated worlds (or robots that are there), their cell, and the learner.

ros2 launch efm_bringup practice.launch.py world:=table robots:=2 policy:=FOLDER reward:=FOLDER
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("practice"), nodes_from("practice")])
