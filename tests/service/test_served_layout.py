"""Every load for serving has a secret layout: start, spare, heal; the plain one on request."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

import g2d
from g2d.rotation.scheduler import Rotation, Triggers
from g2d.rotation.snapshot import Live, Rotor
from g2d.service.assembly import assemble
from g2d.service.http.limits import AdminToken
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.service.loader import VaultLoader
from g2d.service.monitors.observer import Observers
from stand_ins import Fake, wait_for


@pytest.fixture
def rotated(rotated_vault: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rotated_vault, tmp_path / "rotated"))


def weights(snapshot) -> dict[str, torch.Tensor]:
    return {n: t for n, t in snapshot.predict._model.state_dict().items() if t.dim() > 1}


def alarms(events) -> list:
    """Without what other tests' copies of the vault have reached ("older copy")."""
    return [event for event in events if event.name == "alarm"]


def same(snapshot, state) -> int:
    """How many weight tensors are as in a state: eight units may come out in the same order."""
    return sum(torch.equal(tensor, state[name]) for name, tensor in weights(snapshot).items())


def test_every_load_of_a_generation_is_another_and_answers_alike(rotated, x):
    with g2d.Defence.open(rotated, write=False) as defence:
        known = {n: defence.generation(n) for n in (2, 3)}
        expected = {n: g.model()(torch.from_numpy(x)).numpy() for n, g in known.items()}
    loader = VaultLoader(rotated, "g2d")
    plain = VaultLoader(rotated, "g2d", layout="plain")
    try:
        first, again, fresh = loader.first()[0], loader.again(3), loader.load(2, 1)
        for snapshot in (first, again, fresh):
            assert snapshot.layout == "secret"
            assert snapshot.check() == []
            assert np.allclose(snapshot.predict(x), expected[snapshot.number], atol=1e-5)
        assert same(first, weights(again)) <= 1
        assert same(first, known[3].state) <= 1
        kept = plain.first()[0]
        assert kept.layout == "plain"
        assert all(torch.equal(t, known[3].state[n]) for n, t in weights(kept).items())
        assert alarms(loader.events) == alarms(plain.events) == []
    finally:
        loader.close()
        plain.close()


def test_a_service_says_its_layout_and_heals_the_hidden_form(rotated, x):
    loader, maker, lines = VaultLoader(rotated, "g2d"), Fake(), io.StringIO()
    live = Live(loader.load(2, 1))
    parts = assemble(
        loader, live, lambda tell: Rotation(live, maker, loader, Triggers(), tell),
        Options(allow_host=("g2d",)), AdminToken(None), Log(lines), Observers(),
    )  # fmt: skip
    before, held, expected = live.snapshot.predict(x), live.snapshot, loader.again(3).predict(x)

    async def ask():
        said, heard = asyncio.Queue(), asyncio.Queue()
        life = asyncio.ensure_future(parts.service({"type": "lifespan"}, said.get, heard.put))
        said.put_nowait({})
        await heard.get()
        transport = httpx.ASGITransport(parts.service)
        async with httpx.AsyncClient(transport=transport, base_url="http://g2d") as client:
            await asyncio.to_thread(wait_for, lambda: live.number == 3)  # rotated away at once
            tensor = {"name": "input", "shape": x.shape, "datatype": "FP32",
                      "data": x.ravel().tolist()}  # fmt: skip
            answer = await client.post("/v2/models/g2d/infer", json={"inputs": [tensor]})
            status = (await client.get("/status")).json()
        said.put_nowait({})
        await life
        return status, np.reshape(answer.json()["outputs"][0]["data"], expected.shape)

    try:
        bias = held.predict._model.get_parameter("7.bias")
        bias.view(torch.int32)[0] ^= -(1 << 31)
        assert not parts.monitor.check()
        assert live.snapshot is not held
        assert parts.monitor.check()
        assert live.snapshot.layout == "secret"
        assert np.allclose(live.snapshot.predict(x), before, atol=1e-5)
        parts.event_log.close()
        status, answered = asyncio.run(ask())
        assert (status["rotation"]["generation"], status["rotation"]["layout"]) == (3, "secret")
        assert np.allclose(answered, expected, atol=1e-5)
        assert "healed" in json.loads(lines.getvalue().splitlines()[0])["text"]
    finally:
        loader.close()


def test_units_that_cannot_be_hidden_are_told_once_and_served_in_order(rotated, x, monkeypatch):
    monkeypatch.setattr("g2d.protect.layout.CLOSE", -1.0)
    loader, told = VaultLoader(rotated, "g2d"), []
    try:
        first, _ = loader.first()
        assert first.layout == "secret places, logits differ"
        loader.hear(told.append)
        assert loader.load(2, 1).layout == "secret places, logits differ"
        (alarm,) = alarms(told)
        assert alarm.kind == "layout"
        assert "generation 3 is served with its units in plain order" in alarm.text
    finally:
        loader.close()


def test_a_rotor_serves_the_secret_layout_too(defence):
    rotor = Rotor(defence)
    made = defence.generation(1)
    assert rotor.snapshot.layout == "secret"
    assert made.snapshot("plain").layout == "plain"
    x = defence.task.splits.test.x[:16]
    torch.testing.assert_close(rotor(x), made.model()(x), atol=1e-5, rtol=1e-5)
    assert same(rotor.snapshot, made.state) <= 1
