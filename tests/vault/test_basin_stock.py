"""Which basins nobody has seen: told by members and manifests, without torch."""

from __future__ import annotations

import pytest

from g2d.settings import Settings
from g2d.vault.basins import GROWN, GROWN_MEMBER, stock_of
from g2d.vault.vault import Vault

MANIFEST = {"task": "digits", "population": "p", "generator": "g", "gates": [], "exposed": []}


def member(vault, index, basin):
    vault.put("member", index, {"weights": bytes([index % 251])}, {"basin": basin})


def expose(vault, **more):
    return vault.accept({"weights": b"w"}, MANIFEST | more, activate=True).number


@pytest.fixture
def vault(tmp_path):
    """Two basins of the population, and one that was grown."""
    with Vault.create(tmp_path / "vault", Settings().to_toml()) as made:
        for index in range(4):
            member(made, index, index % 2)
        member(made, GROWN_MEMBER, GROWN)
        made.put("generator", 0, {"weights": b"g"}, {})
        expose(made, origin="base")
        yield made


def test_nobody_has_seen_a_basin_until_a_generation_of_it_was_live(vault):
    assert stock_of(vault).unseen == (0, 1, GROWN)
    expose(vault, basin=1)
    vault.accept({"weights": b"w"}, MANIFEST | {"basin": 0})  # kept, not live
    assert stock_of(vault).unseen == (0, GROWN)
    newest = expose(vault, basin=GROWN)
    expose(vault, basin=1)
    assert stock_of(vault).unseen == (0,)
    assert stock_of(vault).exposed[GROWN] == newest


@pytest.mark.parametrize("said", [{}, {"basin": "0"}, {"basin": True}, {"basin": None}])
def test_a_generation_that_does_not_say_its_basin_may_be_of_any_but_grown_ones(vault, said):
    expose(vault, **said)
    assert stock_of(vault).unseen == (GROWN,)


def test_the_oldest_that_were_seen_retire_and_others_never(vault):
    expose(vault, basin=0)
    expose(vault, basin=1)
    stock = stock_of(vault)
    assert stock.outlived(0) == stock.outlived(2) == stock.retired == frozenset()
    assert stock.outlived(1) == {0}
    vault.put("generator", 0, {"weights": b"h"}, {"retired": [0]})
    stock = stock_of(vault)
    assert (stock.retired, stock.outlived(1), stock.unseen) == ({0}, {0}, (GROWN,))
    expose(vault, basin=GROWN)
    assert stock_of(vault).outlived(1) == {0, 1}


def test_a_damaged_note_retires_nothing(vault):
    vault.put("generator", 0, {"weights": b"h"}, {"retired": "all"})
    assert stock_of(vault).retired == frozenset()
