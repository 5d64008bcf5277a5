"""The watch by canaries: what answers otherwise is found, replaced and rotated away from."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from g2d.errors import VaultError
from g2d.protect.canaries.kept import read_canaries
from g2d.protect.snapshots import ArrayInference
from g2d.rotation.scheduler import Rotation, Triggers
from g2d.rotation.snapshot import Live
from g2d.service.http.metrics import Metrics
from g2d.service.monitors.canaries import CanaryWatch
from g2d.service.monitors.memory import Monitor
from stand_ins import Fake, into, wait_for


class Watched:
    """A live generation under the watch, and what it tells."""

    def __init__(self, loader) -> None:
        first, _warning = loader.first()
        self.live, self.told = Live(first), []
        self.rotation = Rotation(self.live, Fake(), Fake(), Triggers(), into(self.told))
        self.metrics = Metrics(self.rotation.status)
        self.watch = CanaryWatch(self.live, loader, self.rotation, self.metrics)

    def damage(self) -> None:
        """Flip the sign of the largest weight of the last layer, in memory."""
        weights = list(self.live.snapshot.predict._model.parameters())[-2].view(-1)
        weights[weights.abs().argmax()] *= -1

    def count(self, outcome: str) -> float:
        name = "g2d_canary_checks_total"
        return self.metrics.registry.get_sample_value(name, {"outcome": outcome}) or 0.0


def test_a_flipped_weight_is_answered_otherwise_healed_and_rotated_away_from(loader, x):
    watched = Watched(loader)
    first, before = watched.live.snapshot, watched.live.snapshot.predict(x)
    assert watched.watch.check()
    watched.damage()
    assert not watched.watch.check()
    assert watched.live.snapshot is not first
    assert np.allclose(watched.live.snapshot.predict(x), before, atol=1e-4)
    ((name, alarm),) = watched.told
    assert (name, alarm["kind"]) == ("alarm", "canary")
    assert "of 16 canaries otherwise; healed from the vault" in alarm["text"]
    assert watched.rotation.status()["due"] == ["alarm: canary"]
    assert watched.watch.check()
    assert (watched.count("changed"), watched.count("sound")) == (1.0, 2.0)


def test_the_service_asks_by_itself_without_the_watch_over_memory(loader):
    loader.canary_every = 0.01
    watched = Watched(loader)
    parts = watched.live, loader, watched.rotation, watched.metrics
    monitor = Monitor(*parts, every=0, also=[watched.watch.watch])
    watched.damage()
    monitor.start()
    try:
        wait_for(lambda: watched.count("changed") == 1.0)
        wait_for(lambda: watched.count("sound") > 0)
    finally:
        monitor.stop()
    kinds = [alarm["kind"] for _, alarm in watched.told]
    assert kinds.count("canary") == 1  # on a slow machine one that it is late besides


class Elsewhere:
    """A loader on a machine that computes otherwise than where canaries were made."""

    canary_every = 0.0

    def __init__(self, loader, kept) -> None:
        self.loader, self.kept, self.reloads = loader, kept, 0

    def first(self):
        return self.loader.first()

    def again(self, number):
        self.reloads += 1
        return replace_number(self.loader.again(1), number)

    def canaries(self, _):
        return self.kept


def replace_number(snapshot, number):
    return replace(snapshot, number=number)


def test_a_machine_of_other_arithmetic_is_told_once_whatever_generations_come(loader):
    kept = loader.canaries(1)
    there = Elsewhere(loader, replace(kept, logits=kept.logits + 1))
    watched = Watched(there)
    assert not watched.watch.check()
    for number in (2, 3):
        assert watched.watch.check()
        watched.live.swap(replace_number(loader.again(1), number))
    assert watched.watch.check()
    ((_, alarm),) = watched.told
    assert "so does a fresh copy" in alarm["text"]
    assert watched.rotation.status()["due"] == []
    assert there.reloads == 1
    assert (watched.count("changed"), watched.count("this machine differs")) == (1.0, 3.0)
    there.kept = kept  # a generation that this machine answers as it was made
    watched.live.swap(replace_number(loader.again(1), 4))
    assert watched.watch.check()
    watched.damage()
    assert not watched.watch.check()
    assert "healed from the vault" in watched.told[-1][1]["text"]


def test_an_error_of_a_moment_turns_no_canaries_off(loader, monkeypatch):
    watched, read, failing = Watched(loader), loader.canaries, [True, True, False]

    def canaries(number):
        if failing.pop(0):
            raise VaultError("the disk is away")
        return read(number)

    monkeypatch.setattr(loader, "canaries", canaries)
    assert watched.watch.check()
    assert watched.watch.check()
    assert [alarm["kind"] for _, alarm in watched.told] == ["canary"]  # told once
    watched.damage()
    assert not watched.watch.check()


def test_a_network_gone_dead_is_found_whatever_its_logits_are(loader):
    """All answers alike: zeros pass for rounded logits where those are small."""
    small = replace(loader.canaries(1), tolerance=1e-5)
    small = replace(small, logits=small.logits / np.abs(small.logits).max() * 0.4)
    watched = Watched(Elsewhere(loader, small))
    dead = replace(watched.live.snapshot, predict=lambda x: np.zeros((len(x), 10), np.float32))
    assert watched.live.heal(dead)
    assert not watched.watch.check()


class Keeping(nn.Module):
    """Keeps what it computes on itself in between, as many do."""

    def forward(self, x):
        self.kept = x.flatten(1)
        time.sleep(0)
        return self.kept * 2


def test_answers_of_a_model_that_keeps_things_on_itself_are_not_mixed():
    predict, wrong, going = ArrayInference(Keeping()), [0], threading.Event()

    def ask(value: float) -> None:
        x = np.full((2, 4), value, np.float32)
        going.wait()
        for _ in range(800):
            wrong[0] += not (predict(x) == 2 * value).all()

    threads = [threading.Thread(target=ask, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    going.set()
    for thread in threads:
        thread.join()
    assert wrong == [0]


def test_damaged_canaries_are_told_once_and_old_generations_have_none(vault, loader, monkeypatch):
    file = vault / "generations" / "000001" / "canaries.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    watched = Watched(loader)
    assert watched.watch.check()
    assert watched.watch.check()
    ((_, alarm),) = watched.told
    assert "not checked by canaries" in alarm["text"]
    assert watched.rotation.status()["due"] == []
    monkeypatch.setattr(loader, "canaries", lambda _: None)
    watched = Watched(loader)
    assert watched.watch.check()
    assert watched.told == []


@pytest.mark.parametrize("every", [0.0, 1e6])
def test_nothing_is_asked_before_it_is_time(loader, every):
    loader.canary_every = every
    watched = Watched(loader)
    watched.watch.watch()
    assert watched.count("sound") == 0


def test_a_replica_has_the_canaries_of_what_it_serves(signed_vault, key_file):
    from cluster_script import mirrored, packed_generations
    from g2d.service.cluster.mirror import MirrorLoader
    from g2d.vault.signing import SigningKey
    from g2d.vault.vault import Vault

    made = packed_generations(signed_vault)
    mirror = mirrored(signed_vault, made[2])
    try:
        loader = MirrorLoader(mirror.path, "g2d", key=SigningKey.read(key_file).public)
        watched = Watched(loader)
        with Vault.open(signed_vault) as opened:
            assert np.array_equal(loader.canaries(2).x, read_canaries(opened, 2).x)
        assert watched.watch.check()
        watched.damage()
        assert not watched.watch.check()
        loader.close()
    finally:
        mirror.remove()


def test_a_marked_replica_drops_canaries_whose_classes_nearly_tie_there(
    signed_vault, key_file, monkeypatch
):
    from cluster_script import mirrored, packed_generations
    from g2d.service.cluster.mirror import MirrorLoader
    from g2d.vault.signing import SigningKey

    monkeypatch.setattr("g2d.service.cluster.mirror.strength_of", lambda manifest: 0.04)
    mirror = mirrored(signed_vault, packed_generations(signed_vault)[2])
    key = SigningKey.read(key_file).public
    try:
        loader = MirrorLoader(mirror.path, "g2d", key=key, marks=(b"s" * 32, "a"))
        answered = loader.again(2)
        lead = np.r_[1.5, 1.0, 0.0, np.full(13, 3.0)] * loader.canaries(2).tolerance
        logits = np.zeros((16, 10), np.float32)
        logits[:, 4] = lead
        fixed = replace(answered, predict=lambda x: logits[: len(x)])
        monkeypatch.setattr(loader, "again", lambda _: fixed)
        found = loader.canaries(2)
        assert (found.margins >= 2 * found.tolerance).all()
        assert len(found) == 13
        logits[:] = 0.0
        assert loader.canaries(2) is None
        loader.close()
    finally:
        mirror.remove()


def test_flips_are_of_weights_that_the_watch_over_ranges_lets_pass(loader):
    """A sign stays in its layer's range: without this the tests above would show nothing."""
    watched = Watched(loader)
    before = [p.clone() for p in watched.live.snapshot.predict._model.parameters()]
    watched.damage()
    after = list(watched.live.snapshot.predict._model.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == 1
