"""The TPM of this machine: opened, asked, and left as it was found: every handle is flushed.

`tpm2-pytss` is imported here and in `host` alone, when a TPM is used. What goes to the TPM and what
comes back is encrypted on the bus, by sessions that are salted with the storage key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from g2d.errors import SealingError
from g2d.protect.tpm.policies import selection
from g2d.protect.tpm.publics import STORAGE, Kind
from g2d.protect.tpm.wire import sized

__all__ = ["Device", "default_tcti", "open_device"]

_MANAGED = "/dev/tpmrm0"

# What a TPM says, in words: by code, without what it says of parameter, handle or session.
_WORDS = {
    0x902: "its slots for keys are taken (0x902): use the kernel's resource manager"
    f" (device:{_MANAGED}), or free them with `tpm2_flushcontext --transient-object`",
    0x903: "its slots for sessions are taken (0x903): use the kernel's resource manager"
    f" (device:{_MANAGED}), or free them with `tpm2_flushcontext --loaded-session`",
    0x905: "its slots for sessions are taken (0x905): free them with"
    " `tpm2_flushcontext --saved-session`",
    0x921: "it is locked out after wrong passwords (0x921): wait, or run"
    " `tpm2_dictionarylockout --clear-lockout`",
    0x100: "it was not started (0x100): firmware or `tpm2_startup -c` does that",
    0x101: "it is in failure mode (0x101): switch the machine off and on",
    0x120: "it does not allow that (0x120)",
    0x128: "a PCR changed while it was asked (0x128): try again",
    0x08E: "a password is set where none was expected (0x8e), or a policy is not met",
    0x0A2: "a password is set where none was expected (0xa2): G2D uses the owner and the"
    " endorsement hierarchy without one",
    0x09D: "the policy is not met (0x9d): PCRs or the counter are not as they have to be",
    0x09F: "what was given is damaged, or another TPM's (0x9f)",
    0x14B: "its non-volatile memory is full (0x14b): remove an index with `tpm2_nvundefine`",
}
_BUSY = {0x908, 0x909, 0x922}  # yielded, testing, retry


def default_tcti() -> str:
    """Where the TPM is unless it is said: `$G2D_TPM`, or the kernel's resource manager."""
    return os.environ.get("G2D_TPM") or f"device:{_MANAGED}"


@contextmanager
def open_device(tcti: str = "") -> Iterator[Device]:
    """Open a TPM; on leaving, whatever was loaded is flushed.

    Args:
        tcti: NAME:CONFIGURATION as tpm2-tss has them: "device:/dev/tpmrm0",
            "swtpm:host=127.0.0.1,port=2321".

    Raises:
        SealingError: there is no TPM, or it refuses what is asked of it; in one line.
    """
    tcti = tcti or default_tcti()
    os.environ.setdefault("TSS2_LOG", "all+NONE")  # else the library writes on stderr by itself
    try:
        import tpm2_pytss as tss
    except ImportError as error:
        raise SealingError(
            "a TPM needs the package tpm2-pytss and the libraries tpm2-tss:"
            " pip install 'g2d[tpm]' (Debian: libtss2-dev before it)"
        ) from error
    kind, _, where = tcti.partition(":")
    if kind == "device" and not Path(where).exists():
        raise SealingError(
            f"there is no TPM at {where}: turn it on in the firmware's settings, or say where it is"
            " with tpm:TCTI or $G2D_TPM"
        )
    try:
        esys = tss.ESAPI(tcti)
    except (tss.TSS2_Exception, RuntimeError) as error:
        raise SealingError(
            f"no TPM answers at {tcti!r}: expected device:{_MANAGED}, or another TCTI of tpm2-tss,"
            " and a user of the group tss"
        ) from error
    device = Device(tss, esys)
    try:
        yield device
    except tss.TSS2_Exception as error:
        raise SealingError(f"the TPM at {tcti!r} refuses: {_words(error)}") from error
    finally:
        device.flush()
        with suppress(tss.TSS2_Exception):
            esys.close()


