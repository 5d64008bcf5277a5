"""`g2d attest`: a host is enrolled by files, proves its state, and opens what it was released."""

from __future__ import annotations

import base64
import dataclasses
import functools
import shutil

import pytest
import typer

from g2d.cli import main
from g2d.errors import SealingError
from g2d.vault.sealing import released
from g2d.vault.sealing.record import write_record
from g2d.vault.vault import Vault
from software_tpm import extend, running


@functools.cache
def _g2d():
    return typer.main.get_command(main.app)  # once: it takes a while


@pytest.fixture
def run(capsys):
    """Run a command; return what it says."""

    def called(*arguments, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            _g2d().main([str(part) for part in arguments], prog_name="g2d")
        said = capsys.readouterr()
        assert ended.value.code == code, said
        assert "Traceback" not in said.err
        assert said.err.count("\n") == 1 or not code
        return f"{said.out} {' '.join(said.err.split())}"

    return called


@pytest.fixture
def told(run):
    """What a command that fails says."""
    return functools.partial(run, code=1)


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("G2D_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("G2D_CUSTODIAN", raising=False)
    with running(tmp_path / "tpm") as found:
        yield found


@pytest.fixture
def vault(tmp_path, address, run):
    path = tmp_path / "vault"
    with Vault.create(path, '[task]\nname = "digits"\n') as made:
        made.put("base", 0, {"weights": b"weights of the base " * 9}, {})
        for turn in range(3):
            files = {"weights": b"weights %d " % turn * 20, "attacks": b"attacks " * 20}
            made.accept(files, {}, activate=True)
    run("vault", "seal", path, "--custodian", f"file:{tmp_path / 'custodian.key'}")
    return path


class Sides:
    """The two sides, and what they hand to each other."""

    def __init__(self, folder, address, run):
        self.run = run
        self.folder, self.host, self.tpm = folder, folder / "edge.host", ("--tpm", address)

    def file(self, name):
        return self.folder / name

    def enroll(self):
        asked, challenge, answer = map(self.file, ("request", "challenge", "answer"))
        shown = self.run("attest", "enroll", "--out", asked, *self.tpm)
        compared = self.run(
            "attest", "enroll", asked, "--host", self.host, "--out", challenge,
            "--insecure-software-tpm", "--every", "1", "--keep", "0",
        )  # fmt: skip
        (line,) = (line for line in shown.splitlines() if line.startswith("endorsement  "))
        assert line in compared.splitlines()  # who swaps the request is seen by whoever compares
        shown = self.run("attest", "enroll", challenge, "--out", answer, *self.tpm)
        (line,) = (line for line in shown.splitlines() if line.startswith("approvals    "))
        assert line in compared.splitlines()  # and who swaps the challenge
        return self.run("attest", "enroll", answer, "--host", self.host)

    def quote(self):
        self.run("attest", "ask", self.host, self.file("ask"))
        self.run("attest", "quote", self.file("ask"), self.file("quote"), *self.tpm)
        return self.file("quote")


@pytest.fixture
def sides(tmp_path, address, run):
    found = Sides(tmp_path, address, run)
    said = found.enroll()
    assert "is enrolled in this state" in said
    assert "PCR 14 is zero" in said
    return found


def content(path, number):
    with Vault.open(path) as opened:
        return opened.read_generation(number)


def test_a_generation_opens_on_the_host_that_it_was_released_to(
    sides, vault, address, tmp_path, run, told
):
    said = run("attest", "release", vault, sides.host, sides.quote(), "--number", "2")
    assert "Generation 2" in said
    copy, newer, here = tmp_path / "copy", tmp_path / "newer", ("--tpm", address)
    shutil.copytree(vault, copy)
    assert "nobody here has said which custodian" in told("attest", "release", copy, sides.host,
                                                          sides.quote())  # fmt: skip
    run("attest", "open", copy, *here)
    assert content(copy, 2).startswith(b"weights 1 ")
    with pytest.raises(SealingError, match="generation 3 was not released to this host"):
        content(copy, 3)
    with Vault.open(copy) as opened, pytest.raises(SealingError, match="no custodian of kind"):
        opened.read(opened.entry("base"))  # the vault's own key is not here
    assert "custodian 1 is the last one" in told("vault", "custodians", vault, "--remove", "1")
    with Vault.open(vault) as opened:
        key = opened.sealing.key(opened.sealing.record)
    files = [path.read_bytes() for path in copy.rglob("*") if path.is_file()]
    for form in (key, key.hex().encode(), base64.b64encode(key)):
        assert not any(form in data for data in files)
    with Vault.open(copy) as opened, pytest.raises(SealingError, match="no attacks were released"):
        opened.read_generation(2, "attacks")
    # The next release takes the place of the first, and the host has opened it: the copy is old.
    run("attest", "release", vault, sides.host, sides.quote())
    assert run("vault", "custodians", vault).count("release to edge (") == 1
    shutil.copytree(vault, newer)
    run("attest", "open", newer, *here)
    assert content(newer, 3).startswith(b"weights 2 ")
    with pytest.raises(SealingError, match="older than what this host has opened"):
        content(copy, 2)
    used = told("attest", "release", vault, sides.host, sides.file("quote"))
    assert "another nonce" in used  # a quote is used once
    assert "wound back" in told(
        "attest", "release", vault, sides.host, sides.quote(), "--number", "2"
    )
    assert content(vault, 3) == content(newer, 3)  # where generations are made nothing changed
    assert "7 sealed files are whole" in run("verify", newer, code=1)


def test_a_changed_boot_is_named_and_approved_beforehand(sides, vault, address, run, told):
    run("attest", "release", vault, sides.host, sides.quote())
    assert "is in the state that is expected" in run("attest", "verify", sides.quote(), sides.host)
    host = vault.with_name("copy")
    extend(address, 14, bytes(32))
    shutil.copytree(vault, host)
    assert "PCR 14 is f5a5fd42d16a2030" in told("attest", "open", host, *sides.tpm)
    quote = sides.quote()
    for command in (("verify", quote, sides.host), ("release", vault, sides.host, quote)):
        assert "PCR 14 is f5a5fd42d16a2030" in told("attest", *command)
    new = run("attest", "quote", sides.file("ask"), sides.file("again"), *sides.tpm).split()[2]
    run("attest", "approve", vault, sides.host, "--pcr", f"14={new}")
    shutil.rmtree(host)
    shutil.copytree(vault, host)
    run("attest", "open", host, *sides.tpm)
    assert "is in the state that is expected" in run("attest", "verify", sides.quote(), sides.host)
    extend(address, 14, bytes(32))
    said = run("attest", "verify", sides.quote(), sides.host, "--accept-state")
    assert "is in the state that is expected from now on" in said
    run("attest", "release", vault, sides.host, sides.quote())
    shutil.rmtree(host)
    shutil.copytree(vault, host)
    run("attest", "open", host, *sides.tpm)


def test_hosts_of_one_name_have_releases_of_their_own(sides, vault, tmp_path, run, told):
    (tmp_path / "other").mkdir()
    with running(tmp_path / "second") as address:
        other = Sides(tmp_path / "other", address, run)
        other.enroll()
        run("attest", "release", vault, sides.host, sides.quote(), "--number", "2")
        run("attest", "release", vault, other.host, other.quote())
    assert run("vault", "custodians", vault).count("release to edge (") == 2
    copy = shutil.copytree(vault, tmp_path / "copy")
    assert "another TPM" in told("attest", "open", copy, "--number", "3", *sides.tpm)
    assert "Generation 2 of" in run("attest", "open", copy, *sides.tpm)  # the newest of its own
    with Vault.open(vault, write=True) as opened:  # who writes the ledger calls one the other's
        record = opened.sealing.record
        own, foreign = (one for one in record.held if one.kind == "release")
        renamed = dataclasses.replace(foreign, name=own.name.replace(" 2", " 3"))
        held = tuple(renamed if one is foreign else one for one in record.held)
        with opened._writing():
            write_record(opened._ledger, dataclasses.replace(record, held=held))
    run("attest", "approve", vault, sides.host, "--pcr", "14=" + "11" * 32)
    with Vault.open(vault) as opened:
        blobs = [one.blob for one in opened.sealing.record.held]
    assert foreign.blob in blobs  # as it was: its host's state is not this one's
    assert own.blob not in blobs


def test_a_release_waits_for_no_writer_and_for_no_service(sides, vault, run, told):
    with Vault.open(vault, write=True) as writer:
        run("attest", "release", vault, sides.host, sides.quote(), "--number", "2")
        assert [*released.releases(writer.sealing.record)] == [2]  # and the writer sees it
        writer.accept({"weights": b"weights 3 " * 20}, {}, activate=True)
        run("attest", "release", vault, sides.host, sides.quote())
        with writer._writing():
            assert "cannot be written" in told("attest", "release", vault, sides.host,
                                               sides.quote())  # fmt: skip
    copy = shutil.copytree(vault, vault.with_name("copy"))
    run("attest", "open", copy, *sides.tpm)
    assert content(copy, 4).startswith(b"weights 3 ")
    other = shutil.copytree(vault, vault.with_name("other"))
    run("vault", "rekey", other, "--custodian", f"file:{vault.with_name('custodian.key')}")
    with Vault.open(other) as opened, Vault.open(vault) as before:
        old, empty = before.sealing.record, released.Bundle(b"", {})
        with pytest.raises(SealingError, match="was changed meanwhile"):
            released.hold(opened, old, "edge", 4, empty)


def test_a_release_that_somebody_made_himself_is_refused_and_steps_no_counter(
    sides, vault, tmp_path, run, told
):
    """Public keys of a host are public, and whoever writes its folder has its vault's identity."""
    copy = shutil.copytree(vault, tmp_path / "copy")
    run("vault", "custodians", copy, "--use", f"file:{tmp_path / 'custodian.key'}")
    key = ("--key", tmp_path / "his.key")
    stolen = tmp_path / "his.host"
    shutil.copy(sides.host, stolen)
    sides.run("attest", "ask", stolen, sides.file("ask"))
    sides.run("attest", "quote", sides.file("ask"), sides.file("quote"), *sides.tpm)
    before = run("attest", "verify", sides.quote(), sides.host).split("counter ")[1].split()[0]
    sides.run("attest", "ask", stolen, sides.file("ask"))
    sides.run("attest", "quote", sides.file("ask"), sides.file("quote"), *sides.tpm)
    run("attest", "release", copy, stolen, sides.file("quote"), *key)
    assert "approved by another key" in told("attest", "open", copy, *sides.tpm)
    after = run("attest", "verify", sides.quote(), sides.host).split("counter ")[1].split()[0]
    assert after == before
    (place,) = (tmp_path / "state" / "approvers").iterdir()
    place.write_text("{}")
    assert "cannot be read" in told("attest", "open", copy, *sides.tpm)


def test_bad_input_is_one_line(sides, vault, tmp_path, told):
    host, quote = sides.host, sides.quote()
    (tmp_path / "junk").write_bytes(b"\xff" * 100)
    cases = [
        ("belongs to no step", "enroll", tmp_path / "junk", "--host", host),
        ("remembers a host already", "enroll", tmp_path / "request", "--host", host),
        ("cannot read", "enroll", tmp_path / "none"),
        ("expected 'attest-ask'", "quote", quote, tmp_path / "out", *sides.tpm),
        ("expected 'attest-quote'", "verify", host, host),
        ("no file of G2D", "verify", tmp_path / "junk", host),
        ("was released to", "approve", vault, host, "--pcr", "14=" + "00" * 32),
        ("is no value of a PCR", "approve", vault, host, "--pcr", "14=00"),
        ("is no value of a PCR", "approve", vault, host, "--pcr", "7,14=" + "00" * 32),
        ("PCR 16 can be reset", "approve", vault, host, "--pcr", "16=" + "00" * 32),
        ("no TPM answers", "quote", tmp_path / "ask", tmp_path / "out", "--tpm", "swtpm:path=/no"),
    ]
    for said, *arguments in cases:
        assert said in told("attest", *arguments), arguments
    plain = tmp_path / "plain"
    Vault.create(plain, '[task]\nname = "digits"\n').close()
    assert "is not sealed" in told("attest", "release", plain, host, quote)
