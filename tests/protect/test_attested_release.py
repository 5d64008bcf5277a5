"""Enrolment and release against software TPMs: what is wrapped, for whom, and who is refused."""

from __future__ import annotations

import dataclasses
import random
import time

import pytest

from g2d.errors import KeyFileError, SealingError
from g2d.protect.attestation import host as asked
from g2d.protect.attestation.certificates import load_roots
from g2d.protect.attestation.enrolment import (
    Answer,
    Challenge,
    Host,
    Request,
    Terms,
    ask,
    begin,
    finish,
    hear,
)
from g2d.protect.attestation.quotes import Evidence
from g2d.protect.attestation.release import (
    PolicyKey,
    Released,
    approve_again,
    check_released,
    release,
)
from g2d.protect.sealing.tpm import TpmCustodian
from g2d.protect.tpm import counter
from g2d.protect.tpm.device import open_device
from g2d.protect.tpm.documents import decode, encode
from g2d.protect.tpm.policies import counter_public
from g2d.protect.tpm.publics import ENDORSEMENT_EC, ENDORSEMENT_RSA
from g2d.protect.tpm.wire import sized
from g2d.vault.sealing.released import PURPOSE
from software_tpm import extend, running
from tpm_makers import Maker, put_certificate

KEY, CONTEXT, NOW = bytes(range(32)), PURPOSE + b"vault 1", time.time()
TERMS = Terms((7, 14), every=1)


