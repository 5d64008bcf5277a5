"""Code of the user's own is part of what a kept row or network depends on."""

from __future__ import annotations

import pytest

import g2d
from g2d.core.engine import SerialEngine
from g2d.redteam import cache, chains, runner
from g2d.redteam.context import Case

GATE = """
from g2d.defence.gates import GateResult

def gate(view):
    return GateResult("own", True, 0.0, {limit})
"""


@pytest.fixture
def keys(exposed, tmp_path, monkeypatch):
    """Of a case and of a chain, with an own gate's source as it is now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def now(reads_generator, **settings):
        cache.code_version.cache_clear()
        with g2d.Defence.open(exposed, write=False) as defence:
            defence.settings = defence.settings.override(**settings)
            spec = runner._spec_of(defence, None, None, 0, True)
            run = runner._Run(
                defence, spec, tmp_path / "red", SerialEngine(), lambda *_: None, [], None
            )
            case = Case("x", "x", "generated", generator=reads_generator)
            return run._key(case), chains._identity(defence, spec, "draws")

    yield now
    cache.code_version.cache_clear()


@pytest.mark.slow
def test_an_edited_gate_makes_other_keys(keys, tmp_path):
    file = tmp_path / "edited_gate.py"
    file.write_text(GATE.format(limit=0.5))
    own = {"gates__extra": ("edited_gate:gate",)}
    first, plain = keys(True, **own), keys(False, **own)
    assert keys(True, **own) == first
    file.write_text(GATE.format(limit=0.6))
    changed = keys(True, **own)
    assert changed[0] != first[0]
    assert changed[1] != first[1]
    assert keys(False, **own)[0] == plain[0], "what reads no generator runs no gate"


def test_code_that_is_not_there_has_no_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = g2d.Settings().override(
        gates__extra=("nowhere_at_all:gate",), generator__space="nowhere_at_all:Space"
    )
    assert cache.own_code(settings) == {"nowhere_at_all:gate": "", "nowhere_at_all:Space": ""}
    assert cache.own_code(g2d.Settings()) == {}
    former = g2d.Settings().override(harden__recipe=("g2d.harden:l2", "clamp"))
    assert cache.own_code(former) == {"g2d.harden:l2": cache.code_version("g2d.training.recipes")}
