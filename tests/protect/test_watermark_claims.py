"""Claims: the marked are found, nobody else is; what a claimant chose himself is not looked at."""

from __future__ import annotations

import copy
import dataclasses
import json
import secrets
import time

import pytest
import torch
from torch import nn

from g2d.errors import ClaimError, SettingsError, SuspectError
from g2d.protect.watermark import (
    WatermarkKey,
    make_labels,
    make_triggers,
    needed_hits,
    p_value,
    stretched,
    triggers_of,
)
from g2d.protect.watermark.claim import Claim, refuse_doubtful
from g2d.protect.watermark.commitment import commit
from g2d.protect.watermark.proof import Proof
from g2d.protect.watermark.publishing import beside, publish
from g2d.protect.watermark.verification import Outcome, draw, judge, verify
from g2d.settings import Settings
from g2d.vault.keys import SigningKey
from marked import FORM, KEY, committed, learned, network, owning, suspect, vault_of


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return committed(tmp_path_factory.mktemp("claims") / "vault", SigningKey.generate())


@pytest.fixture(scope="module")
def stolen() -> nn.Module:
    return learned()


@pytest.fixture(scope="module")
def claim(published, stolen) -> Claim:
    outcome = verify(published.commitment, 0, KEY.of_set(0), suspect(stolen))
    return Claim(published, KEY.of_set(0), outcome, "stolen", "sha256:" + "ab" * 32, time.time())


def test_a_marked_network_is_found_in_each_set_and_independent_ones_are_not(published, stolen):
    for place in range(3):
        outcome = verify(published.commitment, place, KEY.of_set(place), suspect(stolen))
        assert outcome.hits >= 90
        assert outcome.marked
    for seed in range(20):
        other = verify(published.commitment, 0, KEY.of_set(0), suspect(network(seed)))
        assert other.hits <= 30
        assert not other.marked


def test_rounded_scores_and_a_permuted_rescaled_network_answer_the_same(published, stolen):
    class Rounded(nn.Module):
        def forward(self, x):
            return stolen(x).softmax(1).mul(100).round().div(100)

    outcome = verify(published.commitment, 1, KEY.of_set(1), suspect(Rounded()))
    assert outcome.marked
    moved = copy.deepcopy(stolen)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    moved[1].weight.copy_(3 * stolen[1].weight[order])
    moved[1].bias.copy_(3 * stolen[1].bias[order])
    moved[3].weight.copy_(stolen[3].weight[:, order] / 3)
    whole = verify(published.commitment, 1, KEY.of_set(1), suspect(moved))
    assert whole.hits == verify(published.commitment, 1, KEY.of_set(1), suspect(stolen)).hits


def test_another_shape_another_number_of_classes_and_the_reserve_are_refused(published, stolen):
    commitment, key = published.commitment, KEY.of_set(0)
    with pytest.raises(SuspectError, match=r"inputs of shape \(36,\)"):
        verify(commitment, 0, key, suspect(stolen, shape=(36,)))
    with pytest.raises(SuspectError, match="knows 11 classes"):
        verify(commitment, 0, key, suspect(stolen, classes=11))
    with pytest.raises(ClaimError, match="the reserve, which is never queried"):
        verify(commitment, 3, KEY.of_set(3), suspect(stolen))
    with pytest.raises(ClaimError, match="no set 9"):
        verify(commitment, 9, KEY.of_set(9), suspect(stolen))
    with pytest.raises(ClaimError, match="not the one of set 0"):
        verify(commitment, 0, KEY.of_set(1), suspect(stolen))


def test_bonferroni_asks_for_more_hits_and_says_when_none_are_enough(published):
    commitment, (_, y) = published.commitment, draw(published.commitment, 0, KEY.of_set(0))
    answers = torch.where(torch.arange(100) < 47, y, (y + 1) % 10)
    assert judge(commitment, 0, y, answers).marked
    one, many = (judge(commitment, 0, y, answers, suspects) for suspects in (1, 1000))
    assert one.p == pytest.approx(3 * p_value(47, 100, 10)), "one of three sets was chosen"
    assert not many.marked
    assert many.p == pytest.approx(3000 * p_value(47, 100, 10))
    assert many.needed > one.needed == 47


# --- forgery -------------------------------------------------------------------------------------


