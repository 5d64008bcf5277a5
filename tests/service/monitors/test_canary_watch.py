"""The watch by canaries: what answers otherwise is found, replaced and rotated away from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from g2d.protect.canaries.kept import read_canaries
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
    monitor = Monitor(*parts, every=0, also=watched.watch.watch)
    watched.damage()
    monitor.start()
    try:
        wait_for(lambda: watched.count("changed") == 1.0)
        wait_for(lambda: watched.count("sound") > 0)
    finally:
        monitor.stop()
    kinds = [alarm["kind"] for _, alarm in watched.told]
    assert kinds.count("canary") == 1  # on a slow machine one that it is late besides


def test_where_sound_copies_answer_otherwise_it_is_told_once_and_nothing_rotates(
    loader, monkeypatch
):
    watched = Watched(loader)
    kept = loader.canaries(1)
    other = replace(kept, logits=kept.logits + 1)
    monkeypatch.setattr(loader, "canaries", lambda _: other)
    assert not watched.watch.check()
    assert watched.watch.check()  # it is checked no more
    ((_, alarm),) = watched.told
    assert "so does a fresh copy" in alarm["text"]
    assert watched.rotation.status()["due"] == []
    assert watched.count("none kept") == 1.0


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


def test_flips_are_of_weights_that_the_watch_over_ranges_lets_pass(loader):
    """A sign stays in its layer's range: without this the tests above would show nothing."""
    watched = Watched(loader)
    before = [p.clone() for p in watched.live.snapshot.predict._model.parameters()]
    watched.damage()
    after = list(watched.live.snapshot.predict._model.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == 1
