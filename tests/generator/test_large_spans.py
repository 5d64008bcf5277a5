"""Spans of large members, fitted in pieces and in files: the same frame as in memory at once."""

from __future__ import annotations

import pytest
import torch

from g2d.generator import out_of_core
from g2d.generator.autoencoder import Span


def test_a_span_in_pieces_and_in_files_is_the_span(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.Generator().manual_seed(0)
    members = torch.randn(6, 1000, generator=source)
    basins = [0, 0, 0, 1, 1, 1]
    whole = Span.fit(members, basins)
    monkeypatch.setattr(out_of_core, "PIECEWISE", 1)
    monkeypatch.setattr(out_of_core, "PIECE", 128)
    for mapped in (1 << 31, 1):
        monkeypatch.setattr(out_of_core, "MAPPED", mapped)
        span = Span.fit(members, basins)
        assert torch.allclose(span.mean, whole.mean, atol=1e-6)
        assert torch.allclose(span.spread, whole.spread, rtol=1e-4)
        assert torch.allclose(span.basis @ span.basis.T, torch.eye(len(span.spread)), atol=1e-5)
        assert torch.allclose(span.lift(span.project(members)), members, atol=1e-4)
        assert torch.equal(Span.fit(members, basins).basis, span.basis)
