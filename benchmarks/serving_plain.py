"""The same model behind plain FastAPI and uvicorn, as most would write it.

    python benchmarks/serving_plain.py VAULT PORT

It takes the same bodies as G2D (JSON or a binary tensor) and gives the same answers.
"""

import json
import sys
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
    """The one input of a request."""
    (given,) = request["inputs"]
    if "data" in given:
        return torch.tensor(given["data"], dtype=torch.float32).reshape(given["shape"])
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


def plain(vault: str, port: str) -> None:
    """As most would write it: FastAPI, uvicorn, one handler."""
    import uvicorn

    model, number = live(vault)
    app = FastAPI()

    @app.post(PATH)
    async def infer(request: Request) -> Any:
        length = request.headers.get(LENGTH)
        head, tail = split(await request.body(), length)
        with torch.inference_mode():
            logits = model(tensor_of(json.loads(head), tail))
        if length is not None:
            return binary(logits, number)
        told = whole(logits, number)
        told["outputs"][0]["data"] = logits.flatten().tolist()
        return told

    uvicorn.run(app, port=int(port), log_level="warning", access_log=False, loop="uvloop",
                http="httptools")  # fmt: skip


if __name__ == "__main__":
    plain(*sys.argv[1:])
