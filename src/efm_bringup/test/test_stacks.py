"""The description of the stacks: what is refused, and that everything it names exists."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from rclpy import node as rclpy_node
from rclpy.lifecycle import node as lifecycle

from efm_bringup.stacks import STACKS, NodeSpec, check, nodes_of, read_arguments
from efm_bringup.up_command import parse_assignments
from efm_core.errors import BadRequest, BundleUnknown

ROOT = Path(__file__).resolve().parents[3]
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
SHIPPED_BY_ROS = {"launch", "launch_ros", "ament_index_python"}

# The parameters of every node that a stack starts.
PARAMETERS = {
    "efm_sim.main": ("efm_sim.node", "SimParameters"),
    "efm_policy_node.main": ("efm_policy_node.parameters", "PolicyParameters"),
    "efm_reward_node.main": ("efm_reward_node.parameters", "RewardParameters"),
    "efm_episode_node.main": ("efm_episode_node.parameters", "EpisodeParameters"),
    "efm_learner.learner_main": ("efm_learner.learner_parameters", "LearnerParameters"),
    "efm_bringup.view_node": ("efm_bringup.view_node", "ViewParameters"),
    "efm_bringup.annotate_node": ("efm_bringup.annotate_node", "AnnotateParameters"),
}
# Values with which every stack has all nodes that it can have.
FULL = {
    "policy": "policy",
    "reward": "reward",
    "robots": "2",
    "dry_run": "true",
    "lockstep": "false",
    "learning": '{"iterations": 3}',
}


def full(stack: str) -> list[NodeSpec]:
    known = {argument.name for argument in STACKS[stack].arguments}
    return nodes_of(stack, {name: value for name, value in FULL.items() if name in known})


NODES = [pytest.param(node, id=f"{stack}-{node.name}") for stack in STACKS for node in full(stack)]


def declared(node: NodeSpec) -> dict[str, dataclasses.Field]:
    module, name = PARAMETERS[node.module]
    return {field.name: field for field in dataclasses.fields(getattr(importlib.import_module(module), name))}


def configured(node: NodeSpec) -> dict[str, object]:
    return yaml.safe_load((ROOT / "config" / node.config).read_text())["/**"]["ros__parameters"]


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_has_a_launch_file_that_starts_it(stack):
    tree = ast.parse((ROOT / "launch" / f"{stack}.launch.py").read_text())
    assert ast.get_docstring(tree)
    used = {
        node.func.id: node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args
        if isinstance(node.args[0], ast.Constant)
    }
    assert used["arguments_of"] == used["nodes_from"] == stack


def test_there_is_no_launch_file_without_a_stack():
    assert [path.name.removesuffix(".launch.py") for path in LAUNCH_FILES] == sorted(STACKS)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_a_launch_file_imports_only_what_ros_ships(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found <= SHIPPED_BY_ROS | {"efm_bringup"}


@pytest.mark.parametrize("stack", STACKS.values(), ids=lambda stack: stack.name)
def test_every_argument_has_a_sentence_and_a_default_among_its_choices(stack):
    names = [argument.name for argument in stack.arguments]
    assert len(set(names)) == len(names)
    assert stack.description.endswith(".")
    for argument in stack.arguments:
        assert re.fullmatch(r"[A-Z][^\n]*[.}]|[a-z_]+: [^\n]*\.", argument.description), argument.name
        assert not argument.choices or argument.default in argument.choices


@pytest.mark.parametrize("node", NODES)
def test_package_executable_module_and_files_exist(node):
    assert (ROOT / "src" / node.package / "package.xml").is_file()
    assert node.module.partition(".")[0] == node.package
    assert (ROOT / "src" / node.package / f"{node.module.replace('.', '/')}.py").is_file()
    setup = (ROOT / "src" / node.package / "setup.py").read_text()
    assert re.search(rf'"{node.executable} = {re.escape(node.module)}:main"', setup)
    assert (ROOT / "config" / node.config).is_file()


@pytest.mark.parametrize("node", NODES)
def test_every_parameter_that_is_set_is_declared(node):
    known = {*declared(node), "use_sim_time"}
    assert set(node.parameters) <= known
    assert set(configured(node)) <= known


@pytest.mark.parametrize("node", NODES)
def test_no_value_is_set_in_two_places(node):
    chosen = {"iterations"}  # Given on purpose by `learning`, which wins over the file.
    assert set(configured(node)) & (set(node.parameters) - chosen) == set()


@pytest.mark.parametrize("node", NODES)
def test_required_parameters_are_given(node):
    required = {name for name, field in declared(node).items() if field.default is dataclasses.MISSING}
    assert required <= set(node.parameters) | set(configured(node))


@pytest.mark.parametrize(
    ("stack", "given", "problem"),
    [
        ("colect", {}, "unknown stack 'colect', did you mean 'collect'?"),
        ("collect", {"wrold": "table"}, "unknown argument 'wrold', did you mean 'world'?"),
        ("collect", {"lockstep": "yes"}, "lockstep:=yes: expected one of 'true', 'false'"),
        ("collect", {"robots": "0"}, "robots:=0: expected 1 to 64 robots"),
        ("collect", {"robots": "left,left"}, "expected a number or different names"),
        ("collect", {"robots": "left,"}, "expected a number or different names"),
        ("collect", {"robots": "robot-1"}, "found 'robot-1'"),
        ("collect", {"robots": "left,2.5"}, "found '2.5'"),
        ("collect", {"robots": "-1"}, "found '-1'"),
        ("collect", {"seed": "-1"}, "seed:=-1: expected a whole number of 0 or more"),
        ("collect", {"world_options": "{bad"}, "world_options:={bad: expected a JSON object: "),
        ("simulation", {"expert_changes": "[]"}, "expert_changes:=[]: expected a JSON object"),
        ("collect", {"seed": "one"}, "seed:=one: expected a whole number"),
        ("collect", {"simulated": "false"}, "simulated:=false needs embodiment:="),
        ("evaluate", {}, "needs reward:=FOLDER"),
        ("learner", {"policy": "p"}, "the learner needs reward:=FOLDER"),
        ("practice", {"policy": "p", "reward": "r", "learning": "[1]"}, "expected a JSON object"),
        ("practice", {"policy": "p", "reward": "r", "learning": "{"}, "expected a JSON object: "),
    ],
)
def test_what_cannot_be_is_refused_with_words(stack, given, problem):
    with pytest.raises(BadRequest) as caught:
        nodes_of(stack, given)
    assert problem in str(caught.value)


def test_the_folder_of_a_run_stands_for_the_bundle_that_it_made(tmp_path):
    (tmp_path / "result.json").write_text('{"policy": "0001", "reward": "0002"}')
    run = str(tmp_path)
    nodes = nodes_of("evaluate", {"policy": run, "reward": run})
    bundles = {node.name: node.parameters["bundle"] for node in nodes if "bundle" in node.parameters}
    assert bundles == {"policy": f"{run}/bundles/0001", "reward": f"{run}/bundles/0002"}
    (tmp_path / "result.json").write_text('{"best": "0003"}')
    assert read_arguments(STACKS["cell"], {"policy": run}).bundle("policy") == f"{run}/bundles/0003"
    for names_none in ('{"best": "0003"}', "[]"):
        (tmp_path / "result.json").write_text(names_none)
        with pytest.raises(BadRequest, match="names no such bundle"):
            nodes_of("evaluate", {"policy": run, "reward": run})


def test_a_result_that_was_cut_off_is_told(tmp_path):
    (tmp_path / "result.json").write_text('{"policy": "00')
    with pytest.raises(BadRequest, match="found it damaged"):
        nodes_of("evaluate", {"policy": str(tmp_path), "reward": str(tmp_path)})


@pytest.mark.parametrize("given", [{"world": "mars"}, {"world": "mars:red", "embodiment": "pointmass"}])
def test_a_world_that_is_not_there_is_refused_before_nodes_are_started(given):
    with pytest.raises(BadRequest, match="unknown world 'mars.*; choices: pointmass; table; "):
        check(nodes_of("collect", given))


def test_assignments_are_of_one_form():
    assert parse_assignments(["a:=1", "b:=x:=y", "c:="]) == {"a": "1", "b": "x:=y", "c": ""}
    for text in ("a=1", ":=1", "word"):
        with pytest.raises(BadRequest, match="expected name:=value"):
            parse_assignments([text])


def test_a_fleet_is_made_by_namespace():
    def robots(text):
        return read_arguments(STACKS["collect"], {"robots": text}).robots

    assert robots("2") == ("robot_1", "robot_2")
    assert robots("left, right/") == ("left", "right")
    assert robots("/") == ("",)
    assert robots("hall/left,hall/right") == ("hall/left", "hall/right")
    nodes = nodes_of("collect", {"robots": "left,right", "spool": "/data"})
    episodes = [node for node in nodes if node.name == "episodes"]
    assert [node.namespace for node in episodes] == ["/left", "/right"]
    assert [node.parameters["spool"] for node in episodes] == ["/data/left", "/data/right"]


def test_real_robots_keep_wall_time_and_wait_for_no_world():
    nodes = nodes_of("collect", {"simulated": "false", "embodiment": "table"})
    assert [node.name for node in nodes] == ["episodes"]
    assert nodes[0].parameters["use_sim_time"] is False
    policy = nodes_of(
        "evaluate", {"simulated": "false", "embodiment": "table", "policy": "p", "reward": "r"}
    )[0]
    assert (policy.name, policy.parameters["lockstep"]) == ("policy", False)


def test_a_dry_run_moves_nothing_in_resets_either():
    nodes = nodes_of("cell", {"reward": "r", "policy": "p", "dry_run": "true"})
    given = {node.name: node.parameters.get("dry_run") for node in nodes}
    assert given == {"policy": True, "reward": None, "episodes": "true"}


def test_a_dry_run_in_a_world_that_waits_for_commands_is_refused(tmp_path):
    """Every episode once ended after ten seconds with a word about stale input."""
    dry = tmp_path / "dry.yaml"
    dry.write_text((ROOT / "config/embodiments/table.yaml").read_text().replace("dry_run: false", ""))
    given = {"policy": "p", "reward": "r"}
    for how in ({"dry_run": "true"}, {"embodiment": str(dry)}):
        for stack in ("evaluate", "practice", "cell"):
            with pytest.raises(BadRequest, match="a dry run does not send; add lockstep:=false"):
                check(nodes_of(stack, given | how))
        robot = {"simulated": "false", "embodiment": str(dry)}
        for fine in ({"lockstep": "false"}, robot, {"dry_run": "false"}):
            with pytest.raises(BundleUnknown):  # Which is looked at last.
                check(nodes_of("evaluate", given | how | fine))


@pytest.mark.parametrize("module", [module for module, _ in PARAMETERS.values()])
def test_no_node_hides_what_rclpy_keeps(module):
    # A node that called its own list `_services` had lost its parameter services: rclpy's list has that name.
    path = Path(importlib.util.find_spec(module.replace(".parameters", ".node")).origin)
    assert (
        private_names(path) & private_names(*(Path(base.__file__) for base in (rclpy_node, lifecycle)))
        == set()
    )


def private_names(*paths: Path) -> set[str]:
    """Attributes with one underscore that the classes of some files set on themselves."""
    return {
        target.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
        and target.attr.startswith("_")
        and not target.attr.startswith("__")
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }
