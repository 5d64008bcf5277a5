"""What the tests of signing share: a signed vault, and how a generation is verified or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from g2d.cli import main as cli
from g2d.errors import RefusedError
from g2d.vault import signing
from g2d.vault.signing import SigningKey, VerifyKey, sign_generation, verify_generation
from g2d.vault.vault import Vault

MANIFEST = {
    "task": "digits", "population": "ab" * 32, "generator": "cd" * 32, "exposed": [1, 2, 3],
    "gates": [{"gate": "accuracy", "value": 0.25, "limit": 0.5, "passed": True, "reason": ""}],
}  # fmt: skip


def accept(vault: Vault, key: SigningKey, turn: int = 0, **options):
    files = {"weights": b"weights %d " % turn * 20, "attacks": b"attacks %d " % turn * 9}
    return sign_generation(
        vault, files, MANIFEST, key, **{"source": "digits", "lifetime": 1.0} | options
    )


@contextmanager
def signed_vault(path: Path, key: SigningKey) -> Iterator[Vault]:
    """Generations 1 to 4, signed; 2 is live."""
    with Vault.create(path, '[task]\nname = "digits"\n') as made:
        for turn in range(4):
            accept(made, key, turn, activate=turn < 2)
        yield made


def verify(vault: Vault, number: int, key: VerifyKey, after: int = 2, now: float | None = None):
    return verify_generation(vault, number, key, after=after, now=now or time.time())


def refused(vault: Vault, number: int, key: VerifyKey, **options) -> str:
    with pytest.raises(RefusedError) as caught:
        verify(vault, number, key, **options)
    error = caught.value
    assert error.number == number
    assert error.reason in signing.REASONS
    assert error.record() | {"detail": 0} == {
        "event": "generation_refused", "generation": number, "reason": error.reason, "detail": 0,
    }  # fmt: skip
    assert "The live one stays" in str(error)
    return error.reason


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(part) for part in arguments])
    assert result.exit_code == code, result.output
    return result.output