def _words(error: Any) -> str:
    code = error.error
    if code in _BUSY:
        return f"it is busy ({code:#x}): try again"
    return _WORDS.get(code) or f"{error} ({error.rc:#x})"


class Device:
    """An open TPM. `esys` and `tss` are tpm2-pytss' own, for what is asked in one place alone."""

    def __init__(self, tss: Any, esys: Any) -> None:
        self.tss, self.esys = tss, esys
        self._handles = ExitStack()

    def flush(self) -> None:
        """Flush whatever this device has loaded."""
        self._handles.close()

    def keep(self, handle: Any) -> Any:
        """Return a handle that is flushed once the device is left."""
        self._handles.callback(self._forget, handle)
        return handle

    def _forget(self, handle: Any) -> None:
        with suppress(self.tss.TSS2_Exception):  # gone already: a session that was used up
            self.esys.flush_context(handle)

    def public(self, area: bytes) -> Any:
        """A public area as tpm2-pytss has it."""
        return self.tss.TPM2B_PUBLIC.unmarshal(sized(area))[0]

    def primary(
        self, kind: Kind, hierarchy: str = "OWNER", label: bytes = b""
    ) -> tuple[Any, bytes]:
        """Make a primary key, the same each time: its handle and its public area.

        Args:
            hierarchy: OWNER, or ENDORSEMENT. label: bytes that tell keys of one kind apart.
        """
        size = 256 if kind.rsa else 32
        unique = sized(label.ljust(size, b"\0")) + (b"" if kind.rsa else sized(bytes(size)))
        handle, public, *_ = self.esys.create_primary(
            None, self.public(kind.template + unique), getattr(self.tss.ESYS_TR, hierarchy)
        )
        return self.keep(handle), public.marshal()[2:]

    def storage(self) -> tuple[Any, bytes]:
        """The storage key: handle and public area."""
        return self.primary(STORAGE)

    def session(self, storage: Any, policy: bool = False) -> Any:
        """A session that is salted with the storage key and encrypts parameters both ways."""
        tss = self.tss
        symmetric = tss.TPMT_SYM_DEF(
            algorithm=tss.TPM2_ALG.AES,
            keyBits=tss.TPMU_SYM_KEY_BITS(sym=128),
            mode=tss.TPMU_SYM_MODE(sym=tss.TPM2_ALG.CFB),
        )
        session = self.esys.start_auth_session(
            storage,
            tss.ESYS_TR.NONE,
            tss.TPM2_SE.POLICY if policy else tss.TPM2_SE.HMAC,
            symmetric,
            tss.TPM2_ALG.SHA256,
        )
        self.keep(session)
        bits = tss.TPMA_SESSION.ENCRYPT | tss.TPMA_SESSION.CONTINUESESSION
        self.esys.trsess_set_attributes(
            session, bits if policy else bits | tss.TPMA_SESSION.DECRYPT
        )
        return session

    def pcrs(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Read PCRs of the SHA-256 bank.

        Raises:
            SealingError: the TPM does not keep that bank.
        """
        wanted = list(numbers)
        found: dict[int, bytes] = {}
        while missing := [number for number in wanted if number not in found]:
            _, told, digests = self.esys.pcr_read(self.selected(missing))
            bits = int.from_bytes(bytes(told[0].pcrSelect)[:3], "little") if len(told) else 0
            answered = [number for number in range(24) if bits >> number & 1]
            if not answered or len(digests) != len(answered):
                raise SealingError(
                    f"the TPM keeps no SHA-256 bank of PCR {missing[0]}, SHA-1 perhaps, which is"
                    " refused: turn the SHA-256 bank on in the firmware's settings"
                )
            found.update(zip(answered, map(bytes, digests), strict=True))
        return found

    def selected(self, numbers: Iterable[int]) -> Any:
        """A selection of PCRs as tpm2-pytss has it."""
        return self.tss.TPML_PCR_SELECTION.unmarshal(selection(numbers))[0]
