"""Chains in time, rows, and the keys under which finished pieces are kept."""

import dataclasses

import pytest

from g2d.redteam.cache import RowCache, _closure, code_version, key_of
from g2d.redteam.context import Chain, Network
from g2d.redteam.rows import Row, Status, not_measured
from g2d.redteam.scoring import share
from sites import IDS


def chain_of(count, fixed=False):
    networks = tuple(Network(f"/{i}", str(i), str(i)) for i in range(count))
    return Chain("c", networks, fixed=fixed)


@pytest.mark.parametrize(
    ("count", "exposed", "later", "read", "scored"),
    [
        (41, 20, 11, range(10, 30), range(30, 41)),
        (6, 5, 11, range(5), [5]),
        (6, 1, 11, [0], range(1, 6)),
        (3, 20, 11, range(2), [2]),
        (1, 1, 11, [0], [0]),
    ],
)
def test_a_chain_is_split_in_time(count, exposed, later, read, scored):
    before, after = chain_of(count).split(exposed, later)
    assert [n.digest for n in before] == [str(i) for i in read]
    assert [n.digest for n in after] == [str(i) for i in scored]


def test_a_fixed_chain_is_read_once_and_scored_on_its_copies():
    before, after = chain_of(4, fixed=True).split(20, 2)
    assert [n.digest for n in before] == ["0"]
    assert [n.digest for n in after] == ["1", "2"]


def test_damaged_pieces_count_as_absent(tmp_path):
    cache = RowCache(tmp_path / "rows")
    key = key_of(a=1)
    assert cache.get(key) is None
    cache.put(key, {"rows": []})
    assert cache.get(key) == {"rows": []}
    (file,) = (tmp_path / "rows").iterdir()
    file.write_text("{")
    assert cache.get(key) is None


def test_keys_depend_on_everything_named():
    assert key_of(a=1, b=2) == key_of(b=2, a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1)}) == 3


def test_code_version_follows_imports_not_pages():
    closure = _closure("g2d.redteam.threats.adaptive.threat")
    assert {"g2d.attacks.eot", "g2d.attacks.pgd", "g2d.generator.guidance"} <= closure
    assert not {"g2d.report.page", "g2d.cli.main", "g2d.report.figures"} & closure
    assert code_version("g2d.attacks.eot") != code_version("g2d.attacks.pgd")


def test_rows_without_a_number_say_why():
    row = not_measured(
        "privacy", "privacy-membership", "members", "generated", "LiRA", "2 shadows, 16 are needed"
    )
    plain = row.as_json(IDS)
    assert plain["value"] is None
    assert plain["harm"] is None
    assert plain["status"] == Status.NOT_MEASURED == "not measured"


def test_harm_is_the_asr_unless_said_otherwise():
    row = Row("stale", "stale-single", "t", "generated", "a", share(1, 4))
    assert row.as_json(IDS)["harm"] == 0.25
    other = dataclasses.replace(row, metric="agreement")
    assert other.as_json(IDS)["harm"] is None
