"""Atomic writes: whole or as before, and durable in the right order."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peg_rag.files import open_atomically, sync_file, sync_folder, sync_tree, write_atomically


def refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and folders that were synced, in order."""
    paths: list[Path] = []
    fsync: Callable[[int], None] = os.fsync

    def record_and_sync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_and_sync)
    return paths


def test_a_write_creates_folders_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    for content in (b"first", b"second"):
        write_atomically(file, content)
        assert file.read_bytes() == content
        assert list_names(file.parent) == ["file"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_changes_nothing(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    monkeypatch.setattr(failing, refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert list_names(tmp_path) == ["file"]


def test_an_error_within_the_block_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")

    def write_half() -> None:
        with open_atomically(file) as stream:
            stream.write(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert file.read_bytes() == b"before"
    assert list_names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_content_is_synced_before_the_rename(
    synced: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def check_and_rename(self: Path, target: Path) -> Path:
        assert synced == [self]
        assert self.read_bytes() == b"content"
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", check_and_rename)
    write_atomically(tmp_path / "file", b"content")
    assert len(synced) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_tree_is_synced_with_all_names(synced: list[Path], tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for file in (tmp_path / "a", tmp_path / "inner" / "b"):
        file.write_bytes(b"x")
    sync_tree(tmp_path)
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "inner", tmp_path / "inner" / "b"]
    assert synced[-1] == tmp_path


def test_a_file_that_cannot_be_synced_raises_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems cannot sync a folder; a file that is not on the disk is an error everywhere."""
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)
    with pytest.raises(OSError, match="No space"):
        sync_file(tmp_path / "file")
    with pytest.raises(OSError, match="No space"):
        sync_tree(tmp_path)
