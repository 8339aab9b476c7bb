"""Bags -> tables: which episodes count, the cache of decoded frames, and the split."""

import json
import subprocess
import sys
from pathlib import Path

import dots
import numpy as np
import pytest

from efm_core import lazy_images
from efm_core.episode import Actor, Mode, Outcome
from efm_core.errors import EmbodimentMismatch, EpisodeInvalid
from efm_learner.dataset import load_tables, split_episodes
from efm_learner.samples import Labelling, make_table

LABELLING = Labelling(rest_steps=dots.REST)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    for episode in dots.episodes(8, 2):
        dots.record(folder, episode)
    return folder


def load(folder, cache, share=0.0):
    return load_tables(folder, dots.embodiment(), LABELLING, validation_share=share, cache=cache)


def assert_same(one, other):
    rows = np.arange(len(one))
    assert len(one) == len(other) and one.episode_ids == other.episode_ids
    assert (one.frames["top"].take(rows) == other.frames["top"].take(rows)).all()
    assert (one.tokens == other.tokens).all() and (one.steps_to_go == other.steps_to_go).all()
    assert (one.state == other.state).all() and (one.imitate == other.imitate).all()


def test_bags_give_the_same_table_as_arrays_in_memory(recorded, tmp_path):
    wanted = make_table(dots.episodes(8, 2), dots.embodiment(), LABELLING)
    assert_same(load(recorded, tmp_path).training, wanted)


def test_the_second_reading_takes_the_frames_from_the_cache(recorded, tmp_path, monkeypatch):
    first = load(recorded, tmp_path).training

    def decode(data):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(lazy_images, "decode_compressed", decode)
    with pytest.raises(AssertionError, match="an image was decoded"):
        load(recorded, tmp_path / "another")
    assert_same(first, load(recorded, tmp_path).training)
    assert len(list(tmp_path.glob("*/pack_*"))) == 1


def test_new_episodes_are_added_without_decoding_the_old_ones_again(recorded, tmp_path):
    folder = tmp_path / "episodes"
    folder.mkdir()
    for episode in dots.episodes(3):
        dots.record(folder, episode)
    load(folder, tmp_path / "cache")
    dots.record(folder, dots.episode(3))
    table = load(folder, tmp_path / "cache").training
    packs = sorted((tmp_path / "cache").glob("*/pack_*/index.json"))
    assert sorted(len(json.loads(path.read_text())["episodes"]) for path in packs) == [1, 3]
    assert_same(table, make_table(dots.episodes(4), dots.embodiment(), LABELLING))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "index"])
def test_a_corrupt_cache_is_built_again(recorded, tmp_path, damage):
    load(recorded, tmp_path)
    pack = next(tmp_path.glob("*/pack_*"))
    frames = pack / "camera_0.u8"
    if damage == "flip":
        data = bytearray(frames.read_bytes())
        data[1000] ^= 1
        frames.write_bytes(data)
    elif damage == "truncate":
        frames.write_bytes(frames.read_bytes()[:-10])
    elif damage == "remove":
        frames.unlink()
    else:
        (pack / "index.json").write_text("{")
    wanted = make_table(dots.episodes(8, 2), dots.embodiment(), LABELLING)
    assert_same(load(recorded, tmp_path).training, wanted)


def test_two_processes_share_one_cache(recorded, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import dots; from pathlib import Path;"
        "from efm_learner.dataset import load_tables; from efm_learner.samples import Labelling;"
        "t = load_tables(Path(sys.argv[1]), dots.embodiment(), Labelling(), 0.0, cache=Path(sys.argv[2]));"
        "print(len(t.training), int(t.training.frames['top'].take(t.training.last).sum()))"
    )
    arguments = [sys.executable, "-c", code, str(recorded), str(tmp_path), str(Path(__file__).parent)]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=250)[0] for process in running]
    assert outputs[0] == outputs[1] and outputs[0].strip()
    packs = list(tmp_path.glob("*/pack_*"))
    assert sum(len(json.loads((p / "index.json").read_text())["episodes"]) for p in packs) == 10


def test_what_a_killed_decoding_left_half_written_is_removed(recorded, tmp_path):
    load(recorded, tmp_path)
    pack = next(tmp_path.glob("*/pack_*"))
    torn = pack.rename(pack.with_name(".pack_1.partial"))
    load(recorded, tmp_path)
    assert pack.is_dir() and not torn.exists()


def test_what_no_demonstrator_vouched_for_is_left_out_and_counted(tmp_path, caplog):
    dots.record(tmp_path, dots.episode(0))
    dots.record(tmp_path, dots.episode(1), outcome=Outcome.DISCARDED)
    dots.record(tmp_path, dots.episode(2), mode=Mode.PRACTICE)
    dots.record(tmp_path, dots.episode(3), mode=Mode.EVALUATE)
    broken = dots.record(tmp_path, dots.episode(4))
    file = next(broken.glob("*.mcap"))
    file.write_bytes(file.read_bytes()[:-200])
    (dots.record(tmp_path, dots.episode(5)) / "metadata.yaml").unlink()
    next(dots.record(tmp_path, dots.episode(6)).glob("*.mcap")).unlink()
    tables = load(tmp_path, None)
    assert tables.training.episode_ids == ["episode_000"]
    assert tables.skipped == {"outcome discarded": 1, "mode practice": 1, "mode evaluate": 1, "unreadable": 3}
    for words in ("episode_005: expected a file metadata.yaml", "expected a file episode_006.mcap"):
        assert words in caplog.text
    assert "1 left out: outcome discarded" in tables.description()


def test_steps_that_the_node_held_still_are_not_imitated(tmp_path):
    dots.record(tmp_path, dots.episode(0), actor=Actor.HUMAN)
    dots.record(tmp_path, dots.episode(1), actor=Actor.HOLD)
    table = load(tmp_path, None).training
    assert table.imitate[table.episode == 0].sum() == len(dots.episode(0)) - 1
    assert not table.imitate[table.episode == 1].any()


def test_episodes_of_another_embodiment_are_refused(recorded, tmp_path):
    with pytest.raises(EmbodimentMismatch, match="frames"):
        load_tables(recorded, dots.embodiment(frames=1), LABELLING, cache=tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(EpisodeInvalid, match="no episode at all"):
        load(tmp_path, None)


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path):
    with pytest.raises(EpisodeInvalid, match=r"missing: expected a folder .* found nothing"):
        load(tmp_path / "missing", None)
    assert not list(tmp_path.iterdir())


def test_the_split_is_by_episode_and_does_not_move_with_new_ones():
    training, held_out = split_episodes(dots.episodes(40, 20), 0.2, seed=0)
    assert (sum(e.success for e in held_out), sum(not e.success for e in held_out)) == (8, 4)
    assert not {e.id for e in training} & {e.id for e in held_out}
    again = {e.id for e in split_episodes(dots.episodes(40, 20), 0.2, seed=0)[1]}
    assert again == {e.id for e in held_out}
    assert again != {e.id for e in split_episodes(dots.episodes(40, 20), 0.2, seed=1)[1]}
