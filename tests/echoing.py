"""Evaluators whose process echoes: "ciphertexts" that say which generation answered them.

What is tried with it is who is asked, who waits and what is refused; that ciphertexts are computed
on is tried with real ones (`test_encrypted_service`).
"""

from __future__ import annotations

import threading
from pathlib import Path

from g2d.rotation.snapshot import Live
from g2d.service.encrypted.evaluators import Evaluators
from g2d.service.encrypted.offer import Offer
from g2d.service.encrypted.process import DiedError
from g2d.service.encrypted.protocol import Query, write_query
from g2d.service.http.options import Options
from stand_ins import Harness, numbered

OFFER = Offer('{"a plan": 1}', "d" * 64, upload_bytes=1 << 20, query_bytes=1 << 18)
OPTIONS = Options(encrypted_waiting=4, encrypted_keys=3, encrypted_timeout=20.0)
GOOD = b"evaluation keys"


class EchoingProcess:
    """Answers `generation:query`; what a query or keys say may go wrong. `gate`: held up there."""

    gate = threading.Event()

    def __init__(self, plan: str, spool: Path) -> None:
        self.encoded: dict[str, bytes] = {}
        self.forgotten: list[str] = []
        self.alive = False

    def start(self) -> bool:
        was, self.alive = self.alive, True
        return not was

    def send(self, order) -> None:
        self.forgotten.append(order.get("token") or order["keys"])
        self.encoded.pop(order.get("token", ""), None)

    def ensure(self, token: str, weights: bytes, patience: float) -> None:
        self.encoded[token] = weights

    def ask(self, order, payload: bytes, patience: float):
        if not Path(order["file"]).exists():
            return {"gone": True}, b""
        keys = Path(order["file"]).read_bytes()
        if not keys.startswith(GOOD):
            return {"refused": "these are no keys of this plan"}, b""
        self.gate.wait(60)
        if payload.startswith(b"die"):
            self.alive = False
            self.encoded.clear()
            raise DiedError("the evaluator died (exit code -11).")
        if payload.startswith(b"refuse"):
            return {"refused": "this ciphertext is of other parameters"}, b""
        if payload.startswith(b"fail"):
            return {"failed": "RuntimeError"}, b""
        found = self.encoded[order["token"]] if order["do"] == "evaluate" else b""
        return {"seconds": 2.0}, found + b":" + payload

    def end(self) -> None:
        self.alive = False


def echoing(monkeypatch, options: Options = OPTIONS, **more) -> tuple[Harness, Evaluators]:
    """A service over stand-ins whose snapshots answer "ciphertexts" by their numbers."""
    monkeypatch.setattr("g2d.service.encrypted.evaluators.Process", EchoingProcess)
    monkeypatch.setattr(EchoingProcess, "gate", threading.Event())
    EchoingProcess.gate.set()
    evaluators = Evaluators(OFFER.text, options.encrypted_processes, options.encrypted_waiting, 9.0)
    offer = more.pop("offer", OFFER)
    harness = Harness(options, encrypted=(offer, evaluators), **more)

    def encoded(number: int):
        from dataclasses import replace

        return replace(numbered(number), encrypted=evaluators.encode(b"%d" % number))

    harness.live = harness.service.encrypted._live = Live(encoded(1))
    harness.encoded = encoded
    return harness, evaluators


def posted(keys: str, ciphertext: bytes = b"c", plan: str = OFFER.digest, own: str | None = None):
    """Content and headers of an encrypted request."""
    content, headers = write_query(Query(ciphertext, keys, plan, own))
    return {"content": content, "headers": headers}


def answered(response) -> tuple[dict, bytes]:
    """The head of an answer, and its ciphertext."""
    import json

    size = int(response.headers["inference-header-content-length"])
    return json.loads(response.content[:size]), response.content[size:]
