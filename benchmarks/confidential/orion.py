"""CKKS beside Orion: the same network, images and security, one thread each, image by image.

    make orion
    python -m benchmarks.confidential.orion --data ../shared/data/mnist    # seven CPU minutes
    python -m benchmarks.confidential.orion --task digits --images 2 --steps 150 --rings small

Orion (Ebel, Garimella and Reagen 2025) compiles torch modules to Lattigo; it is a process of an
environment of its own (`orion_process`). Both answer an image before either gets the next, so that
a busy machine is busy for both. Orion's cost depends on its ring, which its user chooses: several
are tried, none below 128 bits of security by the same table as ours, and the fastest one whose
logits are as near as ours must be (1e-3) is compared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from benchmarks.common.command import carry_out, parser
from benchmarks.common.places import RESULTS, ROOT
from benchmarks.common.results import record
from benchmarks.common.tables import NOTHING, TARGETS, markdown
from benchmarks.confidential.homomorphic import Clock, task_of, trained
from g2d.core.types import Array
from g2d.protect.homomorphic import EvaluationKeys, Plan, SecretKeys, encode, evaluate
from g2d.protect.homomorphic.parameters import check_security
from g2d.tasks.polynomials import Square

NAME = "confidential-orion"
PYTHON = ROOT / ".venv-orion" / "bin" / "python"
COLUMNS = ("what", "target", "G2D", "Orion")
_ENCODINGS = 5
_NEAR = 1e-3  # what a logit may be off

Ring = dict[str, Any]
Result = dict[str, Any]


def ring(log_degree: int, first: int, scale: int, special: Sequence[int], real: bool) -> Ring:
    """Orion's parameters for seven levels; secrets are as dense as uniform ternary ones are.

    Args:
        real: of the conjugate-invariant ring, which has as many slots as its degree.
    """
    return {
        "LogN": log_degree, "LogQ": [first, *[scale] * 7], "LogP": list(special),
        "LogScale": scale, "H": 2 * 2**log_degree // 3,
        "RingType": "conjugateinvariant" if real else "standard",
    }  # fmt: skip


RINGS = {
    "40 bits": ring(14, 50, 40, [50, 50], real=False),
    "38 bits": ring(14, 48, 38, [41, 41, 41], real=False),
    "35 bits": ring(14, 45, 35, [45, 45, 45], real=False),
    "small": ring(13, 30, 22, [30], real=True),
}


def layers(network: nn.Sequential) -> list[list[Any]]:
    """A chain of squares as `orion_process.Chain` takes it."""
    found: list[list[Any]] = []
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            sides = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            found.append(["conv", [layer.in_channels, layer.out_channels, *sides]])
        elif isinstance(layer, nn.Linear):
            found.append(["linear", [layer.in_features, layer.out_features]])
        elif isinstance(layer, nn.Flatten):
            found.append(["flatten", []])
        else:
            assert isinstance(layer, Square), f"{layer} is none of the layers that are compared"
            found.append(["square", []])
    return found


class Orion:
    """One network, compiled by Orion for one ring; a context manager that ends its process."""

    def __init__(self, folder: Path, network: nn.Sequential, images: Array, given: Ring) -> None:
        if not PYTHON.exists():
            raise SystemExit("Orion has an environment of its own, which is not there: make orion")
        degree, bits = 2 ** given["LogN"], sum(given["LogQ"]) + sum(given["LogP"])
        check_security(degree, bits)
        weights, inputs = folder / "weights.npz", folder / "images.npy"
        np.savez(weights, **{key: one.numpy() for key, one in network.state_dict().items()})
        np.save(inputs, images)
        self._log = (folder / "orion.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            # -P: this folder's `orion` is not the one that is meant.
            [PYTHON, "-P", Path(__file__).with_name("orion_process.py")], text=True, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env={**os.environ, "GOMAXPROCS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )  # fmt: skip
        asked = {"layers": layers(network), "weights": str(weights), "images": str(inputs),
                 "ring": given}  # fmt: skip
        self.told = self.ask(asked)
        check_security(self.told["degree"], math.floor(self.told["bits"]))

    def ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise SystemExit(f"Orion's process ended:\n{self._log.read()[-2000:]}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Ours:
    """The product's answers, by the library."""

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        self.clock = Clock()
        self.plan = Plan.of(network, shape)
        for _ in range(_ENCODINGS):
            self._encoded = self.clock.time("encode", self._encode(network))
        self._keys = SecretKeys.new(self.plan)
        self.upload = self._keys.upload()
        self._server = EvaluationKeys.read(self.upload, self.plan)

    def _encode(self, network: nn.Module) -> Any:
        return lambda: encode(self.plan, network.state_dict())

    def answer(self, image: torch.Tensor) -> torch.Tensor:
        """The logits of one image, (classes,)."""
        plan, clock = self.plan, self.clock
        query = clock.time("encrypt", lambda: self._keys.encrypt(image[None]))
        reply = clock.time("evaluate", lambda: evaluate(plan, self._encoded, self._server, query))
        return clock.time("decrypt", lambda: self._keys.decrypt(reply, exact=True))[0]


