"""A server of five clients, and answers to it as tests make them; no torch."""

from __future__ import annotations

import json
import struct

import numpy as np
import safetensors.numpy

from g2d.settings.federated import FederatedSettings
from g2d.training.federated.checks import Refusals
from g2d.training.federated.form import Form
from g2d.training.federated.messages import ANSWER, Message, digest_of, encode
from g2d.training.federated.server import Server
from g2d.training.federated.stages import Asked

FORM = Form({"a.weight": (2, 3), "b": (), "c": (4,)})
NAMES = [f"client-{k:02d}" for k in range(5)]
START = np.arange(FORM.size, dtype=np.float32)


def server(folder=None, said=None, rounds=3, **settings):
    given = {"clients": 5, "f": 1, "rule": "median", "mix": False, "clip": 0.0} | settings
    refusals = Refusals((said if said is not None else []).append)
    asked = Asked("base-0", rounds, 8)
    return Server(FORM, START, asked, FederatedSettings(**given), NAMES, folder, refusals)


def vector(seed):
    return np.random.default_rng(seed).normal(size=FORM.size).astype(np.float32)


def answer(to, name, seed=None, **changes):
    about = {"stage": "base-0", "number": to.number, "identity": name}
    v = vector(NAMES.index(name) if seed is None else seed)
    about = {"base": digest_of(to.vector), "vector": v} | about | changes
    return encode(Message(ANSWER, **about), FORM)


def raw(tensors=None, **header):
    """An answer by hand: tensors and header keys exchanged, or left out where None."""
    known = {
        "format": 1, "kind": ANSWER, "stage": "base-0", "round": 0, "identity": NAMES[0],
        "base": digest_of(START), **header,
    }  # fmt: skip
    known = {key: value for key, value in known.items() if value is not None}
    parts = FORM.split(vector(0)) | (tensors or {})
    parts = {name: np.array(part, order="C") for name, part in parts.items() if part is not None}
    return safetensors.numpy.save(parts, {"g2d": json.dumps(known)})


def header_only(text: bytes, length=None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text
