"""One door: the same call, whichever way is asked; the plain way over stand-ins."""

from __future__ import annotations

import json

import numpy as np
import pytest

from commands import fail, succeed
from g2d.errors import DataError, KeyFileError, SettingsError
from g2d.service.client import WAYS, connect
from g2d.service.client.keyfile import Note, default_file, note_file
from sockets import serving

X = np.full((2, 1, 2, 2), 0.5, np.float32)


@pytest.fixture(scope="module")
def service():
    with serving(patience=60.0) as running:
        host, port = running.bound.getsockname()
        yield f"http://{host}:{port}"


def test_the_plain_way_answers(service):
    client = connect(service)
    answer = client.infer(X)
    assert client.describe().shape == (1, 2, 2)
    assert answer.number == 1
    assert np.array_equal(answer.values, np.ones((2, 3)))
    with pytest.raises(DataError, match=r"expected \[n, 1, 2, 2\]"):
        client.infer(X[:, :, :1])


def test_a_way_that_there_is_not_is_refused():
    assert set(WAYS) >= {"plain", "encrypted"}
    with pytest.raises(SettingsError, match="Did you mean 'encrypted'"):
        connect("http://x", "encripted")


def test_the_command_prints_classes_and_keeps_scores(service, tmp_path):
    np.save(tmp_path / "x.npy", X)
    said = succeed(
        "client", "infer", service, tmp_path / "x.npy", "--out", tmp_path / "s.npy"
    ).output
    assert "answered by generation 1" in said
    assert np.array_equal(np.load(tmp_path / "s.npy"), np.ones((2, 3)))


def test_what_is_wrong_is_one_line(service, tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, X)
    nobody = "http://127.0.0.1:9"
    assert "does not answer" in fail("client", "infer", nobody, file)
    assert "does not answer" in fail("client", "encrypted", "keys", nobody)
    for words in (("encrypted", "infer"), ("infer", "--way", "encrypted"), ("encrypted", "keys")):
        files = [] if words[-1] == "keys" else [file]
        said = fail("client", *words, service, *files)
        assert "not started with --encrypted" in said
    assert "no way 'x'" in fail("client", "infer", "--way", "x", service, file)
    assert "cannot read" in fail("client", "infer", service, tmp_path / "absent.npy")


def test_a_note_comes_back_and_what_is_none_is_refused(tmp_path):
    file = tmp_path / "my.keys"
    assert Note.read(file) is None
    file.write_bytes(b"secret")
    with pytest.raises(KeyFileError, match=r"has no my\.keys\.json beside it"):
        Note.read(file)
    note = Note("d" * 64, "http://x", "0" * 32)
    note.write(file)
    assert Note.read(file) == note
    assert note_file(file).stat().st_mode & 0o777 == 0o600
    for text in ("", "[]", '{"plan": 1, "url": "x"}', json.dumps({"plan": "d"})):
        note_file(file).write_text(text)
        with pytest.raises(KeyFileError, match="is not what `g2d client` wrote"):
            Note.read(file)


def test_keys_lie_by_service_model_and_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path))
    one = default_file("http://x/", "g2d", "d" * 64)
    assert one == default_file("http://x", "g2d", "d" * 64)
    others = [("http://y", "g2d", "d"), ("http://x", "m", "d"), ("http://x", "g2d", "e")]
    assert len({one, *(default_file(*other) for other in others)}) == 4


def test_both_commands_of_the_encrypted_way_have_the_same_options():
    from typer.main import get_command

    from g2d.cli.client import app

    group = get_command(app)
    one, other = group.commands["infer"], group.commands["encrypted"].commands["infer"]

    def said(command):
        options = [p for p in command.params if p.name != "help"]
        return {p.name: (p.opts, getattr(p, "help", ""), p.required, p.nargs) for p in options}

    assert said(one).keys() - said(other).keys() == {"way"}
    assert said(other).items() <= said(one).items()
    assert said(other).keys() >= {"url", "files", "keys", "bounds", "out", "model", "ca"}


def test_bounds_are_for_the_way_that_checks_them():
    assert connect("http://x", "encrypted", bounds=(-1.0, 1.0))
    with pytest.raises(SettingsError, match="bounds"):
        connect("http://x", bounds=(-1.0, 1.0))


def test_what_several_generations_answered_is_said_input_by_input(tmp_path, monkeypatch):
    from g2d.protect.asking import Answer, Described

    tags = ("t0123456789abcdef", "tfedcba9876543210")

    class Mixing:
        each = (4, 4, 5)

        def __init__(self, *_, **__):
            pass

        def describe(self):
            return Described("x", (1, 2, 2), "FP32", classes=10**15)  # names of none are made

        def infer(self, x, progress):
            numbers = [n for n in self.each if isinstance(n, int)]
            return Answer(np.eye(3), (numbers or [None])[0], tuple(numbers[1:]), self.each)

    monkeypatch.setattr("g2d.service.client.encrypted.EncryptedClient", Mixing)
    monkeypatch.setitem(WAYS, "encrypted", Mixing)
    np.save(tmp_path / "x.npy", np.concatenate((X, X[:1])))
    for words in (("infer", "--way", "encrypted"), ("encrypted", "infer")):
        ask = ("client", *words, "http://x", tmp_path / "x.npy")
        Mixing.each = (4, 4, 5)
        said = " ".join(succeed(*ask).output.split())
        assert "answered by several generations: 4 (2 inputs), 5 (1 input)" in said
        assert "generation" in said.split("0.5")[0]  # a column
        Mixing.each = (tags[0], tags[1], tags[0])
        said = " ".join(succeed(*ask).output.split())
        assert f"several generations: {tags[0]} (2 inputs), {tags[1]} (1 input)" in said
        Mixing.each = (tags[0],) * 3
        assert f"answered by generation {tags[0]}" in " ".join(succeed(*ask).output.split())
        Mixing.each = (None,) * 3
        said = " ".join(succeed(*ask).output.split())
        assert "does not say which generation" in said
