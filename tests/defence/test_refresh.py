"""A whole refresh, on the tiny vault: killed, refused, accepted, taken up, and put back."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage

import g2d
from g2d.core.engine import SerialEngine
from g2d.defence.refresh import Refresh, follow, judging, refresh, take_up
from g2d.defence.refresh.checks import Check
from g2d.defence.refresh.work import _check_enough as check_enough
from g2d.defence.tracing import Tracer
from g2d.errors import DataError, VaultError
from g2d.protect.trace.judgement import MEMBER
from g2d.service.worker import Worker
from g2d.settings import Settings
from g2d.tasks.keyed import Sorted
from g2d.tasks.splits import Split
from g2d.vault.sources import STAGED, put_back
from g2d.vault.vault import Vault
from g2d.vault.verify import verify
from stand_ins import into

LOOSE = {
    "refresh__effort": 0.05, "refresh__pool": 64, "refresh__former_drop": 1.0,
    "refresh__label_noise": 1.0, "refresh__spectral": 1.0, "refresh__backdoor": 0.0,
    "refresh__class_drop": 1.0,
    "gates__accuracy_drop": 1.0, "gates__class_drop": 1.0,
}  # fmt: skip


class Counting(SerialEngine):
    """Counts jobs, and is interrupted before the one that is one too many."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.most, self.done = most, 0

    def run(self, function, jobs):
        for found in super().run(function, jobs):
            self.done += 1
            yield found
            if self.done >= self.most:
                raise KeyboardInterrupt


def turned(split: Split, degrees: float) -> Split:
    x = ndimage.rotate(split.x.numpy(), degrees, axes=(2, 3), reshape=False, order=1)
    return Split(torch.from_numpy(np.clip(x, 0, 1)), split.y)


@pytest.fixture
def path(tiny_vault, tmp_path):
    copy = tmp_path / "vault"
    shutil.copytree(tiny_vault, copy)
    with Vault.open(copy, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text).override(**LOOSE)
        opened.write_settings(settings.to_toml())
    return copy


def made(path, given: Split, engine: SerialEngine, **how):
    with g2d.Defence.open(path, write=False) as defence:
        return refresh(defence, given, Refresh(engine, **how))


def by_a_service(path, monkeypatch):
    """What a service's worker makes and commits next, and the alarm that it tells."""
    monkeypatch.delattr(os, "SCHED_IDLE", raising=False)
    monkeypatch.setattr("g2d.service.worker.NICE", 0)
    monkeypatch.setattr("g2d.service.worker._SHARE", 0.0)
    told: list[tuple[str, dict]] = []
    worker = Worker(path, tell=into(told))
    try:
        number = worker.make(1)
        worker.commit(number)
    finally:
        worker.close()
    return number, dict(told)["alarm"]


def test_a_refresh_from_its_first_record_to_the_way_back(path, digits, monkeypatch):
    given = turned(digits.splits.train.take(range(420)), 25)
    first = Counting(most=2)  # killed after two forks
    with Vault.open(path, write=True), pytest.raises(KeyboardInterrupt):
        made(path, given, first)  # beside another writer
    other = turned(digits.splits.train.take(range(420)), 40)
    with pytest.raises(VaultError, match=r"an unfinished refresh .* with other data waits"):
        made(path, other, Counting())

    bad = Check("label_noise", False, 0.3, 0.1, "wrong labels: 30 %; at most 10 % is allowed")
    monkeypatch.setattr(judging, "noise_check", lambda *_: bad)
    second, lines = Counting(), []
    with pytest.raises(DataError, match=r"refused: .*wrong labels: 30 %.* --accept-data"):
        made(path, given, second, say=lines.append)
    assert "REFUSED: wrong labels: 30 %; at most 10 % is allowed" in lines
    with Vault.open(path, write=True) as vault:
        assert (take_up(vault), vault.source) == (None, 0)  # it is not ready
    told = made(path, given, third := Counting(), accept=True)
    assert (first.done + second.done, third.done) == (told.forks, 0)
    assert "label_noise" in told.accepted  # few steps may fail other checks, too

    shutil.copytree(path / STAGED, path.with_name("left"))
    number, alarm = by_a_service(path, monkeypatch)
    said, accepted = alarm["text"].split("; ")
    assert (number, said) == (2, "generations come from renewal 1 from now on")
    assert "label_noise" in accepted
    assert not (path / STAGED).exists()
    with g2d.Defence.open(path) as defence:
        assert take_up(defence.vault) is None
        assert (defence.vault.source, defence.vault.live()) == (1, 2)
        added = defence.task.splits.added
        assert (added("gate") >= 16, added("test")) == (True, 0)
        assert "label_noise" in defence.vault.sources()[-1]["accepted"]
        manifest = defence.generation(2).manifest
        back = follow(defence)  # what a worker does
        assert torch.equal(back.task.splits.gate.x, defence.task.splits.gate.x)
    assert manifest["renewal"] == 1
    assert manifest["accepted"] == sorted(told.accepted)
    assert {"former_data", "new_data"} <= {gate["gate"] for gate in manifest["gates"]}
    assert json.dumps(manifest["records"]) != "[]"
    assert verify(path) == []
    assert made(path, given, Counting()).known

    with Vault.open(path, write=True) as vault:
        back = put_back(vault, Settings.from_toml(vault.settings_text))
        shutil.copytree(path.with_name("left"), path / STAGED)
        assert take_up(vault) is None  # a kill had left it: it was taken up, and was left
        assert not (path / STAGED).exists()
    assert (back.number, back.of) == (3, 1)
    with g2d.Defence.open(path) as defence:
        assert defence.task.splits.added("train") == 0
        assert (path / "population" / "1000000.records.safetensors").stat().st_mode & 0o077 == 0
        attacked = defence.exposure(2)  # by the splits that it was made with
        assert torch.equal(attacked.gate.y, attacked.gate_clean.y)
        (again,) = defence.generate()
        assert "renewal" not in again.manifest
        assert again.manifest["exposed"] == [1, 2, 3]
        named = {n.number for n in Tracer(defence).known if n.kind == MEMBER}
        assert {0, 1_000_000} <= named  # a member is named, whichever population it was of
    assert verify(path) == []


def test_too_few_new_records_are_said_before_anything_is_trained(path, digits):
    engine = Counting()
    with pytest.raises(DataError, match=r"too few of the records are new.*40 known already"):
        made(path, digits.splits.train.take(range(40)), engine)
    some = turned(digits.splits.train.take(range(30)), 10)
    with pytest.raises(DataError, match="each side needs 16"):
        made(path, some, engine)
    shuffled = turned(digits.splits.train.take(range(420)), 25)
    wrong = Split(shuffled.x, (shuffled.y + 3) % 10)
    with pytest.raises(DataError, match="beyond chance"):
        made(path, wrong, engine, anew=True)
    assert engine.done == 0


def test_new_records_to_train_on_of_one_class_are_refused():
    one = Split(torch.rand(40, 1, 8, 8), torch.full((40,), 3))
    both = Split(one.x, torch.arange(40) % 2)
    with pytest.raises(DataError, match=r"all of one class: .* records of at least two"):
        check_enough(Sorted({"train": one, "guide": both, "gate": both}))
    check_enough(Sorted({"train": both, "guide": one, "gate": one}))
