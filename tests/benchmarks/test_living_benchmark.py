"""When a living population grows a basin, and that its chain goes on where it stopped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.generation import living
from g2d.settings import Settings
from g2d.vault.basins import GROWN
from g2d.vault.vault import Vault

MANIFEST = {"task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": []}


class Rotated:
    """A defence that rotates as the product does with `resting`: unseen basins first."""

    def __init__(self, vault) -> None:
        self.vault, self.turn = vault, 0
        self.settings = SimpleNamespace(population=SimpleNamespace(basins=2))

    def generate(self, count) -> None:
        stock = living.stock_of(self.vault)
        self.turn += 1
        basin = (stock.unseen or stock.basins[self.turn % len(stock.basins) :])[0]
        self.vault.accept({"weights": b"w"}, MANIFEST | {"basin": basin}, activate=True)


@pytest.fixture
def defence(tmp_path, monkeypatch):
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as vault:
        for index in range(2):
            vault.put("member", index, {"weights": bytes([index])}, {"basin": index})
        vault.accept({"weights": b"b"}, MANIFEST | {"origin": "base"}, activate=True)

        def taken(_):
            basin = max(GROWN - 1, *living.stock_of(vault).basins) + 1
            vault.put("member", 100 * basin, {"weights": b"m"}, {"basin": basin})
            return SimpleNamespace(basin=basin)

        monkeypatch.setattr(living, "grow", lambda *_: None)
        monkeypatch.setattr(living, "take_up_basin", taken)
        monkeypatch.setattr(living, "follow", lambda found: found)
        yield Rotated(vault)


@pytest.mark.parametrize(
    ("every", "fresh"),
    [(1, [True] * 8), (4, [True, True, True, False, False, False, True, False])],
)
def test_each_kth_rotation_begins_in_a_basin_that_was_grown_after_all_were_seen(
    defence, every, fresh
):
    living.run(defence, every, 3, 0)
    living.run(defence, every, 8, 0)  # what a kill has left goes on
    assert living.rows_beside(defence.vault) == fresh
    grown = [b for b in living.stock_of(defence.vault).basins if b >= GROWN]
    assert len(grown) == sum(fresh) - 2


def test_a_basin_that_waits_is_used_before_another_is_grown(defence, monkeypatch):
    defence.vault.put("member", 7, {"weights": b"m"}, {"basin": GROWN})
    monkeypatch.setattr(living, "grow", lambda *_: pytest.fail("one was there"))
    living.run(defence, 1, 3, 0)
    assert living.rows_beside(defence.vault) == [True] * 3
