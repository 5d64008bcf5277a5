"""A commitment binds key, form, number and threshold; a changed, foreign or late one says so."""

from __future__ import annotations

import dataclasses
import json
import math
import time

import pytest

from g2d.errors import ClaimError, KeyFileError, SettingsError, VaultError
from g2d.protect.watermark import InputForm, WatermarkKey
from g2d.protect.watermark.chance import least_triggers, needed_hits
from g2d.protect.watermark.commitment import SKEW, Commitment, Published, commit, set_digest
from g2d.protect.watermark.mark import Mark, _least
from g2d.protect.watermark.publishing import beside, publish, published_beside, published_in
from g2d.protect.watermark.verification import draw
from g2d.settings import Settings, WatermarkSettings
from g2d.vault.confirmed import confirm_key
from g2d.vault.keys import SigningKey
from g2d.vault.ledger import sha256
from g2d.vault.vault import Vault
from g2d.vault.verify import verify as verify_vault
from marked import FORM, KEY, committed, vault_of


@pytest.fixture(scope="module")
def signing() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def published(tmp_path_factory, signing) -> Published:
    return committed(tmp_path_factory.mktemp("committed") / "vault", signing)


def test_a_commitment_survives_its_record_and_says_who_signed_it_and_when(published, signing):
    again = Published.from_record(json.loads(json.dumps(published.record())))
    assert again == published
    dated = again.verify(time.time(), signing.public)
    assert dated.signer == signing.fingerprint
    assert dated.word == "by its signer's own word"
    assert dated.time == published.commitment.created
    assert published.commitment.reserve == 3
    assert published.commitment.late == ""


def test_each_digest_is_of_its_set_and_tells_nothing_of_the_others(published):
    digests = published.commitment.digests
    assert len(set(digests)) == 4
    whose = {"signer": published.commitment.signer, "vault": published.commitment.vault}
    assert digests[1] == set_digest(KEY.of_set(1), FORM, 100, 2.0**-64, **whose)
    others = (
        set_digest(KEY.of_set(1), FORM, 99, 2.0**-64, **whose),
        set_digest(KEY.of_set(1), FORM, 100, 2.0**-63, **whose),
        set_digest(KEY.of_set(1), dataclasses.replace(FORM, classes=9), 100, 2.0**-64, **whose),
        set_digest(WatermarkKey.generate().of_set(1), FORM, 100, 2.0**-64, **whose),
        set_digest(KEY.of_set(1), FORM, 100, 2.0**-64, **whose | {"signer": ""}),
        set_digest(KEY.of_set(1), FORM, 100, 2.0**-64, **whose | {"vault": ""}),
    )
    assert digests[1] not in others


def test_the_digest_of_a_set_is_that_of_the_first_release():
    """A commitment of today must be checkable in ten years: this digest never changes."""
    form, whose = InputForm("image", (1, 8, 8), 10, (0.0,), (1.0,)), {"signer": "", "vault": "v"}
    found = set_digest(bytes(32), form, 100, 2.0**-64, **whose)
    assert found == "07ffbfcc85c171064d290fedad5ebff5cec0341ed3102f0e84c28c1bc76de2d0"


@pytest.mark.parametrize(
    "change",
    [
        {"vault": "ab" * 16}, {"created": 1.0}, {"n": 99}, {"generations": 3}, {"task": "mnist"},
        {"begun": True}, {"digests": ["ab" * 32] * 4}, {"signer": "ab" * 32},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_was_changed_is_not_what_was_signed(published, change):
    record = published.record()
    record["commitment"] |= change
    with pytest.raises(ClaimError, match="not what its key signed"):
        Published.from_record(record).verify(time.time())


def test_whoever_signs_anew_is_not_whom_one_trusts(published, signing, tmp_path):
    forged = committed(tmp_path / "vault", SigningKey.generate())
    assert forged.verify(time.time()).signer
    with pytest.raises(ClaimError, match="none of the keys that you trust"):
        forged.verify(time.time(), signing.public)
    unsigned = committed(tmp_path / "other")
    assert unsigned.verify(time.time()).word == "by nobody: it is unsigned"
    with pytest.raises(ClaimError, match="unsigned"):
        unsigned.verify(time.time(), signing.public)


def test_a_date_in_the_future_is_refused(published):
    created = published.commitment.created
    assert published.verify(created - SKEW / 2)
    with pytest.raises(ClaimError, match="in the future: check the clocks"):
        published.verify(created - 2 * SKEW)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.5}, "which is none"),
        ({"scheme": "g2d-watermark-9"}, "scheme 'g2d-watermark-9'"),
        ({"n": 10**6}, "no commitment"),
        ({"created": math.inf}, "no commitment"),
        ({"digests": []}, "no commitment"),
        ({"digests": "abcd"}, "no commitment"),
        ({"form": {}}, "no commitment"),
        ({"more": 1}, "no commitment"),
        ({"form": FORM.record() | {"classes": 10.5}}, "no commitment"),
        ({"form": FORM.record() | {"shape": [4096, 4096]}}, "no commitment"),
        ({"form": FORM.record() | {"low": [1.0]}}, "no commitment"),
        ({"form": FORM.record() | {"low": [-math.inf]}}, "no commitment"),
        ({"form": FORM.record() | {"high": [math.nan]}}, "no commitment"),
        ({"form": FORM.record() | {"low": [0.0, 0.0], "high": [1.0, 1.0]}}, "no commitment"),
        ({"form": FORM.record() | {"high": []}}, "no commitment"),
    ],
)
def test_what_proves_nothing_or_is_none_is_refused(published, change, said):
    record = json.loads(published.commitment.text()) | change
    with pytest.raises(ClaimError, match=said):
        Commitment.from_record(record)
    for odd in (None, [], "text", {}, {"commitment": record}):
        with pytest.raises(ClaimError, match="no commitment"):
            Published.from_record(odd)


