"""`g2d attest confidential`: recorded evidence of real processors, as an operator holds it."""

from __future__ import annotations

import datetime as clock
from pathlib import Path

import pytest

from g2d.cli import attest_confidential
from signed import run

pytest.importorskip("cryptography")

VECTORS = Path(__file__).parents[1] / "protect" / "vectors"
MEASUREMENT = "b07af9620f3b839b47996422ddec6058338951d984e312115131ea82705eaf5b"
MEASUREMENT += "6bdf8a9ece31a5a608eb0cf2e4872b01"
DATA = bytes(range(1, 6)).ljust(64, b"\0").hex()


@pytest.fixture(autouse=True)
def _now(monkeypatch):
    class Fixed(clock.datetime):
        @classmethod
        def now(cls, tz=None):
            return clock.datetime(2026, 11, 1, tzinfo=tz)

    monkeypatch.setattr(attest_confidential, "datetime", Fixed)


def said(*options, code=0):
    given = ["--endorsement", VECTORS / "snp-milan-vcek.der", "--endorsement",
             VECTORS / "snp-milan-ask.der"]  # fmt: skip
    report = VECTORS / "snp-milan.report"
    shown = run("attest", "confidential", "sev-snp", report, *given, *options, code=code)
    return " ".join(shown.split())


def test_a_report_is_shown_and_held_to_what_is_expected():
    root, wanted = ("--root", VECTORS / "snp-milan-ark.der"), f"measurement={MEASUREMENT}"
    right = (*root, "--measurement", wanted, "--data", DATA)
    told = said(*right, "--insecure-debug", "--least", "snp=5")
    assert f"measurement {MEASUREMENT}" in told
    assert "bootloader 2, tee 0, snp 5, microcode 68" in told
    assert "is what is expected" in told
    told = said(*right, "--least", "snp=6", code=1)
    assert "may be debugged" in told
    assert "its snp is of security version 5, expected 6 at least" in told
    nonce = (*root, "--measurement", wanted, "--nonce", "11" * 32, "--insecure-debug")
    assert "does not answer this nonce" in said(*nonce, code=1)
    assert "no root is trusted" in said(*right[2:], code=1)


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ("is a SHA-384", ("--measurement", "measurement=00", "--data", DATA)),
        ("is not in hex", ("--measurement", "measurement=zz", "--data", DATA)),
        ("no security version", ("--measurement", "a=00", "--data", DATA, "--least", "snp")),
        ("32 bytes", ("--measurement", "a=00", "--nonce", "00")),
    ],
)
def test_bad_input_is_one_line(told, options):
    assert told in said(*options, code=1)


def test_a_nonce_or_all_of_the_data_is_given():
    assert "not both" in said("--measurement", "a=00", code=2)
