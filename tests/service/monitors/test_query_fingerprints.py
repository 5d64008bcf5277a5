"""What resembles each other is found, whatever its kind; what does not is not; cost is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from g2d.service.http.protocol import Model
from g2d.service.monitors.queries.fingerprints import KEPT, Fingerprints
from g2d.service.monitors.queries.trails import Trail
from g2d.service.monitors.queries.windows import Everybody, Window, scratch

SALT = bytes(range(32))
NONE = np.zeros(0, np.uint8)
IMAGES = Model("g2d", (1, 12, 12), "float32", 10)


def images(count: int, seed: int = 0, side: int = 12) -> np.ndarray:
    """Strokes on black: every image has others."""
    draws = np.random.default_rng(seed)
    x = draws.random((count, 1, side, side)) * (draws.random((count, 1, side, side)) < 0.4)
    return x.astype(np.float32)


def found(by: Fingerprints, seen: np.ndarray, asked: np.ndarray) -> list[tuple[int | None, bool]]:
    """Which of the inputs seen (by its place) each input asked about is told to be near."""
    window, prints = Window(64, scratch()), by(seen)
    for place in range(len(seen)):
        window.add(prints, place, Trail(place, np.array([1.0, 0.0]), 8, NONE))
    asked_prints = by(asked)
    each = [window.find(asked_prints, i, by) for i in range(len(asked))]
    return [(met.trail.number if met.trail else None, met.same) for met in each]


def test_large_requests_are_hashed_a_part_at_a_time(monkeypatch):
    x = images(7)
    by = Fingerprints(IMAGES, images(40, seed=1), 0.4, SALT)
    whole, sizes, hashes = by(x), [], by._hashes
    monkeypatch.setattr("g2d.service.monitors.queries.fingerprints._AT_ONCE", 2 * 144)
    monkeypatch.setattr(by, "_hashes", lambda flat: (sizes.append(len(flat)), hashes(flat))[1])
    parts = by(x)
    assert sizes == [2, 2, 2, 1]
    for name in ("hashes", "kept", "values", "digests"):
        assert (getattr(parts, name) == getattr(whole, name)).all()


def test_a_part_that_changed_a_little_everywhere_and_the_same_are_told_apart_from_others():
    x = images(40)
    by = Fingerprints(IMAGES, x, 0.4, SALT)
    part = x[:5].copy()
    part[:, :, :3] = 1 - part[:, :, :3]  # by any amount: found by hashes
    little = np.clip(x[5:10] + np.random.default_rng(1).uniform(-0.35, 0.35, x[5:10].shape), 0, 1)
    asked = np.concatenate([part, little.astype(np.float32), x[10:12], images(5, seed=9)])
    told = found(by, x, asked)
    assert told[:10] == [(place, False) for place in range(10)]
    assert told[10:12] == [(10, True), (11, True)]
    assert told[12:] == [(None, False)] * 5


def test_a_batch_has_the_fingerprints_of_its_inputs_and_a_salt_its_own():
    x = images(6)
    by, again, other = (Fingerprints(IMAGES, x, 0.4, salt) for salt in (SALT, SALT, b"o" * 32))
    whole = by(x)
    assert whole.hashes.shape == (6, KEPT)
    assert all(np.array_equal(by(x[i : i + 1]).hashes[0], whole.hashes[i]) for i in range(6))
    assert np.array_equal(again(x).values, whole.values)
    assert not np.intersect1d(other(x).hashes, whole.hashes[whole.hashes > 0]).size
    assert not np.intersect1d(other(x).digests, whole.digests).size


def test_a_tables_columns_have_scales_of_their_own_and_their_places_count():
    draws = np.random.default_rng(0)
    rows = (draws.normal(size=(60, 30)) * np.logspace(-3, 3, 30)).astype(np.float32)
    by = Fingerprints(Model("g2d", (30,), "float32", 2), rows, 0.1, SALT)
    moved, turned = rows[:3].copy(), rows[3:6, ::-1].copy()
    moved[:, :2] *= -9
    little = rows[6:8] * np.float32(1.01)
    told = found(by, rows, np.concatenate([moved, turned, little]))
    assert [place for place, _ in told] == [0, 1, 2, None, None, None, 6, 7]


def test_tokens_are_compared_by_their_windows_and_padding_makes_nothing_alike():
    draws = np.random.default_rng(0)
    texts = draws.integers(1, 5000, size=(30, 40))
    texts[:, 25:] = 0
    by = Fingerprints(Model("g2d", (40,), "int64", 2, vocabulary=5000), texts, 0.4, SALT)
    word = texts[:4].copy()
    word[:, 7] = 3
    short = np.zeros((2, 40), np.int64)
    short[:, :2] = [[5, 6], [7, 8]]
    told = found(by, np.concatenate([texts, short[:1]]), np.concatenate([word, short[1:]]))
    assert [place for place, _ in told] == [0, 1, 2, 3, None]


def test_of_large_inputs_windows_are_sampled_and_that_is_told():
    large = images(3, side=120)
    by = Fingerprints(Model("g2d", (1, 120, 120), "float32", 10), large, 0.4, SALT)
    assert by.sampled == pytest.approx(2048 / (120 * 120 - 19))
    part = large.copy()
    part[:, :, :30] = 1 - part[:, :, :30]
    assert [place for place, _ in found(by, large, part)] == [0, 1, 2]


def test_where_all_inputs_are_alike_the_tolerance_shrinks():
    face = images(1)
    alike = np.clip(face + np.random.default_rng(0).uniform(-0.3, 0.3, (40, 1, 12, 12)), 0, 1)
    by = Fingerprints(IMAGES, alike.astype(np.float32), 0.4, SALT)
    assert by.near < 0.3
    assert Fingerprints(IMAGES, images(40), 0.4, SALT).near == 0.4


@pytest.mark.parametrize("first", [np.zeros((64, 1, 12, 12), np.float32), images(1)])
def test_constant_and_single_inputs_have_fingerprints(first):
    by = Fingerprints(IMAGES, first, 0.4, SALT)
    prints = by(np.concatenate([first[:1], np.full((1, 1, 12, 12), 3e38, np.float32)]))
    assert prints.kept[1] == 0  # blank: its hashes say nothing
    assert found(by, first[:1], first[:1]) == [(0, True)]


def test_a_clients_window_holds_its_last_inputs_and_no_more():
    x = images(100)
    by = Fingerprints(IMAGES, x, 0.4, SALT)
    window, prints = Window(20, scratch()), by(x)
    for place in range(100):
        window.add(prints, place, Trail(place, np.array([1.0, 0.0]), 8, NONE))
    told = [window.find(prints, place, by) for place in range(100)]
    assert [met.same for met in told] == [False] * 80 + [True] * 20
    assert [met.trail.number for met in told[80:] if met.trail] == list(range(80, 100))
    assert len(window._digests) == 20


def test_everybodys_hashes_lead_to_the_trail_and_newer_ones_take_their_places():
    x = images(300)
    by = Fingerprints(IMAGES, x, 0.4, SALT)
    prints, everybody = by(x), Everybody(bits=12)
    everybody.add(prints.hashes[0], 7)
    part = x[:1].copy()
    part[:, :, :3] = 0
    near = by(part)
    assert everybody.find(near.hashes[0], int(near.kept[0])) == 7
    assert everybody.find(prints.hashes[1], int(prints.kept[1])) == 0
    for place in range(1, 300):  # 15,000 hashes in 4096 places
        everybody.add(prints.hashes[place], 100 + place)
    assert everybody.find(near.hashes[0], int(near.kept[0])) == 0
    assert not everybody.same(prints.digests[0])
    assert everybody.same(prints.digests[0])