def test_too_few_triggers_say_how_many_would_do(tmp_path):
    two = dataclasses.replace(FORM, classes=2)
    with (
        vault_of(tmp_path / "vault") as vault,
        pytest.raises(SettingsError, match="triggers to 66 or more"),
    ):
        commit(KEY, two, "digits", vault, n=64, sets=4)
    assert [least_triggers(classes) for classes in (2, 3, 10)] == [65, 41, 20]
    for classes in (2, 3, 7, 1000):
        least = least_triggers(classes)
        assert needed_hits(least, classes) is not None
        assert least == 1 or needed_hits(least - 1, classes) is None
    assert least_triggers(2, suspects=1000) == 74


# --- in a vault ----------------------------------------------------------------------------------


def test_a_key_and_its_commitment_are_written_once_and_the_settings_name_the_key(tmp_path):
    with vault_of(tmp_path / "vault") as vault:
        settings = Settings.from_vault(vault.settings_text)
        path, made = publish(vault, settings, FORM, tmp_path / "keys" / "mark.key")
        assert path.stat().st_mode & 0o777 == 0o600
        assert Settings.from_vault(vault.settings_text).watermark.key == str(path)
        assert published_in(vault) == made == published_beside(path)
        key = WatermarkKey.read(path)
        form, n = made.commitment.form, made.commitment.n
        whose = {"signer": "", "vault": vault.identity}
        assert made.commitment.digests[2] == set_digest(key.of_set(2), form, n, 2.0**-64, **whose)
        with pytest.raises(VaultError, match="has a commitment already"):
            publish(vault, settings, FORM, tmp_path / "other.key")
        with pytest.raises(VaultError, match="never replaced"):
            vault.write_commitment(b"{}")
    assert verify_vault(tmp_path / "vault") == []
    with vault_of(tmp_path / "second") as second, pytest.raises(KeyFileError, match="overwritten"):
        publish(second, settings, FORM, path)
    with Vault.open(tmp_path / "second") as second:
        assert second.commitment() == b""


def test_no_key_lies_in_a_vault(tmp_path):
    with vault_of(tmp_path / "vault") as vault:
        settings = Settings.from_vault(vault.settings_text)
        with pytest.raises(KeyFileError, match="keep keys outside of vaults"):
            publish(vault, settings, FORM, tmp_path / "vault" / "mark.key")
        assert vault.commitment() == b""


def test_a_commitment_after_the_first_generation_says_so(tmp_path):
    with vault_of(tmp_path / "vault") as vault:
        vault.put("base", 0, {"weights": b"w"}, {})
        late = commit(KEY, FORM, "digits", vault, n=100, sets=4)
        assert late.commitment.late.startswith("dated after the population was begun")
        vault.accept({"weights": b"w"}, {})
        later = commit(KEY, FORM, "digits", vault, n=100, sets=4)
        assert later.commitment.late.startswith("dated after the first generation: 1 were there")


def test_the_commitment_of_another_vault_and_a_lost_one_are_named(tmp_path):
    with vault_of(tmp_path / "one") as one:
        settings = Settings.from_vault(one.settings_text)
        path, _ = publish(one, settings, FORM, tmp_path / "mark.key")
        data = one.commitment()
    with vault_of(tmp_path / "two") as two:
        with pytest.raises(ClaimError, match="has no commitment"):
            published_in(two)
        two.write_commitment(data)
        with pytest.raises(ClaimError, match="not of this one"):
            published_in(two)
    (found,) = verify_vault(tmp_path / "two")
    assert (found.kind, found.where) == ("commitment", "watermark.json")
    assert "it is the commitment of vault" in found.what
    beside(path).unlink()
    with pytest.raises(ClaimError, match="name its --vault"):
        published_beside(path)


