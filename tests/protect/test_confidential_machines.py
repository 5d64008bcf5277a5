"""Reports and quotes of real processors, recorded by others: verified, held to policies, bent."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from g2d.errors import SealingError
from g2d.protect.attestation.confidential import BACKENDS, backend, snp
from g2d.protect.attestation.confidential.policy import Expected, bound_data, check, judge

pytest.importorskip("cryptography")

VECTORS = Path(__file__).with_name("vectors")
NOW = {"sev-snp": datetime(2026, 11, 1, tzinfo=UTC), "tdx": datetime(2025, 7, 1, tzinfo=UTC)}


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


ARK, ASK = vector("snp-milan-ark.der"), vector("snp-milan-ask.der")
CASES = {
    "report": ("sev-snp", "snp-milan.report", ["snp-milan-vcek.der", "snp-milan-ask.der"], [ARK]),
    "cloud": (
        "sev-snp", "snp-milan-cloud.report",
        ["snp-milan-cloud-vcek.pem", "snp-milan-ask.der"], [ARK],
    ),
    "quote": ("tdx", "tdx-v4.quote", ["tdx-v4-collateral.json"], []),
}  # fmt: skip


class Case:
    def __init__(self, name):
        self.kind, evidence, files, self.roots = CASES[name]
        if self.kind == "tdx":
            pytest.importorskip("dcap_qvl", reason="needs dcap-qvl: pip install 'g2d[tdx]'")
        self.evidence, self.given = vector(evidence), [vector(file) for file in files]

    def verify(self, evidence=None, **changes):
        with_ = {"endorsements": self.given, "roots": self.roots, "now": NOW[self.kind]} | changes
        return backend(self.kind).verify(evidence or self.evidence, **with_)


@pytest.fixture(params=CASES)
def case(request):
    return Case(request.param)


def refused(call, *arguments, **named) -> str:
    with pytest.raises(SealingError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def wanted(shown, **changes):
    measurements = {name: frozenset({value}) for name, value in shown.measurements.items()}
    data = shown.data if any(shown.data) else b"\1" * 64
    return Expected(**{"measurements": measurements, "data": data, "debug": shown.debug} | changes)


def test_what_a_processor_signed_is_verified_and_shown(case):
    shown = case.verify()
    assert shown.kind == case.kind
    assert all(len(value) == 48 for value in shown.measurements.values())
    assert bytes.fromhex(shown.machine)


def test_reports_of_amd_say_what_their_guests_are():
    debugged, cloud = Case("report").verify(), Case("cloud").verify()
    assert debugged.measurements["measurement"].hex().startswith("b07af9620f3b839b47996422ddec6058")
    assert debugged.data == bytes(range(1, 6)).ljust(64, b"\0")
    assert (debugged.debug, cloud.debug, cloud.migrates, cloud.level) == (True, False, False, 0)
    assert cloud.firmware == {"bootloader": 4, "tee": 0, "snp": 27, "microcode": 222}
    assert judge(debugged, wanted(debugged)) == []
    assert "may be debugged" in refused(check, debugged, wanted(debugged, debug=False))
    told = judge(cloud, wanted(cloud, least={"snp": 28, "microcode": 222, "fmc": 1}))
    assert told == [
        "it does not answer this nonce: it is a replay, or another machine's",
        "of its fmc no security version is told",
        "its snp is of security version 27, expected 28 at least",
    ]


def test_a_quote_of_intel_says_what_its_machine_is():
    shown = Case("quote").verify()
    assert shown.measurements["mrtd"].hex().startswith("91eb2b44d141d4ece09f0c75c2c53d24")
    assert (shown.debug, shown.migrates, shown.status) == (False, False, "UpToDate")
    check(shown, wanted(shown))
    late = dataclasses.replace(shown, status="OutOfDate", advisories=("INTEL-SA-1",))
    told = refused(check, late, wanted(shown))
    assert "says of its firmware: OutOfDate (INTEL-SA-1)" in told
    check(late, wanted(shown, statuses=frozenset({"UpToDate", "OutOfDate"})))


def test_another_measurement_and_another_nonce_are_refused_with_every_reason(case):
    shown = case.verify()
    name, value = next(iter(shown.measurements.items()))
    other = {name: frozenset({bytes(48)}), "none": frozenset({bytes(48)})}
    told = judge(shown, wanted(shown, measurements=other, data=bound_data(bytes(32))))
    assert [text.split(" ")[0] for text in told] == [name, "it", "it"]
    elsewhere = judge(shown, wanted(shown, machines=frozenset({"00"})))
    assert any("its processor is" in text for text in elsewhere)
    here = judge(shown, wanted(shown, machines=frozenset({"00", shown.machine})))
    assert not any("its processor is" in text for text in here)
    both = {name: frozenset({bytes(48), value})}
    assert not any(name in text for text in judge(shown, wanted(shown, measurements=both)))


def test_bits_that_flip_are_refused(case):
    draw, evidence = random.Random(4), case.evidence
    bits = draw.sample(range(8 * len(evidence)), 400)
    if case.kind == "tdx":  # where `dcap-qvl` alone lets them pass
        bits += [8 * at + bit for at in (632, 635, 1350, 4936, len(evidence) - 1) for bit in (0, 5)]
        bits += draw.sample(range(8 * 3986, 8 * 4936), 100)
    for bit in bits:
        flipped = bytearray(evidence)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(case.verify, bytes(flipped))
    for cut in (evidence[:-100], evidence + b"\1", evidence[:600], b"\0"):
        refused(case.verify, cut)


def test_endorsements_that_were_changed_are_refused_or_say_the_same(case):
    """What no signature covers may change, and changes nothing of what is shown."""
    draw, shown = random.Random(5), case.verify()
    for index, data in enumerate(case.given):
        for bit in draw.sample(range(8 * len(data)), 60):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            given = [*case.given]
            given[index] = bytes(flipped)
            with contextlib.suppress(SealingError):
                assert case.verify(endorsements=given) == shown


def test_a_time_at_which_nothing_vouches_for_it_is_refused(case):
    for now in (datetime(2019, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)):
        refused(case.verify, now=now)
    if case.kind == "tdx":  # what Intel said of its firmware holds for a month
        assert "expired" in refused(case.verify, now=NOW["tdx"] + timedelta(days=30))


def test_a_chain_of_somebodys_own_is_refused():
    case, cloud = Case("report"), Case("cloud")
    assert "no root is trusted" in refused(case.verify, roots=[])
    assert "chain up to a root" in refused(case.verify, endorsements=case.given[:1])
    assert "chain up to a root" in refused(case.verify, roots=[ASK])
    assert "0 were given" in refused(case.verify, endorsements=[ASK])
    assert "2 were given" in refused(case.verify, endorsements=[*case.given, *cloud.given])
    assert "another one's" in refused(case.verify, endorsements=cloud.given)
    made = _made_chain()
    assert "chain up to a root" in refused(case.verify, endorsements=[*made, ARK])


def _made_chain():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    made, by, issuer = [], None, None
    for text in ("ARK-Milan", "SEV-Milan", "SEV-VCEK"):
        key = ec.generate_private_key(ec.SECP384R1())
        start = datetime(2026, 1, 1, tzinfo=UTC)
        built = x509.CertificateBuilder(
            issuer or name(text), name(text), key.public_key(), 1, start, start + timedelta(3650)
        ).add_extension(x509.BasicConstraints(text != "SEV-VCEK", None), critical=True)
        made.append(built.sign(by or key, hashes.SHA384()).public_bytes(Encoding.DER))
        by, issuer = key, name(text)
    return made[::-1]


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [(0, 9, "version 9"), (0x34, 2, "algorithm 2"), (0x48, 4, "VLEK"), (0x48, 2, "masked"),
     (1183, 1, "behind its signature")],
)  # fmt: skip
def test_a_form_that_is_not_read_is_said(at, value, told):
    report = bytearray(vector("snp-milan.report"))
    report[at] = value
    assert told in refused(snp.verify, bytes(report), [], [], NOW["sev-snp"])


def test_a_policy_without_a_measurement_or_a_nonce_is_none():
    one = {"measurement": frozenset({bytes(48)})}
    assert "no measurement is expected" in refused(Expected, {}, b"\1" * 64)
    assert "no measurement is expected" in refused(Expected, {"mrtd": frozenset()}, b"\1" * 64)
    assert "is a SHA-384" in refused(Expected, {"mrtd": frozenset({b"1"})}, b"\1" * 64)
    for data in (b"", bytes(64), b"1"):
        assert "draw a nonce" in refused(Expected, one, data)
    assert "32 bytes" in refused(bound_data, b"")
    assert len({bound_data(bytes(32)), bound_data(bytes(32), b"k"), bound_data(b"1" * 32)}) == 3
    assert "sev-snp, tdx" in refused(backend, "sgx")
    assert set(BACKENDS) == {"sev-snp", "tdx"}
