"""Quotes are verified by `cryptography` alone: here those of a key that could be a TPM's."""

from __future__ import annotations

import dataclasses
import random
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from g2d.errors import SealingError
from g2d.protect.attestation.certificates import check_endorsement
from g2d.protect.attestation.enrolment import Host, Terms, ask, hear
from g2d.protect.attestation.quotes import Clock, Evidence, check_clock, read_quote, verify
from g2d.protect.tpm import documents
from g2d.protect.tpm.policies import (
    authorized,
    counter_name,
    not_above,
    pcr_digest,
    pcr_policy,
    selection,
)
from g2d.protect.tpm.publics import (
    ENDORSEMENT_EC,
    ENDORSEMENT_RSA,
    POLICY,
    SIGNING,
    STORAGE,
    key_of,
    name_of,
    public_of,
)
from g2d.protect.tpm.wire import Reader, sized, u8, u16, u32, u64
from g2d.protect.tpm.wrapping import make_credential, wrap_sealed
from tpm_makers import NOW as THEN
from tpm_makers import Maker

NONCE, PCRS, INDEX = bytes(range(32)), {7: bytes(32), 14: b"\1" * 32}, 0x01804732
NOW = 1_800_000_000.0


def refused(call, *arguments) -> str:
    with pytest.raises(SealingError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Tpm:
    """Signs what a TPM signs, as it would or otherwise."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.area = public_of(SIGNING, self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def head(self, kind, nonce=NONCE, magic=0xFF544347, clock=(9000, 3, 0, 1)) -> bytes:
        time, resets, restarts, safe = clock
        named = u32(magic) + u16(kind) + sized(b"\0\x0b" + bytes(32)) + sized(nonce)
        return named + u64(time) + u32(resets) + u32(restarts) + u8(safe) + u64(7)

    def quote(self, pcrs=PCRS, kind=0x8018, **head) -> bytes:
        return self.head(kind, **head) + selection(pcrs) + sized(pcr_digest(pcrs))

    def count(self, value=5, index=INDEX, **head) -> bytes:
        said = sized(counter_name(index)) + u16(0) + sized(u64(value))
        return self.head(0x8014, **head) + said

    def evidence(self, quote=None, count=None, **changes) -> Evidence:
        quote, count = quote or self.quote(), count or self.count()
        made = Evidence(NONCE, PCRS, quote, self.sign(quote), count, self.sign(count))
        return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def tpm():
    return Tpm()


def checked(tpm, evidence, nonce=NONCE):
    return verify(evidence, tpm.area, nonce, (7, 14), INDEX)


def test_what_is_signed_now_by_the_enrolled_key_is_believed(tpm):
    proven = checked(tpm, tpm.evidence())
    assert (proven.pcrs, proven.count) == (PCRS, 5)
    assert proven.clock == Clock(9000, 3, 0, True)


def test_every_flipped_bit_of_a_quote_is_refused(tpm):
    blob, draw = documents.encode(tpm.evidence()), random.Random(23)
    for bit in draw.sample(range(8 * len(blob)), 1000):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealingError):
            checked(tpm, documents.decode(Evidence, bytes(flipped), "it"))


def test_a_quote_that_proves_something_else_is_refused(tpm):
    other = {7: bytes(32), 14: b"\2" * 32}
    fewer = {14: PCRS[14]}
    cases = {
        "another nonce": tpm.evidence(nonce=bytes(32)),
        "for another nonce": tpm.evidence(quote=tpm.quote(nonce=bytes(32))),
        "not those that were quoted": tpm.evidence(quote=tpm.quote(other)),
        "the quote is of PCRs [14], expected [7, 14]": tpm.evidence(
            quote=tpm.quote(fewer), pcrs=fewer
        ),
        "the quote is not signed by the key": Tpm().evidence(),
        "the counter is not signed by the key": tpm.evidence(counter=Tpm().count(6)),
        "not the one at 0x1804732": tpm.evidence(count=tpm.count(index=INDEX + 1)),
        "the magic number 0xff544348": tpm.evidence(quote=tpm.quote(magic=0xFF544348)),
        "the type 0x8017": tpm.evidence(quote=tpm.quote(kind=0x8017)),
        "the type 0x8018": tpm.evidence(count=tpm.quote()),
        "1 bytes too many": tpm.evidence(quote=tpm.quote() + b"\0"),
        "in the midst of a field": tpm.evidence(quote=tpm.quote()[:-1]),
        "expected 4096 at most": tpm.evidence(quote=tpm.quote() + bytes(4096)),
    }
    for said, evidence in cases.items():
        assert said in refused(checked, tpm, evidence)
    assert "another nonce" in refused(checked, tpm, tpm.evidence(), b"")


def test_every_truncated_attestation_is_refused(tpm):
    whole = tpm.quote()
    for end in range(len(whole)):
        refused(read_quote, whole[:end], NONCE)
    for field in (6, 42, len(whole) - 34):  # sizes that lie
        for size in (0xFFFF, 4000):
            lying = bytearray(whole)
            lying[field : field + 2] = u16(size)
            refused(read_quote, bytes(lying), NONCE)


@pytest.mark.parametrize("bank", [4, 0xC])  # SHA-1, SHA-384
def test_other_banks_are_refused(tpm, bank):
    quote = tpm.head(0x8018) + u32(1) + u16(bank) + b"\x03\x80\x40\x00" + sized(bytes(32))
    assert "SHA-256 bank alone" in refused(read_quote, quote, NONCE)
    two = tpm.head(0x8018) + u32(2) + selection(PCRS)[4:] * 2 + sized(bytes(32))
    assert "SHA-256 bank alone" in refused(read_quote, two, NONCE)


def _host(tpm, **changes) -> Host:
    host = Host(
        b"", tpm.area, b"", PCRS, INDEX, 1, 0, 60, 1, b"", 0, 8000, 3, 0, True, 0, True
    )  # fmt: skip
    return dataclasses.replace(host, **changes)


def _heard(tpm, host, now, **head):
    host, question = ask(host, NOW)
    quote, count = (make(nonce=question.nonce, **head) for make in (tpm.quote, tpm.count))
    return hear(host, tpm.evidence(quote, count, nonce=question.nonce), now)


def test_a_nonce_is_young_and_used_once(tpm):
    host, _ = _heard(tpm, _host(tpm), NOW + 300)
    assert (host.nonce, host.time) == (b"", 9000)
    assert "another nonce" in refused(hear, host, tpm.evidence(nonce=b""), NOW)
    assert "drawn 301 s ago, expected 300 s" in refused(_heard, tpm, _host(tpm), NOW + 301)
    assert "wound back by 1 s" in refused(_heard, tpm, _host(tpm), NOW - 1)
    host, question = ask(_host(tpm), NOW)
    old = tpm.evidence(tpm.quote(nonce=question.nonce), nonce=question.nonce)
    host, _ = ask(host, NOW)
    assert "another nonce" in refused(hear, host, old, NOW)


@pytest.mark.parametrize(
    ("time", "resets", "safe", "said"),
    [
        (8000, 3, True, ""),
        (1, 4, False, ""),  # a power cut: the clock lost what it had not kept
        (1, 4, True, "clock went back"),
        (7999, 3, False, "clock went back"),
        (9000, 2, True, "was cleared"),
        (1, 0, True, "was cleared"),
    ],
)
def test_a_clock_that_goes_back_is_refused(tpm, time, resets, safe, said):
    now = Clock(time, resets, 0, safe)
    if said:
        assert said in refused(check_clock, now, _host(tpm).clock)
    else:
        check_clock(now, _host(tpm).clock)


def test_a_count_of_restarts_that_goes_back_is_refused(tpm):
    before = Clock(8000, 3, 5, True)
    check_clock(Clock(8000, 3, 5, True), before)
    check_clock(Clock(8000, 4, 0, True), before)
    assert "clock went back" in refused(check_clock, Clock(9000, 3, 4, True), before)


def test_numbers_are_counted_coarsely(tpm):
    host = _host(tpm, base=10, first=100)
    assert [host.count(number) for number in (100, 159, 160, 279)] == [10, 10, 11, 12]
    assert "older than 100" in refused(host.count, 99)
    for wrong in ({"first": -1}, {"every": 0}, {"keep": -1}):
        assert "make no sense" in str(refused(lambda w=wrong: Terms((14,), **w)))
    assert "can be reset from user space" in refused(Terms, (14, 23))


def test_policies_are_those_of_the_specification():
    """Values that a TPM gave (swtpm 0.7.1, TPM2_PolicyGetDigest)."""
    pcr = pcr_policy({14: bytes(32)})
    assert pcr.hex() == VALUES["pcr"]
    assert not_above(INDEX, 7, pcr).hex() == VALUES["counter"]
    name = name_of(public_of(POLICY, ec.derive_private_key(1, ec.SECP256R1()).public_key()))
    assert authorized(name, b"r" * 32).hex() == VALUES["authorized"]


VALUES = {
    "pcr": "3c57f1e35e68f3c3e97edced5798da69bcb31f3297969bb7d5f15ef3022af069",
    "counter": "5d86853b113096eebc8b7a8d416526cd27e874c99e3981308f16d02ceafb621e",
    "authorized": "1b715e8b3bdae47447791532ab6bb43b36f135b6d351879123f455e191e1ff38",
}


def test_keys_of_other_kinds_are_refused(tpm):
    for kinds in ((STORAGE,), (ENDORSEMENT_EC, ENDORSEMENT_RSA)):
        assert "is not that of" in refused(key_of, tpm.area, *kinds)
    assert "not on the curve" in refused(key_of, tpm.area[:-1] + bytes([tpm.area[-1] ^ 1]), SIGNING)
    assert "too many" in refused(key_of, tpm.area + b"\0", SIGNING)
    for end in range(len(tpm.area)):
        refused(key_of, tpm.area[:end], SIGNING)
    short = ENDORSEMENT_RSA.template + sized(b"\1" * 256)
    assert "2,048 bits" in refused(key_of, short, ENDORSEMENT_RSA)
    assert "is not that of" in refused(make_credential, tpm.area, bytes(34), bytes(32))
    storage = public_of(STORAGE, tpm.key.public_key())
    assert "128 bytes at most" in refused(wrap_sealed, storage, bytes(32), bytes(129))


def test_a_certificate_chains_up_to_a_root_that_is_given():
    maker, other = Maker(), Maker("Others")
    area = public_of(ENDORSEMENT_EC, ec.generate_private_key(ec.SECP256R1()).public_key())
    now, roots = THEN + timedelta(days=1), [maker.root, maker.between]
    good = maker.certify(area)
    assert check_endorsement(good, area, roots, now, False)
    assert not check_endorsement(good, area, [], now, True)
    cases = [
        ("no root certificate", good, area, [], now),
        ("no root certificate", good, area, [maker.between], now),
        ("does not chain up", good, area, [other.root, other.between], now),
        ("does not chain up", good, area, [maker.root], now),
        ("does not chain up", good, area, roots, THEN - timedelta(days=1)),
        ("does not chain up", maker.certify(area, days=1), area, roots, now + timedelta(days=9)),
        ("is damaged", good[:-1], area, roots, now),
        ("a software TPM's", maker.certify(area, "swtpm"), area, roots, now),
    ]
    for said, *given in cases:
        assert said in refused(check_endorsement, *given, False)
    another = public_of(ENDORSEMENT_EC, ec.generate_private_key(ec.SECP256R1()).public_key())
    assert "of another endorsement key" in refused(
        check_endorsement, good, another, roots, now, True
    )
    flipped = bytearray(good)
    flipped[-3] ^= 1
    assert refused(check_endorsement, bytes(flipped), area, roots, now, False)


def test_a_reader_never_goes_past_the_end():
    reader = Reader(b"\0\5abc", "it")
    assert "in the midst of a field" in refused(reader.sized, 100)
    assert "a field of 9 bytes, expected 8 at most" in refused(Reader(b"\0\x09", "it").sized, 8)


def test_a_document_has_one_form_alone(tpm):
    whole = documents.encode(tpm.evidence())
    text = whole.decode()
    for other in (
        text + "\n", text.replace(" ", "  ", 1), text.replace("attest-quote", "attest-ask"),
        text.replace('"nonce": "00', '"nonce": "0'), text.replace("0a", "0A", 1),
        text.replace('"07"', '"7"'), text.replace('"07"', '"24"'), text[:-3], "[" * 5000,
        text.replace("{", '{\n "more": 1,', 1),
    ):  # fmt: skip
        assert other != text
        refused(documents.decode, Evidence, other.encode(), "it")
    assert "expected 65536 at most" in refused(documents.decode, Evidence, bytes(70_000), "it")
    assert "no file of G2D" in refused(documents.decode, Evidence, b"\xff\xfe", "it")
    said = refused(documents.decode, Host, whole, "quote.json")
    assert "of kind 'attest-quote', expected 'attest-host'" in said