def test_two_triggers_that_are_the_same_count_twice_and_are_refused(tmp_path):
    coarse = InputForm("table", (2,), 10, (0.0, 0.0), (1.0, 1.0), integer=(0, 1))
    with (
        vault_of(tmp_path / "vault") as vault,
        pytest.raises(SettingsError, match="two of 100 triggers are the same"),
    ):
        commit(KEY, coarse, "digits", vault, n=100, sets=4)
    made = committed(tmp_path / "other").commitment
    moved = dataclasses.replace(made, form=coarse)
    moved = dataclasses.replace(moved, digests=(moved.digest_of(KEY.of_set(0)), *made.digests[1:]))
    with pytest.raises(ClaimError, match="two triggers of this set are the same"):
        draw(moved, 0, KEY.of_set(0))


def test_what_lies_in_a_vault_is_what_its_own_key_signed_and_its_manifests_say(tmp_path, signing):
    signing.write(tmp_path / "signing.key")
    with vault_of(tmp_path / "vault") as vault:
        vault.write_settings(
            f'[task]\nname = "digits"\n[signing]\nkey = "{tmp_path}/signing.key"\n'
        )
        confirm_key(vault, f"{tmp_path}/signing.key")
        settings = Settings.from_vault(vault.settings_text)
        _, made = publish(vault, settings, FORM, tmp_path / "mark.key")
        assert published_in(vault) == made
        vault.accept({"weights": b"w"}, {"commitment": sha256(vault.commitment())})
        assert published_in(vault) == made
        stranger = commit(KEY, FORM, "digits", vault, n=100, sets=4, signing=SigningKey.generate())
        file, own = vault.path / "watermark.json", vault.commitment()
        file.write_text(json.dumps(stranger.record()))
        with pytest.raises(ClaimError, match="generation 1 was made under another commitment"):
            published_in(vault)
        told = [str(problem) for problem in verify_vault(vault.path)]
        assert any("watermark.json: generation 1 was made under another" in one for one in told)
        file.unlink()
        assert any(problem.kind == "commitment" for problem in verify_vault(vault.path))
        record = json.loads(own)
        record["commitment"]["created"] -= 86_400
        file.write_text(json.dumps(record))
        assert any("not what its key signed" in str(one) for one in verify_vault(vault.path))


def test_a_commitment_by_another_key_than_the_vaults_own_is_refused(tmp_path, signing):
    signing.write(tmp_path / "signing.key")
    with vault_of(tmp_path / "vault") as vault:
        stranger = commit(KEY, FORM, "digits", vault, n=100, sets=4, signing=SigningKey.generate())
        vault.write_commitment(json.dumps(stranger.record()).encode())
        assert published_in(vault) == stranger
        vault.write_settings(
            f'[task]\nname = "digits"\n[signing]\nkey = "{tmp_path}/signing.key"\n'
        )
        confirm_key(vault, f"{tmp_path}/signing.key")
        with pytest.raises(ClaimError, match="not signed by the key that signs for this vault"):
            published_in(vault)


def test_a_kill_before_the_commitment_leaves_no_vault_that_trains_unmarked(
    tmp_path, digits, monkeypatch
):
    with vault_of(tmp_path / "vault") as vault:
        settings, before = Settings.from_vault(vault.settings_text), vault.settings_text

        def killed(data):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(vault, "write_commitment", killed)
            with pytest.raises(KeyboardInterrupt):
                publish(vault, settings, FORM, tmp_path / "a.key")
        named = Settings.from_vault(vault.settings_text)
        with pytest.raises((KeyFileError, SettingsError, VaultError), match="g2d watermark new"):
            Mark.of(named.watermark, digits, vault.path)

        def full(data):
            raise VaultError("no space")

        vault.write_settings(before)
        with monkeypatch.context() as patch:
            patch.setattr(vault, "write_commitment", full)
            with pytest.raises(VaultError, match="no space"):
                publish(vault, settings, FORM, tmp_path / "b.key")
        assert vault.settings_text == before
        assert not (tmp_path / "b.key").exists()


def test_a_generation_answers_as_many_triggers_as_a_claim_needs():
    """With two classes 90 of 100 prove nothing, so a gate that let them pass would be no help."""
    settings = WatermarkSettings(key="any", sets=4, triggers=100)
    assert _least(settings, 2) == pytest.approx(0.95)
    assert _least(settings, 10) == 0.9
