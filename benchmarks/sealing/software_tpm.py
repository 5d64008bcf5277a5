"""A software TPM, Debian's `swtpm`, as a process of its own that is asked over its socket."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from g2d.errors import SealingError
from g2d.protect.tpm.device import open_device

PATIENCE = 60  # seconds until it answers, on a machine with other work


@contextlib.contextmanager
def running(state: Path) -> Iterator[str]:
    """Run a software TPM whose state lies in a folder; give its address, for `open_device`."""
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tpm") as folder:  # short: a socket's name ends at 108
        place = Path(folder) / "s"
        command = [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}",
            "--server", f"type=unixio,path={place}", "--ctrl", f"type=unixio,path={place}.ctrl",
            "--flags", "not-need-init,startup-clear", "--log", f"file={state}/log,level=1",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(process, f"swtpm:path={place}")
            yield f"swtpm:path={place}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    """Wait until it answers, not for its sockets alone: it opens one after the other."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(SealingError), open_device(address) as device:
            device.esys.get_random(8)
            return
        time.sleep(0.02)
    raise AssertionError(f"swtpm does not answer (exit status {process.poll()})")


def extend(address: str, pcr: int, digest: bytes) -> None:
    """Extend a PCR of the SHA-256 bank, as what boots does."""
    with open_device(address) as device:
        tss = device.tss
        values = tss.TPML_DIGEST_VALUES(
            [tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))]
        )
        device.esys.pcr_extend(getattr(tss.ESYS_TR, f"PCR{pcr}"), values)
