"""The OpenAPI description of the `/v2` calls, which `app` answers without FastAPI."""

from __future__ import annotations

import math
from typing import Any

from g2d.service.access.identity import needed
from g2d.service.http.options import Options
from g2d.service.http.protocol import Model

Schema = dict[str, Any]
_REFUSALS = (400, 403, 404, 405, 408, 413, 415, 421, 422, 429, 503)  # of infer
_TAG = ["Open Inference Protocol v2"]
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def merge(
    schema: Schema, model: Model, options: Options, tagged: bool = False, encrypted: bool = False
) -> Schema:
    """Add the calls of the protocol to FastAPI's description of the others.

    Args:
        tagged: clients are told a tag in place of a generation's number. encrypted: ciphertexts are
            answered, too.
    """
    paths = {
        "/v2": _get("Server metadata", {"type": "object"}),
        "/v2/health/live": _get("Whether the process answers"),
        "/v2/health/ready": _get("Whether it takes requests", failing=("503",)),
        "/v2/models/stats": _get("Statistics of all models: the one", {"type": "object"}),
        "/v2/repository/index": {
            "post": _get("The models that there are", {"type": "array"})["get"]
        },
    }
    for prefix, named in (("", False), ("/versions/{version}", True)):
        path = f"/v2/models/{{name}}{prefix}"
        about = _parameters(model, named)
        paths[path] = _get("Model metadata", {"type": "object"}, about, ("404",))
        for what, text in (
            ("config", "Model configuration"),
            ("stats", "Statistics; in two digits"),
        ):
            paths[f"{path}/{what}"] = _get(text, {"type": "object"}, about, ("404",))
        paths[f"{path}/ready"] = _get("Whether the model answers", None, about, ("404", "503"))
        paths[f"{path}/infer"] = {"post": _infer(model, options, tagged) | {"parameters": about}}
    if encrypted:
        paths |= _encrypted()
    servers = {"servers": [{"url": options.root_path}]} if options.root_path else {}
    whole = schema | servers | {"paths": paths | schema["paths"]}
    return _with_callers(whole, options) if options.authenticated else whole


def _encrypted() -> Schema:
    """What is asked under `/encrypted`; bodies are ciphertexts, which no schema describes."""
    plan = _get("The plan that keys and ciphertexts are made for", {"type": "object"})["get"]
    keys = {
        "summary": "Upload evaluation keys, once",
        "requestBody": _binary("Public, relinearisation and Galois keys"),
        "responses": {"201": _json("Their id", {"type": "object", "required": ["keys"]})},
    }
    own = {"name": "keys", "in": "path", "required": True, "schema": {"type": "string"}}
    drop = {
        "summary": "Delete evaluation keys",
        "parameters": [own],
        "responses": {"204": {"description": "They are forgotten"}},
    }
    infer = {
        "summary": "Infer, encrypted",
        "requestBody": _binary(
            "JSON, whose length the header Inference-Header-Content-Length says, with the id of the"
            " keys and the plan's digest; then a ciphertext"
        ),
        "responses": {"200": _binary("The answer, likewise") | {"description": "The answer"}},
    }
    for call in (keys, drop, infer):
        call["tags"] = ["Encrypted"]
        for status in (*_REFUSALS, 409):
            call["responses"][str(status)] = _json("Refused", ERROR)  # type: ignore[index]
    return {
        "/encrypted/plan": {"get": plan | {"tags": ["Encrypted"]}},
        "/encrypted/keys": {"post": keys},
        "/encrypted/keys/{keys}": {"delete": drop},
        "/encrypted/infer": {"post": infer},
    }


def _binary(text: str) -> Schema:
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"description": text, "content": content}


def _with_callers(schema: Schema, options: Options) -> Schema:
    """Say of each call which asks for a role that it does, and how to say who asks."""
    ways: dict[str, Schema] = {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    if options.client_ca:
        ways["mutualTLS"] = {"type": "mutualTLS"}
    for path, calls in schema["paths"].items():
        roles = " or ".join(sorted(needed(path)))
        for call in calls.values() if roles else ():
            call["security"] = [{way: []} for way in ways]
            refused = {"401": "Nobody says who asks", "403": f"Who asks has not the role {roles}"}
            for status, text in (refused | {"429": "Over a quota"}).items():
                call["responses"][status] = _json(text, ERROR)
    components = schema.get("components", {})
    known = ways | components.get("securitySchemes", {})
    return schema | {"components": components | {"securitySchemes": known}}


def _get(
    summary: str,
    body: Schema | None = None,
    parameters: list[Schema] | None = None,
    failing: tuple[str, ...] = (),
) -> Schema:
    good = {"description": "Yes"} if body is None else _json("The answer", body)
    # A health probe's refusal has no body, a model's has.
    responses = {"200": good} | {status: {"description": "No"} for status in failing}
    responses |= {status: _json("Why not", ERROR) for status in ("403", "405", "421", "429")}
    return {
        "get": {
            "summary": summary, "tags": _TAG, "parameters": parameters or [],
            "responses": responses,
        }
    }  # fmt: skip


def _json(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _parameters(model: Model, version: bool) -> list[Schema]:
    name = {"name": "name", "in": "path", "required": True,
            "schema": {"type": "string"}, "example": model.name}  # fmt: skip
    number = {"name": "version", "in": "path", "required": True,
              "description": "Answered only while it is the live generation.",
              "schema": {"type": "string"}}  # fmt: skip
    return [name, number] if version else [name]


def _infer(model: Model, options: Options, tagged: bool) -> Schema:
    whose = (
        "of what is live for who asks; `parameters.generation` is a tag of its own"
        if tagged
        else "of one generation, whose number is `parameters.generation`"
    )
    return {
        "summary": "Infer",
        "description": f"{model.output.capitalize()} {whose}. A"
        " binary tensor may follow the JSON (header Inference-Header-Content-Length).",
        "tags": _TAG,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _request(model, options.max_batch),
                                             "example": _example(model)},
                        "application/octet-stream": {"schema": {"format": "binary"}}},
        },
        "responses": {
            "200": {
                "description": "The answer",
                "content": {"application/json": {"schema": _answer(model, tagged)},
                            "application/octet-stream": {"schema": {"format": "binary"}}},
            },
            **{str(status): _json("Refused", ERROR)
               for status in _REFUSALS},
        },
    }  # fmt: skip


def _request(model: Model, most: int) -> Schema:
    shape = [{"type": "integer", "minimum": 1, "maximum": most}]
    shape += [{"const": side} for side in model.shape]
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": "input"},
            "datatype": {"const": model.datatype},
            "shape": {"type": "array", "prefixItems": shape, "minItems": len(shape),
                      "maxItems": len(shape)},
            # How many the shape asks for is more than JSON Schema can say.
            "data": {"type": "array", "description": "Numbers, flat or nested as the shape.",
                     "minItems": 1, "items": {"type": ["number", "array"]}},
        },
    }  # fmt: skip
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
        },
    }


def _example(model: Model) -> Schema:
    """One input of zeros."""
    data = [0] * math.prod(model.shape)
    tensor = {"name": "input", "shape": [1, *model.shape], "datatype": model.datatype, "data": data}
    return {"inputs": [tensor]}


def _answer(model: Model, tagged: bool) -> Schema:
    kind = ["string", "integer"] if tagged else "integer"
    return {
        "type": "object",
        "required": ["model_name", "model_version", "parameters", "outputs"],
        "properties": {
            "model_name": {"const": model.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "required": ["generation"],
                "properties": {"generation": {"type": kind}},
            },
            "outputs": {"type": "array", "items": {"type": "object"}},
        },
    }
