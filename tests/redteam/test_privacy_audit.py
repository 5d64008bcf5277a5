"""Canaries from planting to verdict: coins, a population that learned them, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import g2d
from commands import fail
from g2d.core.engine import SerialEngine
from g2d.defence.planting import plant_canaries
from g2d.errors import DataError, KeyFileError, PrivacyError, SettingsError, VaultError
from g2d.protect.privacy.canary_key import CanaryKey
from g2d.redteam import privacy_audit
from g2d.redteam.context import AttackContext
from g2d.redteam.privacy_audit import Audit, Claim, judged, surplus
from g2d.redteam.rows import Row
from g2d.redteam.scoring import share
from g2d.redteam.threats.privacy.claim import Promise, beside
from g2d.settings import HardenSettings, build
from g2d.tasks import planted
from g2d.tasks.source import data_digest, with_canaries
from g2d.training.recipes.distil import find_teacher
from g2d.vault.records import PLANTED
from g2d.vault.serving import about_canaries, open_to_serve
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack

SECRET = bytes(range(32))


def test_canaries_take_the_place_of_records_and_half_of_them_are_there(digits):
    found = planted.draw(digits, SECRET, 200)
    train = digits.splits.train
    assert 70 < int(found.coins.sum()) < 130
    assert len(found.taken) == len(set(found.taken.tolist())) == 200
    task = planted.plant(digits, found.pack())
    inside = int(found.coins.sum())
    assert len(task.splits.train) == len(train) - 200 + inside
    assert torch.equal(task.splits.train.x[-inside:], found.canaries.x[found.coins])
    assert torch.equal(task.splits.train.y[-inside:], found.canaries.y[found.coins])
    rows = {row.numpy().tobytes(): int(y) for row, y in zip(train.x, train.y, strict=True)}
    wrong = [rows[x.numpy().tobytes()] != int(y) for x, y in zip(*_pair(found), strict=True)]
    assert all(wrong)
    left = {row.numpy().tobytes() for row in task.splits.train.x}
    outside = found.canaries.x[~found.coins]
    assert not any(row.numpy().tobytes() in left for row in outside)


def _pair(found):
    return found.canaries.x, found.canaries.y


def test_all_of_it_comes_of_the_secret(digits):
    one, again = planted.draw(digits, SECRET, 50), planted.draw(digits, SECRET, 50)
    other = planted.draw(digits, bytes(32), 50)
    assert one.pack() == again.pack()
    assert not torch.equal(one.coins, other.coins)
    assert not torch.equal(one.taken, other.taken)
    more = planted.draw(digits, SECRET, 60)
    assert torch.equal(more.coins[:50], one.coins)
    blended = planted.draw(digits, SECRET, 50, planted.BLENDED)
    assert len(blended.taken) == 100
    assert blended.canaries.x.shape == one.canaries.x.shape


def test_no_canary_has_a_copy_that_would_stay_when_its_coin_takes_it_away(digits):
    """A unit is a record with all its copies: of such a one a coin would only change the label."""
    splits, few = digits.splits, range(40)
    train = splits.train.take([*few, *range(10), *range(40, 60)])
    guide = splits.guide.take(range(20))
    guide = type(guide)(torch.cat([guide.x, train.x[60:70]]), torch.cat([guide.y, train.y[60:70]]))
    copied = dataclasses.replace(
        digits, splits=type(splits)(train, guide, splits.gate, splits.test)
    )
    found = planted.draw(copied, SECRET, 20)
    assert set(found.taken.tolist()) <= {*range(10, 40), *range(50, 60)}
    with pytest.raises(DataError, match=r"among 40 records .30 more have exact copies.*1 to 20"):
        planted.draw(copied, SECRET, 21)


def test_what_cannot_be_planted_is_refused(digits):
    with pytest.raises(DataError, match="expected 1 to"):
        planted.draw(digits, SECRET, len(digits.splits.train))
    with pytest.raises(DataError, match="mislabelled or blended"):
        planted.draw(digits, SECRET, 5, "golden")
    tokens = dataclasses.replace(planted.draw(digits, SECRET, 5)).pack()
    with pytest.raises(DataError, match="--data"):
        planted.plant(digits, tokens[:-9])
    named = ("digits", "", 0, 0.0)
    task, source = with_canaries(digits, named, tokens)
    assert g2d.tasks.source.resolve(source) is task
    assert source[:4] == named


def test_a_key_is_a_file_of_its_own(tmp_path):
    key = CanaryKey.generate("a" * 32, 10, 4, planted.MISLABELLED)
    assert key.secret.hex() not in repr(key)
    path = tmp_path / "keys" / "canaries.key"
    key.write(path)
    assert CanaryKey.read(path) == key
    assert CanaryKey.read(path).commitment == key.commitment
    with pytest.raises(KeyFileError, match="never overwritten"):
        key.write(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        CanaryKey.read(path)
    for text in ("{}", "no", json.dumps(json.loads(path.read_text()) | {"guesses": 11})):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match="no canary key"):
            CanaryKey.read(path)
    with pytest.raises(KeyFileError, match="cannot read"):
        CanaryKey.read(tmp_path / "none")


def remembered(count: int, strength: float) -> tuple[planted.Planting, np.ndarray, np.ndarray]:
    """Confidences of five networks in canaries that are as hard as they are, and remembered."""
    source = torch.Generator().manual_seed(1)
    coins = torch.rand(count, generator=source) < 0.5
    y = torch.randint(10, (count,), generator=source)
    hard = 3 * torch.randn(count, generator=source, dtype=torch.float64) + y
    noise = torch.randn(5, count, generator=source, dtype=torch.float64)
    phi = hard + strength * coins + noise
    split = g2d.tasks.splits.Split(torch.zeros(count, 1), y)
    reference = hard + 0.3 * torch.randn(count, generator=source, dtype=torch.float64)
    return planted.Planting(split, coins, torch.arange(count)), phi.numpy(), reference.numpy()


def test_a_reference_shows_what_was_remembered():
    planting, phi, reference = remembered(1000, 2.0)
    claim = Claim(1e-5, 1.0, ((0.5, 0.1), (1.0, 1e-5)))
    found = judged(planting, {"trained": phi}, reference, 200, claim, 10, 0.05)
    alone = judged(planting, {"trained": phi}, None, 200, claim, 10, 0.05)
    assert found.guesses.right > 190 > alone.guesses.right
    assert found.bound > 2
    assert found.refuted
    assert found.p < 0.05
    assert found.bound <= found.most < found.most_canaries
    assert found.by_kind["trained"] == found.guesses
    own = surplus(phi, reference, planting.canaries.y.numpy(), 10)
    assert abs(own.mean()) < 1e-9
    assert own.std() == pytest.approx(1)


def test_nothing_remembered_refutes_nothing():
    planting, phi, reference = remembered(1000, 0.0)
    claim = Claim(1e-5, 0.5, ((0.5, 1e-5),))
    found = judged(planting, {"a": phi, "b": phi}, reference, 200, claim, 10, 0.05)
    assert found.bound < 0.5
    assert not found.refuted
    none = judged(planting, {"a": phi}, reference, 200, Claim(1e-5, math.inf), 10, 0.05)
    assert none.p is None
    assert not none.refuted
    assert none.as_json()["claim"] is None
    with pytest.raises(PrivacyError, match="g2d population"):
        judged(planting, {}, reference, 200, claim, 10, 0.05)


@pytest.fixture(scope="module")
def audited(tmp_path_factory, tiny_settings) -> tuple[Path, Path]:
    """A small vault without privacy whose networks learned their canaries by heart, and its key."""
    folder = tmp_path_factory.mktemp("audit")
    path, key = folder / "vault", folder / "canaries.key"
    settings = build(g2d.Settings, {
        "task": {"name": "digits"},
        "population": {"members": 2, "basins": 1, "recipe": "forks", "base_steps": 400,
                       "early_steps": 1, "fork_steps": 40, "batch": 64, "pool": 8},
    }, "a test")  # fmt: skip
    with g2d.Defence.create("digits", path, settings) as defence, pytest.MonkeyPatch.context() as m:
        # Coins of the system's entropy let this very vault be guessed too badly once in a while.
        m.setattr(CanaryKey, "generate", classmethod(lambda cls, *about: cls(SECRET, *about)))
        plant_canaries(defence, key, 100, 60, planted.MISLABELLED)
    with g2d.Defence.open(path) as defence:
        assert len(defence.task.splits.train) < len(g2d.load_task("digits").splits.train)
        defence.populate(SerialEngine())
    return path, key


def test_an_audit_finds_what_plain_training_remembers(audited):
    path, file = audited
    found = privacy_audit.audit(path, CanaryKey.read(file), references=1)
    assert isinstance(found, Audit)
    assert found.networks == {"trained": 4}
    assert found.guesses.right > 45, "of 60"
    assert found.bound > 0.5
    assert found.claim == math.inf
    assert found.uncovered[0].startswith("base: ")
    assert json.dumps(found.as_json())


def test_a_vault_with_canaries_says_so_and_is_not_served(audited, tmp_path):
    path, file = audited
    key = CanaryKey.read(file)
    with Vault.open(path) as vault:
        assert "100 planted canaries" in about_canaries(vault)
        kept = vault.entry(PLANTED)
    data = data_digest(g2d.load_task("digits"))
    about = {"canaries": 100, "kind": "mislabelled", "key": key.commitment, "data": data}
    assert kept.info == about
    with pytest.raises(VaultError, match="audit of privacy alone"):
        open_to_serve(path)
    with pytest.raises(VaultError, match="audit of privacy alone"):
        find_teacher(HardenSettings(recipe=("distil",), teacher=str(path)))
    with g2d.Defence.open(path) as opened, pytest.raises(VaultError, match="wrong labels"):
        g2d.Rotor(opened)
    told = fail("export", path, tmp_path / "out.safetensors")
    assert "audit of privacy alone" in " ".join(told.split())
    other = dataclasses.replace(key, guesses=50)
    with pytest.raises(KeyFileError, match="not the key"):
        privacy_audit.audit(path, other)
    with pytest.raises(SettingsError, match="between 0 and 1"):
        privacy_audit.audit(path, key, alpha=0.0)
    with g2d.Defence.open(path) as defence, pytest.raises(PrivacyError, match="already"):
        plant_canaries(defence, tmp_path / "second.key", 10, 2, planted.MISLABELLED)
    with g2d.Defence.open(path, defence.task, write=False) as again:  # as attacks open it
        assert len(again.task.splits.train) == len(defence.task.splits.train)
    assert not (tmp_path / "second.key").exists()


def test_references_are_trained_as_the_base_is_but_on_no_canary(audited, digits, monkeypatch):
    path, file = audited
    jobs, teacher = [], object()

    def seen(job):
        jobs.append(job)
        raise PrivacyError("enough")

    monkeypatch.setattr(privacy_audit, "teacher_of", lambda vault, harden: teacher)
    monkeypatch.setattr(privacy_audit, "run_job", seen)
    with pytest.raises(PrivacyError, match="enough"):
        privacy_audit.audit(path, CanaryKey.read(file))
    assert jobs[0].teacher is teacher
    assert len(jobs[0].task.splits.train) == len(digits.splits.train) - 100


def test_canaries_are_of_their_own_data_and_have_to_be_learned(digits, tiny_settings, tmp_path):
    """Places in other data are other records; what was never learned would seem to be safe."""
    path, key = tmp_path / "vault", tmp_path / "canaries.key"
    with g2d.Defence.create("digits", path, tiny_settings) as defence:
        plant_canaries(defence, key, 20, 10, planted.MISLABELLED)
        with pytest.raises(PrivacyError, match="no network yet"):
            privacy_audit.audit(path, CanaryKey.read(key))
        state = digits.model(0).state_dict()
        defence.vault.put("base", 0, {"weights": pack(state)}, {"data": data_digest(digits)})
    with pytest.raises(PrivacyError, match="not trained on the records"):
        privacy_audit.audit(path, CanaryKey.read(key))
    splits = digits.splits
    other = dataclasses.replace(digits, splits=type(splits)(
        splits.train.take(range(len(splits.train) - 1, -1, -1)), splits.guide, splits.gate,
        splits.test,
    ))  # fmt: skip
    with pytest.raises(DataError, match="not those that the canaries"):
        g2d.Defence.open(path, other)


def test_a_key_of_what_could_not_be_planted_does_not_stay(digits, tiny_settings, tmp_path):
    path, key = tmp_path / "vault", tmp_path / "canaries.key"
    g2d.Defence.create("digits", path, tiny_settings).close()
    with g2d.Defence.open(path, write=False) as defence, pytest.raises(VaultError, match="writing"):
        plant_canaries(defence, key, 20, 10, planted.MISLABELLED)
    assert not key.exists()


def test_planting_comes_before_training(tiny_vault, defence, tmp_path):
    with pytest.raises(PrivacyError, match="new vault"):
        plant_canaries(defence, tmp_path / "k", 10, 2, planted.MISLABELLED)
    with pytest.raises(PrivacyError, match="no canaries"):
        privacy_audit.audit(tiny_vault, CanaryKey.generate("", 10, 2, planted.MISLABELLED))


def row(chain: str, kind: str = "privacy-membership", metric: str = "TPR at 1 % FPR") -> Row:
    return Row("privacy", kind, "", chain, "LiRA", share(3, 100), metric=metric, chain=chain,
               note="AUC 0.5", extra={"read": 1})  # fmt: skip


def test_the_promise_stands_beside_membership_rows():
    promise = Promise(1.0, 1e-5)
    own, control, other = beside(
        [row("generated"), row("retrained"), row("generated", "x")], promise
    )
    allowed = math.e * 0.01 + 1e-5
    assert own.extra["allowed"] == pytest.approx(allowed)
    assert own.extra["epsilon"] == 1.0
    assert own.note == "AUC 0.5; epsilon 1.00 at delta 1e-05 allows 2.7% at most"
    assert control.note == "AUC 0.5; a control: the ledger promises nothing of it"
    assert other == row("generated", "x")
    assert Promise(20.0, 0.0).most(0.01) == pytest.approx(1.0)
    assert Promise(1000.0, 1e-5).most(0.01) == 1.0
    (unbounded,) = beside([row("generated")], Promise(math.inf, 1e-5))
    assert "infinite" in unbounded.note
    assert beside([row("generated")], None) == [row("generated")]


def test_a_vault_without_privacy_promises_nothing(tiny_settings, digits):
    from g2d.redteam.context import RunSpec
    from g2d.redteam.threats.privacy.claim import promised

    assert promised(AttackContext(RunSpec(digits, "", tiny_settings))) is None
