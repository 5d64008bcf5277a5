"""The same model behind FastAPI and uvicorn: as fast as that goes, or as most would write it.

    python -m benchmarks.serving.plain VAULT fast|plain PORT

Both take the same bodies as G2D (JSON or a binary tensor) and give the same answers: one process,
uvloop and httptools, no access log, torch with one thread, one `async` handler that runs the model
in the event loop, a request at a time.
  fast   the body read by orjson, its data by np.asarray and torch.from_numpy, the answer written by
         orjson and passed back as bytes: what G2D does, without batching
  plain  the body read by json, its data by torch.tensor, the answer a dict that FastAPI turns into
         JSON itself
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request, Response

import g2d

PATH = "/v2/models/g2d/infer"
LENGTH = "inference-header-content-length"


def live(vault: str) -> tuple[torch.nn.Module, int]:
    """The live generation's model and number."""
    torch.set_num_threads(1)
    with g2d.Defence.open(vault, write=False) as defence:
        generation = defence.generation()
        return generation.model(), generation.number


def split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """JSON and binary tail of a body."""
    return (body, b"") if length is None else (body[: int(length)], body[int(length) :])


def tensor_of(request: dict[str, Any], tail: bytes) -> torch.Tensor:
    """The one input of a request, by way of NumPy."""
    (given,) = request["inputs"]
    if "data" in given:
        data = np.asarray(given["data"], np.float32)
        return torch.from_numpy(data.reshape(given["shape"]))
    return torch.from_numpy(np.frombuffer(tail, "<f4").reshape(given["shape"]).copy())


def whole(logits: torch.Tensor, number: int) -> dict[str, Any]:
    """The answer, without its data."""
    output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape)}
    return {"model_name": "g2d", "model_version": str(number),
            "parameters": {"generation": number}, "outputs": [output]}  # fmt: skip


def binary(logits: torch.Tensor, number: int) -> Response:
    """The answer as a binary tensor."""
    tail, told = logits.numpy().astype("<f4").tobytes(), whole(logits, number)
    told["outputs"][0]["parameters"] = {"binary_data_size": len(tail)}
    head = orjson.dumps(told)
    return Response(head + tail, media_type="application/octet-stream",
                    headers={LENGTH: str(len(head))})  # fmt: skip


def in_json(logits: torch.Tensor, number: int) -> Response:
    """The answer as JSON, written by orjson."""
    told = whole(logits, number)
    told["outputs"][0]["data"] = logits.flatten().tolist()
    return Response(orjson.dumps(told), media_type="application/json")


Answer = Callable[[bytes, str | None], Any]


def fast(model: torch.nn.Module, number: int) -> Answer:
    """The handler without what can be spared."""

    def answer(body: bytes, length: str | None) -> Response:
        head, tail = split(body, length)
        with torch.inference_mode():
            logits = model(tensor_of(orjson.loads(head), tail))
        return in_json(logits, number) if length is None else binary(logits, number)

    return answer


def plain(model: torch.nn.Module, number: int) -> Answer:
    """The handler as most would write it."""

    def answer(body: bytes, length: str | None) -> Any:
        head, tail = split(body, length)
        request = json.loads(head)
        (given,) = request["inputs"]
        with torch.inference_mode():
            if length is not None:
                return binary(model(tensor_of(request, tail)), number)
            logits = model(torch.tensor(given["data"]).reshape(given["shape"]))
        told = whole(logits, number)
        told["outputs"][0]["data"] = logits.flatten().tolist()
        return told

    return answer


def main(vault: str, kind: str, port: str) -> None:
    import uvicorn

    answer = {"fast": fast, "plain": plain}[kind](*live(vault))
    app = FastAPI()

    @app.post(PATH)
    async def infer(request: Request) -> Any:
        return answer(await request.body(), request.headers.get(LENGTH))

    uvicorn.run(app, port=int(port), log_level="warning", access_log=False, loop="uvloop",
                http="httptools")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
