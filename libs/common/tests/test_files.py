import stat

import pytest

from vitascope_common.files import atomic_write, atomic_writer, make_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced_with_its_folders(tmp_path):
    path = tmp_path / "a/b/file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]
    assert stat.S_ISREG(path.stat().st_mode)


def test_nothing_is_visible_before_the_end(tmp_path):
    with atomic_writer(tmp_path / "file") as file:
        file.write(b"half")
        file.flush()
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, error):
    atomic_write(tmp_path / "file", b"old")

    def fail():
        with atomic_writer(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_exclusive_keeps_what_is_there(tmp_path):
    atomic_write(tmp_path / "file", b"old")
    with pytest.raises(FileExistsError), atomic_writer(tmp_path / "file", exclusive=True) as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_removed_meanwhile_is_made_again(tmp_path, durable):
    path = tmp_path / "folder/file"
    with atomic_writer(path, temp_folder=tmp_path / "temp", exclusive=True, durable=durable) as file:
        make_folder(path.parent)
        path.parent.rmdir()
        file.write(b"data")
    assert path.read_bytes() == b"data"
    assert names(tmp_path / "temp") == []


def test_a_lost_temporary_file_is_an_error_and_not_a_loop(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "file"):
        (tmp_path / names(tmp_path)[0]).unlink()