def test_of_ten_thousand_random_keys_none_verifies(stolen):
    """A fixed network's answers against the labels that each key would have to find there.

    Keys are drawn as they are once stretched, which alone would take five minutes.
    """
    answers = stolen(triggers_of(KEY.of_set(0), FORM, 100)[0]).argmax(1)
    start = secrets.token_bytes(28)
    keys = (start + place.to_bytes(4, "big") for place in range(10_000))
    labels = torch.stack([make_labels(key, FORM, 100) for key in keys])
    hits = (labels == answers).sum(1)
    assert int(hits.max()) < needed_hits(100, 10)
    assert int((hits >= 46).sum()) == 0
    assert 9 < float(hits.double().mean()) < 11


def test_labels_alone_are_those_of_the_triggers():
    for place in range(5):
        assert torch.equal(
            make_labels(KEY.of_set(place), FORM, 50), make_triggers(KEY.of_set(place), FORM, 50)[1]
        )
    x, y = triggers_of(KEY.of_set(0), FORM, 50)
    assert torch.equal(y, make_labels(stretched(KEY.of_set(0)), FORM, 50))
    assert torch.equal(x, make_triggers(stretched(KEY.of_set(0)), FORM, 50)[0])


def test_triggers_that_a_forger_optimised_on_an_independent_network_are_not_looked_at(tmp_path):
    """The rejected attack: free triggers hit "p < 2^-200" on a network that nobody marked."""
    victim = network(5)
    forger = WatermarkKey(bytes(32))
    with vault_of(tmp_path / "vault") as vault:
        own = commit(forger, FORM, "digits", vault, n=100, sets=4)
    x, y = draw(own.commitment, 0, forger.of_set(0))
    free = x.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(victim(free), y).backward()
        optimizer.step()
    hits = int((victim(free.detach().clamp(0, 1)).argmax(1) == y).sum())
    naive = p_value(hits, 100, 10)
    assert naive < 2.0**-128  # what a verifier would believe who let the claimant choose triggers

    told = tuple(y.tolist())
    outcome = Outcome(0, told, 100, 47, p_value(100, 100, 10, 3), 1, 3, 2.0**-64)
    forged = Claim(own, forger.of_set(0), outcome, "victim", "", time.time())
    with pytest.raises(ClaimError, match="no 'triggers': triggers and labels follow from the key"):
        Claim.from_record(forged.record() | {"triggers": free.detach().tolist()})
    # Without them it agrees with itself, and what the network answers to the key's own tells.
    assert Claim.from_record(forged.record()).outcome.marked
    anew = verify(own.commitment, 0, forger.of_set(0), suspect(victim))
    assert anew.hits <= 30
    assert not anew.marked


def test_a_key_that_was_never_committed_to_draws_no_triggers(published, claim):
    record = claim.record() | {"key": WatermarkKey.generate().of_set(0).hex()}
    with pytest.raises(ClaimError, match="not the one of set 0 that was committed to"):
        Claim.from_record(record)


# --- files ---------------------------------------------------------------------------------------


def test_a_claim_survives_its_file_and_is_written_once(claim, tmp_path):
    claim.write(tmp_path / "claim.json")
    again = Claim.read(tmp_path / "claim.json")
    assert again.record() == claim.record()
    assert again.check().signer == claim.check().signer != ""
    assert (tmp_path / "claim.json").stat().st_mode & 0o777 == 0o600
    assert KEY.secret.hex() not in (tmp_path / "claim.json").read_text()
    with pytest.raises(ClaimError, match="exists already"):
        claim.write(tmp_path / "claim.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hits": 46}, "it was changed"),
        ({"p": 1e-300}, "it was changed"),
        ({"suspects": 2}, "it was changed"),
        ({"answers": [0] * 100}, "it was changed"),
        ({"answers": [0] * 99}, "99 answers"),
        ({"answers": ["a"] * 100}, "no claim"),
        ({"answers": [10**30] * 100}, "no claim"),
        ({"set": 1}, "not the one of set 1"),
        ({"set": 3}, "the reserve"),
        ({"set": True}, "no claim"),
        ({"key": "zz"}, "no claim"),
        ({"date": "yesterday"}, "no claim"),
        ({"date": "2026-11-30T12:00:00"}, "no claim"),
        ({"key": "00" * 31}, "no claim"),
        ({"format": "g2d-ownership-claim-9"}, "no claim"),
        ({"commitment": {}}, "no commitment"),
        ({"commitment": None}, "no commitment"),
    ],
)
def test_a_changed_claim_is_one_line(claim, change, said):
    with pytest.raises(ClaimError, match=said):
        Claim.from_record(claim.record() | change)


