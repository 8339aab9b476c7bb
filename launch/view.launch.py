"""What RViz shows of a fleet: markers, frames and annotated images, and RViz itself.

ros2 launch efm_bringup view.launch.py embodiment:=table robots:=2
"""

from launch import LaunchDescription

from efm_bringup.launching import arguments_of, declare, nodes_from
from efm_bringup.stack_arguments import RVIZ


def generate_launch_description():
    return LaunchDescription([*arguments_of("view"), *declare(RVIZ), nodes_from("view", rviz=True)])
