"""Decoded pictures are kept in a bounded cache that is never trusted more than its source."""

import os

import pytest
import torch

from g2d.tasks import decoded


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "_LEAST", 1)
    path = tmp_path / "source"
    path.write_bytes(b"packed")
    return path


class Maker:
    def __init__(self, size=4):
        self.calls, self.size = 0, size

    def __call__(self):
        self.calls += 1
        return {"x": torch.arange(self.size, dtype=torch.uint8), "y": torch.tensor([3])}


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "decoded").iterdir())


def test_it_is_made_once_for_a_source_and_a_reader(source, tmp_path):
    make = Maker()
    first, again = (decoded.remembered(source, "one", make) for _ in range(2))
    assert make.calls == 1
    assert torch.equal(first["x"], again["x"])
    assert again["y"].tolist() == [3]
    assert (tmp_path / "cache" / "decoded").stat().st_mode & 0o777 == 0o700
    decoded.remembered(source, "another version", make)
    source.write_bytes(b"changed")
    decoded.remembered(source, "one", make)
    assert make.calls == 3


@pytest.mark.parametrize("spoil", ["garbage", "link", "folder open to others", "off"])
def test_what_is_not_ours_or_broken_is_made_again(source, tmp_path, spoil, monkeypatch):
    make = Maker()
    decoded.remembered(source, "one", make)
    (file,) = kept(tmp_path)
    if spoil == "garbage":
        file.write_bytes(b"\x80\x04 a pickle?")
    elif spoil == "link":
        file.rename(tmp_path / "aside")
        file.symlink_to(tmp_path / "aside")
    elif spoil == "off":
        monkeypatch.setenv("G2D_CACHE", "")
    else:
        file.parent.chmod(0o777)
    assert decoded.remembered(source, "one", make)["x"].tolist() == [0, 1, 2, 3]
    assert make.calls == 2


def test_it_is_bounded(source, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "_MOST", 700)
    make = Maker(300)
    decoded.remembered(source, "first", make)
    left = kept(tmp_path)[0].with_name(".killed.half")
    left.write_bytes(bytes(300))
    os.utime(left, (0, 0))
    for index in range(4):
        decoded.remembered(source, str(index), make)
    assert len(kept(tmp_path)) == 1
    decoded.remembered(source, "too large", Maker(800))
    assert len(kept(tmp_path)) == 1


def test_a_user_without_a_home_has_no_cache(source, monkeypatch):
    """As in a container that runs under a number which no passwd file knows."""

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("G2D_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    make = Maker()
    for _ in range(2):
        assert decoded.remembered(source, "one", make)["y"].tolist() == [3]
    assert make.calls == 2
    monkeypatch.setenv("G2D_CACHE", "")
    assert decoded.remembered(source, "one", make)["y"].tolist() == [3]
