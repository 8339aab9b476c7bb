"""Episodes: what was recorded comes back as aligned arrays, in our reader and in those of others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import recorded
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader

from efm_core.episode import (
    Actor,
    EpisodeWriter,
    Mode,
    Summary,
    check_episode,
    history_stack,
    list_episodes,
    read_episode,
    read_summary,
)
from efm_core.schemas import serialize


def test_an_episode_is_read_back_row_by_row(tmp_path: Path) -> None:
    episode = read_episode(recorded.record(tmp_path))
    assert len(episode) == episode.length == 11
    assert episode.id == "ep"
    assert episode.embodiment == recorded.embodiment()
    assert episode.instruction == "push the red block"
    assert episode.stamps.tolist() == [recorded.stamp(step) for step in range(11)]
    steps = np.arange(10, dtype=np.float32)
    actions = np.stack([0.01 * steps, np.full(10, -0.5)], axis=1)
    assert episode.state is not None
    np.testing.assert_allclose(episode.state[:, 0], 0.1 * np.arange(11), rtol=1e-6)
    np.testing.assert_allclose(episode.state[:, 1], -0.1 * np.arange(11), rtol=1e-6)
    np.testing.assert_allclose(episode.actions[:10], actions, rtol=1e-6)
    assert np.isnan(episode.actions[10]).all()
    assert episode.tokens.tolist() == [[step, 10] for step in range(10)] + [[-1, -1]]
    np.testing.assert_allclose(episode.log_probs[:10], -0.25 * steps)
    assert np.isnan(episode.log_probs[10])
    assert episode.actors.tolist() == [Actor.POLICY] * 10 + [Actor.UNSET]
    np.testing.assert_allclose(episode.steps_to_go, [100.0 - step for step in range(9)] + [math.nan] * 2)
    assert episode.policy_bundle_ids == ("0123456789abcdef",)
    assert episode.reward_bundle_ids == ("fedcba9876543210",)
    assert episode.notes == ()


def test_images_are_those_of_their_rows(tmp_path: Path) -> None:
    episode = read_episode(recorded.record(tmp_path))
    images = episode.images["top"]
    assert images.shape == (11, 24, 32, 3)
    for row in range(11):
        np.testing.assert_array_equal(images[row], recorded.picture(row))
    np.testing.assert_array_equal(episode.images.rows("top", np.array([3, 0, 3])), images[[3, 0, 3]])
    assert episode.images["top"] is images


def test_the_summary_is_read_alone_and_as_it_was_written(tmp_path: Path) -> None:
    folder = recorded.record(tmp_path, robot="robot_1", message="fine", steps_to_go_first=3.5)
    found = read_summary(folder)
    assert found == read_episode(folder).summary or math.isnan(found.steps_to_go_last)
    assert found.embodiment_digest == recorded.embodiment().digest
    assert (found.robot, found.message, found.steps_to_go_first) == ("robot_1", "fine", 3.5)
    assert (found.mode, found.seed, found.start_ns) == (Mode.PRACTICE, 7, recorded.stamp(0))


def test_a_good_episode_has_no_problems(tmp_path: Path) -> None:
    assert check_episode(recorded.record(tmp_path)) == []


def test_the_bag_opens_with_the_reader_of_rosbags(tmp_path: Path) -> None:
    folder = recorded.record(tmp_path)
    with Reader(folder) as reader:
        topics = {connection.topic: connection.msgcount for connection in reader.connections}
        assert topics["camera/top/image_raw/compressed"] == 11
        assert list(topics)[-1] == "episode_summary"
        assert reader.message_count == 11 * 2 + 10 * 2 + 9 + 1
        assert all(connection.digest.startswith("RIHS01_") for connection in reader.connections)
        assert [connection.topic for connection, _, _ in reader.messages()][-1] == "episode_summary"
    with AnyReader([folder]) as reader:  # Knows efm_msgs only from the bag itself.
        connection = next(item for item in reader.connections if item.topic == "episode_summary")
        (raw,) = [data for _, _, data in reader.messages([connection])]
        assert reader.deserialize(raw, connection.msgtype).instruction == "push the red block"


def test_what_late_joiners_must_hear_is_played_back_so(tmp_path: Path) -> None:
    with Reader(recorded.record(tmp_path)) as reader:
        offered = {
            c.topic: [qos.durability.name for qos in c.ext.offered_qos_profiles] for c in reader.connections
        }
    assert offered["episode_summary"] == ["TRANSIENT_LOCAL"]
    assert offered["policy_step"] == [], "the player's default"


def test_the_bag_opens_with_the_mcap_tools(tmp_path: Path) -> None:
    folder = recorded.record(tmp_path)
    with (folder / "ep.mcap").open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True, decoder_factories=[DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        decoded = {channel.topic: message for _, channel, _, message in reader.iter_decoded_messages()}
        (metadata,) = reader.iter_metadata()
    assert decoded["episode_summary"].steps == 10
    assert decoded["policy_step"].tokens == [9, 10]
    assert bytes(decoded["camera/top/image_raw/compressed"].data[:4]) == b"\x89PNG"
    assert "efm.embodiment" in metadata.metadata["serialized_metadata"]


def test_every_chunk_carries_a_checksum(tmp_path: Path) -> None:
    folder = recorded.record(tmp_path)
    with (folder / "ep.mcap").open("rb") as stream:
        records = list(StreamReader(stream, emit_chunks=True).records)
    chunks = [record for record in records if isinstance(record, Chunk)]
    assert chunks and all(chunk.uncompressed_crc for chunk in chunks)


def test_a_summary_message_of_ros_and_a_mapping_are_taken_too(tmp_path: Path) -> None:
    value = recorded.summary("ep", 0)
    for number, source in enumerate((value.to_message(), {"episode_id": "", "start_ns": 1, "stamp_ns": 2})):
        found = Summary.of(source)
        assert found.start_ns == (recorded.stamp(0), 1)[number]
        assert serialize(found.to_message())


def test_episodes_are_listed_by_age_and_only_whole_ones(tmp_path: Path) -> None:
    for name in ("20260102T000000Z-00000000", "20260101T000000Z-ffffffff"):
        recorded.record(tmp_path, name, steps=2)
    EpisodeWriter(tmp_path, "20260103T000000Z-00000000", recorded.embodiment())
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert [path.name[:8] for path in list_episodes(tmp_path)] == ["20260101", "20260102"]
    assert list_episodes(tmp_path / "none") == []


def test_frame_history_repeats_the_first_row() -> None:
    assert history_stack(4, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert history_stack(2, 1).tolist() == [[0], [1]]


def test_an_aborted_episode_leaves_nothing(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, "ep", recorded.embodiment())
    recorded.write_observation(writer, 0)
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Exception, match="closed"):
        recorded.write_observation(writer, 1)
