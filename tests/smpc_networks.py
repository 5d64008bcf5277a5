"""Generations that real parties of a test compute, and requests as others might send them."""

from __future__ import annotations

import secrets
import threading
from typing import Any

import numpy as np
import torch

from g2d.protect.multiparty.client import Client
from g2d.protect.multiparty.dealing import share
from g2d.protect.multiparty.errors import MultipartyError
from g2d.protect.multiparty.rings import split, to_ring
from g2d.protect.multiparty.translate import Translated, plain, translate
from g2d.tasks.networks import digits_cnn
from smpc_parties import Setup

SHAPE = (1, 8, 8)
NEAR = 1e-3


_KNOWN: dict[int, Translated] = {}
_BUILDING = threading.Lock()  # torch's one global generator


def generation(seed: int) -> Translated:
    with _BUILDING:
        if seed not in _KNOWN:
            torch.manual_seed(seed)
            _KNOWN[seed] = translate(digits_cnn(), SHAPE, (0.0,), (1.0,))
        return _KNOWN[seed]


def inputs(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(size=(n, *SHAPE)).astype(np.float32)


def expected(number: int, x: Any) -> Any:
    net = generation(number)
    return plain(net.program, net.parameters, x)


def deal(setup: Setup, number: int, **given: Any) -> Any:
    net = generation(number)
    own = setup.own("dealer")
    return share(setup.config, own, number, net.program, net.parameters, **given)


def raw(
    client: Client, x: Any, ranks: Any = range(3), shares: Any = None, **changes: Any
) -> list[Any]:
    """A request as a client of somebody else's making sends it; what each party says."""
    program = client.program
    asked = {"kind": "infer", "id": secrets.token_hex(16), "n": len(x), "digest": program.digest}
    shares = shares or split(to_ring(np.asarray(x, np.float64)), "aby3")
    for rank in ranks:
        client._lines[rank].send(asked | changes, shares[rank])
    said: list[Any] = []
    for rank in ranks:
        try:
            said.append(client._lines[rank].receive(1 << 20))
        except MultipartyError as error:
            said.append(str(error))
    return said
