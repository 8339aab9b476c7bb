"""Simulated worlds alone: what robots would show and take, without anyone who acts.

ros2 launch efm_bringup simulation.launch.py world:=table robots:=2
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("simulation"), nodes_from("simulation")])
