"""`g2d privacy plant|audit`: what they print, and what they refuse in one line."""

from __future__ import annotations

import dataclasses

import pytest

from commands import fail, succeed
from g2d.cli import privacy_audit as command
from g2d.protect.privacy.audit_bounds import Guesses
from g2d.redteam.privacy_audit import Audit

FOUND = Audit(
    Guesses(1000, 200, 190), {"trained": Guesses(1000, 200, 185)}, {"trained": 25}, 1e-5, 0.05,
    2.345, 3.456, 4.2, 5.8, 1.25, 0.001,
)  # fmt: skip


def words(text: str) -> str:
    """What is said, however a line is broken."""
    return " ".join(text.split())


def test_planting_makes_a_vault_that_says_what_it_is(tmp_path):
    vault, key = tmp_path / "vault", tmp_path / "canaries.key"
    plant = ["privacy", "plant", vault, "--key", key, "--canaries", 50]
    assert "name the task of a new one" in fail(*plant)
    told = words(succeed(*plant, "--task", "digits", "--guesses", 20).stdout)
    assert "50 mislabelled, each planted or not by a coin of its own" in told
    assert "20 guesses can certify no more than" in told
    assert "claim none, as [privacy] enabled is false" in told  # nothing else says it before
    assert "Next: g2d population" in told
    assert key.stat().st_mode & 0o077 == 0
    assert "50 planted canaries" in words(succeed("show", vault).stdout)
    assert "already" in fail(*plant[:4], tmp_path / "second.key")
    assert "g2d population" in fail("privacy", "audit", vault, "--key", key, "--references", 0)
    assert "cannot read" in fail("privacy", "audit", vault, "--key", tmp_path / "none")


def test_an_audit_says_what_it_found(capsys):
    command._print_audit(FOUND)
    told = words(capsys.readouterr().out)
    for part in (
        "190 of 200", "185 of 200", "epsilon 2.345 at delta 1e-05 (95 % sure)", "3.456 if",
        "claim epsilon 1.250", "p = 0.001 (it allows for less)",
        "200 guesses can certify no more than 4.2", "1000 canaries no more than 5.8",
    ):  # fmt: skip
        assert part in told, part
    assert "not refuted" not in told
    assert FOUND.refuted
    command._print_audit(dataclasses.replace(FOUND, alpha=1 - 0.999))
    assert "(99.9 % sure)" in words(capsys.readouterr().out)
    mild = dataclasses.replace(FOUND, bound=0.5, p=0.6)
    command._print_audit(mild)
    assert "The claim is not refuted: an attack that is not tried here" in words(
        capsys.readouterr().out
    )
    none = dataclasses.replace(FOUND, claim=float("inf"), p=None, uncovered=("base: it was given",))
    command._print_audit(none)
    told = words(capsys.readouterr().out)
    assert "claim none" in told
    assert "not covered: base: it was given" in told
    assert not none.refuted


@pytest.mark.parametrize("only", ["curve", "pair"])
def test_either_test_refutes(only):
    found = dataclasses.replace(FOUND, **({"bound": 0.5} if only == "curve" else {"p": 0.6}))
    assert found.refuted
