"""Files and folders that appear as a whole or not at all."""

import pytest

from efm_core.errors import BadRequest
from efm_core.files import made_whole, replace_file


def test_a_folder_appears_when_it_is_complete_without_what_a_killed_process_left(tmp_path):
    folder = tmp_path / "made"
    (tmp_path / ".made.partial/old").mkdir(parents=True)
    with made_whole(folder, "the data") as partial:
        (partial / "new").touch()
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_could_not_be_completed_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), made_whole(tmp_path / "made", "the data") as partial:
        (partial / "new").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused_and_kept(tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(BadRequest, match="does not exist yet"), made_whole(tmp_path / "made", "the data"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_second_maker_of_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    folder = tmp_path / "made"
    with made_whole(folder, "the data") as partial:
        (partial / "new").touch()
        with pytest.raises(BadRequest, match="another process is making it"), made_whole(folder, "the data"):
            pass
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_folder_that_is_taken_away_while_it_is_made_is_told(tmp_path):
    told = r"\.made\.partial: was removed or moved while the data was written into it"
    with pytest.raises(BadRequest, match=told), made_whole(tmp_path / "made", "the data") as partial:
        partial.rmdir()
        (partial / "new").touch()
    with pytest.raises(BadRequest, match=told), made_whole(tmp_path / "made", "the data") as partial:
        partial.rmdir()
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
