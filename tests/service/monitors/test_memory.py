"""The watch over weights in memory: found, healed from the vault, told."""

from __future__ import annotations

import sqlite3
import time

import numpy as np
import torch

from g2d.rotation.snapshot import Live
from stand_ins import into, wait_for


def test_a_flipped_bit_is_found_and_healed_from_the_vault(vault, loader, x):
    from g2d.rotation.scheduler import Rotation, Triggers
    from g2d.service.http.metrics import Metrics
    from g2d.service.monitors.memory import Monitor
    from stand_ins import Fake

    first, _warning = loader.first()
    live, told = Live(first), []
    rotation = Rotation(live, Fake(), Fake(), Triggers(), into(told))
    metrics = Metrics(rotation.status)
    monitor = Monitor(live, loader, rotation, metrics, every=0.05)
    before = first.predict(x)
    assert monitor.check()
    *_, bias = first.predict._model.parameters()
    bias.view(torch.int32)[3] ^= -(1 << 31)  # its sign: in range, and in no unit that may be off
    assert not np.allclose(first.predict(x), before, atol=1e-5)
    monitor.start()
    wait_for(lambda: live.snapshot is not first)
    monitor.stop()
    assert np.allclose(live.snapshot.predict(x), before, atol=1e-5)  # another secret layout
    ((_, alarm),) = told
    assert alarm["kind"] == "integrity"
    assert "healed" in alarm["text"]
    assert b'g2d_integrity_checks_total{outcome="changed"} 1.0' in metrics.render()
    assert rotation.status()["due"] == ["alarm: integrity"]


def test_a_watch_goes_on_whatever_is_wrong_and_tells_what_expires(vault, loader):
    from dataclasses import replace

    from g2d.rotation.scheduler import Rotation, Triggers
    from g2d.service.http.metrics import Metrics
    from g2d.service.monitors.memory import Monitor
    from stand_ins import Fake

    first, _warning = loader.first()
    live, told = Live(replace(first, expires=time.time() + 0.2)), []
    rotation = Rotation(live, Fake(), Fake(), Triggers(), lambda event: told.append(event.facts()))
    monitor = Monitor(live, loader, rotation, Metrics(rotation.status), every=0.05)
    ledger = sqlite3.connect(vault / "ledger.sqlite")
    with ledger:
        ledger.execute("UPDATE generations SET manifest = 'not json', files = 'nor this'")
    ledger.close()
    weights = next(iter(first.predict._model.parameters()))
    weights.view(torch.int32).view(-1)[3] ^= 1 << 30
    monitor.start()
    try:
        wait_for(lambda: sum("NOT healed" in f["text"] for f in told) > 1)
        wait_for(lambda: any(f["kind"] == "expired" for f in told))
    finally:
        monitor.stop()
    assert sum(f["kind"] == "expired" for f in told) == 1
