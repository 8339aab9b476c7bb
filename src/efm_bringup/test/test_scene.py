"""Scenes: files fit embodiments, cameras stand where the simulator has them, arms end where they must."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time

from efm_bringup.frames import fixed_frames, moving_frames
from efm_bringup.scene import Effector, Link, Pose, SceneCamera, load_scene
from efm_core.embodiment import load_embodiment
from efm_core.errors import BadRequest
from efm_sim.table_scene import CAMERA, CAMERA_FOV_DEG, scene_xml
from efm_sim.world import BUILT_IN

ROOT = Path(__file__).resolve().parents[3]
SCENES = sorted(path.stem for path in (ROOT / "config" / "scenes").glob("*.yaml"))


def matrix_of(quaternion):
    """The rotation of a unit quaternion (x, y, z, w), by another way than `Pose` goes."""
    x, y, z, w = quaternion
    left = np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]])
    right = np.array([[w, -z, y, -x], [z, w, -x, -y], [-y, x, w, -z], [x, y, z, w]])
    return (left @ right)[:3, :3]


def camera_of(model_pos, model_axes):
    """The optical frame of a MuJoCo camera, which looks along its -z with y up."""
    return np.asarray(model_pos), np.asarray(model_axes) @ np.diag([1.0, -1.0, -1.0])


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_fits_the_embodiment_of_its_name(name):
    embodiment = load_embodiment(name)
    scene = load_scene("", embodiment)
    assert scene.misfits(embodiment) == []
    assert scene.effectors
    assert {camera.name for camera in scene.cameras} == {camera.name for camera in embodiment.cameras}


def test_every_simulated_world_has_a_scene():
    embodiments = {path.stem for path in (ROOT / "config" / "embodiments").glob("*.yaml")}
    assert embodiments & set(BUILT_IN) <= set(SCENES)


@pytest.mark.parametrize("name", SCENES)
def test_every_world_has_frames_of_its_cameras_and_effectors(name):
    embodiment = load_embodiment(name)
    scene = load_scene("", embodiment)
    state = {entry.name: 0.1 for entry in embodiment.state.entries}
    frames = {
        frame.child_frame_id: frame
        for frame in (
            *fixed_frames(("left", "right"), scene, 1.0, Time()),
            *moving_frames("left", scene, state, Time()),
            *moving_frames("right", scene, state, Time()),
        )
    }
    own = [*(f"{camera.name}_optical" for camera in embodiment.cameras), *(e.name for e in scene.effectors)]
    assert set(frames) == {f"{robot}/{frame}" for robot in ("left", "right") for frame in ("base", *own)}
    for child, frame in frames.items():
        parent = "world" if child.endswith("/base") else f"{child.partition('/')[0]}/base"
        assert frame.header.frame_id == parent
        turn = frame.transform.rotation
        assert np.linalg.norm([turn.x, turn.y, turn.z, turn.w]) == pytest.approx(1.0)


def test_the_camera_of_the_table_stands_where_the_simulator_has_it():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(scene_xml([], 96, 96))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    there = data.cam(CAMERA)
    (camera,) = load_scene("", load_embodiment("table")).cameras
    position, rotation = camera_of(there.xpos, there.xmat.reshape(3, 3))
    np.testing.assert_allclose(camera.pose().position, position, atol=1e-4)
    np.testing.assert_allclose(camera.pose().rotation, rotation, atol=1e-4)
    assert camera.fov_deg == CAMERA_FOV_DEG


def test_the_camera_of_metaworld_stands_where_the_simulator_has_it():
    # The free camera of the world: 0.72 m from (0, 0.7, 0.04), azimuth 270 and elevation -50 degrees.
    azimuth, elevation = math.radians(270.0), math.radians(-50.0)
    level = math.cos(elevation)
    forward = np.array([level * math.cos(azimuth), level * math.sin(azimuth), math.sin(elevation)])
    (camera,) = load_scene("", load_embodiment("metaworld")).cameras
    np.testing.assert_allclose(camera.pose().position, np.array([0.0, 0.7, 0.04]) - 0.72 * forward, atol=1e-5)
    np.testing.assert_allclose(camera.pose().rotation[:, 2], forward, atol=1e-5)


def test_an_optical_frame_has_x_to_the_right_and_y_down():
    pose = SceneCamera("c", (0.0, 0.0, 1.0), (1.0, 0.0, 1.0)).pose()
    np.testing.assert_allclose(pose.rotation.T, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-12)
    assert np.linalg.det(pose.rotation) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_quaternion_means_the_same_rotation(seed):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    if seed < 4:  # Half turns, where the largest component changes.
        rotation = np.diag([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]][seed]).astype(float)
    quaternion = Pose(np.zeros(3), rotation).quaternion()
    assert np.linalg.norm(quaternion) == pytest.approx(1.0)
    assert quaternion[3] >= 0.0
    np.testing.assert_allclose(matrix_of(quaternion), rotation, atol=1e-9)


def test_an_arm_ends_where_its_joints_put_it():
    # Shoulder at 1 m, two links of 0.5 m: stretched upwards, then bent forward by the elbow.
    links = (
        Link((0.0, 0.0, 1.0), "shoulder", (0.0, 1.0, 0.0)),
        Link((0.0, 0.0, 0.5), "elbow", (0.0, 1.0, 0.0)),
        Link((0.0, 0.0, 0.5)),
    )
    arm = Effector(links=links)
    np.testing.assert_allclose(arm.pose({"shoulder": 0.0, "elbow": 0.0}).position, [0, 0, 2], atol=1e-12)
    bent = {"shoulder": 0.0, "elbow": math.pi / 2}
    np.testing.assert_allclose(arm.pose(bent).position, [0.5, 0, 1.5], atol=1e-12)
    assert arm.goal_of({"shoulder": 0.0, "elbow": 0.0}, bent) == pytest.approx([0.5, 0, 1.5])
    assert arm.goal_of({"shoulder": 0.0, "elbow": 0.0}, {"elbow": 1.0}) is None


def test_the_arms_of_aloha_mirror_each_other():
    left, right = load_scene("", load_embodiment("aloha")).effectors
    joints = {"waist": 0.3, "shoulder": -0.9, "elbow": 1.1, "forearm_roll": 0.1, "wrist_angle": -0.4}
    state = {f"{side}_arm_{name}": value for side in ("left", "right") for name, value in joints.items()}
    state |= {"left_arm_wrist_rotate": 0.0, "right_arm_wrist_rotate": 0.0}
    middle = np.array([0.0, 0.5, 0.0])
    one, other = (effector.pose(state).position - middle for effector in (left, right))
    np.testing.assert_allclose(other, [-one[0], -one[1], one[2]], atol=1e-4)


def test_a_command_moves_the_target_off_the_effector():
    (effector,) = load_scene("", load_embodiment("table")).effectors
    state = {"effector_x": 0.1, "effector_y": -0.05}
    assert effector.pose(state).position == pytest.approx([0.1, -0.05, 0.028])
    assert effector.goal_of(state, {"effector_dx": 0.02}) == pytest.approx([0.12, -0.05, 0.028])


def test_an_embodiment_without_a_scene_has_an_empty_one(tmp_path):
    plain = yaml.safe_load((ROOT / "config" / "embodiments" / "table.yaml").read_text())
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({**plain, "name": "other"}))
    assert load_scene("", load_embodiment(path)).effectors == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("low: [0, 0]", "low: expected three values"),
        ("low: [1.0, 0.0, 0.0]", "high: expected at least low"),
        ("efectors: []", "unknown key, did you mean 'effectors'?"),
        ("effectors: [{position: [effector_z, '', '']}]", "no state entry 'effector_z'"),
        ("effectors: [{target: [dx, '', '']}]", "no action dimension 'dx'"),
        ("effectors: [{name: a}, {name: a}]", "expected different names"),
        ("cameras: [{name: side, eye: [1.0, 0.0, 0.0], look_at: [0.0, 0.0, 0.0]}]", "no camera 'side'"),
        ("cameras: [{name: top, eye: [0.0, 0.0, 1.0], look_at: [0.0, 0.0, 0.0]}]", "up: expected another"),
        ("effectors: [", "expected YAML"),
    ],
)
def test_what_is_wrong_with_a_scene_is_said(tmp_path, text, problem):
    path = tmp_path / "scene.yaml"
    path.write_text(text)
    with pytest.raises(BadRequest) as caught:
        load_scene(str(path), load_embodiment("table"))
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
