"""Measuring one policy: simulated worlds (or robots that are there) and their cell.

ros2 launch efm_bringup evaluate.launch.py world:=table policy:=FOLDER reward:=FOLDER
efm evaluate --episodes 50                          # in another terminal
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("evaluate"), nodes_from("evaluate")])