def compare(network: nn.Sequential, x: torch.Tensor, given: Ring, folder: Path) -> Result:
    """Both, image by image; what each took and how far it was off."""
    with torch.no_grad():
        wanted = network.double()(x.double())
    network = network.float()
    ours = Ours(network, tuple(x.shape[1:]))
    off: dict[str, list[float]] = {"ours": [], "orion": []}
    same = dict.fromkeys(off, 0)
    took: dict[str, list[float]] = {}
    reply: dict[str, Any] = {}
    with Orion(folder, network, x.numpy(), given) as orion:
        for place in range(len(x)):
            reply = orion.ask({"image": place})
            for name, seconds in reply["cpu"].items():
                took.setdefault(name, []).append(seconds)
            logits = {"orion": torch.tensor(reply["logits"]), "ours": ours.answer(x[place])}
            for whose, one in logits.items():
                off[whose].append(float((one - wanted[place]).abs().max()))
                same[whose] += int(one.argmax() == wanted[place].argmax())
        told = orion.told
    plan, limits = ours.plan, ours.plan.limits
    return {
        "ring": given, "images": len(x),
        "ours": {
            "cpu": ours.clock.medians(), "error": max(off["ours"]), "same": same["ours"],
            "query": limits.query_bytes, "answer": limits.answer_bytes,
            "upload": len(ours.upload), "degree": plan.parameters.degree,
            "bits": plan.parameters.bits,
        },
        "orion": told | {
            "cpu": told["cpu"] | {key: round(statistics.median(v), 4) for key, v in took.items()},
            "error": max(off["orion"]), "same": same["orion"],
            "query": reply["query"], "answer": reply["answer"],
        },
    }  # fmt: skip


def measure(given: argparse.Namespace, folder: Path) -> Result:
    """Every ring, on the same network and images."""
    torch.set_num_threads(1)
    task = task_of(given)
    network = trained(task, given.steps, given.seed)
    assert isinstance(network, nn.Sequential)
    x = task.splits.test.x[: given.images]
    found = {}
    for name in given.rings:
        found[name] = compare(network, x, RINGS[name], folder)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return record(given) | {"rings": found}


def compared(result: Result) -> Result:
    """The ring that counts: the fastest that is near enough, or else the nearest."""
    found = list(result["rings"].values())
    near = [one for one in found if one["orion"]["error"] < _NEAR]
    if not near:
        return min(found, key=lambda one: one["orion"]["error"])
    return min(near, key=lambda one: one["orion"]["cpu"]["evaluate"])


def rows(result: Result) -> list[tuple[object, ...]]:
    """The table: ours and Orion's."""
    chosen = compared(result)
    both, n = (chosen["ours"], chosen["orion"]), chosen["images"]
    ours, orion = (one["cpu"] for one in both)
    return [
        ("one image, CPU s", "≤ 1.5", *(f"{one['evaluate']:.2f}" for one in (ours, orion))),
        ("times as fast", "≥ 1.5", f"{orion['evaluate'] / ours['evaluate']:.1f}", ""),
        ("the client's part of it, CPU s", "",
         *(f"{one['encrypt'] + one['decrypt']:.2f}" for one in (ours, orion))),
        ("a network encoded, or compiled, CPU s", "",
         f"{ours['encode']:.2f}", f"{orion['compile']:.1f}"),
        ("argmax as torch's", "", *(f"{one['same']:,} of {n:,}" for one in both)),
        ("largest error of a logit", "< 1e-3", *(f"{one['error']:.1e}" for one in both)),
        ("a query and its answer, MB", "",
         *(f"{(one['query'] + one['answer']) / 1e6:.1f}" for one in both)),
        ("keys for one client, MB", "", *(f"{one['upload'] / 1e6:.0f}" for one in both)),
        ("N and bits of all primes", "128-bit security",
         *(f"{one['degree']:,}, {one['bits']:.0f}" for one in both)),
    ]  # fmt: skip


def others(result: Result) -> str:
    """What Orion took with other rings, in words."""
    chosen = compared(result)
    said = [
        f"{name}: {one['orion']['cpu']['evaluate']:.2f} CPU s, error {one['orion']['error']:.1e}"
        for name, one in result["rings"].items()
        if one is not chosen
    ]
    return f" Orion with other rings: {'; '.join(said)}." if said else ""


def made(folder: Path = RESULTS) -> dict[str, str]:
    """The block of docs/confidential.md, by the name of its mark."""
    path = folder / f"{NAME}.json"
    if not path.exists():
        return {NAME: markdown(TARGETS, [(f"`{path.name}`", NOTHING, "not measured yet")])}
    result = json.loads(path.read_text("utf-8"))
    version = compared(result)["orion"]["version"]
    facts = (
        f"Orion {version}; one network, seed {result['arguments']['seed']}; commit"
        f" {result['commit']}.{others(result)}"
    )
    return {NAME: f"{markdown(COLUMNS, rows(result))}\n\n{facts}"}


def main() -> None:
    """Measure and keep."""
    flags = parser(__doc__)
    flags.add_argument("--task", default="mnist", choices=["mnist", "digits"])
    flags.add_argument("--data", default="../shared/data/mnist", help="folder of MNIST")
    flags.add_argument("--images", type=int, default=50)
    flags.add_argument("--steps", type=int, default=1500, help="batches of training")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--rings", nargs="+", choices=list(RINGS), default=list(RINGS))
    carry_out(NAME, flags, measure, rows, header=COLUMNS)


if __name__ == "__main__":
    main()
