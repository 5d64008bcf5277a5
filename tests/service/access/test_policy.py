"""The access file: entries, patterns and quotas; files that change under the service."""

from __future__ import annotations

import os

import pytest

from g2d.errors import SettingsError
from g2d.service.access.files import Watched, read
from g2d.service.access.policy import Quota, read_policy

FILE = """
[default]
queries = 100
connections = 4

[[allow]]
identity = "spiffe://example.org/ns/prod/*"
roles = ["infer"]
queries = 1000.0
bytes = 5_000_000

[[allow]]
identity = "spiffe://example.org/*"
roles = ["observe"]

[[allow]]
identity = "jwt:ann"
roles = ["operate", "infer"]
"""


def policy(text: str):
    return read_policy(text.encode(), "--access a.toml", Quota(queries=7.0, burst=9.0))


def test_the_first_entry_that_fits_counts_and_the_default_fills_it():
    found = policy(FILE)
    prod = found.entry("spiffe://example.org/ns/prod/sa/client")
    assert (prod.roles, prod.queries, prod.bytes, prod.burst, prod.connections) == (
        ("infer",), 1000.0, 5e6, 9.0, 4
    )  # fmt: skip
    assert found.entry("spiffe://example.org/ns/test/x").roles == ("observe",)
    assert found.entry("jwt:ann").roles == ("operate", "infer")
    assert found.quota("jwt:bob") == Quota(queries=100.0, burst=9.0, connections=4)
    assert policy("").quota("jwt:bob") == Quota(queries=7.0, burst=9.0)


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://example.org", "spiffe://example.organism/ns/prod/x", "spiffe://other.org/ns/prod/x",
        "jwt:anna", "jwt:an", "cn:jwt:ann", "dns:spiffe://example.org/ns/prod/x", "", "operator",
    ],
)  # fmt: skip
def test_names_that_merely_begin_alike_fit_no_entry(name):
    assert policy(FILE).entry(name) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[allow]", "is not TOML"),
        (
            "[[alow]]\nidentity = 'x'",
            "unknown key 'alow', expected [default] and [[allow]]. Did you",
        ),
        ("[allow]\nidentity = 'x'", "write [[allow]]"),
        ("default = 3", "write [default]"),
        ("[default]\nquerys = 3", "[default]: unknown key 'querys'. Did you mean 'queries'?"),
        ("[default]\nqueries = -1", "queries must lie in [0, 1e+09]"),
        ("[default]\nroles = ['infer']", "[default]: unknown key 'roles'"),
        ("[[allow]]\nroles = ['infer']", "[[allow]] 1: identity is ''"),
        ("[[allow]]\nidentity = '*'\nroles = []", "expected one that begins with spiffe://"),
        ("[[allow]]\nidentity = 'jwt:'\nroles = []", "expected one that begins with"),
        ("[[allow]]\nidentity = 'spiffe://*'", "names no trust domain"),
        ("[[allow]]\nidentity = 'spiffe://example.org*'", "* may only follow a / or :"),
        ("[[allow]]\nidentity = 'spiffe://*/ns/x'", "* may only follow a / or :"),
        (
            "[[allow]]\nidentity = 'jwt:a'\nroles = ['admin']",
            "there is no role 'admin', only infer",
        ),
        ("[[allow]]\nidentity = 'jwt:a'\nroles = 'infer'", "roles must be a list"),
        ("[[allow]]\nidentity = 'jwt:a'\n[[allow]]\nidentity = 'jwt:a'", "2: 'jwt:a' has an entry"),
        ("\x00", "is not TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_in_one_line(text, said):
    with pytest.raises(SettingsError) as refused:
        policy(text)
    assert said in str(refused.value)
    assert str(refused.value).startswith("--access a.toml")
    assert "\n" not in str(refused.value)


# --- files that change ---------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path):
    """Two files whose texts must be alike; what is made is the text."""
    files = {"--one": str(tmp_path / "one"), "--two": str(tmp_path / "two")}
    for file in files.values():
        (tmp_path / file).write_text("a")

    def make(contents):
        if contents["--one"] != contents["--two"]:
            raise SettingsError("they differ")
        return contents["--one"]

    return Watched(files, make), tmp_path


def test_files_are_read_again_when_they_change(watched):
    files, folder = watched
    assert files.look() == ()
    (folder / "one").write_text("b")
    assert files.look() == ()
    assert files.value == b"a"  # only half of it is there
    (folder / "two").write_text("b")
    assert files.look() == ("--one", "--two")
    assert files.value == b"b"
    assert files.look() == ()


def test_a_wrong_file_is_told_once_and_the_old_one_stays(watched):
    files, folder = watched
    for wrong, said in ((lambda: (folder / "one").write_text("b"), "they differ"),
                        ((folder / "two").unlink, "cannot read --two")):  # fmt: skip
        wrong()
        assert files.look() == ()
        with pytest.raises(SettingsError, match=said):
            files.look()
        assert files.look() == files.look() == ()
        assert files.value == b"a"
    (folder / "one").write_text("a")
    (folder / "two").write_text("a")
    assert files.look() == ()  # what it was before


def test_files_that_stay_are_not_read_again(watched, monkeypatch):
    files, folder = watched
    for name in ("one", "two"):
        os.utime(folder / name, (1e9, 1e9))
    assert files.look() == ()
    monkeypatch.setattr("g2d.service.access.files.read", lambda *_: pytest.fail("read again"))
    assert files.look() == ()


def test_a_mounted_secret_is_a_link_that_is_turned(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca").write_text(name)
    (tmp_path / "data").symlink_to(tmp_path / "first")
    files = Watched({"--ca": str(tmp_path / "data" / "ca")}, lambda c: c["--ca"])
    (tmp_path / "data").unlink()
    (tmp_path / "data").symlink_to(tmp_path / "second")
    assert files.look() == ("--ca",)
    assert files.value == b"second"


def test_only_plain_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * (5 << 20))
    for name, said in (("fifo", "not a plain file"), ("large", "larger than 4 MiB"),
                       ("none", "No such file"), ("", "cannot read --x")):  # fmt: skip
        with pytest.raises(SettingsError) as refused:
            read("--x", str(tmp_path / name))
        assert said in str(refused.value)
