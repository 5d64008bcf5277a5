"""Vaults, networks and sites for tests of the red team."""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

import g2d
from g2d.errors import GenerationError
from g2d.redteam.context import Chain, Network, RunSpec
from g2d.redteam.rows import Identifiers
from g2d.redteam.threats import threat
from g2d.weights.checkpoints import digest, pack

IDS = Identifiers("AML.T0043", "NISTAML.022", "ML01:2023")


def generate(defence, count):
    """Make generations; a tiny population's candidates do not always pass."""
    for seed in range(100):
        with contextlib.suppress(GenerationError):
            defence.generate(1, seed=seed)
            count -= 1
        if not count:
            return


def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 24), nn.ReLU(),
        nn.Linear(24, 10),
    )  # fmt: skip


def trained(task, seed, steps=120):
    model = task.model(seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        loss = F.cross_entropy(model(task.splits.train.x), task.splits.train.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def written(folder, name, states):
    networks = []
    for number, state in enumerate(states):
        path = folder / f"{name}-{number}.safetensors"
        path.write_bytes(pack(state))
        networks.append(Network(str(path), digest(path.read_bytes()), f"{name} {number}"))
    return tuple(networks)


def site_of(task, folder, states, **more):
    networks = written(folder, "generation", states)
    chains = {
        "generated": Chain("generated", networks),
        "frozen": Chain("frozen", networks[:1], fixed=True),
        "permuted": Chain("permuted", (networks[0],) * 3, fixed=True),
    }
    return RunSpec(
        task, str(folder), g2d.Settings(), chains, n=60, eps=task.eps, quick=True, **more
    )


def cases(of, spec, /, **wanted):
    found = threat(of).plan(spec)
    for key, value in wanted.items():
        found = [case for case in found if getattr(case, key) == value]
    return found
