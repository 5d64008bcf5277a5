"""Intel TDX: a quote, signed by a quoting enclave that Intel's certificates vouch for.

Quotes of versions 4 and 5 ("Intel TDX DCAP: Quote Generation Library and Quote Verification
Library", appendix A). Signatures, certificates, lists of revoked ones, the enclave's identity and
what Intel says of the firmware are verified by `dcap-qvl`, up to Intel's root, which it holds; here
the quote's form is, of which that leaves parts unread, and what a policy asks for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from g2d.errors import DAMAGE, SealingError
from g2d.protect.attestation.confidential.policy import Shown

__all__ = ["verify"]

_LARGEST_QUOTE, _LARGEST_COLLATERAL = 1 << 14, 1 << 20  # bytes
_HEADER, _BODY, _REPORT = 48, 584, 384
_PCK_CHAIN, _WITH_REPORT = 5, 6  # kinds of certification data
_DEBUGGED = 0xFF  # attributes of a machine under debug: the first byte, of which none may be set
_MIGRATES = 1 << 29


def verify(
    evidence: bytes, endorsements: Sequence[bytes], roots: Sequence[bytes], now: datetime
) -> Shown:
    """What a quote says, once it is verified up to Intel's root.

    Args:
        evidence: the quote. endorsements: one file, what Intel's service says of such processors
            (collateral), as JSON of `dcap-qvl`; from anywhere. roots: none; or one in its place of
            Intel's, DER, for tests. now: with a time zone.

    Raises:
        SealingError: it is not what an enclave of Intel's signed, or dcap-qvl is absent; one line.
    """
    library = _library()
    if len(evidence) > _LARGEST_QUOTE:
        raise SealingError(f"it is no TDX quote: {len(evidence)} bytes")
    if len(endorsements) != 1 or len(endorsements[0]) > _LARGEST_COLLATERAL:
        raise SealingError("give one file of collateral, as JSON of dcap-qvl, with --endorsement")
    seconds = int(now.timestamp())
    try:
        collateral = library.QuoteCollateralV3.from_json(endorsements[0].decode())
        quote = library.parse_quote(evidence)
        verifier = library.QuoteVerifier(*roots)
        policy = library.QuotePolicy.claims_only(seconds)
        claims = verifier.verify_with_policy(evidence, collateral, seconds, policy)
        said = json.loads(claims.to_json())
    except (*DAMAGE, TypeError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SealingError(f"the TDX quote is not verified: {text}") from error
    if not quote.is_tdx():
        raise SealingError("the quote is of an SGX enclave, not of a TDX machine")
    _check_form(evidence)
    return _shown(quote, said)


def _library() -> Any:
    try:
        import dcap_qvl
    except ImportError:
        raise SealingError(
            "TDX quotes need dcap-qvl: pip install 'g2d[tdx]' (docs/attestation.md)"
        ) from None
    return dcap_qvl


def _shown(quote: Any, said: Any) -> Shown:
    report, tcb = quote.report, said["tcb"]
    attributes = int.from_bytes(report.td_attributes, "little")
    measurements = {"mrtd": report.mr_td}
    measurements |= {f"rtmr{n}": getattr(report, f"rt_mr{n}") for n in range(4)}
    versions = {f"tdx{n}": value for n, value in enumerate(report.tee_tcb_svn)}
    return Shown(
        kind="tdx",
        measurements={name: bytes(value) for name, value in measurements.items()},
        data=bytes(report.report_data),
        debug=bool(attributes & _DEBUGGED),
        migrates=bool(attributes & _MIGRATES),
        firmware=versions,
        status=str(tcb["status"]),
        advisories=tuple(str(one) for one in tcb["advisory_ids"]),
        machine=bytes(said["platform"]["pck"]["ppid"]).hex(),
    )


# --- one form ------------------------------------------------------------------------------------


def _check_form(quote: bytes) -> None:
    """Refuse a quote whose bytes could be others, and it would verify all the same.

    Neither what follows the signature, nor the root in its chain of certificates, is covered by
    any signature that `dcap-qvl` checks.

    Raises:
        SealingError: it was changed.
    """
    try:
        chain = _chain(quote)
        _check_chain(chain)
    except ValueError as error:
        raise SealingError(f"the TDX quote was changed after it was signed: {error}") from error


def _chain(quote: bytes) -> bytes:
    """The certificates of a quote; ValueError: its parts do not fit each other."""
    version, at = _number(quote, 0, 2), _HEADER + _BODY
    if version == 5:
        at = _HEADER + 6 + _number(quote, _HEADER + 2, 4)
    signature, rest = _sized(quote, at)
    if any(rest):
        raise ValueError("bytes follow its signature")
    data, rest = _kind(signature[128:], _WITH_REPORT)
    if rest:
        raise ValueError("bytes follow its certification")
    after = data[_REPORT + 64 :]
    count = _number(after, 0, 2)
    chain, rest = _kind(after[2 + count :], _PCK_CHAIN)
    if rest:
        raise ValueError("bytes follow its certificates")
    return chain


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise ValueError("it ends too early")
    return int.from_bytes(data[at : at + size], "little")


def _sized(data: bytes, at: int) -> tuple[bytes, bytes]:
    """What a size of four bytes announces, and what follows that."""
    end = at + 4 + _number(data, at, 4)
    if end > len(data):
        raise ValueError("it ends too early")
    return data[at + 4 : end], data[end:]


def _kind(data: bytes, kind: int) -> tuple[bytes, bytes]:
    if _number(data, 0, 2) != kind:
        raise ValueError("its certification is of another kind")
    return _sized(data, 2)


def _check_chain(chain: bytes) -> None:
    """Refuse a chain that is not in PEM as Intel writes it, or whose root is none."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificates

    text = chain.removesuffix(b"\0")
    try:
        found = load_pem_x509_certificates(text)
        written = b"".join(one.public_bytes(Encoding.PEM) for one in found)
        for one, by in zip(found, [*found[1:], found[-1]], strict=True):
            one.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature, InvalidVersion, UnsupportedAlgorithm):
        raise ValueError("its certificates do not sign each other") from None
    if written != text:
        raise ValueError("its certificates are not as they were written")
