"""A sound vault of tiny networks, made without training, with every kind of entry in it."""

from __future__ import annotations

from pathlib import Path

import torch

from g2d.vault.signing import SigningKey, sign_generation
from g2d.vault.vault import Vault
from g2d.weights.checkpoints import pack

KEY = SigningKey.generate()
MANIFEST = {"task": "digits", "population": "ab" * 32, "generator": "cd" * 32, "gates": []}


def network(fill: float = 1.0, size: int = 3) -> bytes:
    return pack({"w": torch.full((size,), float(fill)), "b": torch.full((1,), -float(fill))})


def pool(rows: int = 2, indices: int = 2) -> bytes:
    x, index = torch.zeros(rows, 4, dtype=torch.float16), torch.arange(indices)
    return pack({"guide": x, "guide_index": index, "gate": x, "gate_index": index})


def accept(vault: Vault, turn: int, activate: bool = True, source: str = "digits") -> None:
    files = {"weights": network(turn), "attacks": pool()}
    exposed = {"exposed": vault.exposures()}
    more = {"source": source, "lifetime": 1.0, "activate": activate}
    sign_generation(vault, files, MANIFEST | exposed, KEY, **more)


def make_vault(path: Path) -> Path:
    """Every kind of entry, and generations 1 to 4, signed; 3 is live."""
    with Vault.create(path, '[task]\nname = "digits"\n') as vault:
        vault.put("base", 0, {"weights": network()}, {"accuracy": 0.9})
        vault.put("teacher", 0, {"weights": network(size=9)}, {})
        for index in range(2):
            vault.put("early", index, {"weights": network(index)}, {})
            notes = {"loss": float("inf")}
            vault.put("member", index, {"weights": network(index), "attacks": pool()}, notes)
        for turn in range(2):
            vault.put("generator", 0, {"weights": network(turn, size=5)}, {})
        for turn in range(4):
            accept(vault, turn, activate=turn < 3)
        vault.reject({"reasons": ["too near"], "at": 0.0})
    return path
