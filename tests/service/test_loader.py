"""From vault to snapshot: what is corrupt, put back, unsigned or foreign is refused."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import g2d
from g2d.errors import RefusedError, VaultError
from g2d.service.http.log import Log
from g2d.service.http.options import Options
from g2d.settings import Settings
from g2d.vault.mark import FileMark
from g2d.vault.rollback import accept, reached
from g2d.vault.signing import SigningKey
from g2d.vault.vault import Vault

if TYPE_CHECKING:
    from g2d.service.loader import VaultLoader


def test_weights_that_do_not_fit_or_are_corrupt_are_refused(vault, loader):
    file = vault / "generations" / "000001" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(VaultError, match="corrupt"):
        loader.first()
    with pytest.raises(VaultError, match="corrupt"):
        loader.again(1)
    with pytest.raises(RefusedError, match="not above"):
        loader.load(1, 1)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "digits-he", "mnist-he"])
def test_blueprints_are_what_the_tasks_are(name, digits):
    from g2d.tasks.builtin import blueprint

    plan = blueprint(name)
    model = plan.factory().eval()
    assert model(torch.zeros(2, *plan.shape, dtype=plan.dtype)).shape == (2, plan.classes)
    if name == "digits":
        x = digits.splits.guide.x
        assert (plan.shape, plan.dtype) == (tuple(x.shape[1:]), x.dtype)
        assert plan.factory is digits.factory


def test_a_vault_that_was_put_back_is_refused(vault, tmp_path):
    from g2d.service.loader import VaultLoader

    memory = tmp_path / "served"
    loader = VaultLoader(vault, "g2d", served=memory)
    loader.served(1)
    assert loader.first()[0].number == 1
    loader.served(4)
    with pytest.raises(RefusedError, match="put back") as refused:
        loader.first()
    assert refused.value.reason == "replay"
    for damaged in ("{}", '{"served": Infinity}', "[]", ""):
        memory.write_text(damaged)
        with pytest.raises(VaultError, match="look why"):
            loader.first()
    with pytest.raises(VaultError, match="lies in the vault"):
        VaultLoader(vault, "g2d", served=vault / "served.json")
    loader.close()


def first_alarm(loader: VaultLoader, vault: Path) -> str:
    """The kind of the alarm that a service which starts now writes first; it is not ready."""
    from g2d.service.http.server import _assemble
    from g2d.service.monitors.observer import Observers

    lines = io.StringIO()
    parts = _assemble(loader, vault, "", Options(), None, Log(lines), Observers())
    assert parts.service.unready() == "generation 2 has expired"
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    return next(line["kind"] for line in told if line["event"] == "alarm")


def test_with_a_key_only_what_was_signed_is_served(vault, tmp_path, monkeypatch):
    from g2d.service.loader import VaultLoader

    key = SigningKey.generate()
    key.write(tmp_path / "k.key")
    monkeypatch.setattr(
        "g2d.service.loader.blueprint_of", lambda *_: pytest.fail("imported unverified")
    )
    with pytest.raises(RefusedError) as refused:
        VaultLoader(vault, "g2d", key=key.public)
    assert refused.value.reason == "unsigned"
    monkeypatch.undo()
    with Vault.open(vault, write=True) as opened:
        settings = Settings.from_toml(opened.settings_text)
        signing = {"signing__key": str(tmp_path / "k.key"), "signing__lifetime": 1e-5}
        opened.write_settings(settings.override(**signing).to_toml())
    with g2d.Defence.open(vault) as defence:
        defence.generate()
    loader = VaultLoader(vault, "g2d", key=key.public)
    assert loader.first()[0].number == 2
    time.sleep(1.0)
    snapshot, warning = loader.first()  # expired: nothing better to serve, and it says so
    assert snapshot.number == 2
    assert warning.reason == "expired"
    assert first_alarm(loader, vault) == "expired"
    assert loader.again(2).number == 2  # a flipped bit in it can still be healed
    with monkeypatch.context() as clock:
        clock.setattr("time.time", lambda now=time.time(): now - 7 * 86_400)  # noqa: B008
        snapshot, warning = loader.first()
        assert (snapshot.number, warning.reason) == (2, "future")
        assert first_alarm(loader, vault) == "future"
        with pytest.raises(RefusedError):
            loader.load(2, 1)
    with pytest.raises(RefusedError):
        loader.verify(2, 1)
    signature = vault / "generations" / "000002" / "manifest.sig"
    signature.write_bytes(bytes(64))
    with pytest.raises(RefusedError) as refused:
        loader.first()
    assert refused.value.reason == "signature"
    loader.close()


def test_a_vault_that_was_put_back_is_refused_without_being_asked_to(vault, tmp_path):
    """By default, with no flag; vault/test_rollback has the other ways."""
    from g2d.service.loader import VaultLoader

    old = shutil.copytree(vault, tmp_path / "old")
    with g2d.Defence.open(vault) as defence:
        defence.generate()
    loader = VaultLoader(vault, "g2d")
    loader.served(2)
    shutil.rmtree(vault)
    shutil.copytree(old, vault)
    with pytest.raises(VaultError, match="another ledger was put in the place"):
        loader.live()  # open, as in a service that runs, which asks twice a second
    loader.close()
    with pytest.raises(RefusedError, match=f"1 is the last .* `g2d accept {vault}`") as refused:
        VaultLoader(vault, "g2d")
    assert refused.value.reason == "replay"
    with Vault.open(vault) as opened:
        accept(opened, FileMark(vault, opened.identity))
    loader = VaultLoader(vault, "g2d")
    # Copies of the same vault went further in other fixtures.
    (event,) = [event for event in loader.events if event.name != "older copy"]
    assert (event.name, "generation 1 of" in event.text) == ("accepted", True)
    loader.told()
    loader.close()
    again = VaultLoader(vault, "g2d")
    assert all(event.name == "older copy" for event in again.events)
    again.close()
    (vault / "generations").chmod(0o755)
    with pytest.raises(VaultError, match="chmod -R go-rwx"):
        VaultLoader(vault, "g2d")


def test_a_clock_that_was_set_back_is_told_and_expiry_counts_by_the_mark(vault):
    from g2d.service.loader import VaultLoader

    loader = VaultLoader(vault, "g2d")
    ahead = time.time() + 86_400
    loader._marks.advance(replace(reached(loader._vault), time=ahead))
    loader.close()
    loader = VaultLoader(vault, "g2d")
    assert loader.now() >= ahead
    assert loader.behind() == pytest.approx(86_400, abs=60)
    assert loader.first()[1].reason == "future"
    loader.close()


def test_facts_of_a_manifest_that_somebody_wrote_are_shown_as_far_as_they_make_sense(vault):
    from g2d.service.loader import VaultLoader

    loader = VaultLoader(vault, "g2d")
    odd = '{"gates": [1, {"gate": "x"}], "figures": [2], "created": 1e3}'
    with closing(sqlite3.connect(vault / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE generations SET manifest = ?", (odd,))
    assert loader.describe(1)["gates"] == [{"gate": "x"}]
    assert loader.describe(1)["accuracy"] is None
    loader.close()


@pytest.mark.parametrize("private", [False, True])
def test_what_a_red_team_counted_on_people_is_not_shown(private, vault, monkeypatch):
    from g2d.service.http import server
    from g2d.service.loader import VaultLoader
    from g2d.service.monitors.observer import Observers

    loader, given = VaultLoader(vault, "g2d"), []
    assert loader.private is False
    loader.private = private

    def assemble(*parts):
        given.extend(parts)
        raise InterruptedError

    monkeypatch.setattr(server, "assemble", assemble)
    with pytest.raises(InterruptedError):
        server._assemble(loader, vault, "", Options(), None, Log(io.StringIO()), Observers())
    assert (vault / "redteam" / "results.json" in given) is not private
    loader.close()