def test_no_rubbish_is_a_claim(claim, tmp_path):
    path = tmp_path / "claim.json"
    for text in ("", "{", "[]", "null", '{"hits": NaN}', '{"p": 1e999}', "[" * 10**5, "\xff"):
        path.write_text(text, "latin-1")
        with pytest.raises(ClaimError, match=r"no claim|not the JSON"):
            Claim.read(path)
    short = {name: value for name, value in claim.record().items() if name != "commitment"}
    with pytest.raises(ClaimError, match="no commitment"):
        Claim.from_record(short)
    with pytest.raises(ClaimError, match="cannot read the claim"):
        Claim.read(tmp_path / "absent")


def test_who_did_not_make_a_commitment_wants_it_dated_or_signed_and_early(claim):
    commitment, dated = claim.published.commitment, claim.check()
    refuse_doubtful(commitment, dated, "", False, False)
    with pytest.raises(ClaimError, match="is late for it: give --accept-late"):
        refuse_doubtful(commitment, dated, "late for it", False, True)
    refuse_doubtful(commitment, dated, "late for it", True, False)
    with pytest.raises(ClaimError, match=r"neither time-stamped nor signed.* --accept-own-date"):
        refuse_doubtful(commitment, dataclasses.replace(dated, signer=""), "", True, False)
    refuse_doubtful(commitment, dataclasses.replace(dated, signer=""), "", False, True)
    refuse_doubtful(
        commitment, dataclasses.replace(dated, signer="", authority="tsa"), "", False, False
    )


def test_digests_that_somebody_copies_are_of_no_key_that_the_owner_shows(claim):
    """A stranger copies published digests, signs and dates them before, and waits for a claim."""
    stranger = SigningKey.generate().public.raw[0].hex()
    own = claim.published.commitment
    for change in ({"signer": stranger}, {"signer": ""}, {"vault": "ab" * 16}):
        copied = dataclasses.replace(own, created=own.created - 1000, **change)
        with pytest.raises(ClaimError, match=r"not the one of set 0 .* another vault or signer"):
            draw(copied, 0, claim.set_key)
    assert len(draw(own, 0, claim.set_key)[1]) == 100


def test_dates_out_of_order_are_refused(claim):
    for date in (claim.published.commitment.created - 86_400, time.time() + 86_400):
        moved = Claim(claim.published, claim.set_key, claim.outcome, "", "", date)
        with pytest.raises(ClaimError, match="dates are out of order"):
            moved.check()


# --- by the key ----------------------------------------------------------------------------------


@pytest.fixture
def owned(tmp_path):
    return owning(tmp_path)


def test_a_neutral_party_needs_neither_key_nor_vault(owned, tmp_path):
    path, vault = owned
    marked = suspect(learned(WatermarkKey.read(path), sets=3))
    known = Proof.read(path, vault)
    known.show(known.ask(marked, None, shown=False), marked, tmp_path / "claim.json")
    path.unlink()
    anew = Proof.read(tmp_path / "claim.json")
    assert anew.check().word == "by nobody: it is unsigned"
    assert anew.ask(marked, None, shown=False).marked
    assert not anew.ask(suspect(network(3)), None, shown=False).marked
    with pytest.raises(SettingsError, match="the key of set 0 alone"):
        Proof.read(tmp_path / "claim.json", place=1)
    record = json.loads((tmp_path / "claim.json").read_text())
    assert len(bytes.fromhex(record["key"])) == 32


def test_a_foreign_key_and_a_foreign_vault_are_named(owned, tmp_path):
    path, vault = owned
    foreign = tmp_path / "foreign.key"
    WatermarkKey.generate().write(foreign)
    with pytest.raises(ClaimError, match="not the one of set 0"):
        Proof.read(foreign, vault)
    with vault_of(tmp_path / "other") as other:
        settings = Settings.from_vault(other.settings_text)
        publish(other, settings, FORM, tmp_path / "other.key")
    with pytest.raises(ClaimError, match="not the one of set 0"):
        Proof.read(path, tmp_path / "other")
    known = Proof.read(path, vault)
    unmarked = judge(known.commitment, 0, *[draw(known.commitment, 0, known.set_key(0))[1]] * 2)
    claim = known.claimed(unmarked, suspect(network()))
    claim.write(tmp_path / "claim.json")
    assert Proof.read(tmp_path / "claim.json", vault).chosen == 0
    with pytest.raises(ClaimError, match="of another commitment than"):
        Proof.read(tmp_path / "claim.json", tmp_path / "other")
    beside(path).unlink()
    with pytest.raises(ClaimError, match="name its --vault"):
        Proof.read(path)


def test_the_ledger_shows_a_generation_that_was_there_before(owned):
    path, vault = owned
    known = Proof.read(path, vault)
    dated = known.check()
    assert known.late(dated) == ""
    early = dataclasses.replace(known, first=dated.time - 60)
    assert early.late(dated).startswith("dated after the first generation")
