"""The privacy ledger: what is recorded stays recorded, and nothing is spent beyond the budget."""

import json
import os
import signal
import subprocess
import sys

import pytest

from g2d.errors import PrivacyError
from g2d.protect.privacy.accounting import Spending, epsilon
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import STAMP, releases
from g2d.settings import Settings
from g2d.vault.keys import SigningKey
from g2d.vault.spendings import SPENDINGS, read
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from vaults import SOURCES

ONE = Spending("base", "records", "gaussian", 4.0)
SETTINGS = Settings().override(privacy__enabled=True, privacy__records=1000, privacy__epsilon=2.0)


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", SETTINGS.to_toml()) as made:
        yield made


def test_a_spending_is_on_the_medium_when_spend_returns(vault):
    line = PrivacyLedger(vault).spend(ONE)
    with Vault.open(vault.path) as reader:
        assert PrivacyLedger(reader).spendings() == (ONE,)
        assert read(reader).head == line.digest
    assert verify(vault.path, patience=0.0) == []


def test_what_the_budget_does_not_cover_is_refused_and_nothing_is_written(vault):
    ledger = PrivacyLedger(vault)
    ledger.spend(ONE)
    with pytest.raises(PrivacyError, match=r"does not cover base.*epsilon allows 2"):
        ledger.spend(Spending("base", "records", "gaussian", 1.0))
    assert ledger.spendings() == (ONE,)
    ledger.spend(Spending("base", "refresh", "gaussian", 4.0))  # another block, other people


def test_a_plan_is_refused_before_the_first_of_it(vault):
    ledger = PrivacyLedger(vault)
    many = [Spending(f"member {k}", "records", "gaussian", 4.0) for k in range(20)]
    assert epsilon(many[:1], 1e-5) < 2 < epsilon(many, 1e-5)
    with pytest.raises(PrivacyError, match="member 0 and 19 more"):
        ledger.check(many)
    assert ledger.spendings() == ()


def test_unbounded_use_of_records_is_never_in_the_budget(vault):
    with pytest.raises(PrivacyError, match="inf"):
        PrivacyLedger(vault).spend(Spending("zoo", "records", "unbounded", 0.0))


def test_a_torn_line_is_told_and_written_over(vault):
    ledger = PrivacyLedger(vault)
    ledger.spend(ONE)
    whole = (vault.path / SPENDINGS).read_bytes()
    (vault.path / SPENDINGS).write_bytes(whole + whole[: len(whole) // 2])
    assert read(vault).torn
    assert len(read(vault).lines) == 1
    ledger.spend(ONE)
    assert (len(read(vault).lines), read(vault).torn) == (2, False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [lines[0].replace(b'"noise":4.0', b'"noise":9.0'), *lines[1:]],
        lambda lines: [lines[1], lines[0]],
        lambda lines: lines[1:],
        lambda lines: lines[:1],
        lambda lines: [b"", *lines],
        lambda lines: [lines[0], b"[" * 10_000],
    ],
)
def test_edits_are_told_and_nothing_is_spent_any_more(vault, edit):
    ledger = PrivacyLedger(vault)
    for _ in range(2):
        ledger.spend(ONE)
    lines = (vault.path / SPENDINGS).read_bytes().split(b"\n")[:-1]
    (vault.path / SPENDINGS).write_bytes(b"".join(line + b"\n" for line in edit(lines)))
    for use in (ledger.spendings, lambda: ledger.spend(ONE), lambda: releases(vault)):
        with pytest.raises(PrivacyError, match="Restore the newest copy"):
            use()
    assert [problem.kind for problem in verify(vault.path, patience=0.0)] == ["privacy"]


def test_another_vaults_lines_are_not_taken(vault, tmp_path):
    PrivacyLedger(vault).spend(ONE)
    with Vault.create(tmp_path / "other", SETTINGS.to_toml()) as other:
        (other.path / SPENDINGS).write_bytes((vault.path / SPENDINGS).read_bytes())
        with pytest.raises(PrivacyError, match="another vault"):
            read(other)


def test_lines_are_signed_where_the_vault_is(vault, tmp_path, monkeypatch):
    key, stranger = SigningKey.generate(), SigningKey.generate()
    key.write(tmp_path / "key")
    PrivacyLedger(vault).spend(ONE)
    vault.write_settings(SETTINGS.override(signing__key=str(tmp_path / "key")).to_toml())
    PrivacyLedger(vault).spend(ONE)
    unsigned, signed = read(vault).lines
    assert not unsigned.signed_by(key.public)
    assert signed.signed_by(key.public)
    assert not signed.signed_by(stranger.public)


def test_a_refresh_spends_while_a_service_writes(vault):
    with Vault.open(vault.path) as reader:
        PrivacyLedger(reader).spend(ONE)
    PrivacyLedger(vault).spend(ONE)
    assert len(read(vault).lines) == 2


def test_releases_say_what_they_rest_on(vault):
    ledger = PrivacyLedger(vault)
    ledger.spend(ONE)
    vault.put("base", 0, {"weights": b"w"}, {STAMP: ledger.spent().stamp()})
    vault.put("member", 0, {"weights": b"w"}, {"recipe": "forks"})
    vault.put("member", 1, {"weights": b"w"}, {"recipe": "adopted", STAMP: {}})
    ledger.spend(ONE)
    vault.put("member", 2, {"weights": b"w"}, {STAMP: {"spent": 2, "head": "0" * 64}})
    vault.put("generator", 0, {"weights": b"w"}, {STAMP: ledger.spent().stamp()})
    manifest = {"gates": [], "exposed": [], STAMP: ledger.spent().stamp()}
    vault.accept({"weights": b"w"}, manifest, activate=True)
    found = {one.name: one for one in releases(vault)}
    assert {name for name, one in found.items() if one.covered} == {
        "base",
        "generator",
        "generation 1",
    }
    assert found["base"].rests_on(ledger.spendings()) == (ONE,)
    assert found["generation 1"].spent == 2
    assert "private mode was off" in found["member 0"].why
    assert "adopted" in found["member 1"].why
    assert "does not have" in found["member 2"].why


KILLED = """
import sys
from g2d.protect.privacy.accounting import Spending
from g2d.vault.spendings import add
from g2d.vault.vault import Vault
vault = Vault.open(sys.argv[1], write=True)
for k in range(10**6):
    spending = Spending(f"step {k}", "records", "gaussian", 1e6)
    print(add(vault, spending.to_json()).number, flush=True)
"""


def test_a_kill_leaves_whatever_had_been_promised(vault):
    vault.close()
    command = [sys.executable, "-S", "-c", KILLED, str(vault.path)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=paths, text=True) as writer:
        promised = [int(writer.stdout.readline()) for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        promised += [int(line) for line in writer.stdout if line.strip().isdecimal()]
    with Vault.open(vault.path, write=True) as opened:
        assert len(read(opened).lines) >= promised[-1]
        PrivacyLedger(opened).spend(ONE)  # and it goes on


def test_lines_are_plain_json(vault):
    PrivacyLedger(vault).spend(ONE)
    (line,) = (vault.path / SPENDINGS).read_text().splitlines()
    assert json.loads(line)["spending"] == ONE.to_json()
