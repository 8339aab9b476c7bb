"""Turns a stack into the entities of a launch file: arguments with descriptions and choices, then nodes.

The one module that knows both `stacks` and the launch package, which bare machines lack; there `efm up`
starts the same nodes. Only what Jazzy's launch has is used. Left out: anything that a stack does not say.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import List  # noqa: UP035 - launch_ros compares value types with typing's, not with list

from ament_index_python.packages import PackageNotFoundError
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration, SubstitutionFailure
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

from efm_bringup.config import config_file, share_folder, use_middleware_profile
from efm_bringup.processes import RESPAWN_DELAY_S
from efm_bringup.stack_arguments import RVIZ, Argument
from efm_bringup.stacks import STACKS, NodeSpec, check, nodes_of, read_arguments
from efm_core.errors import EXIT_REFUSED, BadRequest, nearest
from efm_core.leash import leashed


def declare(*arguments: Argument) -> list[DeclareLaunchArgument]:
    """Returns the declarations of some arguments, as `ros2 launch --show-args` lists them."""
    return [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            choices=list(argument.choices) or None,
        )
        for argument in arguments
    ]


def arguments_of(stack: str) -> list[DeclareLaunchArgument]:
    """Returns the declarations of all arguments of a stack."""
    return declare(*STACKS[stack].arguments)


def nodes_from(stack: str, rviz: bool = False) -> OpaqueFunction:
    """Returns the action that starts the nodes of a stack with the values that its arguments have then.

    The launch ends with an error where the values contradict each other, or a package, embodiment or bundle
    is not there.

    Args:
        stack: Name.
        rviz: Also start RViz with EFM's view, where the argument `rviz` says so.
    """
    return OpaqueFunction(function=_start, args=[stack, rviz])


def _values(context: LaunchContext, stack: str) -> dict[str, str]:
    return {
        argument.name: LaunchConfiguration(argument.name).perform(context)
        for argument in STACKS[stack].arguments
    }


def _start(context: LaunchContext, stack: str, rviz: bool) -> list[Node]:
    values = _values(context, stack)
    _warn_of_misspelt(context, [*values, *([RVIZ.name] if rviz else [])])
    use_middleware_profile(context.environment)
    specs = nodes_of(stack, values)
    check(specs)
    for spec in specs:
        _require(context, spec.package, spec.executable, "build the workspace and source install/setup.bash")
    nodes = [_node(spec) for spec in specs]
    if rviz and LaunchConfiguration(RVIZ.name).perform(context) == "true":
        _require(context, "rviz2", "rviz2", "install ros-jazzy-rviz2, or leave it out with rviz:=false")
        nodes.append(_rviz(read_arguments(STACKS[stack], values).sim_time))
    return nodes


def _require(context: LaunchContext, package: str, executable: str, advice: str) -> None:
    """Looks for an executable before the first node is started: launch leaves behind what runs already."""
    try:
        ExecutableInPackage(package=package, executable=executable).perform(context)
    except (PackageNotFoundError, SubstitutionFailure) as error:
        raise BadRequest(f"there is no {package}/{executable}: {advice}") from error


def _rviz(sim_time: bool) -> Node:
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz",
        arguments=["-d", str(share_folder("rviz") / "efm.rviz")],
        parameters=[{"use_sim_time": sim_time}],
    )


def _node(spec: NodeSpec) -> Node:
    parameters: list[Path | dict[str, object]] = [config_file(spec.config)] if spec.config else []
    parameters.append({name: _typed(value) for name, value in spec.parameters.items()})
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        parameters=parameters,
        remappings=list(spec.remappings),
        # Of a launch that is interrupted while it starts, processes may stay behind.
        prefix=shlex.join(leashed([])) or None,
        ros_arguments=list(spec.ros_arguments),
        respawn=spec.respawn,
        respawn_delay=RESPAWN_DELAY_S,
        on_exit=_end_if_refused(),
        output="screen",
        emulate_tty=True,
    )


def _end_if_refused() -> Callable[[ProcessExited, LaunchContext], Shutdown | None]:
    """Returns what ends the launch when a node refuses its parameters at its first start."""
    starts = count(1)

    def look(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
        if next(starts) == 1 and event.returncode == EXIT_REFUSED:
            reason = f"{event.process_name} refused its parameters, so all is stopped; what it said is above"
            get_logger("efm").error(reason)
            return Shutdown(reason=reason)
        return None

    return look


def _typed(value: object) -> object:
    """Texts as they are: launch_ros would read '{}' or 'true' as YAML."""
    if isinstance(value, str):
        return ParameterValue(value, value_type=str)
    if isinstance(value, (list, tuple)):
        return ParameterValue([str(entry) for entry in value], value_type=List[str])  # noqa: UP006
    return value


def _warn_of_misspelt(context: LaunchContext, names: list[str]) -> None:
    """Says so when the command line sets what no one reads: `ros2 launch` takes any name in silence."""
    for text in context.argv or ():
        name = text.partition(":=")[0]
        if name not in names and (near := nearest(name, names)):
            get_logger("efm").warning(f"nothing here reads the argument '{name}'{near}")
