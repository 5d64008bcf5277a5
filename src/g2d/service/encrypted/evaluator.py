"""An evaluator: a process that computes on ciphertexts, and sees neither inputs nor answers.

It does one evaluation after another, and encodes the next generation's weights beside them. It
speaks `frames` over stdin and stdout, and ends with its parent. Who is answered is decided there.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from g2d.service.encrypted import frames

_PARSED = 4
"""Clients whose keys are kept parsed, at twice their upload: 100 MB each for MNIST's network. What
is parsed anew takes 0.2 CPU s."""


class Evaluator:
    """What one process holds: encoded generations by their tokens, parsed keys by their ids.

    Args:
        plan: in JSON. reply: takes the head of a message and its bytes, from any thread.
    """

    def __init__(self, plan: str, reply: Callable[[dict[str, Any], bytes], None]) -> None:
        from g2d.protect.homomorphic import Plan

        self._plan, self._reply = Plan.from_json(plan), reply
        self._generations: dict[str, Any] = {}
        self._keys: OrderedDict[str, Any] = OrderedDict()
        self._reading, self._unwanted = set[str](), set[str]()
        self._tidying = threading.Lock()

    def obey(self, head: dict[str, Any], payload: bytes) -> None:
        """Do one thing that is asked, and say what came of it; nothing is raised."""
        from g2d.protect.homomorphic.errors import HomomorphicError

        said: dict[str, Any] = {"id": head["id"]}
        answer, began = b"", time.process_time()
        try:
            answer = self._do(head, payload)
        except HomomorphicError as error:
            said["refused"] = " ".join(str(error).split())
        except FileNotFoundError:
            said["gone"] = True
        except Exception as error:  # no value of anybody's is told, its kind is
            said["failed"] = type(error).__name__
        self._reply(said | {"seconds": time.process_time() - began}, answer)

    def _do(self, head: dict[str, Any], payload: bytes) -> bytes:
        from g2d.protect.homomorphic import encode, evaluate
        from g2d.weights.checkpoints import unpack

        match head["do"]:
            case "encode":
                self._generations[head["token"]] = encode(self._plan, unpack(payload))
            case "read":
                self._parsed(head)
            case "evaluate":
                generation = self._generations[head["token"]]
                return bytes(evaluate(self._plan, generation, self._parsed(head), payload))
        return b""

    def _parsed(self, head: dict[str, Any]) -> Any:
        from g2d.protect.homomorphic import EvaluationKeys

        name = head["keys"]
        with self._tidying:
            known = self._keys.pop(name, None)
            while known is None and len(self._keys) >= _PARSED:  # before others are beside them
                self._keys.popitem(last=False)
            self._reading.add(name)
        try:
            if known is None:
                known = EvaluationKeys.read(Path(head["file"]).read_bytes(), self._plan)
        finally:
            with self._tidying:
                self._reading.discard(name)
                if name in self._unwanted:  # forgotten in between: used once, and not kept
                    self._unwanted.discard(name)
                elif known is not None:
                    self._keys[name] = known
        return known

    def forget(self, head: dict[str, Any]) -> None:
        """Let go a generation that answers nobody any more, or keys; for whoever asks in between.

        What is evaluated with them just now goes on: it holds what it has.
        """
        with self._tidying:
            self._generations.pop(head.get("token", ""), None)
            name = head.get("keys", "")
            self._keys.pop(name, None)
            if name in self._reading:
                self._unwanted.add(name)


def main(folders: str, spool: str) -> None:
    """Do what the parent asks, until it has gone; the first message holds the plan.

    Args:
        folders: what `sys.path` is to be, in JSON. spool: folder of keys, which goes with us where
            the parent was killed.
    """
    sys.path[:] = json.loads(folders)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    writing = threading.Lock()

    def reply(head: dict[str, Any], payload: bytes = b"") -> None:
        with writing:
            frames.write(out, head, payload)

    first = frames.read(sys.stdin.buffer)
    if first is None:
        return
    from g2d.core.engine import configure_threads

    configure_threads()
    evaluator = Evaluator(first[1].decode(), reply)
    aside: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    ahead: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()

    def take() -> None:
        while (message := frames.read(sys.stdin.buffer)) is not None:
            if message[0]["do"] == "forget":
                evaluator.forget(message[0])
            else:
                (aside if message[0]["do"] == "encode" else ahead).put(message)
        shutil.rmtree(spool, ignore_errors=True)
        os._exit(0)

    def work(messages: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
        while True:
            evaluator.obey(*messages.get())

    threading.Thread(target=take, daemon=True).start()
    # A generation is encoded beside what is answered: nobody waits for its two seconds whole.
    threading.Thread(target=work, args=(aside,), daemon=True).start()
    work(ahead)


if __name__ == "__main__":
    main(*sys.argv[1:])
