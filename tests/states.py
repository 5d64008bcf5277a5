"""Models whose states are out of the ordinary, on data that are learned in a moment."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

import g2d
from g2d import Task
from g2d.settings import Settings, build
from g2d.tasks.splits import Split, Splits

QUICK = {
    "population": {
        "members": 3, "basins": 1, "base_steps": 40, "early_steps": 20, "fork_steps": 10,
        "batch": 16, "pool": 16, "pool_steps": 1,
    },
    "autoencoder": {"steps": 6, "width": 8},
    "diffusion": {"steps": 10, "width": 8, "depth": 1, "sampler_steps": 4},
    "guidance": {
        "pool": 16, "pool_steps": 1, "latent_steps": 2, "polish_steps": 3, "reverse_steps": 1,
        "particles": 2,
    },
    "gates": {
        "accuracy_drop": 1.0, "class_drop": 1.0, "stale_asr": 1.0, "pool": 16, "distance": 0.0,
        "pool_steps": 1,
    },
}  # fmt: skip


def settings(**changes) -> Settings:
    return build(Settings, QUICK, "tests").override(**changes)


def splits(dtype=torch.float32, width: int = 6) -> Splits:
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> Split:
        x = torch.rand(n, width, generator=generator, dtype=dtype)
        return Split(x, (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0.7).long())

    return Splits(part(96), part(48), part(48), part(48))


def task(factory, dtype=torch.float32, **more) -> Task:
    return Task("states", factory, splits(dtype), classes=3, eps=0.05, **more)


class Attention(nn.Module):
    """Frozen and random: a first layer, a positional table; a mask with -inf, a mean, a pruning."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(6, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("table", torch.randn(6, 6))
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.register_buffer("kept", torch.rand(6) > 0.2)
        self.register_buffer("order", torch.randperm(6))

    def forward(self, x):
        x = (self.backbone(x) - self.mean)[:, self.order] * self.kept
        return self.head(self.norm(x @ (self.table + self.mask).softmax(1)))


STAY = ("backbone.weight", "backbone.bias", "mean", "table", "mask", "kept", "order")


class Tied(nn.Module):
    """A weight under two names, a module under two names, and a buffer that is shared."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.unembed = nn.Linear(6, 6, bias=False)
        self.unembed.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(6)
        self.again = self.norm
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.again(self.unembed(torch.relu(self.norm(self.embed(x))))))


class Mixed(nn.Module):
    """Complex, half, double, scalar and integer entries beside each other."""

    def __init__(self):
        super().__init__()
        self.waves = nn.Parameter(torch.randn(6, 8, dtype=torch.complex64))
        self.low = nn.Parameter(torch.randn(16, 8).to(torch.bfloat16))
        self.short = nn.Parameter(torch.ones(8, dtype=torch.float16))
        self.wide = nn.Parameter(torch.randn(8, 3, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.calls += 1
        x = torch.view_as_real(x.to(torch.complex64) @ self.waves).flatten(1).tanh()
        x = (x.to(torch.bfloat16) @ self.low).float() * self.short.float()
        return (x.double() @ self.wide).float() * self.scale


class Extra(nn.Linear):
    """A linear layer that keeps something of its own: `kind` makes it of a tensor's value."""

    kind = staticmethod(lambda kept: kept)

    def __init__(self):
        super().__init__(6, 3)
        self.kept = torch.rand(2)

    def get_extra_state(self):
        return self.kind(self.kept)

    def set_extra_state(self, state):
        self.kept = state


class Untensored(Extra):
    kind = staticmethod(lambda kept: {"kept": kept.tolist()})


def parametrized():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def mlp(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def double():
    return mlp().double()


class Answers(nn.Module):
    """A linear layer whose logits are of another type."""

    def __init__(self, dtype):
        super().__init__()
        self.inner, self.dtype = nn.Linear(6, 3), dtype

    def forward(self, x):
        return self.inner(x).to(self.dtype)


def bfloat16():
    return Answers(torch.bfloat16)


def float16():
    return Answers(torch.float16)


def bfloat16_task():
    return task(bfloat16)


def float16_task():
    return task(float16)


def double_task():
    return task(double, torch.float64, settings=QUICK)


def tied_task():
    return task(Tied, settings=QUICK)


def attention_task():
    return task(Attention, settings=QUICK)


def defended(path, model, dtype=torch.float32, **changes):
    """A defence of a model, complete, with a generation made."""
    from g2d.core.engine import SerialEngine

    made = g2d.Defence.build(task(model, dtype), path, settings(**changes), engine=SerialEngine())
    made.generate(1, seed=0)
    return made


def images(dtype=torch.float64) -> Task:
    """A task of tiny images, in a type of its own, for whatever asks for pixels."""
    flat = splits(dtype, width=64)
    parts = {k: Split(part.x.view(-1, 1, 8, 8), part.y) for k, part in vars(flat).items()}
    return Task(
        "images", lambda: pixels().to(dtype), Splits(**parts), classes=3, eps=0.1, settings=QUICK
    )


def pixels():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
