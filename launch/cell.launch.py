"""Policy, reward and episodes for one robot or a fleet; `mode` says what the robots are there for.

ros2 launch efm_bringup cell.launch.py mode:=practice embodiment:=table robots:=2 reward:=FOLDER
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("cell"), nodes_from("cell")])