def refused(call, *arguments) -> str:
    with pytest.raises(SealingError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def enrol(address, terms=TERMS, roots=(), insecure=True):
    """Enrol a host, all records as they travel."""
    with open_device(address) as device:
        request = asked.request(device, counter.DEFAULT_INDEX)
    challenge, pending = begin(decode(Request, encode(request), "it"), terms, roots, insecure, NOW)
    with open_device(address) as device:
        answer = asked.answer(device, decode(Challenge, encode(challenge), "it"))
    return finish(pending, decode(Answer, encode(answer), "it"), NOW + 1)


def prove(address, host):
    """Ask a host for evidence and hear it."""
    host, question = ask(host, NOW)
    with open_device(address) as device:
        evidence = asked.evidence(device, question)
    return hear(host, decode(Evidence, encode(evidence), "it"), NOW + 1)


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture(scope="module")
def roots(maker, tmp_path_factory):
    path = tmp_path_factory.mktemp("maker") / "maker.pem"
    path.write_bytes(maker.pem)
    return load_roots([path])


@pytest.fixture(scope="module")
def approver(tmp_path_factory):
    return PolicyKey.read(tmp_path_factory.mktemp("keys") / "approvals.key")


@pytest.fixture(scope="module")
def address(tmp_path_factory, maker):
    """A TPM with a certificate of its maker."""
    with running(tmp_path_factory.mktemp("tpm") / "state") as found:
        with open_device(found) as device:
            _, area = device.primary(ENDORSEMENT_EC, "ENDORSEMENT")
            put_certificate(device, ENDORSEMENT_EC, maker.certify(area))
        yield found


@pytest.fixture(scope="module")
def enrolled(address, roots):
    return enrol(address, roots=roots, insecure=False)


@pytest.fixture
def released(address, enrolled, approver):
    host, proven = prove(address, enrolled)
    return release(host, proven, KEY, CONTEXT, 5, approver)[0]


def test_a_host_opens_what_was_released_to_it_and_no_other(address, enrolled, released, tmp_path):
    assert enrolled.vouched
    assert decode(Host, encode(enrolled), "it") == enrolled
    blob = encode(released)
    assert KEY.hex().encode() not in blob
    keeper = TpmCustodian(address)
    assert keeper.unwrap(blob, CONTEXT) == KEY
    assert keeper.unwrap(blob, CONTEXT) == KEY  # after a restart of the service
    assert "another vault" in refused(keeper.unwrap, blob, PURPOSE + b"vault 2")
    with running(tmp_path / "there") as there:
        assert "was never enrolled" in refused(TpmCustodian(there).unwrap, blob, CONTEXT)
        with open_device(there) as device:
            counter.make(device, counter.DEFAULT_INDEX)
        assert "another TPM" in refused(TpmCustodian(there).unwrap, blob, CONTEXT)


def test_a_release_is_no_key_of_a_vault_or_of_a_file(address, enrolled, approver):
    """Whoever knows a host's public keys makes releases to it: none may pass for a custodian's."""
    host, proven = prove(address, enrolled)
    for context in (b"g2d vault key 1\0" + b"v" * 32, b"g2d private key 1\0"):
        made, _ = release(host, proven, KEY, context, 5, approver)
        told = refused(TpmCustodian(address).unwrap, encode(made), context)
        assert "a release opens a generation" in told


def test_a_wound_back_number_is_refused_by_both_sides(tmp_path, approver):
    with running(tmp_path / "state") as own:
        host, keeper = enrol(own), TpmCustodian(own)
        blobs = []
        for number in (1, 2, 3):
            host, proven = prove(own, host)
            made, host = release(host, proven, KEY, CONTEXT, number, approver)
            blobs.append(encode(made))
            assert keeper.unwrap(blobs[-1], CONTEXT) == KEY
        assert keeper.unwrap(blobs[1], CONTEXT) == KEY  # the one before the last
        assert "older than what this host has opened" in refused(keeper.unwrap, blobs[0], CONTEXT)
        found = decode(Released, blobs[0], "it")
        with open_device(own) as device:  # the TPM itself refuses, not this check alone
            from g2d.protect.attestation.opening import _unseal

            held = counter.find(device, found.counter)
            with pytest.raises(device.tss.TSS2_Exception, match=r"policy"):
                _unseal(device, held, found)
            device.esys.nv_undefine_space(held)
            counter.make(device, counter.DEFAULT_INDEX)  # made anew it goes on where it was
        assert "older than what" in refused(keeper.unwrap, blobs[0], CONTEXT)
        host, proven = prove(own, host)
        assert "wound back" in refused(release, host, proven, KEY, CONTEXT, 2, approver)
        again, _ = release(host, proven, KEY, CONTEXT, 3, approver)  # a kill lost the first
        assert keeper.unwrap(encode(again), CONTEXT) == KEY
        forgot = dataclasses.replace(host, highest=0)  # a vault and its host file from a backup
        assert "wound back" in refused(release, forgot, proven, KEY, CONTEXT, 1, approver)
        far = release(host, proven, KEY, CONTEXT, 2 * counter.MOST_STEPS, approver)[0]
        assert "counts ahead" in refused(keeper.unwrap, encode(far), CONTEXT)


def test_an_altered_boot_gets_no_key_and_an_approved_one_does(tmp_path, approver):
    with running(tmp_path / "state") as own:
        host, keeper = enrol(own), TpmCustodian(own)
        host, proven = prove(own, host)
        made, host = release(host, proven, KEY, CONTEXT, 1, approver)
        extend(own, 14, bytes(32))
        told = refused(keeper.unwrap, encode(made), CONTEXT)
        assert "PCR 14 is f5a5fd42d16a2030" in told
        assert "PCR 7 " not in told
        host, proven = prove(own, host)
        told = refused(release, host, proven, KEY, CONTEXT, 2, approver)
        assert "PCR 14 is f5a5fd42d16a2030" in told
        # What the update will lead to is approved, without the key and without the host.
        again = approve_again(made, proven.pcrs, approver)
        assert again.duplicate == made.duplicate
        assert keeper.unwrap(encode(again), CONTEXT) == KEY
        forged = dataclasses.replace(made, pcrs=proven.pcrs)
        assert "damaged" in refused(keeper.unwrap, encode(forged), CONTEXT)
        assert "PCRs [14] were given" in refused(approve_again, made, {14: bytes(32)}, approver)


def test_a_cleared_tpm_is_told(tmp_path, approver):
    with running(tmp_path / "state") as own:
        host = enrol(own)
        host, proven = prove(own, host)
        made, host = release(host, proven, KEY, CONTEXT, 1, approver)
        with open_device(own) as device:
            device.esys.clear(device.tss.ESYS_TR.LOCKOUT)
        assert "was cleared" in refused(TpmCustodian(own).unwrap, encode(made), CONTEXT)
        with open_device(own) as device:
            counter.make(device, counter.DEFAULT_INDEX)
        assert "was cleared" in refused(prove, own, host)


def test_another_tpm_answers_neither_challenge_nor_nonce(address, enrolled, roots, tmp_path):
    with running(tmp_path / "there") as there:
        with open_device(there) as device:
            theirs = asked.request(device, counter.DEFAULT_INDEX)
        with open_device(address) as device:
            ours = asked.request(device, counter.DEFAULT_INDEX)
        # A TPM without a certificate borrows that of another.
        lent = dataclasses.replace(
            theirs, endorsement=ours.endorsement, certificate=ours.certificate
        )
        challenge, _ = begin(lent, TERMS, roots, False, NOW)
        for place in (there, address):
            with open_device(place) as device:
                assert "cannot answer the challenge" in refused(asked.answer, device, challenge)
        host, question = ask(enrolled, NOW)
        with open_device(there) as device:
            evidence = asked.evidence(device, question)
        assert "another TPM's" in refused(hear, host, evidence, NOW)


def test_an_endorsement_key_of_2048_bits_of_rsa_is_enrolled(tmp_path, maker, roots):
    with running(tmp_path / "state") as own:
        with open_device(own) as device:
            handle, area = device.primary(ENDORSEMENT_RSA, "ENDORSEMENT")
            put_certificate(device, ENDORSEMENT_RSA, maker.certify(area))
            device.esys.evict_control(device.tss.ESYS_TR.OWNER, handle, 0x81010001)
        host = enrol(own, roots=roots, insecure=False)
        assert host.vouched
        assert host.endorsement == area


def test_a_software_tpm_is_refused_unless_it_is_asked_for(tmp_path, maker, roots):
    with running(tmp_path / "state") as own, open_device(own) as device:
        request = asked.request(device, counter.DEFAULT_INDEX)
    assert "no certificate" in refused(begin, request, TERMS, roots, False, NOW)
    soft = dataclasses.replace(request, certificate=maker.certify(request.endorsement, "swtpm"))
    assert "--insecure-software-tpm" in refused(begin, soft, TERMS, roots, False, NOW)
    for each in (request, soft):
        assert not begin(each, TERMS, (), True, NOW)[1].vouched


def test_every_flipped_bit_of_a_release_is_refused(address, released):
    draw, keeper, blob = random.Random(23), TpmCustodian(address), encode(released)
    left = []
    for bit in draw.sample(range(8 * len(blob)), 1000):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            check_released(decode(Released, bytes(flipped), "it"))
        except SealingError:
            continue
        left.append(bytes(flipped))
    assert 20 < len(left) < 500  # encrypted for the TPM: it alone can tell
    for flipped in draw.sample(left, 12):
        refused(keeper.unwrap, flipped, CONTEXT)


def test_a_key_for_approvals_is_made_once_and_is_no_other(approver, tmp_path):
    path = tmp_path / "approvals.key"
    made = PolicyKey.read(path)
    assert PolicyKey.read(path).area == made.area != approver.area
    assert path.stat().st_mode & 0o777 == 0o600
    from g2d.vault.keys import SigningKey

    SigningKey.generate().write(tmp_path / "signing.key")
    with pytest.raises(KeyFileError, match="is no key for approvals"):
        PolicyKey.read(tmp_path / "signing.key")


def test_a_counter_that_a_kill_left_without_a_step_is_taken_up(tmp_path):
    with running(tmp_path / "state") as own, open_device(own) as device:
        tss, index = device.tss, counter.DEFAULT_INDEX
        half = counter_public(index, written=False)
        device.esys.nv_define_space(b"", tss.TPM2B_NV_PUBLIC.unmarshal(sized(half))[0])
        counter.make(device, index)
        assert counter.value(device, counter.find(device, index)) == 1
        counter.make(device, index)
        assert counter.value(device, counter.find(device, index)) == 1
        other = half[:6] + bytes([half[6] ^ 2]) + half[7:]  # another attribute, elsewhere
        other = (index + 1).to_bytes(4, "big") + other[4:]
        device.esys.nv_define_space(b"", tss.TPM2B_NV_PUBLIC.unmarshal(sized(other))[0])
        assert "something else lies" in refused(counter.make, device, index + 1)
        assert "is no index of a counter" in refused(counter.make, device, 7)
        for far in (0, 10**18):
            assert "is no index of a counter" in refused(counter_public, far)
