"""Orion's side of `benchmarks.confidential.orion`: a process of .venv-orion's interpreter, by path.

Knows nothing of g2d. Reads one JSON object a line and answers one: first the network, the ring and
the images, then the place of the image to answer. Orion prints as it works; that goes to stderr.
CPU seconds are of the whole process, Go's threads included.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import orion
import orion.nn as on
import torch
from orion.core.orion import scheme
from torch import nn

_WORD = 8  # bytes of a coefficient modulo one prime


class Chain(on.Module):  # type: ignore[misc]
    """Layers one after another, as a list of kinds and arguments says."""

    def __init__(self, layers: list[list[Any]]) -> None:
        super().__init__()
        kinds = {"conv": on.Conv2d, "linear": on.Linear, "flatten": on.Flatten, "square": on.Quad}
        self.layers = nn.Sequential(*(kinds[kind](*given) for kind, given in layers))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


class Side:
    """One compiled network, and one client's keys."""

    def __init__(self, asked: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.network = Chain(asked["layers"])
        with np.load(asked["weights"]) as held:
            weights = {f"layers.{key}": torch.from_numpy(held[key]) for key in held.files}
        self.network.load_state_dict(weights)
        self.network.eval()
        self.images = torch.from_numpy(np.load(asked["images"]))
        self.took: dict[str, float] = {}
        self._time("keys", lambda: orion.init_scheme({"ckks_params": asked["ring"], "orion": {
            "margin": 2, "embedding_method": "hybrid", "backend": "lattigo", "debug": False,
            "fuse_modules": True, "io_mode": "none"}}))  # fmt: skip
        # All at once would be compiled as a batch.
        self._time("fit", lambda: orion.fit(self.network, self.images[:1]))
        self.level = self._time("compile", lambda: orion.compile(self.network))
        self.network.he()

    def _time(self, name: str, call: Any) -> Any:
        began = time.process_time()
        made = call()
        self.took[name] = time.process_time() - began
        return made

    def told(self) -> dict[str, Any]:
        """What there is, before any image."""
        degree = scheme.params.get_ring_degree()
        keys = self._keys()
        serial, pointer = scheme.backend.GenerateAndSerializeRotationKey(min(keys))
        one = len(serial)
        scheme.backend.FreeCArray(pointer)
        primes = [float(prime) for prime in scheme.encoder.get_moduli_chain()]
        return {
            "version": version("orion-fhe"), "degree": degree, "cpu": self.took,
            "level": self.level, "rotations": len(keys),
            "bits": sum(math.log2(prime) for prime in primes) + sum(scheme.params.get_logp()),
            "upload": (len(keys) + 1) * one,  # rotations, and relinearisation
        }  # fmt: skip

    def _keys(self) -> set[int]:
        """Galois elements of the rotations that this network needs."""
        slots, found = scheme.params.get_slots(), set(scheme.lt_evaluator.saved_rotation_keys)
        order = 2 * scheme.params.get_ring_degree()
        if scheme.params.get_ringtype() != "standard":
            order *= 2
        for layer in self.network.layers:
            for place in range(1, getattr(layer, "output_rotations", 0) + 1):
                found.add(pow(5, slots // 2**place, order))
        return found

    def answer(self, place: int) -> dict[str, Any]:
        """One image: encrypted, answered, decrypted."""
        image = self.images[place : place + 1]
        self.took = {}
        query = self._time("encrypt", lambda: orion.encrypt(orion.encode(image, self.level)))
        reply = self._time("evaluate", lambda: self.network(query))
        logits = self._time("decrypt", lambda: reply.decrypt().decode())
        size = 2 * scheme.params.get_ring_degree() * _WORD
        return {
            "cpu": self.took, "logits": logits.flatten().tolist(),
            "query": len(query) * (query.level() + 1) * size,
            "answer": len(reply) * (reply.level() + 1) * size,
        }  # fmt: skip


def main() -> None:
    """Answer until nobody asks."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Orion prints must not be taken for an answer
    side: Side | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if side is None:
            side = Side(asked)
            told = side.told()
        else:
            told = side.answer(asked["image"])
        out.write(json.dumps(told) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
