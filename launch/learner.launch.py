"""The learner of a practice run, on the machine that trains.

ros2 launch efm_bringup learner.launch.py policy:=FOLDER reward:=FOLDER run:=runs/practice
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, nodes_from


def generate_launch_description():
    return LaunchDescription([*arguments_of("learner"), nodes_from("learner")])
