"""`g2d privacy`: what it says of a vault, to people and to machines; no network is made."""

import json
import math

import pytest

from commands import fail, invoke, succeed
from g2d.protect.privacy.accounting import Spending
from g2d.protect.privacy.ledger import PrivacyLedger
from g2d.protect.privacy.releases import LEARNED, STAMP
from g2d.settings import Settings
from g2d.vault.keys import SigningKey
from g2d.vault.spendings import SPENDINGS
from g2d.vault.vault import Vault

SETTINGS = Settings().override(privacy__enabled=True, privacy__records=1000)


@pytest.fixture
def vault(tmp_path):
    """A base, two members and three generations, as a private vault would have charged them."""
    key = tmp_path / "signing.key"
    SigningKey.generate().write(key)
    text = SETTINGS.override(signing__key=str(key)).to_toml()
    with Vault.create(tmp_path / "vault", text) as made:
        ledger = PrivacyLedger(made)

        def charged(what, block="records"):
            ledger.spend(Spending(what, block, "gaussian", 5.0))
            return {STAMP: ledger.spent().stamp()}

        made.put("base", 0, {"weights": b"w"}, charged("base"))
        for k in range(2):
            made.put("member", k, {"weights": b"w"}, charged(f"member {k}"))
        charged("gate: a noisy count", "held")
        now = {STAMP: ledger.spent().stamp()}
        made.put("generator", 0, {"weights": b"w"}, now)
        for _ in range(3):
            made.accept({"weights": b"w"}, {"gates": [], "exposed": [], **now}, activate=True)
    return made.path


def test_it_says_the_guarantee_in_words_and_as_a_table(vault):
    said = " ".join(succeed("privacy", vault).stdout.split())
    assert "at delta 1e-05 for each input, with all records of it" in said
    assert "generations 1 to 3" in said
    assert "post-processing" in said
    assert "not covered:" in said
    assert "infinite" not in said


def test_it_says_which_forks_read_public_data_only(vault):
    assert "forks" not in succeed("privacy", vault).stdout
    with Vault.open(vault, write=True) as opened:
        now = {STAMP: PrivacyLedger(opened).spent().stamp(1)}
        for k in (2, 3):
            opened.put("member", k, {"weights": b"w"}, {LEARNED: "public", **now})
    said = " ".join(succeed("privacy", vault).stdout.split())
    assert "forks 2 members read public data only, and what the base answers there" in said
    found = json.loads(succeed("privacy", "--json", vault).stdout)
    assert found["public_forks"] == 2
    own = {one["name"]: one["spent"] for one in found["releases"]}
    assert own["member 3"] == 1, "the base's spending, and no other"


def test_it_says_the_same_to_machines(vault):
    found = json.loads(succeed("privacy", "--json", vault).stdout)
    assert [block["name"] for block in found["blocks"]] == ["records", "held"]
    assert found["epsilon"] == max(block["epsilon"] for block in found["blocks"])
    assert found["naive"] > found["epsilon"]
    assert [one["name"] for one in found["releases"]] == [
        "base", "member 0", "member 1", "generator",
        *(f"generation {k}" for k in (1, 2, 3)),
    ]  # fmt: skip
    assert all(one["covered"] for one in found["releases"])
    assert found["not_covered"]
    assert (found["lines"], found["signed"], found["torn"]) == (4, 4, False)


def test_one_release_without_a_guarantee_leaves_none_in_total(vault):
    with Vault.open(vault, write=True) as opened:
        opened.put("member", 2, {"weights": b"w"}, {"recipe": "adopted"})
    said = " ".join(succeed("privacy", vault).stdout.split())
    assert "none for all together (epsilon is infinite)" in said
    assert "it was adopted: how it was trained is in no ledger" in said
    found = json.loads(succeed("privacy", vault, "--json").stdout)
    assert found["epsilon"] is None
    assert [one["name"] for one in found["releases"] if one["epsilon"] is None] == ["member 2"]


def test_a_vault_without_privacy_is_told_so(tmp_path):
    with Vault.create(tmp_path / "plain", Settings().to_toml()) as made:
        made.put("base", 0, {"weights": b"w"}, {"recipe": "base"})
    said = succeed("privacy", made.path).stdout
    assert "none: [privacy] is off" in said
    assert "infinite" in said


def test_lines_that_another_key_signed_are_told(vault, tmp_path):
    SigningKey.read(tmp_path / "signing.key").public.write(tmp_path / "ours.pub")
    SigningKey.generate().public.write(tmp_path / "theirs.pub")
    succeed("privacy", vault, "--key", tmp_path / "ours.pub")
    refused = invoke("privacy", vault, "--key", tmp_path / "theirs.pub")
    assert refused.exit_code == 1
    assert "4 lines of the privacy ledger" in refused.stderr


def test_a_ledger_that_was_edited_is_one_line(vault):
    path = vault / SPENDINGS
    path.write_bytes(path.read_bytes().replace(b'"noise":5.0', b'"noise":50.0'))
    assert "is not what was recorded" in fail("privacy", vault)


def test_numbers_are_finite_json(vault):
    found = json.loads(succeed("privacy", vault, "--json").stdout, parse_constant=pytest.fail)
    assert math.isfinite(found["epsilon"])


def test_nothing_is_claimed_of_another_unit(vault):
    with Vault.open(vault, write=True) as opened:
        spending = Spending("member 2", "records", "gaussian", 50.0, note={"unit": "record"})
        PrivacyLedger(opened).spend(spending)
    succeed("privacy", vault)
    path = vault / "task.toml"
    path.write_text(path.read_text().replace('unit = "record"', 'unit = "person"'))
    assert "what was spent was of record" in fail("privacy", vault)


def test_nothing_is_claimed_at_a_smaller_delta_than_gates_were_stopped_at(vault):
    with Vault.open(vault, write=True) as opened:
        note = {"unit": "record", "budget": 3.0, "delta": 1e-5}
        PrivacyLedger(opened).spend(Spending("gate", "held", "gaussian", 50.0, note=note))
    assert json.loads(succeed("privacy", vault, "--json").stdout)["epsilon"] == 3.0
    path = vault / "task.toml"
    path.write_text(path.read_text().replace("delta = 1e-05", "delta = 1e-07"))
    assert "nothing can be claimed of them at a smaller one" in fail("privacy", vault)
