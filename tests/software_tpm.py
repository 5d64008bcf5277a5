"""The software TPM of the benchmarks, for tests: they skip, and say why, where there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sealing import software_tpm
from benchmarks.sealing.software_tpm import extend

__all__ = ["extend", "needs_swtpm", "running"]


def needs_swtpm() -> None:
    """Skip, and say why, where there is no software TPM or no way to ask one."""
    os.environ.setdefault("TSS2_LOG", "all+NONE")  # else it says on stderr what it does not find
    try:
        from tpm2_pytss import TCTILdr
    except ImportError:
        pytest.skip("needs tpm2-pytss: pip install 'g2d[tpm]'")
    if shutil.which("swtpm") is None or not TCTILdr.is_available("swtpm"):
        pytest.skip("needs swtpm (Debian: apt-get install swtpm libtss2-tcti-swtpm0)")


@contextlib.contextmanager
def running(state: Path) -> Iterator[str]:
    """Run a software TPM whose state lies in a folder; give its address."""
    needs_swtpm()
    with software_tpm.running(state) as address:
        yield address
