"""Which basins nobody has seen: told by members and manifests, without torch."""

from __future__ import annotations

import pytest

from g2d.settings import Settings
from g2d.vault.basin_costs import basin_costs, basin_lines
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


def test_a_grown_basin_was_not_exposed_before_it_was_there(vault):
    """Nothing that was issued before is looked at, so that a long life costs no look."""
    expose(vault, basin=0)
    last = expose(vault, basin=1)
    vault.put("early", GROWN, {"weights": b"e"}, {"basin": GROWN, "after": last})
    read, generation = [], vault.generation
    vault.generation = lambda number: read.append(number) or generation(number)
    assert stock_of(vault).unseen == (GROWN,)
    newest = expose(vault, basin=1)
    assert stock_of(vault).unseen == (GROWN,)
    read.clear()
    assert stock_of(vault).exposed[1] == newest
    assert 1 not in read  # all of those are found before the base


def test_costs_are_those_that_were_recorded(vault):
    assert basin_lines(vault) == []  # nothing says that its early checkpoint was grown
    vault.put("base", 0, {"weights": b"b"}, {"cpu_seconds": 50.0})
    vault.put("early", GROWN, {"weights": b"e"}, {"basin": GROWN, "after": 1, "cpu_seconds": 30.0})
    for index in range(2):
        note = {"basin": GROWN, "cpu_seconds": 10.0}
        vault.put("member", GROWN_MEMBER + index, {"weights": b"m"}, note)
    costs = basin_costs(vault)
    assert (costs.basin, costs.generation, costs.retraining) == (50.0, None, 50.0)
    for basin in (GROWN, 0, 1, GROWN):
        expose(vault, basin=basin, cpu_seconds=2.0)
    costs = basin_costs(vault)
    assert (costs.rotations, costs.fresh, costs.each_fresh) == (4, 1, 52.0)
    assert costs.amortised == 50.0 / 4 + 2.0
    assert basin_lines(vault) == [
        "3, 1 of them grown; nobody has seen 0",
        "a basin that was grown took 50.0 CPU s, a generation 2.0: 52.0 a rotation where each"
        " begins in a basin that nobody has seen",
        "1 of 4 rotations since the first was grown did: 14.5 CPU s a rotation",
        "a fresh training of the base took 50.0 CPU s",
    ]


def test_what_a_basin_took_includes_the_fit_that_came_with_it(vault):
    note = {"basin": GROWN, "after": 1, "cpu_seconds": 30.0, "fit_cpu_seconds": 5.0}
    vault.put("early", GROWN, {"weights": b"e"}, note)
    vault.put("member", GROWN_MEMBER, {"weights": b"m"}, {"basin": GROWN, "cpu_seconds": 10.0})
    vault.put("generator", 0, {"weights": b"later"}, {"cpu_seconds": 7.0})  # of another basin
    assert basin_costs(vault).basin == 45.0


def test_costs_are_of_the_population_that_the_vault_has(vault):
    """A basin that a former population had grown does not lengthen the time that is shared."""
    for basin, after in ((GROWN + 1, 0), (GROWN, 3)):
        note = {"basin": basin, "after": after, "cpu_seconds": 30.0}
        vault.put("early", basin, {"weights": b"e%d" % basin}, note)
    expose(vault, basin=0)
    expose(vault, basin=1)
    expose(vault, basin=GROWN)
    assert basin_costs(vault).rotations == 1
