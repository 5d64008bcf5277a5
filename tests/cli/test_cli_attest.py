"""`g2d attest`: a host is enrolled by files, proves its state, and opens what it was released."""

from __future__ import annotations

import functools
import shutil

import pytest
import typer

from g2d.cli import main
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
        assert not code or said.err.count("\n") == 1
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
            made.accept({"weights": b"weights %d " % turn * 20}, {}, activate=True)
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
        self.run("attest", "enroll", "--out", asked, *self.tpm)
        self.run(
            "attest", "enroll", asked, "--host", self.host, "--out", challenge,
            "--insecure-software-tpm", "--every", "1", "--keep", "0",
        )  # fmt: skip
        self.run("attest", "enroll", challenge, "--out", answer, *self.tpm)
        return self.run("attest", "enroll", answer, "--host", self.host)

    def quote(self):
        self.run("attest", "ask", self.host, self.file("ask"))
        self.run("attest", "quote", self.file("ask"), self.file("quote"), *self.tpm)
        return self.file("quote")


@pytest.fixture
def sides(tmp_path, address, run):
    found = Sides(tmp_path, address, run)
    assert "is enrolled in this state" in found.enroll()
    return found


def test_a_vault_opens_on_the_host_that_it_was_released_to(
    sides, vault, address, tmp_path, run, told
):
    said = run("attest", "release", vault, sides.host, sides.quote(), "--number", "2")
    assert "up to generation 2" in said
    copy = tmp_path / "host" / "vault"
    shutil.copytree(vault, copy)
    here = f"tpm:{address}"
    run("vault", "custodians", copy, "--use", here)
    with Vault.open(copy) as opened:
        record = opened.generations()[-1]
        assert opened.read_generation(record.number, "weights").startswith(b"weights 2 ")
    # The next release takes the place of the first, and the host has opened it: the copy is old.
    run("attest", "release", vault, sides.host, sides.quote())
    assert run("vault", "custodians", vault).count("tpm of edge") == 1
    shutil.copytree(vault, tmp_path / "newer")
    run("vault", "custodians", tmp_path / "newer", "--use", here)
    assert "older than what this host has opened" in told(
        "vault", "custodians", copy, "--use", here
    )
    used = told("attest", "release", vault, sides.host, sides.file("quote"))
    assert "another nonce" in used  # a quote is used once


def test_a_changed_boot_is_named_and_approved_beforehand(sides, vault, address, run, told):
    run("attest", "release", vault, sides.host, sides.quote())
    assert "is in the state that is expected" in run("attest", "verify", sides.quote(), sides.host)
    here = f"tpm:{address}"
    extend(address, 14, bytes(32))
    assert "PCR 14 is f5a5fd42d16a2030" in told("vault", "custodians", vault, "--use", here)
    quote = sides.quote()
    for command in (("verify", quote, sides.host), ("release", vault, sides.host, quote)):
        assert "PCR 14 is f5a5fd42d16a2030" in told("attest", *command)
    new = run("attest", "quote", sides.file("ask"), sides.file("again"), *sides.tpm).split()[2]
    run("attest", "approve", vault, sides.host, "--pcr", f"14={new}")
    run("vault", "custodians", vault, "--use", here)
    extend(address, 14, bytes(32))
    said = run("attest", "verify", sides.quote(), sides.host, "--accept-state")
    assert "is in the state that is expected from now on" in said
    file = f"file:{vault.with_name('custodian.key')}"  # here the TPM's, too, is remembered
    run("--custodian", file, "attest", "release", vault, sides.host, sides.quote())
    run("vault", "custodians", vault, "--use", here)


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
        ("was not released to tpm of edge", "approve", vault, host, "--pcr", "14=" + "00" * 32),
        ("is no value of a PCR", "approve", vault, host, "--pcr", "14=00"),
        ("PCR 16 can be reset", "approve", vault, host, "--pcr", "16=" + "00" * 32),
        ("no TPM answers", "quote", tmp_path / "ask", tmp_path / "out", "--tpm", "swtpm:path=/no"),
    ]
    for said, *arguments in cases:
        assert said in told("attest", *arguments), arguments
    plain = tmp_path / "plain"
    Vault.create(plain, '[task]\nname = "digits"\n').close()
    assert "is not sealed" in told("attest", "release", plain, host, quote)
