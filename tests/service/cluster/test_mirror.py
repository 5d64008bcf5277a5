"""Mirror and coordinator: what is announced, what is fetched, what of it is refused."""

from __future__ import annotations

import asyncio
import pickle
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster_script import mirrored, packed_generations
from g2d.errors import RefusedError, VaultError
from g2d.service.cluster.coordinator import Coordinator, Plan
from g2d.service.cluster.lease import AnnouncedGeneration, ReplicaReport, Terms
from g2d.service.cluster.mirror import GenerationBytes, Mirror, MirrorLoader
from g2d.service.http.options import Options
from stand_ins import Fake


def taken(mirror: Mirror, loader: MirrorLoader, packed: GenerationBytes) -> None:
    mirror.take(packed, packed.digest)
    loader.load(3, 2)


def test_a_replica_serves_and_watches_its_marked_copy(signed, key, monkeypatch):
    """Whatever the manifest says is signed; here it is made to say that marks were measured."""
    monkeypatch.setattr("g2d.service.cluster.mirror.strength_of", lambda manifest: 0.04)
    mirror, x = mirrored(signed, packed_generations(signed)[2]), np.ones((1, 1, 8, 8), np.float32)
    try:
        answers = []
        for marks in ((b"", "a"), (b"s" * 32, "a"), (b"s" * 32, "a"), (b"s" * 32, "b")):
            loader = MirrorLoader(mirror.path, "g2d", key=key.public, marks=marks)
            snapshot = loader.first()[0]
            assert snapshot.check() == []
            answers.append(snapshot.predict(x))
            loader.close()
        plain, one, again, other = answers
        assert np.allclose(one, again, atol=1e-4)  # each load has a layout of its own
        assert not np.allclose(one, plain, atol=1e-4)
        assert not np.allclose(one, other, atol=1e-4)
    finally:
        mirror.remove()


def test_a_folder_that_another_replica_takes_for_a_stale_one_is_made_again(
    signed, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make, made = tempfile.mkdtemp, []

    def taken_at_once(**how):
        made.append(Path(make(**how)))
        if len(made) == 1:
            made[0].rmdir()
            made[0].touch()  # so that nothing can be made there any more
        return str(made[-1])

    monkeypatch.setattr("tempfile.mkdtemp", taken_at_once)
    mirror = mirrored(signed, packed_generations(signed)[2])
    assert mirror.path.parent == made[1]
    mirror.remove()


def test_trusted_keys_travel(key):
    there = pickle.loads(pickle.dumps(key.public))
    assert there.fingerprints == key.public.fingerprints


@pytest.mark.parametrize("trusting", [False, True])
def test_a_mirror_serves_what_the_vault_does_and_refuses_the_rest(signed, key, trusting):
    made = packed_generations(signed)
    mirror = mirrored(signed, made[2])
    folder = mirror.path.parent
    try:
        loader = MirrorLoader(mirror.path, "g2d", key=key.public if trusting else None)
        assert loader.first()[0].number == 2
        for spoilt in (
            replace(made[3], weights=made[3].weights[:-1] + b"\0"),
            replace(made[3], weights=made[2].weights),
            replace(made[3], manifest=made[3].manifest.replace(b'"number": 3', b'"number": 4')),
            replace(made[2], number=3),
            *([replace(made[3], signature=bytes(64)), replace(made[3], signature=b"")] * trusting),
        ):
            with pytest.raises(VaultError):
                taken(mirror, loader, spoilt)
        with pytest.raises(RefusedError, match="changed on its way"):
            mirror.take(made[3], made[2].digest)
        mirror.take(made[3], made[3].digest)
        assert loader.load(3, 2).number == 3
        mirror.retire(3)
        assert [g.number for g in mirror.generations()] == [3]
        assert [p.name for p in (mirror.path / "generations").iterdir()] == ["000003"]
        assert loader.again(3).number == 3
        loader.close()
    finally:
        mirror.remove()
    assert not folder.exists()


def test_a_coordinator_announces_what_is_live_where_its_store_put_it(signed, key, monkeypatch):
    monkeypatch.setattr("g2d.service.assembly.Worker", lambda *_: Fake(live=2))
    stored: list[GenerationBytes] = []

    def store(packed: GenerationBytes) -> str:
        stored.append(packed)
        return f"at {len(stored)}"

    coordinator = Coordinator(Plan(signed, Options(), Terms(beat=0.1), key=key.public), store)
    try:
        assert asyncio.run(coordinator.start()) == ("", 2)
        update = asyncio.run(coordinator.watch(ReplicaReport("a replica")))
    finally:
        asyncio.run(coordinator.stop())
    assert stored[0].number == 2
    assert update.live == AnnouncedGeneration(2, stored[0].digest, "at 1")


def test_a_coordinator_whose_clock_was_put_back_alarms_of_the_future(signed, key, monkeypatch):
    monkeypatch.setattr("g2d.service.assembly.Worker", lambda *_: Fake(live=2))
    monkeypatch.setattr("time.time", lambda now=time.time(): now - 7 * 86_400)  # noqa: B008
    coordinator = Coordinator(Plan(signed, Options(), Terms(beat=0.1), key=key.public), id)
    try:
        update = asyncio.run(coordinator.watch(ReplicaReport("a replica")))
    finally:
        asyncio.run(coordinator.stop())
    assert ("alarm", "future") in [
        (told.event.name, told.event.facts().get("kind")) for told in update.events
    ]
