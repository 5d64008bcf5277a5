"""Sealed files: what they hold comes back, and nothing that was changed, cut or swapped opens."""

import dataclasses
import io
from functools import partial

import pytest

from g2d.errors import BrokenSealError
from g2d.vault.ledger import sha256
from g2d.vault.sealing import envelope
from g2d.vault.sealing.envelope import (
    PART,
    About,
    check_whole,
    head_of,
    is_sealed,
    key_name,
    new_key,
    open_file,
    seal_file,
    unwrap_key,
    wrap_key,
)

pytest.importorskip("cryptography")

KEY = new_key()
CONTENT = b"weights of a network, " * 9
ABOUT = About("0" * 32, "generation", 7, "weights", sha256(CONTENT))


def unwrap(head, key=KEY):
    try:
        return unwrap_key(head.wrapped, key, head.about.context)
    except ValueError as error:
        raise BrokenSealError(str(error)) from error


def opened(data, about=ABOUT, key=KEY):
    return open_file(io.BytesIO(data).read, partial(unwrap, key=key), about)


@pytest.mark.parametrize("size", [0, 1, 63, PART - 1, PART, PART + 1, 3 * PART])
def test_what_is_sealed_comes_back(size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    about = dataclasses.replace(ABOUT, digest=sha256(data))
    sealed = seal_file(data, about, KEY)
    assert is_sealed(sealed)
    assert check_whole(sealed, about).whole == len(sealed)
    assert opened(sealed, about) == data
    assert opened(sealed, None) == data
    assert size < 64 or data[:64] not in sealed


def test_the_same_content_is_sealed_anew_each_time():
    one, two = (seal_file(CONTENT, ABOUT, KEY) for _ in range(2))
    first, second = head_of(io.BytesIO(one).read), head_of(io.BytesIO(two).read)
    assert unwrap(first) != unwrap(second)  # a data key of its own
    assert one[len(first.raw) :] != two[len(second.raw) :]


def test_every_flipped_bit_is_refused():
    sealed = seal_file(CONTENT, ABOUT, KEY)
    for at in range(len(sealed)):
        wrong = sealed[:at] + bytes([sealed[at] ^ 1 << at % 8]) + sealed[at + 1 :]
        with pytest.raises(BrokenSealError):
            opened(wrong)
        with pytest.raises(BrokenSealError):
            check_whole(wrong, ABOUT)


def test_what_is_cut_off_or_longer_is_refused():
    sealed = seal_file(CONTENT, ABOUT, KEY)
    for wrong in (sealed[:9], sealed[:200], sealed[:-1], sealed[:-33], sealed + b"\0"):
        with pytest.raises(BrokenSealError):
            opened(wrong)
        with pytest.raises(BrokenSealError):
            check_whole(wrong, ABOUT)


def test_parts_cannot_change_places_or_end_early(monkeypatch):
    monkeypatch.setattr(envelope, "PART", 16)
    data = bytes(64)
    about = dataclasses.replace(ABOUT, digest=sha256(data))
    sealed = seal_file(data, about, KEY)
    head, part = len(head_of(io.BytesIO(sealed).read).raw), 32
    first, second = sealed[head : head + part], sealed[head + part : head + 2 * part]
    swapped = sealed[:head] + second + first + sealed[head + 2 * part :]
    with pytest.raises(BrokenSealError, match="was changed"):
        opened(swapped, about)
    with pytest.raises(BrokenSealError):
        opened(sealed[: head + 2 * part] + sealed[-32:], about)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("vault", "1" * 32, "another vault's"),
        ("kind", "member", "sealed as generation 7, weights, and is expected to be member 7"),
        ("number", 8, "expected to be generation 8"),
        ("name", "attacks", "generation 7, attacks"),
        ("digest", "f" * 64, "other content"),
    ],
)
def test_a_file_in_the_place_of_another_is_refused(field, value, said):
    sealed = seal_file(CONTENT, ABOUT, KEY)
    with pytest.raises(BrokenSealError, match=said):
        opened(sealed, dataclasses.replace(ABOUT, **{field: value}))


def test_a_head_that_says_otherwise_has_no_data_key():
    sealed = seal_file(CONTENT, ABOUT, KEY)
    wrong = sealed.replace(b'"number": 7', b'"number": 8', 1)
    with pytest.raises(BrokenSealError):
        opened(wrong, dataclasses.replace(ABOUT, number=8))


def test_another_key_opens_nothing():
    with pytest.raises(BrokenSealError):
        opened(seal_file(CONTENT, ABOUT, KEY), key=new_key())


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"nan", b'{"about": 1}', b'{"about": {}, "size": 1}', b"[" * 4000, b"\xff"],
)
def test_a_head_that_is_none_is_refused(text):
    data = envelope.MAGIC + len(text).to_bytes(4, "little") + text
    with pytest.raises(BrokenSealError, match="its head is damaged"):
        head_of(io.BytesIO(data).read)


def test_a_head_takes_no_room_that_it_claims():
    data = envelope.MAGIC + (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(BrokenSealError, match="its head is damaged"):
        head_of(io.BytesIO(data).read)


def test_a_name_of_a_key_does_not_tell_it():
    assert key_name(KEY) == key_name(KEY) != key_name(new_key())
    assert KEY.hex()[:16] != key_name(KEY)


def test_wrapped_keys_are_bound_to_their_context():
    blob = wrap_key(KEY, bytes(32), b"one")
    assert unwrap_key(blob, bytes(32), b"one") == KEY
    for wrong in (blob[:-1], b"", b"\2" + blob[1:], blob + b"\0"):
        with pytest.raises(ValueError, match="it "):
            unwrap_key(wrong, bytes(32), b"one")
    with pytest.raises(ValueError, match="for something else"):
        unwrap_key(blob, bytes(32), b"two")
