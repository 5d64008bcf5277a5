"""The same model behind LitServe, at its fastest honest setting.

    python -m benchmarks.serving.litserve VAULT MAX_BATCH QUEUE PORT

uvloop and httptools, no access log, one API process and one worker on the CPU, torch with one
thread. The body is passed on as bytes and read in the worker by orjson, np.asarray and
torch.from_numpy; the answer is written there by orjson and passed back as bytes. MAX_BATCH 1 is its
plain loop, more its batching with a timeout of 1 ms (with 0 its worker spins on a whole core).
QUEUE: fast (ZeroMQ, `fast_queue`) or plain. On two cores its two processes share them with the
load.
"""

import sys
from typing import Annotated, Any

import litserve as ls
import orjson
import torch
from fastapi import Depends, Request, Response

from benchmarks.serving.plain import LENGTH, PATH, binary, in_json, live, split, tensor_of


async def raw(request: Request) -> tuple[bytes, str | None]:
    """A request's body as it came, and the length of its JSON where a tensor follows."""
    return await request.body(), request.headers.get(LENGTH)


class Single(ls.LitAPI):
    """One request at a time."""

    def __init__(self, vault: str, **options: Any) -> None:
        super().__init__(api_path=PATH, **options)
        self.vault = vault

    def setup(self, device: str) -> None:
        self.model, self.number = live(self.vault)

    def decode_request(self, request: Annotated[Any, Depends(raw)]) -> Any:
        body, length = request
        head, tail = split(body, length)
        return tensor_of(orjson.loads(head), tail), length is not None

    def predict(self, given: Any) -> Any:
        with torch.inference_mode():
            return self.model(given[0]), given[1]

    def encode_response(self, output: Any) -> Response:
        logits, wish = output
        return binary(logits, self.number) if wish else in_json(logits, self.number)


class Batched(Single):
    """What waits, at most 1 ms, is one batch."""

    def batch(self, given: list[Any]) -> Any:
        return given

    def predict(self, given: list[Any]) -> Any:
        with torch.inference_mode():
            logits = self.model(torch.cat([x for x, _ in given]))
        parts = torch.split(logits, [len(x) for x, _ in given])
        return [(part, wish) for part, (_, wish) in zip(parts, given, strict=True)]

    def unbatch(self, answers: Any) -> Any:
        return answers


def main(vault: str, most: str, queue: str, port: str) -> None:
    batched = {"max_batch_size": int(most), "batch_timeout": 0.001}
    api = Batched(vault, **batched) if int(most) > 1 else Single(vault)
    fast = queue == "fast"
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=fast)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning",
               generate_client_file=False, access_log=False, loop="uvloop",
               http="httptools")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
