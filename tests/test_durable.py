from pathlib import Path

import pytest

from candid.durable import append_line, new_folder, remove_partial, write_file


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail_half_way(folder: Path) -> None:
    """Begin to fill a folder, then fail as a full disk would."""

    def fill() -> None:
        with new_folder(folder) as partial:
            (partial / "one").write_text("new")
            raise OSError("half-way")

    with pytest.raises(OSError, match="half-way"):
        fill()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    write_file(tmp_path / "a.txt", "old")
    (tmp_path / "a.txt.d").mkdir()
    with pytest.raises(TypeError):
        write_file(tmp_path / "a.txt", 5)  # pyright: ignore[reportArgumentType]
    assert everything(tmp_path) == {"a.txt": "old"}


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path):
    fail_half_way(tmp_path / "a")
    assert everything(tmp_path) == {}
    with new_folder(tmp_path / "a") as partial:
        (partial / "one").write_text("1")
        assert not (tmp_path / "a").exists()
    assert everything(tmp_path) == {"a/one": "1"}


def test_a_failed_replacement_keeps_the_old_folder(tmp_path: Path):
    with new_folder(tmp_path / "a") as partial:
        (partial / "one").write_text("old")
    fail_half_way(tmp_path / "a")
    assert everything(tmp_path) == {"a/one": "old"}
    with new_folder(tmp_path / "a") as partial:
        (partial / "two").write_text("new")
    assert everything(tmp_path) == {"a/two": "new"}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path):
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "x").write_text("")
    (tmp_path / ".b.txt.partial").write_text("")
    (tmp_path / "c.partial.txt").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    remove_partial(tmp_path)
    assert everything(tmp_path) == {"c.partial.txt": "mine", ".hidden": "mine"}


def test_lines_are_added(tmp_path: Path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
