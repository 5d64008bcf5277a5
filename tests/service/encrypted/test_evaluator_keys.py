"""What an evaluator keeps of clients' keys: nothing that was forgotten while it was parsed."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("tenseal", reason="homomorphic inference needs TenSEAL: pip install 'g2d[he]'")

from g2d.protect.homomorphic import EvaluationKeys, HomomorphicError, Plan
from g2d.service.encrypted.evaluator import Evaluator
from he_networks import tiny

PLAN = Plan.of(tiny(), (6,))


@pytest.fixture
def made(monkeypatch):
    """An evaluator whose parsing waits to be let go; and what it replied."""
    replies, begun, free = [], threading.Event(), threading.Event()
    made = Evaluator(PLAN.to_json(), lambda head, payload: replies.append(head))

    def read(blob, plan):
        begun.set()
        assert free.wait(60)
        if not blob:
            raise HomomorphicError("these are none")
        return blob

    monkeypatch.setattr(EvaluationKeys, "read", read)
    return made, replies, begun, free


@pytest.mark.parametrize("blob", [b"keys", b""])
def test_keys_that_are_forgotten_while_they_are_parsed_are_not_kept(made, tmp_path, blob):
    evaluator, replies, begun, free = made
    file = tmp_path / "a"
    file.write_bytes(blob)
    order = {"id": 1, "do": "read", "keys": "a", "file": str(file)}
    parsing = threading.Thread(target=evaluator.obey, args=(order, b""))
    parsing.start()
    assert begun.wait(60)
    file.unlink()
    evaluator.forget({"keys": "a"})
    evaluator.forget({"keys": "another"})
    free.set()
    parsing.join(60)
    assert ("refused" in replies[0]) == (not blob)
    assert not evaluator._keys
    assert not evaluator._unwanted | evaluator._reading
    evaluator.obey(order | {"id": 2}, b"")
    assert replies[1]["gone"]
    file.write_bytes(b"keys")
    evaluator.obey(order | {"id": 3}, b"")
    assert list(evaluator._keys) == ["a"]
    evaluator.forget({"keys": "a"})
    assert not evaluator._keys
