"""Episodes as LeRobot data sets and back: the format's schema, what is kept exactly, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from efm_core.embodiment import Embodiment, load_embodiment
from efm_core.episode import check_episode, list_episodes, read_episode
from efm_core.episode_file import read_episode_file
from efm_core.episode_inputs import EpisodeInputs
from efm_core.episode_rows import align
from efm_core.errors import BadRequest, SpoolFull
from efm_core.summary import Actor, EndReason, Mode, Outcome, Summary
from efm_episode_node import episodes_command
from efm_episode_node.lerobot import export as export_module
from efm_episode_node.lerobot.episode_maker import make_episode
from efm_episode_node.lerobot.export import export_lerobot
from efm_episode_node.lerobot.importing import ImportOptions, import_lerobot

TABLE = load_embodiment("table")
STEPS = 7
# Name -> dtype and shape that LeRobot's own reader expects in info.json and finds in the Parquet files.
FEATURES = {
    "observation.images.top": ("video", [96, 96, 3]),
    "observation.state": ("float32", [2]),
    "action": ("float32", [2]),
    "next.done": ("bool", [1]),
    "next.success": ("bool", [1]),
    "complementary_info.is_intervention": ("bool", [1]),
    "complementary_info.policy_version": ("int64", [1]),
    "timestamp": ("float32", [1]),
    "frame_index": ("int64", [1]),
    "episode_index": ("int64", [1]),
    "index": ("int64", [1]),
    "task_index": ("int64", [1]),
}
EPISODE_COLUMNS = {"episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index"}
EPISODE_COLUMNS |= {"data/chunk_index", "data/file_index", "meta/episodes/chunk_index"}
EPISODE_COLUMNS |= {"meta/episodes/file_index", "stats/action/mean", "stats/observation.images.top/q99"}
EPISODE_COLUMNS |= {
    f"videos/observation.images.top/{name}"
    for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
}


def picture(number, size=96):
    y, x = np.mgrid[0:size, 0:size]
    return np.stack([x * 2, y * 2, np.full_like(x, 20 * number % 256)], axis=-1).astype(np.uint8)


def record(folder, number, embodiment=TABLE, **changes):
    """An episode of STEPS steps with numbers that have no short form."""
    rng = np.random.default_rng(number)
    period_ns = round(1e9 / embodiment.control_rate_hz)
    values = {
        "episode_id": f"e{number}",
        "start_ns": 5_000_000_000,
        "stamp_ns": 5_000_000_000 + STEPS * period_ns,
        "robot": "robot_1",
        "instruction": f"push block {number % 2}",
        "mode": Mode.COLLECT,
        "outcome": Outcome.SUCCESS,
        "end_reason": EndReason.ACTOR_DONE,
        "actor": Actor.EXPERT,
        "seed": 100 + number,
        "steps": STEPS,
    }
    summary = Summary(**{**values, **changes})
    state = rng.normal(size=(STEPS + 1, embodiment.state_size)).astype(np.float32) / 10
    actions = rng.normal(size=(STEPS, embodiment.action_size)).astype(np.float32) / 100
    images = {
        camera.name: iter([picture(number + step, camera.width) for step in range(STEPS + 1)])
        for camera in embodiment.cameras
    }
    actors = np.full(STEPS, int(summary.actor))
    return make_episode(folder, embodiment, summary, state, actions, actors, images)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    record(folder, 0)
    record(folder, 1)
    record(folder, 2, outcome=Outcome.FAILURE, end_reason=EndReason.MAX_STEPS)
    record(folder, 3, outcome=Outcome.FAILURE, end_reason=EndReason.FAULT)
    return folder


@pytest.fixture(scope="module")
def exported(recorded, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "dataset"
    count, left_out = export_lerobot(list_episodes(recorded), out, failures=True)
    assert (count, left_out) == (3, {"ended by a fault": 1})
    return out


@pytest.fixture
def copied(exported, tmp_path):
    """A data set to be changed."""
    shutil.copytree(exported, tmp_path / "copied")
    return tmp_path / "copied"


def brought_back(source, out, **options):
    return import_lerobot(source, out, ImportOptions(**options), np.random.default_rng(1))


def made_foreign(dataset, **changes):
    """Takes out of a data set what only EFM writes."""
    (dataset / "meta/efm.json").unlink()
    file = dataset / "meta/info.json"
    info = json.loads(file.read_text())
    for feature in info["features"].values():
        if feature["dtype"] != "video":
            feature.pop("info", None)
    for name, value in changes.items():
        info["features"][name] = {**info["features"].get(name, {}), **value} if value else None
    info["features"] = {name: value for name, value in info["features"].items() if value}
    file.write_text(json.dumps(info))


def test_a_data_set_has_the_files_and_columns_of_the_format(exported):
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/efm.json",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.top/chunk-000/file-000.mp4",
    }
    info = json.loads((exported / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "table")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 3 * STEPS, 2)
    assert {name: (f["dtype"], f["shape"]) for name, f in info["features"].items()} == FEATURES
    assert info["features"]["action"]["info"]["units"] == ["m", "m"]
    data = pq.read_table(exported / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == {name for name, (dtype, _) in FEATURES.items() if dtype != "video"}
    assert data.column("index").to_pylist() == list(range(3 * STEPS))
    assert data.column("frame_index").to_pylist() == 3 * list(range(STEPS))
    assert data.column("task_index").to_pylist() == [0] * STEPS + [1] * STEPS + [0] * STEPS
    assert data.column("next.success").to_pylist() == ([False] * (STEPS - 1) + [True]) * 2 + [False] * STEPS
    assert np.allclose(data.column("timestamp").to_numpy()[:STEPS], np.arange(STEPS) / 10)
    rows = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet")
    assert set(rows.column_names) >= EPISODE_COLUMNS
    assert rows.column("dataset_to_index").to_pylist() == [STEPS, 2 * STEPS, 3 * STEPS]
    tasks = pq.read_table(exported / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_the_statistics_are_those_of_all_frames(exported):
    stats = json.loads((exported / "meta/stats.json").read_text())
    data = pq.read_table(exported / "data/chunk-000/file-000.parquet")
    actions = np.array(data.column("action").to_pylist())
    assert np.allclose(stats["action"]["mean"], actions.mean(axis=0))
    assert np.allclose(stats["action"]["std"], actions.std(axis=0))
    assert np.allclose(stats["action"]["max"], actions.max(axis=0))
    assert stats["action"]["count"] == [3 * STEPS]
    images = stats["observation.images.top"]
    assert np.shape(images["mean"]) == (3, 1, 1) and np.allclose(images["mean"][0], 95 / 255, atol=1e-6)


def test_frames_stand_in_the_video_where_the_format_says(exported):
    rows = pq.read_table(exported / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    starts = [row["videos/observation.images.top/from_timestamp"] for row in rows]
    with av.open(str(exported / "videos/observation.images.top/chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        frames = {round(float(f.pts * stream.time_base), 3): f for f in container.decode(stream)}
    for number, start in enumerate(starts):
        for step in range(STEPS):
            found = frames[round(start + step / 10, 3)].to_ndarray(format="rgb24").astype(int)
            assert np.abs(found - picture(number + step)).mean() < 3, "the picture of another frame"


def test_an_episode_comes_back_with_every_number_and_its_last_observation(recorded, exported, tmp_path):
    assert brought_back(exported, tmp_path / "back") == 3
    unjudged = {"steps_to_go_first": 0.0, "steps_to_go_last": 0.0}  # NaN is not equal to itself.
    for name in ("e0", "e1", "e2"):
        before, after = read_episode(recorded / name), read_episode(tmp_path / "back" / name)
        assert check_episode(after.path) == []
        assert np.array_equal(before.state, after.state)
        assert np.array_equal(before.actions, after.actions, equal_nan=True)
        assert np.array_equal(before.stamps, after.stamps) and np.array_equal(before.actors, after.actors)
        assert np.abs(before.images["top"].astype(int) - after.images["top"]).mean() < 3
        assert replace(after.summary, message="", **unjudged) == replace(before.summary, **unjudged)
        assert "imported from the LeRobot data set 'dataset'" in after.summary.message


def test_an_imported_episode_has_the_topics_of_a_recorded_one(exported, tmp_path):
    brought_back(exported, tmp_path / "back")
    file = read_episode_file(tmp_path / "back/e0")
    assert {name: topic.type_name for name, topic in file.topics.items()} == {
        "camera/top/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
        "joint_states": "sensor_msgs/msg/JointState",
        TABLE.action.topic: "std_msgs/msg/Float64MultiArray",
        "policy_step": "efm_msgs/msg/PolicyStep",
        "instruction": "efm_msgs/msg/Instruction",
        "episode_summary": "efm_msgs/msg/EpisodeSummary",
    }
    # Whoever only knows the command topic, as for a robot that something else commanded, finds the same.
    steps = file.topics.pop("policy_step")
    commands = align(file, EpisodeInputs(file)).steps
    assert len(commands) == len(steps.messages) == STEPS
    episode = read_episode(tmp_path / "back/e0")
    assert np.array_equal([step.action for step in commands], episode.actions[:-1])


def test_failed_attempts_are_left_out_unless_they_are_asked_for(recorded, tmp_path):
    count, left_out = export_lerobot(list_episodes(recorded), tmp_path / "dataset")
    assert count == 2
    assert left_out == {"ended by a fault": 1, "failed attempts (--failures takes them)": 1}


def test_files_roll_over_at_their_size(recorded, tmp_path):
    out = tmp_path / "dataset"
    export_lerobot(list_episodes(recorded)[:2], out, file_mb=(0.001, 0.001))
    assert (out / "data/chunk-000/file-001.parquet").is_file()
    assert (out / "videos/observation.images.top/chunk-000/file-001.mp4").is_file()
    assert not (out / "data/chunk-000/file-002.parquet").exists()
    assert brought_back(out, tmp_path / "back") == 2
    before, after = read_episode(recorded / "e1"), read_episode(tmp_path / "back/e1")
    assert np.array_equal(before.actions, after.actions, equal_nan=True)
    assert np.abs(before.images["top"].astype(int) - after.images["top"]).mean() < 3


def test_a_data_set_of_others_becomes_episodes_without_its_last_command(exported, copied, tmp_path):
    made_foreign(copied)
    assert brought_back(copied, tmp_path / "back", embodiment=TABLE) == 3
    episode = read_episode(list_episodes(tmp_path / "back")[0])
    actions = np.array(
        pq.read_table(exported / "data/chunk-000/file-000.parquet").column("action").to_pylist()
    )
    assert check_episode(episode.path) == []
    assert len(episode) == STEPS and episode.summary.actor is Actor.EXTERNAL
    outcomes = [read_episode(path).summary.outcome for path in list_episodes(tmp_path / "back")]
    assert outcomes.count(Outcome.SUCCESS) == 2, outcomes
    starts = [actions[number * STEPS].astype(np.float32) for number in range(3)]
    assert any(np.array_equal(episode.actions[0], start) for start in starts)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {}, "name one with --embodiment"),
        ({"next.success": None}, {"embodiment": TABLE}, "--outcome success"),
        ({"action": {"names": ["dx", "effector_dy"]}}, {"embodiment": TABLE}, "expected 'effector_dx'"),
        ({"observation.images.top": None}, {"embodiment": TABLE}, "expected camera 'top', found none"),
        ({"observation.images.top": {"dtype": "image"}}, {"embodiment": TABLE}, "expected a video"),
        ({"action": {"info": {"units": ["m", "rad"]}}}, {"embodiment": TABLE}, "in m, found rad"),
    ],
)
def test_what_a_data_set_of_others_leaves_open_is_asked_for(copied, tmp_path, changes, options, words):
    made_foreign(copied, **changes)
    with pytest.raises(BadRequest, match=words):
        brought_back(copied, tmp_path / "back", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["copied"], "nothing half is left"


def test_angles_are_converted_only_when_somebody_says_in_what_unit_they_are(copied, tmp_path):
    plain = TABLE.to_dict()
    for item in (*plain["state"]["entries"], *plain["action"]["dimensions"]):
        item["unit"] = "rad"
    turning = Embodiment.from_dict(plain)
    made_foreign(copied)
    with pytest.raises(BadRequest, match="--angles"):
        brought_back(copied, tmp_path / "a", embodiment=turning)
    brought_back(copied, tmp_path / "b", embodiment=turning, angles="degrees")
    brought_back(copied, tmp_path / "c", embodiment=turning, angles="radians")
    degrees, radians = (
        np.sort(
            np.concatenate([read_episode(path).actions[:-1].reshape(-1) for path in list_episodes(folder)])
        )
        for folder in (tmp_path / "b", tmp_path / "c")
    )
    assert np.allclose(degrees, np.deg2rad(radians))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "meta/info.json").unlink(), "expected a LeRobot data set with meta/info.json"),
        (
            lambda root: (root / "meta/tasks.parquet").write_text("x"),
            "tasks.parquet: expected a Parquet file",
        ),
        (lambda root: next(root.rglob("*.mp4")).write_bytes(b"no video"), "expected a video"),
        (lambda root: next((root / "data").rglob("*.parquet")).unlink(), "expected a Parquet file"),
        (
            lambda root: (root / "meta/info.json").write_text('{"codebase_version": "v2.1"}'),
            "expected codebase_version v3.0, found v2.1",
        ),
    ],
)
def test_a_damaged_data_set_is_refused_and_nothing_is_left(copied, tmp_path, damage, words):
    damage(copied)
    with pytest.raises(BadRequest, match=words):
        brought_back(copied, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["copied"]


def test_a_disk_that_fills_up_while_exporting_leaves_nothing(recorded, tmp_path, monkeypatch):
    def full(path, tasks):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write_tasks", full)
    with pytest.raises(SpoolFull, match="the data set cannot be written"):
        export_lerobot(list_episodes(recorded), tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == []


def test_images_with_an_odd_size_can_be_exported(tmp_path):
    camera = replace(TABLE.cameras[0], width=131, height=131)
    odd = replace(TABLE, cameras=(camera,))
    record(tmp_path / "recorded", 0, odd)
    export_lerobot(list_episodes(tmp_path / "recorded"), tmp_path / "dataset")
    brought_back(tmp_path / "dataset", tmp_path / "back")
    assert check_episode(tmp_path / "back/e0") == []


def test_nothing_is_said_of_video_where_there_is_no_camera(tmp_path, capsys):
    record(tmp_path / "recorded", 0, load_embodiment("pointmass"))
    out = tmp_path / "dataset"
    command = ["export", "--to", "lerobot", str(tmp_path / "recorded"), "--out", str(out)]
    assert episodes_command.main(command) == 0
    said = capsys.readouterr().out
    assert "lost: stamps" in said and "lost: images" not in said
    assert all(
        "stamps" in text or "topics" in text
        for text in json.loads((out / "meta/efm.json").read_text())["lost"]
    )


def test_an_episode_that_cannot_be_exported_is_named(tmp_path, caplog):
    record(tmp_path / "recorded", 0)
    file = tmp_path / "recorded/e1/e1.mcap"
    record(tmp_path / "recorded", 1)
    file.write_bytes(file.read_bytes()[:-100])
    assert export_lerobot(list_episodes(tmp_path / "recorded"), tmp_path / "dataset") == (
        1, {"unreadable": 1}
    )  # fmt: skip
    assert f"{file}: ends after" in caplog.text


def test_the_commands_say_what_was_left_out_and_lost(recorded, tmp_path, capsys):
    out = tmp_path / "dataset"
    assert episodes_command.main(["export", "--to", "lerobot", str(recorded), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 episodes exported" in said and "left out: 1 ended by a fault" in said and "lost: images" in said
    back = ["import", "--from", "lerobot", str(out), "--out", str(tmp_path / "back")]
    assert episodes_command.main(back) == 0
    assert "2 episodes imported" in capsys.readouterr().out
    assert episodes_command.main(["check", str(tmp_path / "back")]) == 0
    with pytest.raises(BadRequest, match="does not exist yet"):
        episodes_command.main(back)
    assert Path(out).is_dir()
