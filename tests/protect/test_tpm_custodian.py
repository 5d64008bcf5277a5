"""The custodian `tpm` against a software TPM: what opens, and what is said where nothing does."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from g2d.errors import SealingError
from g2d.protect.sealing import custodian
from g2d.protect.sealing.tpm import Sealed, TpmCustodian, from_url
from g2d.protect.tpm import documents, sealed
from g2d.protect.tpm.device import open_device
from g2d.protect.tpm.policies import pcr_policy
from g2d.protect.tpm.publics import STORAGE, is_sealed
from software_tpm import extend, needs_swtpm, running

KEY, CONTEXT = bytes(range(32)), b"vault 1, generation 7"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("tpm") / "state") as found:
        yield found


@pytest.fixture(scope="module")
def blob(address):
    return TpmCustodian(address).wrap(KEY, CONTEXT)


def refused(call, *arguments) -> str:
    with pytest.raises(SealingError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_key_comes_back_with_its_context_alone(address, blob):
    keeper = custodian(f"tpm:{address}")
    assert keeper.kind == "tpm"
    assert keeper.unwrap(blob, CONTEXT) == KEY
    assert KEY not in blob
    assert KEY.hex().encode() not in blob
    many = TpmCustodian(address, tuple(range(12)))  # a TPM reads eight at once
    assert many.unwrap(many.wrap(KEY, CONTEXT), CONTEXT) == KEY
    assert "another vault or another purpose" in refused(keeper.unwrap, blob, b"vault 2")
    assert "expected 32" in refused(keeper.wrap, KEY[:16], CONTEXT)


def test_nothing_stays_loaded(address, blob):
    keeper = TpmCustodian(address)
    for _ in range(5):  # a TPM has three slots
        assert keeper.unwrap(blob, CONTEXT) == KEY
    refused(keeper.unwrap, blob, b"other")
    with open_device(address) as device:
        for first in (0x80000000, 0x02000000, 0x03000000):
            _, told = device.esys.get_capability(device.tss.TPM2_CAP.HANDLES, first, 16)
            assert len(told.data.handles) == 0


def test_full_slots_are_one_line_that_says_what_to_do(address, blob):
    with open_device(address) as other:
        for number in range(3):
            other.primary(STORAGE, label=bytes([number]))
        told = refused(TpmCustodian(address).unwrap, blob, CONTEXT)
    assert "0x902" in told
    assert "/dev/tpmrm0" in told
    assert TpmCustodian(address).unwrap(blob, CONTEXT) == KEY


def test_a_changed_pcr_is_named_and_opens_nothing(tmp_path):
    with running(tmp_path / "state") as own:
        keeper = TpmCustodian(own, (7, 14))
        blob = keeper.wrap(KEY, CONTEXT)
        extend(own, 14, bytes(32))
        told = refused(keeper.unwrap, blob, CONTEXT)
        assert "PCR 14 is f5a5fd42d16a2030" in told
        assert "PCR 7 " not in told
        # The TPM itself refuses, not this check alone.
        found = documents.decode(Sealed, blob, "it")
        now = {7: bytes(32), 14: hashlib.sha256(bytes(64)).digest()}
        forged = documents.encode(Sealed(**vars(found) | {"pcrs": now}))
        assert "its policy is not that of its PCRs" in refused(keeper.unwrap, forged, CONTEXT)
        assert "the policy is not met" in refused(_unseal_whatever, own, found)
        assert keeper.unwrap(keeper.wrap(KEY, CONTEXT), CONTEXT) == KEY


def _unseal_whatever(address, found):
    with open_device(address) as device:
        storage, _ = device.storage()
        loaded = sealed.load(device, storage, found.public, found.private)
        pcrs = tuple(found.pcrs)
        sealed.unseal(device, storage, loaded, lambda s: sealed.set_pcr_policy(device, s, pcrs))


def test_it_opens_in_no_other_tpm_and_not_once_cleared(tmp_path):
    with running(tmp_path / "here") as here, running(tmp_path / "there") as there:
        blob = TpmCustodian(here).wrap(KEY, CONTEXT)
        assert "another TPM" in refused(TpmCustodian(there).unwrap, blob, CONTEXT)
        with open_device(here) as device:
            device.esys.clear(device.tss.ESYS_TR.LOCKOUT)
        assert "cleared since" in refused(TpmCustodian(here).unwrap, blob, CONTEXT)


def test_a_bank_of_sha1_alone_is_refused_and_restarts_lose_nothing(tmp_path):
    with running(tmp_path / "state") as own:
        blob = TpmCustodian(own).wrap(KEY, CONTEXT)
    with running(tmp_path / "state") as own:  # the machine was restarted
        assert TpmCustodian(own).unwrap(blob, CONTEXT) == KEY
        with open_device(own) as device:
            plain = "00000002" + "000403ffffff" + "000b03000000"  # all of SHA-1, none of SHA-256
            banks = device.tss.TPML_PCR_SELECTION.unmarshal(bytes.fromhex(plain))[0]
            device.esys.pcr_allocate(banks, device.tss.ESYS_TR.PLATFORM)
            device.esys.shutdown(device.tss.TPM2_SU.CLEAR)
    with running(tmp_path / "state") as own:
        told = refused(TpmCustodian(own).wrap, KEY, CONTEXT)
    assert "no SHA-256 bank" in told
    assert "firmware" in told


def test_a_locked_out_tpm_still_opens_what_needs_no_password(tmp_path):
    with running(tmp_path / "state") as own:
        blob = TpmCustodian(own).wrap(KEY, CONTEXT)
        with open_device(own) as device:
            device.esys.dictionary_attack_parameters(0, 1000, 1000)  # no failure is allowed
        assert TpmCustodian(own).unwrap(blob, CONTEXT) == KEY


def test_every_flipped_bit_of_a_sealed_key_is_refused(address, blob):
    """Those that G2D can see, by itself; some of those that the TPM alone can, by the TPM."""
    draw, keeper = random.Random(23), TpmCustodian(address)
    left = []
    for bit in draw.sample(range(8 * len(blob)), 1000):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = documents.decode(Sealed, bytes(flipped), "it")
        except SealingError:
            continue
        if is_sealed(found.public, pcr_policy(found.pcrs), travels=False):
            left.append(bytes(flipped))
    assert 100 < len(left) < 500
    for flipped in draw.sample(left, 12):
        assert re.search("damaged|another TPM", refused(keeper.unwrap, flipped, CONTEXT))


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("?pcrs=16", "PCR 16 can be reset from user space"),
        ("?pcrs=14,23", "PCR 23 can be reset from user space"),
        ("?pcrs=24", "expected one or more from 0 to 23"),
        ("?pcrs=", "are no PCRs"),
        ("?pcrs=x", "are no PCRs"),
        ("?pcr=14", "Did you mean 'pcrs'?"),
    ],
)
def test_what_proves_nothing_is_refused(rest, said):
    assert said in refused(from_url, rest)
    assert from_url("?pcrs=14,7").pcrs == (7, 14)


def test_no_tpm_is_one_line(tmp_path):
    needs_swtpm()
    nothing = refused(TpmCustodian(f"device:{tmp_path}/tpmrm0").wrap, KEY, CONTEXT)
    assert f"there is no TPM at {tmp_path}/tpmrm0" in nothing
    assert "no TPM answers" in refused(TpmCustodian("swtpm:path=/nowhere/s").wrap, KEY, CONTEXT)
    assert "no TPM answers" in refused(TpmCustodian("a device").wrap, KEY, CONTEXT)


def test_other_files_are_no_sealed_keys(address):
    keeper = TpmCustodian(address)
    for data in (b"", b"{", b"[]", b'{"g2d": 7}', b"\xff" * 64, b'{"g2d": "tpm-sealed"}'):
        refused(keeper.unwrap, data, CONTEXT)
    assert "expected 65536 at most" in refused(keeper.unwrap, b" " * 70_000, CONTEXT)
