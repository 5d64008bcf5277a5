"""The table of parties says what the JSON says; nothing is measured here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.confidential import multiparty
from g2d.protect.multiparty.translate import plain


def timing(seconds: float) -> dict[str, object]:
    return {"n": 250, "seconds": seconds, "cpu": 0.1, "mb": 0.5}


RESULT = {
    "commit": "abc",
    "rows": [
        {"protocol": "aby3", "clip": clip, "network": "small", "single": timing(0.2),
         "batch": timing(0.03)}
        for clip in (True, False)
    ],
    "agreement": {"n": 10_000, "same": 9_998, "largest": 2e-4, "mean": 1e-5},
    "rotation": {"answers": 1000, "rotations": 80, "seen": 80, "mixed": 1, "share_seconds": 0.5,
                 "falls": 0},
    "killed": {"refusal": 0.06, "back": 3.0},
    "uniform": [0.5, 0.25, 0.75],
}  # fmt: skip


def test_the_table_is_of_the_json(tmp_path):
    (tmp_path / f"{multiparty.NAME}.json").write_text(json.dumps(RESULT))
    (text,) = multiparty.made(tmp_path).values()
    assert "| aby3, small network: one image | ≤ 0.25 s, ≤ 0.7 MB | 0.20 s, 0.50 MB |" in text
    assert "| mixed answers under 80 rotations | 0 of 1,000 | 1 of 1,000 |" in text
    assert "| class as torch's | ≥ 9,990 of 10,000 | 9,998 of 10,000 |" in text
    assert text.endswith("Commit abc.")


def test_what_was_not_measured_is_said(tmp_path):
    (text,) = multiparty.made(tmp_path).values()
    assert "not measured yet" in text


@pytest.mark.parametrize("small", [True, False])
def test_generations_differ_and_are_what_parties_compute(digits, small, monkeypatch):
    monkeypatch.setattr(multiparty, "probe", lambda: digits.model(1))
    nets = multiparty.generations(digits, small, 10)
    x = digits.splits.test.x[:5]
    answers = [plain(net.program, net.parameters, x.numpy()) for _, net in nets]
    for (model, _), answer in zip(nets, answers, strict=True):
        np.testing.assert_allclose(answer, model(x).numpy(), atol=1e-4)
    assert np.abs(answers[1] - answers[2]).max() > multiparty.NEAR
    assert len({net.program.digest for _, net in nets}) == 1
