"""A file is written whole and durably, or the old one stays and nothing else is left."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from g2d.core import files
from g2d.core.files import write_bytes
from g2d.errors import G2DError


def test_a_file_is_on_the_medium_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    path, steps = tmp_path / "kept.json", []
    path.write_bytes(b"old")
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append("rename")
        assert path.read_bytes() == b"old"
        rename(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "rename", renamed)
    write_bytes(path, b"new")
    assert steps == ["file", "rename", "folder"]
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_whatever_stops_a_write_leaves_the_old_file_alone(tmp_path, monkeypatch, call, raised):
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")

    def stop(*_: object) -> None:
        raise raised

    monkeypatch.setattr(files.os, call, stop)
    kind = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else G2DError
    with pytest.raises(kind):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(G2DError, match=r"nowhere.*No such file"):
        write_bytes(tmp_path / "nowhere" / "x", b"")


def stop_folder(monkeypatch, code: int) -> None:
    """A folder cannot be put onto the medium; files can."""
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", synced)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_does_not_undo_what_is_written(tmp_path, monkeypatch, code):
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    stop_folder(monkeypatch, code)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=os.strerror(code)):  # what a vault is written with
        files.replace_file(path, b"newer", tmp_path / "staged")


def test_a_folder_that_cannot_be_opened_is_written_all_the_same(tmp_path, monkeypatch):
    opened = os.open

    def denied(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(files.os, "open", denied)
    write_bytes(tmp_path / "kept.json", b"new")
    assert (tmp_path / "kept.json").read_bytes() == b"new"


def test_a_medium_that_fails_at_last_is_told_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    stop_folder(monkeypatch, errno.EIO)
    with pytest.raises(G2DError, match="is written, but a power cut may lose it"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
