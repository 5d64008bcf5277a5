"""The table of parties says what the JSON says; nothing is measured here."""

from __future__ import annotations

import argparse
import json
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Self

import numpy as np
import pytest

from benchmarks.confidential import answers, malicious, multiparty, views
from g2d.protect.multiparty import rings
from g2d.protect.multiparty.translate import plain
from g2d.redteam.rows import Row
from g2d.redteam.scoring import share


def timing(seconds: float) -> dict[str, object]:
    return {"n": 250, "seconds": seconds, "cpu": 0.1, "mb": 0.5}


def attacked(kind: str, **more: object) -> dict[str, object]:
    row = Row("parties", kind, "one party looks", "party 0 of aby3", "ridge", share(103, 1000),
              metric="classes guessed", note="chance is 0.112", extra=more)  # fmt: skip
    return row.as_json(answers.IDS)


FOUND = {
    "aby3: cost": {"single": timing(0.2), "batch": timing(0.03)},
    "cheetah: cost": {"single": timing(2.0), "batch": timing(1.0)},
    "aby3: agreement": {"n": 10_000, "same": 9_998, "largest": 2e-4, "mean": 1e-5},
    "aby3: rotation": {"answers": 1000, "rotations": 80, "seen": 80, "mixed": 1,
                       "share_seconds": 0.5, "falls": 0},
    "aby3: killed": {"refusal": 0.06, "back": 3.0},
    "aby3: curious": [attacked("party-view")],
    "cheetah: curious": [attacked("party-view", p_weights=0.412, p_inputs=0.08, p_answers=1.2e-9)],
    "aby3: harmful": [attacked("party-flip", refused=3)],
}  # fmt: skip
RESULT = {"rows": {name: {"found": found, "commit": "abc"} for name, found in FOUND.items()}}


def test_the_tables_are_of_the_json(tmp_path):
    (tmp_path / f"{multiparty.NAME}.json").write_text(json.dumps(RESULT))
    text, attacks = multiparty.made(tmp_path).values()
    assert "| aby3: one image | ≤ 0.25 s, ≤ 0.7 MB | 0.20 s, 0.50 MB |" in text
    assert "| mixed answers under 80 rotations | 0 of 1,000 | 1 of 1,000 |" in text
    assert "| class as torch's | ≥ 9,990 of 10,000 | 9,998 of 10,000 |" in text
    row = "| one party looks | party 0 of aby3 | classes guessed | 0.103 of 1,000 |"
    assert f"{row} chance is 0.112 |" in attacks
    assert f"{row} chance is 0.112; χ² against uniform: p = 0.41 (weights), 0.08" in attacks
    assert "0.08 (inputs), 1.2e-09 (answers) |" in attacks
    assert "| 0.103 of 1,000, 3 refused |" in attacks
    assert text.endswith("Commit abc.")
    json.loads(json.dumps(RESULT), parse_constant=pytest.fail)


class Nobody:
    """Parties that are there at once; what they were told is noted."""

    heavy = False
    started: ClassVar[list[str]] = []

    def __init__(self, folder: Path, protocol: str, **limits: object) -> None:
        self.protocol = protocol

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        self.started.append(self.protocol)

    def status(self, rank: int) -> dict[str, object]:
        return {"number": None}

    def deal(self, *given: object) -> None:
        pass


def test_what_stands_in_the_result_is_not_measured_again(tmp_path, monkeypatch, digits):
    fails = iter([False, False, False, True])

    def cost(self: object, parties: Nobody, nets: object) -> object:
        if next(fails, False):
            raise KeyboardInterrupt
        return {"single": timing(0.1), "batch": timing(0.1)}

    monkeypatch.setattr(multiparty, "Parties", Nobody)
    monkeypatch.setattr(multiparty, "generations", lambda *_: [(None, SimpleNamespace(
        program=None, parameters=None))])  # fmt: skip
    monkeypatch.setattr(multiparty.Run, "_rows", lambda self, *_: {"cost": partial(cost, self)})
    given = argparse.Namespace(smoke=True, data=Path(), **multiparty.SIZES)
    path = tmp_path / "result.json"
    with pytest.raises(KeyboardInterrupt):
        multiparty.Run(given, path, tmp_path).measure()
    multiparty.Run(given, path, tmp_path).measure()
    assert Nobody.started == ["aby3", "aby3", "cheetah", "aby3", "aby3"]
    assert len(json.loads(path.read_text())["rows"]) == 4
    given.batch = 1
    with pytest.raises(SystemExit, match="give the same flags"):
        multiparty.Run(given, path, tmp_path)


@pytest.mark.parametrize("protocol", ["aby3", "cheetah"])
def test_a_view_tells_nothing_and_all_together_everything(digits, protocol):
    """The classifier that finds nothing in one share reads the sum of them."""
    split = digits.splits.test
    x, y = split.x[:400].numpy(), split.y[:400].numpy()
    shares = rings.split(rings.to_ring(x), protocol)
    own = np.frombuffer(shares[0], "<i8").reshape(len(x), -1) / 2.0**63
    both = rings.from_ring(rings.join(shares, protocol)).reshape(len(x), -1)
    assert views.guessed(own, y) < 0.3 * 200 < 0.7 * 200 < views.guessed(both, y)


def test_a_party_that_means_harm_changes_the_message_that_it_is_told_to(tmp_path):
    order = tmp_path / "order"
    harm = malicious.Harm(order)
    long = b"PRPC" + struct.pack(">II", 402, 2) + b"\x18\x00\x08\x01" + bytes(400)
    for what, place in (("flip", len(long) - 4), ("name", 15)):
        order.write_text(f"{what} 2")
        for frame in (b"PRPC" + struct.pack(">II", 2, 2) + bytes(2), long):
            same = bytearray(frame)
            harm.done_to(same)
            assert same == frame
        changed = bytearray(long)
        harm.done_to(changed)
        assert [i for i, (a, b) in enumerate(zip(long, changed, strict=True)) if a != b] == [place]
        assert not order.exists()


def test_what_was_not_measured_is_said(tmp_path):
    assert all("not measured yet" in text for text in multiparty.made(tmp_path).values())


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
